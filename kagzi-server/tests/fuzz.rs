//! What operators write (the TOML file, URLs of stores): any text is read or refused with words about
//! it, never a panic and never the password. `PROPTEST_CASES` says how many are tried.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write as _;

use kagzi_server::{ServeArgs, Settings, without_password};
use kagzi_store_sqlite::SqliteOptions;
use proptest::collection::vec;
use proptest::prelude::*;

/// Lines that are nearly settings.
fn toml() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("listen"),
        Just("store"),
        Just("store_connections"),
        Just("store_partitions"),
        Just("namespaces"),
        Just("max_payload_bytes"),
        Just("default_lease"),
        Just("min_lease"),
        Just("max_lease"),
        Just("poison_after"),
        Just("max_batch"),
        Just("poll_interval"),
        Just("reap_batch"),
        Just("retry_factor"),
        Just("retry_jitter"),
        Just("retry_max_attempts"),
        Just("log_format"),
        Just("log_level"),
        Just("drain_timeout"),
        Just("nonsense"),
    ];
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        (0_u32..20).prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:?}")),
        "\"[0-9]{1,4}(us|ms|s|m|h|d)\"",
        "\"[ -!#-\\[\\]-~]{0,20}\"",
        "\\[(\"[a-z ]{0,5}\",){0,3}\\]",
        Just("true".to_owned()),
        Just("nan".to_owned()),
        Just("\"json\"".to_owned()),
    ];
    vec((key, value), 0..6).prop_map(|lines| {
        lines.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join("\n")
    })
}

fn read(text: &[u8]) -> Result<kagzi_server::ServerConfig, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text).unwrap();
    let config = Some(file.path().to_owned());
    ServeArgs { config, settings: Settings::default() }.into_config().map_err(|error| error.to_string())
}

proptest! {
    #[test]
    fn a_file_is_read_and_valid_or_refused_in_words(
        text in prop_oneof![
            4 => toml().prop_map(String::into_bytes),
            1 => any::<String>().prop_map(String::into_bytes),
            1 => vec(any::<u8>(), 0..100),
        ]
    ) {
        match read(&text) {
            Ok(config) => prop_assert!(config.validate().is_ok(), "what was read is valid"),
            Err(told) => prop_assert!(!told.is_empty()),
        }
    }

    #[test]
    fn a_password_is_never_shown(
        user in "[a-z]{0,8}", host in "[a-z0-9.]{1,12}", rest in "[a-z0-9/?&=]{0,20}",
        scheme in "(postgres|postgresql|sqlite|x)"
    ) {
        let url = format!("{scheme}://{user}:S3CRET@{host}/{rest}");
        prop_assert!(!without_password(&url).contains("S3CRET"), "{}", url);
        let url = format!("{scheme}://{host}/d?{rest}&password=S3CRET");
        prop_assert!(!without_password(&url).contains("S3CRET"), "{}", url);
    }

    #[test]
    fn urls_without_a_password_are_shown_as_they_are(url in "(sqlite|postgres)://[a-z]{1,8}(/[a-z]{0,8})?") {
        prop_assert_eq!(without_password(&url), url);
    }

    #[test]
    fn any_text_can_be_a_url_and_nothing_panics(text in any::<String>(), tail in "[ -~]{0,40}") {
        for url in [text, format!("sqlite://{tail}"), format!("postgres://{tail}"), tail] {
            without_password(&url);
            match SqliteOptions::from_url(&url) {
                Ok(options) => prop_assert!(url.ends_with(options.path().to_str().unwrap())),
                Err(error) => prop_assert!(error.to_string().starts_with("store: "), "{}", error),
            }
        }
    }
}
