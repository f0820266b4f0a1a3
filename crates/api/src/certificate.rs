//! Certificates as text (PEM) and as bytes (DER): as much of them as trust bundles need.
use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD};

/// One `-----BEGIN …-----` block of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// `CERTIFICATE`, ...
    pub label: String,
    /// Whether there are `Key: value` lines before the content.
    pub headers: bool,
    pub content: Vec<u8>,
}

/// The well-formed blocks of a text, in order; what is between them, and what is not whole, is passed over.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|l| l.strip_suffix("-----")) else { continue };
        // A block that does not end must not swallow the next one.
        let rest = lines.clone();
        if let Some((block, after)) = block(label, rest) {
            found.push(block);
            lines = after;
        }
    }
    found
}

fn block<'a, I: Iterator<Item = &'a str>>(label: &str, mut lines: I) -> Option<(Block, I)> {
    let end = format!("-----END {label}-----");
    let (mut text, mut headers) = (String::new(), false);
    loop {
        let line = lines.next()?;
        if line == end {
            let content = STANDARD.decode(&text).ok()?;
            return Some((Block { label: label.to_owned(), headers, content }, lines));
        }
        if line.starts_with("-----BEGIN ") {
            return None;
        }
        match text.is_empty() && line.contains(':') {
            true => headers = true,
            false => text.extend(line.chars().filter(|c| !c.is_ascii_whitespace())),
        }
    }
}

/// The certificates of several texts, each once, without anything else, in an order that depends on nothing but them.
pub fn normalize<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let all: BTreeSet<Vec<u8>> = texts.into_iter().flat_map(blocks).map(|block| block.content).collect();
    let mut out = String::new();
    for content in all {
        out.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = STANDARD.encode(content);
        for line in text.as_bytes().chunks(64) {
            out.extend(line.iter().map(|b| char::from(*b)));
            out.push('\n');
        }
        out.push_str("-----END CERTIFICATE-----\n");
    }
    out
}

/// One element of DER: tag, content, and what follows.
pub fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        n if n < 0x80 => (usize::from(n), rest),
        n => {
            let count = usize::from(n & 0x7f);
            if count == 0 || count > 4 || rest.len() < count {
                return None;
            }
            let (digits, rest) = rest.split_at(count);
            (digits.iter().fold(0, |all, d| (all << 8) | usize::from(*d)), rest)
        }
    };
    (rest.len() >= length).then(|| {
        let (content, next) = rest.split_at(length);
        (tag, content, next)
    })
}

const BOOLEAN: u8 = 0x01;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// Whether a certificate may sign others (the CA bit of its basic constraints). `None`: these bytes are no X.509 certificate.
///
/// Neither its signature nor its dates are looked at.
pub fn is_authority(certificate: &[u8]) -> Option<bool> {
    let (SEQUENCE, certificate, []) = element(certificate)? else { return None };
    let (SEQUENCE, mut body, rest) = element(certificate)? else { return None };
    let (SEQUENCE, _, rest) = element(rest)? else { return None };
    let (BITS, _, []) = element(rest)? else { return None };
    if body.first() == Some(&VERSION) {
        body = element(body)?.2;
    }
    // Serial number, then five sequences: algorithm, issuer, validity, subject, key.
    body = element(body)?.2;
    for _ in 0..5 {
        let (SEQUENCE, _, rest) = element(body)? else { return None };
        body = rest;
    }
    let mut authority = false;
    while !body.is_empty() {
        let (tag, content, rest) = element(body)?;
        body = rest;
        if tag == EXTENSIONS {
            let (SEQUENCE, list, []) = element(content)? else { return None };
            authority = constraints(list)?;
        }
    }
    Some(authority)
}

fn constraints(mut list: &[u8]) -> Option<bool> {
    let mut authority = false;
    while !list.is_empty() {
        let (SEQUENCE, extension, rest) = element(list)? else { return None };
        list = rest;
        let (_, id, mut value) = element(extension)?;
        if value.first() == Some(&BOOLEAN) {
            value = element(value)?.2;
        }
        let (OCTETS, value, []) = element(value)? else { return None };
        if id == BASIC_CONSTRAINTS {
            let (SEQUENCE, fields, []) = element(value)? else { return None };
            authority = !fields.is_empty() && matches!(element(fields)?, (BOOLEAN, [b], _) if *b != 0);
        }
    }
    Some(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Self-signed, made with `openssl req -x509`: an authority, and one that is none.
    const CA: &str = include_str!("cases/authority.pem");
    const LEAF: &str = include_str!("cases/no_authority.pem");

    #[test]
    fn authorities_are_told_from_others() {
        let content = |text: &str| blocks(text).remove(0).content;
        assert_eq!(is_authority(&content(CA)), Some(true));
        assert_eq!(is_authority(&content(LEAF)), Some(false));
        let ca = content(CA);
        for cut in 0..ca.len() {
            assert_eq!(is_authority(&ca[..cut]), None, "cut at {cut}");
        }
        assert_eq!(is_authority(b"\x30\x80\x00"), None);
    }

    #[test]
    fn blocks_are_found_among_anything() {
        let text =
            format!("hello\n-----BEGIN X-----\nno end\n{CA}tail\n-----BEGIN Y-----\nA: b\n\nAAAA\n-----END Y-----\n");
        let found = blocks(&text);
        assert_eq!(found.iter().map(|b| b.label.as_str()).collect::<Vec<_>>(), ["CERTIFICATE", "Y"]);
        assert_eq!((found[1].headers, found[1].content.as_slice()), (true, &[0, 0, 0][..]));
        assert!(!found[0].headers);
        assert!(blocks("-----BEGIN A-----\n!!\n-----END A-----").is_empty());
    }

    #[test]
    fn bundles_are_normalized() {
        let one = normalize([CA, LEAF]);
        assert_eq!(one, normalize([format!("x\n{LEAF}{CA}{LEAF}").as_str(), CA]));
        assert_eq!(blocks(&one).len(), 2);
        assert!(one.ends_with("-----END CERTIFICATE-----\n") && one.lines().all(|l| l.len() <= 64));
        assert_eq!(normalize([""]), "");
    }
}
