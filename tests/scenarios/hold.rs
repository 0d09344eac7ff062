//! Hold: what the API's going costs a client, and what is heard of a leader that may not lead (design.md, "Fence and hold").

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::api::Kind;
use lab::client::Proto;
use lab::clock::{now, until};
use lab::download::Download;
use lab::node::Cut;
use lab::probe::EVERY;
use lab::recorder::Message;
use lab::takeover::Takeover;
use lab::{World, play};

use crate::{LATER, LEASE, SOON, spec, stands_by, steady};

crate::scenarios!(
    while_the_api_is_away_a_client_loses_nothing,
    a_hand_over_is_made_before_the_old_tunnel_breaks,
    a_leader_cut_off_from_the_api_is_replaced_while_it_sends_at_full_rate,
    a_leader_that_is_robbed_of_its_lease_falls_within_two_seconds,
    without_hold_a_lapsed_leader_says_nothing,
);

mod long {
    #[test]
    #[ignore = "needs root"]
    fn in_hold_a_request_is_answered_though_the_nat_forgets() -> anyhow::Result<()> {
        super::in_hold_a_request_is_answered_though_the_nat_forgets(lab::api::Kind::Embedded)
    }
}

pub(crate) fn becomes(world: &World, node: u8, state: &str, within: Duration) -> Result<Instant> {
    let sidecar = world.sidecar(node)?;
    until(&format!("{} to be {state}", sidecar.pod), within, || {
        Ok((sidecar.status()?["tunnels"][0]["state"] == state).then(now))
    })
}

/// Waits for what only time brings.
pub(crate) fn pass(until_then: Instant) {
    thread::sleep(until_then.saturating_duration_since(now()));
}

/// Nothing but answers and what is defused came from the node.
pub(crate) fn expect_no_word_of_its_own(world: &World, node: u8, from: Instant, to: Instant) -> Result<()> {
    let heard = world.hubs[0].heard();
    let words: Vec<_> = heard
        .iter()
        .filter(|h| (from..to).contains(&h.at) && h.node() == Some(node) && h.kind == Message::Initiation)
        .collect();
    ensure!(words.is_empty(), "node {node} began handshakes while it held: {words:?}");
    Ok(())
}

fn while_the_api_is_away_a_client_loses_nothing(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = now();
        world.api.stop()?;
        let holding = becomes(world, leader, "holding", 2 * LEASE)?;
        assert_eq!(world.sidecar(leader)?.metric("wirevip_holding", r#"{tunnel="wg0"}"#)?, Some(1.0));
        assert_eq!(world.sidecar(leader)?.metric("wirevip_leader", r#"{tunnel="wg0"}"#)?, Some(0.0));
        pass(holding + 2 * LEASE);
        assert_eq!(probe.lost_since(event), 0, "the API's going cost the client answers");
        let session = world.hubs[0].peer()?;
        world.api.resume()?;
        let resumed = now();
        let again = becomes(world, leader, "leading", LATER)?;
        expect_no_word_of_its_own(world, leader, event, resumed)?;
        eprintln!("leads on {:?} after the API's return", again - resumed);
        pass(again + Duration::from_secs(3));
        assert_eq!(probe.lost_since(event), 0, "the API's return cost the client answers");
        assert_eq!(world.hubs[0].peer()?.latest_handshake, session.latest_handshake, "the tunnel was touched");
        let events = until("the Event", SOON, || {
            let events = world.events()?;
            Ok(events.iter().any(|event| event.contains("Holding")).then_some(events))
        })?;
        assert!(!events.iter().any(|event| event.contains("FenceClosed")), "{events:?}");
        Ok(())
    })
}

fn in_hold_a_request_is_answered_though_the_nat_forgets(api: Kind) -> Result<()> {
    let spec = lab::WorldSpec { nat_forgets: Some(30), ..spec(api) };
    play(spec, |world| {
        let leader = world.wait_leader(0, None, SOON)?;
        world.api.stop()?;
        becomes(world, leader, "holding", 2 * LEASE)?;
        // The hub's last word counts for a minute; from then on what keeps the NAT open are defused packets. After 3 min the
        // session is over, and half a minute later WireGuard in user space gives up by itself.
        let idle = Duration::from_secs(250);
        pass(now() + idle);
        let client = world.client.patient(SOON);
        let asked = now();
        client.until(Proto::Udp, world.web(), SOON, |answer| answer.name().is_some())?;
        eprintln!("answered {:?} after {idle:?} of silence in hold", now() - asked);
        world.api.resume()?;
        becomes(world, leader, "leading", LATER)?;
        Ok(())
    })
}

fn a_hand_over_is_made_before_the_old_tunnel_breaks(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = world.sidecar(leader)?.sigterm()?;
        let takeover = Takeover::measure(world, 0, &probe, leader, event, LATER)?;
        eprintln!("SIGTERM: {takeover}");
        let heard = world.hubs[0].heard();
        let handshake = takeover.handshake.context("no handshake")?;
        // A hand-over may take less than the time between two probes.
        let from = event.min(handshake - 4 * EVERY);
        let answers = heard.iter().filter(|h| h.node() == Some(leader) && h.at > from && h.at < handshake).count();
        assert!(answers > 0, "the old leader was silent before the new one had spoken");
        expect_no_word_of_its_own(world, leader, event, now())?;
        let status = world.sidecar(leader)?.wait_exit(Duration::from_secs(3))?;
        assert!(status.success(), "{status}");
        Ok(())
    })
}

fn a_leader_cut_off_from_the_api_is_replaced_while_it_sends_at_full_rate(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let (probe, leader) = steady(world)?;
        let download = Download::start(&world.client, world.web())?;
        let event = now();
        let node = &world.nodes[usize::from(leader)];
        node.cut(Cut::Api)?;
        let takeover = Takeover::measure(world, 0, &probe, leader, event, LEASE + LATER)?;
        eprintln!("cut off from the API while sending: {takeover}");
        expect_no_word_of_its_own(world, leader, event + LEASE, now())?;
        let won = takeover.session.context("no session")?;
        pass(won + Duration::from_secs(4));
        assert_eq!(world.leader(0)?, Some(takeover.to));
        let (from, to) = (won + Duration::from_secs(2), won + Duration::from_secs(4));
        let late =
            world.hubs[0].heard().iter().filter(|h| (from..to).contains(&h.at) && h.node() == Some(leader)).count();
        eprintln!("packets of the old leader 2 to 4 s after: {late}");
        drop(download);
        node.heal()?;
        stands_by(world, leader)
    })
}

fn a_leader_that_is_robbed_of_its_lease_falls_within_two_seconds(api: Kind) -> Result<()> {
    use lab::api::Resource;
    use lab::sidecar::NAMESPACE;
    play(spec(api), |world| {
        let (_probe, leader) = steady(world)?;
        until("the Lease overwritten", SOON, || {
            let mut object = world.kube.get(Resource::Lease, NAMESPACE, &world.spec.tunnels[0].lease())?;
            object["spec"]["holderIdentity"] = "somebody-else".into();
            Ok(world.kube.replace(Resource::Lease, object).ok())
        })?;
        let robbed = now();
        let down = becomes(world, leader, "standby", SOON)?;
        eprintln!("down {:?} after another was named", down - robbed);
        let late = world.hubs[0].heard().iter().filter(|h| h.at > down && h.node() == Some(leader)).count();
        assert_eq!(late, 0);
        Ok(())
    })
}

fn without_hold_a_lapsed_leader_says_nothing(api: Kind) -> Result<()> {
    play(spec(api).args(&["--hold=false"]), |world| {
        let (_probe, leader) = steady(world)?;
        let event = now();
        world.api.stop()?;
        pass(event + LEASE + Duration::from_secs(2));
        let silent = event + LEASE;
        let late: Vec<_> =
            world.hubs[0].heard().into_iter().filter(|h| h.at > silent && h.node() == Some(leader)).collect();
        assert!(late.is_empty(), "{late:?}");
        world.api.resume()?;
        Ok(())
    })
}
