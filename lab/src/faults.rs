//! What may befall a cluster, each as a value: injected into a world, and healed again.

mod chance;
mod inject;
pub mod machine;
pub mod outsider;
mod repeat;

use std::fmt;
use std::time::Duration;

pub use self::chance::{Pair, pair};
pub use self::inject::{HUB_NAME, Injected};
pub use self::machine::{Starved, Whose};
pub use self::outsider::Ours;
use crate::node::{Cut, Way};

/// Lease duration of the sidecars (the default).
const LEASE: Duration = Duration::from_secs(5);

/// A fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The leader is killed, and started again when another leads.
    Kill,
    /// The leader is killed and started again at once, twice: what a kubelet does after the kernel's OOM killer.
    OutOfMemory,
    /// The leader stands still for so many leases.
    Freeze(u8),
    /// The leader stands still and goes on, ten times in a row.
    Stutter,
    /// The leader's node is cut off.
    Cut(Cut, Way),
    /// The wall clock is set forward by so many seconds, or back, and in the end right again.
    ClockSet(Whose, i8),
    /// The leader's machine is suspended for so many leases.
    Suspend(u8),
    /// The kernel's netlink says ENOBUFS.
    NoBuffers(Whose, Starved),
    /// The API server is gone.
    ApiDown,
    /// The API server answers so many milliseconds late.
    ApiSlow(u16),
    /// The API server answers everything with this code.
    ApiErrs(u16),
    /// The API server's kernel takes connections, and nobody answers.
    ApiSilent,
    /// The API server does what it is asked, and every answer to a write is lost.
    RepliesLost,
    /// Every watch ends, again and again.
    WatchesDropped,
    /// Watches stay open, and nothing comes.
    WatchesStuck,
    /// The history is gone: each watch is told 410.
    HistoryGone,
    /// The Lease is deleted.
    LeaseDeleted,
    /// The Lease is given to somebody who is not there.
    LeaseGiven,
    /// The Lease loses its holder.
    LeaseEmptied,
    /// The Lease loses its times, and lasts 1 s.
    LeaseMangled,
    /// The hub is switched off and on.
    HubRestart,
    /// The hub neither hears nor speaks.
    HubSilent,
    /// The hub's name moves to another address.
    HubMoved,
    /// The NAT on the way forgets all flows, and gives other ports.
    NatForgets,
    /// So many packets of a hundred are lost between pods and hub.
    Loss(u8),
    /// Half of the packets between pods and hub take 20 ms longer than the rest.
    Reordering,
    /// The path to the hub takes packets of 1280 bytes.
    SmallMtu,
    /// Another program with the same key speaks: a sidecar that knows nothing of these Leases.
    Stranger,
    /// An outsider deletes something of the leader's.
    Deleted(Ours),
    /// The Secret is deleted.
    SecretDeleted,
    /// The Secret is no YAML.
    SecretBroken,
    /// The Secret is deleted, broken and made again, ten times a second.
    SecretFlaps,
    /// A hundred endpoint changes a second.
    EndpointStorm,
}

impl Fault {
    /// What befalls processes.
    pub const PROCESSES: &[Self] = &[
        Self::Freeze(5),
        Self::Freeze(4),
        Self::Freeze(3),
        Self::Freeze(2),
        Self::Freeze(1),
        Self::Kill,
        Self::OutOfMemory,
        Self::Stutter,
    ];
    /// What befalls a node.
    pub const NODE: &[Self] = &[
        Self::Cut(Cut::All, Way::Both),
        Self::Cut(Cut::All, Way::Out),
        Self::Cut(Cut::All, Way::In),
        Self::Cut(Cut::Api, Way::Both),
        Self::Cut(Cut::Api, Way::In),
        Self::Cut(Cut::Hub, Way::Both),
        Self::Cut(Cut::Hub, Way::Out),
        Self::Cut(Cut::Hub, Way::In),
    ];
    /// What befalls a pod's machine.
    pub const MACHINE: &[Self] = &[
        Self::ClockSet(Whose::Leader, 60),
        Self::ClockSet(Whose::Leader, -60),
        Self::ClockSet(Whose::All, 60),
        Self::ClockSet(Whose::All, -60),
        Self::Suspend(1),
        Self::Suspend(2),
        Self::Suspend(4),
        Self::NoBuffers(Whose::Leader, Starved::Questions),
        Self::NoBuffers(Whose::Leader, Starved::Answers),
        Self::NoBuffers(Whose::All, Starved::Some(20)),
    ];
    /// What befalls the API server.
    pub const API: &[Self] = &[
        Self::ApiDown,
        Self::ApiSlow(100),
        Self::ApiSlow(1000),
        Self::ApiSlow(5000),
        Self::ApiErrs(401),
        Self::ApiErrs(429),
        Self::ApiErrs(500),
        Self::ApiErrs(503),
        Self::ApiSilent,
        Self::RepliesLost,
        Self::WatchesDropped,
        Self::WatchesStuck,
        Self::HistoryGone,
    ];
    /// What befalls the objects in it.
    pub const OBJECTS: &[Self] = &[
        Self::LeaseDeleted,
        Self::LeaseGiven,
        Self::LeaseEmptied,
        Self::LeaseMangled,
        Self::SecretDeleted,
        Self::SecretBroken,
        Self::SecretFlaps,
        Self::EndpointStorm,
    ];
    /// What befalls the hub and the way there.
    pub const HUB: &[Self] = &[
        Self::HubRestart,
        Self::HubSilent,
        Self::HubMoved,
        Self::NatForgets,
        Self::Loss(1),
        Self::Loss(10),
        Self::Reordering,
        Self::SmallMtu,
        Self::Stranger,
    ];
    /// What an outsider does in the leader's pod.
    pub const OUTSIDER: &[Self] = &[
        Self::Deleted(Ours::Forwards),
        Self::Deleted(Ours::Fence),
        Self::Deleted(Ours::Link),
        Self::Deleted(Ours::Rules),
        Self::Deleted(Ours::Routes),
        Self::Deleted(Ours::Up),
    ];

    /// All of them, kind by kind.
    pub fn all() -> Vec<Self> {
        [Self::PROCESSES, Self::NODE, Self::MACHINE, Self::API, Self::OBJECTS, Self::HUB, Self::OUTSIDER].concat()
    }

    /// How long it lasts; zero: it is over as soon as it has happened.
    pub fn lasts(self) -> Duration {
        // Longer than a lease: another may take over meanwhile.
        let long = LEASE + Duration::from_secs(2);
        match self {
            Self::Kill | Self::ApiDown | Self::ApiSilent | Self::ApiSlow(5000..) | Self::ApiErrs(401 | 500) => long,
            Self::Cut(Cut::All | Cut::Api, _) | Self::ClockSet(..) | Self::NoBuffers(..) => long,
            Self::Freeze(leases) | Self::Suspend(leases) => LEASE * u32::from(leases),
            Self::Stutter | Self::ApiSlow(1000..) | Self::HubSilent | Self::Stranger => LEASE,
            Self::Cut(Cut::Hub, _) | Self::RepliesLost | Self::WatchesStuck | Self::Loss(_) => Duration::from_secs(4),
            Self::ApiSlow(_) | Self::ApiErrs(_) | Self::WatchesDropped | Self::HistoryGone => Duration::from_secs(3),
            Self::Reordering | Self::SecretFlaps | Self::EndpointStorm => Duration::from_secs(3),
            Self::SmallMtu | Self::SecretDeleted | Self::SecretBroken => Duration::from_secs(2),
            Self::OutOfMemory | Self::HubRestart | Self::HubMoved | Self::NatForgets | Self::Deleted(_) => {
                Duration::ZERO
            }
            Self::LeaseDeleted | Self::LeaseGiven | Self::LeaseEmptied | Self::LeaseMangled => Duration::ZERO,
        }
    }

    /// Must clients be served while it lasts, too? With hold the API server's absence costs them nothing.
    pub fn is_harmless(self, hold: bool) -> bool {
        match self {
            Self::ApiSlow(100) | Self::WatchesDropped | Self::WatchesStuck | Self::HistoryGone => true,
            Self::ApiDown | Self::ApiSilent | Self::ApiSlow(_) | Self::ApiErrs(_) | Self::RepliesLost => hold,
            Self::Loss(_) | Self::Reordering | Self::SmallMtu | Self::ClockSet(..) => true,
            Self::NoBuffers(_, Starved::Some(_)) => true,
            Self::NoBuffers(..) => hold,
            Self::SecretDeleted | Self::SecretBroken | Self::SecretFlaps | Self::EndpointStorm => true,
            _ => false,
        }
    }

    /// Must who leads lead on, as if nothing had happened? Wall clocks decide nothing.
    pub fn leaves_the_leader(self) -> bool {
        matches!(self, Self::ClockSet(..))
    }

    /// Is it about the hub's presence? Then a leader must have found out before that this hub answers probes: only then
    /// the shorter of the contract's times counts.
    pub fn is_about_the_hub(self) -> bool {
        matches!(
            self,
            Self::HubRestart
                | Self::HubSilent
                | Self::HubMoved
                | Self::NatForgets
                | Self::Cut(Cut::Hub, _)
                | Self::Stranger
        )
    }

    /// Does nobody get an answer from the API server while it lasts, the lab included?
    pub fn is_without_api(self) -> bool {
        matches!(self, Self::ApiDown | Self::ApiSilent)
    }

    /// Does one of the two take the fence from a pod that the other keeps from putting it back? Then nothing is promised
    /// (docs/proof.md, "What it rests on").
    pub fn unguards(self, other: Self) -> bool {
        let stands_still = |fault| matches!(fault, Self::Freeze(_) | Self::Suspend(_));
        let fence = Self::Deleted(Ours::Fence);
        (stands_still(self) && other == fence) || (self == fence && stands_still(other))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Kill => "the leader killed",
            Self::OutOfMemory => "the leader killed and started again, twice",
            Self::Freeze(leases) => return write!(f, "the leader frozen for {leases} leases"),
            Self::Stutter => "the leader stopped and continued in bursts",
            Self::Cut(cut, way) => return write!(f, "the leader's node cut off ({cut:?}, {way:?})"),
            Self::ClockSet(whose, seconds) => {
                let way = if *seconds < 0 { "back" } else { "forward" };
                return write!(f, "{whose} clock set {way} by {} s", seconds.unsigned_abs());
            }
            Self::Suspend(leases) => return write!(f, "the leader's machine suspended for {leases} leases"),
            Self::NoBuffers(whose, starved) => return write!(f, "{whose} netlink without buffers for {starved}"),
            Self::ApiDown => "the API server down",
            Self::ApiSlow(delay) => return write!(f, "the API server {delay} ms slow"),
            Self::ApiErrs(code) => return write!(f, "the API server answering {code}"),
            Self::ApiSilent => "the API server accepting and never answering",
            Self::RepliesLost => "replies to writes lost",
            Self::WatchesDropped => "watches dropped",
            Self::WatchesStuck => "watches stuck open",
            Self::HistoryGone => "410 for every watch",
            Self::LeaseDeleted => "the Lease deleted",
            Self::LeaseGiven => "the Lease given to somebody else",
            Self::LeaseEmptied => "the Lease emptied",
            Self::LeaseMangled => "the Lease mangled",
            Self::HubRestart => "the hub restarted",
            Self::HubSilent => "the hub silent",
            Self::HubMoved => "the hub's name moved",
            Self::NatForgets => "the NAT's mappings changed",
            Self::Loss(percent) => return write!(f, "{percent} % loss"),
            Self::Reordering => "reordering",
            Self::SmallMtu => "a path MTU of 1280",
            Self::Stranger => "another program with the same key",
            Self::Deleted(ours) => return write!(f, "{ours}"),
            Self::SecretDeleted => "the Secret deleted",
            Self::SecretBroken => "the Secret broken",
            Self::SecretFlaps => "the Secret flapping",
            Self::EndpointStorm => "100 endpoint changes a second",
        };
        f.write_str(text)
    }
}
