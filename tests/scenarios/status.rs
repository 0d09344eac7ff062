//! `wirevip status` tells what a person needs to know, from their own kubeconfig.

use std::process::{Command, Output};

use anyhow::{Context, Result};
use lab::api::{Kind, User};
use lab::clock::until;
use lab::kubeconfig::KubeconfigFile;
use lab::{World, play};
use serde_json::Value;

use crate::{LATER, SOON, spec};

crate::scenarios!(status_tells_who_leads_and_names_a_pod_that_is_gone, status_says_what_a_sidecar_may_not_read);

fn status(world: &World, user: User, arguments: &[&str]) -> Result<Output> {
    let config = KubeconfigFile::new(&world.api.kubeconfig(user))?;
    let mut command: Command = world.topology.control.command(env!("CARGO_BIN_EXE_wirevip"));
    command.arg("status").args(arguments).env("KUBECONFIG", config.path());
    Ok(command.output()?)
}

fn status_tells_who_leads_and_names_a_pod_that_is_gone(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.wait_leader(0, None, SOON)?;
        let pod = world.sidecar(leader)?.pod.clone();
        let told = until("a picture without problems", LATER, || {
            let output = status(world, User::Admin, &["-o", "json"])?;
            let told: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
            let settled = told["services"][0]["addresses"][0] == "10.77.0.2" && output.status.success();
            Ok((settled && told["problems"] == Value::Array(vec![])).then_some(told))
        })?;
        let tunnel = &told["tunnels"][0];
        assert_eq!((&tunnel["name"], &tunnel["vip"]), (&"wg0".into(), &"10.77.0.2".into()));
        assert_eq!((&tunnel["state"], &tunnel["leader"]["pod"]), (&"leading".into(), &pod.as_str().into()));
        assert_eq!(told["services"][0]["tunnels"][0], "wg0");
        assert_eq!(told["pods"].as_array().map(Vec::len), Some(world.sidecars.len()));

        world.sidecar(leader)?.sigkill()?;
        let text = String::from_utf8(status(world, User::Admin, &[])?.stdout)?;
        assert!(text.contains("NOT READ") && text.contains(&format!("pod {pod}: it does not answer")), "{text}");
        Ok(())
    })
}

fn status_says_what_a_sidecar_may_not_read(api: Kind) -> Result<()> {
    play(spec(api).forbidden("`wirevip status` with a pod's rights"), |world| {
        world.wait_leader(0, None, SOON)?;
        let pod = world.sidecar(1)?.pod.clone();
        let output = status(world, User::Sidecar(pod), &[])?;
        let text = String::from_utf8(output.stdout)?;
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("wg0 ") && text.contains("pods: not allowed: "), "{text}");
        Ok(())
    })
}
