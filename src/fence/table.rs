//! The table of one tunnel's fence. Pure.
//!
//! Out: our own indexes and the hub's address are learned from handshakes → leading: may pass → holding: only what the
//! hub may be answered, see [`super`] → all else is stopped. In: leading or holding, everything may pass, and is told
//! apart on its way: for one of our own sessions, a call of the hub's, or for another.

use std::time::Duration;

use crate::ruleset::fence_table;
use crate::ruleset::model::{
    Base, Chain, ChainKind, Datatype, Expr, Header, Hook, Reg, Rule, Set, SetValue, Table, Verdict,
};
use crate::ruleset::phrases::{self as say, rule};
use crate::secret::TunnelName;

/// How long the fence remembers what. The defaults are wirevip's; tests that wait for the end of one shorten it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// So long after it was heard the hub may be answered: answers may be slow.
    pub heard: Duration,
    /// So long after it spoke to another the hub gets no answer.
    pub silenced: Duration,
    /// So many packets that may not leave are defused in so many seconds, so that a NAT does not forget us.
    pub defused: (u64, u64),
}

impl Default for Times {
    fn default() -> Self {
        Self { heard: Duration::from_secs(60), silenced: Duration::from_secs(2), defused: (3, 60) }
    }
}

/// Ports that may speak and be heard freely: ours, while the tenure lasts.
pub(crate) const LEAD: &str = "lead";
/// Ports that may answer when they do not lead: ours, while that is allowed.
pub(crate) const HOLD: &str = "hold";
/// Receiver indexes of our own sessions.
const MINE: &str = "mine";
/// Whom we sent handshakes to.
const HUB: &str = "hub";
/// Who spoke to us last, not to another.
pub(super) const HEARD: &str = "heard";
/// Who spoke to another while we held.
pub(super) const FOREIGN: &str = "foreign";
/// Counter beside the sets of that name: packets for another while we led.
pub(super) const COUNTED: &str = "foreign";
pub(super) const DROPPED: &str = "dropped";
pub(super) const DEFUSED: &str = "defused";

const SPEAK: &str = "speak";
const LEARN: &str = "learn";
const HOLDING: &str = "holding";
const ANSWER: &str = "answer";
const DEFUSE: &str = "defuse";
const QUIET: &str = "quiet";
const HEAR: &str = "hear";
const LISTEN: &str = "listen";
const OURS: &str = "ours";
const CALLED: &str = "called";
const OTHER: &str = "other";
const STRANGE: &str = "strange";

/// Timeout of elements of [`LEAD`] that name none. None of ours does; a hand that adds one must not open the fence for
/// good.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any session: 180 s after its handshake WireGuard neither sends nor takes anything in it.
const SESSION: Duration = Duration::from_secs(300);
/// Each handshake of ours begins it anew, also one that may not leave. A hub that was forgotten is known again by our
/// first response.
const DAY: Duration = Duration::from_secs(86_400);
/// Far more handshakes than the fastest kicking begins in [`SESSION`].
const MOST: u32 = 4096;
/// How soon a key is forgotten that should go at once: below a jiffy some kernels take the set's own timeout. Rules can
/// delete since Linux 5.4, but until 2023 what they deleted went on taking up room in the set.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Types of messages, their first byte (WireGuard white paper, 5.4), and where in them an index stands.
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 4;
const SENDER: u32 = 4;
const RECEIVERS: [(u8, u32); 2] = [(DATA, 4), (RESPONSE, 8)];
/// So many responses for another, in so many seconds, do not silence who holds: what answers a successor's first handshake
/// comes to us if we spoke in that instant, and until there is an answer that reaches it the session is ours. If it
/// happens again we speak too often for the successor ever to be answered.
const STRAY_RESPONSES: (u64, u64) = (1, 2);
/// No message begins so; every WireGuard throws it away before it looks at anything else.
const NO_TYPE: u8 = 0;
/// Data without content: header and tag.
const KEEPALIVE: u16 = 32;

const R0: Reg = Reg(0);

/// Before conntrack (−200), so that what is fenced off costs nothing and leaves nothing.
const RAW: i32 = -300;

/// One address family, and where its header has the addresses.
struct Family {
    is: fn() -> Vec<Expr>,
    address: Datatype,
    source: u32,
    destination: u32,
    suffix: char,
}

const FAMILIES: [Family; 2] = [
    Family { is: say::ipv4, address: Datatype::Ipv4, source: 12, destination: 16, suffix: '4' },
    Family { is: say::ipv6, address: Datatype::Ipv6, source: 8, destination: 24, suffix: '6' },
];

impl Family {
    fn from(&self) -> Vec<Expr> {
        self.at(self.source)
    }

    fn to(&self) -> Vec<Expr> {
        self.at(self.destination)
    }

    fn at(&self, offset: u32) -> Vec<Expr> {
        let address = Expr::Payload { base: Header::Network, offset, len: self.address.bytes(), to: R0 };
        [(self.is)(), vec![address]].concat()
    }

    fn set(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }

    fn among(&self, set: &str) -> Vec<Expr> {
        among(&self.set(set))
    }

    fn learn(&self, set: &str) -> Vec<Expr> {
        learn(&self.set(set), None)
    }
}

/// Names of a set of addresses, one a family.
pub(super) fn both(set: &str) -> [String; 2] {
    FAMILIES.map(|family| family.set(set))
}

/// The table as it should be.
pub(super) fn render(tunnel: &TunnelName, port: u16, times: &Times) -> Table {
    Table {
        name: fence_table(tunnel),
        counters: [DROPPED, COUNTED, DEFUSED].map(str::to_owned).to_vec(),
        sets: sets(times),
        chains: vec![
            base("speaking", Hook::Output, vec![rule([say::udp_from(port), jump(SPEAK)])]),
            inner(SPEAK, speak()),
            inner(LEARN, learn_session()),
            inner(HOLDING, vec![begun(RESPONSE, ANSWER), begun(DATA, ANSWER), goto(DEFUSE)]),
            inner(ANSWER, answer()),
            inner(DEFUSE, defuse()),
            inner(QUIET, vec![quiet(times.defused)]),
            base("listening", Hook::Input, vec![rule([say::udp_to(port), jump(HEAR)])]),
            inner(HEAR, hear()),
            inner(LISTEN, listen()),
            inner(OURS, ours()),
            inner(CALLED, hubs_only(OURS)),
            inner(OTHER, hubs_only(STRANGE)),
            inner(STRANGE, strange()),
        ],
    }
}

fn sets(times: &Times) -> Vec<Set> {
    let set = |name: &str, key, timeout, learns| Set {
        name: name.to_owned(),
        key: vec![key],
        value: SetValue::Nothing,
        timeout,
        learns,
        elements: Vec::new(),
    };
    let learned = |name: &str, timeout| {
        FAMILIES.map(|family| set(&family.set(name), family.address, Some(timeout), Some(MOST))).to_vec()
    };
    [
        vec![
            set(LEAD, Datatype::Port, Some(DEFAULT_TIMEOUT), None),
            set(HOLD, Datatype::Port, None, None),
            set(MINE, Datatype::Number, Some(SESSION), Some(MOST)),
        ],
        learned(HUB, DAY),
        learned(HEARD, times.heard),
        learned(FOREIGN, times.silenced),
    ]
    .concat()
}

fn speak() -> Vec<Rule> {
    vec![
        begun(INITIATION, LEARN),
        begun(RESPONSE, LEARN),
        rule([port_among(SOURCE_PORT, LEAD), say::verdict(Verdict::Return)]),
        rule([port_among(SOURCE_PORT, HOLD), goto(HOLDING)]),
        stop(),
    ]
}

/// From a handshake of ours: the index that the hub will send to, and the hub's address. Also from one that may not
/// leave, whose index nobody will ever use.
fn learn_session() -> Vec<Rule> {
    let hubs = FAMILIES.iter().map(|family| rule([family.to(), family.learn(HUB)]));
    [rule([vec![say::udp_word(SENDER)], learn(MINE, None)])].into_iter().chain(hubs).collect()
}

fn answer() -> Vec<Rule> {
    let silenced = FAMILIES.iter().map(|family| rule([family.to(), family.among(FOREIGN), goto(DEFUSE)]));
    let answered =
        FAMILIES.iter().map(|family| rule([family.to(), family.among(HEARD), say::verdict(Verdict::Accept)]));
    silenced.chain(answered).collect()
}

/// Handshakes and keepalives only: of several messages that the kernel has yet to part, the first alone would be
/// defused, and the others leave as they are.
fn defuse() -> Vec<Rule> {
    vec![begun(INITIATION, QUIET), rule([say::udp_holds(KEEPALIVE), jump(QUIET)]), stop()]
}

fn quiet((packets, seconds): (u64, u64)) -> Rule {
    let limit = vec![Expr::Limit { packets, seconds }];
    rule([limit, say::udp_begin_with(NO_TYPE), count(DEFUSED), say::verdict(Verdict::Accept)])
}

fn hear() -> Vec<Rule> {
    let listened = |set| rule([port_among(DESTINATION_PORT, set), goto(LISTEN)]);
    vec![listened(LEAD), listened(HOLD), stop()]
}

/// One too short to have an index passes untold, and WireGuard throws it away.
fn listen() -> Vec<Rule> {
    let index = |(kind, receiver)| [say::udp_begins(kind), vec![say::udp_word(receiver)]].concat();
    let ours = RECEIVERS.map(|receiver| rule([index(receiver), among(MINE), goto(OURS)]));
    let others = RECEIVERS.map(|receiver| rule([index(receiver), goto(OTHER)]));
    let (packets, seconds) = STRAY_RESPONSES;
    let stray = rule([
        say::udp_begins(RESPONSE),
        port_among(DESTINATION_PORT, HOLD),
        vec![Expr::Limit { packets, seconds }],
        say::verdict(Verdict::Return),
    ]);
    ours.into_iter().chain([begun(INITIATION, CALLED), stray]).chain(others).collect()
}

/// Heard, unless the hub has just spoken to another: what comes to us so soon after that may be the last of a session
/// that ends. (A successor's first handshake may be answered to us, who spoke in between, while data is still ours.)
fn ours() -> Vec<Rule> {
    let silenced =
        FAMILIES.iter().map(|family| rule([family.from(), family.among(FOREIGN), say::verdict(Verdict::Return)]));
    silenced.chain(FAMILIES.iter().map(|family| rule([family.from(), family.learn(HEARD)]))).collect()
}

/// Others may call and speak as they like.
fn hubs_only(chain: &str) -> Vec<Rule> {
    FAMILIES.iter().map(|family| rule([family.from(), family.among(HUB), goto(chain)])).collect()
}

/// The hub speaks to another. Whoever holds falls silent. A leader goes on: it may be his predecessor's session, until
/// the hub has his first packet. But should he come to hold, he must have been heard after this.
fn strange() -> Vec<Rule> {
    let leads = || port_among(DESTINATION_PORT, LEAD);
    let unheard = FAMILIES
        .iter()
        .map(|family| rule([family.from(), family.among(HEARD), learn(&family.set(HEARD), Some(AT_ONCE))]));
    let silenced = FAMILIES.iter().map(|family| rule([family.from(), family.learn(FOREIGN)]));
    unheard.chain([rule([leads(), count(COUNTED), say::verdict(Verdict::Return)])]).chain(silenced).collect()
}

const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;

/// The port at this offset of the UDP header is in the set.
fn port_among(offset: u32, set: &str) -> Vec<Expr> {
    [vec![Expr::Payload { base: Header::Transport, offset, len: 2, to: R0 }], among(set)].concat()
}

fn among(set: &str) -> Vec<Expr> {
    vec![Expr::Contains { set: set.to_owned(), key: R0 }]
}

fn learn(set: &str, timeout: Option<Duration>) -> Vec<Expr> {
    vec![Expr::Learn { set: set.to_owned(), key: R0, timeout }]
}

fn count(counter: &str) -> Vec<Expr> {
    vec![Expr::Count(counter.to_owned())]
}

fn begun(kind: u8, chain: &str) -> Rule {
    rule([say::udp_begins(kind), jump(chain)])
}

fn stop() -> Rule {
    rule([count(DROPPED), say::verdict(Verdict::Drop)])
}

fn jump(chain: &str) -> Vec<Expr> {
    say::verdict(Verdict::Jump(chain.to_owned()))
}

fn goto(chain: &str) -> Vec<Expr> {
    say::verdict(Verdict::Goto(chain.to_owned()))
}

fn base(name: &str, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: Some(Base { kind: ChainKind::Filter, hook, priority: RAW }), rules }
}

fn inner(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: None, rules }
}
