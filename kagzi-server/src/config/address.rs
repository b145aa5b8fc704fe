//! Addresses to listen on.

use std::net::IpAddr;

use super::{ConfigError, refuse};

/// Refuses what is not `HOST:PORT`. Whether the host exists is for the system to say, when it is
/// listened on.
pub(super) fn check(key: &str, address: &str) -> Result<(), ConfigError> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    if port.is_none_or(|port| port.parse::<u16>().is_err()) {
        let expected = "HOST:PORT with a port from 0 to 65535, such as 127.0.0.1:7474";
        return refuse(key, expected, format!("{address:?}"));
    }
    Ok(())
}

/// Whether only programs on this machine can reach the address. A name other than `localhost` may stand
/// for anything.
pub(super) fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certainly_this_machine_is_loopback() {
        for inside in ["127.0.0.1:80", "127.9.9.9:0", "[::1]:80", "localhost:80", "LOCALHOST:1"] {
            assert!(is_loopback(inside), "{inside}");
        }
        for outside in
            ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "localhost.example:80", "kagzi:80", "1.1.1.1:1"]
        {
            assert!(!is_loopback(outside), "{outside}");
        }
    }
}
