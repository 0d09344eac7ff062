//! The objects, their versions and their history. Pure: time and chance come in a [`Stamp`].
//!
//! What must hold: one counter numbers every change; a write that changes nothing is no change; a write based on an old
//! version is refused; the history since any version that is not compacted can be told completely and in order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::admit::{admit, faults};
use super::failure::Failure;
use super::resource::Resource;
use super::selector::Selector;

/// As many changes as the real one's watch cache keeps at least.
const HISTORY: usize = 10_000;

/// Where an object lives. The namespace is empty for a kind without.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub resource: Resource,
    pub namespace: String,
    pub name: String,
}

/// The moment of a write, and an identity for what it may create.
#[derive(Clone, Debug)]
pub struct Stamp {
    pub now: Timestamp,
    pub uid: String,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    pub version: u64,
    pub key: Key,
    pub before: Option<Arc<Value>>,
    /// For a deletion the last state, with the deletion's version.
    pub after: Arc<Value>,
    pub deleted: bool,
}

/// Whether a write is to the object or to its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Main,
    Status,
}

/// All that the API server knows.
#[derive(Debug)]
pub struct Store {
    version: u64,
    compacted: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Change>,
}

impl Default for Store {
    fn default() -> Self {
        Self { version: 1, compacted: 0, objects: BTreeMap::new(), history: VecDeque::new() }
    }
}

impl Store {
    /// The version of the latest change.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn get(&self, key: &Key) -> Result<Arc<Value>, Failure> {
        self.objects.get(key).cloned().ok_or_else(|| Failure::not_found(key.resource, &key.name))
    }

    /// In the order of their names; an empty namespace means all.
    pub fn list(&self, resource: Resource, namespace: &str, selector: &Selector) -> Vec<Arc<Value>> {
        let from = Key { resource, namespace: namespace.into(), name: String::new() };
        self.objects
            .range(from..)
            .take_while(|(key, _)| key.resource == resource && (namespace.is_empty() || key.namespace == namespace))
            .filter(|(_, object)| selector.matches(object))
            .map(|(_, object)| object.clone())
            .collect()
    }

    pub fn create(
        &mut self,
        resource: Resource,
        namespace: &str,
        object: Value,
        stamp: &Stamp,
    ) -> Result<Arc<Value>, Failure> {
        let mut object = admit(resource, object)?;
        let metadata = &mut object["metadata"];
        if !metadata["resourceVersion"].as_str().unwrap_or_default().is_empty() {
            return Err(Failure::new(500, "", "resourceVersion should not be set on objects to be created"));
        }
        if metadata["name"].is_null()
            && let Some(prefix) = metadata["generateName"].as_str()
        {
            metadata["name"] = format!("{prefix}{}", &stamp.uid[..5]).into();
        }
        if resource.place().namespaced {
            let said = metadata["namespace"].as_str().unwrap_or(namespace);
            if said != namespace {
                let why = "the namespace of the provided object does not match the namespace sent on the request";
                return Err(Failure::bad_request(why));
            }
            metadata["namespace"] = namespace.into();
        }
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        metadata["uid"] = stamp.uid.clone().into();
        metadata["creationTimestamp"] = second(stamp.now).into();
        if resource.place().status && resource != Resource::Namespace {
            // A new object has no status yet, whatever it says.
            object["status"] = if resource == Resource::Service { json!({"loadBalancer": {}}) } else { json!({}) };
        }
        self.allocate(resource, &mut object, None);
        let faults = faults(resource, &object, None);
        if !faults.is_empty() {
            return Err(Failure::invalid(resource, &name, &faults));
        }
        let key = Key { resource, namespace: namespace.into(), name };
        if self.objects.contains_key(&key) {
            return Err(Failure::already_exists(resource, &key.name));
        }
        if resource.place().namespaced {
            self.get(&Key { resource: Resource::Namespace, namespace: String::new(), name: namespace.into() })?;
        }
        Ok(self.keep(key, object))
    }

    /// A replacement (PUT). True if it was created by it, which Leases and Events allow.
    pub fn replace(
        &mut self,
        key: &Key,
        part: Part,
        object: Value,
        stamp: &Stamp,
    ) -> Result<(Arc<Value>, bool), Failure> {
        let mut new = admit(key.resource, object)?;
        let metadata = &mut new["metadata"];
        match metadata["name"].as_str() {
            Some(name) if name == key.name => {}
            None if metadata["generateName"].is_null() => {
                return Err(Failure::bad_request("name must be provided"));
            }
            said => {
                let said = said.unwrap_or_default();
                return Err(Failure::bad_request(format!(
                    "the name of the object ({said}) does not match the name on the URL ({})",
                    key.name
                )));
            }
        }
        let Ok(old) = self.get(key) else {
            return self.create_by_replacing(key, new, stamp);
        };
        let (said, uid) = (text(&new["metadata"]["resourceVersion"]), text(&new["metadata"]["uid"]));
        if said.is_empty() && key.resource == Resource::Lease {
            return Err(Failure::unversioned(key.resource, &key.name));
        }
        if !uid.is_empty() && uid != text(&old["metadata"]["uid"]) {
            return Err(Failure::conflict(key.resource, &key.name, &uid_mismatch(key, &uid, &old)));
        }
        if !said.is_empty() && said != text(&old["metadata"]["resourceVersion"]) {
            let why = "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Failure::conflict(key.resource, &key.name, why));
        }
        for kept in ["uid", "creationTimestamp", "resourceVersion", "namespace"] {
            if let Some(value) = old["metadata"].get(kept) {
                new["metadata"][kept] = value.clone();
            }
        }
        if key.resource.place().status {
            match part {
                Part::Main if key.resource == Resource::Service && new["spec"]["type"] != "LoadBalancer" => {}
                Part::Main => put_or_remove(&mut new, "status", old.get("status")),
                Part::Status => put_or_remove(&mut new, "spec", old.get("spec")),
            }
        }
        if key.resource == Resource::Service {
            forget_balancing(&mut new, &old);
        }
        self.allocate(key.resource, &mut new, Some(&old));
        let faults = faults(key.resource, &new, Some(&old));
        if !faults.is_empty() {
            return Err(Failure::invalid(key.resource, &key.name, &faults));
        }
        if new == *old {
            return Ok((old, false));
        }
        Ok((self.keep(key.clone(), new), false))
    }

    fn create_by_replacing(&mut self, key: &Key, mut new: Value, stamp: &Stamp) -> Result<(Arc<Value>, bool), Failure> {
        let uid = text(&new["metadata"]["uid"]);
        if !matches!(key.resource, Resource::Lease | Resource::Event) {
            return Err(Failure::not_found(key.resource, &key.name));
        }
        if !uid.is_empty() {
            return Err(Failure::conflict(key.resource, &key.name, &uid_mismatch(key, &uid, &Value::Null)));
        }
        // Strange, but so: a version alone does not stop a Lease from being made anew, only a uid does.
        new["metadata"]["resourceVersion"] = "".into();
        Ok((self.create(key.resource, &key.namespace, new, stamp)?, true))
    }

    /// A merge patch (RFC 7386). A `resourceVersion` in it is a precondition.
    pub fn patch(&mut self, key: &Key, part: Part, patch: &Value, stamp: &Stamp) -> Result<Arc<Value>, Failure> {
        let mut object = (*self.get(key)?).clone();
        merge(&mut object, patch);
        self.replace(key, part, object, stamp).map(|(object, _)| object)
    }

    /// `preconditions` are those of DeleteOptions.
    pub fn delete(&mut self, key: &Key, preconditions: &Value) -> Result<Arc<Value>, Failure> {
        let old = self.get(key)?;
        for field in ["uid", "resourceVersion"] {
            let (wanted, is) = (text(&preconditions[field]), text(&old["metadata"][field]));
            if !wanted.is_empty() && wanted != is {
                let what = if field == "uid" { "UID" } else { "ResourceVersion" };
                let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {is}");
                return Err(Failure::conflict(key.resource, &key.name, &why));
            }
        }
        self.objects.remove(key);
        self.version += 1;
        let mut last = (*old).clone();
        last["metadata"]["resourceVersion"] = self.version.to_string().into();
        let last = Arc::new(last);
        self.remember(key.clone(), Some(old), last.clone(), true);
        Ok(last)
    }

    /// Every change after `version`, in order; 410 where the history does not reach back so far.
    pub fn since(&self, version: u64) -> Result<impl Iterator<Item = &Change>, Failure> {
        if version < self.compacted {
            return Err(Failure::expired(version, self.compacted));
        }
        let from = self.history.partition_point(|change| change.version <= version);
        Ok(self.history.range(from..))
    }

    /// Forgets the history: watches and pages from an earlier version get 410.
    pub fn compact(&mut self) {
        // The next version too, so that what was listed just before is too old as well.
        self.version += 1;
        self.compacted = self.version;
        self.history.clear();
    }

    fn keep(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), object.clone());
        self.remember(key, before, object.clone(), false);
        object
    }

    fn remember(&mut self, key: Key, before: Option<Arc<Value>>, after: Arc<Value>, deleted: bool) {
        if self.history.len() == HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.compacted = oldest.version;
        }
        self.history.push_back(Change { version: self.version, key, before, after, deleted });
    }

    /// A Service gets its cluster IP once and keeps it.
    fn allocate(&self, resource: Resource, object: &mut Value, old: Option<&Value>) {
        let spec = &mut object["spec"];
        if resource != Resource::Service || spec["type"] == "ExternalName" {
            return;
        }
        if text(&spec["clusterIP"]).is_empty() {
            let (high, low) = (self.version / 250 % 250, self.version % 250 + 2);
            let fresh = || format!("10.96.{high}.{low}").into();
            spec["clusterIP"] = old.and_then(|old| old["spec"].get("clusterIP").cloned()).unwrap_or_else(fresh);
        }
        spec["clusterIPs"] = json!([spec["clusterIP"]]);
        for (key, value) in [("ipFamilies", json!(["IPv4"])), ("ipFamilyPolicy", json!("SingleStack"))] {
            if spec[key].is_null() {
                spec[key] = value;
            }
        }
    }
}

/// A Service that stops being a load balancer loses what only those may have, if the writer left it as it was.
fn forget_balancing(new: &mut Value, old: &Value) {
    if old["spec"]["type"] != "LoadBalancer" || new["spec"]["type"] == "LoadBalancer" {
        return;
    }
    for field in ["loadBalancerClass", "allocateLoadBalancerNodePorts", "externalTrafficPolicy"] {
        if new["spec"][field] == old["spec"][field] {
            put_or_remove(&mut new["spec"], field, None);
        }
    }
}

/// The words of the real one's storage, which shine through here.
fn uid_mismatch(key: &Key, wanted: &str, is: &Value) -> String {
    let (plural, version) = (key.resource.place().plural, text(&is["metadata"]["resourceVersion"]));
    let path = format!("/registry/{plural}/{}/{}", key.namespace, key.name);
    let (version, is) = (if version.is_empty() { "0" } else { &version }, text(&is["metadata"]["uid"]));
    format!(
        "StorageError: invalid object, Code: 4, Key: {path}, ResourceVersion: {version}, AdditionalErrorMsg: \
         Precondition failed: UID in precondition: {wanted}, UID in object meta: {is}"
    )
}

fn put_or_remove(object: &mut Value, key: &str, value: Option<&Value>) {
    match (value, object.as_object_mut()) {
        (Some(value), Some(object)) => {
            object.insert(key.into(), value.clone());
        }
        (None, Some(object)) => {
            object.remove(key);
        }
        (_, None) => {}
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

/// `metav1.Time`: whole seconds.
fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        Stamp { now: Timestamp::UNIX_EPOCH, uid: "00000000-0000-4000-8000-000000000000".into() }
    }

    fn store() -> (Store, Key) {
        let mut store = Store::default();
        store.create(Resource::Namespace, "", json!({"metadata": {"name": "n"}}), &stamp()).unwrap();
        let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}});
        store.create(Resource::Lease, "n", lease, &stamp()).unwrap();
        (store, Key { resource: Resource::Lease, namespace: "n".into(), name: "l".into() })
    }

    #[test]
    fn a_write_based_on_an_old_version_is_refused() {
        let (mut store, key) = store();
        let first = (*store.get(&key).unwrap()).clone();
        let mut second = first.clone();
        second["spec"]["holderIdentity"] = "b".into();
        store.replace(&key, Part::Main, second, &stamp()).unwrap();
        assert_eq!(store.replace(&key, Part::Main, first, &stamp()).unwrap_err().reason, "Conflict");
    }

    #[test]
    fn a_write_that_changes_nothing_is_no_change() {
        let (mut store, key) = store();
        let before = store.version();
        let same = (*store.get(&key).unwrap()).clone();
        store.replace(&key, Part::Main, same, &stamp()).unwrap();
        store.patch(&key, Part::Main, &json!({"spec": {"holderIdentity": "a"}}), &stamp()).unwrap();
        assert_eq!(store.version(), before);
    }

    #[test]
    fn the_history_tells_every_change_in_order_until_it_is_compacted() {
        let (mut store, key) = store();
        let from = store.version();
        store.patch(&key, Part::Main, &json!({"spec": {"holderIdentity": "b"}}), &stamp()).unwrap();
        store.delete(&key, &Value::Null).unwrap();
        let told: Vec<_> = store.since(from).unwrap().map(|c| (c.version, c.deleted)).collect();
        assert_eq!(told, [(from + 1, false), (from + 2, true)]);
        store.compact();
        assert_eq!(store.since(from).err().map(|f| f.code), Some(410));
        assert!(store.since(store.version()).is_ok());
    }

    #[test]
    fn a_merge_patch_removes_by_null_and_replaces_lists() {
        let mut target = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        merge(&mut target, &json!({"a": {"b": null, "c": [3]}, "e": {"f": null, "g": 1}}));
        assert_eq!(target, json!({"a": {"c": [3]}, "d": 1, "e": {"g": 1}}));
    }
}
