//! Two texts side by side, for a failing test.

/// The first place where the texts differ, with a little before and after; `None` when they are the same.
pub fn first_difference(host: &[u8], ours: &[u8]) -> Option<String> {
    if host == ours {
        return None;
    }
    let (host, ours) = (String::from_utf8_lossy(host), String::from_utf8_lossy(ours));
    let (host, ours): (Vec<_>, Vec<_>) = (host.split('\n').collect(), ours.split('\n').collect());
    let same = host.iter().zip(&ours).take_while(|(a, b)| a == b).count();
    let mut text = format!("differs at line {} (-: Linux, +: Pinfold)\n", same + 1);
    for line in &host[same.saturating_sub(3)..same] {
        text.push_str(&format!("  {line}\n"));
    }
    // Up to where they meet again, or six lines.
    let mut ends = (same + 6, same + 6);
    'search: for span in 0..12 {
        for a in 0..=span {
            let (i, j) = (same + a, same + span - a);
            if i < host.len() && j < ours.len() && host[i] == ours[j] && !host[i].is_empty() {
                ends = (i, j);
                break 'search;
            }
        }
    }
    for line in &host[same.min(host.len())..ends.0.min(host.len())] {
        text.push_str(&format!("- {line}\n"));
    }
    for line in &ours[same.min(ours.len())..ends.1.min(ours.len())] {
        text.push_str(&format!("+ {line}\n"));
    }
    Some(text)
}

/// The last `count` lines of `text`.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn the_same_is_no_difference() {
        assert_eq!(first_difference(b"a\nb\n", b"a\nb\n"), None);
    }

    #[test]
    fn a_changed_line_shows_both_sides() {
        let text = first_difference(b"a\nb\nc\n", b"a\nx\nc\n").unwrap();
        assert!(
            text.contains("line 2") && text.contains("- b\n+ x\n") && !text.contains("- c"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_end_is_shown() {
        let text = first_difference(b"a\nb\n", b"a\n").unwrap();
        assert!(text.contains("- b"), "{text}");
    }
}
