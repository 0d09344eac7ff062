//! The stand-in on the wire: a thread in the API server's namespace, its listener, TLS and connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{Shutdown, shutdown};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc as async_mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::identity::Certificates;
use super::serve::{Server, handle};
use crate::netns::Netns;

/// A running stand-in. Stops when dropped.
#[derive(Debug)]
pub struct Embedded {
    orders: async_mpsc::UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
    frozen: Option<mpsc::Sender<Infallible>>,
    pub server: Arc<Server>,
}

#[derive(Debug)]
enum Order {
    /// Cut every connection and refuse new ones.
    Stop(mpsc::Sender<Result<()>>),
    /// Listen again.
    Resume(mpsc::Sender<Result<()>>),
    /// Stand still until the other end of the channel is gone.
    Freeze(mpsc::Sender<Result<()>>, mpsc::Receiver<Infallible>),
}

impl Embedded {
    /// Listens on `address`, which must be the namespace's own.
    pub fn start(netns: &Netns, address: SocketAddr, certificates: &Certificates, server: Arc<Server>) -> Result<Self> {
        let right = acceptor(certificates)?;
        let wrong = acceptor(&Certificates::issue(&Certificates::names(address.ip(), &[]))?)?;
        let (orders, receiver) = async_mpsc::unbounded_channel();
        let worker = Worker { address, right, wrong, server: server.clone() };
        let (netns, (started, up)) = (netns.clone(), mpsc::channel());
        let run = move || {
            let ended = netns.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(worker.run(receiver, &started));
                Ok(())
            });
            if let Err(error) = ended {
                // Too late to matter if the server had started: then nobody listens any more.
                let _ = started.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name("lab-api".into()).spawn(run)?;
        up.recv().context("the API server's thread ended before it started")??;
        Ok(Self { orders, thread: Some(thread), frozen: None, server })
    }

    pub fn stop(&mut self) -> Result<()> {
        self.thaw();
        self.ask(Order::Stop)
    }

    pub fn resume(&mut self) -> Result<()> {
        self.ask(Order::Resume)
    }

    /// As SIGSTOP: the kernel still accepts, nobody answers.
    pub fn freeze(&mut self) -> Result<()> {
        if self.frozen.is_some() {
            return Ok(());
        }
        let (hold, held) = mpsc::channel();
        self.ask(|answer| Order::Freeze(answer, held))?;
        self.frozen = Some(hold);
        Ok(())
    }

    pub fn thaw(&mut self) {
        self.frozen = None;
    }

    fn ask(&self, order: impl FnOnce(mpsc::Sender<Result<()>>) -> Order) -> Result<()> {
        let (answer, answered) = mpsc::channel();
        self.orders.send(order(answer)).map_err(|_| anyhow!("the API server's thread is gone"))?;
        answered.recv().context("the API server's thread ended")?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.thaw();
        (self.orders, _) = async_mpsc::unbounded_channel();
        if let Some(thread) = self.thread.take() {
            // It holds nothing that a panic could have left behind.
            let _ = thread.join();
        }
    }
}

fn acceptor(certificates: &Certificates) -> Result<TlsAcceptor> {
    let chain = vec![CertificateDer::from(certificates.server_der.clone())];
    let key = PrivateKeyDer::try_from(certificates.key_der.clone()).map_err(|error| anyhow!("{error}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

struct Worker {
    address: SocketAddr,
    right: TlsAcceptor,
    wrong: TlsAcceptor,
    server: Arc<Server>,
}

impl Worker {
    async fn run(self, mut orders: async_mpsc::UnboundedReceiver<Order>, started: &mpsc::Sender<Result<()>>) {
        let mut listener = match self.listen().await {
            Ok(listener) => Some(listener),
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
        let _ = started.send(Ok(()));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Stop(answer)) => {
                        // A child that another thread forks has the socket, too, until it execs: closed here alone it
                        // would still take connections, and leave the address to nobody.
                        let ended = listener.take().map_or(Ok(()), |old| shutdown(old.as_raw_fd(), Shutdown::Both));
                        connections.shutdown().await;
                        let _ = answer.send(ended.context("the API server's socket does not close"));
                    }
                    Some(Order::Resume(answer)) => {
                        let _ = answer.send(match self.listen().await {
                            Ok(fresh) => { listener = Some(fresh); Ok(()) }
                            Err(error) => Err(error),
                        });
                    }
                    // Blocking the only thread of the runtime is the point: nothing at all is answered.
                    Some(Order::Freeze(answer, held)) => {
                        let _ = answer.send(Ok(()));
                        let _ = held.recv();
                    }
                    None => return,
                },
                accepted = accept(listener.as_ref()) => {
                    if let Ok((stream, _)) = accepted {
                        let wrong = self.server.faults.has_wrong_certificate();
                        let acceptor = if wrong { self.wrong.clone() } else { self.right.clone() };
                        connections.spawn(serve(self.server.clone(), acceptor, stream));
                    }
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn listen(&self) -> Result<TcpListener> {
        let address = self.address;
        let bound = TcpListener::bind(address).await;
        bound.with_context(|| {
            format!("the API server cannot listen on {address}; give the namespace that address first")
        })
    }
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn serve(server: Arc<Server>, acceptor: TlsAcceptor, stream: TcpStream) {
    // Small answers are whole messages: waiting to fill a segment only delays them.
    let _ = stream.set_nodelay(true);
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(move |request| handle(server.clone(), request));
    // An error is the client's going away, or a cut on demand: both end the connection, and that is all.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
