//! [`LinkBackend`] by the kernel's WireGuard: links by rtnetlink, keys and peers by generic netlink.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netlink_packet_core::{Emitable, ParseableParametrized};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_wireguard::WireguardMessage;
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;
use zeroize::Zeroize;

use super::rtnl::{Rtnl, SeenLink, to_io};
use super::wire::{self, Counted};
use super::{Alias, Backend, LinkBackend, LinkError, LinkPlan, LinkStats, PeerPlan, carrier};
use crate::secret::TunnelName;

/// The group of a link between its making and its alias: RTM_NEWLINK takes no alias, and a crash between the two must
/// not leave a link that nobody owns.
pub(super) const BIRTH_GROUP: u32 = 0x7769_7265;

/// Links of the kernel's.
pub struct Kernel {
    rtnl: Rtnl,
    genl: Arc<Mutex<Genl>>,
    links: Mutex<HashMap<TunnelName, Memory>>,
}

/// What the kernel does not tell.
#[derive(Default)]
struct Memory {
    peer: Option<PeerPlan>,
    /// Bytes received and sent by peers that were replaced.
    past: (u64, u64),
}

impl Kernel {
    /// Works in the namespace of the caller and of `rtnl`.
    pub fn new(rtnl: Rtnl) -> io::Result<Self> {
        Ok(Self { rtnl, genl: Arc::new(Mutex::new(Genl::open()?)), links: Mutex::default() })
    }

    /// Has this kernel WireGuard, and may we use it? Makes a link and deletes it.
    pub async fn probe(rtnl: &Rtnl) -> Result<(), LinkError> {
        let name = format!("wirevip~{}", std::process::id() % 1_000_000);
        make(rtnl, &name).await?;
        let link = rtnl.link(&name).await.map_err(failed("looking for the probing link"))?;
        match link.filter(SeenLink::is_ours) {
            Some(link) => rtnl.delete(link.index).await.map_err(failed("deleting the probing link")),
            None => Ok(()),
        }
    }

    /// Asks on a thread that may wait: removing a peer waits for other CPUs.
    async fn ask(&self, message: WireguardMessage, flags: u16) -> io::Result<Vec<WireguardMessage>> {
        let genl = Arc::clone(&self.genl);
        let asked = tokio::task::spawn_blocking(move || {
            genl.lock().unwrap_or_else(PoisonError::into_inner).wireguard(message, flags)
        });
        asked.await.map_err(io::Error::other)?
    }

    async fn set(&self, doing: &'static str, name: &TunnelName, message: WireguardMessage) -> Result<(), LinkError> {
        match self.ask(message, NLM_F_REQUEST | NLM_F_ACK).await {
            Ok(_) => Ok(()),
            Err(error) if is(&error, Errno::ENODEV) => Err(LinkError::Lost { name: name.to_string() }),
            Err(error) if is(&error, Errno::EPERM) => Err(LinkError::NotPermitted { doing }),
            Err(error) => Err(failed(doing)(error)),
        }
    }

    async fn count(&self, name: &TunnelName) -> Result<Counted, LinkError> {
        match self.ask(wire::question(name.as_str()), NLM_F_REQUEST | NLM_F_DUMP).await {
            Ok(mut answers) => {
                let counted = wire::count(&answers);
                // The answer holds the private key.
                answers.iter_mut().for_each(wire::forget_keys);
                Ok(counted)
            }
            Err(error) if is(&error, Errno::ENODEV) => Err(LinkError::Lost { name: name.to_string() }),
            Err(error) => Err(failed("reading WireGuard's counters")(error)),
        }
    }

    fn remember<T>(&self, name: &TunnelName, change: impl FnOnce(&mut Memory) -> T) -> T {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        change(links.entry(name.clone()).or_default())
    }

    async fn mark(&self, plan: &LinkPlan, transitions: Option<i32>) -> Result<(), LinkError> {
        let name = plan.name.as_str();
        let link = self.rtnl.link(name).await.map_err(failed("looking for the link"))?;
        let index = link.filter(SeenLink::is_ours).ok_or_else(|| LinkError::Lost { name: name.to_owned() })?.index;
        let alias = Alias::of(plan, transitions).to_string();
        let marks = vec![LinkAttribute::IfAlias(alias), LinkAttribute::Group(0)];
        self.rtnl.change(index, marks).await.map_err(failed("marking the link as wirevip's"))
    }

    async fn allow_the_rest(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        for message in wire::rest(plan) {
            self.set("setting allowedIPs", &plan.name, message).await?;
        }
        Ok(())
    }

    async fn finish(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        self.mark(plan, None).await?;
        self.set("setting the tunnel's key and port", &plan.name, wire::keyed(plan)).await
    }
}

impl LinkBackend for Kernel {
    fn backend(&self) -> Backend {
        Backend::Kernel
    }

    async fn create(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        self.remove(&plan.name).await?;
        // The kernel binds the port only when the link goes up. Better to hear of it now.
        if let Err(error) = carrier::bind(plan.listen_port) {
            return Err(match is(&error, Errno::EADDRINUSE) {
                true => LinkError::PortTaken { port: plan.listen_port },
                false => failed("binding the tunnel's UDP port")(error),
            });
        }
        make(&self.rtnl, plan.name.as_str()).await?;
        let finished = self.finish(plan).await;
        if finished.is_err() {
            // The first error is the one to tell.
            let _ = self.remove(&plan.name).await;
        }
        finished
    }

    async fn fresh_peer(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        let Counted { received, sent, .. } = self.count(&plan.name).await?;
        let doing = "replacing the hub's peer";
        // Switching the keepalive on sends one at once, which without a session means a handshake.
        let kick = plan.peer.persistent_keepalive.max(1);
        self.set(doing, &plan.name, wire::fresh(plan, kick)).await?;
        if kick != plan.peer.persistent_keepalive {
            self.set(doing, &plan.name, wire::keepalive(plan)).await?;
        }
        self.allow_the_rest(plan).await?;
        self.remember(&plan.name, |memory| {
            memory.past = (memory.past.0 + received, memory.past.1 + sent);
            memory.peer = Some(plan.peer.clone());
        });
        Ok(())
    }

    async fn update_peer(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        let before = self.remember(&plan.name, |memory| memory.peer.clone());
        let Some(before) = before.filter(|before| before.public_key == plan.peer.public_key) else {
            return self.fresh_peer(plan).await;
        };
        self.set("changing the hub's peer", &plan.name, wire::changed(plan, &before)).await?;
        if plan.peer.allowed_ips != before.allowed_ips {
            self.allow_the_rest(plan).await?;
        }
        self.remember(&plan.name, |memory| memory.peer = Some(plan.peer.clone()));
        Ok(())
    }

    async fn inscribe(&self, plan: &LinkPlan, transitions: i32) -> Result<(), LinkError> {
        self.mark(plan, Some(transitions)).await
    }

    async fn hub(&self, tunnel: &TunnelName) -> Result<Option<SocketAddr>, LinkError> {
        Ok(self.count(tunnel).await?.endpoint)
    }

    fn adopt(&self, plan: &LinkPlan) {
        self.remember(&plan.name, |memory| memory.peer = Some(plan.peer.clone()));
    }

    async fn stats(&self, tunnel: &TunnelName) -> Result<LinkStats, LinkError> {
        let Counted { received, sent, handshake, endpoint: _ } = self.count(tunnel).await?;
        let past = self.remember(tunnel, |memory| memory.past);
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME).map(Duration::from).unwrap_or_default();
        Ok(LinkStats {
            handshake_age: handshake.map(|then| now.saturating_sub(then)),
            received: past.0 + received,
            sent: past.1 + sent,
        })
    }

    async fn remove(&self, tunnel: &TunnelName) -> Result<(), LinkError> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(tunnel);
        let link = self.rtnl.link(tunnel.as_str()).await.map_err(failed("looking for the link"))?;
        match link.filter(SeenLink::is_ours) {
            Some(link) => self.rtnl.delete(link.index).await.map_err(failed("deleting the link")),
            None => Ok(()),
        }
    }
}

async fn make(rtnl: &Rtnl, name: &str) -> Result<(), LinkError> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Group(BIRTH_GROUP),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
    ];
    rtnl.handle().link().add(message).execute().await.map_err(to_io).map_err(|error| {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EOPNOTSUPP) => LinkError::NoKernelWireguard,
            Some(Errno::EPERM) => LinkError::NotPermitted { doing: "making a WireGuard interface" },
            Some(Errno::EEXIST) => LinkError::NameTaken { name: name.to_owned() },
            _ => failed("making a WireGuard interface")(error),
        }
    })
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> LinkError {
    move |source| LinkError::Failed { doing, source }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// A generic-netlink socket, one question at a time.
struct Genl {
    socket: netlink_sys::Socket,
    /// Of the last question. Answers to an earlier one may still come: reading them failed once, for want of memory.
    sequence: u32,
    /// The number of the family `wireguard`: known once the module is loaded, which making a link does.
    family: Option<u16>,
}

impl Genl {
    fn open() -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, family: None })
    }

    /// Leaves no key of the message's in memory, whatever comes of it.
    fn wireguard(&mut self, mut message: WireguardMessage, flags: u16) -> io::Result<Vec<WireguardMessage>> {
        let family = match self.family {
            Some(family) => Ok(family),
            None => self.resolve(),
        };
        let family = family.inspect_err(|_| wire::forget_keys(&mut message))?;
        self.family = Some(family);
        let header = GenlHeader { cmd: message.command(), version: message.version() };
        self.ask(GenlMessage::new(header, message, family), flags, wire::forget_keys)
    }

    fn resolve(&mut self) -> io::Result<u16> {
        let name = WireguardMessage::family_name().to_owned();
        let question = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![GenlCtrlAttrs::FamilyName(name)] };
        let answers = self.ask(GenlMessage::from_payload(question), NLM_F_REQUEST | NLM_F_ACK, |_| {})?;
        let ids = answers.iter().flat_map(|answer| &answer.nlas);
        ids.into_iter()
            .find_map(|nla| if let GenlCtrlAttrs::FamilyId(id) = nla { Some(*id) } else { None })
            .ok_or_else(|| io::Error::from_raw_os_error(Errno::ENOENT as i32))
    }

    /// `forget` wipes what is secret in the question, once that was turned into bytes.
    fn ask<F>(&mut self, message: GenlMessage<F>, flags: u16, forget: impl FnOnce(&mut F)) -> io::Result<Vec<F>>
    where
        F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + std::fmt::Debug + Clone,
    {
        let mut question = NetlinkMessage::from(message);
        self.sequence = self.sequence.wrapping_add(1);
        question.header.flags = flags;
        question.header.sequence_number = self.sequence;
        let mut bytes = written(&mut question, forget);
        let sent = self.socket.send(&bytes, 0);
        bytes.zeroize();
        sent?;
        let mut answers = Vec::new();
        loop {
            let (mut bytes, _) = self.socket.recv_from_full()?;
            let done = take(&bytes, self.sequence, &mut answers);
            bytes.zeroize();
            if done? {
                return Ok(answers);
            }
        }
    }
}

/// The question as bytes; what `forget` wipes is in these alone then.
fn written<F>(question: &mut NetlinkMessage<GenlMessage<F>>, forget: impl FnOnce(&mut F)) -> Vec<u8>
where
    F: GenlFamily + Emitable + std::fmt::Debug + Clone,
{
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    if let NetlinkPayload::InnerMessage(message) = &mut question.payload {
        forget(&mut message.payload);
    }
    bytes
}

/// Takes the answers to one question out of a datagram; true at the end of the conversation.
fn take<F>(mut bytes: &[u8], sequence: u32, answers: &mut Vec<F>) -> io::Result<bool>
where
    F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + std::fmt::Debug + Clone,
{
    while !bytes.is_empty() {
        let header = NetlinkBuffer::new_checked(bytes).map_err(io::Error::other)?;
        // Messages are aligned to 4 bytes.
        let length = (header.length() as usize).next_multiple_of(4).max(16);
        let after = bytes.get(length..).unwrap_or_default();
        if header.sequence_number() != sequence {
            bytes = after;
            continue;
        }
        let message = NetlinkMessage::<GenlMessage<F>>::deserialize(bytes).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(answer) => answers.push(answer.payload),
            NetlinkPayload::Error(answer) => return answer.code.map_or(Ok(true), |_| Err(answer.to_io())),
            NetlinkPayload::Done(_) => return Ok(true),
            _ => {}
        }
        bytes = after;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DoneMessage, NetlinkHeader};

    use super::*;

    #[test]
    fn a_key_that_was_written_is_in_the_bytes_alone() {
        let plan = crate::tunnel::testing::plan("wg0");
        let keyed = wire::keyed(&plan);
        let header = GenlHeader { cmd: keyed.command(), version: keyed.version() };
        let mut question = NetlinkMessage::from(GenlMessage::new(header, keyed, 7));
        let has_key = |bytes: &[u8]| bytes.windows(32).any(|window| window == plan.private_key.expose());
        assert!(has_key(&written(&mut question, wire::forget_keys)));
        assert!(!has_key(&written(&mut question, |_| {})), "it is still in the message");
    }

    #[test]
    fn an_answer_to_an_earlier_question_is_not_taken_for_one_to_this() {
        let done = |sequence_number| {
            let end = NetlinkPayload::Done(DoneMessage::default());
            let mut message = NetlinkMessage::<GenlMessage<WireguardMessage>>::new(NetlinkHeader::default(), end);
            message.header.sequence_number = sequence_number;
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes
        };
        let mut answers = Vec::<WireguardMessage>::new();
        assert!(!take(&done(1), 2, &mut answers).unwrap(), "the earlier one's end");
        assert!(take(&[done(1), done(2)].concat(), 2, &mut answers).unwrap());
        assert!(take(&[0; 7], 2, &mut answers).is_err(), "cut off");
    }
}
