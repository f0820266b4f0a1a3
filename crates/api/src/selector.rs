//! Label and field selectors: reading, matching, writing.
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::names;

/// Why a selector cannot be read; the sentences are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("unable to parse requirement: {0}")]
    Requirement(String),
    #[error("{0}")]
    Syntax(String),
    /// Of a field selector.
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term { selector: String, term: String },
    /// Of a field selector.
    #[error("invalid field selector: {0}")]
    Escape(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Equals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Greater,
    Less,
}

/// One condition of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without repetitions.
    pub values: Vec<String>,
}

impl Requirement {
    /// # Errors
    /// A sentence in upstream's words where key, operator and values do not fit each other.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, String> {
        if let Some(error) = names::qualified_name(key).first() {
            return Err(format!("key: Invalid value: {key:?}: {error}"));
        }
        values.sort();
        values.dedup();
        let shown = || serde_json::to_string(&values).unwrap_or_default();
        let bad = |detail: &str| Err(format!("values: Invalid value: {}: {detail}", shown()));
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return bad("for 'in', 'notin' operators, values set can't be empty");
            }
            Operator::Equals | Operator::NotEquals if values.len() != 1 => {
                return bad("exact-match compatibility requires one single value");
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                return bad("values set must be empty for exists and does not exist");
            }
            Operator::Greater | Operator::Less => {
                if values.len() != 1 {
                    return bad("for 'Gt', 'Lt' operators, exactly one value is required");
                }
                if values[0].parse::<i64>().is_err() {
                    return Err(format!(
                        "values[0]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer",
                        values[0]
                    ));
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            if let Some(error) = names::label_value(value).first() {
                return Err(format!("values[{i}][{key}]: Invalid value: {value:?}: {error}"));
            }
        }
        Ok(Requirement { key: key.to_owned(), operator, values })
    }

    /// Whether labels, looked up by key, satisfy the condition.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let value = label(&self.key);
        let listed = |v: &str| self.values.iter().any(|known| known == v);
        match self.operator {
            Operator::Equals | Operator::In => value.is_some_and(listed),
            Operator::NotEquals | Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Greater | Operator::Less => {
                let (Some(is), Some(bound)) = (value.and_then(|v| v.parse::<i64>().ok()), self.bound()) else {
                    return false;
                };
                if self.operator == Operator::Greater { is > bound } else { is < bound }
            }
        }
    }

    fn bound(&self) -> Option<i64> {
        self.values.first()?.parse().ok()
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::Greater => write!(f, "{key}>{values}"),
            Operator::Less => write!(f, "{key}<{values}"),
        }
    }
}

/// All conditions must hold. The default one selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    requirements: Vec<Requirement>,
    /// Set for the selector of a missing object, which selects nothing.
    nothing: bool,
}

impl Labels {
    /// Selects nothing.
    pub const NOTHING: Labels = Labels { requirements: Vec::new(), nothing: true };

    /// Reads the syntax of queries: `a=b,c!=d,e in (f,g),h,!i,j>5`.
    ///
    /// # Errors
    /// `SelectorError` with the sentence that clients see.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let tokens = scan(text);
        let requirements = Parser { tokens: &tokens, at: 0 }.parse()?;
        Ok(Labels { requirements, nothing: false })
    }

    /// From the selector inside an object; `None` selects nothing, an empty one everything.
    ///
    /// # Errors
    /// `SelectorError` where an operator is unknown or the values do not fit it.
    pub fn from_object(selector: Option<&LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else { return Ok(Self::NOTHING) };
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push((key, Operator::Equals, vec![value.clone()]));
        }
        for e in selector.match_expressions.iter().flatten() {
            let operator = match e.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError::Syntax(format!("{other:?} is not a valid label selector operator")));
                }
            };
            requirements.push((&e.key, operator, e.values.clone().unwrap_or_default()));
        }
        let mut requirements = requirements
            .into_iter()
            .map(|(key, operator, values)| Requirement::new(key, operator, values).map_err(SelectorError::Syntax))
            .collect::<Result<Vec<_>, _>>()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Labels { requirements, nothing: false })
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether labels satisfy all conditions.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
    }

    /// As `matches`, for labels that are looked up by key.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(&label))
    }

    /// As `matches`, for an object in JSON.
    pub fn matches_object(&self, object: &serde_json::Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        self.matches_with(|key| labels.and_then(|l| l.get(key)).and_then(serde_json::Value::as_str))
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            write!(f, "{}{requirement}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// `=`, `==`, `!=`, `!`, `(`, `)`, `,`, `<`, `>`, or a run of symbols that is none of them.
    Symbol(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Token::Word(text) | Token::Symbol(text) => text,
            Token::End => "",
        }
    }
}

fn is_symbol(c: char) -> bool {
    "=!(),<>".contains(c)
}

fn scan(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if is_symbol(first) {
            let two = rest.get(..2).is_some_and(|t| t == "==" || t == "!=");
            if two { 2 } else { 1 }
        } else {
            rest.find(|c: char| c.is_whitespace() || is_symbol(c)).unwrap_or(rest.len())
        };
        let (token, after) = rest.split_at(length);
        tokens.push(if is_symbol(first) { Token::Symbol(token) } else { Token::Word(token) });
        rest = after.trim_start();
    }
    tokens
}

struct Parser<'t, 'a> {
    tokens: &'t [Token<'a>],
    at: usize,
}

impl<'a> Parser<'_, 'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).copied().unwrap_or(Token::End)
    }

    fn take(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn parse(&mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        let starts = |t| matches!(t, Token::Word(_) | Token::Symbol("!"));
        loop {
            match self.peek() {
                Token::End => return Ok(requirements),
                token if starts(token) => {
                    requirements.push(self.requirement().map_err(SelectorError::Requirement)?);
                }
                token => {
                    let found = token.text();
                    return Err(SelectorError::Syntax(format!(
                        "found '{found}', expected: !, identifier, or 'end of string'"
                    )));
                }
            }
            match self.take() {
                Token::End => return Ok(requirements),
                Token::Symbol(",") if starts(self.peek()) => {}
                Token::Symbol(",") => {
                    let found = self.peek().text();
                    return Err(SelectorError::Syntax(format!("found '{found}', expected: identifier after ','")));
                }
                token => {
                    let found = token.text();
                    return Err(SelectorError::Syntax(format!("found '{found}', expected: ',' or 'end of string'")));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.take();
        let negated = token == Token::Symbol("!");
        if negated {
            token = self.take();
        }
        let Token::Word(key) = token else { return Err(format!("found '{}', expected: identifier", token.text())) };
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let operator = match self.take() {
            Token::Word("in") => Operator::In,
            Token::Word("notin") => Operator::NotIn,
            Token::Symbol("=" | "==") => Operator::Equals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::Greater,
            Token::Symbol("<") => Operator::Less,
            token => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", token.text())),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.list()?,
            _ => vec![self.exact()?],
        };
        Requirement::new(key, operator, values)
    }

    fn exact(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(value) => {
                self.at += 1;
                Ok(value.to_owned())
            }
            token => Err(format!("found '{}', expected: identifier", token.text())),
        }
    }

    /// `(a,b)`; nothing before or after a comma is the empty value.
    fn list(&mut self) -> Result<Vec<String>, String> {
        let open = self.take();
        if open != Token::Symbol("(") {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = Vec::new();
        loop {
            values.push(match self.peek() {
                Token::Word(value) => {
                    self.at += 1;
                    value.to_owned()
                }
                Token::Symbol("," | ")") => String::new(),
                token => return Err(format!("found '{}', expected: ',', ')' or identifier", token.text())),
            });
            match self.take() {
                Token::Symbol(")") => return Ok(values),
                Token::Symbol(",") => {}
                token => return Err(format!("found '{}', expected: ',' or ')'", token.text())),
            }
        }
    }
}

/// One condition of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRequirement {
    pub field: String,
    pub value: String,
    /// Whether the field must have the value, or must not.
    pub equals: bool,
}

/// Conditions on fields, all of which must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<FieldRequirement>);

impl Fields {
    /// Reads `status.phase=Running,spec.nodeName!=a`; `\` escapes `,`, `=` and itself.
    ///
    /// # Errors
    /// `SelectorError` with the sentence that clients see.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let Some((field, equals, value)) = split_term(term) else {
                return Err(SelectorError::Term { selector: text.to_owned(), term: term.to_owned() });
            };
            requirements.push(FieldRequirement { field: field.to_owned(), value: unescape(value)?, equals });
        }
        Ok(Fields(requirements))
    }

    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all conditions hold; a field that `field` does not know counts as empty.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|r| (field(&r.field).unwrap_or_default() == r.value) == r.equals)
    }

    /// The value that a field must have, if there is one.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|r| r.equals && r.field == field).map(|r| r.value.as_str())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (i, _) in term.char_indices() {
        for (operator, equals) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = term[i..].strip_prefix(operator) {
                return Some((&term[..i], equals, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(SelectorError::Escape(format!("invalid escape sequence: \\{c}"))),
                None => return Err(SelectorError::Escape("invalid escape sequence: \\".to_owned())),
            },
            '=' => return Err(SelectorError::Escape(format!("unescaped character in value: {}", u32::from(c)))),
            _ => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn queries_match_as_upstream() {
        let have = labels(&[("a", "1"), ("b", "x"), ("empty", "")]);
        for (query, want) in [
            ("", true),
            ("a=1", true),
            ("a==1,b=x", true),
            ("a=1,b=y", false),
            ("a!=2", true),
            ("missing!=2", true),
            ("a", true),
            ("missing", false),
            ("!missing", true),
            ("! a", false),
            ("a in (1, 2)", true),
            ("a notin (1,2)", false),
            ("missing notin (1)", true),
            ("missing in (1)", false),
            ("a>0", true),
            ("a<1", false),
            ("b>0", false),
            ("empty=", true),
            ("empty in ()", true),
            ("empty in (x,)", true),
            ("in=x", false),
            ("  a  =  1 , b ", true),
        ] {
            let selector = Labels::parse(query).expect(query);
            assert_eq!(selector.matches(Some(&have)), want, "{query}");
        }
    }

    #[test]
    fn broken_queries_are_refused_with_upstreams_words() {
        for (query, want) in [
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("a=b,", "found '', expected: identifier after ','"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in x", "unable to parse requirement: found 'x' expected: '('"),
            ("a in (x", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
        ] {
            assert_eq!(Labels::parse(query).expect_err(query).to_string(), want, "{query}");
        }
        for query in ["a/b/c=d", "a=b_", "a>x", "-a", "a==(b)"] {
            assert!(Labels::parse(query).is_err(), "{query}");
        }
    }

    #[test]
    fn selectors_of_objects() {
        let read = |v: serde_json::Value| serde_json::from_value::<LabelSelector>(v).expect("fits");
        let have = labels(&[("a", "1")]);
        let of = |v| Labels::from_object(Some(&read(v))).expect("valid");
        assert!(of(serde_json::json!({})).matches(Some(&have)));
        assert!(!Labels::from_object(None).expect("valid").matches(Some(&have)));
        assert!(of(serde_json::json!({"matchLabels": {"a": "1"}})).matches(Some(&have)));
        assert!(
            !of(serde_json::json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}))
                .matches(Some(&have))
        );
        assert_eq!(
            of(serde_json::json!({"matchLabels": {"z": "1"}, "matchExpressions": [{"key": "b", "operator": "In", "values": ["2", "1"]}]})).to_string(),
            "b in (1,2),z=1"
        );
        let near = read(serde_json::json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}));
        assert!(Labels::from_object(Some(&near)).is_err());
        assert!(
            Labels::parse("a=1")
                .expect("valid")
                .matches_object(&serde_json::json!({"metadata": {"labels": {"a": "1"}}}))
        );
    }

    #[test]
    fn field_selectors() {
        let parse = |t| Fields::parse(t);
        let fields = parse("a=1,b!=2,c==x\\,y").expect("valid");
        let look = |pairs: &'static [(&str, &str)]| move |f: &str| pairs.iter().find(|(k, _)| *k == f).map(|(_, v)| *v);
        assert!(fields.matches(look(&[("a", "1"), ("c", "x,y")])));
        assert!(!fields.matches(look(&[("a", "1"), ("b", "2"), ("c", "x,y")])));
        assert_eq!((fields.exact("a"), fields.exact("b")), (Some("1"), None));
        assert!(parse("").expect("valid").is_everything());
        assert!(parse("a=").expect("valid").matches(look(&[])));
        assert_eq!(parse("a").expect_err("no operator").to_string(), "invalid selector: 'a'; can't understand 'a'");
        assert!(parse("a=b=c").is_err() && parse("a=\\x").is_err() && parse("a=\\").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(
            key in "[a-z]{1,5}", values in proptest::collection::btree_set("[a-z0-9]{0,3}", 1..4), which in 0..6_usize
        ) {
            let list: Vec<String> = values.into_iter().collect();
            let (operator, values) = [
                (Operator::In, list.clone()),
                (Operator::NotIn, list.clone()),
                (Operator::Equals, vec![list[0].clone()]),
                (Operator::NotEquals, vec![list[0].clone()]),
                (Operator::Exists, vec![]),
                (Operator::DoesNotExist, vec![]),
            ][which].clone();
            let selector = Labels { requirements: vec![Requirement::new(&key, operator, values).expect("valid")], nothing: false };
            prop_assert_eq!(Labels::parse(&selector.to_string()).expect("readable"), selector);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
            let _ = Labels::parse(&text);
            let _ = Fields::parse(&text);
        }
    }
}
