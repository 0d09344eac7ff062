//! Who may do what: the Roles and bindings that lie in the store, read as RBAC reads them. Pure.

use serde_json::Value;

use super::failure::Failure;
use super::resource::Resource;
use super::route::Ask;
use super::selector::Selector;
use super::store::{Key, Store};

/// Somebody who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// `system:serviceaccount:wirevip:wirevip`.
    pub name: String,
    pub groups: Vec<String>,
}

/// Refuses what no rule allows, in the real one's words.
pub fn authorize(store: &Store, who: &Who, ask: &Ask) -> Result<(), Failure> {
    if who.groups.iter().any(|group| group == "system:masters") || allowed(store, who, ask) {
        return Ok(());
    }
    let (place, resource) = (ask.resource.place(), ask.full_resource());
    let subject = match ask.subject() {
        "" => String::new(),
        name => format!(" \"{name}\""),
    };
    let scope = match ask.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let message = format!(
        "{}{subject} is forbidden: User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
        ask.resource.qualified(),
        who.name,
        ask.verb,
        place.group,
    );
    Err(Failure::new(403, "Forbidden", message))
}

fn allowed(store: &Store, who: &Who, ask: &Ask) -> bool {
    let cluster = store.list(Resource::ClusterRoleBinding, "", &Selector::default());
    let local = match ask.namespace.as_str() {
        "" => Vec::new(),
        namespace => store.list(Resource::RoleBinding, namespace, &Selector::default()),
    };
    cluster.iter().chain(&local).filter(|binding| binds(binding, who)).any(|binding| {
        let reference = &binding["roleRef"];
        let (resource, namespace) = match reference["kind"].as_str() {
            Some("Role") => (Resource::Role, ask.namespace.clone()),
            _ => (Resource::ClusterRole, String::new()),
        };
        let name = reference["name"].as_str().unwrap_or_default().to_owned();
        let role = store.get(&Key { resource, namespace, name });
        role.is_ok_and(|role| role["rules"].as_array().into_iter().flatten().any(|rule| permits(rule, ask)))
    })
}

fn binds(binding: &Value, who: &Who) -> bool {
    binding["subjects"].as_array().into_iter().flatten().any(|subject| {
        let name = subject["name"].as_str().unwrap_or_default();
        match subject["kind"].as_str() {
            Some("ServiceAccount") => {
                let namespace = subject["namespace"].as_str().unwrap_or_default();
                who.name == format!("system:serviceaccount:{namespace}:{name}")
            }
            Some("User") => who.name == name,
            Some("Group") => who.groups.iter().any(|group| group == name),
            _ => false,
        }
    })
}

fn permits(rule: &Value, ask: &Ask) -> bool {
    let has = |key: &str, wanted: &str| {
        rule[key].as_array().into_iter().flatten().any(|value| value == wanted || value == "*")
    };
    let names = rule["resourceNames"].as_array().map(Vec::as_slice).unwrap_or_default();
    has("verbs", ask.verb)
        && has("apiGroups", ask.resource.place().group)
        && has("resources", &ask.full_resource())
        && (names.is_empty() || names.iter().any(|name| name == ask.subject()))
}
