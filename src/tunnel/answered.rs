//! A socket for rtnetlink on which every question is answered, if only by an error.
//!
//! The kernel may have no buffers for a question (ENOBUFS at once) or for an answer (ENOBUFS at the next read, and the
//! answer is lost). netlink-proto ends the connection for the first, for good, and its callers take the end for success:
//! a link that was never made, an empty list of links. For the second it waits for ever. So this socket puts the answer that is
//! missing in its place: an error that names the question.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use netlink_sys::{AsyncSocket, Socket, SocketAddr, TokioSocket};
use nix::errno::Errno;

/// struct nlmsghdr: length, kind and flags, sequence, port (linux/netlink.h).
const HEADER: usize = 16;
/// The largest datagram of the kernel's: netlink-proto's own bound, twice what the kernel makes.
const DATAGRAM: usize = 64 * 1024;

/// See the module's text.
pub(super) struct Answered {
    socket: TokioSocket,
    ledger: Mutex<Ledger>,
}

/// Which questions await an answer, and the answers that were put in.
#[derive(Default)]
struct Ledger {
    /// Headers, by sequence.
    open: BTreeMap<u32, [u8; HEADER]>,
    answers: VecDeque<Vec<u8>>,
    read: Vec<u8>,
}

impl Ledger {
    fn asked(&mut self, questions: &[u8]) {
        self.open.extend(headers(questions).map(|header| (sequence(&header), header)));
    }

    /// A datagram of the kernel's.
    fn heard(&mut self, datagram: &[u8]) {
        for header in headers(datagram).filter(is_last) {
            self.open.remove(&sequence(&header));
        }
    }

    /// These questions never reached the kernel.
    fn refused(&mut self, questions: &[u8], error: &io::Error) {
        self.answers.extend(headers(questions).map(|header| answer(&header, error)));
    }

    /// Some answer is lost, and nobody knows which: none of those that are awaited may be trusted to come.
    fn lost(&mut self, error: &io::Error) {
        let open = std::mem::take(&mut self.open);
        self.answers.extend(open.values().map(|header| answer(header, error)));
    }
}

impl Answered {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncSocket for Answered {
    fn socket_ref(&self) -> &Socket {
        self.socket.socket_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.socket.socket_mut()
    }

    fn new(protocol: isize) -> io::Result<Self> {
        Ok(Self { socket: TokioSocket::new(protocol)?, ledger: Mutex::default() })
    }

    fn poll_send(&self, cx: &mut Context<'_>, questions: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send_to(cx, questions, &SocketAddr::new(0, 0))
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, questions: &[u8], to: &SocketAddr) -> Poll<io::Result<usize>> {
        match ready!(self.socket.poll_send_to(cx, questions, to)) {
            Ok(sent) => {
                self.ledger().asked(questions);
                Poll::Ready(Ok(sent))
            }
            Err(error) => {
                self.ledger().refused(questions, &error);
                // There is something to read now, of which the kernel knows nothing.
                cx.waker().wake_by_ref();
                Poll::Ready(Ok(questions.len()))
            }
        }
    }

    fn poll_recv<B: BufMut>(&self, cx: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<()>> {
        self.poll_recv_from(cx, buffer).map_ok(drop)
    }

    fn poll_recv_from<B: BufMut>(&self, cx: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<SocketAddr>> {
        let ledger = &mut *self.ledger();
        loop {
            if let Some(answer) = ledger.answers.pop_front() {
                buffer.put_slice(&answer);
                return Poll::Ready(Ok(SocketAddr::new(0, 0)));
            }
            ledger.read.clear();
            ledger.read.reserve(DATAGRAM);
            match ready!(self.socket.poll_recv_from(cx, &mut ledger.read)) {
                Ok(from) => {
                    let datagram = std::mem::take(&mut ledger.read);
                    ledger.heard(&datagram);
                    buffer.put_slice(&datagram);
                    ledger.read = datagram;
                    return Poll::Ready(Ok(from));
                }
                // Told once; what is read next is as good as ever.
                Err(error) if is_short_of_memory(&error) => ledger.lost(&error),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_recv_from_full(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        let mut datagram = Vec::new();
        let from = ready!(self.poll_recv_from(cx, &mut datagram))?;
        Poll::Ready(Ok((datagram, from)))
    }
}

fn is_short_of_memory(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR))
}

/// The header of each message in a datagram, up to the first that is cut off.
fn headers(bytes: &[u8]) -> impl Iterator<Item = [u8; HEADER]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header: [u8; HEADER] = *rest.first_chunk()?;
        let length = u32::from_ne_bytes(*header.first_chunk()?) as usize;
        rest = rest.get(length.next_multiple_of(4).max(HEADER)..).unwrap_or_default();
        Some(header)
    })
}

fn sequence(header: &[u8; HEADER]) -> u32 {
    let [.., a, b, c, d, _, _, _, _] = *header;
    u32::from_ne_bytes([a, b, c, d])
}

/// Does a message end the answer to its question? All do but the parts of a list.
fn is_last(header: &[u8; HEADER]) -> bool {
    const NLMSG_DONE: u16 = 3;
    const NLM_F_MULTI: u16 = 2;
    let [_, _, _, _, kind_a, kind_b, flags_a, flags_b, ..] = *header;
    let (kind, flags) = (u16::from_ne_bytes([kind_a, kind_b]), u16::from_ne_bytes([flags_a, flags_b]));
    kind == NLMSG_DONE || flags & NLM_F_MULTI == 0
}

/// NLMSG_ERROR: a header of its own, the error's number below zero, the question's header.
fn answer(question: &[u8; HEADER], error: &io::Error) -> Vec<u8> {
    const NLMSG_ERROR: u16 = 2;
    let errno = error.raw_os_error().unwrap_or(Errno::EIO as i32);
    let length = (HEADER + size_of::<i32>() + HEADER) as u32;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(NLMSG_ERROR.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(sequence(question).to_ne_bytes());
    message.extend([0; 4]);
    message.extend((-errno).to_ne_bytes());
    message.extend(question);
    message
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{
        DoneMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
        NetlinkPayload,
    };
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    fn bytes(payload: impl Into<NetlinkPayload<RouteNetlinkMessage>>, flags: u16, sequence: u32) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload.into());
        (message.header.flags, message.header.sequence_number) = (flags, sequence);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn links(flags: u16, sequence: u32) -> Vec<u8> {
        bytes(RouteNetlinkMessage::GetLink(LinkMessage::default()), flags, sequence)
    }

    /// Sequences and error numbers of what was put in, as netlink-proto reads them.
    fn put_in(ledger: &mut Ledger) -> Vec<(u32, i32)> {
        let read = |answer: Vec<u8>| {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).unwrap();
            let NetlinkPayload::Error(error) = message.payload else { panic!("no error: {:?}", message.payload) };
            (message.header.sequence_number, error.to_io().raw_os_error().unwrap())
        };
        ledger.answers.drain(..).map(read).collect()
    }

    #[test]
    fn a_question_that_is_refused_is_answered_by_the_error_and_no_other_is() {
        let mut ledger = Ledger::default();
        ledger.asked(&links(NLM_F_REQUEST | NLM_F_ACK, 7));
        ledger.refused(&links(NLM_F_REQUEST | NLM_F_ACK, 8), &Errno::ENOBUFS.into());
        assert_eq!(put_in(&mut ledger), [(8, Errno::ENOBUFS as i32)]);
    }

    #[test]
    fn when_an_answer_is_lost_each_question_that_awaits_one_is_answered_by_the_error() {
        let mut ledger = Ledger::default();
        for sequence in 1..=5 {
            ledger.asked(&links(NLM_F_REQUEST | NLM_F_DUMP, sequence));
        }
        // A part of a list, then its end; an answer that is all there is; an acknowledgement.
        ledger.heard(&links(NLM_F_MULTIPART, 1));
        ledger.heard(&[links(NLM_F_MULTIPART, 2), bytes(NetlinkPayload::Done(DoneMessage::default()), 2, 2)].concat());
        ledger.heard(&links(0, 3));
        ledger.heard(&answer(&headers(&links(0, 4)).next().unwrap(), &Errno::EEXIST.into()));
        ledger.lost(&Errno::ENOBUFS.into());
        assert_eq!(put_in(&mut ledger), [(1, Errno::ENOBUFS as i32), (5, Errno::ENOBUFS as i32)]);
        ledger.lost(&Errno::ENOBUFS.into());
        assert_eq!(put_in(&mut ledger), [], "each is answered once");
    }
}
