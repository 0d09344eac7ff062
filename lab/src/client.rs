//! Single questions, asked from any namespace: the client beyond the hub, the hub itself, a backend.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::clock::{now, paced};
use crate::netns::Netns;

/// TCP or UDP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// How a question ended. What is refused at once and what is swallowed are different things to a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// What came back.
    Text(String),
    /// Reset, or an ICMP error: refused at once.
    Refused,
    /// Nothing within the time given.
    Silence,
}

impl Answer {
    fn of(result: io::Result<String>) -> Self {
        use io::ErrorKind::{TimedOut, WouldBlock};
        match result {
            Ok(text) => Answer::Text(text),
            Err(error) if matches!(error.kind(), TimedOut | WouldBlock) => Answer::Silence,
            Err(_) => Answer::Refused,
        }
    }

    /// The name of the backend that answered.
    pub fn name(&self) -> Option<&str> {
        match self {
            Answer::Text(text) => text.split_whitespace().next(),
            _ => None,
        }
    }
}

/// How long somebody waits at least who wants to know whom he is sent to, and not how soon.
const SPREAD: Duration = Duration::from_secs(10);

/// Asks from one namespace.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where it stands.
    pub netns: Netns,
    /// How long it waits for an answer.
    pub patience: Duration,
}

impl Client {
    /// A client in `netns` that waits 1 s.
    pub fn new(netns: &Netns) -> Self {
        Self { netns: netns.clone(), patience: paced(Duration::from_secs(1)) }
    }

    /// The same with another patience.
    pub fn patient(&self, patience: Duration) -> Self {
        Self { netns: self.netns.clone(), patience }
    }

    /// Who answers at `target`?
    pub fn who(&self, proto: Proto, target: SocketAddrV4) -> Result<Answer> {
        let patience = self.patience;
        self.netns.run(|| Ok(Answer::of(who(proto, target, patience))))
    }

    /// Connects and hangs up: `Text("")` if a TCP connection came about.
    pub fn connect(&self, target: SocketAddrV4) -> Result<Answer> {
        let patience = self.patience;
        self.netns.run(|| Ok(Answer::of(TcpStream::connect_timeout(&target.into(), patience).map(|_| String::new()))))
    }

    /// Asks `count` times, each from a port of its own; how often each name answered. Refusals count as `refused`,
    /// silences as `silent`: nothing for 10 s.
    pub fn spread(&self, proto: Proto, target: SocketAddrV4, count: usize) -> Result<BTreeMap<String, usize>> {
        let patience = self.patience.max(paced(SPREAD));
        self.netns.run(|| {
            let mut seen = BTreeMap::new();
            for _ in 0..count {
                let name = match Answer::of(who(proto, target, patience)) {
                    Answer::Refused => "refused".to_owned(),
                    Answer::Silence => "silent".to_owned(),
                    answer => answer.name().unwrap_or_default().to_owned(),
                };
                *seen.entry(name).or_default() += 1;
            }
            Ok(seen)
        })
    }

    /// A connection, whose reads and writes wait as long as this client does.
    pub fn open(&self, target: SocketAddrV4) -> Result<TcpStream> {
        self.netns.run(|| Ok(open(target, self.patience)?))
    }

    /// A UDP socket of one flow.
    pub fn flow(&self, target: SocketAddrV4) -> Result<UdpSocket> {
        self.netns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(self.patience))?;
            socket.connect(target)?;
            Ok(socket)
        })
    }

    /// Reads `bytes` from a backend over one connection; how long that took.
    pub fn download(&self, target: SocketAddrV4, bytes: u64) -> Result<Duration> {
        let patience = self.patience;
        self.netns.run(|| {
            let start = now();
            let mut stream = open(target, patience)?;
            stream.write_all(format!("get {bytes}\n").as_bytes())?;
            let count = io::copy(&mut stream.take(bytes), &mut io::sink()).context("the download broke off")?;
            anyhow::ensure!(count == bytes, "the download ended after {count} of {bytes} bytes");
            Ok(now().duration_since(start))
        })
    }

    /// Writes `bytes` to a backend over one connection; how long until it had them all.
    pub fn upload(&self, target: SocketAddrV4, bytes: u64) -> Result<Duration> {
        let patience = self.patience;
        self.netns.run(|| {
            let start = now();
            let mut stream = open(target, patience)?;
            stream.write_all(format!("put {bytes}\n").as_bytes())?;
            io::copy(&mut io::repeat(b'x').take(bytes), &mut stream).context("the upload broke off")?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).context("the upload was not confirmed")?;
            anyhow::ensure!(line.trim_end().ends_with(&bytes.to_string()), "the backend got something else: {line}");
            Ok(now().duration_since(start))
        })
    }

    /// Asks a backend for a datagram of `size` bytes; how many arrived.
    pub fn datagram(&self, target: SocketAddrV4, size: usize) -> Result<usize> {
        let patience = self.patience;
        self.netns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(patience))?;
            socket.connect(target)?;
            socket.send(format!("get {size}").as_bytes())?;
            socket.recv(&mut vec![0; 65_536]).with_context(|| format!("no datagram of {size} bytes arrived"))
        })
    }

    /// Asks a backend by UDP for an answer after `wait`; whether it came.
    pub fn wait_for(&self, target: SocketAddrV4, wait: Duration) -> Result<bool> {
        let patient = self.patient(self.patience + wait);
        let socket = patient.flow(target)?;
        socket.send(format!("wait {}", wait.as_millis()).as_bytes())?;
        Ok(socket.recv(&mut [0; 64]).is_ok())
    }

    /// A plain HTTP/1.0 GET; status code and body.
    pub fn http_get(&self, target: SocketAddrV4, path: &str) -> Result<(u16, String)> {
        let patience = self.patience;
        self.netns.run(|| {
            let mut stream = open(target, patience)?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: {target}\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
            let status = head.split_whitespace().nth(1).context("no HTTP status")?.parse()?;
            Ok((status, body.to_owned()))
        })
    }

    /// Asks again as long as nothing comes back: the first answer or refusal, or silence after `within`.
    pub fn answer(&self, proto: Proto, target: SocketAddrV4, within: Duration) -> Result<Answer> {
        let deadline = now() + paced(within);
        loop {
            let answer = self.who(proto, target)?;
            if answer != Answer::Silence || now() >= deadline {
                return Ok(answer);
            }
        }
    }

    /// Asks until `good` likes the answer; when it was asked.
    pub fn until(
        &self,
        proto: Proto,
        target: SocketAddrV4,
        within: Duration,
        good: impl Fn(&Answer) -> bool,
    ) -> Result<Instant> {
        let mut last = None;
        crate::clock::until(&format!("another answer at {target}"), within, || {
            let asked = now();
            let answer = self.who(proto, target)?;
            if good(&answer) {
                return Ok(Some(asked));
            }
            last = Some(answer);
            Ok(None)
        })
        .with_context(|| format!("the last answer was {last:?}"))
    }
}

fn open(target: SocketAddrV4, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target.into(), patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn who(proto: Proto, target: SocketAddrV4, patience: Duration) -> io::Result<String> {
    match proto {
        Proto::Tcp => {
            let mut stream = open(target, patience)?;
            stream.write_all(b"who\n")?;
            let mut line = String::new();
            match BufReader::new(stream).read_line(&mut line)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                _ => Ok(line.trim_end().to_owned()),
            }
        }
        Proto::Udp => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(patience))?;
            socket.connect(target)?;
            socket.send(b"who")?;
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        }
    }
}
