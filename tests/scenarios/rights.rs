//! The chart's rights are enough for a whole life, and each one that is missing is told with the rule to add.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use lab::api::{Kind, Resource};
use lab::client::{Answer, Proto};
use lab::clock::until;
use lab::sidecar::NAMESPACE;
use lab::{World, play};
use serde_json::{Value, json};

use crate::{LATER, LEASE, SOON, spec};

crate::scenarios!(nothing_in_a_whole_life_is_refused, each_missing_right_is_told_and_what_can_go_on_goes_on);

/// What the sidecars asked for: the verb, the resource, and how it was answered.
fn asked(world: &World) -> BTreeSet<(String, String, u16)> {
    let requests = world.api.requests().into_iter().filter(|request| request.user.starts_with("wirevip-n"));
    requests.map(|request| (request.verb, request.resource, request.code)).collect()
}

fn nothing_in_a_whole_life_is_refused(api: Kind) -> Result<()> {
    play(spec(api).nodes(2), |world| {
        let answers = |answer: &Answer| answer.name().is_some();
        let first = world.wait_leader(0, None, SOON)?;
        until("the address in the Service's status", SOON, || Ok((world.ingress("web")?.len() == 1).then_some(())))?;
        let web = world.serve("more", 81)?;
        world.client.until(Proto::Tcp, world.hubs[0].public(81), SOON, answers)?;
        world.endpoints(&web, &[])?;
        until("the Event on a Service", SOON, || {
            Ok(world.events()?.contains(&"NoBackends Service/more".to_owned()).then_some(()))
        })?;
        world.put_document("wg0: {}\n")?;
        until("the Event on the Secret", SOON, || {
            Ok(world.events()?.iter().any(|event| event == "InvalidConfiguration Secret/wireguard").then_some(()))
        })?;
        world.put_secret(&world.spec.tunnels)?;
        world.kube.delete(Resource::Service, "default", "more")?;

        // A hand-over, then a takeover after a kill, of a Lease that was deleted meanwhile.
        world.sidecar(first)?.stop(SOON)?;
        // A release that fails costs the whole Lease.
        let second = world.wait_leader(0, Some(first), LEASE + LATER)?;
        world.sidecar_mut(first)?.start()?;
        world.sidecar(first)?.wait_ready(LATER)?;
        world.kube.delete(Resource::Lease, NAMESPACE, &world.spec.tunnels[0].lease())?;
        world.wait_leader(0, None, SOON)?;
        world.sidecar(second)?.sigkill()?;
        world.wait_leader(0, Some(second), LATER)?;
        world.wait_serving(LATER)?;
        world.sidecar(first)?.stop(SOON)?;

        let asked = asked(world);
        let refused: Vec<_> = asked.iter().filter(|(_, _, code)| matches!(code, 401 | 403)).collect();
        assert!(refused.is_empty(), "{refused:?}");
        let used = |verb: &str, resource: &str| asked.iter().any(|(v, r, _)| v == verb && r == resource);
        let needed = [
            ("secrets", "list watch"),
            ("leases", "get list watch create update"),
            ("services", "list watch"),
            ("endpointslices", "list watch"),
            ("services/status", "patch"),
            ("events", "create"),
        ];
        for (resource, verbs) in needed {
            for verb in verbs.split(' ') {
                assert!(used(verb, resource), "nobody asked to {verb} {resource}: {asked:?}");
            }
        }
        Ok(())
    })
}

/// What a missing rule costs at most.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    /// The process is alive, nothing more.
    Alive,
    /// One leads, and the VIP answers.
    Leads,
    /// The API server is reached through the VIP.
    ControlPlane,
    /// Services are reached, too.
    Services,
}

struct Right {
    role: Resource,
    resource: &'static str,
    rule: &'static str,
    left: Left,
}

const RIGHTS: [Right; 6] = [
    Right {
        role: Resource::Role,
        resource: "secrets",
        rule: r#"Role wirevip: {apiGroups: [""], resources: [secrets], resourceNames: [wireguard], verbs: [get, list, watch]}"#,
        left: Left::Alive,
    },
    Right {
        role: Resource::Role,
        resource: "leases",
        rule: r#"Role wirevip: {apiGroups: ["coordination.k8s.io"], resources: [leases], verbs: [get, list, watch, create, update]}"#,
        left: Left::Alive,
    },
    Right {
        role: Resource::ClusterRole,
        resource: "services",
        rule: r#"ClusterRole wirevip: {apiGroups: [""], resources: [services], verbs: [list, watch]}"#,
        left: Left::ControlPlane,
    },
    Right {
        role: Resource::ClusterRole,
        resource: "endpointslices",
        rule: r#"ClusterRole wirevip: {apiGroups: ["discovery.k8s.io"], resources: [endpointslices], verbs: [list, watch]}"#,
        left: Left::Leads,
    },
    Right {
        role: Resource::ClusterRole,
        resource: "services/status",
        rule: r#"ClusterRole wirevip: {apiGroups: [""], resources: [services/status], verbs: [patch]}"#,
        left: Left::Services,
    },
    Right {
        role: Resource::ClusterRole,
        resource: "events",
        rule: r#"ClusterRole wirevip: {apiGroups: ["events.k8s.io"], resources: [events], verbs: [create, patch]}"#,
        left: Left::Services,
    },
];

impl Right {
    /// The role as it is and without this rule, and the rule.
    fn roles(&self, world: &World) -> Result<(Value, Value, Vec<Value>)> {
        let namespace = if self.role == Resource::Role { NAMESPACE } else { "" };
        let whole = world.kube.get(self.role, namespace, "wirevip")?;
        let mut less = whole.clone();
        let rules = less["rules"].as_array_mut().context("a role without rules")?;
        let taken: Vec<_> = rules.extract_if(.., |rule| rule["resources"] == json!([self.resource])).collect();
        assert_eq!(taken.len(), 1, "a rule for {}", self.resource);
        Ok((whole, less, taken))
    }

    /// Without the rule from the start: it is told, and what can go on does.
    fn is_missed(&self, world: &World) -> Result<()> {
        let sidecar = world.sidecar(1)?;
        until(&format!("the rule for {} in the log", self.resource), LATER, || {
            Ok(sidecar.log().contains(self.rule).then_some(()))
        })?;
        assert_eq!(sidecar.http_get("/livez")?.0, 200);
        if self.left == Left::Alive {
            assert_eq!(world.leader(0)?, None, "nobody may lead");
            return Ok(());
        }
        world.wait_leader(0, None, LATER)?;
        let hub = &world.hubs[0];
        let vip = hub.vip;
        until("the VIP to answer", LATER, || Ok(hub.netns.sh(&format!("ping -c 1 -W 1 {vip}")).ok()))?;
        if self.left != Left::Leads {
            world.wait_control_plane(0, LATER)?;
        }
        if self.left == Left::Services {
            world.client.until(Proto::Tcp, world.web(), LATER, |answer| answer.name().is_some())?;
        }
        Ok(())
    }
}

fn each_missing_right_is_told_and_what_can_go_on_goes_on(api: Kind) -> Result<()> {
    play(spec(api).nodes(1), |world| {
        for right in RIGHTS {
            world.sidecar(1)?.stop(SOON)?;
            let (mut whole, less, taken) = right.roles(world)?;
            let less = world.kube.replace(right.role, less)?;
            world.api.wait_heeded(&less, &taken)?;
            let unpublished = json!({ "status": { "loadBalancer": { "ingress": null } } });
            world.kube.patch_status(Resource::Service, "default", "web", unpublished)?;
            world.sidecar_mut(1)?.start()?;
            right.is_missed(world).with_context(|| format!("without the right to {}", right.resource))?;
            whole["metadata"]["resourceVersion"] = less["metadata"]["resourceVersion"].clone();
            world.api.wait_heeded(&world.kube.replace(right.role, whole)?, &[])?;
            world.wait_serving(LATER).with_context(|| format!("with the right to {} again", right.resource))?;
            world.sidecar(1)?.wait_ready(SOON)?;
        }
        Ok(())
    })
}
