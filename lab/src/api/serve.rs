//! One request to the stand-in, from authentication to its answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request as HttpRequest, Response, StatusCode, Uri, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::Request;
use super::discovery;
use super::failure::Failure;
use super::faults::{Fault, Faults};
use super::identity::Tokens;
use super::listing;
use super::rbac::{Who, authorize};
use super::route::Ask;
use super::store::{Key, Part, Stamp, Store};
use super::watching;

/// The real one's limit for a request (`--max-request-bytes` of etcd, and some room).
const LARGEST_BODY: usize = 3 * 1024 * 1024;

/// All that the connections share.
#[derive(Debug)]
pub struct Server {
    store: Mutex<Store>,
    /// The store's version, for the watches to wait on.
    pub(super) version: watch::Sender<u64>,
    pub faults: Faults,
    tokens: Arc<Tokens>,
    log: Mutex<Vec<Request>>,
}

/// The connection is to be cut without an answer.
#[derive(Debug)]
pub struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("cut on demand")
    }
}

impl std::error::Error for Cut {}

impl Server {
    pub fn new(tokens: Arc<Tokens>) -> Self {
        Self {
            store: Mutex::default(),
            version: watch::Sender::new(0),
            faults: Faults::default(),
            tokens,
            log: Mutex::default(),
        }
    }

    /// Every request so far, in the order of their answers.
    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the history: a watch from an earlier version gets 410.
    pub fn compact(&self) {
        self.write(Store::compact);
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let done = change(&mut store);
        self.version.send_replace(store.version());
        done
    }

    fn authenticate(&self, headers: &HeaderMap) -> Result<(Who, String), Failure> {
        let Some(said) = headers.get(header::AUTHORIZATION) else {
            let (name, groups) = ("system:anonymous".to_owned(), vec!["system:unauthenticated".to_owned()]);
            return Ok((Who { name: name.clone(), groups }, name));
        };
        let token = said.to_str().ok().and_then(|said| said.strip_prefix("Bearer "));
        token.and_then(|token| self.tokens.who(token)).ok_or_else(Failure::unauthorized)
    }
}

/// Answers one request, and keeps a record of it.
pub async fn handle<B>(server: Arc<Server>, request: HttpRequest<B>) -> Result<Response<Body>, Cut>
where
    B: hyper::body::Body<Data = axum::body::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    let at = Timestamp::now();
    let (head, body) = request.into_parts();
    let who = server.authenticate(&head.headers);
    let ask = Ask::read(head.method.as_str(), head.uri.path(), head.uri.query().unwrap_or_default());
    let user = who.as_ref().map(|(_, label)| label.clone()).unwrap_or_default();
    let mut record = Request { at, user, ..Request::default() };
    if let Ok(Some(ask)) = &ask {
        record.verb = ask.verb.into();
        record.resource = ask.full_resource();
        record.namespace = ask.namespace.clone();
        record.name = ask.subject().into();
    }
    let mut reply = Ok(());
    let mut gone = None;
    let mut refused = None;
    for fault in server.faults.strike(&record.user, &record.verb, &record.resource) {
        match fault {
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
            Fault::Hang => {
                server.remember(record);
                return std::future::pending().await;
            }
            Fault::Refuse(code) => refused = Some(Failure::of_code(code)),
            Fault::Gone => gone = Some(Failure::of_code(410)),
            Fault::LoseReply => reply = Err(Cut),
            Fault::Cut => {
                server.remember(record);
                return Err(Cut);
            }
        }
    }
    let body = to_bytes(Body::new(body), LARGEST_BODY).await.map_err(|_| Cut)?;
    let answer = match (who, ask, refused) {
        (Err(failure), _, _) | (_, Err(failure), _) | (_, _, Some(failure)) => Err(failure),
        (Ok((who, _)), Ok(None), None) => plain(&who, &head.method, &head.uri),
        (Ok((who, _)), Ok(Some(ask)), None) => match (gone, ask.verb) {
            (Some(failure), "watch") => Ok(watching::failed(&failure)),
            (Some(failure), _) => Err(failure),
            (None, _) => objects(&server, &who, &ask, &head.headers, &body).await,
        },
    };
    let answer = answer.unwrap_or_else(|failure| json_response(failure.code, &failure.body()));
    record.code = if reply.is_ok() { answer.status().as_u16() } else { 0 };
    server.remember(record);
    reply.map(|()| answer)
}

impl Server {
    fn remember(&self, record: Request) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }
}

fn plain(who: &Who, method: &Method, uri: &Uri) -> Result<Response<Body>, Failure> {
    let path = uri.path();
    if matches!(path, "/livez" | "/readyz" | "/healthz") {
        return Ok(Response::new(Body::from("ok")));
    }
    let known = who.groups.iter().any(|group| group == "system:authenticated");
    if !known && path != "/version" {
        let (user, verb) = (&who.name, method.as_str().to_lowercase());
        let message = format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\"");
        return Err(Failure::new(403, "Forbidden", message));
    }
    Ok(discovery::answer(path).map_or_else(
        || {
            let mut response = Response::new(Body::from("404 page not found\n"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        },
        |found| json_response(200, &found),
    ))
}

async fn objects(
    server: &Arc<Server>,
    who: &Who,
    ask: &Ask,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response<Body>, Failure> {
    authorize(&server.store(), who, ask)?;
    let key = Key { resource: ask.resource, namespace: ask.namespace.clone(), name: ask.name.clone() };
    if ask.subresource == "proxy" {
        return proxy(server, ask).await;
    }
    let part = if ask.subresource == "status" { Part::Status } else { Part::Main };
    let stamp = Stamp { now: Timestamp::now(), uid: uid() };
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("application/json");
    let (code, object) = match ask.verb {
        "get" => (200, server.store().get(&key)?),
        "list" => (200, Arc::new(listing::list(&server.store(), ask)?)),
        "watch" => return watching::start(server.clone(), ask.clone()),
        "create" => {
            let object = json_body(kind, body, &["application/json"])?;
            (201, server.write(|store| store.create(ask.resource, &ask.namespace, object, &stamp))?)
        }
        "update" => {
            let object = json_body(kind, body, &["application/json"])?;
            let (object, created) = server.write(|store| store.replace(&key, part, object, &stamp))?;
            (if created { 201 } else { 200 }, object)
        }
        "patch" => {
            // A strategic patch differs from a merge patch in lists only: no list of ours is patched in parts.
            let kinds = ["application/merge-patch+json", "application/strategic-merge-patch+json"];
            let patch = json_body(kind, body, &kinds)?;
            (200, server.write(|store| store.patch(&key, part, &patch, &stamp))?)
        }
        _ => {
            let options: Value = serde_json::from_slice(body).unwrap_or_default();
            let last = server.write(|store| store.delete(&key, &options["preconditions"]))?;
            let details = json!({
                "name": key.name, "group": ask.resource.place().group, "kind": ask.resource.place().plural,
                "uid": last["metadata"]["uid"],
            });
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
            });
            (200, Arc::new(status))
        }
    };
    Ok(json_response(code, &object))
}

fn json_body(kind: &str, body: &[u8], kinds: &[&str]) -> Result<Value, Failure> {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kinds.contains(&kind) {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            kinds.join(", ")
        );
        return Err(Failure::new(415, "UnsupportedMediaType", message));
    }
    serde_json::from_slice(body)
        .map_err(|error| Failure::bad_request(format!("the object provided is unrecognized: {error}")))
}

/// The pod proxy, to `NAME:PORT`, for GET only.
async fn proxy(server: &Arc<Server>, ask: &Ask) -> Result<Response<Body>, Failure> {
    let unavailable =
        |why: String| Failure::new(503, "ServiceUnavailable", format!("error trying to reach service: {why}"));
    let (name, port) = ask.name.split_once(':').unwrap_or((&ask.name, "80"));
    let key = Key { resource: ask.resource, namespace: ask.namespace.clone(), name: name.into() };
    let pod = server.store().get(&key)?;
    let ip = pod["status"]["podIP"].as_str().ok_or_else(|| unavailable("the pod has no address yet".into()))?;
    let path = &ask.rest;
    let fetch = async {
        let mut stream = tokio::net::TcpStream::connect(format!("{ip}:{port}")).await?;
        // HTTP/1.0: the answer ends with the connection and comes in one piece.
        stream.write_all(format!("GET /{path} HTTP/1.0\r\nHost: {ip}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = fetch.await.map_err(|error| unavailable(error.to_string()))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| unavailable("malformed answer".into()))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(502);
    let mut response = Response::new(Body::from(body.to_owned()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
    Ok(response)
}

/// A JSON answer.
pub(super) fn json_response(code: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn uid() -> String {
    let n: u128 = rand::random();
    let hex = format!("{n:032x}");
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}
