//! [`LinkBackend`] by gotatun over TUN, in this process, on a runtime of its own: what the API or the controller do
//! never delays a packet. Each link is an actor that owns its device; when the device fails for good (someone deleted
//! the link), the actor ends, and every later call answers [`LinkError::Lost`].

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gotatun::device::{Device, DeviceBuilder, Peer};
use gotatun::x25519;
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use netlink_packet_route::link::LinkAttribute;
use nix::errno::Errno;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::carrier::{self, Closed, Held, Tun, Udp};
use super::rtnl::Rtnl;
use super::stamps::Stamps;
use super::{Alias, Backend, LinkBackend, LinkError, LinkPlan, LinkStats, PeerPlan};
use crate::clock::BootClock;
use crate::secret::TunnelName;

/// Longest wait for a handshake initiation to reach the kernel, and for a device to stop before it is dropped.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest wait of whoever removes a link: shorter than the second that the controller's step may take, which has more to
/// do.
const STOP_WAIT: Duration = Duration::from_millis(800);

type Carried = Device<(Udp, Tun, Tun)>;

/// Links carried by this process.
pub struct Userspace {
    rtnl: Rtnl,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    links: Mutex<HashMap<TunnelName, Actor>>,
    /// A link is made anew for each tenure; its stamps go on.
    stamps: Mutex<HashMap<TunnelName, Arc<Stamps>>>,
}

/// Known until its end was seen: what of it may still send must not be taken for gone.
#[derive(Clone)]
struct Actor {
    orders: mpsc::Sender<Order>,
    /// Its sender goes with the actor.
    alive: watch::Receiver<()>,
}

enum Order {
    Fresh(LinkPlan, oneshot::Sender<Result<(), LinkError>>),
    Update(LinkPlan, oneshot::Sender<Result<(), LinkError>>),
    Stats(oneshot::Sender<Result<LinkStats, LinkError>>),
    Stop,
}

impl Userspace {
    /// Starts the runtime; its threads work in the caller's network namespace, as does `rtnl`.
    pub fn new(rtnl: Rtnl) -> io::Result<Self> {
        let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2));
        let runtime =
            Builder::new_multi_thread().worker_threads(workers).thread_name("wireguard").enable_all().build()?;
        Ok(Self { rtnl, runtime: Some(runtime), links: Mutex::default(), stamps: Mutex::default() })
    }

    fn stamps(&self, tunnel: &TunnelName) -> Arc<Stamps> {
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(stamps.entry(tunnel.clone()).or_insert_with(|| Arc::new(Stamps::new(BootClock))))
    }

    fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<JoinHandle<T>> {
        self.runtime.as_ref().map(|runtime| runtime.spawn(work))
    }

    fn links(&self) -> MutexGuard<'_, HashMap<TunnelName, Actor>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn mark(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        let name = plan.name.as_str();
        let link = self.rtnl.link(name).await.map_err(failed("looking for the new link"))?;
        let index = link.ok_or_else(|| LinkError::Lost { name: name.to_owned() })?.index;
        let alias = vec![LinkAttribute::IfAlias(Alias::of(plan, None).to_string())];
        self.rtnl.change(index, alias).await.map_err(failed("marking the new link as wirevip's"))
    }

    async fn order<T>(
        &self,
        tunnel: &TunnelName,
        order: impl FnOnce(oneshot::Sender<Result<T, LinkError>>) -> Order,
    ) -> Result<T, LinkError> {
        let lost = || LinkError::Lost { name: tunnel.to_string() };
        let orders = self.links().get(tunnel).ok_or_else(lost)?.orders.clone();
        let (reply, answer) = oneshot::channel();
        orders.send(order(reply)).await.map_err(|_| lost())?;
        answer.await.map_err(|_| lost())?
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for it would panic inside another runtime.
            runtime.shutdown_background();
        }
    }
}

impl LinkBackend for Userspace {
    fn backend(&self) -> Backend {
        Backend::Userspace
    }

    async fn create(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        let name = plan.name.as_str();
        // A lost link's actor may still hold its port.
        self.remove(&plan.name).await?;
        // TUNSETIFF would attach to a persistent TUN of somebody else's without a word.
        if self.rtnl.link(name).await.map_err(failed("looking for the link"))?.is_some() {
            return Err(LinkError::NameTaken { name: name.to_owned() });
        }
        let socket = carrier::bind(plan.listen_port).map_err(|error| match errno(&error) {
            Some(Errno::EADDRINUSE) => LinkError::PortTaken { port: plan.listen_port },
            _ => failed("binding the tunnel's UDP port")(error),
        })?;
        let (orders, inbox) = mpsc::channel(8);
        let (ready, made) = oneshot::channel();
        let (life, alive) = watch::channel(());
        let link = run(plan.clone(), self.stamps(&plan.name), socket, inbox, ready);
        let spawned = self.spawn(async move {
            link.await;
            drop(life);
        });
        spawned.ok_or_else(|| LinkError::Lost { name: name.to_owned() })?;
        self.links().insert(plan.name.clone(), Actor { orders, alive });
        made.await.map_err(|_| LinkError::Lost { name: name.to_owned() })??;
        let marked = self.mark(plan).await;
        if marked.is_err() {
            // The first error is the one to tell.
            let _ = self.remove(&plan.name).await;
        }
        marked
    }

    fn stamp_after(&self, tunnel: &TunnelName, latest: Timestamp) {
        self.stamps(tunnel).begin_after(latest);
    }

    async fn fresh_peer(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        self.order(&plan.name, |reply| Order::Fresh(plan.clone(), reply)).await
    }

    async fn update_peer(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        self.order(&plan.name, |reply| Order::Update(plan.clone(), reply)).await
    }

    async fn inscribe(&self, _: &LinkPlan, _: i32) -> Result<(), LinkError> {
        Ok(())
    }

    async fn hub(&self, _: &TunnelName) -> Result<Option<SocketAddr>, LinkError> {
        Ok(None)
    }

    fn adopt(&self, _: &LinkPlan) {}

    async fn stats(&self, tunnel: &TunnelName) -> Result<LinkStats, LinkError> {
        self.order(tunnel, Order::Stats).await
    }

    async fn remove(&self, tunnel: &TunnelName) -> Result<(), LinkError> {
        let Some(Actor { orders, mut alive }) = self.links().get(tunnel).cloned() else { return Ok(()) };
        let ended = async {
            // If it does not hear of it, it is about to end, or has.
            let _ = orders.send(Order::Stop).await;
            while alive.changed().await.is_ok() {}
        };
        let ended = tokio::time::timeout(STOP_WAIT, ended).await;
        ended.map_err(|_| failed("stopping the tunnel's WireGuard")(io::Error::from(io::ErrorKind::TimedOut)))?;
        self.links().remove(tunnel);
        Ok(())
    }
}

/// One link's life: makes the device, tells so, follows orders until told to stop or the device fails.
async fn run(
    plan: LinkPlan,
    stamps: Arc<Stamps>,
    socket: std::net::UdpSocket,
    mut inbox: mpsc::Receiver<Order>,
    ready: oneshot::Sender<Result<(), LinkError>>,
) {
    let name = plan.name.clone();
    let mut link = match Link::new(plan, stamps, socket).await {
        Ok(link) => {
            let _ = ready.send(Ok(()));
            link
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    loop {
        let order = tokio::select! {
            order = inbox.recv() => order,
            () = link.device.wait() => {
                tracing::warn!(tunnel = %name, "the tunnel's link is gone");
                break;
            }
        };
        // Whoever asked may have gone; that is theirs.
        match order {
            Some(Order::Fresh(plan, reply)) => drop(reply.send(link.fresh(&plan.peer, plan.mtu).await)),
            Some(Order::Update(plan, reply)) => drop(reply.send(link.update(&plan.peer, plan.mtu).await)),
            Some(Order::Stats(reply)) => drop(reply.send(Ok(link.stats().await))),
            Some(Order::Stop) | None => break,
        }
    }
    // Whoever still asks is told that the link is lost.
    drop(inbox);
    link.stop(&name).await;
}

/// The device and what we must remember beside it.
struct Link {
    device: Carried,
    stamps: Arc<Stamps>,
    /// The ends of socket and TUN.
    carriers: (Closed, Closed),
    initiated: Arc<Notify>,
    mtu: watch::Sender<u16>,
    /// Bytes received and sent by peers that were replaced.
    past: (u64, u64),
}

impl Link {
    async fn new(plan: LinkPlan, stamps: Arc<Stamps>, socket: std::net::UdpSocket) -> Result<Self, LinkError> {
        let (udp, socket) = Udp::new(socket).map_err(failed("preparing the tunnel's UDP socket"))?;
        let tun = tun_rs::DeviceBuilder::new().name(plan.name.as_str()).enable(false).build_async();
        let (tun, link) = Held::new(tun.map_err(|error| tun_error(plan.name.as_str(), error))?);
        let (mtu, mtu_seen) = watch::channel(plan.mtu);
        let initiated = udp.initiated();
        let device = DeviceBuilder::new()
            .with_udp(udp)
            .with_ip_pair(Tun::new(Arc::clone(&tun), mtu_seen.clone()), Tun::new(tun, mtu_seen))
            .with_listen_port(plan.listen_port)
            .with_private_key(x25519::StaticSecret::from(*plan.private_key.expose()))
            .build()
            .await
            .map_err(gotatun_failed("starting WireGuard"))?;
        // A device without peers starts no tasks until it is reconfigured, and this counts as that.
        device.clear_peers().await.map_err(gotatun_failed("starting WireGuard"))?;
        Ok(Self { device, stamps, carriers: (socket, link), initiated, mtu, past: (0, 0) })
    }

    async fn fresh(&mut self, plan: &PeerPlan, mtu: u16) -> Result<(), LinkError> {
        let LinkStats { received, sent, .. } = self.stats().await;
        self.past = (received, sent);
        self.mtu.send_replace(mtu);
        let peer = peer(plan)?.with_stamp_clock(self.stamps.clone());
        let key = peer.public_key;
        let replace = self.device.write(async |device| {
            for old in device.peers().await {
                device.remove_peer(&old.peer.public_key).await;
            }
            // A permit of an earlier initiation is no sign of the new one.
            let _ = tokio::time::timeout(Duration::ZERO, self.initiated.notified()).await;
            device.add_peer(peer);
        });
        replace.await.map_err(gotatun_failed("replacing the hub's peer"))?;
        // Not awaited to its end, which is the hub's answer: the initiation that left is enough.
        tokio::select! {
            result = self.device.force_handshake(&key) => result.map_err(gotatun_failed("sending a handshake")),
            () = self.initiated.notified() => Ok(()),
            () = tokio::time::sleep(PATIENCE) => {
                Err(failed("sending a handshake")(io::Error::from(io::ErrorKind::TimedOut)))
            }
        }
    }

    async fn update(&mut self, plan: &PeerPlan, mtu: u16) -> Result<(), LinkError> {
        self.mtu.send_replace(mtu);
        let peer = peer(plan)?;
        let updated = self.device.write(async |device| device.update_peer(peer).await).await;
        match updated.map_err(gotatun_failed("changing the hub's peer"))? {
            true => Ok(()),
            false => self.fresh(plan, mtu).await,
        }
    }

    async fn stats(&self) -> LinkStats {
        let mut stats = LinkStats { handshake_age: None, received: self.past.0, sent: self.past.1 };
        for peer in self.device.peers().await {
            stats.handshake_age = peer.stats.last_handshake;
            stats.received += peer.stats.rx_bytes as u64;
            stats.sent += peer.stats.tx_bytes as u64;
        }
        stats
    }

    /// Stops the device and waits for its last task to let go of socket and TUN: `stop` alone returns while aborted
    /// tasks may still send what they had queued.
    async fn stop(self, name: &TunnelName) {
        let Self { device, carriers: (socket, tun), .. } = self;
        if tokio::time::timeout(PATIENCE, device.stop()).await.is_err() {
            tracing::warn!(tunnel = %name, "the tunnel's WireGuard did not stop in time");
        }
        socket.wait().await;
        tun.wait().await;
    }
}

fn peer(plan: &PeerPlan) -> Result<Peer, LinkError> {
    let PeerPlan { public_key, preshared_key, endpoint, allowed_ips, persistent_keepalive } = plan;
    let mut peer = Peer::new(x25519::PublicKey::from(public_key.0)).with_endpoint(*endpoint);
    peer.preshared_key = preshared_key.as_ref().map(|key| *key.expose());
    peer.keepalive = (*persistent_keepalive > 0).then_some(*persistent_keepalive);
    for network in allowed_ips {
        let network = IpNetwork::new(network.network(), network.prefix_len())
            .map_err(|error| failed("setting allowedIPs")(io::Error::other(error)))?;
        peer = peer.with_allowed_ip(network);
    }
    Ok(peer)
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> LinkError {
    move |source| LinkError::Failed { doing, source }
}

fn gotatun_failed(doing: &'static str) -> impl Fn(gotatun::device::Error) -> LinkError {
    move |error| failed(doing)(io::Error::other(error))
}

/// tun-rs opens the node and asks for the interface in one call; which of them was refused shows in whether the node
/// can be opened at all.
fn tun_error(name: &str, error: io::Error) -> LinkError {
    match errno(&error) {
        Some(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => LinkError::NoTunNode,
        Some(Errno::EBUSY | Errno::EEXIST | Errno::EINVAL) => LinkError::NameTaken { name: name.to_owned() },
        Some(Errno::EPERM | Errno::EACCES) => match super::preflight::open_tun() {
            Err(refused) => refused,
            Ok(()) => LinkError::NotPermitted { doing: "making a TUN interface" },
        },
        _ => failed("making a TUN interface")(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_link_that_is_slow_to_stop_is_not_gone_however_often_it_is_removed_until_it_has_stopped() {
        let (links, name) = (Userspace::new(Rtnl::open().unwrap()).unwrap(), TunnelName::new("wg0").unwrap());
        let ((orders, mut inbox), (life, alive)) = (mpsc::channel(8), watch::channel(()));
        links.links().insert(name.clone(), Actor { orders, alive });
        assert!(links.remove(&name).await.is_err());
        assert!(matches!(inbox.recv().await, Some(Order::Stop)), "it was told to");
        drop(inbox);
        assert!(links.remove(&name).await.is_err(), "it has not ended yet");
        assert!(matches!(links.stats(&name).await, Err(LinkError::Lost { .. })));
        drop(life);
        links.remove(&name).await.unwrap();
        links.remove(&name).await.unwrap();
    }
}
