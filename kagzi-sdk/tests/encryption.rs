//! What encryption takes, gives and refuses, payload by payload.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use kagzi_sdk::{
    ContentType, Encryption, IdempotencyKey, Namespace, Payload, PayloadCodec, PayloadError, PayloadPlace,
    RunId, StepId, WorkflowType,
};
use proptest::prelude::*;

const KEY_A: &str = "a:QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
const KEY_B: &str = "b:QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=";
const OTHER_A: &str = "a:Q0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0M=";

fn keys(keys: &[&str]) -> Encryption {
    Encryption::from_keys(keys.join("\n")).unwrap()
}

/// Two of everything that a place is made of.
struct Names {
    namespaces: [Namespace; 2],
    types: [WorkflowType; 2],
    idempotency: [IdempotencyKey; 2],
    runs: [RunId; 2],
    steps: [StepId; 2],
}

fn names() -> Names {
    let run = |last: u8| format!("019b76da-a800-7000-8000-0000000000{last:02x}").parse().unwrap();
    Names {
        namespaces: ["one", "two"].map(|name| Namespace::new(name).unwrap()),
        types: ["charge", "refund"].map(|name| WorkflowType::new(name).unwrap()),
        idempotency: ["k1", "k2"].map(|name| IdempotencyKey::new(name).unwrap()),
        runs: [run(1), run(2)],
        steps: ["pay", "pay#2"].map(|name| StepId::new(name).unwrap()),
    }
}

impl Names {
    fn input(&self, namespace: usize, workflow_type: usize, key: Option<usize>) -> PayloadPlace<'_> {
        PayloadPlace::Input {
            namespace: &self.namespaces[namespace],
            workflow_type: &self.types[workflow_type],
            idempotency_key: key.map(|key| &self.idempotency[key]),
        }
    }

    fn step(&self, namespace: usize, run: usize, step: usize) -> PayloadPlace<'_> {
        let (namespace, run_id) = (&self.namespaces[namespace], self.runs[run]);
        PayloadPlace::StepOutput { namespace, run_id, step_id: &self.steps[step] }
    }

    /// Places of which no two are the same.
    fn places(&self) -> Vec<PayloadPlace<'_>> {
        let (namespace, other) = (&self.namespaces[0], &self.namespaces[1]);
        let run_id = self.runs[0];
        vec![
            self.input(0, 0, None),
            self.input(1, 0, None),
            self.input(0, 1, None),
            self.input(0, 0, Some(0)),
            self.input(0, 0, Some(1)),
            self.step(0, 0, 0),
            self.step(1, 0, 0),
            self.step(0, 1, 0),
            self.step(0, 0, 1),
            PayloadPlace::RunOutput { namespace, run_id },
            PayloadPlace::RunOutput { namespace: other, run_id },
            PayloadPlace::RunOutput { namespace, run_id: self.runs[1] },
            PayloadPlace::FailureDetails { namespace, run_id },
            PayloadPlace::FailureDetails { namespace, run_id: self.runs[1] },
        ]
    }
}

fn changed(payload: &Payload, change: impl FnOnce(&mut Vec<u8>)) -> Payload {
    let mut bytes = payload.bytes.to_vec();
    change(&mut bytes);
    Payload::new(payload.content_type.clone(), bytes)
}

#[test]
fn a_payload_opens_at_its_place_and_at_no_other() {
    let (encryption, names) = (keys(&[KEY_A]), names());
    let places = names.places();
    let payload = Payload::new(ContentType::new("text/x").unwrap(), &b"\0\xffsecret"[..]);
    for (at, place) in places.iter().enumerate() {
        let sealed = encryption.encode(payload.clone(), place).unwrap();
        assert_eq!(sealed.content_type.as_str(), Encryption::CONTENT_TYPE);
        for (elsewhere, other) in places.iter().enumerate() {
            let opened = encryption.decode(sealed.clone(), other);
            if at == elsewhere {
                assert_eq!(opened.unwrap(), payload);
            } else {
                assert_eq!(
                    opened.unwrap_err(),
                    PayloadError::Tampered { key_id: "a".to_owned() },
                    "{other:?}"
                );
            }
        }
    }
}

#[test]
fn a_payload_grows_by_what_the_documentation_says_and_may_be_empty() {
    let (encryption, names) = (keys(&[&KEY_A.replace("a:", "2026-11:")]), names());
    for length in [0_usize, 1, 1000] {
        let payload = Payload::json(vec![b'x'; length]);
        let sealed = encryption.encode(payload.clone(), &names.step(0, 0, 0)).unwrap();
        assert_eq!(sealed.len_bytes(), length + 66);
        assert_eq!(encryption.decode(sealed, &names.step(0, 0, 0)).unwrap(), payload);
    }
}

#[test]
fn a_change_of_any_bit_and_every_cut_are_refused() {
    let (encryption, names) = (keys(&[KEY_A]), names());
    let place = names.step(0, 0, 0);
    let sealed = encryption.encode(Payload::json("\"secret\""), &place).unwrap();
    for at in 0..sealed.len_bytes() {
        for bit in 0..8 {
            let error =
                encryption.decode(changed(&sealed, |bytes| bytes[at] ^= 1 << bit), &place).unwrap_err();
            let expected = match at {
                0 | 1 => matches!(error, PayloadError::Malformed { .. } | PayloadError::UnknownKey { .. }),
                2 => matches!(error, PayloadError::Malformed { .. } | PayloadError::UnknownKey { .. }),
                _ => matches!(error, PayloadError::Tampered { .. }),
            };
            assert!(expected, "byte {at}, bit {bit}: {error}");
        }
        encryption.decode(changed(&sealed, |bytes| bytes.truncate(at)), &place).unwrap_err();
    }
    encryption.decode(changed(&sealed, |bytes| bytes.push(0)), &place).unwrap_err();
    // What stands where the key id should is not repeated in an error unless it can be one.
    let error = encryption.decode(changed(&sealed, |bytes| bytes[2] = b'\n'), &place).unwrap_err();
    assert_eq!(error, PayloadError::Malformed { problem: "its key id is not one" });
}

#[test]
fn every_key_of_the_ring_is_read_with_and_the_first_is_written_with() {
    let names = names();
    let place = names.step(0, 0, 0);
    let (old, both, new) = (keys(&[KEY_A]), keys(&[KEY_B, KEY_A]), keys(&[KEY_B]));
    let payload = Payload::json("1");
    let by_old = old.encode(payload.clone(), &place).unwrap();
    let by_both = both.encode(payload.clone(), &place).unwrap();
    assert_eq!(both.active_key_id(), "b");
    assert_eq!(both.decode(by_old.clone(), &place).unwrap(), payload);
    assert_eq!(new.decode(by_both.clone(), &place).unwrap(), payload);
    let unknown = old.decode(by_both, &place).unwrap_err();
    assert_eq!(unknown, PayloadError::UnknownKey { key_id: "b".to_owned(), known: vec!["a".to_owned()] });
    assert!(unknown.may_pass() && unknown.to_string().contains("key \"b\""), "{unknown}");
    let wrong = keys(&[OTHER_A]).decode(by_old, &place).unwrap_err();
    assert_eq!(wrong, PayloadError::Tampered { key_id: "a".to_owned() });
    assert!(!wrong.may_pass());
}

#[test]
fn plain_text_is_refused_unless_it_is_accepted() {
    let (strict, names) = (keys(&[KEY_A]), names());
    let place = names.step(0, 0, 0);
    let plain = Payload::json("\"secret\"");
    let error = strict.decode(plain.clone(), &place).unwrap_err();
    assert_eq!(error, PayloadError::NotEncrypted { content_type: ContentType::json() });
    assert!(!error.to_string().contains("secret"));
    let accepting = strict.accept_plaintext();
    assert_eq!(accepting.decode(plain.clone(), &place).unwrap(), plain);
    assert_ne!(accepting.encode(plain.clone(), &place).unwrap(), plain, "it still writes no plain text");
}

#[test]
fn only_an_input_with_an_idempotency_key_is_the_same_again() {
    let (encryption, names) = (keys(&[KEY_A]), names());
    let sealed = |place, text: &'static str| encryption.encode(Payload::json(text), &place).unwrap();
    for place in names.places() {
        let repeats = matches!(place, PayloadPlace::Input { idempotency_key: Some(_), .. });
        assert_eq!(sealed(place, "1") == sealed(place, "1"), repeats, "{place:?}");
    }
    // Nothing but that it is the same start can be seen: neither part of the nonce is that of another.
    let nonce = |payload: Payload| payload.bytes[3..27].to_vec();
    let one = nonce(sealed(names.input(0, 0, Some(0)), "1"));
    for other in [
        sealed(names.input(0, 0, Some(0)), "2"),
        sealed(names.input(0, 0, Some(1)), "1"),
        sealed(names.input(1, 0, Some(0)), "1"),
        sealed(names.input(0, 1, Some(0)), "1"),
    ] {
        let other = nonce(other);
        assert!(one[..12] != other[..12] && one[12..] != other[12..]);
    }
}

#[test]
fn keys_come_from_a_file_and_never_show() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    std::fs::write(&path, format!("# written with\n{KEY_B} # since today\n\n{KEY_A}\n")).unwrap();
    let encryption = Encryption::from_file(&path).unwrap();
    assert_eq!(encryption.active_key_id(), "b");
    let shown = format!("{encryption:?}");
    assert!(
        shown.contains("[\"b\", \"a\"]") && !shown.contains("QUFB") && !shown.contains("65, 65"),
        "{shown}"
    );
    let missing = Encryption::from_file(directory.path().join("none")).unwrap_err();
    assert!(missing.to_string().contains("none"), "{missing}");
    let unset = Encryption::from_variable("KAGZI_NO_SUCH_KEYS").unwrap_err();
    assert!(unset.to_string().contains("KAGZI_NO_SUCH_KEYS: it is not set"), "{unset}");

    for (text, problem) in [
        ("", "there is no key"),
        ("# nothing", "there is no key"),
        ("QUFBc2VjcmV0", "line 1: expected key-id:base64, got no colon"),
        ("\na b:QUFBc2VjcmV0", "line 2: expected key-id:base64, got no colon"),
        ("a/b:QUFBc2VjcmV0", "line 1: expected key-id:base64 with an id"),
        (":QUFBc2VjcmV0", "line 1: expected key-id:base64 with an id"),
        ("a:QUFBc2VjcmV0", "line 1: the key of id \"a\" has 9 bytes, expected 32"),
        ("a:QUFBc2VjcmV0!", "line 1: the key of id \"a\" is not base64"),
        (&format!("{KEY_A}\n{OTHER_A}"), "line 2: key id \"a\" is there twice"),
    ] {
        let error = Encryption::from_keys(text).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(problem), "{text:?}: {error}");
        assert!(!shown.contains("QUFB") && !shown.contains("Q0ND"), "{error}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic_or_pass(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let payload = Payload::new(ContentType::new(Encryption::CONTENT_TYPE).unwrap(), bytes);
        prop_assert!(keys(&[KEY_A]).decode(payload, &names().step(0, 0, 0)).is_err());
    }

    #[test]
    fn nearly_right_bytes_make_the_reader_neither_panic_nor_pass(
        at in 0_usize..80,
        new in prop::collection::vec(any::<u8>(), 0..6),
        cut in 0_usize..80,
    ) {
        let (encryption, names) = (keys(&[KEY_A]), names());
        let place = names.step(0, 0, 0);
        let sealed = encryption.encode(Payload::json("\"secret\""), &place).unwrap();
        let other = changed(&sealed, |bytes| {
            let from = at.min(bytes.len());
            let to = (from + new.len()).min(bytes.len());
            bytes.splice(from..to, new);
            bytes.truncate(cut.max(1));
        });
        let opened = encryption.decode(other.clone(), &place);
        prop_assert_eq!(opened.is_ok(), other == sealed);
    }

    #[test]
    fn no_text_of_keys_makes_the_parser_panic(text in "[ab:#\n =A-C/]{0,100}") {
        drop(Encryption::from_keys(text));
    }

    #[test]
    fn what_was_sealed_opens(bytes in prop::collection::vec(any::<u8>(), 0..300), keyed in any::<bool>()) {
        let (encryption, names) = (keys(&[KEY_B, KEY_A]), names());
        let place = if keyed { names.input(0, 0, Some(0)) } else { names.step(0, 0, 0) };
        let payload = Payload::raw(bytes);
        let sealed = encryption.encode(payload.clone(), &place).unwrap();
        prop_assert_eq!(encryption.decode(sealed, &place).unwrap(), payload);
    }
}
