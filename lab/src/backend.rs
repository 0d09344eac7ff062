//! A backend pod: answers TCP and UDP on one port with its own name.
//!
//! TCP, one line a request, any number a connection: `who` → `NAME ADDRESS:PORT` (the client as the backend sees it),
//! `echo TEXT` → `NAME TEXT`, `get N` → N bytes, `put N` + N bytes → `NAME N`. UDP: `get N` → N bytes, `wait N` →
//! `NAME N` after N ms, and anything else comes back behind `NAME `.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};

use crate::clock::until;
use crate::netns::Netns;

/// One backend pod. Stops with its value.
pub struct Backend {
    /// What it answers with.
    pub name: String,
    /// Its pod address.
    pub address: Ipv4Addr,
    /// Its port, TCP and UDP.
    pub port: u16,
    /// Its namespace.
    pub netns: Netns,
    runtime: Handle,
    servers: Vec<JoinHandle<()>>,
}

impl Backend {
    /// Serves on `port` in `netns`, whose pod address is `address`.
    pub fn start(name: &str, netns: &Netns, address: Ipv4Addr, port: u16, runtime: &Handle) -> Result<Self> {
        let mut backend = Self {
            name: name.to_owned(),
            address,
            port,
            netns: netns.clone(),
            runtime: runtime.clone(),
            servers: Vec::new(),
        };
        backend.listen()?;
        Ok(backend)
    }

    /// Where it listens.
    pub fn socket(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, self.port)
    }

    /// Closes its sockets and connections: new ones are refused by its kernel.
    pub fn stop(&mut self) {
        for server in self.servers.drain(..) {
            server.abort();
        }
    }

    /// Serves again after [`Backend::stop`].
    pub fn listen(&mut self) -> Result<()> {
        self.stop();
        let (tcp, udp) = self.netns.run(|| bind(self.port)).with_context(|| format!("backend {}", self.name))?;
        let _inside = self.runtime.enter();
        let (tcp, udp) = (TcpListener::from_std(tcp)?, UdpSocket::from_std(udp)?);
        self.servers.push(self.runtime.spawn(serve_tcp(tcp, self.name.clone())));
        self.servers.push(self.runtime.spawn(serve_udp(udp, self.name.clone())));
        Ok(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How long one that is asked to go (SIGTERM) serves on: by then everybody who forwards to it has heard.
const GRACE: Duration = Duration::from_secs(3);

/// Serves where this process is until it is asked to go, and for [`GRACE`] more, as a good server does: what the
/// container of a backend in a real cluster runs.
pub fn serve(name: &str, port: u16) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tcp, udp) = bind(port)?;
    runtime.block_on(async {
        let (tcp, udp) = (TcpListener::from_std(tcp)?, UdpSocket::from_std(udp)?);
        let mut terminate = signal(SignalKind::terminate())?;
        let leave = async {
            terminate.recv().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            () = serve_tcp(tcp, name.to_owned()) => {}
            () = serve_udp(udp, name.to_owned()) => {}
            () = leave => {}
        }
        Ok(())
    })
}

fn bind(port: u16) -> Result<(std::net::TcpListener, std::net::UdpSocket)> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    // An aborted server drops its sockets at its next poll, not at once.
    let (what, within) = (format!("port {port} to be free"), Duration::from_secs(1));
    let tcp = until(&what, within, || Ok(Some(std::net::TcpListener::bind(any)?)))?;
    let udp = until(&what, within, || Ok(Some(std::net::UdpSocket::bind(any)?)))?;
    tcp.set_nonblocking(true)?;
    udp.set_nonblocking(true)?;
    Ok((tcp, udp))
}

async fn serve_tcp(listener: TcpListener, name: String) {
    // Dropping the set ends the connections with the server.
    let mut connections = JoinSet::new();
    while let Ok((stream, from)) = listener.accept().await {
        connections.spawn(converse(stream, from, name.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, from: SocketAddr, name: String) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let (verb, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        match verb {
            "who" => stream.write_all(format!("{name} {from}\n").as_bytes()).await?,
            "echo" => stream.write_all(format!("{name} {rest}\n").as_bytes()).await?,
            "get" => {
                let mut bytes = tokio::io::repeat(b'x').take(rest.parse()?);
                tokio::io::copy(&mut bytes, &mut stream).await?;
            }
            "put" => {
                let count: u64 = rest.parse()?;
                tokio::io::copy(&mut (&mut stream).take(count), &mut tokio::io::sink()).await?;
                stream.write_all(format!("{name} {count}\n").as_bytes()).await?;
            }
            other => bail!("a backend does not know `{other}`"),
        }
        stream.flush().await?;
        line.clear();
    }
    Ok(())
}

async fn serve_udp(socket: UdpSocket, name: String) {
    let socket = Arc::new(socket);
    // Dropping the set forgets the answers that are still to come.
    let mut later = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        // Errors here are ICMP answers to earlier datagrams: the server goes on.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let asked = &buffer[..length];
        let number = |verb: &[u8]| std::str::from_utf8(asked.strip_prefix(verb)?).ok()?.trim().parse::<u32>().ok();
        if let Some(wait) = number(b"wait ") {
            let (socket, answer) = (Arc::clone(&socket), format!("{name} {wait}"));
            later.spawn(async move {
                tokio::time::sleep(Duration::from_millis(wait.into())).await;
                let _ = socket.send_to(answer.as_bytes(), from).await;
            });
            while later.try_join_next().is_some() {}
            continue;
        }
        let answer = match number(b"get ") {
            Some(size) => vec![b'x'; size as usize],
            None => [name.as_bytes(), b" ", asked].concat(),
        };
        let _ = socket.send_to(&answer, from).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, Write};

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn a_backend_tells_its_name_until_it_is_stopped() -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let netns = Netns::new("backend")?;
        let mut backend = Backend::start("b1", &netns, Ipv4Addr::LOCALHOST, 8080, runtime.handle())?;
        let socket = backend.socket();
        let ask = |request: &str| {
            netns.run(|| {
                let mut stream = std::io::BufReader::new(std::net::TcpStream::connect(socket)?);
                stream.get_mut().write_all(request.as_bytes())?;
                let mut line = String::new();
                stream.read_line(&mut line)?;
                Ok((line, stream))
            })
        };
        assert!(ask("who\n")?.0.starts_with("b1 127.0.0.1:"));
        assert_eq!(ask("echo hello you\n")?.0, "b1 hello you\n");
        let (bulk, _) = ask("get 100000\necho end\n")?;
        assert_eq!((bulk.len(), bulk.ends_with("xb1 end\n")), (100_007, true));
        let answer = netns.run(|| {
            let udp = std::net::UdpSocket::bind("127.0.0.1:0")?;
            udp.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
            udp.send_to(b"ping", socket)?;
            let mut buffer = [0; 100];
            let (length, _) = udp.recv_from(&mut buffer)?;
            Ok(buffer[..length].to_vec())
        })?;
        assert_eq!(answer, b"b1 ping");
        backend.stop();
        crate::clock::until("a refusal", std::time::Duration::from_secs(2), || {
            Ok(ask("who\n").is_err().then_some(()))
        })?;
        backend.listen()?;
        ask("who\n").map(drop)
    }
}
