//! URLs from outside: any text is resolved or refused by field, never a panic, and no error shows the
//! password. `PROPTEST_CASES` says how many are tried.

use kagzi_core::StoreError;
use proptest::prelude::*;

use super::PostgresOptions;

fn url() -> impl Strategy<Value = String> {
    let parameter = prop_oneof![
        4 => "partitions=-?[0-9]{0,5}",
        4 => "schema=[a-zA-Z0-9_\"; ]{0,12}",
        2 => "schema=[a-z0-9_]{0,60}",
        2 => "pooler=(none|transaction|[a-z]{0,5})",
        2 => "sslmode=(disable|require|prefer)",
        1 => "(options|user|host|port|dbname)=[ -%'-~]{0,10}",
        2 => "(host|port)=[a-z0-9,]{0,10}",
        2 => "target_session_attrs=(any|read-write|primary|[a-z-]{0,8})",
        1 => "[ -~]{0,12}",
    ];
    let parameters = prop::collection::vec(parameter, 0..3).prop_map(|all| all.join("&"));
    let host = prop_oneof![
        4 => "[a-z]{1,8}(:[0-9]{1,4})?",
        2 => "[a-z]{0,4}(:[0-9]{0,6})?(,[a-z]{0,4}(:[0-9]{0,6})?){1,3}",
        1 => "[a-z0-9.\\[\\]:,]{0,12}",
    ];
    prop_oneof![
        1 => any::<String>(),
        1 => "postgres://[ -~]{0,40}",
        6 => ("postgres(ql)?://", "[a-z]{1,4}", host, parameters)
            .prop_map(|(scheme, user, host, parameters)| format!("{scheme}{user}:S3CRET@{host}/d?{parameters}")),
    ]
}

proptest! {
    #[test]
    fn any_url_is_resolved_or_refused_by_field(url in url()) {
        match PostgresOptions::new(&url).resolve() {
            Ok((options, servers, _)) => {
                prop_assert!(!servers.each.is_empty());
                prop_assert!(options.partitions.is_none_or(|partitions| (1..=4096).contains(&partitions)));
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                prop_assert!(options.schema.is_none_or(|schema| schema.chars().all(plain)));
            }
            Err(error @ StoreError::InvalidArgument { .. }) => {
                prop_assert!(!error.to_string().contains("S3CRET"), "{}", error);
            }
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }
}
