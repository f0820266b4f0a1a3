//! What is wrong with a text that is not JSON, in the words that clients of upstream's API server know.
//!
//! Only looked for after a reader refused the text: the walk here is thorough, not fast.

/// Deeper nesting than this is refused.
const MAX_DEPTH: usize = 10_000;

/// Why a text is not JSON; `None` if it is.
pub fn syntax_error(text: &[u8]) -> Option<String> {
    let mut walk = Walk { text, at: 0 };
    walk.document().err()
}

/// The number that begins at the last number before `end`: the literal as the client wrote it.
pub(super) fn number_before(text: &[u8], end: usize) -> Option<&str> {
    let end = end.min(text.len());
    let digits = |b: &u8| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E');
    let start = end - text[..end].iter().rev().take_while(|b| digits(b)).count();
    std::str::from_utf8(&text[start..end]).ok().filter(|number| !number.is_empty())
}

type Step = Result<(), String>;

struct Walk<'a> {
    text: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    fn document(&mut self) -> Step {
        let mut open = Vec::new();
        loop {
            // A value begins here.
            self.space();
            match self.text.get(self.at) {
                Some(b'{') => {
                    self.at += 1;
                    self.open(&mut open, b'}')?;
                    if !self.closes(b'}') {
                        self.key()?;
                        continue;
                    }
                    open.pop();
                }
                Some(b'[') => {
                    self.at += 1;
                    self.open(&mut open, b']')?;
                    if !self.closes(b']') {
                        continue;
                    }
                    open.pop();
                }
                _ => self.scalar()?,
            }
            // A value ended here; so may those around it.
            loop {
                self.space();
                match open.last() {
                    None if self.at == self.text.len() => return Ok(()),
                    None => return Err(self.unexpected("after top-level value")),
                    Some(_) if self.eat(b',') => break,
                    Some(&end) if self.eat(end) => drop(open.pop()),
                    Some(b'}') => return Err(self.unexpected("after object key:value pair")),
                    Some(_) => return Err(self.unexpected("after array element")),
                }
            }
            if open.last() == Some(&b'}') {
                self.space();
                self.key()?;
            }
        }
    }

    fn open(&self, open: &mut Vec<u8>, end: u8) -> Step {
        open.push(end);
        if open.len() > MAX_DEPTH { Err("exceeded max depth".to_owned()) } else { Ok(()) }
    }

    /// Whether what was just opened is empty.
    fn closes(&mut self, end: u8) -> bool {
        self.space();
        self.eat(end)
    }

    /// A key and its colon.
    fn key(&mut self) -> Step {
        if self.text.get(self.at) != Some(&b'"') {
            return Err(self.unexpected("looking for beginning of object key string"));
        }
        self.string()?;
        self.space();
        if self.eat(b':') { Ok(()) } else { Err(self.unexpected("after object key")) }
    }

    fn scalar(&mut self) -> Step {
        match self.text.get(self.at) {
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            _ => Err(self.unexpected("looking for beginning of value")),
        }
    }

    fn word(&mut self, word: &str) -> Step {
        for letter in word.bytes() {
            if !self.eat(letter) {
                let letter = char::from(letter);
                return Err(self.unexpected(&format!("in literal {word} (expecting '{letter}')")));
            }
        }
        Ok(())
    }

    fn string(&mut self) -> Step {
        self.at += 1;
        loop {
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.escape()?;
                }
                Some(0x20..) => self.at += 1,
                _ => return Err(self.unexpected("in string literal")),
            }
        }
    }

    fn escape(&mut self) -> Step {
        match self.text.get(self.at) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.text.get(self.at).is_some_and(u8::is_ascii_hexdigit) {
                        return Err(self.unexpected("in \\u hexadecimal character escape"));
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.unexpected("in string escape code")),
        }
        Ok(())
    }

    fn number(&mut self) -> Step {
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits("in numeric literal")?;
        }
        if self.eat(b'.') {
            self.digits("after decimal point in numeric literal")?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            let _ = self.eat(b'+') || self.eat(b'-');
            self.digits("in exponent of numeric literal")?;
        }
        Ok(())
    }

    /// At least one digit.
    fn digits(&mut self, whence: &str) -> Step {
        let digits = self.text[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return Err(self.unexpected(whence));
        }
        self.at += digits;
        Ok(())
    }

    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn unexpected(&self, whence: &str) -> String {
        match self.text.get(self.at) {
            None => "unexpected end of JSON input".to_owned(),
            Some(&byte) => format!("invalid character {} {whence}", quoted(byte)),
        }
    }
}

/// A byte as Go prints it in such messages: its character in single quotes.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        0x07 => r"'\a'".to_owned(),
        0x08 => r"'\b'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        0x0b => r"'\v'".to_owned(),
        0x0c => r"'\f'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        0x00..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..0xa1 | 0xad => format!("'\\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_worded_as_upstream() {
        const END: &str = "unexpected end of JSON input";
        for (text, want) in [
            ("", END),
            ("  ", END),
            ("{", END),
            ("{\"a\"", END),
            ("{\"a\":", END),
            ("{\"a\":1", END),
            ("{\"a\":1,", END),
            ("[1", END),
            ("\"a", END),
            ("\"\\", END),
            ("tru", END),
            ("-", END),
            ("1.", END),
            ("1e", END),
            ("{\"a\":}", "invalid character '}' looking for beginning of value"),
            ("{,}", "invalid character ',' looking for beginning of object key string"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("{'a':1}", "invalid character '\\'' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("{\"a\":01}", "invalid character '1' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("[[],{}}", "invalid character '}' after array element"),
            ("{}x", "invalid character 'x' after top-level value"),
            ("a: b", "invalid character 'a' looking for beginning of value"),
            ("\u{7f}", "invalid character '\\x7f' looking for beginning of value"),
            ("{\"a\":tru}", "invalid character '}' in literal true (expecting 'e')"),
            ("nil", "invalid character 'i' in literal null (expecting 'u')"),
            ("\"a\n\"", "invalid character '\\n' in string literal"),
            ("\"\\q\"", "invalid character 'q' in string escape code"),
            ("\"\\u12g4\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("1.a", "invalid character 'a' after decimal point in numeric literal"),
            ("1e+a", "invalid character 'a' in exponent of numeric literal"),
        ] {
            assert_eq!(syntax_error(text.as_bytes()).as_deref(), Some(want), "{text}");
        }
        let deep = "[".repeat(MAX_DEPTH + 1);
        assert_eq!(syntax_error(deep.as_bytes()).as_deref(), Some("exceeded max depth"));
    }

    #[test]
    fn json_has_no_mistakes() {
        for text in
            ["{}", " [ ] ", "null", "-0.5e-7", "{\"a\":[1,{\"b\":\"\\u00e4\\n\"},true],\"c\":{}}\n", "\"\u{e4}\""]
        {
            assert_eq!(syntax_error(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_found_as_written() {
        assert_eq!(number_before(b"{\"a\":1.50e3}", 11), Some("1.50e3"));
        assert_eq!(number_before(b"{\"a\":}", 5), None);
    }
}
