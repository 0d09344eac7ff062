//! What this pod must have before anything can work, each missing thing named with its fix; and which backend it gets.

use std::fs::OpenOptions;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::kernel::Kernel;
use super::{Backend, BackendChoice, LinkError};
use crate::tunnel::rtnl::Rtnl;

/// CAP_NET_ADMIN (linux/capability.h).
const NET_ADMIN: u32 = 12;

/// Netfilter's subsystems (linux/netfilter/nfnetlink.h) and a harmless question to each: NFT_MSG_GETGEN and
/// IPCTNL_MSG_CT_GET_STATS.
const NF_TABLES_GET_GENERATION: u16 = 10 << 8 | 16;
const CONNTRACK_GET_STATS: u16 = 1 << 8 | 5;

/// Something that this pod lacks.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// The capability.
    #[error(
        "capability NET_ADMIN is missing: add it to the container's securityContext.capabilities and run it as uid 0 (for another uid Kubernetes only permits it, and grants nothing)"
    )]
    NetAdmin,
    /// Neither backend, or not the one that was asked for.
    #[error("no WireGuard: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Wireguard(Vec<LinkError>),
    /// The kernel's nf_tables.
    #[error("nftables does not answer ({0}): load the module `nf_tables` on the node")]
    NfTables(io::Error),
    /// Connection tracking over netlink.
    #[error("connection tracking does not answer ({0}): load the module `nf_conntrack_netlink` on the node")]
    Conntrack(io::Error),
}

/// Checks all of it; every missing thing at once, else the backend to use.
pub async fn preflight(choice: BackendChoice, rtnl: &Rtnl) -> Result<Backend, Vec<Missing>> {
    let mut missing = Vec::new();
    if !effective_capabilities().is_ok_and(|held| held >> NET_ADMIN & 1 == 1) {
        missing.push(Missing::NetAdmin);
    }
    // What only follows from the missing capability is not worth a line of its own.
    let worth_telling = |error: &io::Error| error.raw_os_error() != Some(Errno::EPERM as i32);
    missing.extend(ask_netfilter(NF_TABLES_GET_GENERATION).err().filter(worth_telling).map(Missing::NfTables));
    missing.extend(ask_netfilter(CONNTRACK_GET_STATS).err().filter(worth_telling).map(Missing::Conntrack));
    match backend(choice, rtnl).await {
        Ok(backend) if missing.is_empty() => return Ok(backend),
        Ok(_) => {}
        Err(errors) if !missing.is_empty() && errors.iter().all(follows_from_capability) => {}
        Err(errors) => missing.push(Missing::Wireguard(errors)),
    }
    Err(missing)
}

fn follows_from_capability(error: &LinkError) -> bool {
    matches!(error, LinkError::NotPermitted { .. })
}

async fn backend(choice: BackendChoice, rtnl: &Rtnl) -> Result<Backend, Vec<LinkError>> {
    let mut errors = Vec::new();
    if choice != BackendChoice::Userspace {
        match Kernel::probe(rtnl).await {
            Ok(()) => return Ok(Backend::Kernel),
            Err(error) => errors.push(error),
        }
    }
    if choice != BackendChoice::Kernel {
        match open_tun() {
            Ok(()) => return Ok(Backend::Userspace),
            Err(error) => errors.push(error),
        }
    }
    Err(errors)
}

/// Can the TUN node be opened? Making an interface of it needs NET_ADMIN besides.
pub(super) fn open_tun() -> Result<(), LinkError> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    opened.map(drop).map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => LinkError::NoTunNode,
        Some(Errno::EPERM | Errno::EACCES) => LinkError::TunForbidden,
        _ => LinkError::Failed { doing: "opening /dev/net/tun", source: error },
    })
}

fn effective_capabilities() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    parse_capabilities(&status).ok_or_else(|| io::Error::other("/proc/thread-self/status has no CapEff"))
}

fn parse_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Sends one question without content to netfilter and reads the first answer: an error, or anything else.
fn ask_netfilter(kind: u16) -> io::Result<()> {
    let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    // struct nlmsghdr, then struct nfgenmsg, all zero: any family, version 0.
    let mut message = [0u8; 20];
    message[0..4].copy_from_slice(&20u32.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    // NLM_F_REQUEST | NLM_F_ACK; and for conntrack's statistics, a table by CPU, NLM_F_DUMP.
    let flags: u16 = if kind == CONNTRACK_GET_STATS { 0x301 } else { 0x5 };
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    socket.send(&message, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match answer_errno(&answer) {
        None => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The errno of an NLMSG_ERROR other than 0; EBADMSG for what is no errno (seen: the least number there is, which has no
/// opposite).
fn answer_errno(answer: &[u8]) -> Option<i32> {
    const NLMSG_ERROR: u16 = 2;
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR && code != 0).then(|| code.checked_neg().unwrap_or(Errno::EBADMSG as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_and_not_the_permitted_one() {
        let status = "Name:\tx\nCapPrm:\t0000000000001000\nCapEff:\t0000000000000400\nCapBnd:\t000001ffffffffff\n";
        assert_eq!(parse_capabilities(status), Some(0x400));
        assert_eq!(parse_capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn only_an_error_other_than_zero_is_one() {
        let mut answer = [0u8; 36];
        answer[4] = 2;
        assert_eq!(answer_errno(&answer), None, "an acknowledgement");
        answer[16..20].copy_from_slice(&(-22i32).to_ne_bytes());
        assert_eq!(answer_errno(&answer), Some(22));
        answer[16..20].copy_from_slice(&i32::MIN.to_ne_bytes());
        assert_eq!(answer_errno(&answer), Some(Errno::EBADMSG as i32));
        answer[4] = 16;
        assert_eq!(answer_errno(&answer), None, "an answer");
    }
}
