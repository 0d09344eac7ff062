//! WireGuard keys for worlds that live for seconds.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x25519_dalek::{PublicKey, StaticSecret};

/// A key pair in WireGuard's base64.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyPair {
    /// The private half.
    pub private: String,
    /// The public half.
    pub public: String,
}

impl KeyPair {
    /// A fresh pair.
    pub fn generate() -> Self {
        let secret = StaticSecret::from(rand::random::<[u8; 32]>());
        Self {
            private: STANDARD.encode(secret.to_bytes()),
            public: STANDARD.encode(PublicKey::from(&secret).as_bytes()),
        }
    }
}

/// A fresh preshared key.
pub fn preshared() -> String {
    STANDARD.encode(rand::random::<[u8; 32]>())
}
