//! What befalls a pod's machine and no namespace has of its own: a clock that is set, a suspend, a kernel without memory
//! for netlink. Played by the [`Shim`] that stands between a sidecar and its kernel.
//!
//! A suspend is played so: nothing of the pod runs and nothing reaches it; afterwards CLOCK_BOOTTIME and the wall clock
//! have gone on, CLOCK_MONOTONIC has not, nor have the kernel's jiffies by which a fence leads: what was left of that is put
//! back. What the rest of the kernel does, above all its WireGuard, which forgets its sessions, is not played.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::inject::Undo;
use crate::clock::{now, pause, until};
use crate::netns::Netns;
use crate::node::{Cut, Way};
use crate::processes::Process;
use crate::shim::Shim;
use crate::sidecar::Sidecar;
use crate::world::World;

const SOON: Duration = Duration::from_secs(5);
/// So long after its processes a machine's network is there again. What leaves before they have run, nobody promises
/// (docs/proof.md).
const FIRST_INSTANT: Duration = Duration::from_millis(100);

/// Whose machine it befalls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// The leader's.
    Leader,
    /// Every pod's alike.
    All,
}

/// For what netlink has no buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Starved {
    /// For any message to the kernel.
    Questions,
    /// For any message from it: what was asked is done, and the answer is lost.
    Answers,
    /// For so many of a hundred, either way.
    Some(u8),
}

impl World {
    /// Puts a shim before each sidecar, from its next start on.
    pub fn load_shims(&mut self) -> Result<()> {
        for sidecar in &mut self.sidecars {
            sidecar.shim = Some(Shim::new()?);
        }
        Ok(())
    }

    /// An error if a sidecar that runs does not listen to its shim.
    pub fn expect_shims(&self) -> Result<()> {
        self.sidecars.iter().try_for_each(|sidecar| sidecar.shim()?.expect_loaded(sidecar.process()?))
    }

    /// The shims before these pods.
    pub fn shims(&self, whose: Whose, leader: u8) -> Result<Vec<Shim>> {
        let concerned = self.sidecars.iter().filter(|sidecar| whose == Whose::All || sidecar.node == leader);
        concerned.map(|sidecar| sidecar.shim().cloned()).collect()
    }

    pub(super) fn set_clocks(&self, whose: Whose, seconds: i8, leader: u8) -> Result<Undo> {
        let shims = self.shims(whose, leader)?;
        shims.iter().try_for_each(|shim| shim.set_wall(seconds.into()))?;
        Ok(Box::new(move |_| shims.iter().try_for_each(|shim| shim.set_wall(0))))
    }

    pub(super) fn starve_netlink(&self, whose: Whose, starved: Starved, leader: u8) -> Result<Undo> {
        let (sends, answers) = match starved {
            Starved::Questions => (100, 0),
            Starved::Answers => (0, 100),
            Starved::Some(percent) => (percent, percent),
        };
        let shims = self.shims(whose, leader)?;
        shims.iter().try_for_each(|shim| shim.refuse(sends, answers))?;
        Ok(Box::new(move |world| {
            shims.iter().try_for_each(|shim| shim.refuse(0, 0))?;
            until("each pod that could not start meanwhile to be started again, as by a kubelet", SOON, || {
                world.start_sidecars()?;
                let lives = |sidecar: &Sidecar| {
                    sidecar.process().is_ok_and(Process::stopped) || sidecar.http_get("/livez").is_ok()
                };
                Ok(world.sidecars.iter().all(lives).then_some(()))
            })
        }))
    }

    pub(super) fn suspend(&mut self, leader: u8) -> Result<Undo> {
        let mend = self.cut(Cut::All, Way::Both, leader)?;
        let sidecar = self.sidecar(leader)?;
        let (process, pod, shim) = (sidecar.process()?.clone(), sidecar.netns.clone(), sidecar.shim()?.clone());
        process.signal(Signal::SIGSTOP)?;
        until("the pod's machine to stand still", SOON, || Ok(process.stopped().then_some(())))?;
        let (began, lead) = (now(), Lead::read(&pod));
        Ok(Box::new(move |world| {
            // Another fault may have ended it, or the process.
            if process.stopped() {
                shim.stood_still(began.elapsed())?;
                lead.iter().try_for_each(|lead| lead.put_back(&pod))?;
            }
            process.signal(Signal::SIGCONT)?;
            pause(FIRST_INSTANT)?;
            mend(world)
        }))
    }
}

const SET: &str = "inet wirevip_wg0_fence lead";

/// What is left of the time for which a fence leads, as nft(8) writes it.
struct Lead {
    port: String,
    left: String,
}

impl Lead {
    /// `None`: it does not lead.
    fn read(pod: &Netns) -> Option<Self> {
        let listed = pod.sh(&format!("nft list set {SET}")).ok()?;
        let mut words = listed.split_once("elements = {")?.1.split_whitespace();
        let port = words.next()?.to_owned();
        words.find(|word| *word == "expires")?;
        Some(Self { port, left: words.next()?.trim_end_matches(',').to_owned() })
    }

    fn put_back(&self, pod: &Netns) -> Result<()> {
        let Self { port, left } = self;
        // An element that lives would not be changed.
        pod.nft(&format!("flush set {SET}\nadd element {SET} {{ {port} timeout {left} }}"))
            .context("cannot let the fence lead for as long as it would have")
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "the leader's",
            Self::All => "each pod's",
        })
    }
}

impl fmt::Display for Starved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Questions => f.write_str("any question"),
            Self::Answers => f.write_str("any answer"),
            Self::Some(percent) => write!(f, "{percent} % of all messages"),
        }
    }
}
