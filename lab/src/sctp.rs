//! SCTP, as far as conntrack and NAT look at it (RFC 9260): packets of one chunk, with no kernel's SCTP involved. So
//! flows can be driven step by step, and on kernels that have no SCTP sockets.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvmsg, sendto, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::clock::until;
use crate::netns::Netns;

const SCTP: u8 = 132;

/// A chunk; its number is its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chunk {
    /// 1: asks for an association; carries the tag that answers must have.
    Init(u32),
    /// 2: its answer, likewise.
    InitAck(u32),
    /// 10: the third step.
    CookieEcho,
    /// 11: the last step.
    CookieAck,
    /// 4: is the other end there?
    Heartbeat,
    /// Anything else.
    Other(u8),
}

/// One packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// From where, as the receiver sees it.
    pub from: SocketAddrV4,
    /// To where.
    pub to: SocketAddrV4,
    /// The verification tag: that of the receiver; 0 with [`Chunk::Init`].
    pub tag: u32,
    /// What it carries.
    pub chunk: Chunk,
}

/// One end of associations: all SCTP that arrives in a namespace.
pub struct Endpoint {
    netns: Netns,
    arriving: OwnedFd,
    sending: OwnedFd,
}

impl Endpoint {
    /// Listens in a namespace. A kernel without SCTP would answer with ICMP "protocol unreachable": that is held back.
    pub fn new(netns: &Netns) -> Result<Self> {
        netns.nft(
            "table ip lab_sctp { chain out { type filter hook output priority 0;
                icmp type destination-unreachable icmp code 2 drop; }; }",
        )?;
        let (arriving, sending) = netns.run(|| {
            let arriving =
                socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthIp)
                    .context("cannot listen to packets: CAP_NET_RAW is needed")?;
            setsockopt(&arriving, ReceiveTimeout, &TimeVal::milliseconds(20))?;
            let sending = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
            Ok((arriving, sending))
        })?;
        Ok(Self { netns: netns.clone(), arriving, sending })
    }

    /// Sends a packet.
    pub fn send(&self, packet: &Packet) -> Result<()> {
        let to = SockaddrIn::from(packet.to);
        sendto(self.sending.as_raw_fd(), &packet.bytes(), &to, MsgFlags::empty())
            .with_context(|| format!("cannot send to {} from {}", packet.to, self.netns.name()))?;
        Ok(())
    }

    /// The next packet that arrives.
    pub fn receive(&self, within: Duration) -> Result<Packet> {
        until(&format!("an SCTP packet in {}", self.netns.name()), within, || Ok(self.arrived()))
    }

    fn arrived(&self) -> Option<Packet> {
        let mut bytes = [0; 256];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let length = recvmsg::<LinkAddr>(self.arriving.as_raw_fd(), &mut parts, None, MsgFlags::empty()).ok()?.bytes;
        Packet::parse(&bytes[..length])
    }
}

impl Chunk {
    fn bytes(self) -> Vec<u8> {
        let (kind, body) = match self {
            // Tag, window, streams out and in, first number.
            Chunk::Init(tag) => (1, [&tag.to_be_bytes()[..], &[0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]].concat()),
            Chunk::InitAck(tag) => (2, [&tag.to_be_bytes()[..], &[0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]].concat()),
            Chunk::CookieEcho => (10, b"cook".to_vec()),
            Chunk::CookieAck => (11, vec![]),
            Chunk::Heartbeat => (4, vec![0, 1, 0, 4]),
            Chunk::Other(kind) => (kind, vec![]),
        };
        let length = 4 + u8::try_from(body.len()).unwrap_or(0);
        [&[kind, 0, 0, length][..], &body].concat()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let tag = || Some(u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?));
        Some(match bytes.first()? {
            1 => Chunk::Init(tag()?),
            2 => Chunk::InitAck(tag()?),
            10 => Chunk::CookieEcho,
            11 => Chunk::CookieAck,
            4 => Chunk::Heartbeat,
            other => Chunk::Other(*other),
        })
    }
}

impl Packet {
    /// An IPv4 packet, but for the header's checksum, which the kernel fills in.
    fn bytes(&self) -> Vec<u8> {
        let chunk = self.chunk.bytes();
        let length = u8::try_from(32 + chunk.len()).unwrap_or(u8::MAX);
        let mut packet = vec![0x45, 0, 0, length, 0, 0, 0, 0, 64, SCTP, 0, 0];
        packet.extend(self.from.ip().octets());
        packet.extend(self.to.ip().octets());
        let mut sctp = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        sctp.extend(self.tag.to_be_bytes());
        sctp.extend([0; 4]);
        sctp.extend(chunk);
        let sum = crc32c(&sctp);
        sctp[8..12].copy_from_slice(&sum.to_le_bytes());
        packet.extend(sctp);
        packet
    }

    /// `None`: no SCTP, or its checksum is wrong.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let header = usize::from(bytes.first()? & 0x0f) * 4;
        if *bytes.get(9)? != SCTP {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]));
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
        let mut sctp = bytes.get(header..length)?.to_vec();
        let sum = u32::from_le_bytes(sctp.get(8..12)?.try_into().ok()?);
        sctp[8..12].fill(0);
        if crc32c(&sctp) != sum {
            return None;
        }
        let port = |at: usize| Some(u16::from_be_bytes([*sctp.get(at)?, *sctp.get(at + 1)?]));
        Some(Self {
            from: SocketAddrV4::new(address(12)?, port(0)?),
            to: SocketAddrV4::new(address(16)?, port(2)?),
            tag: u32::from_be_bytes(sctp.get(4..8)?.try_into().ok()?),
            chunk: Chunk::parse(sctp.get(12..)?)?,
        })
    }
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c_and_a_packet_with_a_wrong_one_is_none() -> Result<()> {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        let packet =
            Packet { from: "192.0.2.1:7".parse()?, to: "192.0.2.2:8".parse()?, tag: 5, chunk: Chunk::InitAck(9) };
        let mut bytes = packet.bytes();
        assert_eq!(Packet::parse(&bytes), Some(packet));
        bytes[25] ^= 1;
        assert_eq!(Packet::parse(&bytes), None);
        Ok(())
    }
}
