//! The order of steps, over random histories in which any step may fail.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Act {
    /// For so long; true: after another had led.
    Lead(u16, bool),
    /// True: another is named.
    Follow(bool),
    Forwards(bool),
    Settings(bool, bool),
    Drift(u8),
    Pass(u16),
    /// Take up to so many steps; each succeeds where its bit is set.
    Steps(u8, u64),
    Stop(Ending),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => (100..6000u16, any::<bool>()).prop_map(|(millis, anew)| Act::Lead(millis, anew)),
        2 => any::<bool>().prop_map(Act::Follow),
        1 => any::<bool>().prop_map(Act::Forwards),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(port, alive)| Act::Settings(port, alive)),
        1 => (0..16u8).prop_map(Act::Drift),
        3 => (0..3000u16).prop_map(Act::Pass),
        6 => (1..20u8, any::<u64>(), any::<bool>())
            .prop_map(|(steps, luck, lucky)| Act::Steps(steps, if lucky { u64::MAX } else { luck })),
        1 => prop_oneof![Just(Ending::HandOver), Just(Ending::Removal)].prop_map(Act::Stop),
    ];
    proptest::collection::vec(act, 1..60)
}

#[derive(Clone, Copy, PartialEq, Debug, Default)]
enum FenceThere {
    #[default]
    Absent,
    Closed,
    Held,
    ArmedUntil(Moment),
}

/// The kernel and the campaign as they would be after the steps that took.
#[derive(Default)]
struct There {
    may_hold: bool,
    speaking: bool,
    fence: FenceThere,
    link: bool,
    attached: bool,
    /// The transitions of the tenure that its session began in.
    peer: Option<i32>,
    forwards: bool,
}

impl There {
    fn check(&self, step: &Step, now: Moment, tenure: Option<Tenure>) {
        let tenure = tenure.filter(|tenure| tenure.until > now);
        let armed = tenure.map(|tenure| FenceThere::ArmedUntil(tenure.until)) == Some(self.fence);
        let held = self.may_hold && matches!(self.fence, FenceThere::Held | FenceThere::ArmedUntil(_));
        match step {
            Step::Speak | Step::RaiseFence { .. } => assert!(tenure.is_some(), "{step:?} without tenure"),
            Step::ApplyForwards(_) => assert!(tenure.is_some() || held),
            Step::CreateLink(_) => {
                let open = !armed && !matches!(self.fence, FenceThere::Closed);
                assert!(tenure.is_some() && self.forwards && !open && self.speaking);
            }
            Step::AttachLink(_) => {
                assert!(self.link && (tenure.is_some() && self.fence != FenceThere::Absent || held));
            }
            Step::ArmFence { until, .. } => {
                assert!(self.speaking && self.fence != FenceThere::Absent);
                assert_eq!(Some(*until), tenure.map(|tenure| tenure.until));
            }
            Step::HoldFence { .. } => assert!(self.may_hold && self.link && self.peer.is_some()),
            Step::SetPeer(_) => assert!(armed && self.forwards && self.attached),
            Step::UpdatePeer(_) | Step::Kick(_) | Step::Probe(_) => {
                assert!(armed && self.forwards && self.attached);
                assert_eq!(
                    self.peer,
                    tenure.map(|tenure| tenure.transitions),
                    "a session that outlived another leader"
                );
            }
            Step::Quiet => {
                let silent = match self.fence {
                    FenceThere::Closed => true,
                    FenceThere::Held => self.may_hold,
                    // The kernel let it fall to hold.
                    FenceThere::ArmedUntil(until) => self.may_hold && until <= now,
                    FenceThere::Absent => false,
                };
                assert!(!self.link || silent, "quiet with a link behind {:?}", self.fence);
            }
            Step::RemoveFence => assert!(!self.link, "a link without its fence"),
            _ => {}
        }
    }

    fn take(&mut self, step: &Step, tenure: Option<Tenure>) {
        match step {
            Step::Speak => self.speaking = true,
            Step::Quiet => self.speaking = false,
            Step::ApplyForwards(_) => self.forwards = true,
            Step::RemoveForwards => self.forwards = false,
            Step::RaiseFence { .. } | Step::CloseFence => self.fence = FenceThere::Closed,
            Step::HoldFence { .. } => self.fence = FenceThere::Held,
            Step::ArmFence { until, .. } => self.fence = FenceThere::ArmedUntil(*until),
            Step::RemoveFence => self.fence = FenceThere::Absent,
            Step::CreateLink(_) => (self.link, self.attached, self.peer) = (true, false, None),
            Step::AttachLink(_) => self.attached = true,
            Step::SetPeer(_) => self.peer = tenure.map(|tenure| tenure.transitions),
            Step::RemoveLink(_) => (self.link, self.attached, self.peer) = (false, false, None),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// I1, I2: whatever happens in whatever order, and whichever steps fail.
    #[test]
    fn i1_i2_never_up_unless_leading_and_never_quiet_while_up(acts in acts(), may_hold in any::<bool>()) {
        let (mut controller, mut there) = (standby(), There { may_hold, ..There::default() });
        if may_hold {
            controller = controller.holding("we");
        }
        let (mut now, mut tenure, mut stopped, mut transitions) = (at(0), None::<Tenure>, false, 1);
        for act in acts {
            match act {
                Act::Lead(millis, anew) => {
                    let until = now + Duration::from_millis(millis.into());
                    let lasts = tenure.filter(|tenure| tenure.until > now && !anew);
                    transitions += i32::from(anew);
                    // No two tenures begin at one moment.
                    let since = lasts.map_or(now + Duration::from_nanos(transitions as u64), |tenure| tenure.since);
                    let next = Tenure { since, until, transitions, before: if millis % 2 == 0 { Before::GaveBack } else { Before::Other } };
                    tenure = Some(next);
                    controller.handle(Event::Leadership(Leadership::Leading(next)), now);
                }
                Act::Follow(named) => {
                    tenure = None;
                    let holder = named.then(|| "other".to_owned());
                    controller.handle(Event::Leadership(Leadership::Following { holder }), now);
                }
                Act::Forwards(some) => {
                    let forwards = if some { Forwards::from([one_forward()]) } else { Forwards::default() };
                    controller.handle(Event::Forwards(Arc::new(forwards)), now);
                }
                Act::Settings(port, alive) => {
                    let port = if port { 51820 } else { 51821 };
                    controller.handle(Event::Settings(Arc::new(settings(port, if alive { 5 } else { 25 }))), now);
                    controller.handle(Event::Endpoint(HUB.parse().unwrap()), now);
                }
                Act::Drift(bits) => {
                    let drift = Drift { link: bits & 1 > 0, network: bits & 2 > 0, forwards: bits & 4 > 0, fence: bits & 8 > 0 };
                    if there.attached {
                        let plan = Arc::clone(controller.plan().unwrap());
                        controller.done(&Step::Audit(plan), Outcome::Drift(drift), now);
                        if drift.link { (there.link, there.attached, there.peer) = (false, false, None); }
                        if drift.network { there.attached = false; }
                        if drift.forwards { there.forwards = false; }
                        if drift.fence { there.fence = FenceThere::Absent; }
                    }
                }
                Act::Pass(millis) => now = now + Duration::from_millis(millis.into()),
                Act::Steps(count, luck) => for turn in 0..count {
                    let Next::Do(step) = controller.next(now) else { break };
                    there.check(&step, now, tenure.filter(|_| !stopped));
                    if luck >> (turn % 64) & 1 == 1 {
                        there.take(&step, tenure);
                        controller.done(&step, outcome(&step, luck & 1 == 1), now);
                    } else {
                        controller.failed(&step, "bad luck".into(), now);
                    }
                },
                Act::Stop(ending) => { stopped = true; controller.handle(Event::Stop(ending), now); }
            }
        }
        // I3: whatever state it was stopped in, it ends with nothing there.
        controller.handle(Event::Stop(Ending::Removal), now);
        let mut left = BTreeSet::new();
        for _ in 0..900 {
            match controller.next(now) {
                Next::Do(step) => {
                    there.check(&step, now, None);
                    there.take(&step, None);
                    controller.done(&step, outcome(&step, true), now);
                    left.insert(names(&[step])[0].clone());
                }
                Next::WaitUntil(then) => now = then,
                Next::Finished => break,
            }
        }
        prop_assert_eq!(controller.next(now), Next::Finished, "still to do: {:?}", left);
        prop_assert!(!there.link && there.fence == FenceThere::Absent && !there.forwards && !there.speaking);
    }
}
