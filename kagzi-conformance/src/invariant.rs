//! The invariants in a line each, for reports. The contract itself stands at [`kagzi_core::Store`].

/// The name and the rule of each invariant, the first at place 0.
const INVARIANTS: [(&str, &str); 15] = [
    ("Exclusive lease", "at any moment at most one (worker, token) holds a run; tokens only grow"),
    (
        "Fencing",
        "every write on behalf of a worker names its lease; if the token is not the run's current one, or the run is not RUNNING, the write answers LeaseLost and changes nothing",
    ),
    (
        "One executor per attempt",
        "for one (run, step) at most one attempt is RUNNING, and at most one is ever COMPLETED",
    ),
    ("Memoization", "once a step is COMPLETED, every later begin returns the same bytes"),
    (
        "History",
        "attempts are only appended; numbers are dense from 1; the highest is the latest; a begin under a new lease abandons what ran under an older one",
    ),
    ("Terminal states are final", "whoever writes next and however late; only a requeue moves a dead letter"),
    ("Idempotent start", "(namespace, idempotency key) names one run; a different request is a conflict"),
    (
        "Idempotent retries",
        "a write sent again under its operation id gives the first answer and no second effect",
    ),
    ("Durability", "what was acknowledged survives kill -9 of any process and loss of power"),
    (
        "No lost wake-up, no early wake-up",
        "a due run is claimable unless its queue is paused; a sleeper never runs before its time",
    ),
    ("Isolation", "no call with one namespace sees or touches another's rows"),
    ("Fidelity", "a payload comes back to the byte; limits are enforced before anything is written"),
    ("Order", "claims within a queue go by claim_rank, then run id; nothing starves"),
    (
        "Bounded reaping",
        "a reap treats at most its limit; concurrent reapers never treat one run twice; poison runs end as dead letters",
    ),
    ("Atomicity", "an operation happens whole or not at all, and an error means not at all"),
];

/// The invariant of this number, as `name: rule`.
pub(crate) fn invariant(number: u8) -> Option<String> {
    let (name, rule) = INVARIANTS.get(usize::from(number).checked_sub(1)?)?;
    Some(format!("{name}: {rule}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_contract() {
        let contract = include_str!("../../kagzi-core/src/store.rs");
        for (place, (name, _)) in INVARIANTS.iter().enumerate() {
            let heading = format!("/// {}. **{name}", place + 1);
            assert!(contract.contains(&heading), "{heading} is not at kagzi_core::Store");
        }
        assert_eq!((invariant(0), invariant(16)), (None, None));
    }
}
