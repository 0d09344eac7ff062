//! What can go wrong with a tunnel's link, each with what to do about it.

use std::io;

/// Why a link could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Someone else's interface bears the name.
    #[error(
        "interface {name} exists and is not wirevip's: give the tunnel another name in the Secret, or remove that interface"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Another socket holds the port.
    #[error("UDP port {port} is taken in this pod: give the tunnel another listenPort in the Secret")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// EOPNOTSUPP from RTM_NEWLINK.
    #[error("this kernel has no WireGuard: load the module `wireguard` on the node, or run with --backend userspace")]
    NoKernelWireguard,
    /// EPERM from the kernel.
    #[error("{doing} is not permitted: give the container capability NET_ADMIN and let it run as uid 0")]
    NotPermitted {
        /// What was tried.
        doing: &'static str,
    },
    /// ENOENT from opening /dev/net/tun.
    #[error(
        "/dev/net/tun does not exist: mount it into the container (hostPath, type CharDevice), or use a node with WireGuard in its kernel"
    )]
    NoTunNode,
    /// EPERM from opening /dev/net/tun.
    #[error(
        "/dev/net/tun may not be opened: the container runtime's device list lacks it (runc 1.2.0 to 1.2.3, crun); update the runtime, or grant the device by a device plugin"
    )]
    TunForbidden,
    /// The link is gone: deleted from outside, or its carrier failed.
    #[error("the link of tunnel {name} is gone: it has to be made again")]
    Lost {
        /// The tunnel.
        name: String,
    },
    /// Anything else.
    #[error("{doing} failed: see the cause; it is tried again")]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Why the pod's network could not be seen or changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No interface to reach the world by.
    #[error(
        "the pod has no default route: wirevip needs a pod network (no `hostNetwork`, and a CNI that sets a route)"
    )]
    NoNic,
    /// No link of ours by that name.
    #[error("the link of tunnel {name} is gone: it has to be made again")]
    LinkLost {
        /// The tunnel.
        name: String,
    },
    /// The kernel said no.
    #[error("{doing} failed: see the cause; without capability NET_ADMIN nothing of this works")]
    Failed {
        /// What was tried.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Several things went wrong; the rest was done.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<HostError>),
}
