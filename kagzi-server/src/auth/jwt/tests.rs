//! The examples of the standards, and everything that must not get through.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::json;

use super::super::key::read;
use super::*;

const NOW: u64 = 1_300_819_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn encode(value: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(value)
}

fn rules() -> Rules {
    Rules {
        issuer: "joe".to_owned(),
        audience: "kagzi".to_owned(),
        subject_claim: "sub".to_owned(),
        leeway: Duration::from_secs(10),
    }
}

/// A key of the test's own, with the set that tells of it.
pub(in super::super) struct Signer(Ed25519KeyPair);

impl Signer {
    pub(in super::super) fn new() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
    }

    pub(in super::super) fn jwk(&self, id: &str) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": encode(self.0.public_key().as_ref())})
    }

    pub(in super::super) fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = encode(self.0.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }
}

fn set(keys: &[Value]) -> Vec<Key> {
    read(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

fn claims() -> Value {
    json!({"iss": "joe", "aud": "kagzi", "sub": "ada", "exp": NOW + 60})
}

fn with(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[name] = value;
    claims
}

fn without(claims: &Value, name: &str) -> Value {
    let mut claims = claims.clone();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

const ED: &str = r#"{"alg":"EdDSA","kid":"k"}"#;

fn ed() -> Value {
    serde_json::from_str(ED).unwrap()
}

/// The signature of a whole example over its signing input.
fn verifies(example: &str, key: &Key) -> bool {
    let (signed, signature) = example.rsplit_once('.').unwrap();
    key.verifies(signed.as_bytes(), &decoded(signature).unwrap())
}

/// RFC 8037, appendix A.4; RFC 7515, appendices A.2 and A.3.
#[test]
fn the_examples_of_the_standards_verify_and_damaged_ones_do_not() {
    let examples = [
        (
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
        (
            r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#,
            "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
        (
            r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    ];
    for (jwk, example) in examples {
        let key = &set(&[serde_json::from_str(jwk).unwrap()])[0];
        assert!(verifies(example, key), "{jwk}");
        for at in [0, example.len() / 2] {
            let mut damaged = example.to_owned().into_bytes();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            assert!(!verifies(&String::from_utf8(damaged).unwrap(), key));
        }
    }
    // The two of RFC 7515 hold claims, as far as they go.
    let rsa = set(&[serde_json::from_str(examples[1].0).unwrap()]);
    let fault = verify(examples[1].1, &rsa, &rules(), at(NOW)).unwrap_err();
    assert_eq!(fault, Fault::Refused("a JWT for another audience"), "issuer and time were right");
    let late = verify(examples[1].1, &rsa, &rules(), at(1_300_819_390)).unwrap_err();
    assert_eq!(late, Fault::Refused("a JWT that has expired"));
}

#[test]
fn what_says_all_that_it_must_gets_through() {
    let signer = Signer::new();
    let keys = set(&[signer.jwk("k")]);
    let expected = Verified { subject: "ada".into(), until: at(NOW + 70), key: keys[0].fingerprint() };
    let good = [
        claims(),
        with(&claims(), "aud", json!(["other", "kagzi"])),
        with(&claims(), "nbf", json!(NOW + 10)),
        with(&claims(), "nbf", json!(1_300_818_999.5)),
    ];
    for claims in good {
        let token = signer.sign(&ed(), &claims);
        assert_eq!(verify(&token, &keys, &rules(), at(NOW)), Ok(expected.clone()), "{claims}");
        let token = signer.sign(&json!({"alg": "EdDSA", "typ": "at+jwt"}), &claims);
        assert_eq!(verify(&token, &keys, &rules(), at(NOW)), Ok(expected.clone()), "without a kid");
    }
    let by_mail = Rules { subject_claim: "email".to_owned(), ..rules() };
    let token = signer.sign(&ed(), &with(&claims(), "email", json!("a@b")));
    assert_eq!(verify(&token, &keys, &by_mail, at(NOW)).unwrap().subject, "a@b".into());
}

#[test]
fn claims_that_are_missing_wrong_or_of_another_type_are_refused() {
    let signer = Signer::new();
    let keys = set(&[signer.jwk("k")]);
    let mut bad: Vec<Value> = ["exp", "iss", "aud", "sub"].map(|name| without(&claims(), name)).into();
    let wrong = [
        ("exp", json!(NOW - 10)),
        ("exp", json!((NOW + 60).to_string())),
        ("exp", json!(null)),
        ("exp", json!(-1)),
        ("exp", json!(1e300)),
        ("nbf", json!(NOW + 11)),
        ("nbf", json!(NOW.to_string())),
        ("nbf", json!([NOW])),
        ("iss", json!("jane")),
        ("iss", json!(["joe"])),
        ("aud", json!("kagzi2")),
        ("aud", json!([])),
        ("aud", json!({"kagzi": true})),
        ("sub", json!("")),
        ("sub", json!(7)),
        ("sub", json!("a\nb")),
        ("sub", json!("x".repeat(2000))),
    ];
    bad.extend(wrong.map(|(name, value)| with(&claims(), name, value)));
    bad.push(json!([]));
    for claims in bad {
        let token = signer.sign(&ed(), &claims);
        let fault = verify(&token, &keys, &rules(), at(NOW)).unwrap_err();
        assert!(matches!(fault, Fault::Refused(_)), "{claims}");
    }
}

#[test]
fn the_key_says_the_algorithm_and_the_token_does_not() {
    let (signer, other) = (Signer::new(), Signer::new());
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
    let point = ec.public_key().as_ref();
    let jwk = json!({"kty": "EC", "crv": "P-256", "kid": "e", "x": encode(&point[1..33]), "y": encode(&point[33..])});
    let keys = set(&[signer.jwk("k"), jwk]);
    let by_ec = |header: Value| {
        let input = format!("{}.{}", encode(header.to_string()), encode(claims().to_string()));
        let signature = encode(ec.sign(&random, input.as_bytes()).unwrap().as_ref());
        format!("{input}.{signature}")
    };
    assert!(verify(&by_ec(json!({"alg": "ES256", "kid": "e"})), &keys, &rules(), at(NOW)).is_ok());

    let unsigned =
        |alg: &str| format!("{}.{}.", encode(json!({"alg": alg}).to_string()), encode(claims().to_string()));
    let refused = [
        signer.sign(&json!({"alg": "none", "kid": "k"}), &claims()),
        signer.sign(&json!({"alg": "HS256", "kid": "k"}), &claims()),
        signer.sign(&json!({"alg": "ES256", "kid": "k"}), &claims()),
        signer.sign(&json!({"alg": "EdDSA", "kid": "e"}), &claims()),
        signer.sign(&json!({"alg": "eddsa", "kid": "k"}), &claims()),
        signer.sign(&json!({"alg": "EdDSA", "kid": "k", "crit": ["exp"]}), &claims()),
        by_ec(json!({"alg": "EdDSA", "kid": "e"})),
        other.sign(&ed(), &claims()),
        unsigned("none"),
        unsigned("EdDSA"),
        signer.sign(&json!({"kid": "k"}), &claims()),
        String::new(),
        "..".to_owned(),
        format!("{}.x", signer.sign(&ed(), &claims())),
        "x".repeat(MAX_TOKEN_BYTES + 1),
    ];
    for token in refused {
        assert!(verify(&token, &keys, &rules(), at(NOW)).is_err(), "{token}");
    }
    let unknown = signer.sign(&json!({"alg": "EdDSA", "kid": "new"}), &claims());
    assert_eq!(verify(&unknown, &keys, &rules(), at(NOW)), Err(Fault::UnknownKey));
    let unnamed = other.sign(&json!({"alg": "EdDSA"}), &claims());
    assert_eq!(verify(&unnamed, &keys, &rules(), at(NOW)), Err(Fault::UnknownKey));
}

#[test]
fn a_token_changed_in_any_byte_is_refused() {
    let signer = Signer::new();
    let keys = set(&[signer.jwk("k")]);
    let token = signer.sign(&ed(), &claims());
    for at_byte in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[at_byte] = if changed[at_byte] == b'A' { b'Q' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(verify(&changed, &keys, &rules(), at(NOW)).is_err(), "{at_byte}");
    }
}
