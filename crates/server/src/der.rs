//! The subject of a client certificate: common name and organizations.
//!
//! Reads no more of X.509 than that; the certificate's signature and dates were checked by TLS.

use api::certificate::element;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];

/// Common name and organizations of a certificate's subject.
pub fn subject(certificate: &[u8]) -> Option<(String, Vec<String>)> {
    let (SEQUENCE, certificate, _) = element(certificate)? else { return None };
    let (SEQUENCE, mut body, _) = element(certificate)? else { return None };
    if body.first() == Some(&VERSION) {
        body = element(body)?.2;
    }
    // serial, signature algorithm, issuer, validity
    for _ in 0..4 {
        body = element(body)?.2;
    }
    let (SEQUENCE, mut names, _) = element(body)? else { return None };
    let (mut common_name, mut organizations) = (String::new(), Vec::new());
    while !names.is_empty() {
        let (_, mut set, rest) = element(names)?;
        names = rest;
        while !set.is_empty() {
            let (_, pair, rest) = element(set)?;
            set = rest;
            let (_, oid, value) = element(pair)?;
            let text = String::from_utf8(element(value)?.1.to_vec()).ok()?;
            match oid {
                COMMON_NAME => common_name = text,
                ORGANIZATION => organizations.push(text),
                _ => {}
            }
        }
    }
    Some((common_name, organizations))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    #[test]
    fn subjects_are_read_and_garbage_is_refused() {
        let mut params = CertificateParams::new(vec!["x".to_owned()]).unwrap();
        let mut name = DistinguishedName::new();
        name.push(DnType::CountryName, "NL");
        name.push(DnType::OrganizationName, "system:masters");
        name.push(DnType::CommonName, "kubernetes-admin");
        params.distinguished_name = name;
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        assert_eq!(subject(&der), Some(("kubernetes-admin".into(), vec!["system:masters".into()])));
        for cut in 0..80 {
            assert_eq!(subject(&der[..cut]), None);
        }
    }
}
