//! The faults' acts on a world, and how each is undone.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::Fault;
use super::repeat::Repeat;
use crate::api::faults::{Fault as ApiFault, Target};
use crate::api::{Resource, User};
use crate::clock::{pause, until};
use crate::detour::Detour;
use crate::node::{Cut, Way};
use crate::objects;
use crate::plan;
use crate::sidecar::{NAMESPACE, Sidecar};
use crate::tunnels::document;
use crate::world::World;

/// The hub's name in a world whose hub may move; its address may be kept for [`TTL`] seconds.
pub const HUB_NAME: &str = "hub.example.com";
const TTL: u32 = 2;

const SOON: Duration = Duration::from_secs(5);
/// How much longer the longer way takes.
const DETOUR: Duration = Duration::from_millis(20);

pub(super) type Undo = Box<dyn FnOnce(&mut World) -> Result<()> + Send>;

/// A fault that lasts.
pub struct Injected {
    /// Which.
    pub fault: Fault,
    undo: Undo,
}

impl Injected {
    /// Ends it.
    pub fn heal(self, world: &mut World) -> Result<()> {
        (self.undo)(world).with_context(|| format!("cannot heal: {}", self.fault))
    }
}

impl World {
    /// Tells the name server where the hub is: for worlds whose Secret names it [`HUB_NAME`].
    pub fn name_hub(&self) -> Result<()> {
        let hub = self.hubs.first().context("no hub")?;
        self.dns.set(HUB_NAME, hub.address, TTL);
        Ok(())
    }

    /// Lets a fault befall the first tunnel, which the pod on node `victim` leads.
    pub fn inject(&mut self, fault: Fault, victim: u8) -> Result<Injected> {
        let undo = match fault {
            Fault::Kill | Fault::OutOfMemory | Fault::Freeze(_) | Fault::Stutter => self.strike(fault, victim),
            Fault::Cut(cut, way) => self.cut(cut, way, victim),
            Fault::ClockSet(whose, seconds) => self.set_clocks(whose, seconds, victim),
            Fault::Suspend(_) => self.suspend(victim),
            Fault::NoBuffers(whose, starved) => self.starve_netlink(whose, starved, victim),
            Fault::LeaseDeleted | Fault::LeaseGiven | Fault::LeaseEmptied | Fault::LeaseMangled => {
                self.edit_lease(fault)
            }
            Fault::SecretDeleted | Fault::SecretBroken | Fault::SecretFlaps => self.meddle_with_secret(fault),
            Fault::EndpointStorm => self.storm(),
            Fault::Stranger => self.stranger(),
            Fault::Deleted(ours) => {
                // A leader that has just lost its tenure to another fault has nothing to delete.
                let _ = ours.delete(&self.sidecar(victim)?.netns);
                nothing()
            }
            Fault::HubRestart | Fault::HubSilent | Fault::HubMoved => self.strike_hub(fault),
            Fault::NatForgets | Fault::Loss(_) | Fault::Reordering | Fault::SmallMtu => self.spoil_the_way(fault),
            _ => self.strike_api(fault),
        };
        Ok(Injected { fault, undo: undo.with_context(|| format!("cannot inject: {fault}"))? })
    }

    fn strike(&mut self, fault: Fault, victim: u8) -> Result<Undo> {
        let process = self.sidecar(victim)?.process()?.clone();
        match fault {
            Fault::Kill => {
                process.sigkill()?;
                Ok(Box::new(World::start_sidecars))
            }
            Fault::OutOfMemory => {
                for _ in 0..2 {
                    self.sidecar_mut(victim)?.restart_in_place(Duration::ZERO)?;
                    pause(Duration::from_secs(1))?;
                }
                nothing()
            }
            Fault::Freeze(_) => {
                process.signal(Signal::SIGSTOP)?;
                Ok(Box::new(move |_| process.signal(Signal::SIGCONT)))
            }
            _ => {
                let stuttering = process.clone();
                let repeat = Repeat::every(Duration::from_millis(250), move |number| {
                    stuttering.signal(if number % 2 == 0 { Signal::SIGSTOP } else { Signal::SIGCONT })
                })?;
                Ok(Box::new(move |_| {
                    drop(repeat);
                    process.signal(Signal::SIGCONT)
                }))
            }
        }
    }

    pub(super) fn cut(&mut self, cut: Cut, way: Way, victim: u8) -> Result<Undo> {
        let node = usize::from(victim);
        self.nodes.get(node).context("no such node")?.cut_one_way(cut, way)?;
        Ok(Box::new(move |world| world.nodes.get(node).context("no such node")?.mend(cut, way)))
    }

    fn strike_api(&mut self, fault: Fault) -> Result<Undo> {
        match fault {
            Fault::ApiDown => {
                self.api.stop()?;
                return Ok(Box::new(|world| world.api.resume()));
            }
            Fault::ApiSilent => {
                self.api.freeze()?;
                return Ok(Box::new(|world| world.api.thaw()));
            }
            _ => {}
        }
        let faults = self.api.faults()?.clone();
        let rule = match fault {
            Fault::ApiSlow(delay) => {
                faults.add(Target::any(), ApiFault::Delay(Duration::from_millis(u64::from(delay))))
            }
            Fault::ApiErrs(code) => faults.add(Target::any(), ApiFault::Refuse(code)),
            Fault::RepliesLost => faults.add(Target::any().verb("update"), ApiFault::LoseReply),
            Fault::HistoryGone => {
                let rule = faults.add(Target::any().verb("watch"), ApiFault::Gone);
                self.api.compact()?;
                faults.drop_watches();
                rule
            }
            Fault::WatchesStuck => {
                faults.stick_watches(true);
                return Ok(Box::new(move |_| {
                    faults.stick_watches(false);
                    Ok(())
                }));
            }
            _ => {
                let repeat = Repeat::every(Duration::from_millis(200), move |_| {
                    faults.drop_watches();
                    Ok(())
                })?;
                return over(repeat);
            }
        };
        Ok(Box::new(move |_| {
            faults.remove(rule);
            Ok(())
        }))
    }

    fn edit_lease(&mut self, fault: Fault) -> Result<Undo> {
        let name = self.spec.tunnels.first().context("no tunnel")?.lease();
        if fault == Fault::LeaseDeleted {
            self.kube.delete(Resource::Lease, NAMESPACE, &name)?;
            return nothing();
        }
        until("the Lease edited", SOON, || {
            let mut lease = self.kube.get(Resource::Lease, NAMESPACE, &name)?;
            let spec = &mut lease["spec"];
            match fault {
                Fault::LeaseGiven => {
                    spec["holderIdentity"] = "somebody-else".into();
                    spec["leaseTransitions"] = (spec["leaseTransitions"].as_i64().unwrap_or(0) + 1).into();
                }
                Fault::LeaseEmptied => spec["holderIdentity"] = "".into(),
                _ => {
                    spec["renewTime"] = Value::Null;
                    spec["acquireTime"] = Value::Null;
                    spec["leaseDurationSeconds"] = 1.into();
                }
            }
            // A conflict with a renewal is tried again.
            Ok(self.kube.replace(Resource::Lease, lease).ok())
        })?;
        nothing()
    }

    fn meddle_with_secret(&mut self, fault: Fault) -> Result<Undo> {
        const BROKEN: &str = "wg0: {vip: 10.77.0.2\n";
        let put_back: Undo = Box::new(|world| world.put_secret(&world.spec.tunnels));
        match fault {
            Fault::SecretDeleted => self.kube.delete(Resource::Secret, NAMESPACE, "wireguard")?,
            Fault::SecretBroken => self.put_document(BROKEN)?,
            _ => {
                let (kube, sound) = (self.kube.clone(), document(&self.spec.tunnels));
                let repeat = Repeat::every(Duration::from_millis(100), move |number| {
                    let text = match number % 3 {
                        0 => return Ok(kube.delete(Resource::Secret, NAMESPACE, "wireguard")?),
                        1 => BROKEN,
                        _ => &sound,
                    };
                    kube.apply(Resource::Secret, objects::secret(NAMESPACE, text))?;
                    Ok(())
                })?;
                return Ok(Box::new(move |world| {
                    drop(repeat);
                    put_back(world)
                }));
            }
        }
        Ok(put_back)
    }

    fn storm(&mut self) -> Result<Undo> {
        let web = self.kube.get(Resource::Service, "default", "web")?;
        let (all, port, kube) = (self.all_ready(), self.spec.backend_port, self.kube.clone());
        let service = web.clone();
        let repeat = Repeat::every(Duration::from_millis(10), move |number| {
            let left = number % all.len();
            let some: Vec<_> = all.iter().enumerate().filter(|(at, _)| *at != left).map(|(_, one)| *one).collect();
            kube.replace(Resource::EndpointSlice, objects::slice("web", &service, port, &some))?;
            Ok(())
        })?;
        Ok(Box::new(move |world| {
            drop(repeat);
            world.endpoints(&web, &world.all_ready()).map(drop)
        }))
    }

    /// A sidecar in a backend's pod, with the same Secret in a namespace of its own: its Leases are others.
    fn stranger(&mut self) -> Result<Undo> {
        const NAME: &str = "stranger";
        let (backend, worker) = (self.topology.backends.first().context("no backend")?, &self.nodes[0].netns);
        self.kube.apply(Resource::Namespace, json!({ "metadata": { "name": NAME } }))?;
        self.kube.apply(Resource::Secret, objects::secret(NAME, &document(&self.spec.tunnels)))?;
        let mut stranger = Sidecar::new(0, backend, worker, self.spec.bin.clone(), self.shared_processes());
        stranger.pod = NAME.into();
        stranger.args.push(format!("--service-namespace={NAME}"));
        stranger.kubeconfig = self.api.kubeconfig(User::Admin);
        stranger.env.push(("POD_NAMESPACE".into(), NAME.into()));
        stranger.start()?;
        Ok(Box::new(move |_| stranger.stop(SOON)))
    }

    fn strike_hub(&mut self, fault: Fault) -> Result<Undo> {
        let hub = self.hubs.first_mut().context("no hub")?;
        match fault {
            Fault::HubRestart => hub.restart()?,
            Fault::HubSilent => {
                hub.silence(true)?;
                return Ok(Box::new(|world| world.hubs.first().context("no hub")?.silence(false)));
            }
            _ => {
                let elsewhere = if hub.address == plan::hub(0) { plan::hub(90) } else { plan::hub(0) };
                hub.move_to(elsewhere)?;
                self.name_hub()?;
            }
        }
        nothing()
    }

    fn spoil_the_way(&mut self, fault: Fault) -> Result<Undo> {
        let internet = self.topology.internet.clone();
        match fault {
            Fault::NatForgets => {
                self.topology.remap(true)?;
                Ok(Box::new(|world| world.topology.remap(false)))
            }
            Fault::Loss(percent) => {
                let lost = format!("numgen random mod 100 < {percent} drop");
                let port = plan::HUB_PORT;
                internet.nft(&format!(
                    "table ip lab_loss {{ chain forward {{ type filter hook forward priority filter;
                        udp dport {port} {lost}\nudp sport {port} {lost}\n}}; }}"
                ))?;
                Ok(Box::new(move |_| internet.nft("delete table ip lab_loss")))
            }
            Fault::Reordering => {
                let detour = Detour::open(&internet, 50, DETOUR)?;
                self.detour = DETOUR;
                over(detour)
            }
            _ => {
                let gateway = self.topology.gateway.clone();
                let narrow = move |mtu: u32| {
                    internet.ip(&[format!("link set gateway mtu {mtu}")])?;
                    gateway.ip(&[format!("link set wan mtu {mtu}")])
                };
                narrow(1280)?;
                Ok(Box::new(move |_| narrow(1500)))
            }
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as all other ways to end a fault")]
fn nothing() -> Result<Undo> {
    Ok(Box::new(|_| Ok(())))
}

/// Lasts as long as this value.
#[expect(clippy::unnecessary_wraps, reason = "as all other ways to end a fault")]
fn over(lasting: impl Send + 'static) -> Result<Undo> {
    Ok(Box::new(move |_| {
        drop(lasting);
        Ok(())
    }))
}
