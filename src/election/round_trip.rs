//! What a holder leaves in the Lease for whoever follows it: how long the hub takes to answer a handshake. Who knows
//! that waits neither too long for an answer that was lost, nor too short for one that is on its way: each new handshake
//! has the one before forgotten.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;

/// Annotation of the Lease: whole milliseconds.
pub const ANNOTATION: &str = "wirevip.io/round-trip-ms";

/// Nothing on earth is farther; what says more was not written by us.
const LONGEST: Duration = Duration::from_secs(5);

/// What the last holder wrote, if it did.
pub(super) fn read(lease: &Lease) -> Option<Duration> {
    let text = lease.metadata.annotations.as_ref()?.get(ANNOTATION)?;
    let told = Duration::from_millis(text.parse().ok()?);
    (!told.is_zero() && told <= LONGEST).then_some(told)
}

/// Writes it, rounded up; what is there stays where nothing is known.
pub(super) fn write(lease: &mut Lease, round_trip: Option<Duration>) {
    if let Some(round_trip) = round_trip {
        let millis = round_trip.as_micros().div_ceil(1000).to_string();
        lease.metadata.annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), millis);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nonsense_is_nothing() {
        let mut lease = Lease::default();
        assert_eq!(read(&lease), None);
        write(&mut lease, None);
        assert_eq!(lease, Lease::default());
        write(&mut lease, Some(Duration::from_micros(104_300)));
        assert_eq!(read(&lease), Some(Duration::from_millis(105)));
        write(&mut lease, None);
        assert_eq!(read(&lease), Some(Duration::from_millis(105)), "nothing is known: what was told stays");
        for nonsense in ["", "0", "-1", "1.5", "5001", "99999999999999999999", "a"] {
            lease.metadata.annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), nonsense.to_owned());
            assert_eq!(read(&lease), None, "{nonsense:?}");
        }
    }
}
