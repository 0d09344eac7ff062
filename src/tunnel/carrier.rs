//! What gotatun's packets travel on: a TUN device inside, a UDP socket outside. Two rules of ours that its own
//! transports do not have:
//!
//! - A send that is refused is silence, not an error. The fence answers EPERM, a vanished route ENETUNREACH; gotatun would
//!   end its receive task, and with it the tunnel, over one of them.
//! - A packet takes as much memory as it is long. gotatun's own buffers take 25 MB a device before the first packet.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, sockopt};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, oneshot, watch};
use tun_rs::AsyncDevice;

/// How many packets are taken from a device or socket before others get their turn.
const BATCH: usize = 64;

/// The largest datagram, and so the largest packet.
const LARGEST: usize = 65_536;

/// Bytes of datagrams the kernel keeps for us while we are not running; beyond `rmem_max` with NET_ADMIN only.
const RECEIVE_BUFFER: usize = 2 << 20;

/// How long to wait after an error that may pass before trying again.
const PAUSE: Duration = Duration::from_millis(10);

/// First byte of a handshake initiation (WireGuard white paper, 5.4.2).
const INITIATION: u8 = 1;

/// Binds `port` for IPv6 and IPv4 in one socket, or for IPv4 alone where the kernel has no IPv6. Shares the port with
/// nobody: no SO_REUSEADDR, no SO_REUSEPORT.
pub(super) fn bind(port: u16) -> io::Result<std::net::UdpSocket> {
    match bind_both(port) {
        Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => Ok(bind_ipv4(port)?),
        both => Ok(both?),
    }
}

fn bind_both(port: u16) -> nix::Result<std::net::UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Inet6, SockType::Datagram, flags, None)?;
    socket::setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    let any = std::net::SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
    socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn6::from(any))?;
    Ok(socket.into())
}

fn bind_ipv4(port: u16) -> nix::Result<std::net::UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    let any = std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::from(any))?;
    Ok(socket.into())
}

/// A socket or device that several hold, and of whose end another is told.
pub(super) struct Held<T> {
    /// Dropped, and so closed, before the other field tells of it. A count of those who hold it says so too early.
    inner: T,
    _told: oneshot::Sender<()>,
}

/// When the last who held it has let go, and it is closed.
pub(super) struct Closed(oneshot::Receiver<()>);

impl<T> Held<T> {
    pub(super) fn new(inner: T) -> (Arc<Self>, Closed) {
        let (told, closed) = oneshot::channel();
        (Arc::new(Self { inner, _told: told }), Closed(closed))
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl Closed {
    pub(super) async fn wait(self) {
        // Nothing is ever sent: the sender's end is the news.
        let _ = self.0.await;
    }
}

/// The socket, bound before the device is built, and handed out each time that gotatun sets itself up.
#[derive(Clone)]
pub(super) struct Udp {
    socket: Arc<Held<UdpSocket>>,
    ipv6: bool,
    initiated: Arc<Notify>,
}

impl Udp {
    /// Takes over a socket of [`bind`]. Inside the runtime that will drive it.
    pub(super) fn new(socket: std::net::UdpSocket) -> io::Result<(Self, Closed)> {
        let ipv6 = socket.local_addr()?.is_ipv6();
        // In a user namespace it is refused; the default serves, at the price of bursts.
        let _ = socket::setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        let (socket, closed) = Held::new(UdpSocket::from_std(socket)?);
        Ok((Self { socket, ipv6, initiated: Arc::default() }, closed))
    }

    /// Notified at each handshake initiation that was given to the kernel, whether or not the fence let it out.
    pub(super) fn initiated(&self) -> Arc<Notify> {
        Arc::clone(&self.initiated)
    }

    fn target(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.ipv6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            other => other,
        }
    }
}

impl UdpTransportFactory for Udp {
    type Send = Udp;
    type Recv = Udp;

    async fn bind(&mut self, _: &UdpTransportFactoryParams) -> io::Result<(Udp, Udp)> {
        Ok((self.clone(), self.clone()))
    }
}

impl UdpSend for Udp {
    type SendManyBuf = ();

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        let sent = self.socket.send_to(&packet, self.target(destination)).await;
        if packet.first() == Some(&INITIATION) {
            self.initiated.notify_one();
        }
        if let Err(error) = sent {
            tracing::trace!(%error, "a WireGuard packet was not sent");
        }
        Ok(())
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        BATCH
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.socket.local_addr().map(Some)
    }
}

impl UdpRecv for Udp {
    type RecvManyBuf = Scratch;

    async fn recv_from(&mut self, _: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        let mut scratch = Scratch::default();
        loop {
            match self.socket.recv_from(&mut scratch.0).await {
                Ok((length, source)) => return Ok(received(&scratch.0[..length], source)),
                Err(error) => wait_after(&error).await,
            }
        }
    }

    async fn recv_many_from(
        &mut self,
        scratch: &mut Scratch,
        _: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        loop {
            match self.socket.recv_from(&mut scratch.0).await {
                Ok((length, source)) => {
                    packets.push(received(&scratch.0[..length], source));
                    break;
                }
                Err(error) => wait_after(&error).await,
            }
        }
        while packets.len() < BATCH {
            let Ok((length, source)) = self.socket.try_recv_from(&mut scratch.0) else { break };
            packets.push(received(&scratch.0[..length], source));
        }
        Ok(())
    }
}

/// Room for one packet of any size.
pub(super) struct Scratch(Box<[u8]>);

impl Default for Scratch {
    fn default() -> Self {
        Self(vec![0; LARGEST].into())
    }
}

fn received(bytes: &[u8], source: SocketAddr) -> (Packet, SocketAddr) {
    (Packet::copy_from(bytes), SocketAddr::new(source.ip().to_canonical(), source.port()))
}

/// A UDP socket's errors are about single datagrams; none of them ends it.
async fn wait_after(error: &io::Error) {
    tracing::debug!(%error, "receiving a WireGuard packet failed");
    tokio::time::sleep(PAUSE).await;
}

/// The TUN device, both directions.
pub(super) struct Tun {
    device: Arc<Held<AsyncDevice>>,
    mtu: watch::Receiver<u16>,
    scratch: Scratch,
    batch: Vec<Packet<Ip>>,
}

impl Tun {
    /// `mtu` is told as it changes.
    pub(super) fn new(device: Arc<Held<AsyncDevice>>, mtu: watch::Receiver<u16>) -> Self {
        Self { device, mtu, scratch: Scratch::default(), batch: Vec::new() }
    }
}

/// Only these mean that the device is gone; the rest (EIO while it is down, EINVAL for one packet) is about one packet.
fn is_gone(error: &io::Error) -> bool {
    [Errno::EBADF, Errno::EBADFD, Errno::ENODEV].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

impl IpSend for Tun {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        match self.device.send(&packet.into_bytes()).await {
            Err(error) if is_gone(&error) => Err(error),
            Err(error) => {
                tracing::trace!(%error, "a packet from the tunnel was not taken by its link");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}

impl IpRecv for Tun {
    async fn recv<'a>(&'a mut self, _: &mut PacketBufPool) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        loop {
            match self.device.recv(&mut self.scratch.0).await {
                Ok(length) => self.batch.extend(Packet::copy_from(&self.scratch.0[..length]).try_into_ip().ok()),
                Err(error) if is_gone(&error) => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
            while self.batch.len() < BATCH {
                let Ok(length) = self.device.try_recv(&mut self.scratch.0) else { break };
                self.batch.extend(Packet::copy_from(&self.scratch.0[..length]).try_into_ip().ok());
            }
            if !self.batch.is_empty() {
                return Ok(self.batch.drain(..));
            }
        }
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone().into()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn the_end_of_what_is_held_is_told_after_it_is_closed() {
        struct Slow(Arc<AtomicBool>);
        impl Drop for Slow {
            fn drop(&mut self) {
                thread::sleep(Duration::from_millis(50));
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let closed = Arc::new(AtomicBool::new(false));
        let (held, told) = Held::new(Slow(Arc::clone(&closed)));
        let last = Arc::clone(&held);
        drop(held);
        let closing = thread::spawn(move || drop(last));
        told.wait().await;
        assert!(closed.load(Ordering::SeqCst));
        closing.join().unwrap();
    }
}
