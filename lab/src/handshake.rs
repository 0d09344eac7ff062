//! A handshake's first message, with any time stamp in it, and what a hub reads in one: white paper, 5.4.2. A hub drops
//! one whose stamp is not later than the last it saw for the key.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2s256, Digest};
use gotatun::noise::Tunn;
use gotatun::noise::handshake::StampClock;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use hmac::{Mac, SimpleHmac};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::netns::Netns;
use crate::tunnels::TunnelSpec;

type Bytes = [u8; 32];

/// Always the same time, since the Unix epoch.
#[derive(Debug)]
struct Stopped(Duration);

impl StampClock for Stopped {
    fn stamp(&self) -> Duration {
        self.0
    }
}

/// One that a tunnel's pods could have sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Initiation(Vec<u8>);

impl Initiation {
    /// Stamped with this time since the Unix epoch.
    pub fn stamped(tunnel: &TunnelSpec, time: Duration) -> Result<Self> {
        let ours = StaticSecret::from(key(&tunnel.private_key)?);
        let limiter = Arc::new(RateLimiter::new(&PublicKey::from(&ours), 100));
        let preshared = tunnel.preshared_key.as_deref().map(key).transpose()?;
        let hub = PublicKey::from(key(&tunnel.peer_public_key)?);
        let mut tunn = Tunn::new(ours, hub, preshared, None, IndexTable::from_os_rng(), limiter);
        tunn.set_stamp_clock(Some(Arc::new(Stopped(time))));
        let packet = tunn.format_handshake_initiation(true).context("no handshake was begun")?;
        Ok(Self(packet.into_bytes().to_vec()))
    }

    /// Sends it to the hub from a namespace. Whether the hub answers.
    pub fn send(&self, netns: &Netns, hub: SocketAddr, within: Duration) -> Result<bool> {
        netns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(within))?;
            socket.send_to(&self.0, hub)?;
            match socket.recv(&mut [0; 256]) {
                Ok(92) => Ok(true),
                Ok(length) => bail!("{length} bytes are no answer to a handshake"),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// The 12 bytes of TAI64N that the hub reads in it, by its private key.
    pub fn stamp(&self, hub: &str) -> Result<[u8; 12]> {
        let hub = StaticSecret::from(key(hub)?);
        let Self(message) = self;
        let (ephemeral, sealed_key, sealed_stamp) = (&message[8..40], &message[40..88], &message[88..116]);
        let chain = hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]);
        let start = hash(&[&chain, b"WireGuard v1 zx2c4 Jason@zx2c4.com"]);
        let transcript = hash(&[&hash(&[&start, PublicKey::from(&hub).as_bytes()]), ephemeral]);
        let (chain, _) = derive(&chain, ephemeral)?;
        let shared = |public: &[u8]| anyhow::Ok(hub.diffie_hellman(&PublicKey::from(Bytes::try_from(public)?)));
        let (chain, secret) = derive(&chain, shared(ephemeral)?.as_bytes())?;
        let theirs = open(&secret, &transcript, sealed_key)?;
        let transcript = hash(&[&transcript, sealed_key]);
        let (_, secret) = derive(&chain, shared(&theirs)?.as_bytes())?;
        Ok(open(&secret, &transcript, sealed_stamp)?.as_slice().try_into()?)
    }
}

fn key(base64: &str) -> Result<Bytes> {
    STANDARD.decode(base64)?.try_into().map_err(|_| anyhow!("a key has 32 bytes"))
}

fn hash(parts: &[&[u8]]) -> Bytes {
    let hash = parts.iter().fold(Blake2s256::new(), |hash, part| hash.chain_update(part));
    hash.finalize().into()
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Result<Bytes> {
    let hmac = <SimpleHmac<Blake2s256> as Mac>::new_from_slice(key)?;
    Ok(parts.iter().fold(hmac, |hmac, part| hmac.chain_update(part)).finalize().into_bytes().into())
}

/// KDF2: the next chaining key and a key for use.
fn derive(chain: &Bytes, input: &[u8]) -> Result<(Bytes, Bytes)> {
    let mixed = hmac(chain, &[input])?;
    let next = hmac(&mixed, &[&[1]])?;
    Ok((next, hmac(&mixed, &[&next, &[2]])?))
}

fn open(key: &Bytes, transcript: &Bytes, sealed: &[u8]) -> Result<Vec<u8>> {
    let refused = |_| anyhow!("sealed for another");
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).map_err(refused)?);
    let mut opened = sealed.to_vec();
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    Ok(key.open_in_place(nonce, Aad::from(transcript), &mut opened).map_err(refused)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyPair, preshared};

    #[test]
    fn gotatun_stamps_a_time_with_the_bytes_that_the_kernel_and_wireguard_go_do() -> Result<()> {
        let (pods, hub) = (KeyPair::generate(), KeyPair::generate());
        let tunnel = TunnelSpec {
            private_key: pods.private,
            peer_public_key: hub.public,
            preshared_key: Some(preshared()),
            ..TunnelSpec::numbered(0)
        };
        // 2025-06-15T15:06:40Z. Linux: `0x400000000000000aULL + now.tv_sec`, then `now.tv_nsec`, both big endian.
        let initiation = Initiation::stamped(&tunnel, Duration::new(1_750_000_000, 16_777_216))?;
        assert_eq!(initiation.stamp(&hub.private)?, [0x40, 0, 0, 0, 0x68, 0x4e, 0xe1, 0x8a, 0x01, 0, 0, 0]);
        assert!(initiation.stamp(&KeyPair::generate().private).is_err(), "for this hub alone");
        Ok(())
    }
}
