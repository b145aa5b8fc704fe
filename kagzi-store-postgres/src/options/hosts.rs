//! Several hosts in one URL, as libpq takes them: `postgres://a,b:5433/db?target_session_attrs=read-write`.

use kagzi_core::StoreError;

use super::refused;

/// How many hosts a URL may name.
const MAX_HOSTS: usize = 16;

/// What a server must be like for the store to work with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// It answers.
    Any,
    /// It is no standby, and its sessions may write.
    ReadWrite,
    /// It is no standby.
    Primary,
}

impl Target {
    pub(super) fn from_parameter(value: &str) -> Result<Self, StoreError> {
        match value {
            "any" => Ok(Self::Any),
            "read-write" => Ok(Self::ReadWrite),
            "primary" => Ok(Self::Primary),
            _ => {
                let expected = "read-write, primary or any, since the store writes";
                Err(refused("target_session_attrs", expected, value))
            }
        }
    }
}

/// A host, and the port that was named for it.
struct Place<'u> {
    host: &'u str,
    port: Option<u16>,
}

/// One URL for each host that `url` names, in its order; `url` itself if that is one. No error repeats
/// what might be a part of a password.
pub(super) fn one_url_each(url: &str) -> Result<Vec<String>, StoreError> {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) = base.split_once("://").unwrap_or(("postgres", base));
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    // The last `@`: a password may hold one that nobody encoded.
    let (user, hosts) = authority.rfind('@').map_or(("", authority), |at| authority.split_at(at + 1));
    let (mut by_name, mut by_port, mut kept) = (None, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("host", value)) => by_name = Some(value.replace("%2C", ",").replace("%2c", ",")),
            Some(("port", value)) => by_port = Some(value.replace("%2C", ",").replace("%2c", ",")),
            _ => kept.push(pair),
        }
    }
    let is_list = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains(','));
    if !(hosts.contains(',') || is_list(&by_name) || is_list(&by_port)) {
        return Ok(vec![url.to_owned()]);
    }
    if kept.iter().any(|pair| pair.starts_with("hostaddr=")) {
        return Err(refused(
            "hostaddr",
            "no such parameter beside several hosts: name addresses as hosts",
            "one",
        ));
    }
    let mut places = match &by_name {
        Some(names) => names.split(',').map(|host| Ok(Place { host, port: None })).collect(),
        None => hosts.split(',').map(place).collect::<Result<Vec<_>, _>>(),
    }?;
    check_hosts(&places)?;
    if let Some(ports) = &by_port {
        set_ports(&mut places, ports)?;
    }
    let each = places.iter().map(|place| {
        let port = place.port.map(|port| port.to_string());
        let mut parameters: Vec<String> = kept.iter().map(|pair| (*pair).to_owned()).collect();
        let authority = if by_name.is_some() {
            // A path or a bare IPv6 address cannot stand before the database; the parameter wins over what does.
            parameters.push(format!("host={}", place.host));
            parameters.extend(port.map(|port| format!("port={port}")));
            "localhost".to_owned()
        } else {
            format!("{}{}", place.host, port.map(|port| format!(":{port}")).unwrap_or_default())
        };
        let question = if parameters.is_empty() { "" } else { "?" };
        format!("{scheme}://{user}{authority}{path}{question}{}", parameters.join("&"))
    });
    Ok(each.collect())
}

/// `host`, `host:port` or `[address]:port`.
fn place(text: &str) -> Result<Place<'_>, StoreError> {
    let after_address = text.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = text[after_address..].find(':').map(|at| after_address + at) else {
        return Ok(Place { host: text, port: None });
    };
    let (host, port) = (&text[..colon], &text[colon + 1..]);
    Ok(Place { host, port: if port.is_empty() { None } else { Some(number(port)?) } })
}

fn number(text: &str) -> Result<u16, StoreError> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        refused("port", "from 1 to 65535", if digits { text } else { "something else" })
    })
}

fn check_hosts(places: &[Place<'_>]) -> Result<(), StoreError> {
    if places.len() > MAX_HOSTS {
        return Err(refused("host", &format!("at most {MAX_HOSTS} hosts"), &places.len().to_string()));
    }
    match places.iter().position(|place| place.host.is_empty()) {
        Some(at) => {
            let got = format!("none at place {} of {}", at + 1, places.len());
            Err(refused("host", "a name, an address or a directory of a socket at each place", &got))
        }
        None => Ok(()),
    }
}

/// One port for all hosts, or one for each; an empty one is the default.
fn set_ports(places: &mut [Place<'_>], ports: &str) -> Result<(), StoreError> {
    let given: Vec<&str> = ports.split(',').collect();
    if given.len() != 1 && given.len() != places.len() {
        let expected = format!("one port for all hosts, or one for each of {}", places.len());
        return Err(refused("port", &expected, &format!("{} ports", given.len())));
    }
    for (place, port) in places.iter_mut().zip(given.iter().cycle()) {
        place.port = if port.is_empty() { None } else { Some(number(port)?) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_gets_a_url_with_all_the_rest() {
        for (url, expected) in [
            ("postgres://u:p@a/d?sslmode=require", &["postgres://u:p@a/d?sslmode=require"][..]),
            ("postgres:///d?host=/run/pg", &["postgres:///d?host=/run/pg"]),
            (
                "postgres://u:p@a,b:5433,[::1]:5434,[::2]/d?sslmode=require",
                &[
                    "postgres://u:p@a/d?sslmode=require",
                    "postgres://u:p@b:5433/d?sslmode=require",
                    "postgres://u:p@[::1]:5434/d?sslmode=require",
                    "postgres://u:p@[::2]/d?sslmode=require",
                ],
            ),
            ("postgres://a:,b", &["postgres://a", "postgres://b"]),
            ("postgres://a,b/d?port=6000", &["postgres://a:6000/d", "postgres://b:6000/d"]),
            ("postgres://a:1,b:2/d?port=6000,", &["postgres://a:6000/d", "postgres://b/d"]),
            (
                "postgres://u@/d?host=/run/pg,b%2C::1&port=1,2,3&x=y",
                &[
                    "postgres://u@localhost/d?x=y&host=/run/pg&port=1",
                    "postgres://u@localhost/d?x=y&host=b&port=2",
                    "postgres://u@localhost/d?x=y&host=::1&port=3",
                ],
            ),
            ("postgres://u:p@w@%2Frun%2Fpg,b/d", &["postgres://u:p@w@%2Frun%2Fpg/d", "postgres://u:p@w@b/d"]),
        ] {
            assert_eq!(one_url_each(url).unwrap(), expected, "{url}");
        }
    }

    #[test]
    fn hosts_and_ports_that_do_not_fit_are_refused_by_name() {
        for (url, said) in [
            (
                "postgres://a,,b/d",
                "host: expected a name, an address or a directory of a socket at each place, got none at place 2 of 3",
            ),
            ("postgres://u:secret@,b/d", "got none at place 1 of 2"),
            ("postgres://u@a,/d", "got none at place 2 of 2"),
            ("postgres:///d?host=a,", "got none at place 2 of 2"),
            (
                "postgres://a,b,c/d?port=1,2",
                "port: expected one port for all hosts, or one for each of 3, got 2 ports",
            ),
            ("postgres://a/d?port=1,2", "or one for each of 1, got 2 ports"),
            ("postgres://a:0,b/d", "port: expected from 1 to 65535, got 0"),
            ("postgres://a:65536,b/d", "got 65536"),
            ("postgres://u:secret/more@a,b:x/d?port=y,z", "got something else"),
            ("postgres://a,b/d?hostaddr=10.0.0.1", "hostaddr: expected no such parameter"),
            ("postgres://a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a/d", "host: expected at most 16 hosts, got 17"),
        ] {
            let error = one_url_each(url).unwrap_err();
            assert!(matches!(&error, StoreError::InvalidArgument { .. }), "{url}: {error}");
            let text = error.to_string();
            assert!(text.contains(said) && !text.contains("secret"), "{url}: {text}");
        }
    }
}
