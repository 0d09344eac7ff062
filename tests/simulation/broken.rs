//! The checker objects to each program that is broken on purpose, for the right reason, and within few histories.

use crate::checker::Kind;
use crate::mutants::Mutant;
use crate::run::judge;

fn caught(mutant: Mutant, kind: Kind, within: u64) {
    for seed in 1..=within {
        let (_, objections) = judge(seed, mutant);
        if let Some(objection) = objections.iter().find(|objection| objection.kind == kind) {
            eprintln!("{mutant:?}: caught by history {seed}: {objection}");
            return;
        }
    }
    panic!("{mutant:?} is not found to be {kind:?} in {within} histories");
}

#[test]
fn releasing_before_the_tunnel_is_down_is_objected_to() {
    caught(Mutant::ReleasesBeforeDown, Kind::SpokeOnRelease, 20);
    caught(Mutant::ReleasesBeforeDown, Kind::TwoSpeakers, 20);
}

#[test]
fn a_fence_without_margin_is_objected_to() {
    caught(Mutant::NoMargin, Kind::ArmedTooLong, 5);
    caught(Mutant::NoMargin, Kind::TwoSpeakers, 500);
}

#[test]
fn trusting_the_holders_clock_is_objected_to() {
    caught(Mutant::TrustsRemoteClock, Kind::Stolen, 20);
    caught(Mutant::TrustsRemoteClock, Kind::TwoSpeakers, 500);
}

#[test]
fn doing_without_a_fence_is_objected_to() {
    caught(Mutant::NoFence, Kind::Unfenced, 5);
    caught(Mutant::NoFence, Kind::TwoSpeakers, 50);
}

#[test]
fn arming_the_fence_for_too_long_is_objected_to() {
    caught(Mutant::ArmsTooLong, Kind::ArmedTooLong, 5);
    caught(Mutant::ArmsTooLong, Kind::TwoSpeakers, 50);
}

#[test]
fn a_rearming_that_fails_on_an_expired_element_is_objected_to() {
    caught(Mutant::RearmFailsOnExpired, Kind::NotHeld, 500);
}

#[test]
fn a_fence_that_a_change_of_the_forwards_wipes_is_objected_to() {
    caught(Mutant::ForwardsWipeFence, Kind::Hole, 20);
}

#[test]
fn leading_on_although_another_led_in_between_is_objected_to() {
    caught(Mutant::LeadsOn, Kind::OldSession, 50);
}

#[test]
fn writing_the_lease_whatever_its_version_is_objected_to() {
    caught(Mutant::WritesUnguarded, Kind::Stolen, 200);
}

#[test]
fn not_counting_changes_of_holder_is_objected_to() {
    caught(Mutant::CountsNothing, Kind::Miscounted, 5);
}

#[test]
fn leaving_something_behind_is_objected_to() {
    caught(Mutant::LeavesForwards, Kind::LeftBehind, 5);
}

#[test]
fn not_putting_back_what_an_outsider_took_is_objected_to() {
    caught(Mutant::NeverLooks, Kind::NotBack, 5);
}

#[test]
fn not_ending_in_time_is_objected_to() {
    caught(Mutant::KeepsLink, Kind::Lingers, 5);
}

#[test]
fn holding_without_a_fence_is_objected_to() {
    caught(Mutant::HoldSpeaksFreely, Kind::ArmedTooLong, 5);
    caught(Mutant::HoldSpeaksFreely, Kind::TwoSpeakers, 50);
}

#[test]
fn handshakes_and_keepalives_in_hold_are_objected_to() {
    caught(Mutant::DefusesNothing, Kind::Unasked, 200);
}

#[test]
fn answering_a_hub_that_has_just_spoken_to_another_is_objected_to() {
    caught(Mutant::IgnoresForeign, Kind::Unasked, 200);
}

#[test]
fn leaving_the_hub_to_a_predecessor_is_objected_to() {
    caught(Mutant::NeverInsists, Kind::PulledBack, 500);
}
