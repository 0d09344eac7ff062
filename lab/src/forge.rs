//! Packets from a UDP port that another program has: what a fence must stop, whoever sends.

use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};

use crate::netns::Netns;

/// Sends one datagram with this source from a namespace, past whoever has that port. `false`: its kernel refused
/// (EPERM), which is what a fence looks like to a sender.
pub fn send(netns: &Netns, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Result<bool> {
    let packet = datagram(from, to, payload)?;
    netns.run(|| {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
            .context("no raw socket: CAP_NET_RAW is needed")?;
        match sendto(raw.as_raw_fd(), &packet, &SockaddrIn::from(to), MsgFlags::empty()) {
            Ok(_) => Ok(true),
            Err(Errno::EPERM) => Ok(false),
            Err(errno) => Err(errno).with_context(|| format!("cannot send to {}", SocketAddr::from(to))),
        }
    })
}

/// An IPv4 packet with a UDP datagram. Its UDP checksum is left out, as IPv4 allows; the kernel fills in the header's.
fn datagram(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Result<Vec<u8>> {
    let udp = u16::try_from(8 + payload.len()).context("too long a datagram")?;
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    for number in [from.port(), to.port(), udp, 0] {
        packet.extend(number.to_be_bytes());
    }
    packet.extend(payload);
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn a_forged_datagram_arrives_unless_the_kernel_refuses_it() -> Result<()> {
        let (a, b) = (Netns::new("a")?, Netns::new("b")?);
        a.cable("eth0", &b, "eth0", 1500)?;
        a.ip(&["addr add 192.0.2.1/24 dev eth0"])?;
        b.ip(&["addr add 192.0.2.2/24 dev eth0"])?;
        let (from, to) = ("192.0.2.1:51820".parse()?, "192.0.2.2:51820".parse()?);
        let _taken = a.run(|| Ok(std::net::UdpSocket::bind("0.0.0.0:51820")?))?;
        let listener = b.run(|| Ok(std::net::UdpSocket::bind("0.0.0.0:51820")?))?;
        listener.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
        assert!(send(&a, from, to, b"forged")?);
        let mut buffer = [0; 16];
        let (length, source) = listener.recv_from(&mut buffer)?;
        assert_eq!((&buffer[..length], source), (&b"forged"[..], SocketAddr::from(from)));
        a.nft("table ip fence { chain out { type filter hook output priority raw; udp sport 51820 drop; }; }")?;
        assert!(!send(&a, from, to, b"forged")?);
        Ok(())
    }
}
