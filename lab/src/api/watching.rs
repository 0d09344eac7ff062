//! Watches: every change since a version, in order, and bookmarks between them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Response, header};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use super::failure::Failure;
use super::listing;
use super::route::Ask;
use super::serve::Server;
use super::store::Change;

/// As the real one's watch cache: a bookmark about every minute, and one 2 s before the watch ends.
const BOOKMARK: Duration = Duration::from_secs(60);
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// The real one ends a watch that names no timeout after 30 to 60 min.
const LONGEST: Duration = Duration::from_secs(30 * 60);

struct Watch {
    server: Arc<Server>,
    ask: Ask,
    began: u64,
    from: u64,
    lines: VecDeque<String>,
    ended: bool,
    version: watch::Receiver<u64>,
    dropped: watch::Receiver<u64>,
    stuck: watch::Receiver<bool>,
    bookmark: Pin<Box<Sleep>>,
    end: Pin<Box<Sleep>>,
}

/// The stream of events that a watch asks for.
pub fn start(server: Arc<Server>, ask: Ask) -> Result<Response<Body>, Failure> {
    let asked = listing::version(&ask.options.resource_version)?;
    if ask.options.initial_events && ask.options.resource_version_match != "NotOlderThan" {
        let why =
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return Err(Failure::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {why}")));
    }
    let lasts = ask.options.timeout.map_or(LONGEST, Duration::from_secs);
    let before_end = lasts.checked_sub(LAST_BOOKMARK).filter(|left| !left.is_zero());
    let mut watch = Watch {
        began: asked,
        from: asked,
        lines: VecDeque::new(),
        ended: false,
        // Subscribed before the store is read: no change falls between.
        version: server.version.subscribe(),
        dropped: server.faults.watch_drops(),
        stuck: server.faults.watches_stuck(),
        bookmark: Box::pin(sleep(before_end.map_or(BOOKMARK, |left| left.min(BOOKMARK)))),
        end: Box::pin(sleep(lasts)),
        server,
        ask,
    };
    watch.begin(asked);
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(line), watch))
    });
    Ok(streamed(Body::from_stream(lines)))
}

/// A watch that fails at once: 200, and the failure as its only event.
pub fn failed(failure: &Failure) -> Response<Body> {
    streamed(Body::from(line("ERROR", &failure.body())))
}

fn streamed(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({ "type": kind, "object": object }))
}

impl Watch {
    /// Without a version, or when asked to, a watch begins with all that is there.
    fn begin(&mut self, asked: u64) {
        if asked != 0 && !self.ask.options.initial_events {
            return;
        }
        let (found, version) = {
            let store = self.server.store();
            (store.list(self.ask.resource, &self.ask.namespace, &self.ask.selector), store.version())
        };
        self.lines.extend(found.iter().map(|object| line("ADDED", object)));
        self.from = version;
        if self.ask.options.initial_events && self.ask.options.bookmarks {
            self.lines.push_back(self.bookmark(true));
        }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            let stuck = *self.stuck.borrow_and_update();
            if stuck {
                tokio::select! {
                    biased;
                    changed = self.dropped.changed() => { let _ = changed; return None; }
                    () = &mut self.end => return None,
                    changed = self.stuck.changed() => { let _ = changed; }
                }
                continue;
            }
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            self.version.mark_unchanged();
            self.advance();
            if !self.lines.is_empty() {
                continue;
            }
            tokio::select! {
                biased;
                changed = self.dropped.changed() => { let _ = changed; return None; }
                () = &mut self.end => return None,
                // What came before it became stuck is told; what comes now is not.
                changed = self.stuck.changed() => { let _ = changed; }
                changed = self.version.changed() => self.ended = changed.is_err(),
                () = &mut self.bookmark => {
                    self.bookmark = Box::pin(sleep(BOOKMARK));
                    // Nothing newer than where the client began is nothing to tell.
                    if self.ask.options.bookmarks && self.from > self.began {
                        return Some(self.bookmark(false));
                    }
                }
            }
        }
    }

    fn advance(&mut self) {
        let store = self.server.store();
        match store.since(self.from) {
            Ok(changes) => self.lines.extend(changes.filter_map(|change| event(change, &self.ask))),
            Err(failure) => {
                self.lines.push_back(line("ERROR", &failure.body()));
                self.ended = true;
            }
        }
        self.from = self.from.max(store.version());
    }

    fn bookmark(&self, initial: bool) -> String {
        let mut metadata = json!({ "resourceVersion": self.from.to_string() });
        if initial {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let place = self.ask.resource.place();
        let object = json!({ "kind": place.kind, "apiVersion": self.ask.resource.api_version(), "metadata": metadata });
        line("BOOKMARK", &object)
    }
}

/// What a change is to a watch: an object that no longer matches its selector is deleted for it.
fn event(change: &Change, ask: &Ask) -> Option<String> {
    let key = &change.key;
    if key.resource != ask.resource || !(ask.namespace.is_empty() || key.namespace == ask.namespace) {
        return None;
    }
    let was = change.before.as_ref().is_some_and(|object| ask.selector.matches(object));
    let is = !change.deleted && ask.selector.matches(&change.after);
    let kind = match (was, is) {
        (false, true) => "ADDED",
        (true, true) => "MODIFIED",
        (true, false) => "DELETED",
        (false, false) => return None,
    };
    Some(line(kind, &change.after))
}
