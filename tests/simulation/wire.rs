//! The road between pods and hub, and the hub: every message goes as bytes through the rules of the pod's own fence, out
//! and in. The hub speaks to whoever it heard last, in the session that was confirmed last, as any WireGuard does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use wirevip::ruleset::model::Hook;
use wirevip::ruleset::testing::Packet;
use wirevip::tunnel::LinkPlan;

use crate::kernel::PodKernel;
use crate::record::{Hub as HubState, Said, Scribe, Voice, What};
use crate::weather::ms;
use crate::wireguard::{Content, Message, Peer};

/// One response for another silences nobody in so long, by the fastest of clocks (2 s by the kernel's own).
const STRAYS: Duration = Duration::from_millis(1800);
/// While one pod alone has a session little can go wrong, and that is how it is most of the time.
const CALM_BEAT: Duration = Duration::from_secs(1);
const HUB: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 51820);

/// How it is on the road, and what is asked over it.
#[derive(Clone, PartialEq, Debug)]
pub struct Road {
    /// The longest that a message and its answer take.
    pub round_trip: Duration,
    /// Share of messages that are lost, each way.
    pub loss: f64,
    /// While two pods or more have a session, the hub has a request this often, and who of them does not lead something to
    /// upload: whoever leads may have nothing to say.
    pub beat: Duration,
    /// Share of requests that are answered only after up to ten seconds.
    pub slow: f64,
}

/// Clones are the same road.
#[derive(Clone)]
pub struct Wire {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
}

struct Inner {
    road: Road,
    rng: StdRng,
    scribe: Scribe,
    queue: BinaryHeap<Reverse<(Duration, u64, Due)>>,
    queued: u64,
    next_beat: Duration,
    stations: Vec<Station>,
    hub: Hub,
    /// Whose each index is; `None`: the hub's.
    indexes: BTreeMap<u32, Option<usize>>,
}

/// What comes due.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Due {
    Beat,
    AtHub { from: SocketAddrV4, bytes: Vec<u8> },
    AtPod { to: SocketAddrV4, bytes: Vec<u8> },
    Answer { pod: usize, since: Duration },
}

struct Station {
    kernel: PodKernel,
    /// Forgotten when the kernel's link has another peer, or none.
    peer: Peer,
    /// When the peer was given to the link; its port, and how often it keeps a NAT open.
    since: Option<Duration>,
    port: u16,
    keepalive: Duration,
    /// When something last came for a session of this pod's, and for another while its fence held.
    heard: Option<Duration>,
    foreign: Option<Duration>,
    /// When a response for another last came that may have lost its way.
    strayed: Option<Duration>,
}

#[derive(Default)]
struct Hub {
    peer: Peer,
    endpoint: Option<SocketAddrV4>,
    away: bool,
    seen: HubState,
}

impl Wire {
    pub fn new(road: Road, kernels: Vec<PodKernel>, scribe: Scribe, seed: u64) -> Self {
        let station = |kernel| Station {
            kernel,
            peer: Peer::default(),
            since: None,
            port: 0,
            keepalive: Duration::ZERO,
            heard: None,
            foreign: None,
            strayed: None,
        };
        let inner = Inner {
            road,
            rng: StdRng::seed_from_u64(seed),
            scribe,
            queue: BinaryHeap::new(),
            queued: 0,
            next_beat: Duration::ZERO,
            stations: kernels.into_iter().map(station).collect(),
            hub: Hub::default(),
            indexes: BTreeMap::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), changed: Arc::default() }
    }

    /// Carries what is on its way, for ever.
    pub async fn carry(self) {
        self.lock().beat_at(Duration::ZERO);
        loop {
            let next = self.lock().come();
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    /// The pod's link was given this peer without a past, whose first handshake leaves.
    pub fn fresh_peer(&self, pod: usize, plan: &LinkPlan) {
        let mut inner = self.lock();
        let now = inner.scribe.now();
        let station = &mut inner.stations[pod];
        (station.peer, station.since) = (Peer::default(), station.kernel.session());
        station.port = plan.listen_port;
        station.keepalive = Duration::from_secs(plan.peer.persistent_keepalive.into());
        inner.call(pod, now);
        inner.beat_at(now);
        self.changed.notify_one();
    }

    /// The pod says something that the hub answers.
    pub fn probe(&self, pod: usize) {
        let mut inner = self.lock();
        let now = inner.scribe.now();
        inner.say(pod, Content::Request, now);
        self.changed.notify_one();
    }

    /// The hub goes away, or comes back and knows what it knew.
    pub fn hub_answers(&self, answers: bool) {
        self.lock().hub.away = !answers;
    }

    /// Nothing is lost any more.
    pub fn mend(&self) {
        self.lock().road.loss = 0.0;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

impl Inner {
    fn queue(&mut self, at: Duration, due: Due) {
        self.queued += 1;
        self.queue.push(Reverse((at, self.queued, due)));
    }

    /// The next beat is then, and no other.
    fn beat_at(&mut self, at: Duration) {
        self.next_beat = at;
        self.queue(at, Due::Beat);
    }

    /// All that is due comes; what is next comes after so long.
    fn come(&mut self) -> Duration {
        let now = self.scribe.now();
        while let Some(Reverse((at, ..))) = self.queue.peek() {
            if *at > now {
                return *at - now;
            }
            let Some(Reverse((at, _, due))) = self.queue.pop() else { break };
            match due {
                Due::Beat if at == self.next_beat => self.beat(now),
                Due::AtHub { from, bytes } => self.at_hub(from, &bytes, now),
                Due::AtPod { to, bytes } => self.at_pod(to, &bytes, now),
                Due::Answer { pod, since } if self.stations[pod].since() == Some(since) => {
                    self.say(pod, Content::Answer, now);
                }
                Due::Beat | Due::Answer { .. } => {}
            }
        }
        CALM_BEAT
    }

    /// Timers, requests, uploads.
    fn beat(&mut self, now: Duration) {
        let speakers: Vec<_> = (0..self.stations.len()).filter(|pod| self.stations[*pod].since().is_some()).collect();
        let contested = speakers.len() > 1;
        self.request(now);
        for pod in speakers {
            let Station { peer, .. } = &self.stations[pod];
            if peer.should_call(now) {
                self.call(pod, now);
            } else if contested
                && self.stations[pod].kernel.voice() != Voice::Free
                && let Some(since) = self.stations[pod].since()
            {
                // At any time until the next: uploads and requests know nothing of each other.
                let wait = self.rng.random_range(Duration::ZERO..self.road.beat);
                self.queue(now + wait, Due::Answer { pod, since });
            }
            let Station { peer, keepalive, .. } = &self.stations[pod];
            if !keepalive.is_zero() && now >= peer.said + *keepalive {
                self.say(pod, Content::Keepalive, now);
            }
        }
        self.beat_at(now + if contested { self.road.beat } else { CALM_BEAT });
    }

    fn index(&mut self, of: Option<usize>) -> u32 {
        let index = u32::try_from(self.indexes.len()).unwrap() + 1;
        self.indexes.insert(index, of);
        index
    }

    fn pod_at(&self, address_of: SocketAddrV4) -> Option<usize> {
        (0..self.stations.len()).find(|pod| address(*pod) == *address_of.ip())
    }

    /// How long a message takes; `None`: for ever.
    fn way(&mut self) -> Option<Duration> {
        let way = self.road.round_trip / 2;
        let takes = self.rng.random_range(way.mul_f64(0.7)..=way);
        (!self.rng.random_bool(self.road.loss)).then_some(takes)
    }

    // The pods.

    fn call(&mut self, pod: usize, now: Duration) {
        let index = self.index(Some(pod));
        let message = self.stations[pod].peer.call(index, now);
        self.leaves(pod, message, now);
    }

    fn say(&mut self, pod: usize, content: Content, now: Duration) {
        if self.stations[pod].since().is_some()
            && let Some(message) = self.stations[pod].peer.say(content, now)
        {
            self.leaves(pod, message, now);
        }
    }

    /// Through the fence, and onto the road.
    fn leaves(&mut self, pod: usize, message: Message, now: Duration) {
        let Station { kernel, port, heard, foreign, .. } = &self.stations[pod];
        let from = SocketAddrV4::new(address(pod), *port);
        let mut packet = Packet::new(from, HUB, &message.bytes());
        if !kernel.lets(Hook::Output, &mut packet) {
            return;
        }
        // What is defused says nothing.
        let Some(message) = Message::read(packet.message()) else { return };
        if kernel.voice() != Voice::Free {
            let said = match message {
                Message::Call { .. } => Said::Call,
                Message::Response { .. } => Said::Response,
                Message::Data { content: Content::Keepalive, .. } => Said::Keepalive,
                Message::Data { .. } => Said::Data,
            };
            self.scribe.write(What::Left { pod, said, heard: *heard, foreign: *foreign });
        }
        if let Some(way) = self.way() {
            self.queue(now + way, Due::AtHub { from, bytes: packet.message().to_vec() });
        }
    }

    fn at_pod(&mut self, to: SocketAddrV4, bytes: &[u8], now: Duration) {
        let Some(pod) = self.pod_at(to) else { return };
        let Some(message) = Message::read(bytes) else { return };
        self.listen(pod, message, now);
        let Station { kernel, port, .. } = &self.stations[pod];
        let mut packet = Packet::new(HUB, to, bytes);
        if *port != to.port() || !kernel.lets(Hook::Input, &mut packet) || self.stations[pod].since().is_none() {
            return;
        }
        match message {
            Message::Call { sender } => {
                let index = self.index(Some(pod));
                if let Some(response) = self.stations[pod].peer.called(sender, index, now) {
                    self.leaves(pod, response, now);
                }
            }
            Message::Response { sender, receiver } => {
                if self.stations[pod].peer.answered(sender, receiver, now) {
                    self.stations[pod].kernel.shook_hands();
                    self.say(pod, Content::Keepalive, now);
                }
            }
            Message::Data { receiver, content } => {
                if self.stations[pod].peer.take(receiver, now) {
                    self.stations[pod].kernel.received(bytes.len());
                    if content == Content::Request {
                        self.serve(pod, now);
                    }
                }
            }
        }
    }

    /// Writes down for whom it is, whatever the fence makes of it.
    fn listen(&mut self, pod: usize, message: Message, now: Duration) {
        let own = match message {
            Message::Call { .. } => true,
            Message::Response { receiver, .. } | Message::Data { receiver, .. } => {
                self.indexes.get(&receiver) == Some(&Some(pod))
            }
        };
        let station = &mut self.stations[pod];
        let response = matches!(message, Message::Response { .. });
        if own {
            station.heard = Some(now);
        } else if response && station.strayed.is_none_or(|last| last + STRAYS < now) {
            station.strayed = Some(now);
        } else if station.kernel.voice() != Voice::Free {
            station.foreign = Some(now);
        }
    }

    /// A backend answers, by way of the pod.
    fn serve(&mut self, pod: usize, now: Duration) {
        let station = &self.stations[pod];
        let Some(since) = station.since().filter(|_| station.kernel.serves()) else { return };
        if self.rng.random_bool(self.road.slow) {
            let takes = self.rng.random_range(0..10_000);
            self.queue(now + ms(takes), Due::Answer { pod, since });
        } else {
            self.say(pod, Content::Answer, now);
        }
    }

    // The hub.

    fn request(&mut self, now: Duration) {
        if self.hub.away {
            return;
        }
        if self.hub.endpoint.is_some() && self.hub.peer.should_call(now) {
            let index = self.index(None);
            let call = self.hub.peer.call(index, now);
            self.hub_sends(call, now);
        } else if let Some(request) = self.hub.peer.say(Content::Request, now) {
            self.hub_sends(request, now);
        }
    }

    fn at_hub(&mut self, from: SocketAddrV4, bytes: &[u8], now: Duration) {
        if self.hub.away {
            return;
        }
        let peer = &mut self.hub.peer;
        let (authentic, answer) = match Message::read(bytes) {
            Some(Message::Call { sender }) => {
                let index = self.index(None);
                let response = self.hub.peer.called(sender, index, now);
                (response.is_some(), response)
            }
            Some(Message::Response { sender, receiver }) => {
                let authentic = peer.answered(sender, receiver, now);
                (authentic, peer.say(Content::Keepalive, now).filter(|_| authentic))
            }
            Some(Message::Data { receiver, content }) => {
                let authentic = peer.take(receiver, now);
                let asks = authentic && content == Content::Request;
                (authentic, if asks { peer.say(Content::Answer, now) } else { None })
            }
            None => (false, None),
        };
        if authentic {
            self.hub.endpoint = Some(from);
            self.look();
        }
        if let Some(answer) = answer {
            self.hub_sends(answer, now);
        }
    }

    fn hub_sends(&mut self, message: Message, now: Duration) {
        if let Some(to) = self.hub.endpoint
            && let Some(way) = self.way()
        {
            self.queue(now + way, Due::AtPod { to, bytes: message.bytes() });
        }
    }

    /// Writes down what changed at the hub.
    fn look(&mut self) {
        let endpoint = self.hub.endpoint.and_then(|at| self.pod_at(at));
        let session = self.hub.peer.theirs().and_then(|index| self.indexes.get(&index).copied().flatten());
        let state = HubState { endpoint, session };
        if std::mem::replace(&mut self.hub.seen, state) != state {
            self.scribe.write(What::Hub(state));
        }
    }
}

impl Station {
    /// When its peer was given to the link, if that is still there.
    fn since(&self) -> Option<Duration> {
        self.since.filter(|since| self.kernel.session() == Some(*since))
    }
}

fn address(pod: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, u8::try_from(pod).unwrap() + 1)
}
