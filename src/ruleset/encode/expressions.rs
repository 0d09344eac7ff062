//! Rules' expressions as netlink attributes.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup,
    Meta as MetaAttribute, MetaKey, Operator, Payload, Register, Verdict as Code, VerdictAttribute,
};

use super::sets::milliseconds;
use super::{long, number, text};
use crate::ruleset::model::{Ct, Expr, Header, Meta, Refusal, Reg, Verdict};

pub(super) fn expression(expr: &Expr) -> ListAttribute<ExpressionAttribute> {
    match expr {
        Expr::Meta(key, to) => Expressions::Meta(vec![
            MetaAttribute::Key(meta_key(*key)),
            MetaAttribute::DestinationRegister(register(*to)),
        ])
        .into(),
        Expr::SetMark(from) => {
            Expressions::Meta(vec![MetaAttribute::Key(MetaKey::Mark), MetaAttribute::SourceRegister(register(*from))])
                .into()
        }
        Expr::Ct(key, to) => other("ct", vec![number(2, ct_key(*key)), reg(1, *to)]),
        Expr::SetCtMark(from) => other("ct", vec![number(2, ct_key(Ct::Mark)), reg(4, *from)]),
        Expr::Payload { base, offset, len, to } => {
            let base = match base {
                Header::Network => 1,
                Header::Transport => 2,
            };
            Expressions::Payload(vec![
                Payload::DestinationRegister(register(*to)),
                Payload::Base(base),
                Payload::Offset(*offset),
                Payload::Len(*len),
            ])
            .into()
        }
        Expr::Bits { reg, mask, xor } => Expressions::Bitwise(vec![
            Bitwise::SourceRegister(register(*reg)),
            Bitwise::DestinationRegister(register(*reg)),
            Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
            Bitwise::Mask(DataAttribute::Value(mask.clone())),
            Bitwise::Xor(DataAttribute::Value(xor.clone())),
        ])
        .into(),
        Expr::Equal(from, bytes) => compare(*from, Operator::Equal, bytes),
        Expr::Differ(from, bytes) => compare(*from, Operator::NotEqual, bytes),
        Expr::Load(to, bytes) => Expressions::Immediate(vec![
            Immediate::DestinationRegister(register(*to)),
            Immediate::Data(DataAttribute::Value(bytes.clone())),
        ])
        .into(),
        Expr::Contains { set, key } => lookup(set, *key, None),
        Expr::Learn { set, key, timeout } => {
            const NFT_DYNSET_OP_UPDATE: u32 = 1;
            let mut attributes = vec![text(1, set), number(3, NFT_DYNSET_OP_UPDATE), reg(4, *key)];
            attributes.extend(timeout.map(|timeout| long(6, milliseconds(timeout))));
            other("dynset", attributes)
        }
        Expr::Lookup { map, key, to } => lookup(map, *key, Some(register(*to))),
        Expr::VerdictMap { map, key } => lookup(map, *key, Some(Register::Verdict)),
        Expr::Hash { from, len, to, modulus, seed, offset } => other(
            "hash",
            vec![
                reg(1, *from),
                reg(2, *to),
                number(3, *len),
                number(4, *modulus),
                number(5, *seed),
                number(6, *offset),
                number(7, 0),
            ],
        ),
        Expr::Dnat { address, port } => {
            const NFT_NAT_DNAT: u32 = 1;
            const NFPROTO_IPV4: u32 = 2;
            other("nat", vec![number(1, NFT_NAT_DNAT), number(2, NFPROTO_IPV4), reg(3, *address), reg(5, *port)])
        }
        Expr::Masquerade => other("masq", Vec::new()),
        Expr::Reject(refusal) => {
            // Type, then code; code 1 of the abstract type 2 is "port unreachable" in both families.
            let (kind, code) = match refusal {
                Refusal::TcpReset => (1, 0),
                Refusal::PortUnreachable => (2, 1),
            };
            other("reject", vec![number(1, kind), DefaultNla::new(2, vec![code])])
        }
        Expr::LowerMss(from) => {
            const TCPOPT_MSS: u8 = 2;
            const NFT_EXTHDR_OP_TCPOPT: u32 = 1;
            other(
                "exthdr",
                vec![
                    DefaultNla::new(2, vec![TCPOPT_MSS]),
                    number(3, 2),
                    number(4, 2),
                    number(6, NFT_EXTHDR_OP_TCPOPT),
                    reg(7, *from),
                ],
            )
        }
        Expr::WriteUdp { offset, len, from } => {
            const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
            const NFT_PAYLOAD_CSUM_INET: u32 = 1;
            const CHECKSUM: u32 = 6;
            let (csum_type, csum_offset) = (number(6, NFT_PAYLOAD_CSUM_INET), number(7, CHECKSUM));
            let place = vec![number(2, NFT_PAYLOAD_TRANSPORT_HEADER), number(3, *offset), number(4, *len)];
            other("payload", [place, vec![reg(5, *from), csum_type, csum_offset]].concat())
        }
        Expr::Limit { packets, seconds } => {
            // One token at most: an unused one is no credit for a burst.
            const BURST: u32 = 1;
            const NFT_LIMIT_PKTS: u32 = 0;
            other("limit", vec![long(1, *packets), long(2, *seconds), number(3, BURST), number(4, NFT_LIMIT_PKTS)])
        }
        Expr::Count(name) => {
            const NFT_OBJECT_COUNTER: u32 = 1;
            other("objref", vec![number(1, NFT_OBJECT_COUNTER), text(2, name)])
        }
        Expr::Verdict(verdict) => Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(verdict_data(verdict)),
        ])
        .into(),
    }
}

pub(super) fn verdict_data(verdict: &Verdict) -> DataAttribute {
    const NF_DROP: u32 = 0;
    const NF_ACCEPT: u32 = 1;
    let (code, chain) = match verdict {
        Verdict::Drop => (Code::Other(NF_DROP), None),
        Verdict::Accept => (Code::Other(NF_ACCEPT), None),
        Verdict::Return => (Code::Return, None),
        Verdict::Jump(chain) => (Code::Jump, Some(chain)),
        Verdict::Goto(chain) => (Code::Goto, Some(chain)),
    };
    let mut attributes = vec![VerdictAttribute::Code(code)];
    attributes.extend(chain.map(|chain| VerdictAttribute::Chain(chain.clone())));
    DataAttribute::Verdict(attributes)
}

fn compare(from: Reg, operator: Operator, bytes: &[u8]) -> ListAttribute<ExpressionAttribute> {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(register(from)),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(bytes.to_vec())),
    ])
    .into()
}

fn lookup(set: &str, key: Reg, to: Option<Register>) -> ListAttribute<ExpressionAttribute> {
    let mut attributes = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(register(key))];
    attributes.extend(to.map(Lookup::DestinationRegister));
    Expressions::Lookup(attributes).into()
}

fn other(kind: &str, attributes: Vec<DefaultNla>) -> ListAttribute<ExpressionAttribute> {
    Expressions::Other { expression_type: kind.to_owned(), attributes }.into()
}

fn meta_key(key: Meta) -> MetaKey {
    match key {
        Meta::Family => MetaKey::Nfproto,
        Meta::Protocol => MetaKey::L4Proto,
        Meta::InName => MetaKey::Iifname,
        Meta::OutName => MetaKey::Oifname,
        Meta::Mark => MetaKey::Mark,
    }
}

fn ct_key(key: Ct) -> u32 {
    match key {
        Ct::State => 0,
        Ct::Direction => 1,
        Ct::Status => 2,
        Ct::Mark => 3,
    }
}

/// `NFT_REG32_00` is 8.
fn register_number(reg: Reg) -> u32 {
    8 + u32::from(reg.0)
}

fn register(reg: Reg) -> Register {
    Register::Other(register_number(reg))
}

fn reg(kind: u16, reg: Reg) -> DefaultNla {
    number(kind, register_number(reg))
}
