//! What a client's certificate calls its client.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::der::{OBJECT_IDENTIFIER, PRINTABLE_STRING, SEQUENCE, SET, UTF8_STRING, element};

/// The object identifier of a common name, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The names in a certificate that was verified, the most telling first: `uri:` and `dns:` of its
/// subject alternative names. Only where there are none, its common name as `cn:`, since authorities
/// take less care with that one.
pub(super) fn of(certificate: &CertificateDer<'_>) -> Arc<[String]> {
    // It was verified, so it can be read.
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Arc::default() };
    let uris = certificate.valid_uri_names().map(|name| format!("uri:{name}"));
    let names: Vec<String> =
        uris.chain(certificate.valid_dns_names().map(|name| format!("dns:{name}"))).collect();
    if !names.is_empty() {
        return names.into();
    }
    common_name(certificate.subject()).map(|name| format!("cn:{name}")).into_iter().collect()
}

/// The common name in a distinguished name, if there is exactly one.
fn common_name(mut distinguished: &[u8]) -> Option<&str> {
    let mut found = None;
    while !distinguished.is_empty() {
        let (mut set, rest) = element(distinguished, SET)?;
        distinguished = rest;
        while !set.is_empty() {
            let (pair, rest) = element(set, SEQUENCE)?;
            set = rest;
            let (kind, value) = element(pair, OBJECT_IDENTIFIER)?;
            if kind != COMMON_NAME {
                continue;
            }
            let text = element(value, UTF8_STRING).or_else(|| element(value, PRINTABLE_STRING))?.0;
            if found.replace(std::str::from_utf8(text).ok()?).is_some() {
                return None;
            }
        }
    }
    found.filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn names(san: Vec<SanType>, common_names: &[&str]) -> Vec<String> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = san;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "o".repeat(300));
        for name in common_names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        let key = KeyPair::generate().unwrap();
        of(params.self_signed(&key).unwrap().der()).to_vec()
    }

    #[test]
    fn alternative_names_come_before_the_common_name() {
        let uri = SanType::URI("spiffe://acme/billing".try_into().unwrap());
        let dns = SanType::DnsName("worker.internal".try_into().unwrap());
        assert_eq!(names(vec![dns, uri], &["c"]), ["uri:spiffe://acme/billing", "dns:worker.internal"]);
        assert_eq!(names(Vec::new(), &["Billing ü"]), ["cn:Billing ü"]);
        assert!(names(Vec::new(), &[]).is_empty());
    }

    #[test]
    fn what_is_no_distinguished_name_has_no_common_name() {
        let whole = [0x31, 10, 0x30, 8, 0x06, 3, 0x55, 0x04, 0x03, 0x0c, 1, b'x'];
        assert_eq!(common_name(&whole), Some("x"));
        assert_eq!(common_name(&[whole, whole].concat()), None, "two of them");
        for end in 0..whole.len() {
            assert_eq!(common_name(&whole[..end]), None, "{end}");
        }
        for at in 0..whole.len() - 1 {
            let mut damaged = whole;
            damaged[at] ^= 0x80;
            assert_eq!(common_name(&damaged), None, "{at}");
        }
    }
}
