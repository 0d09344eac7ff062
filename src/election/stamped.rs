//! How late the last handshake of a tunnel's key may have been stamped, as far as its Lease tells.
//!
//! A hub answers a handshake only if its stamp is later than the last that it saw for the key, and all pods have one key.
//! A stamp is its maker's wall clock, and of that the Lease shows enough:
//!
//! - A leader stamps nothing after its tenure: nothing later than `renewTime` + the Lease's duration. Nobody takes the
//!   Lease before that much has passed since the renewal was seen, unless it was given back, which is when it is silent.
//!   So no stamp is later than `renewTime` + the time since it was seen, up to the duration.
//! - A leader whose own clock is behind stamps later than it writes: see [`ANNOTATION`].

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;

use super::Record;
use super::view::Observed;
use crate::clock::Moment;

/// On a Lease whose holder's wall clock is behind an earlier holder's, or was set back: no handshake so far is stamped
/// later than this or than the record says, whichever is later. RFC 3339. Whoever writes the Lease keeps it, or
/// takes it away once its own clock is past it.
pub const ANNOTATION: &str = "wirevip.io/handshakes-stamped-until";

/// Room for the handshakes of a leader whose clock is behind, which are a nanosecond apart.
const ROOM: Duration = Duration::from_millis(1);

/// What is later than our clock by more is no clock that is wrong, but a Lease that somebody broke; to follow it would make
/// the hub refuse everybody else for as long. A machine that takes local time for UTC is 14 h off.
const FAR: SignedDuration = SignedDuration::from_hours(24);

/// What one candidate knows of the stamps of others.
#[derive(Clone, Debug, Default)]
pub(super) struct Stamped {
    /// The latest of holders whose record is not the Lease's any more.
    past: Option<Timestamp>,
    /// The latest before the write that is under way.
    before_write: Option<Timestamp>,
    /// The latest before the present or last tenure.
    pub(super) before_tenure: Option<Timestamp>,
}

impl Stamped {
    /// A record with this [`Observed::last_stamp`] is not the Lease's any more.
    pub(super) fn passed(&mut self, last: Option<Timestamp>) {
        self.past = self.past.max(last);
    }

    /// The Lease that is to be written next in the place of this one, but for its record; `wall` is our clock.
    pub(super) fn replace(&mut self, last: &Observed, now: Moment, wall: Timestamp) -> Lease {
        // By a clock that is ahead, perhaps this very pod's before it was set back: how long ago it was, only its holder knew.
        let ahead = !last.record.holder.is_empty() && last.record.renewed > Some(wall);
        let now = if ahead { last.seen + last.record.duration() } else { now };
        self.before_write = credible([self.past, last.shown_stamp(now)], wall);
        let mut lease = last.lease.clone();
        note(&mut lease, self.before_write, wall);
        lease
    }

    /// A Lease is to be made where there is none. What must be noted on it is, by its first renewal.
    pub(super) fn create(&mut self, wall: Timestamp) {
        self.before_write = credible([self.past, None], wall);
    }

    /// The write that was under way began a tenure.
    pub(super) fn won(&mut self) {
        self.before_tenure = self.before_write;
    }
}

impl Observed {
    /// The latest stamp that the maker of this record may use under it, now that `next` comes in its place: until its term
    /// ends, unless it goes on under the next or is silent.
    pub(super) fn last_stamp(&self, next: Option<&Record>, now: Moment) -> Option<Timestamp> {
        let known = next.is_some_and(|next| next.holder == self.record.holder || next.is_release());
        let silent = known || self.record.holder.is_empty();
        self.shown_stamp(if silent { now } else { self.seen + self.record.duration() })
    }

    /// The latest stamp that the maker of this record, or anybody before it, may have used until now.
    pub(super) fn shown_stamp(&self, now: Moment) -> Option<Timestamp> {
        let Self { record, seen, lease } = self;
        let since = now.since(*seen).min(record.duration());
        let written = record.renewed.and_then(|renewed| renewed.checked_add(since).ok());
        let noted = lease.metadata.annotations.as_ref().and_then(|notes| notes.get(ANNOTATION)?.parse().ok());
        written.max(noted)
    }
}

/// The latest of them that a clock which shows `wall` should believe.
fn credible(stamps: [Option<Timestamp>; 2], wall: Timestamp) -> Option<Timestamp> {
    stamps.into_iter().flatten().filter(|stamp| stamp.duration_since(wall) <= FAR).max()
}

/// Notes on a Lease that its writer's handshakes are stamped after `latest`, if its clock does not say so.
fn note(lease: &mut Lease, latest: Option<Timestamp>, wall: Timestamp) {
    let ahead = latest.filter(|latest| *latest > wall).and_then(|latest| latest.checked_add(ROOM).ok());
    match (ahead, &mut lease.metadata.annotations) {
        (Some(ahead), notes) => {
            notes.get_or_insert_default().insert(ANNOTATION.to_owned(), ahead.to_string());
        }
        (None, Some(notes)) => {
            notes.remove(ANNOTATION);
        }
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn wall(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_750_000_000 + seconds).unwrap()
    }

    fn seen(renewed: i64, note: Option<&str>) -> Observed {
        let record = Record { renewed: Some(wall(renewed)), duration_seconds: 5, ..Record::default() };
        let mut lease = Lease::default();
        lease.metadata.annotations = note.map(|note| [(ANNOTATION.to_owned(), note.to_owned())].into());
        Observed { record, seen: Moment::new(100 * SECOND), lease }
    }

    #[test]
    fn a_holder_stamps_nothing_later_than_its_term() {
        let shown_at = |seconds, note| seen(0, note).shown_stamp(Moment::new(seconds * SECOND));
        assert_eq!(shown_at(100, None), Some(wall(0)));
        assert_eq!(shown_at(103, None), Some(wall(3)));
        assert_eq!(shown_at(200, None), Some(wall(5)), "its tenure is over");
        let later = wall(60).to_string();
        assert_eq!(shown_at(103, Some(&later)), Some(wall(60)));
        let earlier = wall(-60).to_string();
        assert_eq!(shown_at(103, Some(&earlier)), Some(wall(3)));
        assert_eq!(shown_at(103, Some("nonsense")), Some(wall(3)));
    }

    #[test]
    fn what_is_far_away_is_not_believed() {
        let day = 24 * 60 * 60;
        assert_eq!(credible([None, Some(wall(day))], wall(0)), Some(wall(day)));
        assert_eq!(credible([Some(wall(1)), Some(wall(day + 1))], wall(0)), Some(wall(1)));
        assert_eq!(credible([None, None], wall(0)), None);
    }

    #[test]
    fn a_note_is_there_while_the_clock_is_behind_and_no_longer() {
        let mut lease = Lease::default();
        note(&mut lease, Some(wall(0)), wall(0));
        note(&mut lease, None, wall(0));
        assert_eq!(lease, Lease::default(), "a clock that is right leaves a Lease as it is");
        note(&mut lease, Some(wall(60)), wall(0));
        let noted = Observed { lease: lease.clone(), ..seen(0, None) }.shown_stamp(Moment::default());
        assert_eq!(noted, Some(wall(60) + ROOM));
        lease.metadata.annotations.get_or_insert_default().insert("another's".into(), "x".into());
        note(&mut lease, Some(wall(60)), wall(61));
        assert_eq!(lease.metadata.annotations, Some([("another's".to_owned(), "x".to_owned())].into()));
    }
}
