//! Rules for names, in upstream's sentences: empty result means valid.

/// Longest name of most objects.
pub const SUBDOMAIN_MAX: usize = 253;
/// Longest DNS label, label key (its name part) and label value.
pub const LABEL_MAX: usize = 63;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_SAYS: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// As `too_long`, in the words that upstream has for labels and their keys.
fn too_many_bytes(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// Upstream's way to explain a pattern.
fn pattern(says: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{says} (e.g. {}regex used for validation is '{regex}')", examples.join(" or "))
}

fn edges(value: &str, edge: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = value.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => edge(first) && edge(last) && bytes.iter().all(|&b| edge(b) || inner(b)),
        _ => false,
    }
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn label_like(value: &str) -> bool {
    edges(value, lower_alnum, |b| b == b'-')
}

fn subdomain_like(value: &str) -> bool {
    value.split('.').all(label_like)
}

/// A DNS label: Namespaces, containers, volumes.
pub fn dns_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !label_like(value) {
        errors.push(if subdomain_like(value) {
            "must not contain dots".to_owned()
        } else {
            pattern(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                LABEL,
                &["my-name", "123-abc"],
            )
        });
    }
    errors
}

/// A DNS subdomain: names of most objects.
pub fn dns_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        errors.push(too_long(SUBDOMAIN_MAX));
    }
    errors.extend(subdomain_form(value));
    errors
}

fn subdomain_form(value: &str) -> Option<String> {
    (!subdomain_like(value)).then(|| {
        pattern(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            SUBDOMAIN,
            &["example.com"],
        )
    })
}

/// The name of an Event about an object of this name, by the nanoseconds since 1970 at which it is made. Of a name that leaves no
/// room for them, the end is cut off.
pub fn event_name(about: &str, nanoseconds: i128) -> String {
    let time = format!(".{nanoseconds:x}");
    let room = SUBDOMAIN_MAX.saturating_sub(time.len());
    let kept = about.char_indices().take_while(|(at, c)| at + c.len_utf8() <= room).map(|(_, c)| c).collect::<String>();
    // What is cut off may follow a dot.
    kept.trim_end_matches(['.', '-']).to_owned() + &time
}

/// A DNS label that starts with a letter: Services.
pub fn dns_1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !label_like(value) || value.as_bytes()[0].is_ascii_digit() {
        errors.push(pattern(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

fn qualified_like(value: &str) -> bool {
    edges(value, |b| b.is_ascii_alphanumeric(), |b| matches!(b, b'-' | b'_' | b'.'))
}

/// A label or annotation key, a finalizer: an optional DNS subdomain and `/`, then a name.
pub fn qualified_name(value: &str) -> Vec<String> {
    let examples = &["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let mut parts = value.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                let long = (prefix.len() > SUBDOMAIN_MAX).then(|| too_many_bytes(SUBDOMAIN_MAX));
                errors.extend(long.into_iter().chain(subdomain_form(prefix)).map(|e| format!("prefix part {e}")));
            }
            name
        }
        _ => {
            let says = pattern(&format!("a valid label key {QUALIFIED_SAYS}"), QUALIFIED, examples);
            return vec![format!("{says} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        errors.push(format!("name part {}", too_many_bytes(LABEL_MAX)));
    }
    if !qualified_like(name) {
        errors.push(pattern(&format!("name part {QUALIFIED_SAYS}"), QUALIFIED, examples));
    }
    errors
}

/// The value of a label.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_many_bytes(LABEL_MAX));
    }
    if !value.is_empty() && !qualified_like(value) {
        errors.push(pattern(
            &format!(
                "a valid label must be an empty string or consist of {}",
                QUALIFIED_SAYS.trim_start_matches("must consist of ")
            ),
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// A name that becomes one segment of a path.
pub fn path_segment(value: &str) -> Vec<String> {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    ["/", "%"].iter().filter(|c| value.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// The start of a generated name: as `rule` for the whole name, but it may end in a dash.
pub fn prefix_of(rule: impl Fn(&str) -> Vec<String>, value: &str) -> Vec<String> {
    // Looked at as if something followed.
    if value.len() > 1 && value.ends_with('-') {
        rule(&format!("{}a", value.trim_end_matches('-')))
    } else {
        rule(value)
    }
}

fn no_parent_steps(value: &str) -> Option<String> {
    match value {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if value.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// A key of a ConfigMap or Secret.
pub fn config_key(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        errors.push(too_long(SUBDOMAIN_MAX));
    }
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        errors.push(pattern(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    errors.extend(no_parent_steps(value));
    errors
}

/// The name of an environment variable: any printable ASCII but `=`.
pub fn env_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.is_empty() {
        errors.push("environment variable name must be non-empty".to_owned());
    }
    if !value.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        errors.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    errors
}

/// The name of a port.
pub fn port_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 15 {
        errors.push(too_long(15));
    }
    if value.is_empty() || !value.bytes().all(|b| lower_alnum(b) || b == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// The name of an HTTP header.
pub fn http_header(value: &str) -> Vec<String> {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![pattern(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// A number within bounds.
pub fn in_range(value: i64, low: i64, high: i64) -> Option<String> {
    (value < low || value > high).then(|| format!("must be between {low} and {high}, inclusive"))
}

pub fn port_number(value: i64) -> Option<String> {
    in_range(value, 1, 65535)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events_about_anything_have_names() {
        let now = 1_800_000_000_123_456_789;
        assert_eq!(event_name("a", now), "a.18fae2769b0fcd15");
        for about in ["x".repeat(253), "x".repeat(235) + "..-" + &"y".repeat(15), String::from("a"), "é".repeat(253)] {
            let name = event_name(&about, now);
            assert!(name.len() <= SUBDOMAIN_MAX && name.ends_with(".18fae2769b0fcd15"), "{name}");
            assert!(!about.is_ascii() || dns_subdomain(&name).is_empty(), "{name}");
        }
    }

    #[test]
    fn labels_and_subdomains() {
        for good in ["a", "1", "a-b", "123-abc", &"x".repeat(63)] {
            assert!(dns_label(good).is_empty(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "ä", &"x".repeat(64)] {
            assert!(!dns_label(bad).is_empty(), "{bad}");
        }
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            dns_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert!(dns_subdomain("a.b-c.d").is_empty());
        for bad in ["", ".a", "a.", "a..b", "a.-b", "A"] {
            assert!(!dns_subdomain(bad).is_empty(), "{bad}");
        }
        assert!(dns_1035_label("a1").is_empty() && !dns_1035_label("1a").is_empty() && !dns_1035_label("").is_empty());
    }

    #[test]
    fn qualified_names_and_values() {
        for good in ["a", "example.com/MyName", "a_b.c-d", "kubernetes.io/pvc-protection"] {
            assert!(qualified_name(good).is_empty(), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "not ok", "Ex.com/a", "a-", &"x".repeat(64)] {
            assert!(!qualified_name(bad).is_empty(), "{bad}");
        }
        assert!(label_value("").is_empty() && label_value("a_B.c").is_empty() && !label_value("-a").is_empty());
        assert!(
            label_value("a b")[0]
                .starts_with("a valid label must be an empty string or consist of alphanumeric characters")
        );
    }

    #[test]
    fn other_names() {
        assert_eq!(path_segment(".."), ["may not be '..'"]);
        assert_eq!(path_segment("a/b%"), ["may not contain '/'", "may not contain '%'"]);
        assert!(prefix_of(dns_label, "gen-").is_empty() && prefix_of(dns_label, "gen").is_empty());
        assert!(!prefix_of(dns_label, "Gen-").is_empty());
        assert_eq!(config_key(".."), ["must not be '..'"]);
        assert_eq!(config_key("..a"), ["must not start with '..'"]);
        assert!(config_key("a/b").len() == 1 && config_key("A_b.c").is_empty());
        assert!(env_name("A.B-1 x").is_empty() && !env_name("A=B").is_empty() && !env_name("").is_empty());
        assert!(port_name("http").is_empty() && port_name("a-1").is_empty());
        assert!(!port_name("1").is_empty() && !port_name("a--b").is_empty() && !port_name("-a").is_empty());
        assert!(http_header("X-A").is_empty() && !http_header("X A").is_empty());
        assert!(port_number(1).is_none() && port_number(0).is_some() && port_number(65536).is_some());
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_rule(text in "\\PC{0,80}") {
            for rule in [dns_label, dns_subdomain, dns_1035_label, qualified_name, label_value, config_key, env_name, port_name, path_segment, http_header] {
                let _ = rule(&text);
                let _ = prefix_of(rule, &text);
            }
        }
    }
}
