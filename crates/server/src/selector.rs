//! Label and field selectors as query parameters spell them.
use crate::status::{ApiError, ApiResult};

/// One requirement on a label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Need {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Above(i64),
    Below(i64),
}

/// A label selector; the default one matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(Vec<(String, Need)>);

impl Labels {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    pub fn parse(text: &str) -> ApiResult<Self> {
        let mut tokens = Tokens { rest: text };
        let mut needs = Vec::new();
        while let Some(first) = tokens.next() {
            let need = requirement(first, &mut tokens)
                .map_err(|why| ApiError::bad_request(format!("unable to parse requirement: {why}")))?;
            needs.push(need);
            match tokens.next() {
                None => break,
                Some(",") => {}
                Some(other) => {
                    return Err(ApiError::bad_request(format!("found '{other}', expected: ',' or 'end of string'")));
                }
            }
        }
        Ok(Self(needs))
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether labels, looked up by `get`, match.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|(key, need)| {
            let value = get(key);
            let number = |v: Option<&str>| v.and_then(|v| v.parse::<i64>().ok());
            match need {
                Need::In(set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
                Need::NotIn(set) => value.is_none_or(|v| set.iter().all(|s| s != v)),
                Need::Exists => value.is_some(),
                Need::Absent => value.is_none(),
                Need::Above(n) => number(value).is_some_and(|v| v > *n),
                Need::Below(n) => number(value).is_some_and(|v| v < *n),
            }
        })
    }
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn peek(&self) -> Option<&'a str> {
        Tokens { rest: self.rest }.next()
    }

    fn next(&mut self) -> Option<&'a str> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if self.rest.is_empty() {
            return None;
        }
        let special = |c: char| "=!(),<>".contains(c);
        let length = match ["==", "!="].iter().find(|s| self.rest.starts_with(**s)) {
            Some(two) => two.len(),
            None if self.rest.starts_with(special) => 1,
            None => self.rest.find(|c: char| special(c) || c.is_ascii_whitespace()).unwrap_or(self.rest.len()),
        };
        let (token, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(token)
    }
}

fn requirement(first: &str, tokens: &mut Tokens<'_>) -> Result<(String, Need), String> {
    let (negated, key) = match first {
        "!" => (true, tokens.next().unwrap_or_default()),
        key => (false, key),
    };
    if key.is_empty() || key.starts_with(|c: char| "=!(),<>".contains(c)) {
        return Err(format!("found '{key}', expected: identifier"));
    }
    let problems = crate::names::qualified_name(key);
    if let Some(problem) = problems.first() {
        return Err(format!("<nil>: Invalid value: {key:?}: {problem}"));
    }
    let key = key.to_owned();
    if negated {
        return Ok((key, Need::Absent));
    }
    let operator = match tokens.peek() {
        None | Some(",") => return Ok((key, Need::Exists)),
        Some(op) => op,
    };
    tokens.next();
    let need = match operator {
        "=" | "==" => Need::In(vec![value(tokens)?]),
        "!=" => Need::NotIn(vec![value(tokens)?]),
        "in" => Need::In(set(tokens)?),
        "notin" => Need::NotIn(set(tokens)?),
        ">" | "<" => {
            let text = value(tokens)?;
            let number =
                text.parse().map_err(|_| "for 'Gt', 'Lt' operators, the value must be an integer".to_owned())?;
            if operator == ">" { Need::Above(number) } else { Need::Below(number) }
        }
        other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
    };
    Ok((key, need))
}

/// A single value, which may be empty (`a=`).
fn value(tokens: &mut Tokens<'_>) -> Result<String, String> {
    let text = match tokens.peek() {
        None | Some(",") => return Ok(String::new()),
        Some(text) => text,
    };
    tokens.next();
    checked(text)
}

fn checked(text: &str) -> Result<String, String> {
    match crate::names::label_value(text).first() {
        Some(problem) => Err(format!("values[0]: Invalid value: {text:?}: {problem}")),
        None => Ok(text.to_owned()),
    }
}

fn set(tokens: &mut Tokens<'_>) -> Result<Vec<String>, String> {
    if tokens.next() != Some("(") {
        return Err("expected: '('".to_owned());
    }
    let mut values = Vec::new();
    let mut current = String::new();
    loop {
        match tokens.next() {
            Some(",") => values.push(std::mem::take(&mut current)),
            Some(")") => {
                values.push(current);
                return Ok(values);
            }
            Some(text) => current = checked(text)?,
            None => return Err("expected: ',' or ')'".to_owned()),
        }
    }
}

/// A field selector: `(field, value, whether equal)`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields(Vec<(String, String, bool)>);

impl Fields {
    /// Reads `a=b,c==d,e!=f`; `\,`, `\=` and `\\` stand for themselves.
    pub fn parse(text: &str) -> ApiResult<Self> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let bad = || ApiError::bad_request(format!("invalid selector: '{text}'; can't understand '{term}'"));
            let at = find_operator(term).ok_or_else(bad)?;
            let (field, tail) = term.split_at(at);
            let (equal, value) = match tail {
                t if t.starts_with("!=") => (false, &t[2..]),
                t if t.starts_with("==") => (true, &t[2..]),
                t => (true, &t[1..]),
            };
            terms.push((field.to_owned(), unescape_value(value), equal));
        }
        Ok(Self(terms))
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first field that `known` does not accept.
    pub fn unknown(&self, known: impl Fn(&str) -> bool) -> Option<&str> {
        self.0.iter().map(|(field, _, _)| field.as_str()).find(|field| !known(field))
    }

    /// Whether fields, looked up by `get`, match; an absent field is an empty one.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|(field, value, equal)| (get(field).unwrap_or_default() == value) == *equal)
    }

    /// The value that `field` must equal, if so asked.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|(f, _, equal)| f == field && *equal).map(|(_, value, _)| value.as_str())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn find_operator(term: &str) -> Option<usize> {
    term.char_indices().find(|(i, c)| *c == '=' || (*c == '!' && term[i + 1..].starts_with('='))).map(|(i, _)| i)
}

fn unescape_value(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut escaped = false;
    for c in text.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            out.push(c);
            escaped = false;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors() {
        let labels = [("a", "1"), ("tier", "web"), ("example.com/x", "")];
        let get = |k: &str| labels.iter().find(|(l, _)| *l == k).map(|(_, v)| *v);
        for (text, want) in [
            ("", true),
            ("a", true),
            ("!a", false),
            ("!b", true),
            ("a=1", true),
            ("a==2", false),
            ("a!=2", true),
            ("b!=2", true),
            ("a in (1,2), tier notin (db)", true),
            ("a notin (1)", false),
            ("b in (1)", false),
            ("a>0", true),
            ("a<1", false),
            ("example.com/x=", true),
            ("a=1,tier=db", false),
        ] {
            assert_eq!(Labels::parse(text).unwrap().matches(get), want, "{text}");
        }
        for bad in ["a=b=c", "a in 1", "=b", "a b", "-x", "a in (b", "a>x", "a=b!"] {
            assert_eq!(Labels::parse(bad).unwrap_err().code, 400, "{bad}");
        }
    }

    #[test]
    fn field_selectors() {
        let get = |k: &str| (k == "spec.nodeName").then_some("n,1");
        for (text, want) in [
            ("", true),
            ("spec.nodeName=n\\,1", true),
            ("spec.nodeName==other", false),
            ("spec.nodeName!=other", true),
            ("spec.nodeName=", false),
            ("x=", true),
            ("x=,spec.nodeName!=", true),
        ] {
            assert_eq!(Fields::parse(text).unwrap().matches(get), want, "{text}");
        }
        assert_eq!(Fields::parse("nonsense").unwrap_err().code, 400);
        assert_eq!(Fields::parse("metadata.name=a").unwrap().required("metadata.name"), Some("a"));
        assert_eq!(Fields::parse("a=1,b=2").unwrap().unknown(|f| f == "a"), Some("b"));
    }
}
