//! What the API server says about itself: enough for kubectl and client-go to find the kinds. Pure.

use serde_json::{Value, json};

use super::resource::Resource;

/// The answer at a discovery path, or at `/version`.
pub fn answer(path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["version"] => Some(json!({
            "major": "1", "minor": "34", "gitVersion": "v1.34.0+lab", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
        })),
        ["api"] => Some(json!({
            "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
        })),
        ["apis"] => {
            let mut groups: Vec<&str> = Resource::ALL.iter().map(|resource| resource.place().group).collect();
            groups.sort_unstable();
            groups.dedup();
            let groups: Vec<Value> = groups.into_iter().filter(|group| !group.is_empty()).map(group).collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        ["api", "v1"] => resources("", "v1"),
        ["apis", group, "v1"] => resources(group, &format!("{group}/v1")),
        _ => None,
    }
}

fn group(name: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({ "name": name, "versions": [version], "preferredVersion": version })
}

fn resources(group: &str, group_version: &str) -> Option<Value> {
    let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
    let found: Vec<Value> = Resource::ALL
        .iter()
        .map(|resource| resource.place())
        .filter(|place| place.group == group)
        .map(|place| {
            let singular = place.kind.to_lowercase();
            json!({
                "name": place.plural, "singularName": singular, "namespaced": place.namespaced, "kind": place.kind,
                "verbs": verbs,
            })
        })
        .collect();
    let list = json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": found,
    });
    if found.is_empty() { None } else { Some(list) }
}
