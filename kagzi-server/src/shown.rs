//! URLs as they may be shown: in a log, an error, or an answer.
//!
//! Passwords hold any character, those included that end a part of a URL, and nobody encodes them always. So
//! this does not parse what it is given and leave out the password: it shows what certainly holds none, and
//! `***` for the rest.

/// The schemes of stores that have an authority with a user in it.
const POSTGRES: [&str; 2] = ["postgres", "postgresql"];

/// The schemes of servers, collectors and key sets.
const HTTP: [&str; 2] = ["http", "https"];

/// What stands for that which is not shown.
const HIDDEN: &str = "***";

/// The parameters of a Postgres URL whose values are no secret.
const OPEN_PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "partitions",
    "pooler",
    "port",
    "schema",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "target_session_attrs",
    "user",
];

/// What the name of a parameter has in it whose value is a secret.
const SECRET_NAMES: [&str; 4] = ["pass", "pwd", "secret", "token"];

/// A URL as it may be shown: `***` stands for whatever could be a secret.
///
/// Of `postgres://` and `http://` URLs all that stands before the last `@` is hidden but a plain user name, and the
/// values of parameters that are not known to be harmless; where the rest is not plainly a host and a path, all but
/// the scheme is. Of a text that begins with no scheme of ours, everything is.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = known_scheme(url) else { return HIDDEN.to_owned() };
    let is = |schemes: &[&str]| schemes.iter().any(|one| scheme.eq_ignore_ascii_case(one));
    let Some(rest) = rest.strip_prefix("//") else {
        return if rest.is_empty() { url.to_owned() } else { format!("{scheme}:{HIDDEN}") };
    };
    let shown = if is(&POSTGRES) {
        address(rest, User::Shown, &OPEN_PARAMETERS)
    } else if is(&HTTP) {
        address(rest, User::Hidden, &[])
    } else if is(&["sqlite"]) {
        file(rest)
    } else {
        None
    };
    format!("{scheme}://{}", shown.unwrap_or_else(|| HIDDEN.to_owned()))
}

/// Where something is, a file or a URL, as it may be shown.
pub(crate) fn file_or_url(place: &str) -> String {
    match known_scheme(place) {
        None if !names_somebody(place) => place.to_owned(),
        _ => without_password(place),
    }
}

/// Whether a text is a URL of ours that may hold a password: somebody stands before an `@`, or a parameter is named
/// for a secret.
pub fn may_hold_a_password(text: &str) -> bool {
    known_scheme(text).is_some_and(|(scheme, rest)| {
        let authority = rest.trim_start_matches('/').split('/').next().unwrap_or_default();
        let is_http = HTTP.iter().any(|one| scheme.eq_ignore_ascii_case(one));
        names_somebody(rest) || has_secret_parameter(rest) || is_http && authority.contains('@')
    })
}

/// Whether a text that is meant to be a URL may hold a password, also if it is none.
pub fn value_may_hold_a_password(text: &str) -> bool {
    if known_scheme(text).is_some() {
        return may_hold_a_password(text);
    }
    let lower = text.to_ascii_lowercase();
    names_somebody(text) || text.contains('=') && SECRET_NAMES.iter().any(|name| lower.contains(name))
}

/// Whether something that may be `user:password` stands before the last `@`.
fn names_somebody(text: &str) -> bool {
    text.rsplit_once('@').is_some_and(|(before, _)| before.contains(':'))
}

fn has_secret_parameter(text: &str) -> bool {
    let names = text.split(['?', '&', '#']).skip(1).filter_map(|pair| pair.split_once('='));
    names.into_iter().any(|(name, _)| {
        let name = decoded(name).to_ascii_lowercase();
        SECRET_NAMES.iter().any(|secret| name.contains(secret))
    })
}

/// The scheme of ours that a URL begins with, as it is written, and what comes after the colon.
fn known_scheme(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let mut known = POSTGRES.iter().chain(&HTTP).chain(&["sqlite", "memory"]);
    known.any(|one| scheme.eq_ignore_ascii_case(one)).then_some((scheme, rest))
}

/// Whether a user's name is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Shown,
    Hidden,
}

/// `user@hosts/path?parameters`; nothing if it is not plainly that.
fn address(rest: &str, user: User, open: &[&str]) -> Option<String> {
    let (before, place) = match rest.rsplit_once('@') {
        Some((before, place)) => (Some(before), place),
        None => (None, rest),
    };
    let (place, parameters) = place.split_once('?').map_or((place, None), |(place, all)| (place, Some(all)));
    let (hosts, path) = place.find('/').map_or((place, ""), |at| place.split_at(at));
    let plain = hosts.is_empty() || hosts.split(',').all(is_host);
    if !plain || !path.bytes().all(|byte| is_plain(byte) || byte == b'/') {
        return None;
    }
    let who = before.map(|before| match before.split_once(':') {
        Some((name, _)) if user == User::Shown && name.bytes().all(is_plain) => format!("{name}:{HIDDEN}@"),
        None if user == User::Shown && before.bytes().all(is_plain) => format!("{before}@"),
        _ => format!("{HIDDEN}@"),
    });
    let parameters = parameters.map(|all| shown_parameters(all, open)).unwrap_or_default();
    Some(format!("{}{place}{parameters}", who.unwrap_or_default()))
}

/// A path, which may hold anything but parameters, and whatever looks like a password; nothing if it has that.
fn file(path: &str) -> Option<String> {
    let (path, parameters) = path.split_once('?').map_or((path, ""), |(path, all)| (path, all));
    if names_somebody(path) || parameters.contains('@') {
        return None;
    }
    Some(format!("{path}{}", shown_parameters(parameters, &[])))
}

/// `?name=value&...`, with the values of the `open` ones.
fn shown_parameters(all: &str, open: &[&str]) -> String {
    let shown = |pair: &str| match pair.split_once('=') {
        Some((name, value)) if open.contains(&name) && value.bytes().all(is_plain_value) => pair.to_owned(),
        Some((name, _)) if name.len() <= 40 && name.bytes().all(is_plain_name) => format!("{name}={HIDDEN}"),
        _ => HIDDEN.to_owned(),
    };
    let shown: Vec<String> = all.split('&').filter(|pair| !pair.is_empty()).map(shown).collect();
    if shown.is_empty() { String::new() } else { format!("?{}", shown.join("&")) }
}

/// `host`, `host:port` or `[address]:port`.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((address, port)) => {
            let hexadecimal = |byte: u8| byte.is_ascii_hexdigit() || b":.%".contains(&byte);
            if !address.bytes().all(hexadecimal) {
                return false;
            }
            ("", if port.is_empty() { None } else { port.strip_prefix(':').or(Some("none")) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    host.bytes().all(is_plain) && port.is_none_or(|port| port.is_empty() || port.parse::<u16>().is_ok())
}

/// What URLs leave as it is, and the sign of what they do not.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'%')
}

fn is_plain_name(byte: u8) -> bool {
    is_plain(byte) || matches!(byte, b'[' | b']')
}

fn is_plain_value(byte: u8) -> bool {
    is_plain(byte) || matches!(byte, b'/' | b',' | b':' | b'[' | b']')
}

/// A text without its `%xx`, as far as they stand for characters of ASCII.
fn decoded(text: &str) -> String {
    let mut decoded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        decoded.push_str(before);
        let code = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(u8::is_ascii);
        if let Some(code) = code {
            decoded.push(char::from(code));
            rest = &after[2..];
        } else {
            decoded.push('%');
            rest = after;
        }
    }
    decoded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way of writing a password that somebody has used.
    const WITH_SECRETS: [&str; 23] = [
        "postgres://u:SECRET@h/db",
        "postgres://u:SECRET/Cd+e=@h/db",
        "postgres://u:ab/SECRET@h/db",
        "postgres://u:ab?SECRET@h/db",
        "postgres://u:ab?SECRET=x&y@h/db",
        "postgres://u:ab#SECRET@h/db",
        "postgres://u:12/SECRET@h/db",
        "postgres://u:ab@SECRET@h/db",
        "postgres://u:ab/SECRET",
        "postgres://u:SECRET",
        "postgres:u:SECRET@h",
        "postgres:/u:SECRET@h/db",
        "POSTGRES://u:SECRET@h/db",
        "u:SECRET@h/db",
        "host=h user=u password=SECRET",
        "mysql://u:SECRET@h/db",
        "postgres://h/db?password=SECRET",
        "postgres://h/db?passw%6Frd=SECRET",
        "postgres://h/db?pass=SECRET&sslmode=disable",
        "postgres://h/db?password=a&SECRET",
        "https://u:SECRET@h/keys",
        "https://SECRET@h/keys",
        "sqlite://u:SECRET@h/db",
    ];

    #[test]
    fn however_a_password_is_written_it_is_not_shown() {
        for url in WITH_SECRETS {
            assert!(!without_password(url).contains("SECRET"), "{url}: {}", without_password(url));
            let url = url.replace("SECRET", "ab/Cd+e=SECRET");
            assert!(!without_password(&url).contains("SECRET"), "{url}: {}", without_password(&url));
        }
        for url in ["https://h/keys?key=SECRET", "http:u:SECRET@h", "u:SECRET@h/keys"] {
            assert!(!file_or_url(url).contains("SECRET"), "{url}: {}", file_or_url(url));
        }
    }

    #[test]
    fn what_is_no_secret_is_shown() {
        let cases = [
            ("postgres://u:p@h:5432/db", "postgres://u:***@h:5432/db"),
            ("postgres://u:p@w@h/db", "postgres://u:***@h/db"),
            ("postgres://u:a/b?c@h/db", "postgres://u:***@h/db"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("postgres://a,b:5433,[::1]:5434/db", "postgres://a,b:5433,[::1]:5434/db"),
            ("postgres://h/db?user=a@b", "postgres://***@b"),
            (
                "postgres://h?user=u&password=p%26&sslmode=disable",
                "postgres://h?user=u&password=***&sslmode=disable",
            ),
            ("postgres:///db?host=/run/pg&options=-c%20a=b", "postgres:///db?host=/run/pg&options=***"),
            ("sqlite:///data/a@b.db", "sqlite:///data/a@b.db"),
            ("sqlite://kagzi.db", "sqlite://kagzi.db"),
            ("memory:", "memory:"),
            (
                "https://acme.example:8443/.well-known/jwks.json",
                "https://acme.example:8443/.well-known/jwks.json",
            ),
            ("https://u:p@h/keys?key=k", "https://***@h/keys?key=***"),
        ];
        for (url, shown) in cases {
            assert_eq!(without_password(url), shown);
        }
        assert_eq!(file_or_url("/etc/kagzi/keys.json"), "/etc/kagzi/keys.json");
    }

    #[test]
    fn a_password_in_a_url_is_noticed_and_a_harmless_url_is_not_suspected() {
        for url in WITH_SECRETS {
            // A port that is none is refused elsewhere.
            let elsewhere = ["postgres://u:ab/SECRET", "postgres://u:SECRET"];
            assert_eq!(value_may_hold_a_password(url), !elsewhere.contains(&url), "{url}");
        }
        for url in [
            "postgres://u@h/db?sslmode=require&options=-c%20a=b",
            "postgres://h:5432/db",
            "sqlite:///a@b:c.db",
            "sqlite://kagzi.db",
            "kagzi.db",
            "memory:",
            "https://h:7474/keys?v=1",
        ] {
            assert!(!value_may_hold_a_password(url), "{url}");
        }
    }
}
