//! Watches the one Secret, and hands on what its key `tunnels` says.
//!
//! What must hold: while the API is away the last state stays; the text is zeroised when the last holder lets go, as
//! are the copies made here. (Buffers of the HTTP client are out of reach.) Nothing of it reaches a message: the
//! Secret is read into types that cannot fail on a value and do not print one.

use std::borrow::Cow;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::api::meta::identity;
use crate::api::retry::Backoff;

/// A watch is renewed after this long, so that a server that went silent behind a living connection is left.
const WATCH_SECONDS: u32 = 60;

/// The Secret as last seen.
#[derive(Clone, Default)]
pub enum SecretState {
    /// Nothing heard of it yet.
    #[default]
    NotYet,
    /// There is none, or it was deleted. Removes nothing.
    Missing,
    /// It is there, without the key `tunnels`, or with a value there that is no base64.
    NoKey {
        /// `metadata.uid`, for Events.
        uid: String,
        /// `metadata.resourceVersion`.
        resource_version: String,
    },
    /// The document.
    Data {
        /// `metadata.uid`, for Events.
        uid: String,
        /// `metadata.resourceVersion`.
        resource_version: String,
        /// The decoded value of `tunnels`, zeroised on drop.
        document: Arc<Zeroizing<Vec<u8>>>,
    },
}

impl fmt::Debug for SecretState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretState::NotYet => f.write_str("NotYet"),
            SecretState::Missing => f.write_str("Missing"),
            SecretState::NoKey { uid: _, resource_version } => write!(f, "NoKey({resource_version})"),
            SecretState::Data { uid: _, resource_version, document: _ } => write!(f, "Data({resource_version}, …)"),
        }
    }
}

/// Starts the watch of the Secret `name`. It runs until the receiver and all its clones are gone.
pub fn spawn(client: Client, namespace: &str, name: &str) -> watch::Receiver<SecretState> {
    let (sender, receiver) = watch::channel(SecretState::NotYet);
    let api: Api<WireSecret> = Api::namespaced(client, namespace);
    // RBAC allows list and watch of one name alone, and asks for this selector then.
    let config = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    tokio::spawn(follow(api, config, sender));
    receiver
}

async fn follow(api: Api<WireSecret>, config: watcher::Config, sender: watch::Sender<SecretState>) {
    let mut events = pin!(watcher::watcher(api, config));
    let mut backoff = Backoff::default();
    let mut listed = SecretState::Missing;
    loop {
        let event = tokio::select! {
            () = sender.closed() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(Event::Init)) => listed = SecretState::Missing,
            Some(Ok(Event::InitApply(secret))) => listed = secret.state(),
            Some(Ok(Event::InitDone)) => {
                backoff.reset();
                replace(&sender, std::mem::replace(&mut listed, SecretState::Missing));
            }
            Some(Ok(Event::Apply(secret))) => {
                backoff.reset();
                replace(&sender, secret.state());
            }
            Some(Ok(Event::Delete(_))) => {
                backoff.reset();
                replace(&sender, SecretState::Missing);
            }
            Some(Err(error)) => {
                // The layer below has told what is wrong, if it is for an operator to mend.
                tracing::debug!(%error, "watch of the Secret interrupted");
                tokio::time::sleep(backoff.wait()).await;
            }
            None => return,
        }
    }
}

/// Hands a state on, unless it says the same as the last one: a label on the Secret is no news.
fn replace(sender: &watch::Sender<SecretState>, state: SecretState) {
    sender.send_if_modified(|known| {
        let same = match (&*known, &state) {
            (SecretState::Missing, SecretState::Missing) => true,
            (SecretState::NoKey { uid: a, .. }, SecretState::NoKey { uid: b, .. }) => a == b,
            (SecretState::Data { uid: a, document: old, .. }, SecretState::Data { uid: b, document: new, .. }) => {
                a == b && old == new
            }
            _ => false,
        };
        if !same {
            *known = state;
        }
        !same
    });
}

/// The Secret as the API sends it, in as far as it is read.
#[derive(Clone, Debug, Deserialize)]
struct WireSecret {
    #[serde(default, deserialize_with = "identity")]
    metadata: ObjectMeta,
    #[serde(default)]
    data: Option<WireData>,
}

impl WireSecret {
    fn state(self) -> SecretState {
        let WireSecret { metadata, data } = self;
        let uid = metadata.uid.unwrap_or_default();
        let resource_version = metadata.resource_version.unwrap_or_default();
        let document = data.unwrap_or_default().tunnels.0.and_then(|text| STANDARD.decode(text.as_bytes()).ok());
        match document {
            Some(document) => SecretState::Data { uid, resource_version, document: Arc::new(Zeroizing::new(document)) },
            None => SecretState::NoKey { uid, resource_version },
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireData {
    tunnels: Encoded,
}

/// The base64 text of a value; `None` for what is no string. Reading it cannot fail: kube logs the whole body of an
/// answer that it cannot read.
#[derive(Clone, Default)]
struct Encoded(Option<Zeroizing<String>>);

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encoded(…)")
    }
}

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Encoded;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Encoded, E> {
                Ok(Encoded(Some(Zeroizing::new(text.to_owned()))))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Encoded, E> {
                Ok(Encoded(Some(Zeroizing::new(text))))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Encoded, E> {
                Ok(Encoded(None))
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Encoded, E> {
                Ok(Encoded(None))
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Encoded, E> {
                Ok(Encoded(None))
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Encoded, E> {
                Ok(Encoded(None))
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Encoded, E> {
                Ok(Encoded(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Encoded, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Encoded(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Encoded, A::Error> {
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Encoded(None))
            }
        }

        deserializer.deserialize_any(Text)
    }
}

impl Resource for WireSecret {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Secret".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "secrets".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn secret(data: Value) -> WireSecret {
        let object = json!({"metadata": {"name": "wireguard", "uid": "u", "resourceVersion": "5"}, "data": data});
        serde_json::from_value(object).expect("no value makes reading fail")
    }

    #[test]
    fn the_document_is_decoded() {
        match secret(json!({"tunnels": STANDARD.encode("wg0: {}"), "other": "%%%"})).state() {
            SecretState::Data { document, resource_version, uid } => {
                assert_eq!(document.as_slice(), b"wg0: {}");
                assert_eq!((uid.as_str(), resource_version.as_str()), ("u", "5"));
            }
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn whatever_is_no_document_is_no_key() {
        for data in [
            json!(null),
            json!({}),
            json!({"tunnels": null}),
            json!({"tunnels": 7}),
            json!({"tunnels": ["a"]}),
            json!({"tunnels": {"a": 1}}),
            json!({"tunnels": true}),
            json!({"tunnels": "%%% no base64"}),
        ] {
            assert!(matches!(secret(data.clone()).state(), SecretState::NoKey { .. }), "{data}");
        }
    }

    #[test]
    fn nothing_of_the_document_is_printed() {
        let text = STANDARD.encode("topsecret");
        let object = json!({
            "metadata": {"name": "wireguard", "resourceVersion": "5", "annotations": {"last-applied": text}},
            "data": {"tunnels": text, "other": text},
        });
        let wire: WireSecret = serde_json::from_value(object).unwrap();
        assert!(!format!("{wire:?}").contains(&text));
        let state = wire.state();
        assert!(!format!("{state:?}").contains("topsecret"), "{state:?}");
        assert_eq!(format!("{state:?}"), "Data(5, …)");
    }

    #[test]
    fn the_same_document_again_is_no_news() {
        let (sender, mut receiver) = watch::channel(SecretState::NotYet);
        let state = |text: &str| secret(json!({"tunnels": STANDARD.encode(text)})).state();
        replace(&sender, state("a"));
        assert!(receiver.has_changed().unwrap());
        receiver.mark_unchanged();
        replace(&sender, state("a"));
        assert!(!receiver.has_changed().unwrap());
        for next in [state("b"), SecretState::Missing, state("b")] {
            replace(&sender, next);
            assert!(receiver.has_changed().unwrap());
            receiver.mark_unchanged();
        }
    }
}
