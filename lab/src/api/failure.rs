//! Refusals, in the words and shape of the real API server: a `Status` object. Pure.

use serde_json::{Value, json};

use super::resource::Resource;

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status code.
    pub code: u16,
    /// The machine-readable reason, e.g. `Conflict`.
    pub reason: &'static str,
    pub message: String,
    /// The object it is about.
    about: Option<(Resource, String)>,
}

impl Failure {
    /// A refusal that names no object.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), about: None }
    }

    fn about(mut self, resource: Resource, name: &str) -> Self {
        self.about = Some((resource, name.into()));
        self
    }

    pub fn not_found(resource: Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", resource.qualified())).about(resource, name)
    }

    /// No such path at all.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub fn already_exists(resource: Resource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", resource.qualified()))
            .about(resource, name)
    }

    /// Somebody else wrote in between, or the object is another of the same name.
    pub fn conflict(resource: Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// `faults` as the real one words them, e.g. `spec.leaseDurationSeconds: Invalid value: 0: must be …`.
    pub fn invalid(resource: Resource, name: &str, faults: &[String]) -> Self {
        let faults = match faults {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} \"{name}\" is invalid: {faults}", resource.qualified_kind());
        Self::new(422, "Invalid", message).about(resource, name)
    }

    /// A PUT without a version, of a kind whose writers must name one. The real one words it unlike all other faults.
    pub fn unversioned(resource: Resource, name: &str) -> Self {
        let fault = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
        let message = format!("{} \"{name}\" is invalid: {fault}", resource.qualified());
        Self::new(422, "Invalid", message).about(resource, name)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// The history that was asked for is gone.
    pub fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// The refusal that belongs to a bare code, for faults on demand.
    pub fn of_code(code: u16) -> Self {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden: refused on demand"),
            404 => ("NotFound", "the server could not find the requested resource"),
            409 => ("Conflict", "Operation cannot be fulfilled: refused on demand"),
            410 => ("Expired", "too old resource version: refused on demand"),
            429 => ("TooManyRequests", "too many requests: refused on demand"),
            500 => ("InternalError", "Internal error occurred: refused on demand"),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "request did not complete within the requested timeout"),
            _ => ("Unknown", "refused on demand"),
        };
        Self::new(code, reason, message)
    }

    /// The `Status` object.
    pub fn body(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some((resource, name)) = &self.about {
            status["details"] = json!({ "name": name, "kind": resource.place().plural });
            if !resource.place().group.is_empty() {
                status["details"]["group"] = resource.place().group.into();
            }
        }
        status
    }
}
