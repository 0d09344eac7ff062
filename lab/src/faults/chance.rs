//! Two faults by chance, from a seed: the same seed, the same pair. Pure.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Fault;

/// Two faults, the second some time after the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pair {
    /// The first.
    pub first: Fault,
    /// The second; another than the first.
    pub second: Fault,
    /// How long after the first.
    pub after: Duration,
}

/// The pair of this seed.
pub fn pair(seed: u64) -> Pair {
    let kinds = Fault::all();
    let mut random = StdRng::seed_from_u64(seed);
    let mut choose = || match kinds[random.random_range(0..kinds.len())] {
        Fault::Freeze(_) => Fault::Freeze(random.random_range(1..=3)),
        Fault::ApiSlow(_) => Fault::ApiSlow(random.random_range(100..=5000)),
        other => other,
    };
    let first = choose();
    let mut second = choose();
    while std::mem::discriminant(&first) == std::mem::discriminant(&second) || first.unguards(second) {
        second = choose();
    }
    // While nobody gets an answer, the lab cannot meddle with objects either.
    if first.is_without_api() {
        let after = Duration::from_millis(random.random_range(0..2000));
        return Pair { first: second, second: first, after };
    }
    Pair { first, second, after: Duration::from_millis(random.random_range(0..2000)) }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, second, after } = self;
        write!(f, "{first}, and {} ms later {second}", after.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_a_pair_and_many_seeds_are_all_faults() {
        let pairs: Vec<Pair> = (0..2000).map(pair).collect();
        assert_eq!(pairs, (0..2000).map(pair).collect::<Vec<_>>());
        let names: BTreeSet<String> =
            pairs.iter().flat_map(|pair| [pair.first, pair.second]).map(|f| f.to_string()).collect();
        for fault in Fault::all() {
            let is_drawn_anew = matches!(fault, Fault::Freeze(4..) | Fault::ApiSlow(_));
            assert!(is_drawn_anew || names.contains(&fault.to_string()), "{fault}");
        }
        assert!(pairs.iter().all(|pair| pair.first.to_string() != pair.second.to_string()));
        assert!(!pairs.iter().any(|pair| pair.first.unguards(pair.second)));
        assert!(pairs.iter().all(|pair| !pair.first.is_without_api() || pair.second.is_without_api()));
    }
}
