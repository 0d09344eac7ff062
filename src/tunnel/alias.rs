//! What the alias of a link says: whose the link is, what it was made of, and of which tenure its session is. Pure.
//!
//! `wirevip:<schema>:<stamp>:<slot>`, and then `:<transitions>` once there is a session.
//!
//! The stamp is an HMAC-SHA-256 over everything a session depends on, cut to 128 bits, and the private key is the HMAC's
//! key: whoever may read aliases learns nothing, and cannot even test a guess.

use std::fmt;

use ring::hmac;

use super::{ALIAS_PREFIX, LinkPlan, PeerPlan, Slot};
use crate::secret::SecretKey;

/// Which form follows the prefix. A version that writes another takes another number.
const SCHEMA: u32 = 2;

/// See the module's text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alias {
    stamp: String,
    slot: Slot,
    transitions: Option<i32>,
}

impl Alias {
    /// That of a link after this plan. `transitions`: `leaseTransitions` of the tenure in which its session began.
    pub fn of(plan: &LinkPlan, transitions: Option<i32>) -> Self {
        Self { stamp: stamp(plan), slot: plan.slot, transitions }
    }

    /// Reads one; `None` if it is not of ours, or of another version's.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(ALIAS_PREFIX)?.split(':');
        (parts.next()?.parse() == Ok(SCHEMA)).then_some(())?;
        let stamp = parts.next()?.to_owned();
        let slot = Slot::new(parts.next()?.parse().ok()?)?;
        let transitions = parts.next().map(|text| text.parse().ok());
        let whole = parts.next().is_none() && transitions != Some(None);
        whole.then_some(Self { stamp, slot, transitions: transitions.flatten() })
    }

    /// Was the link made after this plan, as it is now?
    pub fn fits(&self, plan: &LinkPlan) -> bool {
        (&self.stamp, self.slot) == (&stamp(plan), plan.slot)
    }

    /// The link's slot.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// `leaseTransitions` of the tenure in which the link's session began; `None`: it has none.
    pub fn transitions(&self) -> Option<i32> {
        self.transitions
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stamp, slot: Slot(slot), transitions } = self;
        write!(f, "{ALIAS_PREFIX}{SCHEMA}:{stamp}:{slot}")?;
        transitions.map_or(Ok(()), |transitions| write!(f, ":{transitions}"))
    }
}

/// Over all but the MTU, which an audit sets right.
fn stamp(plan: &LinkPlan) -> String {
    let LinkPlan { name: _, slot: _, vip, private_key, listen_port, mtu: _, peer } = plan;
    let PeerPlan { public_key, preshared_key, endpoint, allowed_ips, persistent_keepalive } = peer;
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, private_key.expose()));
    context.update(&vip.octets());
    context.update(&listen_port.to_be_bytes());
    context.update(&public_key.0);
    context.update(preshared_key.as_ref().map_or(&[0; 32], SecretKey::expose).as_slice());
    context.update(&persistent_keepalive.to_be_bytes());
    context.update(endpoint.to_string().as_bytes());
    for network in allowed_ips {
        context.update(format!(",{network}").as_bytes());
    }
    context.sign().as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::PublicKey;
    use crate::tunnel::testing::plan;

    #[test]
    fn an_alias_tells_plans_apart_and_nothing_about_their_keys() {
        let plan = plan("wg0");
        let alias = Alias::of(&plan, None);
        assert!(alias.fits(&plan.clone()), "the same plan, the same alias");
        let text = alias.to_string();
        assert!(text.starts_with("wirevip:2:") && text.len() == 10 + 32 + 2, "{text}");
        let others: [fn(&mut LinkPlan); 9] = [
            |plan| plan.private_key = SecretKey::new([9; 32]),
            |plan| plan.listen_port += 1,
            |plan| plan.vip = "10.99.0.3".parse().unwrap(),
            |plan| plan.slot = Slot(2),
            |plan| plan.peer.public_key = PublicKey([9; 32]),
            |plan| plan.peer.preshared_key = None,
            |plan| plan.peer.endpoint.set_port(9),
            |plan| plan.peer.allowed_ips.clear(),
            |plan| plan.peer.persistent_keepalive += 1,
        ];
        for (number, change) in others.iter().enumerate() {
            let mut other = plan.clone();
            change(&mut other);
            assert!(!alias.fits(&other), "change {number}");
        }
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let plan = plan("wg0");
        for transitions in [None, Some(0), Some(i32::MAX)] {
            let alias = Alias::of(&plan, transitions);
            assert_eq!(Alias::parse(&alias.to_string()), Some(alias));
        }
        for other in [
            "",
            "wirevip:",
            "wirevip:1:0123",
            "wirevip:2:0123",
            "wirevip:2:0123:0",
            "wirevip:2:0123:256",
            "wirevip:2:0123:1:x",
            "wirevip:2:0123:1:7:8",
            "wirevip:3:0123:1:7",
            "kube:2:0123:1:7",
        ] {
            assert_eq!(Alias::parse(other), None, "{other}");
        }
    }
}
