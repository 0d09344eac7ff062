//! Lists, whole or in pages. Pure.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::failure::Failure;
use super::route::Ask;
use super::store::Store;

/// The list that a request asks for.
///
/// Later pages show the present, but name the first page's version, so that a watch from there on tells again what
/// happened in between.
pub fn list(store: &Store, ask: &Ask) -> Result<Value, Failure> {
    let options = &ask.options;
    let asked = version(&options.resource_version)?;
    if asked > store.version() {
        let message = format!("Too large resource version: {asked}, current: {}", store.version());
        return Err(Failure::new(504, "Timeout", message));
    }
    if options.resource_version_match == "Exact" && asked < store.version() {
        return Err(Failure::expired(asked, store.version()));
    }
    let (at, after) = match options.proceed.as_str() {
        "" => (store.version(), None),
        token => {
            let (at, after) = read_token(token).ok_or_else(|| Failure::bad_request("continue key is not valid"))?;
            // Fails when the changes since the first page can no longer be told.
            if store.since(at).is_err() {
                let message = "The provided continue parameter is too old to display a consistent list result.";
                return Err(Failure::new(410, "Expired", message));
            }
            (at, Some(after))
        }
    };
    let place = |object: &Value| {
        let text = |key| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        (text("namespace"), text("name"))
    };
    let found = store.list(ask.resource, &ask.namespace, &ask.selector);
    let mut items = found.iter().filter(|object| after.as_ref().is_none_or(|after| place(object) > *after)).peekable();
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let page: Vec<_> = items.by_ref().take(limit).collect();
    let mut metadata = json!({ "resourceVersion": at.to_string() });
    if items.peek().is_some()
        && let Some(last) = page.last()
    {
        let (namespace, name) = place(last);
        metadata["continue"] = URL_SAFE_NO_PAD.encode(format!("{at} {namespace} {name}")).into();
        metadata["remainingItemCount"] = items.count().into();
    }
    let bare: Vec<Value> = page.into_iter().map(|object| without_kind(object)).collect();
    let kind = format!("{}List", ask.resource.place().kind);
    Ok(json!({ "kind": kind, "apiVersion": ask.resource.api_version(), "metadata": metadata, "items": bare }))
}

/// A `resourceVersion`; none and 0 are 0.
pub fn version(text: &str) -> Result<u64, Failure> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse()
        .map_err(|_| Failure::bad_request(format!("Invalid value: \"{text}\": resourceVersion must be a number")))
}

/// The items of a list do not say what they are: the list does.
fn without_kind(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    object
}

fn read_token(token: &str) -> Option<(u64, (String, String))> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let mut parts = text.split(' ');
    Some((parts.next()?.parse().ok()?, (parts.next()?.into(), parts.next()?.into())))
}
