//! Who spoke WireGuard to a hub, and when: every packet that arrives there, with the kernel's own time stamp.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, ReceiveTimeout, ReceiveTimestampns};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::clock;
use crate::netns::Netns;
use crate::plan;
use crate::processes::locked;

/// Message types of WireGuard (whitepaper, section 5.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// 1: a handshake's beginning.
    Initiation,
    /// 2: its answer.
    Response,
    /// 3: a cookie.
    Cookie,
    /// 4: data, or a keepalive if 32 bytes long.
    Data,
    /// Anything else; every WireGuard ignores it.
    Other(u8),
}

impl Message {
    fn of(kind: u8) -> Self {
        match kind {
            1 => Message::Initiation,
            2 => Message::Response,
            3 => Message::Cookie,
            4 => Message::Data,
            other => Message::Other(other),
        }
    }
}

/// One packet that arrived at the hub's WireGuard port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// When, by the kernel's stamp.
    pub at: Instant,
    /// From where, as the hub sees it.
    pub from: SocketAddrV4,
    /// At which of its sockets.
    pub to: SocketAddrV4,
    /// What it was.
    pub kind: Message,
    /// Bytes of UDP payload. Merged packets (GRO) count as one.
    pub length: usize,
}

impl Heard {
    /// The node whose sidecar sent it.
    pub fn node(&self) -> Option<u8> {
        plan::speaker(self.from)
    }
}

/// Listens in a namespace until dropped.
pub struct Recorder {
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Records UDP packets that arrive in `netns` for a port in `ports`.
    pub fn start(netns: &Netns, ports: std::ops::Range<u16>) -> Result<Self> {
        let packets = netns.run(|| {
            // ETH_P_IP and not ETH_P_ALL: only what arrives is handed over, nothing that leaves.
            let packets =
                socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthIp)
                    .context("cannot listen to packets: CAP_NET_RAW is needed")?;
            setsockopt(&packets, ReceiveTimestampns, &true)?;
            setsockopt(&packets, RcvBuf, &(4 << 20))?;
            setsockopt(&packets, ReceiveTimeout, &TimeVal::milliseconds(50))?;
            Ok(packets)
        })?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (sink, flag) = (Arc::clone(&heard), Arc::clone(&stop));
        let thread = thread::Builder::new().name("recorder".into()).spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                if let Some(packet) = receive(&packets).filter(|packet| ports.contains(&packet.to.port())) {
                    locked(&sink).push(packet);
                }
            }
        })?;
        Ok(Self { heard, stop, thread: Some(thread) })
    }

    /// Everything so far, in the order of arrival.
    pub fn heard(&self) -> Vec<Heard> {
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
    let at = stamp.map_or_else(clock::now, |since| clock::moment_of(UNIX_EPOCH + since));
    parse(&bytes[..length], at)
}

/// Reads IPv4 and UDP headers and WireGuard's type byte; `None` for all else.
fn parse(packet: &[u8], at: Instant) -> Option<Heard> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
    if packet.first()? >> 4 != 4 || *packet.get(9)? != 17 || fragment != 0 {
        return None;
    }
    let number = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    Some(Heard {
        at,
        from: SocketAddrV4::new(address(12)?, number(header)?),
        to: SocketAddrV4::new(address(16)?, number(header + 2)?),
        kind: Message::of(*packet.get(header + 8)?),
        length: usize::from(number(header + 4)?).saturating_sub(8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keepalive_is_read_from_its_bytes() {
        let mut packet = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0, 203, 0, 113, 1, 192, 0, 2, 10];
        packet.extend([0x4e, 0x84, 0xca, 0x6c, 0, 40, 0, 0]);
        packet.extend([4, 0, 0, 0]);
        let at = clock::now();
        let heard = parse(&packet, at).unwrap();
        assert_eq!((heard.kind, heard.length, heard.node()), (Message::Data, 32, Some(1)));
        assert_eq!(
            (heard.from.to_string(), heard.to.to_string()),
            ("203.0.113.1:20100".into(), "192.0.2.10:51820".into())
        );
        assert_eq!(parse(&packet[..20], at), None);
        packet[9] = 6;
        assert_eq!(parse(&packet, at), None);
    }
}
