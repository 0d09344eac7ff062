//! What a request asks for: its method, path and query, in the API's terms. Pure.

use super::failure::Failure;
use super::resource::Resource;
use super::selector::Selector;

/// A request for objects.
#[derive(Clone, Debug)]
pub struct Ask {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: &'static str,
    pub resource: Resource,
    /// Empty: all namespaces, or a kind without.
    pub namespace: String,
    /// Empty for a whole collection.
    pub name: String,
    /// `status`, `proxy`, or empty.
    pub subresource: String,
    /// What follows the subresource, for the pod proxy.
    pub rest: String,
    pub selector: Selector,
    pub options: Options,
}

/// The query parameters of list and watch.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub resource_version: String,
    pub resource_version_match: String,
    pub limit: usize,
    pub proceed: String,
    pub bookmarks: bool,
    pub initial_events: bool,
    /// Seconds.
    pub timeout: Option<u64>,
}

impl Ask {
    /// Reads a request; none if the path is not one of objects (`/version`, discovery).
    pub fn read(method: &str, path: &str, query: &str) -> Result<Option<Self>, Failure> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, tail) = match parts.as_slice() {
            ["api", version, tail @ ..] => ("", *version, tail),
            ["apis", group, version, tail @ ..] => (*group, *version, tail),
            _ => return Ok(None),
        };
        let (namespace, tail) = match tail {
            [] => return Ok(None),
            // `/namespaces/n` and `/namespaces/n/status` are about the namespace itself.
            ["namespaces", namespace, tail @ ..] if !tail.is_empty() && tail != ["status"] => (*namespace, tail),
            tail => ("", tail),
        };
        let (plural, name, subresource, rest) = match tail {
            [plural] => (*plural, "", "", String::new()),
            [plural, name] => (*plural, *name, "", String::new()),
            [plural, name, subresource, rest @ ..] => (*plural, *name, *subresource, rest.join("/")),
            [] => return Ok(None),
        };
        if !Resource::has_group(group, version) {
            return Ok(None);
        }
        let resource = Resource::at(group, version, plural).ok_or_else(Failure::no_such_path)?;
        let has = match subresource {
            "" => true,
            "status" => resource.place().status && rest.is_empty(),
            "proxy" => resource == Resource::Pod,
            _ => false,
        };
        if !has || (resource.place().namespaced && namespace.is_empty() && !name.is_empty()) {
            return Err(Failure::no_such_path());
        }
        let (options, selector, watch) = read_query(query)?;
        let verb = match (method, name.is_empty()) {
            ("GET" | "HEAD", true) if watch => "watch",
            ("GET" | "HEAD", true) => "list",
            ("GET" | "HEAD", false) => "get",
            ("POST", true) => "create",
            ("PUT", false) => "update",
            ("PATCH", false) => "patch",
            ("DELETE", false) => "delete",
            _ => {
                let message = "the server does not allow this method on the requested resource";
                return Err(Failure::new(405, "MethodNotAllowed", message));
            }
        };
        Ok(Some(Self {
            verb,
            resource,
            namespace: namespace.into(),
            name: name.into(),
            subresource: subresource.into(),
            rest,
            selector,
            options,
        }))
    }

    /// `services/status`, as rules and metrics name it.
    pub fn full_resource(&self) -> String {
        let plural = self.resource.place().plural;
        if self.subresource.is_empty() { plural.into() } else { format!("{plural}/{}", self.subresource) }
    }

    /// The object's name, or the one name that a list or watch is about.
    pub fn subject(&self) -> &str {
        if self.name.is_empty() { self.selector.single_name().unwrap_or_default() } else { &self.name }
    }
}

fn read_query(query: &str) -> Result<(Options, Selector, bool), Failure> {
    let (mut options, mut watch) = (Options::default(), false);
    let (mut fields, mut labels) = (String::new(), String::new());
    let truth = |value: &str| matches!(value, "true" | "1");
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decoded(value);
        match key {
            "watch" => watch = truth(&value),
            "fieldSelector" => fields = value,
            "labelSelector" => labels = value,
            "resourceVersion" => options.resource_version = value,
            "resourceVersionMatch" => options.resource_version_match = value,
            "limit" => options.limit = value.parse().unwrap_or(0),
            "continue" => options.proceed = value,
            "allowWatchBookmarks" => options.bookmarks = truth(&value),
            "sendInitialEvents" => options.initial_events = truth(&value),
            "timeoutSeconds" => options.timeout = value.parse().ok().filter(|seconds| *seconds > 0),
            // dryRun must never write, so what is not served is refused rather than ignored.
            "dryRun" => return Err(Failure::bad_request("dryRun is not served by the lab's API server")),
            _ => {}
        }
    }
    Ok((options, Selector::read(&fields, &labels)?, watch))
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = if *first == b'%' { tail.get(..2) } else { None };
        match hex.and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_the_api_means_them() {
        for (method, path, query, verb, resource, namespace, name) in [
            ("GET", "/api/v1/services", "", "list", "services", "", ""),
            ("GET", "/api/v1/services", "watch=true", "watch", "services", "", ""),
            ("PATCH", "/api/v1/namespaces/n/services/s/status", "", "patch", "services/status", "n", "s"),
            ("GET", "/api/v1/namespaces/n", "", "get", "namespaces", "", "n"),
            ("POST", "/apis/coordination.k8s.io/v1/namespaces/n/leases", "", "create", "leases", "n", ""),
            ("GET", "/api/v1/namespaces/n/pods/p:9586/proxy/status", "", "get", "pods/proxy", "n", "p:9586"),
        ] {
            let ask = Ask::read(method, path, query).unwrap().unwrap();
            let read = (ask.verb, ask.full_resource(), ask.namespace.as_str(), ask.name.as_str());
            assert_eq!(read, (verb, resource.to_owned(), namespace, name), "{method} {path}?{query}");
        }
    }

    #[test]
    fn a_watch_of_one_name_is_about_that_name() {
        let query = "watch=1&fieldSelector=metadata.name%3Dwireguard";
        let ask = Ask::read("GET", "/api/v1/namespaces/n/secrets", query).unwrap().unwrap();
        assert_eq!((ask.verb, ask.subject()), ("watch", "wireguard"));
    }

    #[test]
    fn what_does_not_exist_is_not_found() {
        for path in [
            "/api/v1/namespaces/n/leases/l",
            "/apis/discovery.k8s.io/v1/endpoints",
            "/api/v1/namespaces/n/secrets/s/status",
        ] {
            assert_eq!(Ask::read("GET", path, "").unwrap_err().code, 404, "{path}");
        }
    }
}
