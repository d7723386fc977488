//! The pure parts of the kernel's file room, on the host: the boot archive's reader and the line discipline.

extern crate alloc;

#[path = "../../kernel/src/fs/cpio.rs"]
#[allow(dead_code, reason = "the kernel uses the rest")]
mod cpio;
#[path = "../../kernel/src/fs/ldisc.rs"]
#[allow(dead_code, reason = "the kernel uses the rest")]
mod ldisc;

use cpio::{Malformed, Reader, find};
use ldisc::{KeySignal, Ldisc, VERASE, VMIN};

/// One newc record, padded.
fn record(name: &str, mode: u32, nlink: u32, data: &[u8]) -> Vec<u8> {
    let fields = [
        7,
        mode,
        0,
        0,
        nlink,
        0,
        data.len() as u32,
        0,
        0,
        5,
        1,
        name.len() as u32 + 1,
        0,
    ];
    let mut out = b"070701".to_vec();
    for f in fields {
        out.extend(format!("{f:08x}").bytes());
    }
    out.extend(name.bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(data);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn archive() -> Vec<u8> {
    let mut a = record("boot/cmdline", 0o100644, 1, b"mode=shell");
    a.extend(record("./bin/sh", 0o100755, 2, b"abc"));
    a.extend(record("dev/null", 0o020666, 1, b""));
    a.extend(record("TRAILER!!!", 0, 1, b""));
    a
}

#[test]
fn an_archive_gives_its_entries_in_order() {
    let a = archive();
    let e: Vec<_> = Reader::new(&a).map(Result::unwrap).collect();
    let names: Vec<_> = e
        .iter()
        .map(|e| String::from_utf8_lossy(e.name).into_owned())
        .collect();
    assert_eq!(names, ["boot/cmdline", "bin/sh", "dev/null"]);
    assert_eq!((e[1].data, e[1].nlink, e[1].ino), (&b"abc"[..], 2, 7));
    assert_eq!(e[2].rdev, (5, 1));
    assert_eq!(find(&a, b"boot/cmdline"), Some(&b"mode=shell"[..]));
    assert_eq!(find(&a, b"boot/argv"), None);
}

#[test]
fn a_cut_or_broken_archive_ends_with_one_error() {
    let a = archive();
    for cut in 0..a.len() - 120 {
        let r: Vec<_> = Reader::new(&a[..cut]).collect();
        assert_eq!(r.iter().filter(|e| e.is_err()).count(), 1, "cut at {cut}");
        assert!(r.last().unwrap().is_err());
    }
    for at in 0..a.len() {
        for byte in [0, 0xff, b'f', b'0'] {
            let mut b = a.clone();
            b[at] = byte;
            // No panic, and no end without a verdict.
            let errors = Reader::new(&b)
                .filter(|e| matches!(e, Err(Malformed)))
                .count();
            assert!(errors <= 1);
        }
    }
}

/// Types `keys`, returns what was echoed and the signals.
fn typed(l: &mut Ldisc, keys: &[u8]) -> (String, Vec<KeySignal>) {
    let (mut shown, mut signals) = (Vec::new(), Vec::new());
    for k in keys {
        let o = l.input(*k, &mut |b| shown.extend_from_slice(b));
        signals.extend(o.signal);
    }
    (String::from_utf8(shown).unwrap(), signals)
}

fn read(l: &mut Ldisc, max: usize) -> Option<String> {
    let mut buf = vec![0; max];
    l.read(&mut buf)
        .map(|n| String::from_utf8(buf[..n].to_vec()).unwrap())
}

#[test]
fn a_line_is_readable_when_it_ends() {
    let mut l = Ldisc::default();
    assert_eq!(typed(&mut l, b"ls"), ("ls".into(), vec![]));
    assert_eq!(read(&mut l, 10), None);
    assert_eq!(typed(&mut l, b"\r").0, "\r\n");
    assert_eq!(l.available(), 3);
    assert_eq!(read(&mut l, 2).as_deref(), Some("ls"));
    assert_eq!(read(&mut l, 10).as_deref(), Some("\n"));
    assert_eq!(read(&mut l, 10), None);
}

#[test]
fn lines_are_read_one_at_a_time() {
    let mut l = Ldisc::default();
    typed(&mut l, b"a\nb\n");
    assert_eq!(read(&mut l, 10).as_deref(), Some("a\n"));
    assert_eq!(read(&mut l, 10).as_deref(), Some("b\n"));
}

#[test]
fn editing_keys_edit() {
    let mut l = Ldisc::default();
    assert_eq!(typed(&mut l, b"ab\x7f").0, "ab\x08 \x08");
    typed(&mut l, b"c d e\x17\x17x\n");
    assert_eq!(read(&mut l, 20).as_deref(), Some("ac x\n"));
    typed(&mut l, b"gone\x15kept\n");
    assert_eq!(read(&mut l, 20).as_deref(), Some("kept\n"));
    let (shown, _) = typed(&mut l, b"\x16\x03\n");
    assert_eq!(shown, "^\x08^C\r\n");
    assert_eq!(read(&mut l, 20).as_deref(), Some("\x03\n"));
}

#[test]
fn end_of_file_ends_a_line_without_a_character() {
    let mut l = Ldisc::default();
    typed(&mut l, b"ab\x04");
    assert_eq!(read(&mut l, 10).as_deref(), Some("ab"));
    typed(&mut l, b"\x04");
    assert_eq!(read(&mut l, 10).as_deref(), Some(""));
    // A full buffer takes the mark along: the next read does not see an end of file.
    typed(&mut l, b"ab\x04c\n");
    assert_eq!(read(&mut l, 2).as_deref(), Some("ab"));
    assert_eq!(read(&mut l, 10).as_deref(), Some("c\n"));
}

#[test]
fn signal_keys_signal_and_flush() {
    let mut l = Ldisc::default();
    let (shown, signals) = typed(&mut l, b"half\x03");
    assert_eq!((shown.as_str(), signals), ("half^C", vec![KeySignal::Int]));
    assert_eq!(
        typed(&mut l, b"\x1a\x1c").1,
        [KeySignal::Suspend, KeySignal::Quit]
    );
    typed(&mut l, b"\n");
    assert_eq!(read(&mut l, 10).as_deref(), Some("\n"));
}

#[test]
fn raw_mode_passes_every_byte() {
    let mut l = Ldisc::default();
    typed(&mut l, b"x");
    let mut t = *l.termios();
    t.lflag = 0;
    t.iflag = 0;
    t.oflag = 0;
    t.cc[VMIN] = 1;
    l.set_termios(t);
    assert_eq!(
        read(&mut l, 10).as_deref(),
        Some("x"),
        "a half-typed line becomes readable"
    );
    assert_eq!(typed(&mut l, b"\r\x03\x7f\x04"), (String::new(), vec![]));
    assert_eq!(read(&mut l, 10).as_deref(), Some("\r\x03\x7f\x04"));
    assert_eq!(t.cc[VERASE], 0x7f);
}

#[test]
fn a_full_line_can_still_be_ended() {
    let mut l = Ldisc::default();
    typed(&mut l, &[b'x'; 10_000]);
    typed(&mut l, b"\n");
    let mut all = 0;
    while let Some(s) = read(&mut l, 1000) {
        all += s.len();
    }
    assert_eq!(all, 4096);
}
