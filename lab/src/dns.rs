//! A name server for the cluster: A records that tests change at will.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::netns::Netns;
use crate::processes::locked;

type Records = Arc<Mutex<HashMap<String, (Ipv4Addr, u32)>>>;

/// Serves on UDP port 53 of a namespace until dropped.
pub struct Dns {
    records: Records,
    server: JoinHandle<()>,
}

impl Dns {
    /// Starts with no names: all are unknown (NXDOMAIN).
    pub fn start(netns: &Netns, runtime: &Handle) -> Result<Self> {
        let records = Records::default();
        let socket = netns.run(|| {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let _inside = runtime.enter();
        let socket = UdpSocket::from_std(socket)?;
        let server = runtime.spawn(serve(socket, Arc::clone(&records)));
        Ok(Self { records, server })
    }

    /// `name` is at `address` from now on; resolvers may keep that for `ttl` seconds.
    pub fn set(&self, name: &str, address: Ipv4Addr, ttl: u32) {
        locked(&self.records).insert(name.to_ascii_lowercase(), (address, ttl));
    }

    /// Forgets `name`.
    pub fn remove(&self, name: &str) {
        locked(&self.records).remove(&name.to_ascii_lowercase());
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(socket: UdpSocket, records: Records) {
    let mut buffer = [0; 1500];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(reply) = answer(&buffer[..length], &records) {
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

/// RFC 1035: the reply to a query with one question; `None` for what is none.
fn answer(query: &[u8], records: &Records) -> Option<Vec<u8>> {
    let question = query.get(12..)?;
    let mut labels = Vec::new();
    let mut at = 0;
    loop {
        let length = usize::from(*question.get(at)?);
        let label = question.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
    }
    let kind = u16::from_be_bytes([*question.get(at)?, *question.get(at + 1)?]);
    let question = question.get(..at + 4)?;
    let record = locked(records).get(&labels.join(".")).copied();
    let found = record.filter(|_| kind == 1);
    // Flags: a response, authoritative, recursion desired and available; NXDOMAIN where the name is unknown.
    let code = if record.is_some() { 0x80 } else { 0x83 };
    let mut reply = vec![*query.first()?, *query.get(1)?, 0x85, code, 0, 1, 0, u8::from(found.is_some()), 0, 0, 0, 0];
    reply.extend(question);
    if let Some((address, ttl)) = found {
        reply.extend([0xc0, 12, 0, 1, 0, 1]);
        reply.extend(ttl.to_be_bytes());
        reply.extend([0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(records: &Records, kind: u8) -> Vec<u8> {
        let query = [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x03Hub\x04test\0", &[0, kind, 0, 1]].concat();
        answer(&query, records).unwrap()
    }

    #[test]
    fn a_known_name_has_an_address_and_no_ipv6_one_and_an_unknown_name_does_not_exist() {
        let records = Records::default();
        assert_eq!(ask(&records, 1)[3] & 0xf, 3);
        locked(&records).insert("hub.test".into(), (Ipv4Addr::new(192, 0, 2, 10), 30));
        let reply = ask(&records, 1);
        assert_eq!((reply[3] & 0xf, reply[7]), (0, 1));
        assert!(reply.ends_with(&[0, 0, 0, 30, 0, 4, 192, 0, 2, 10]));
        let none = ask(&records, 28);
        assert_eq!((none[3] & 0xf, none[7]), (0, 0));
    }
}
