//! nftables as plain data: what a table holds. Pure.
//!
//! Only the words that wirevip's tables need. Bytes are as the kernel wants them in its registers: addresses and ports
//! in network order, all that the kernel computes itself (marks, hashes, conntrack state) in the machine's own order.

use std::collections::BTreeMap;
use std::time::Duration;

/// A whole table of family `inet`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    /// Its name, unique in the network namespace.
    pub name: String,
    /// Names of its counters.
    pub counters: Vec<String>,
    /// Sets and maps.
    pub sets: Vec<Set>,
    /// Chains. A rule or an element may name any of them, in any order.
    pub chains: Vec<Chain>,
}

/// A set, a map or a verdict map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// Its name within the table; no word of the nft language, else `nft` cannot read it back.
    pub name: String,
    /// Parts of the key, in order, each padded to four bytes.
    pub key: Vec<Datatype>,
    /// What a key leads to.
    pub value: SetValue,
    /// Elements go by themselves: the timeout of those that name none.
    pub timeout: Option<Duration>,
    /// Rules add to it ([`Expr::Learn`]), up to so many elements.
    pub learns: Option<u32>,
    /// What is in it.
    pub elements: Vec<Element>,
}

/// What the keys of a set lead to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SetValue {
    /// Nothing: a plain set.
    Nothing,
    /// A verdict.
    Verdict,
    /// Data of these types.
    Data(Vec<Datatype>),
}

/// Types that nft knows, for its listing, and their length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Datatype {
    /// IPv4 address, network order.
    Ipv4,
    /// IPv6 address, network order.
    Ipv6,
    /// IP protocol, one byte.
    Protocol,
    /// Port, network order.
    Port,
    /// A 32-bit number in the machine's own order.
    Number,
}

/// One element of a set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Element {
    /// All parts, each padded to four bytes.
    pub key: Vec<u8>,
    /// Where it leads, in a map.
    pub value: Option<ElementValue>,
    /// Goes by itself after this time, whole milliseconds.
    pub timeout: Option<Duration>,
}

/// Where an element of a map leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ElementValue {
    /// A verdict.
    Verdict(Verdict),
    /// Data, each part padded to four bytes.
    Data(Vec<u8>),
}

/// A chain of rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Its name within the table.
    pub name: String,
    /// Where packets enter it; `None`: only by a verdict of another chain. Policy is always accept.
    pub base: Option<Base>,
    /// Rules, in order.
    pub rules: Vec<Rule>,
}

/// Expressions, all of which must hold, in order.
pub type Rule = Vec<Expr>;

/// How a base chain is hooked in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Base {
    /// Filter, or nat: which sees only the first packet of a flow.
    pub kind: ChainKind,
    /// Where.
    pub hook: Hook,
    /// Lower comes earlier; conntrack −200, destination NAT −100, source NAT 100.
    pub priority: i32,
}

/// Type of a base chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each flow.
    Nat,
}

/// Hooks of family `inet`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To a socket of this namespace.
    Input,
    /// Through this namespace.
    Forward,
    /// From a socket of this namespace.
    Output,
    /// On the way out.
    Postrouting,
}

/// One of the kernel's sixteen 32-bit registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reg(pub u8);

/// What a rule may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expr {
    /// Loads a property of the packet.
    Meta(Meta, Reg),
    /// Writes the packet mark.
    SetMark(Reg),
    /// Loads a property of the packet's flow; the rule ends here for a packet that has none.
    Ct(Ct, Reg),
    /// Writes the flow's mark.
    SetCtMark(Reg),
    /// Loads header bytes; the rule ends here for a packet too short.
    Payload {
        /// Which header.
        base: Header,
        /// From here.
        offset: u32,
        /// So many bytes.
        len: u32,
        /// To here.
        to: Reg,
    },
    /// `reg = (reg & mask) ^ xor`, both of one length.
    Bits {
        /// In place.
        reg: Reg,
        /// And.
        mask: Vec<u8>,
        /// Exclusive or.
        xor: Vec<u8>,
    },
    /// Goes on if the register equals the bytes.
    Equal(Reg, Vec<u8>),
    /// Goes on if the register differs from the bytes.
    Differ(Reg, Vec<u8>),
    /// Loads bytes.
    Load(Reg, Vec<u8>),
    /// Goes on if the set has the key.
    Contains {
        /// Name of the set.
        set: String,
        /// First register of the key.
        key: Reg,
    },
    /// Adds the key to a set that learns, or begins its timeout anew; goes on. The rule ends here if the set is full.
    Learn {
        /// Name of the set.
        set: String,
        /// First register of the key.
        key: Reg,
        /// In place of the set's own timeout; whole milliseconds.
        timeout: Option<Duration>,
    },
    /// Loads what the map holds for the key; the rule ends here if nothing.
    Lookup {
        /// Name of the map.
        map: String,
        /// First register of the key.
        key: Reg,
        /// First register of the value.
        to: Reg,
    },
    /// Gives the verdict that the map holds for the key; goes on if none.
    VerdictMap {
        /// Name of the map.
        map: String,
        /// First register of the key.
        key: Reg,
    },
    /// `to = offset + jhash(from, len) scaled to 0..modulus`, in the machine's own order.
    Hash {
        /// First register hashed.
        from: Reg,
        /// Bytes hashed, a multiple of four.
        len: u32,
        /// Result.
        to: Reg,
        /// At least 1.
        modulus: u32,
        /// Fixed, so that every pod hashes alike.
        seed: u32,
        /// Added to the result.
        offset: u32,
    },
    /// Sends the flow to this address and port. Nat chains of prerouting only.
    Dnat {
        /// Four bytes of address.
        address: Reg,
        /// Two bytes of port.
        port: Reg,
    },
    /// Gives the flow the address of the interface it leaves by. Nat chains of postrouting only.
    Masquerade,
    /// Answers with a refusal and drops. Not before Linux 5.9 in prerouting.
    Reject(Refusal),
    /// Lowers the TCP option "maximum segment size" to the two bytes in the register; never raises it.
    LowerMss(Reg),
    /// Overwrites bytes of a UDP packet and mends its checksum, if that is computed already.
    WriteUdp {
        /// From here, counted from the beginning of the UDP header.
        offset: u32,
        /// So many bytes.
        len: u32,
        /// From here.
        from: Reg,
    },
    /// Goes on for so many packets in so many whole seconds, evenly spaced; the rule ends here for the others.
    Limit {
        /// Packets.
        packets: u64,
        /// In this time.
        seconds: u64,
    },
    /// Counts the packet in a named counter.
    Count(String),
    /// Ends, jumps or goes.
    Verdict(Verdict),
}

/// Properties of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meta {
    /// One byte: 2 IPv4, 10 IPv6.
    Family,
    /// One byte, IP protocol.
    Protocol,
    /// Sixteen bytes, zero-padded.
    InName,
    /// Sixteen bytes, zero-padded.
    OutName,
    /// Four bytes, machine order.
    Mark,
}

/// Properties of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ct {
    /// Four bytes, machine order, one of [`state`]'s bits.
    State,
    /// One byte: 0 original, 1 reply.
    Direction,
    /// Four bytes, machine order, `IPS_…`.
    Status,
    /// Four bytes, machine order.
    Mark,
}

/// Bits of [`Ct::State`] (`NF_CT_STATE_BIT` in nf_conntrack_common.h).
pub mod state {
    /// Fits no flow, and starts none.
    pub const INVALID: u32 = 1;
    /// Of a flow that has seen both directions.
    pub const ESTABLISHED: u32 = 2;
    /// An error message or side connection of a known flow.
    pub const RELATED: u32 = 4;
    /// First of its flow.
    pub const NEW: u32 = 8;
}

/// Which header a payload is read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// IPv4 or IPv6.
    Network,
    /// TCP, UDP, SCTP, ICMP.
    Transport,
}

/// How a packet is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// RST. TCP only.
    TcpReset,
    /// ICMP or ICMPv6 "port unreachable".
    PortUnreachable,
}

/// Where a packet goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Out of this base chain.
    Accept,
    /// Nowhere.
    Drop,
    /// Back to the chain that jumped here.
    Return,
    /// Into a chain, and back.
    Jump(String),
    /// Into a chain, and not back.
    Goto(String),
}

impl Datatype {
    /// How many, without padding.
    pub const fn bytes(self) -> u32 {
        match self {
            Datatype::Ipv4 | Datatype::Number => 4,
            Datatype::Ipv6 => 16,
            Datatype::Protocol => 1,
            Datatype::Port => 2,
        }
    }
}

impl Table {
    /// The same table with sets, elements and chains in the order of their names and keys, so that two can be compared
    /// in one pass.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.sets.sort_by(|a, b| a.name.cmp(&b.name));
        self.chains.sort_by(|a, b| a.name.cmp(&b.name));
        for set in &mut self.sets {
            set.elements.sort_by(|a, b| a.key.cmp(&b.key));
        }
        self
    }

    /// The set of this name.
    pub fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// Chains, rules and lasting elements in it: what is counted to see whether an outsider took something away.
    pub fn census(&self) -> Census {
        Census {
            chains: self.chains.len(),
            rules: self.chains.iter().map(|chain| chain.rules.len()).sum(),
            elements: self
                .sets
                .iter()
                .filter(|set| set.timeout.is_none())
                .map(|set| (set.name.clone(), set.elements.len()))
                .collect(),
        }
    }
}

/// How much a table holds. Elements of sets with a timeout are not counted: they come and go.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// Chains.
    pub chains: usize,
    /// Rules of all chains.
    pub rules: usize,
    /// Elements of each set without timeout, by its name.
    pub elements: BTreeMap<String, usize>,
}
