//! Probes: a client that asks every 5 ms and writes down what was answered when.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::clock::{now, until};
use crate::gaps::{Gap, Sample, asleep, longest, longest_awake, lost};
use crate::netns::Netns;
use crate::processes::locked;

/// Between two probes.
pub const EVERY: Duration = Duration::from_millis(5);
/// A TCP probe without an answer after this is lost: less than the kernel's first SYN retransmission (1 s).
const PATIENCE: Duration = Duration::from_millis(250);

/// How long somebody waits who wants an answer rather than to know how long it takes.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// An answer that takes longer than this counts as lost.
const LATE: Duration = Duration::from_secs(2);

/// What a probe asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeKind {
    /// Datagrams of one flow, to a [`crate::backend::Backend`].
    UdpFlow,
    /// Datagrams, each from a port of its own.
    UdpFresh,
    /// A new connection each, closed once it is made: for any TCP server.
    TcpConnect,
    /// A new connection each, and a backend's name read from it.
    TcpAsk,
    /// The same by somebody who waits: lost is what is refused, broken off or not answered at all.
    TcpRequest,
    /// One connection, made anew when it breaks.
    TcpLong,
}

impl ProbeKind {
    /// A probe of this kind without an answer after this is lost.
    fn patience(self) -> Duration {
        if self == ProbeKind::TcpRequest { REQUEST_PATIENCE } else { PATIENCE }
    }

    /// May the next probe have to wait for an answer? Else one that is late tells of the machine, not of the path.
    fn waits(self) -> bool {
        self == ProbeKind::TcpLong
    }
}

type Record = Arc<Mutex<Vec<Sample>>>;

/// A running series of probes. Stops with its value.
pub struct Probe {
    kind: ProbeKind,
    bears: usize,
    record: Record,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Probe {
    /// Starts asking `target` from `netns`.
    pub fn start(netns: &Netns, target: SocketAddrV4, kind: ProbeKind) -> Result<Self> {
        let record = Record::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (sink, flag, netns) = (Arc::clone(&record), Arc::clone(&stop), netns.clone());
        let (ready, started) = std::sync::mpsc::sync_channel::<Result<()>>(1);
        let thread = thread::Builder::new().name("probe".into()).spawn(move || {
            let runtime = netns.enter().and_then(|()| {
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")
            });
            match runtime {
                Err(error) => drop(ready.send(Err(error))),
                Ok(runtime) => {
                    drop(ready.send(Ok(())));
                    runtime.block_on(series(target, kind, &sink, &flag));
                }
            }
        })?;
        started.recv().context("the probe's thread is gone")??;
        Ok(Self { kind, bears: 0, record, stop, thread: Some(thread) })
    }

    /// The same on a road that loses packets: so many lost in a row do not end a row of answers.
    pub fn bearing(mut self, losses: usize) -> Self {
        self.bears = losses;
        self
    }

    /// What was asked and answered so far.
    pub fn samples(&self) -> Vec<Sample> {
        locked(&self.record).clone()
    }

    /// Waits until a probe sent at or after `since` is answered; when that answer came.
    pub fn answered_since(&self, since: Instant, within: Duration) -> Result<Instant> {
        until(&format!("an answer to a {:?} probe", self.kind), within, || {
            let record = locked(&self.record);
            Ok(record.iter().rev().take_while(|s| s.sent >= since).filter_map(|s| s.answered).min())
        })
    }

    /// Waits until `count` probes in a row were answered, all sent at or after `since`.
    pub fn steady_since(&self, since: Instant, count: usize, within: Duration) -> Result<()> {
        until(&format!("{count} answers in a row to {:?} probes", self.kind), within, || {
            let samples = self.samples();
            // The last few may still be on their way: the run of answers may end before them.
            let (mut run, mut lost) = (0, 0);
            let steady = samples.iter().filter(|s| s.sent >= since).any(|s| {
                lost = if s.answered.is_some() { 0 } else { lost + 1 };
                run = match lost {
                    0 => run + 1,
                    lost if lost <= self.bears => run,
                    _ => 0,
                };
                run >= count
            });
            Ok(steady.then_some(()))
        })
    }

    /// The longest silence that touches the time from `from` until now.
    pub fn gap_since(&self, from: Instant) -> Gap {
        longest(&self.samples(), from, now())
    }

    /// The length of the longest silence that touches the time from `from` until now, without what the machine did not let
    /// this probe ask: what a bound is held against.
    pub fn silence_since(&self, from: Instant) -> Duration {
        if self.kind.waits() {
            return self.gap_since(from).length();
        }
        longest_awake(&self.samples(), from, now())
    }

    /// For how much of the time from `from` until `to` the machine did not let this probe ask.
    pub fn asleep(&self, from: Instant, to: Instant) -> Duration {
        if self.kind.waits() { Duration::ZERO } else { asleep(&self.samples(), from, to) }
    }

    /// How many probes sent in `from..to` were lost.
    pub fn lost(&self, from: Instant, to: Instant) -> usize {
        lost(&self.samples(), from, to)
    }

    /// How many of the probes sent from `from` until now are lost. Late answers are none: on a busy machine they may
    /// take a second, and the last ones are still on their way.
    pub fn lost_since(&self, from: Instant) -> usize {
        let to = now();
        let all = || Ok((self.lost(from, to) == 0).then_some(()));
        let _ = until("every answer", LATE, all);
        self.lost(from, to)
    }

    /// Stops, gives what is on its way its time, and returns the whole record.
    pub fn finish(mut self) -> Vec<Sample> {
        self.halt();
        self.samples()
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.halt();
    }
}

async fn series(target: SocketAddrV4, kind: ProbeKind, record: &Record, stop: &AtomicBool) {
    let work = async {
        match kind {
            ProbeKind::UdpFlow => udp_flow(target, record, stop).await,
            ProbeKind::TcpLong => tcp_long(target, record, stop).await,
            ProbeKind::UdpFresh | ProbeKind::TcpConnect | ProbeKind::TcpAsk | ProbeKind::TcpRequest => {
                one_by_one(target, kind, record, stop).await
            }
        }
    };
    // A series ends only by `stop`: what fails is a probe without an answer.
    let _ = work.await;
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn sent(record: &Record) -> usize {
    let mut record = locked(record);
    record.push(Sample { sent: now(), answered: None });
    record.len() - 1
}

fn answered(record: &Record, index: usize) {
    if let Some(sample) = locked(record).get_mut(index) {
        sample.answered.get_or_insert_with(now);
    }
}

async fn one_by_one(target: SocketAddrV4, kind: ProbeKind, record: &Record, stop: &AtomicBool) -> Result<()> {
    let mut ticks = ticks();
    let mut asked = tokio::task::JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let index = sent(record);
        let record = Arc::clone(record);
        asked.spawn(async move {
            if let Ok(Ok(())) = timeout(kind.patience(), ask(target, kind)).await {
                answered(&record, index);
            }
        });
        while asked.try_join_next().is_some() {}
    }
    asked.join_all().await;
    Ok(())
}

async fn ask(target: SocketAddrV4, kind: ProbeKind) -> Result<()> {
    if kind == ProbeKind::UdpFresh {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(target).await?;
        socket.send(b"fresh").await?;
        socket.recv(&mut [0; 64]).await?;
        return Ok(());
    }
    let mut stream = TcpStream::connect(target).await?;
    // Closed by a reset: 200 connections a second would else use up the ports in TIME_WAIT.
    stream.set_zero_linger()?;
    if kind != ProbeKind::TcpConnect {
        stream.set_nodelay(true)?;
        stream.write_all(b"who\n").await?;
        let mut line = String::new();
        let count = BufReader::new(&mut stream).read_line(&mut line).await?;
        return if count > 0 { Ok(()) } else { Err(anyhow!("closed without an answer")) };
    }
    Ok(())
}

async fn udp_flow(target: SocketAddrV4, record: &Record, stop: &AtomicBool) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let listen = async {
        let mut buffer = [0; 256];
        loop {
            // An error is an ICMP answer to an earlier datagram.
            let Ok((length, _)) = socket.recv_from(&mut buffer).await else { continue };
            let words = String::from_utf8_lossy(&buffer[..length]);
            if let Some(index) = words.rsplit(' ').next().and_then(|number| number.parse().ok()) {
                answered(record, index);
            }
        }
    };
    let talk = async {
        let mut ticks = ticks();
        while !stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            let index = sent(record);
            let _ = socket.send_to(index.to_string().as_bytes(), target).await;
        }
        tokio::time::sleep(PATIENCE).await;
    };
    tokio::select! { () = listen => {}, () = talk => {} }
    Ok(())
}

async fn tcp_long(target: SocketAddrV4, record: &Record, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let Ok(Ok(stream)) = timeout(PATIENCE, TcpStream::connect(target)).await else {
            sent(record);
            tokio::time::sleep(EVERY).await;
            continue;
        };
        stream.set_nodelay(true)?;
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let waiting = Mutex::new(HashMap::new());
        let listen = async {
            while let Ok(Some(line)) = lines.next_line().await {
                let index = line.rsplit(' ').next().and_then(|key| locked(&waiting).remove(key));
                if let Some(index) = index {
                    answered(record, index);
                }
            }
        };
        let talk = async {
            let mut ticks = ticks();
            while !stop.load(Ordering::Relaxed) {
                ticks.tick().await;
                let index = sent(record);
                locked(&waiting).insert(index.to_string(), index);
                if writer.write_all(format!("echo {index}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(PATIENCE).await;
        };
        tokio::select! { () = listen => {}, () = talk => {} }
    }
    Ok(())
}
