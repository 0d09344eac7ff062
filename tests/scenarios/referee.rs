//! The referee catches a second speaker with real packets, and finds nothing against takeovers as they should be.

use anyhow::Result;
use lab::api::Kind;
use lab::clock::{now, until};
use lab::play;
use lab::probe::{Probe, ProbeKind};
use lab::record::{Record, Speaker};
use lab::referee::judge;
use lab::wireguard::Wireguard;

use crate::{LATER, LEASE, SOON, spec};

crate::scenarios!(
    the_referee_catches_a_foreign_program_with_the_same_key,
    the_referee_sees_each_turn_of_a_takeover_and_no_two_together,
);

fn the_referee_catches_a_foreign_program_with_the_same_key(api: Kind) -> Result<()> {
    play(spec(api).stranger("what it catches must be there"), |world| {
        assert_eq!(world.judgement()?.faults(), Vec::<String>::new());
        let rival = Wireguard::rival(&world.topology.backends[0], &world.spec.tunnels[0], world.processes())?;
        let judgement = until("the stranger in a pod's turn", LATER, || {
            let judgement = world.judgement()?;
            let beside = judgement.together.iter().any(|together| matches!(together.beside, Speaker::Stranger(_)));
            Ok(beside.then_some(judgement))
        })?;
        drop(rival);
        eprintln!("{}", judgement.story());
        assert!(!judgement.faults().is_empty());
        assert_eq!(judgement.faults_among_pods(), Vec::<String>::new());
        // The same from a file.
        let record = world.record()?;
        let again = Record::from_text(&record.to_text())?;
        assert_eq!(judge(&again).faults(), judge(&record).faults());
        Ok(())
    })
}

fn the_referee_sees_each_turn_of_a_takeover_and_no_two_together(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, SOON)?;
        let first = world.wait_leader(0, None, SOON)?;
        let event = world.sidecar(first)?.sigkill()?;
        let second = world.wait_leader(0, Some(first), LEASE + LATER)?;
        probe.answered_since(event + LEASE, LATER)?;
        let judgement = world.judgement()?;
        let turns: Vec<Speaker> = judgement.turns.iter().map(|turn| turn.who).collect();
        assert_eq!(turns, [Speaker::Node(first), Speaker::Node(second)], "{}", judgement.story());
        assert_eq!((judgement.together.len(), judgement.returns.len()), (0, 0), "{}", judgement.story());
        Ok(())
    })
}
