//! Splitting a make variable into words, as a shell does with its quotes and without expanding anything.

/// Words are separated by blanks. `'…'` keeps everything, `"…"` everything but `\"` and `\\`, `\c` keeps `c`.
pub fn split(text: &str) -> Result<Vec<String>, crate::Error> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => {
                            return Err(crate::Error(format!("a quote is not closed in: {text}")));
                        }
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' => match chars.next() {
                            Some(kept @ ('"' | '\\')) => word.push(kept),
                            Some(other) => word.extend(['\\', other]),
                            None => {
                                return Err(crate::Error(format!(
                                    "a quote is not closed in: {text}"
                                )));
                            }
                        },
                        Some(kept) => word.push(kept),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn quotes_keep_words_together() {
        let cases: [(&str, &[&str]); 8] = [
            ("", &[]),
            ("  a  b ", &["a", "b"]),
            (
                "sh -c 'echo  hi | wc; # $x'",
                &["sh", "-c", "echo  hi | wc; # $x"],
            ),
            (r#"-c "a \"b\" \\ \n""#, &["-c", r#"a "b" \ \n"#]),
            (r"a\ b\'c", &["a b'c"]),
            (r#"'' """#, &["", ""]),
            ("a'b c'd", &["ab cd"]),
            ("a # b", &["a", "#", "b"]),
        ];
        for (text, words) in cases {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
        assert!(split("a 'b").is_err());
        assert!(split("a \"b\\").is_err());
    }
}
