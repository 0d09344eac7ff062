//! A person outside, with the tool that everybody has.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Output, Stdio};

use anyhow::Result;
use lab::api::{Kind, User};
use lab::kubeconfig::KubeconfigFile;
use lab::{World, plan, play};

use crate::{LATER, spec};

crate::scenarios!(
    "needs root and kubectl", "needs root, kube-apiserver and kubectl":
    kubectl_lists_the_nodes_from_outside_and_checks_the_certificate,
);

/// `kubectl` in the client's place, as administrator, with a kubeconfig for this address of the API server.
fn kubectl(world: &World, server: SocketAddrV4, arguments: &[&str]) -> Result<Output> {
    let kubeconfig = KubeconfigFile::new(&world.api.kubeconfig_at(User::Admin, &server.to_string()))?;
    let mut command = world.topology.client.command("kubectl");
    command.arg("--kubeconfig").arg(kubeconfig.path()).args(arguments).stdin(Stdio::null());
    command.arg(concat!("--cache-dir=", env!("CARGO_TARGET_TMPDIR"), "/kubectl"));
    Ok(command.output()?)
}

fn kubectl_lists_the_nodes_from_outside_and_checks_the_certificate(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        world.wait_control_plane(0, LATER)?;
        let outside = world.hubs[0].public(plan::API_SOCKET.port());
        let output = kubectl(world, outside, &["get", "nodes"])?;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(said.lines().filter(|line| line.starts_with("node")).count(), world.nodes.len(), "{said}");

        // The same hub under an address that the certificate does not have: it is looked at, all the way through.
        let unnamed = Ipv4Addr::new(192, 0, 2, 80);
        world.hubs[0].netns.ip(&[format!("addr add {unnamed}/25 dev eth0")])?;
        let output = kubectl(world, SocketAddrV4::new(unnamed, outside.port()), &["get", "nodes"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("x509") && said.contains("192.0.2.80"), "{output:?}");
        Ok(())
    })
}
