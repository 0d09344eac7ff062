//! A leader goes, another comes: nobody speaks at the same time (I1: the referee looks), and the client soon has answers again (I9).
//! All with `--hold=false`; what hold changes is in `hold`. Gaps are printed, not asserted to the millisecond: `make
//! bench` measures them.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::api::Kind;
use lab::clock::{now, until};
use lab::forge;
use lab::node::Cut;
use lab::probe::{Probe, ProbeKind};
use lab::recorder::Message;
use lab::takeover::Takeover;
use lab::{World, plan, play};

use crate::{LATER, LEASE, SOON, apart, expect_silence, stands_by, steady, strict};

crate::scenarios!(
    a_leader_that_is_asked_to_stop_hands_over,
    a_killed_leader_is_replaced_after_its_lease,
    a_killed_leader_that_is_restarted_leads_again_at_once,
    a_leader_cut_off_from_everything_is_replaced_and_stands_by_afterwards,
    a_leader_cut_off_from_the_api_is_silent_before_another_speaks,
    a_frozen_leader_is_silent_and_stands_by_when_it_wakes,
    beside_a_frozen_leader_nobody_can_speak_in_its_name,
    a_udp_flow_that_never_pauses_is_answered_by_the_successor,
    a_tcp_connection_of_the_old_leader_is_reset_and_not_left_hanging,
    ten_takeovers_in_a_row_end_well,
);

fn takeover(world: &World, probe: &Probe, leader: u8, event: Instant, what: &str) -> Result<Takeover> {
    let takeover = Takeover::measure(world, 0, probe, leader, event, LEASE + LATER)?;
    eprintln!("{what}: {takeover}");
    Ok(takeover)
}

fn a_leader_that_is_asked_to_stop_hands_over(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = world.sidecar(leader)?.sigterm()?;
        let takeover = takeover(world, &probe, leader, event, "SIGTERM")?;
        let old = world.sidecar(leader)?;
        let status = old.wait_exit(Duration::from_secs(3))?;
        assert!(status.success(), "{status}: {}", old.log());
        assert!(takeover.silent < LEASE, "a Lease that was given back need not run out");
        Ok(())
    })
}

fn a_killed_leader_is_replaced_after_its_lease(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = world.sidecar(leader)?.sigkill()?;
        takeover(world, &probe, leader, event, "SIGKILL")?;
        Ok(())
    })
}

fn a_killed_leader_that_is_restarted_leads_again_at_once(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let (probe, leader) = steady(world)?;
        let transitions = world.lease(0)?.context("no Lease")?.transitions;
        let event = now();
        let restarted = world.sidecar_mut(leader)?.restart_in_place(Duration::from_millis(100))?;
        probe.steady_since(restarted, 100, LATER)?;
        eprintln!("SIGKILL and restart: gap {:?}", probe.gap_since(event).length());
        let lease = world.lease(0)?.context("no Lease")?;
        assert_eq!((lease.holder, lease.transitions), (world.sidecar(leader)?.identity(), transitions));
        Ok(())
    })
}

fn a_leader_cut_off_from_everything_is_replaced_and_stands_by_afterwards(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = now();
        let node = &world.nodes[usize::from(leader)];
        node.cut(Cut::All)?;
        let takeover = takeover(world, &probe, leader, event, "node cut off")?;
        node.heal()?;
        let healed = now();
        stands_by(world, leader)?;
        assert_eq!(world.leader(0)?, Some(takeover.to));
        assert_eq!(probe.lost_since(healed), 0, "the return disturbed the client");
        expect_silence(world, 0, leader, event + LEASE)
    })
}

fn a_leader_cut_off_from_the_api_is_silent_before_another_speaks(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = now();
        let node = &world.nodes[usize::from(leader)];
        node.cut(Cut::Api)?;
        let takeover = takeover(world, &probe, leader, event, "cut off from the API alone")?;
        // The last renewal reached the API before the cut: a lease later nothing may come any more.
        expect_silence(world, 0, leader, event + LEASE)?;
        node.heal()?;
        stands_by(world, leader)?;
        assert_eq!(world.leader(0)?, Some(takeover.to));
        Ok(())
    })
}

fn a_frozen_leader_is_silent_and_stands_by_when_it_wakes(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = world.sidecar(leader)?.freeze()?;
        let takeover = takeover(world, &probe, leader, event, "SIGSTOP")?;
        let thaw = event + 3 * LEASE;
        until("three leases", 4 * LEASE, || Ok((now() >= thaw).then_some(())))?;
        let thawed = world.sidecar(leader)?.thaw()?;
        stands_by(world, leader)?;
        assert_eq!(world.leader(0)?, Some(takeover.to));
        expect_silence(world, 0, leader, event + LEASE)?;
        assert_eq!(probe.lost_since(thawed), 0, "the waking disturbed the client");
        Ok(())
    })
}

fn beside_a_frozen_leader_nobody_can_speak_in_its_name(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let leader = world.wait_leader(0, None, SOON)?;
        let sidecar = world.sidecar(leader)?;
        let from = SocketAddrV4::new(plan::sidecar(leader), 51820);
        let to = SocketAddrV4::new(world.hubs[0].address, plan::HUB_PORT);
        let forged = |from, kind| forge::send(&sidecar.netns, from, to, &[kind; 40]);
        let count = || {
            let heard = world.hubs[0].heard();
            heard.iter().filter(|h| h.kind == Message::Other(9) && h.node() == Some(leader)).count()
        };
        // While it leads, even a forged packet passes: so what is refused later is refused by the fence.
        assert!(forged(from, 9)?);
        until("the forged packet", SOON, || Ok((count() == 1).then_some(())))?;
        let event = sidecar.freeze()?;
        until("the end of the tenure", 2 * LEASE, || Ok((now() >= event + LEASE).then_some(())))?;
        assert!(!forged(from, 9)?, "a packet from the tunnel's port passed after the tenure");
        assert!(forged(SocketAddrV4::new(*from.ip(), 40_000), 8)?, "other ports are none of the fence's business");
        assert_eq!(count(), 1);
        Ok(())
    })
}

fn a_udp_flow_that_never_pauses_is_answered_by_the_successor(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        // The same source port all along: a flow that entered conntrack untranslated would stay lost for good.
        let (probe, first) = steady(world)?;
        let mut leader = first;
        for _ in 0..3 {
            let event = world.sidecar(leader)?.sigterm()?;
            let next = takeover(world, &probe, leader, event, "hand-over under a UDP flow")?;
            world.sidecar(leader)?.wait_exit(SOON)?;
            world.sidecar_mut(leader)?.start()?;
            world.sidecar(leader)?.wait_ready(SOON)?;
            leader = next.to;
        }
        Ok(())
    })
}

fn a_tcp_connection_of_the_old_leader_is_reset_and_not_left_hanging(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let long = Probe::start(&world.topology.client, world.web(), ProbeKind::TcpLong)?;
        long.steady_since(now(), 100, SOON)?;
        let leader = world.wait_leader(0, None, SOON)?;
        let event = world.sidecar(leader)?.sigterm()?;
        // The probe makes a new connection only when the old one breaks: a hanging one would be silent for a minute.
        let answered = long.answered_since(event + Duration::from_millis(500), LATER)?;
        eprintln!("a long TCP connection was made anew after {:?}", apart(answered, event));
        Ok(())
    })
}

fn ten_takeovers_in_a_row_end_well(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let (probe, mut leader) = steady(world)?;
        for round in 0..10 {
            let event = world.sidecar(leader)?.sigterm()?;
            let next = takeover(world, &probe, leader, event, &format!("round {round}"))?;
            world.sidecar(leader)?.wait_exit(SOON)?;
            world.sidecar_mut(leader)?.start()?;
            world.sidecar(leader)?.wait_ready(SOON)?;
            leader = next.to;
        }
        Ok(())
    })
}
