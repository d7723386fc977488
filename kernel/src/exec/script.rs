//! `#!` lines. Pure.

use mm::Errno;

/// Bytes of a script's first line that are looked at.
pub const SCRIPT_LINE: usize = 256;

/// Interpreter and argument of a `#!` line.
pub fn script_line(head: &[u8]) -> Result<(&[u8], Option<&[u8]>), Errno> {
    let line = &head[2..];
    let blank = |b: &u8| *b == b' ' || *b == b'\t';
    let (line, cut) = match line.iter().position(|&b| b == b'\n' || b == 0) {
        Some(end) => (&line[..end], false),
        None => (line, head.len() == SCRIPT_LINE),
    };
    let start = line.iter().position(|b| !blank(b)).ok_or(Errno::ENOEXEC)?;
    let line = &line[start..];
    let end = line.iter().position(blank);
    let interp = &line[..end.unwrap_or(line.len())];
    if interp.is_empty() || cut && end.is_none() {
        return Err(Errno::ENOEXEC);
    }
    let mut arg = &line[interp.len()..];
    while let [b' ' | b'\t', rest @ ..] = arg {
        arg = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = arg {
        arg = rest;
    }
    Ok((interp, (!arg.is_empty()).then_some(arg)))
}
