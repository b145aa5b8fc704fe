//! Whether a URL is one whose parts can be told apart, with parameters that somebody knows.
//!
//! The driver logs a parameter that it does not know, with its value, and goes on: a misspelt password would stand
//! in the log. And a password with a character in it that ends a part of a URL would be taken for a database or a
//! parameter, and show in an error. So both are refused before the driver sees the URL. No error repeats a value.

use kagzi_core::StoreError;

use super::refused;

/// The parameters that we or the driver know, and `options[NAME]`.
const KNOWN: [&str; 23] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "partitions",
    "password",
    "pooler",
    "port",
    "schema",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "target_session_attrs",
    "user",
    "options[NAME]",
];

/// Refuses a URL whose user, password or parameters are not plainly told apart, and a parameter that nobody knows.
pub(super) fn check(url: &str) -> Result<(), StoreError> {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let rest = base.split_once("://").map_or(base, |(_, rest)| rest);
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    if path.contains('@') || url.contains('#') {
        return Err(not_encoded());
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split_once('=').map(|(name, _)| name);
        if name.is_some_and(is_known) {
            continue;
        }
        // What looks like a name may be a part of a password that has a `?` in it.
        let name = name.filter(|name| is_plain(name) && !query.contains('@')).ok_or_else(not_encoded)?;
        return Err(refused("parameter", &format!("one of {}", KNOWN.join(", ")), name));
    }
    Ok(())
}

fn is_known(name: &str) -> bool {
    KNOWN.contains(&name) || name.strip_prefix("options[").is_some_and(|name| name.ends_with(']'))
}

/// Whether a text is a name as parameters have them.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.%[]".contains(&byte))
}

fn not_encoded() -> StoreError {
    let expected = "postgres://USER:PASSWORD@HOST/DATABASE?NAME=VALUE, where / ? # & and @ in a user, a password, a \
                    database or a value are written as %xx (%2F %3F %23 %26 %40)";
    refused("url", expected, "one of these characters in another place")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_knows_goes_on_to_it() {
        for url in [
            "postgres://h/d",
            "postgres://u:p%2F%40@h:1/d?sslmode=require&password=p%3D&options[geqo]=off&options=-c%20a=b",
            "postgres://u:p@w@h/d?application_name=x&",
            "postgres:///d?host=/run/pg&user=a@b",
        ] {
            assert!(check(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn every_parameter_that_is_known_is_taken() {
        for name in &KNOWN[..KNOWN.len() - 1] {
            assert!(check(&format!("postgres://h/d?{name}=1")).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_parameter_that_nobody_knows_is_refused_by_name_and_a_password_that_is_not_encoded_without_it() {
        for (url, said) in [
            ("postgres://h/d?pass=SECRET", "got pass"),
            ("postgres://h/d?sslmode=disable&passwd=SECRET", "got passwd"),
            ("postgres://h/d?passw%6Frd=SECRET", "got passw%6Frd"),
            ("postgres://h/d?password=a&SECRET", "%26"),
            ("postgres://h/d?SECRET/b=", "%2F"),
            ("postgres://u:a/SECRET@h/d", "%2F"),
            ("postgres://u:12/SECRET@h/d", "%2F"),
            ("postgres://u:a?SECRET@h/d", "%3F"),
            ("postgres://u:a?SECRET=b@h/d", "%3F"),
            ("postgres://u:a#SECRET@h/d", "%23"),
        ] {
            let told = check(url).unwrap_err().to_string();
            assert!(told.contains(said) && !told.contains("SECRET"), "{url}: {told}");
        }
    }
}
