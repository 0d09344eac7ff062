//! The hub's address as a watched value: resolved again when its TTL ends, and when the hub is not heard.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::secret::{Endpoint, Host, Tunnel};
use crate::tunnel::Nic;
use crate::tunnel::resolve::{ResolveError, Resolved, Resolver};

/// A hub that is silent for so long may have moved, or may be only one of several.
const UNHEARD: Duration = Duration::from_secs(4);
/// After a failed look-up.
const RETRY: Duration = Duration::from_secs(2);

/// What is known of where the hub is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Whereabouts {
    /// The last good address, and the endpoint in the settings that it is of; `None` until one was resolved.
    pub address: Option<(Endpoint, SocketAddr)>,
    /// Why the present endpoint's name does not resolve, while that lasts.
    pub fault: Option<String>,
}

impl Whereabouts {
    /// The address of this endpoint, which another one's is not: keys of the new hub's are nothing to the old one.
    pub fn of(&self, endpoint: &Endpoint) -> Option<SocketAddr> {
        self.address.as_ref().filter(|(of, _)| of == endpoint).map(|(_, address)| *address)
    }

    /// What keeps a tunnel with this endpoint from being raised: a fault beside its address is none.
    pub fn obstacle(&self, endpoint: &Endpoint) -> Option<&str> {
        self.fault.as_deref().filter(|_| self.of(endpoint).is_none())
    }
}

impl From<SocketAddr> for Whereabouts {
    fn from(address: SocketAddr) -> Self {
        let endpoint = Endpoint { host: Host::Address(address.ip()), port: address.port() };
        Self { address: Some((endpoint, address)), fault: None }
    }
}

/// Publishes the hub's address until the settings' sender is gone.
pub async fn follow(
    nic: watch::Receiver<Nic>,
    mut settings: watch::Receiver<Arc<Tunnel>>,
    mut unheard: watch::Receiver<Duration>,
    hub: watch::Sender<Whereabouts>,
) {
    let mut resolver = None;
    loop {
        let endpoint = settings.borrow_and_update().endpoint.clone();
        let silent = *unheard.borrow_and_update() >= UNHEARD;
        let nic = nic.borrow().clone();
        let wait = match resolve(&mut resolver, &endpoint, &nic).await {
            Ok(resolved) => {
                let address = choose(&resolved.addresses, hub.borrow().of(&endpoint), silent);
                publish(&hub, Whereabouts { address: address.map(|found| (endpoint.clone(), found)), fault: None });
                resolved.valid_for.unwrap_or(Duration::MAX)
            }
            Err(error) => {
                let fault = Some(format!("{:#}", anyhow::Error::from(error)));
                let Whereabouts { address, fault: told } = hub.borrow().clone();
                if address.is_some() && fault != told {
                    tracing::warn!(tunnel = %settings.borrow().name, fault, "the hub's last address keeps serving");
                }
                publish(&hub, Whereabouts { address, fault });
                RETRY
            }
        };
        // A given address never changes; only the settings can change it.
        let changes = !matches!(endpoint, Endpoint { host: Host::Address(_), .. });
        tokio::select! {
            changed = settings.changed() => if changed.is_err() { return },
            () = unheard_again(&mut unheard), if changes => {}
            () = tokio::time::sleep(wait), if changes => {}
        }
    }
}

fn publish(hub: &watch::Sender<Whereabouts>, next: Whereabouts) {
    hub.send_if_modified(|now| {
        *now != next && {
            *now = next;
            true
        }
    });
}

/// The resolver is made when it is first needed, and again after a failure: `/etc/resolv.conf` may have been wrong.
async fn resolve(resolver: &mut Option<Resolver>, endpoint: &Endpoint, nic: &Nic) -> Result<Resolved, ResolveError> {
    if let Host::Address(address) = endpoint.host {
        return Ok(Resolved { addresses: vec![SocketAddr::new(address, endpoint.port)], valid_for: None });
    }
    let ready = match resolver.take() {
        Some(ready) => ready,
        None => Resolver::new()?,
    };
    let resolved = ready.resolve(&endpoint.host, endpoint.port, nic).await?;
    *resolver = Some(ready);
    Ok(resolved)
}

async fn unheard_again(unheard: &mut watch::Receiver<Duration>) {
    loop {
        // Every whole period of silence once.
        if unheard.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let silence = unheard.borrow_and_update().as_secs();
        if silence >= UNHEARD.as_secs() && silence.is_multiple_of(UNHEARD.as_secs()) {
            return;
        }
    }
}

/// The present address while it is among `found`, unless the hub is silent there: then the next one.
fn choose(found: &[SocketAddr], present: Option<SocketAddr>, silent: bool) -> Option<SocketAddr> {
    let at = present.and_then(|present| found.iter().position(|address| *address == present));
    match (at, silent) {
        (None, _) => found.first().copied().or(present),
        (Some(at), false) => found.get(at).copied(),
        (Some(at), true) => found.get((at + 1) % found.len()).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_while_it_answers_and_left_when_it_is_silent_or_gone() {
        let [a, b, c]: [SocketAddr; 3] =
            ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"].map(|text| text.parse().unwrap());
        assert_eq!(choose(&[a, b], None, false), Some(a));
        assert_eq!(choose(&[a, b], Some(b), false), Some(b));
        assert_eq!(choose(&[a, b], Some(b), true), Some(a));
        assert_eq!(choose(&[a, b], Some(c), false), Some(a));
        assert_eq!(choose(&[a], Some(a), true), Some(a));
        assert_eq!(choose(&[], Some(a), true), Some(a), "an empty answer forgets nothing");
    }

    #[test]
    fn an_address_counts_for_the_endpoint_that_it_is_of_and_only_there_makes_up_for_a_fault() {
        let address = "192.0.2.1:1".parse().unwrap();
        let fault = Some("it does not resolve".to_owned());
        let known = Whereabouts { fault, ..Whereabouts::from(address) };
        let same = Endpoint { host: Host::Address([192, 0, 2, 1].into()), port: 1 };
        let other = Endpoint { host: Host::Name("hub.example".to_owned()), port: 1 };
        assert_eq!((known.of(&same), known.obstacle(&same)), (Some(address), None));
        assert_eq!((known.of(&other), known.obstacle(&other)), (None, Some("it does not resolve")));
    }
}
