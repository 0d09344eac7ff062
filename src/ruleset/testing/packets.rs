//! What the rules of a table in memory do with a packet. It knows the words that the fence is made of, and no others.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use super::{FakeFirewall, Kernel};
use crate::clock::Moment;
use crate::ruleset::model::{Chain, Datatype, Expr, Header, Hook, Meta, Rule, Table, Verdict};

/// Of UDP.
const HEADER: usize = 8;

/// A UDP packet over IPv4, as far as rules look at it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    network: [u8; 20],
    transport: Vec<u8>,
}

impl Packet {
    /// One message.
    pub fn new(from: SocketAddrV4, to: SocketAddrV4, message: &[u8]) -> Self {
        let mut network = [0; 20];
        network[12..16].copy_from_slice(&from.ip().octets());
        network[16..20].copy_from_slice(&to.ip().octets());
        let length = u16::try_from(HEADER + message.len()).unwrap_or(u16::MAX);
        let mut transport = Vec::with_capacity(HEADER + message.len());
        for word in [from.port(), to.port(), length, 0] {
            transport.extend(word.to_be_bytes());
        }
        transport.extend(message);
        Self { network, transport }
    }

    /// What it carries.
    pub fn message(&self) -> &[u8] {
        self.transport.get(HEADER..).unwrap_or_default()
    }

    fn bytes(&self, base: Header, offset: u32, len: u32) -> Option<&[u8]> {
        let header = match base {
            Header::Network => &self.network[..],
            Header::Transport => &self.transport[..],
        };
        header.get(offset as usize..(offset + len) as usize)
    }
}

impl FakeFirewall {
    /// Sends the packet through the base chains that this table has at this hook: do they let it pass? They may change it,
    /// and learn from it. Where no such table is, all pass.
    pub fn passes(&self, table: &str, hook: Hook, packet: &mut Packet) -> bool {
        let now = self.clock.now();
        let mut kernel = self.kernel();
        let Some(table) = kernel.tables.get(table).cloned() else { return true };
        let at_hook = |chain: &&Chain| chain.base.is_some_and(|base| base.hook == hook);
        let mut walk = Walk { kernel: &mut kernel, table: Arc::clone(&table), packet, registers: [0; 64], now };
        table.chains.iter().filter(at_hook).all(|chain| walk.chain(&chain.name) != Fate::Dropped)
    }
}

/// What became of a packet in a chain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It goes on where the chain was entered.
    GoesOn,
    Accepted,
    Dropped,
}

struct Walk<'a> {
    kernel: &'a mut Kernel,
    table: Arc<Table>,
    packet: &'a mut Packet,
    registers: [u8; 64],
    now: Moment,
}

impl Walk<'_> {
    fn chain(&mut self, name: &str) -> Fate {
        let table = Arc::clone(&self.table);
        let Some(chain) = table.chains.iter().find(|chain| chain.name == name) else {
            unreachable!("no chain {name}: the kernel refuses a rule that names it")
        };
        for (place, rule) in chain.rules.iter().enumerate() {
            let fate = match self.rule(rule, (name, place)) {
                None => continue,
                Some(Verdict::Accept) => Fate::Accepted,
                Some(Verdict::Drop) => Fate::Dropped,
                Some(Verdict::Return) => Fate::GoesOn,
                Some(Verdict::Goto(next)) => self.chain(next),
                Some(Verdict::Jump(next)) => match self.chain(next) {
                    Fate::GoesOn => continue,
                    over => over,
                },
            };
            return fate;
        }
        Fate::GoesOn
    }

    /// The verdict, if the rule comes to one. `at`: chain and place in it.
    fn rule<'r>(&mut self, rule: &'r Rule, at: (&str, usize)) -> Option<&'r Verdict> {
        for expr in rule {
            if let Expr::Verdict(verdict) = expr {
                return Some(verdict);
            }
            if !self.holds(expr, at) {
                return None;
            }
        }
        None
    }

    /// Does the expression; does the rule go on after it?
    fn holds(&mut self, expr: &Expr, at: (&str, usize)) -> bool {
        match expr {
            Expr::Meta(Meta::Family, to) => self.load(to.0, &[2]),
            Expr::Meta(Meta::Protocol, to) => self.load(to.0, &[17]),
            Expr::Load(to, bytes) => self.load(to.0, bytes),
            Expr::Payload { base, offset, len, to } => {
                let Some(bytes) = self.packet.bytes(*base, *offset, *len).map(<[u8]>::to_vec) else { return false };
                self.load(to.0, &bytes)
            }
            Expr::Equal(reg, bytes) => self.register(reg.0, bytes.len()) == bytes.as_slice(),
            Expr::Contains { set, key } => {
                let key = self.key(set, key.0);
                self.kernel
                    .elements(&self.table.name, set)
                    .any(|(element, end)| element.key == key && end.is_none_or(|end| self.now < end))
            }
            Expr::Learn { set, key, timeout } => {
                let key = self.key(set, key.0);
                self.kernel.learn(&self.table.name, set, &key, *timeout, self.now)
            }
            Expr::WriteUdp { offset, len, from } => {
                let bytes = self.register(from.0, *len as usize).to_vec();
                let to = *offset as usize..(offset + len) as usize;
                self.packet.transport.get_mut(to).map(|place| place.copy_from_slice(&bytes)).is_some()
            }
            Expr::Limit { packets, seconds } => self.limit(*packets, *seconds, at),
            Expr::Count(counter) => {
                self.kernel.count(&self.table.name, counter, 1);
                true
            }
            other => unreachable!("no rule of a fence has {other:?}"),
        }
    }

    fn load(&mut self, to: u8, bytes: &[u8]) -> bool {
        let from = usize::from(to) * 4;
        self.registers[from..from + bytes.len()].copy_from_slice(bytes);
        true
    }

    fn register(&self, from: u8, len: usize) -> &[u8] {
        let from = usize::from(from) * 4;
        &self.registers[from..from + len]
    }

    /// As the set has its keys, which are of one part.
    fn key(&self, set: &str, from: u8) -> Vec<u8> {
        let parts = self.table.set(set).map(|set| set.key.as_slice());
        let Some(&[part]) = parts else { unreachable!("no set {set} with keys of one part") };
        self.register(from, Datatype::bytes(part) as usize).to_vec()
    }

    /// One packet each so many seconds, and none saved up (`burst 1`).
    fn limit(&mut self, packets: u64, seconds: u64, (chain, place): (&str, usize)) -> bool {
        let every = Duration::from_secs(seconds).div_f64(packets as f64);
        let last = self.kernel.limits.get(&self.table.name).and_then(|of| of.get(&(chain.to_owned(), place)));
        let passes = last.is_none_or(|last| *last + every <= self.now);
        if passes {
            let limits = self.kernel.limits.entry(self.table.name.clone()).or_default();
            limits.insert((chain.to_owned(), place), self.now);
        }
        passes
    }
}
