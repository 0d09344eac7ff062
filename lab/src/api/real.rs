//! A real kube-apiserver over a real etcd, as processes in the API server's namespace.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Request;
use super::identity::{Certificates, Tokens};
use crate::assets::asset;
use crate::clock::until;
use crate::netns::Netns;
use crate::processes::{Process, Processes};

const ETCD: &str = "127.0.0.1:2379";

/// The two processes and their directory. All end when dropped, in the order of the fields: processes first.
pub struct Real {
    netns: Netns,
    address: SocketAddr,
    processes: Processes,
    directory: Directory,
    etcd: Process,
    server: Option<Process>,
}

/// A directory that is removed with this value.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // In the system's temporary directory: what cannot be removed now goes with the next boot.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Real {
    /// Starts both; the API server may need a second before it answers. The namespace's loopback must be up.
    pub fn start(netns: &Netns, address: SocketAddr, certificates: &Certificates, tokens: &Tokens) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("wirevip-api-{:016x}", rand::random::<u64>()));
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        let directory = Directory(directory);
        let at = |name: &str| directory.0.join(name);
        let account = rcgen::KeyPair::generate()?;
        fs::write(at("server.crt"), &certificates.server_pem)?;
        fs::write(at("server.key"), &certificates.key_pem)?;
        fs::write(at("account.key"), account.serialize_pem())?;
        fs::write(at("account.pub"), account.public_key_pem())?;
        fs::write(at("tokens.csv"), tokens.file())?;
        fs::write(at("audit.yaml"), AUDIT_POLICY)?;
        let processes = Processes::new()?;
        let mut command = netns.command(&asset("etcd")?);
        command.arg("--data-dir").arg(at("etcd")).args([
            "--unsafe-no-fsync",
            "--log-level=warn",
            &format!("--listen-client-urls=http://{ETCD}"),
            &format!("--advertise-client-urls=http://{ETCD}"),
            "--listen-peer-urls=http://127.0.0.1:2380",
        ]);
        let etcd = processes.start("etcd", command)?;
        let mut real = Self { netns: netns.clone(), address, directory, processes, etcd, server: None };
        real.resume()?;
        Ok(real)
    }

    /// The API server again, on the same address with the same data.
    pub fn resume(&mut self) -> Result<()> {
        if self.server.is_some() {
            return Ok(());
        }
        let at = |name: &str| self.directory.0.join(name).display().to_string();
        let (ip, port) = (self.address.ip(), self.address.port());
        let mut command = self.netns.command(&asset("kube-apiserver")?);
        command.args([
            format!("--etcd-servers=http://{ETCD}"),
            format!("--bind-address={ip}"),
            format!("--advertise-address={ip}"),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", at("server.crt")),
            format!("--tls-private-key-file={}", at("server.key")),
            format!("--cert-dir={}", at("certificates")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", at("account.pub")),
            format!("--service-account-signing-key-file={}", at("account.key")),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--authorization-mode=RBAC".into(),
            format!("--token-auth-file={}", at("tokens.csv")),
            // It would refuse pods until a controller has made each namespace's account, and none runs here.
            "--disable-admission-plugins=ServiceAccount".into(),
            format!("--audit-policy-file={}", at("audit.yaml")),
            format!("--audit-log-path={}", at("audit.log")),
            "--audit-log-mode=blocking".into(),
        ]);
        self.server = Some(self.processes.start("kube-apiserver", command)?);
        Ok(())
    }

    /// Kills the API server: connections are reset, new ones refused.
    pub fn stop(&mut self) -> Result<()> {
        match self.server.take() {
            Some(server) => server.sigkill(),
            None => Ok(()),
        }
    }

    /// Returns when every thread stands still: the signal alone is only on its way when `kill` returns.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let tasks = format!("/proc/{}/task", self.server.as_ref().map_or(0, Process::id));
        until("kube-apiserver to stand still", PATIENCE, || {
            let mut all = true;
            for task in fs::read_dir(&tasks)? {
                // A thread may end between the two.
                let state = fs::read_to_string(task?.path().join("stat")).unwrap_or_default();
                let state = state.rsplit(") ").next().and_then(|rest| rest.chars().next());
                all &= matches!(state, Some('T') | None);
            }
            Ok(all.then_some(()))
        })
    }

    pub fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.server.as_ref().context("the API server is stopped; resume it first")?.signal(signal)
    }

    /// An error with its log if a process has ended by itself.
    pub fn expect_running(&self) -> Result<()> {
        self.etcd.expect_running()?;
        self.server.as_ref().map_or(Ok(()), Process::expect_running)
    }

    /// Every request so far, from the audit log, in the order of their answers.
    pub fn requests(&self, tokens: &Tokens) -> Vec<Request> {
        let Ok(file) = File::open(self.directory.0.join("audit.log")) else { return Vec::new() };
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        // The last line may be only half written.
        lines.filter_map(|line| audited(&serde_json::from_str(&line).ok()?, tokens)).collect()
    }
}

fn audited(event: &Value, tokens: &Tokens) -> Option<Request> {
    let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let user = text("/user/username");
    let (resource, subresource) = (text("/objectRef/resource"), text("/objectRef/subresource"));
    // Its own house-keeping is no client's.
    if user == "system:apiserver" || resource.is_empty() {
        return None;
    }
    Some(Request {
        at: text("/requestReceivedTimestamp").parse().ok()?,
        user: tokens.label(&text("/user/uid")).unwrap_or(user),
        verb: text("/verb"),
        resource: if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") },
        namespace: text("/objectRef/namespace"),
        name: text("/objectRef/name"),
        code: event.pointer("/responseStatus/code").and_then(Value::as_u64).and_then(|code| code.try_into().ok())?,
    })
}

/// A watch is told when it starts; everything else when it is answered.
const AUDIT_POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: None
  users: ["system:apiserver"]
- level: Metadata
  verbs: [watch]
  omitStages: [RequestReceived, ResponseComplete]
- level: Metadata
  omitStages: [RequestReceived, ResponseStarted]
"#;

/// How long a start may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
