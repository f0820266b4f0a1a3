//! Query parameters, which may repeat (`command=a&command=b`).

/// Decoded parameters in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a URL's query. What is not UTF-8 after decoding is replaced.
    pub fn parse(text: Option<&str>) -> Self {
        let pairs = text.unwrap_or_default().split('&').filter(|p| !p.is_empty());
        Self(pairs.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(k, v)| (decode(k), decode(v))).collect())
    }
    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
    /// All values of a name.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == name).map(|(_, v)| v.clone()).collect()
    }
    /// True for `1`, `true` and their like, under any of the names.
    pub fn flag(&self, names: &[&str]) -> bool {
        names.iter().any(|n| self.get(n).is_some_and(|v| matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True")))
    }
    /// A whole number.
    ///
    /// # Errors
    /// The sentence for the user.
    pub fn number(&self, name: &str) -> Result<Option<i64>, String> {
        let Some(text) = self.get(name).filter(|t| !t.is_empty()) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("parameter {name} must be a whole number, not {text:?}"))
    }
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |b: u8| char::from(b).to_digit(16);
        rest = match (first, tail) {
            (b'+', _) => {
                out.push(b' ');
                tail
            }
            (b'%', [a, b, after @ ..]) if hex(*a).is_some() && hex(*b).is_some() => {
                let value = hex(*a).unwrap_or(0) * 16 + hex(*b).unwrap_or(0);
                out.push(u8::try_from(value).unwrap_or(b'?'));
                after
            }
            _ => {
                out.push(*first);
                tail
            }
        };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn queries() {
    let q = Query::parse(Some("command=sh&command=-c&command=echo+a%20b%26&stdin=true&tty=0&n=5&bad=x&e&p=%zz%4"));
    assert_eq!(q.all("command"), ["sh", "-c", "echo a b&"]);
    assert!(q.flag(&["input", "stdin"]) && !q.flag(&["tty"]) && !q.flag(&["none"]));
    assert_eq!((q.number("n"), q.number("none")), (Ok(Some(5)), Ok(None)));
    assert!(q.number("bad").is_err());
    assert_eq!((q.get("e"), q.get("p")), (Some(""), Some("%zz%4")));
}
