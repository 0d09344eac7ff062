//! The few questions to rtnetlink that every actor here shares. All of it in the network namespace where the
//! connection was opened.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread;

use futures::{TryStream, TryStreamExt};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::Handle;
use tokio::sync::Mutex;

use super::ALIAS_PREFIX;
use super::answered::Answered;

/// A connection to rtnetlink; clones share it. Its thread ends with the last clone.
#[derive(Clone, Debug)]
pub struct Rtnl {
    handle: Handle,
    /// Held while a list is read.
    listing: Arc<Mutex<()>>,
}

/// A link, as the kernel tells it.
#[derive(Clone, Debug)]
pub(super) struct SeenLink {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) mtu: u32,
    pub(super) alias: String,
    pub(super) group: u32,
    pub(super) wireguard: bool,
    pub(super) forwarding: bool,
    pub(super) rp_filter: i32,
}

impl SeenLink {
    /// Ours by its alias; or by its group, which marks a link from the instant it is made until it has its alias.
    pub(super) fn is_ours(&self) -> bool {
        self.alias.starts_with(ALIAS_PREFIX)
            || (self.alias.is_empty() && self.wireguard && self.group == super::kernel::BIRTH_GROUP)
    }
}

impl Rtnl {
    /// Opens the connection, on a thread of its own: the kernel carries a question out while it is sent, and may wait for a
    /// lock that all network namespaces of a node share. No renewal of a Lease may wait for that.
    pub fn open() -> io::Result<Self> {
        let (made, making) = mpsc::channel();
        let carry = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(made.send(Err(error))),
            };
            runtime.block_on(async {
                match rtnetlink::new_connection_with_socket::<Answered>() {
                    // Whoever opens it waits for this.
                    Ok((connection, handle, _)) => {
                        drop(made.send(Ok(handle)));
                        connection.await;
                    }
                    Err(error) => drop(made.send(Err(error))),
                }
            });
        };
        thread::Builder::new().name("rtnetlink".to_owned()).spawn(carry)?;
        let handle = making.recv().map_err(io::Error::other)??;
        Ok(Self { handle, listing: Arc::default() })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Reads a whole list. One at a time: the kernel refuses a second one on the same socket with EBUSY while the first
    /// is being read. In a task of its own, which ends with the list and not with whoever asked for it.
    pub(super) async fn list<S>(&self, ask: impl FnOnce(&Handle) -> S + Send + 'static) -> io::Result<Vec<S::Ok>>
    where
        S: TryStream<Error = rtnetlink::Error> + Send,
        S::Ok: Send + 'static,
    {
        let (turn, handle) = (Arc::clone(&self.listing).lock_owned().await, self.handle.clone());
        let reading = tokio::spawn(async move {
            let list = ask(&handle).try_collect().await;
            drop(turn);
            list
        });
        reading.await.map_err(io::Error::other)?.map_err(to_io)
    }

    pub(super) async fn links(&self) -> io::Result<Vec<SeenLink>> {
        let messages = self.list(|handle| handle.link().get().execute()).await?;
        Ok(messages.into_iter().map(seen).collect())
    }

    /// The link of this name, if there is one.
    pub(super) async fn link(&self, name: &str) -> io::Result<Option<SeenLink>> {
        match self.handle.link().get().match_name(name.to_owned()).execute().try_next().await.map_err(to_io) {
            Ok(message) => Ok(message.map(seen)),
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a change of the link at `index`.
    pub(super) async fn change(&self, index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        self.handle.link().set(message).execute().await.map_err(to_io)
    }

    pub(super) async fn set_up(&self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.handle.link().set(message).execute().await.map_err(to_io)
    }

    /// Deletes the link at `index`; fine if it is gone already.
    pub(super) async fn delete(&self, index: u32) -> io::Result<()> {
        gone_is_fine(self.handle.link().del(index).execute().await.map_err(to_io))
    }
}

/// What is being removed and is not there counts as removed.
pub(super) fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    use nix::errno::Errno;
    match result {
        Err(error) if gone().any(|errno: Errno| error.raw_os_error() == Some(errno as i32)) => Ok(()),
        other => other,
    }
}

/// ENOENT: rule; ESRCH: route; ENODEV: link; EADDRNOTAVAIL: address.
fn gone() -> impl Iterator<Item = nix::errno::Errno> {
    use nix::errno::Errno;
    [Errno::ENOENT, Errno::ESRCH, Errno::ENODEV, Errno::EADDRNOTAVAIL].into_iter()
}

/// The errno alone: rtnetlink's own text dumps whole messages.
pub(super) fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        rtnetlink::Error::RequestFailed => {
            io::Error::new(io::ErrorKind::BrokenPipe, "the netlink connection is closed")
        }
        _ => io::Error::other("netlink gave an answer that does not fit the question"),
    }
}

fn seen(message: LinkMessage) -> SeenLink {
    use netlink_packet_route::link::{AfSpecInet, AfSpecUnspec};
    let mut link = SeenLink {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        alias: String::new(),
        group: 0,
        wireguard: false,
        forwarding: false,
        rp_filter: 0,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::LinkInfo(infos) => {
                link.wireguard = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Wireguard)));
            }
            LinkAttribute::AfSpecUnspec(families) => {
                for family in families {
                    let AfSpecUnspec::Inet(settings) = family else { continue };
                    for setting in settings {
                        if let AfSpecInet::DevConf(conf) = setting {
                            link.forwarding = conf.forwarding != 0;
                            link.rp_filter = conf.rp_filter;
                        }
                    }
                }
            }
            _ => {}
        }
    }
    link
}
