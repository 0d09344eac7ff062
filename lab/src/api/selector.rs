//! Label and field selectors, as list and watch take them. Pure.

use serde_json::Value;

use super::failure::Failure;

/// Which objects a list or watch wants.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    fields: Vec<(Field, bool, String)>,
    labels: Vec<Requirement>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
}

#[derive(Clone, Debug)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Has(String),
    HasNot(String),
}

impl Selector {
    /// Reads `fieldSelector` and `labelSelector`; empty ones select all.
    pub fn read(fields: &str, labels: &str) -> Result<Self, Failure> {
        Ok(Self { fields: read_fields(fields)?, labels: read_labels(labels)? })
    }

    /// Whether it selects this object.
    pub fn matches(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let fields = self.fields.iter().all(|(field, equal, wanted)| {
            let key = match field {
                Field::Name => "name",
                Field::Namespace => "namespace",
            };
            (metadata[key].as_str().unwrap_or_default() == wanted) == *equal
        });
        fields && self.labels.iter().all(|requirement| requirement.matches(&metadata["labels"]))
    }

    /// The one name it selects, if it names one: RBAC's `resourceNames` holds for lists and watches of just that.
    pub fn single_name(&self) -> Option<&str> {
        self.fields.iter().find(|(field, equal, _)| *field == Field::Name && *equal).map(|(_, _, name)| name.as_str())
    }
}

impl Requirement {
    fn matches(&self, labels: &Value) -> bool {
        let get = |key: &String| labels.get(key).and_then(Value::as_str);
        match self {
            Self::In(key, values) => get(key).is_some_and(|value| values.iter().any(|v| v == value)),
            // A missing label satisfies `!=` and `notin`.
            Self::NotIn(key, values) => get(key).is_none_or(|value| values.iter().all(|v| v != value)),
            Self::Has(key) => get(key).is_some(),
            Self::HasNot(key) => get(key).is_none(),
        }
    }
}

fn read_fields(text: &str) -> Result<Vec<(Field, bool, String)>, Failure> {
    let mut fields = Vec::new();
    for term in text.split(',').filter(|term| !term.is_empty()) {
        let (key, equal, value) = if let Some((key, value)) = term.split_once("!=") {
            (key, false, value)
        } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            (key, true, value)
        } else {
            return Err(Failure::bad_request(format!("invalid field selector: {term}")));
        };
        let field = match key {
            "metadata.name" => Field::Name,
            "metadata.namespace" => Field::Namespace,
            _ => return Err(Failure::bad_request(format!("field label not supported: {key}"))),
        };
        fields.push((field, equal, value.to_owned()));
    }
    Ok(fields)
}

fn read_labels(text: &str) -> Result<Vec<Requirement>, Failure> {
    let mut requirements = Vec::new();
    for term in split_outside_parentheses(text) {
        let term = term.trim();
        if term.is_empty() {
            continue;
        }
        let requirement = if let Some((key, values)) = set(term, " notin ") {
            Requirement::NotIn(key, values)
        } else if let Some((key, values)) = set(term, " in ") {
            Requirement::In(key, values)
        } else if let Some((key, value)) = term.split_once("!=") {
            Requirement::NotIn(key.trim().into(), vec![value.trim().into()])
        } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            Requirement::In(key.trim().into(), vec![value.trim().into()])
        } else if let Some(key) = term.strip_prefix('!') {
            Requirement::HasNot(key.trim().into())
        } else if term.contains(['(', ')', ' ']) {
            return Err(Failure::bad_request(format!("unable to parse requirement: {term}")));
        } else {
            Requirement::Has(term.into())
        };
        requirements.push(requirement);
    }
    Ok(requirements)
}

fn set(term: &str, operator: &str) -> Option<(String, Vec<String>)> {
    let (key, values) = term.split_once(operator)?;
    let values = values.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some((key.trim().into(), values.split(',').map(|value| value.trim().into()).collect()))
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_choose_as_the_documentation_says() {
        let object = json!({"metadata": {"name": "a", "namespace": "n", "labels": {"app": "web", "tier": "front"}}});
        for (fields, labels, wanted) in [
            ("", "", true),
            ("metadata.name=a", "", true),
            ("metadata.name==b", "", false),
            ("metadata.name!=b,metadata.namespace=n", "", true),
            ("", "app=web", true),
            ("", "app==web,tier!=back", true),
            ("", "app in (api, web),tier", true),
            ("", "app notin (api,web)", false),
            ("", "!app", false),
            ("", "!other,other!=x,other notin (y)", true),
        ] {
            let selector = Selector::read(fields, labels).unwrap();
            assert_eq!(selector.matches(&object), wanted, "{fields} | {labels}");
        }
    }

    #[test]
    fn a_selector_that_cannot_be_read_is_refused() {
        assert_eq!(Selector::read("spec.x=1", "").unwrap_err().code, 400);
        assert_eq!(Selector::read("", "a in b").unwrap_err().code, 400);
    }
}
