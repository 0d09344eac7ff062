//! The Secret's tunnels document, as data that tests change. Pure.

use std::fmt::Write;
use std::net::Ipv4Addr;

use crate::plan;

/// One tunnel as the Secret will have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelSpec {
    /// Tunnel and interface.
    pub name: String,
    /// Its VIP.
    pub vip: Ipv4Addr,
    /// The pods' private key; filled in by the world.
    pub private_key: String,
    /// The hub's public key; filled in by the world.
    pub peer_public_key: String,
    /// The key on top, if any.
    pub preshared_key: Option<String>,
    /// `host:port` of the hub.
    pub endpoint: String,
    /// CIDRs, as in a YAML list.
    pub allowed_ips: String,
    /// More settings as they stand in YAML, e.g. `mtu: 1300`.
    pub more: Vec<String>,
}

impl TunnelSpec {
    /// `wg<index>` through hub `index`, keys not known yet.
    pub fn numbered(index: u8) -> Self {
        Self {
            name: format!("wg{index}"),
            vip: plan::vip(index),
            private_key: String::new(),
            peer_public_key: String::new(),
            preshared_key: None,
            endpoint: format!("{}:{}", plan::hub(index), plan::HUB_PORT),
            allowed_ips: "0.0.0.0/0".into(),
            more: Vec::new(),
        }
    }

    /// With one more setting.
    pub fn with(mut self, setting: &str) -> Self {
        self.more.push(setting.to_owned());
        self
    }

    /// The Lease that its holder holds.
    pub fn lease(&self) -> String {
        format!("wirevip-{}", self.name.to_ascii_lowercase().replace('_', "-"))
    }
}

/// The document of these tunnels.
pub fn document(tunnels: &[TunnelSpec]) -> String {
    let mut text = String::new();
    for tunnel in tunnels {
        let TunnelSpec { name, vip, private_key, peer_public_key, preshared_key, endpoint, allowed_ips, more } = tunnel;
        let _ = write!(
            text,
            "{name}:\n  vip: {vip}\n  privateKey: {private_key}\n  peerPublicKey: {peer_public_key}\n  \
             peerEndpoint: \"{endpoint}\"\n  allowedIPs: [{allowed_ips}]\n"
        );
        if let Some(key) = preshared_key {
            let _ = writeln!(text, "  presharedKey: {key}");
        }
        for setting in more {
            let _ = writeln!(text, "  {setting}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_a_map_per_tunnel() {
        let text = document(&[TunnelSpec::numbered(0).with("mtu: 1300"), TunnelSpec::numbered(1)]);
        assert!(text.starts_with("wg0:\n  vip: 10.77.0.2\n"), "{text}");
        assert!(
            text.contains("  peerEndpoint: \"192.0.2.11:51820\"\n") && text.contains("  mtu: 1300\nwg1:\n"),
            "{text}"
        );
    }
}
