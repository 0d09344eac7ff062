//! Who spoke WireGuard to a hub, and when: every packet that arrives there or leaves it, with the kernel's own time stamp.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout, ReceiveTimestampns};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::clock;
use crate::netns::Netns;
use crate::plan;
use crate::processes::locked;
pub use crate::record::Message;
use crate::record::{Entry, Packet, What};

/// Bytes that the kernel keeps for a recorder that is late: a few seconds of packets.
const BUFFER: usize = 32 << 20;

/// `sll_pkttype` of what this machine sends (linux/if_packet.h).
const PACKET_OUTGOING: u8 = 4;

/// One packet at the hub's WireGuard port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// When, by the kernel's stamp.
    pub at: Instant,
    /// From where, as the hub sees it.
    pub from: SocketAddrV4,
    /// At which of its sockets.
    pub to: SocketAddrV4,
    /// Did the hub send it?
    pub outgoing: bool,
    /// What it was.
    pub kind: Message,
    /// Bytes of UDP payload. Merged packets (GRO) count as one.
    pub length: usize,
    /// The index that its sender gives the session: handshake messages only.
    pub sender: Option<u32>,
    /// The index that its receiver gave the session: all but initiations.
    pub receiver: Option<u32>,
}

impl Heard {
    /// The node whose sidecar sent it.
    pub fn node(&self) -> Option<u8> {
        plan::speaker(self.from)
    }

    /// As an entry of a record that began at `zero`.
    pub fn entry(&self, tunnel: usize, zero: Instant) -> Entry {
        let Self { at, from, to, outgoing, kind, length, sender, receiver } = *self;
        let packet = Packet { peer: if outgoing { to } else { from }, kind, length, sender, receiver };
        let what = if outgoing { What::FromHub(packet) } else { What::ToHub(packet) };
        Entry { at: at.saturating_duration_since(zero), tunnel, what }
    }
}

/// Listens in a namespace until dropped.
pub struct Recorder {
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Records UDP packets that arrive in `netns` for a port in `ports`, and those that leave from one.
    pub fn start(netns: &Netns, ports: std::ops::Range<u16>) -> Result<Self> {
        let packets = netns.run(|| {
            // ETH_P_ALL and not ETH_P_IP: what leaves is handed over, too.
            let packets =
                socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                    .context("cannot listen to packets: CAP_NET_RAW is needed")?;
            setsockopt(&packets, ReceiveTimestampns, &true)?;
            // What the buffer does not take is not judged. Only root of the machine gets more than net.core.rmem_max.
            setsockopt(&packets, RcvBufForce, &BUFFER).or_else(|_| setsockopt(&packets, RcvBuf, &BUFFER))?;
            setsockopt(&packets, ReceiveTimeout, &TimeVal::milliseconds(50))?;
            Ok(packets)
        })?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (sink, flag) = (Arc::clone(&heard), Arc::clone(&stop));
        let thread = thread::Builder::new().name("recorder".into()).spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                let own = |packet: &Heard| if packet.outgoing { packet.from } else { packet.to };
                if let Some(packet) = receive(&packets).filter(|packet| ports.contains(&own(packet).port())) {
                    locked(&sink).push(packet);
                }
            }
        })?;
        Ok(Self { heard, stop, thread: Some(thread) })
    }

    /// All that arrived so far, in order.
    pub fn heard(&self) -> Vec<Heard> {
        locked(&self.heard).iter().filter(|packet| !packet.outgoing).copied().collect()
    }

    /// All that arrived or left so far, in order.
    pub fn all(&self) -> Vec<Heard> {
        locked(&self.heard).clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn receive(packets: &OwnedFd) -> Option<Heard> {
    let mut bytes = [0; 128];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = loop {
        match recvmsg::<LinkAddr>(packets.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            other => break other.ok()?,
        }
    };
    let stamp = message.cmsgs().ok()?.find_map(|part| match part {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
        _ => None,
    });
    let length = message.bytes;
    let outgoing = message.address?.pkttype() == PACKET_OUTGOING;
    let at = stamp.map_or_else(clock::now, |since| clock::moment_of(UNIX_EPOCH + since));
    parse(&bytes[..length], at, outgoing)
}

/// Reads IPv4 and UDP headers, WireGuard's type byte and its indexes; `None` for all else.
fn parse(packet: &[u8], at: Instant, outgoing: bool) -> Option<Heard> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
    if packet.first()? >> 4 != 4 || *packet.get(9)? != 17 || fragment != 0 {
        return None;
    }
    let number = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let four = |at: usize| <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok();
    let address = |at: usize| four(at).map(Ipv4Addr::from);
    let index = |at: usize| four(header + 8 + at).map(u32::from_le_bytes);
    let kind = Message::of(*packet.get(header + 8)?);
    let (sender, receiver) = match kind {
        Message::Initiation => (index(4), None),
        Message::Response => (index(4), index(8)),
        Message::Cookie | Message::Data => (None, index(4)),
        Message::Other(_) => (None, None),
    };
    Some(Heard {
        at,
        from: SocketAddrV4::new(address(12)?, number(header)?),
        to: SocketAddrV4::new(address(16)?, number(header + 2)?),
        outgoing,
        kind,
        length: usize::from(number(header + 4)?).saturating_sub(8),
        sender,
        receiver,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keepalive_is_read_from_its_bytes() {
        let mut packet = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0, 203, 0, 113, 1, 192, 0, 2, 10];
        packet.extend([0x4e, 0x84, 0xca, 0x6c, 0, 40, 0, 0]);
        packet.extend([4, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a]);
        let at = clock::now();
        let heard = parse(&packet, at, false).unwrap();
        assert_eq!((heard.kind, heard.length, heard.node()), (Message::Data, 32, Some(1)));
        assert_eq!((heard.sender, heard.receiver), (None, Some(0x0a0b_0c0d)));
        assert_eq!(
            (heard.from.to_string(), heard.to.to_string()),
            ("203.0.113.1:20100".into(), "192.0.2.10:51820".into())
        );
        assert_eq!(parse(&packet[..20], at, false), None);
        packet[9] = 6;
        assert_eq!(parse(&packet, at, false), None);
    }
}
