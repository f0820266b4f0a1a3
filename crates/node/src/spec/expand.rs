//! `$(NAME)` references in commands, arguments, environment values and sub-paths.

/// Replaces `$(NAME)` by what `lookup` gives; a name it does not know stays as written. `$$` is a literal `$`.
pub fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vars(name: &str) -> Option<String> {
        match name {
            "A" => Some("a".into()),
            "EMPTY" => Some(String::new()),
            "REF" => Some("$(A)".into()),
            _ => None,
        }
    }

    #[test]
    fn expands_as_upstream_documents() {
        for (text, want) in [
            ("$(A)", "a"),
            ("x$(A)y$(A)", "xaya"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$(NONE)", "$(NONE)"),
            ("$(EMPTY)|", "|"),
            ("$(REF)", "$(A)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("$", "$"),
            ("$()", "$()"),
            ("ü$(A)ü$", "üaü$"),
        ] {
            assert_eq!(expand(text, &vars), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_without_dollars_is_untouched(text in "[^$]*") {
            prop_assert_eq!(expand(&text, &vars), text);
        }

        #[test]
        fn doubling_every_dollar_is_an_escape(text in "[$()A-C a]{0,20}") {
            prop_assert_eq!(expand(&text.replace('$', "$$"), &vars), text);
        }

        #[test]
        fn unknown_names_leave_text_without_double_dollars_as_it_is(text in "[()A-C a]{0,9}[$]?[()A-C a]{0,9}") {
            prop_assert_eq!(expand(&text, &|_| None), text);
        }
    }
}
