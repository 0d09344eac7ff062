//! Either backend behind one type, chosen at start.

use std::io;
use std::net::SocketAddr;

use jiff::Timestamp;

use super::kernel::Kernel;
use super::rtnl::Rtnl;
use super::userspace::Userspace;
use super::{Backend, LinkBackend, LinkError, LinkPlan, LinkStats};
use crate::secret::TunnelName;

/// The machine's links.
pub enum SystemLinks {
    /// The kernel's.
    Kernel(Kernel),
    /// gotatun's.
    Userspace(Userspace),
}

impl SystemLinks {
    /// The backend that [`super::preflight::preflight`] chose. Inside a tokio runtime, in the pod's namespace.
    pub fn new(backend: Backend, rtnl: Rtnl) -> io::Result<Self> {
        Ok(match backend {
            Backend::Kernel => Self::Kernel(Kernel::new(rtnl)?),
            Backend::Userspace => Self::Userspace(Userspace::new(rtnl)?),
        })
    }
}

impl LinkBackend for SystemLinks {
    fn backend(&self) -> Backend {
        match self {
            Self::Kernel(links) => links.backend(),
            Self::Userspace(links) => links.backend(),
        }
    }

    async fn create(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        match self {
            Self::Kernel(links) => links.create(plan).await,
            Self::Userspace(links) => links.create(plan).await,
        }
    }

    fn stamp_after(&self, tunnel: &TunnelName, latest: Timestamp) {
        match self {
            Self::Kernel(links) => links.stamp_after(tunnel, latest),
            Self::Userspace(links) => links.stamp_after(tunnel, latest),
        }
    }

    async fn fresh_peer(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        match self {
            Self::Kernel(links) => links.fresh_peer(plan).await,
            Self::Userspace(links) => links.fresh_peer(plan).await,
        }
    }

    async fn update_peer(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        match self {
            Self::Kernel(links) => links.update_peer(plan).await,
            Self::Userspace(links) => links.update_peer(plan).await,
        }
    }

    async fn inscribe(&self, plan: &LinkPlan, transitions: i32) -> Result<(), LinkError> {
        match self {
            Self::Kernel(links) => links.inscribe(plan, transitions).await,
            Self::Userspace(links) => links.inscribe(plan, transitions).await,
        }
    }

    async fn hub(&self, tunnel: &TunnelName) -> Result<Option<SocketAddr>, LinkError> {
        match self {
            Self::Kernel(links) => links.hub(tunnel).await,
            Self::Userspace(links) => links.hub(tunnel).await,
        }
    }

    fn adopt(&self, plan: &LinkPlan) {
        match self {
            Self::Kernel(links) => links.adopt(plan),
            Self::Userspace(links) => links.adopt(plan),
        }
    }

    async fn stats(&self, tunnel: &TunnelName) -> Result<LinkStats, LinkError> {
        match self {
            Self::Kernel(links) => links.stats(tunnel).await,
            Self::Userspace(links) => links.stats(tunnel).await,
        }
    }

    async fn remove(&self, tunnel: &TunnelName) -> Result<(), LinkError> {
        match self {
            Self::Kernel(links) => links.remove(tunnel).await,
            Self::Userspace(links) => links.remove(tunnel).await,
        }
    }
}
