//! ServiceAccount tokens: those that the kubelet writes into pods, and others that say the same for a shorter time.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::Value;

use super::{Installed, Pod, keys, script};
use crate::api::Resource;
use crate::clock::wall;
use crate::sidecar::NAMESPACE;

/// The claims of this token in one that is good for `life` from now, signed with the cluster's own key. The API server
/// itself gives none for less than 10 min.
pub fn signed_for(token: &str, life: Duration) -> Result<String> {
    let pem = std::fs::read_to_string(keys().join("service-accounts.key"))?;
    let der = STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>())?;
    let key = RsaKeyPair::from_pkcs8(&der).map_err(|error| anyhow!("service-accounts.key: {error}"))?;
    let end = (wall() + life).duration_since(UNIX_EPOCH)?.as_secs();
    let unsigned = ending(token, end)?;
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), unsigned.as_bytes(), &mut signature)
        .map_err(|error| anyhow!("cannot sign: {error}"))?;
    Ok(format!("{unsigned}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// Head and claims of this token, without a signature, with another end (seconds since 1970). RFC 7519.
fn ending(token: &str, end: u64) -> Result<String> {
    let mut parts = token.trim().split('.');
    let (head, claims) = parts.next().zip(parts.next()).context("this is no token")?;
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    claims["exp"] = end.into();
    Ok(format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string())))
}

impl Installed {
    /// The token in a pod's file.
    pub fn token(&self, pod: &Pod) -> Result<String> {
        self.token_file(pod, "cat", "")
    }

    /// Writes another one into the file. The kubelet puts its own back when it looks, within some two minutes.
    pub fn put_token(&self, pod: &Pod, token: &str) -> Result<()> {
        self.token_file(pod, "tee", token).map(drop)
    }

    fn token_file(&self, pod: &Pod, program: &str, input: &str) -> Result<String> {
        let object = self.cluster.kube.get(Resource::Pod, NAMESPACE, &pod.name)?;
        let uid = object["metadata"]["uid"].as_str().context("a pod without a uid")?;
        let file = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/kube-api-access-*/token");
        script(&["in", &pod.node, "sh", "-c", &format!("{program} {file}")], input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_token_changes() {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let token = format!("{}.{}.signature\n", part("{}"), part(r#"{"exp":1,"sub":"me"}"#));
        assert_eq!(ending(&token, 7).unwrap(), format!("{}.{}", part("{}"), part(r#"{"exp":7,"sub":"me"}"#)));
        assert!(ending("no token", 7).is_err());
    }
}
