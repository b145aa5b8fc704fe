//! What core reads from outside (names, ids, cursors, times, labels, recorded answers): any text and
//! any bytes are either read and given back as they were, or refused with an error that names the
//! field. `PROPTEST_CASES` says how many of each are tried.

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::time::Duration;

use kagzi_core::{
    AttemptScope, ContentType, Cursor, IdempotencyKey, Labels, ListAttempts, ListRuns, Namespace,
    OperationId, PageRequest, Payload, Priority, QueueName, RecordedAnswer, RetryPolicy, Rules, RunFilter,
    RunId, StepId, StoreError, Timestamp, WorkerId, WorkflowType,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

/// A text of any length and kind, often near the rules: blanks, controls, long runs of one letter.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~]{0,80}",
        "[a-z\u{0}-\u{20}\u{80}-\u{ff}]{0,12}",
        (any::<char>(), 0_usize..300).prop_map(|(letter, times)| letter.to_string().repeat(times)),
    ]
}

fn names_its_field<T>(read: Result<T, StoreError>, expected: &str) -> Result<Option<T>, TestCaseError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::InvalidArgument { field, .. }) => {
            prop_assert!(field.starts_with(expected), "{} is not {}", field, expected);
            Ok(None)
        }
        Err(other) => Err(TestCaseError::fail(format!("{other:?}"))),
    }
}

fn text_round_trips<T>(field: &str, text: &str) -> Result<(), TestCaseError>
where
    T: FromStr<Err = StoreError> + Display + PartialEq + Debug,
{
    if let Some(value) = names_its_field(text.parse::<T>(), field)? {
        prop_assert_eq!(value.to_string().parse::<T>().ok(), Some(value));
    }
    Ok(())
}

proptest! {
    #[test]
    fn names_are_kept_to_the_byte_or_refused_by_field(text in text()) {
        macro_rules! check {
            ($($name:ident: $field:literal),*) => {$(
                let json = serde_json::to_string(&text).unwrap();
                if let Some(name) = names_its_field($name::new(&text), $field)? {
                    prop_assert_eq!(name.as_str(), &text);
                    prop_assert!((1..=$name::MAX_BYTES).contains(&text.len()));
                    prop_assert_eq!(serde_json::from_str::<$name>(&json).unwrap(), name);
                } else {
                    prop_assert!(serde_json::from_str::<$name>(&json).is_err(), "no way round the rule");
                }
            )*};
        }
        check!(
            Namespace: "namespace", QueueName: "queue", WorkflowType: "workflow_type", StepId: "step_id",
            WorkerId: "worker_id", IdempotencyKey: "idempotency_key", ContentType: "content_type"
        );
    }

    #[test]
    fn ids_and_times_are_read_or_refused(text in prop_oneof![
        text(),
        "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "-?[0-9]{1,6}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,12})?(Z|[+-][0-9]{2}:[0-9]{2})?",
        "[0-9]{4}-0[1-9]-[0-2][1-8]T[01][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?Z",
    ]) {
        text_round_trips::<RunId>("run_id", &text)?;
        text_round_trips::<OperationId>("operation_id", &text)?;
        text_round_trips::<Timestamp>("timestamp", &text)?;
    }

    #[test]
    fn moments_stay_within_the_years_and_round_trip(micros in any::<i64>(), by in any::<Duration>()) {
        let clamped = Timestamp::from_micros_clamped(micros);
        prop_assert_eq!(clamped.to_string().parse::<Timestamp>().unwrap(), clamped);
        for moment in [clamped.saturating_add(by), clamped.saturating_sub(by)] {
            prop_assert!((Timestamp::MIN..=Timestamp::MAX).contains(&moment));
        }
        if let Some(moment) = names_its_field(Timestamp::from_micros(micros), "timestamp")? {
            prop_assert_eq!(moment.as_micros(), micros);
        }
    }

    #[test]
    fn labels_are_kept_or_refused_by_field(labels in btree_map(text(), text(), 0..40)) {
        if let Some(read) = names_its_field(Labels::new(labels.clone()), "labels")? {
            prop_assert_eq!(read.as_map(), &labels);
        }
    }

    #[test]
    fn plain_labels_are_accepted(labels in btree_map("[A-Za-z0-9._/-]{1,63}", "[ -~]{0,255}", 0..=32)) {
        let read = Labels::new(labels).unwrap();
        let json = serde_json::to_string(&read).unwrap();
        prop_assert_eq!(serde_json::from_str::<Labels>(&json).unwrap(), read);
    }

    #[test]
    fn cursors_open_where_they_were_sealed_and_nowhere_else(
        listing in text(), other in text(), place in vec(any::<u8>(), 0..600), invented in text()
    ) {
        let cursor = Cursor::seal(&listing, &place);
        prop_assert_eq!(cursor.open(&listing).unwrap(), place);
        prop_assert!(listing == other || cursor.open(&other).is_err());
        let invented = Cursor::from_text(invented);
        let refused = matches!(invented.open(&listing), Err(StoreError::BadCursor { .. }));
        prop_assert!(refused);
    }

    /// The checksum is no secret: whoever can compute it can seal any place, which must do no harm.
    #[test]
    fn forged_places_of_listings_are_refused_and_never_panic(
        place in prop_oneof![vec(any::<u8>(), 0..40), vec(0_u8..128, 8..300), Just(vec![0xff; 24])],
        limit in any::<u32>()
    ) {
        let (namespace, filter) = (Namespace::new("n").unwrap(), RunFilter::default());
        let cursor = Cursor::seal(&format!("runs {namespace:?} {filter:?}"), &place);
        let page = PageRequest { limit, cursor: Some(cursor) };
        let listing = ListRuns { namespace: namespace.clone(), filter, page };
        if let Ok(Some((at, run_id))) = listing.place() {
            let bytes = [&at.as_micros().to_be_bytes()[..], run_id.as_uuid().as_bytes()].concat();
            prop_assert_eq!(&bytes, &place);
        }
        let run_id = RunId::for_start(&namespace, OperationId::generate(), None);
        let scope = AttemptScope::All;
        let cursor = Cursor::seal(&format!("attempts {namespace:?} {run_id} {scope:?}"), &place);
        let page = PageRequest { limit: 1, cursor: Some(cursor) };
        match (ListAttempts { namespace, run_id, scope, page }).place() {
            Ok(Some((position, step_id, attempt))) => {
                let numbers = [position.to_be_bytes(), attempt.to_be_bytes()].concat();
                prop_assert_eq!([&numbers[..], step_id.as_str().as_bytes()].concat(), place);
            }
            Ok(None) => prop_assert!(place.is_empty(), "only the start has an empty place"),
            Err(error) => {
                let kind = error.reason();
                prop_assert!(matches!(kind, "BAD_CURSOR" | "INVALID_ARGUMENT"), "{}", error);
            }
        }
    }

    #[test]
    fn recorded_answers_are_read_or_refused(text in prop_oneof![
        text(),
        "\\{\"(released|cancelled|requeued|slept|step_failed)\":(\"[A-Z][a-z]{3,9}\"|\\{\"[A-Za-z]{3,15}\":-?[0-9]{1,19}\\})\\}",
        Just(r#"{"released":"Released"}"#.to_owned()),
    ]) {
        if let Ok(answer) = RecordedAnswer::from_text(&text) {
            prop_assert_eq!(RecordedAnswer::from_text(&answer.to_text().unwrap()).unwrap(), answer);
        }
    }

    #[test]
    fn payloads_are_checked_to_the_byte(length in 0_usize..200, limit in 1_usize..200) {
        let rules = Rules { max_payload_bytes: limit, ..Rules::default() };
        let payload = Payload::raw(vec![0_u8; length]);
        match rules.check_payload("input", &payload) {
            Ok(()) => prop_assert!(length <= limit),
            Err(StoreError::TooLarge { field, limit_bytes, actual_bytes }) => {
                prop_assert_eq!((&*field, limit_bytes, actual_bytes), ("input", limit, length));
                prop_assert!(length > limit);
            }
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn payloads_survive_json_to_the_byte(bytes in vec(any::<u8>(), 0..300)) {
        let payload = Payload::raw(bytes);
        let json = serde_json::to_string(&payload).unwrap();
        prop_assert_eq!(serde_json::from_str::<Payload>(&json).unwrap(), payload);
    }

    #[test]
    fn valid_policies_never_delay_longer_than_they_say(
        max_attempts in any::<u32>(),
        first in 0_u64..=u64::MAX, longest in 0_u64..=u64::MAX,
        factor in prop_oneof![any::<f64>(), 1.0..=1000.0], jitter in prop_oneof![any::<f64>(), 0.0..=1.0],
        failures in any::<u32>(), seed in any::<u64>()
    ) {
        // Shifted, so that small ones come up as often as enormous ones.
        let duration = |n: u64| Duration::from_micros(n >> (n % 64));
        let policy = RetryPolicy {
            max_attempts,
            first_delay: duration(first),
            factor,
            max_delay: duration(longest),
            jitter,
            non_retryable_codes: Vec::new(),
        };
        if names_its_field(policy.validate(), "retry_policy.")?.is_some() {
            prop_assert!(policy.delay(failures, seed) <= policy.max_delay);
        }
    }

    #[test]
    fn priorities_are_kept_or_refused(level in prop_oneof![any::<i64>(), -20_i64..20]) {
        if let Some(priority) = names_its_field(Priority::new(level), "priority")? {
            prop_assert_eq!(i64::from(priority.get()), level);
        }
    }
}
