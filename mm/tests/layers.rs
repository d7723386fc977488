//! The list of rooms is the architecture: a new room is a new line here.

use std::path::{Path, PathBuf};

/// Lower first; an import may only point to an earlier line or stay within its own. Rooms that share a
/// line are one room.
const ROOMS: &[&[&str]] = &[
    &["addr", "errno", "hw", "wait", "sync", "race"],
    &["phys"],
    &["table"],
    &["object"],
    &["space"],
    &["rmap"],
    &["fault"],
    &["gup"],
    &["ops"],
    // Beside: sees everything, and nothing sees it.
    &["sim"],
];

/// Where `unsafe` may stand, and why there.
const UNSAFE: &[(&str, &str)] = &[
    ("wait.rs", "mints the right to wait"),
    ("sync/", "locks hand out exclusive references"),
    ("phys/", "frames, descriptors and slabs are raw memory"),
    ("table/", "entries and the permits' declarations"),
    ("object/anon.rs", "families live in slabs, counted"),
    (
        "object/edges.rs",
        "intrusive lists; grants RmapGuard's permit",
    ),
    ("object/radix.rs", "lock-free index nodes"),
    ("object/cache/source.rs", "bytes of frames on their way"),
    (
        "space/locks.rs",
        "grants the permits of the mmap and VMA locks",
    ),
    ("space/tree.rs", "VMA nodes are raw"),
    ("space/balance.rs", "rebalances those nodes"),
    ("space/vma.rs", "VMAs are raw slab memory"),
    ("space/detach.rs", "grants the permit to free tables"),
    ("space/edit.rs", "moves VMAs between lists and tree"),
    ("space/stack.rs", "edits the tree under the read lock"),
    ("space/address_space.rs", "owns the root"),
    ("rmap/", "turns edges back into VMAs, under the edges' lock"),
    ("gup/bytes.rs", "copies to and from pages that are held"),
    ("sim/", "simulated hardware"),
];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<(String, String)> {
    fn walk(p: &Path, out: &mut Vec<(String, String)>) {
        for e in std::fs::read_dir(p).unwrap() {
            let p = e.unwrap().path();
            if p.is_dir() {
                walk(&p, out);
            } else if p.extension().is_some_and(|e| e == "rs") {
                let name = p.strip_prefix(src()).unwrap().display().to_string();
                if name.ends_with("tests.rs") {
                    continue; // a unit-test module in a file of its own
                }
                out.push((name, std::fs::read_to_string(&p).unwrap()));
            }
        }
    }
    let mut out = Vec::new();
    walk(&src(), &mut out);
    out.sort();
    assert!(out.len() > 20, "no sources found");
    out
}

fn room_of(file: &str) -> &str {
    let first = file.split('/').next().unwrap();
    first.strip_suffix(".rs").unwrap_or(first)
}

fn rank(room: &str) -> Option<usize> {
    ROOMS.iter().position(|line| line.contains(&room))
}

/// Code lines: no comments (hence no doctests), nothing from the unit tests on.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, l)| !l.contains("#[cfg(test)]"))
        .filter(|(_, l)| !l.trim_start().starts_with("//"))
}

/// The rooms that a line mentions as `crate::room` or inside `crate::{...}`.
fn mentioned(line: &str) -> Vec<&str> {
    let mut out = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let list = list.split('}').next().unwrap_or(list);
            let mut depth = 0;
            for word in list.split(',') {
                if depth == 0 {
                    out.push(word.trim().split("::").next().unwrap());
                }
                depth += word.matches('{').count();
            }
        } else {
            let end = rest
                .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                .unwrap_or(rest.len());
            out.push(&rest[..end]);
        }
    }
    out
}

#[test]
fn rooms_depend_downward_only() {
    let mut upward = Vec::new();
    for (file, text) in sources() {
        if file == "lib.rs" {
            continue;
        }
        let mine = rank(room_of(&file)).expect(&file);
        for (n, line) in code(&text) {
            for room in mentioned(line) {
                if rank(room).is_some_and(|r| r > mine) {
                    upward.push(format!("src/{file}:{}: {}", n + 1, line.trim()));
                }
            }
        }
    }
    assert!(
        upward.is_empty(),
        "upward dependencies:\n{}",
        upward.join("\n")
    );
}

#[test]
fn every_file_belongs_to_a_listed_room() {
    for (file, _) in sources() {
        assert!(
            file == "lib.rs" || rank(room_of(&file)).is_some(),
            "src/{file} is in no room of this test's list"
        );
    }
}

#[test]
fn unsafe_has_addresses() {
    let allowed = |file: &str| {
        UNSAFE
            .iter()
            .any(|(p, _)| file == *p || (p.ends_with('/') && file.starts_with(p)))
    };
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let uses = code(&text).any(|(_, l)| {
            let l = l.split("//").next().unwrap();
            l.split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .any(|w| w == "unsafe")
        });
        if uses && !allowed(&file) {
            wrong.push(format!(
                "src/{file}: unsafe code in a file that may have none"
            ));
        }
        let room = room_of(&file);
        let must_forbid = matches!(room, "fault" | "ops") && file.ends_with("mod.rs");
        if must_forbid && !text.contains("forbid(unsafe_code)") {
            wrong.push(format!("src/{file}: lacks #![forbid(unsafe_code)]"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn mm_names_no_machine() {
    for (file, text) in sources() {
        if file.starts_with("sim/") {
            continue;
        }
        let mut before = "";
        for (n, line) in code(&text) {
            let in_sim = before.contains("cfg(") && before.contains("\"sim\"");
            before = line;
            for word in [
                "x86_64::",
                "uart_16550",
                "bootloader_api",
                "core::arch",
                "asm!(",
                "std::",
            ] {
                assert!(
                    !line.contains(word) || in_sim,
                    "src/{file}:{}: {}",
                    n + 1,
                    line.trim()
                );
            }
        }
    }
}
