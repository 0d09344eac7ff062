//! Any number of candidates, clocks that run at different rates and show different dates, requests that fail, are lost
//! or land late, processes that die, come back or step down: never are two tunnels up, and somebody leads soon after the
//! trouble is over.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use wirevip::clock::TokioClock;
use wirevip::election::testing::{LeaseClient, LeaseServer, Way, Weather};
use wirevip::election::{Params, Record};

use crate::world::{Candidate, SECOND, Skewed, Tunnel, Witness, ms, until};

/// What people do to the Lease while all goes on.
#[derive(Clone, Copy, PartialEq)]
enum Hands {
    /// Nothing.
    Off,
    /// Delete, empty, overwrite, with durations too short for the term that they cut off; every candidate can see it.
    Rough,
    /// The same with honest durations, while candidates are cut off and see only what is left.
    Honest,
}

/// A process that runs or does not.
enum Process {
    Runs(Candidate),
    Dead(LeaseClient, Tunnel),
}

struct World {
    rng: StdRng,
    server: LeaseServer,
    witness: Witness,
    params: Params,
    clocks: Vec<Skewed>,
    processes: Vec<Option<Process>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let server = LeaseServer::new();
        let n = rng.random_range(2..=5);
        let params = *[
            Params::default(),
            Params { lease: 15 * SECOND, renew_deadline: 10 * SECOND, retry: 2 * SECOND },
            Params { lease: 3 * SECOND, renew_deadline: ms(1500), retry: ms(500) },
        ]
        .choose(&mut rng)
        .unwrap();
        let base = TokioClock::new();
        let clocks: Vec<Skewed> = (0..n)
            .map(|i| Skewed {
                base,
                // As far apart as a margin of 5 % pays for.
                rate: if i == 0 { 1.0 } else { rng.random_range(1.0..1.05) },
                wall_off: rng.random_range(-100_000..100_000),
            })
            .collect();
        let mut world = Self { rng, server, witness: Witness::default(), params, clocks, processes: vec![] };
        for i in 0..n {
            let client = world.server.client(&name(i), seed + i as u64);
            let candidate = world.start(i, client);
            world.processes.push(Some(candidate));
        }
        world
    }

    fn start(&mut self, i: usize, client: LeaseClient) -> Process {
        let falls_in = ms(self.rng.random_range(0..1500));
        let clock = self.clocks[i].clone();
        Process::Runs(Candidate::start(client, &self.witness, &name(i), clock, self.params, falls_in))
    }

    fn weather(&mut self) -> Weather {
        Weather {
            latency: Duration::ZERO..ms([1, 20, 400].choose(&mut self.rng).copied().unwrap()),
            failed: *[0.0, 0.3, 0.9].choose(&mut self.rng).unwrap(),
            lost: *[0.0, 0.1, 0.4].choose(&mut self.rng).unwrap(),
            late: *[0.0, 0.1].choose(&mut self.rng).unwrap(),
            ..Weather::default()
        }
    }

    async fn trouble(&mut self, hands: Hands) {
        tokio::time::sleep(ms(self.rng.random_range(0..3000))).await;
        let i = self.rng.random_range(0..self.processes.len());
        let what = self.rng.random_range(0..10);
        let process = self.processes[i].take().unwrap();
        let next = match (process, what) {
            (Process::Dead(client, tunnel), _) => {
                // A new process cleans up before all else.
                tunnel.down();
                self.start(i, client)
            }
            (Process::Runs(c), 0) if hands == Hands::Off => {
                let (client, tunnel) = c.kill();
                Process::Dead(client, tunnel)
            }
            (Process::Runs(c), 1) if hands == Hands::Off => {
                let (client, tunnel) = (c.client.clone(), c.tunnel.clone());
                c.resign(3 * SECOND).await;
                Process::Dead(client, tunnel)
            }
            (Process::Runs(c), 2) => {
                c.campaign.gate().step_down();
                Process::Runs(c)
            }
            (Process::Runs(c), 3) => {
                c.campaign.gate().eligible(false);
                Process::Runs(c)
            }
            (Process::Runs(c), 4) => {
                c.campaign.gate().eligible(true);
                Process::Runs(c)
            }
            (Process::Runs(c), 5) if hands != Hands::Rough => {
                c.client.way(*[Way::Refused, Way::Silent].choose(&mut self.rng).unwrap());
                Process::Runs(c)
            }
            (Process::Runs(c), 6 | 7) => {
                c.client.way(Way::Open);
                Process::Runs(c)
            }
            (Process::Runs(c), _) => {
                let weather = self.weather();
                c.client.weather(weather);
                Process::Runs(c)
            }
        };
        self.processes[i] = Some(next);
        if hands != Hands::Off {
            self.hand_edit(hands);
        }
    }

    /// What people do to a Lease. Not among it: a release in another's name, or the name of a candidate that does not
    /// lead, which are orders to take over at once.
    fn hand_edit(&mut self, hands: Hands) {
        let holder =
            self.server.record().map(|r| r.holder).filter(|_| self.rng.random()).unwrap_or("nobody".to_owned());
        let honest = i32::try_from(self.params.lease.as_secs()).unwrap();
        let duration_seconds = if hands == Hands::Honest { honest } else { self.rng.random_range(2..6) };
        match self.rng.random_range(0..8) {
            0 => self.server.edit(|_| None),
            1 => self.server.write(Record::default()),
            2 => self.server.write(Record { holder, duration_seconds, ..Record::default() }),
            3 => self.server.edit(|lease| {
                let mut lease = lease?;
                lease.metadata.labels = Some([("x".to_owned(), "y".to_owned())].into());
                Some(lease)
            }),
            _ => {}
        }
    }

    /// Everything works again, and what was on its way has landed.
    async fn heal(&mut self) {
        for i in 0..self.processes.len() {
            let process = match self.processes[i].take().unwrap() {
                Process::Dead(client, tunnel) => {
                    tunnel.down();
                    self.start(i, client)
                }
                runs => runs,
            };
            if let Process::Runs(c) = &process {
                c.client.way(Way::Open);
                c.client.weather(Weather { latency: Duration::ZERO..ms(5), ..Weather::default() });
                c.campaign.gate().eligible(true);
            }
            self.processes[i] = Some(process);
        }
        tokio::time::sleep(12 * SECOND).await;
    }

    fn leader(&self) -> Option<&Candidate> {
        self.processes.iter().flatten().find_map(|p| match p {
            Process::Runs(c) if c.leads() => Some(c),
            _ => None,
        })
    }
}

fn name(i: usize) -> String {
    ["ann", "ben", "cem", "dan", "eva"][i].to_owned()
}

fn in_many_worlds(worlds: u64, hands: Hands) {
    for seed in 0..worlds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(seed);
            for _ in 0..40 {
                world.trouble(hands).await;
                assert_eq!(world.witness.has_seen_two(), None, "seed {seed}");
            }
            world.heal().await;
            let bound = world.params.lease + world.params.retry.mul_f64(4.4);
            until(&format!("somebody leads, seed {seed}"), bound, || world.leader().is_some()).await;
            // And when that one dies, another.
            let dead = world.leader().unwrap().name.clone();
            world.processes.retain(|p| !matches!(p, Some(Process::Runs(c)) if c.name == dead));
            let took = until(&format!("another leads, seed {seed}"), bound, || world.leader().is_some()).await;
            assert!(took >= world.params.lease / 2, "seed {seed}: {took:?}");
            assert_eq!(world.witness.has_seen_two(), None, "seed {seed}");
        });
    }
}

#[test]
fn never_are_two_up_whatever_fails_and_somebody_leads_soon_after() {
    in_many_worlds(40, Hands::Off);
}

#[test]
fn never_are_two_up_whatever_is_done_to_the_lease_by_hand() {
    in_many_worlds(40, Hands::Rough);
}

#[test]
fn never_are_two_up_when_hands_change_what_others_cannot_see() {
    in_many_worlds(40, Hands::Honest);
}
