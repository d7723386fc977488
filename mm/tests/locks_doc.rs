//! `docs/locks.md` says what the types and `sync::Class` say.

use mm::object::RmapGuard;
use mm::sim::Machine;
use mm::space::{Detached, MmapReadGuard, MmapWriteGuard, Unreachable, VmaReadGuard};
use mm::sync::Class;
use mm::table::{MayFree, MayInstall, StableVma};

const DOC: &str = include_str!("../docs/locks.md");

/// The cells of the table whose header begins with `first`.
fn table(first: &str) -> Vec<Vec<String>> {
    let cells = |l: &str| -> Vec<String> {
        l.trim_matches('|')
            .split('|')
            .map(|c| c.trim().trim_matches('`').to_string())
            .collect()
    };
    let rows: Vec<Vec<String>> = DOC
        .lines()
        .skip_while(|l| !l.starts_with(&format!("| {first} ")))
        .take_while(|l| l.starts_with('|'))
        .map(cells)
        .collect();
    assert!(rows.len() > 3, "no table that begins with {first}");
    rows[2..].to_vec()
}

fn yes(cell: &str) -> bool {
    match cell {
        "–" => false,
        c if c.starts_with('✓') => true,
        c => panic!("neither yes nor no: {c}"),
    }
}

#[test]
fn the_order_is_the_classes_order() {
    let rows = table("class");
    assert_eq!(rows.len(), Class::ALL.len());
    for (row, class) in rows.iter().zip(Class::ALL) {
        assert_eq!(row[0], format!("{class:?}"));
        assert_eq!(yes(&row[1]), class.sleeps(), "{class:?} sleeps");
        assert_eq!(
            yes(&row[2]),
            class.sleeps() || class.awaited_under(),
            "{class:?} acks"
        );
        assert_eq!(yes(&row[3]), class.nests(), "{class:?} nests");
        for file in row[5].split(", ").map(|f| f.trim_matches('`')) {
            let path = format!("{}/src/{file}", env!("CARGO_MANIFEST_DIR"));
            assert!(
                file == "kernel" || std::path::Path::new(&path).exists(),
                "{class:?}: no {file}"
            );
        }
    }
    for (at, class) in Class::ALL.iter().enumerate() {
        assert_eq!(*class as usize, at, "Class::ALL is in order");
    }
}

fn follow<T: StableVma<Machine>>() {}
fn install<T: MayInstall<Machine>>() {}
fn free<T: MayFree<Machine>>() {}

/// What the table grants, the compiler grants (what it denies: the `compile_fail` tests in `table/permit.rs`).
#[test]
fn the_card_grants_what_the_types_grant() {
    follow::<RmapGuard<'_, Machine>>();
    follow::<VmaReadGuard<'_, Machine>>();
    install::<VmaReadGuard<'_, Machine>>();
    follow::<MmapReadGuard<'_, Machine>>();
    install::<MmapReadGuard<'_, Machine>>();
    follow::<MmapWriteGuard<'_, Machine>>();
    install::<MmapWriteGuard<'_, Machine>>();
    follow::<Detached<'_, Machine>>();
    follow::<Unreachable<'_, Machine>>();
    free::<Unreachable<'_, Machine>>();
    // peek, follow, zap, install, free tables
    let card = [
        ("IrqOff", [true, false, false, false, false]),
        ("RmapGuard", [false, true, true, false, false]),
        ("VmaReadGuard", [false, true, true, true, false]),
        ("MmapReadGuard", [false, true, true, true, false]),
        ("MmapWriteGuard", [false, true, true, true, false]),
        ("Detached", [false, true, true, false, false]),
        ("Unreachable", [false, true, true, false, true]),
    ];
    let rows = table("you hold");
    assert_eq!(rows.len(), card.len());
    for (row, (ty, may)) in rows.iter().zip(card) {
        assert_eq!(row[1], ty);
        let said: Vec<bool> = row[2..].iter().map(|c| yes(c)).collect();
        assert_eq!(said, may, "{ty}");
    }
}
