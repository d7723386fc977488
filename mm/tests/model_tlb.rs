//! No CPU uses a translation that the tables took back, or a frame after it was freed: shown by
//! `model_space` on a machine that looks for it, and here that it would be noticed. Every place in mm that
//! flushes, or tells a batch what to flush, is a mutation point (`sim::mutate`); each is left out in turn, and
//! some check must fail.

mod common;

use common::World;
use mm::sim::{Config, Mutation, Site};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

thread_local!(static MUTED: Cell<bool> = const { Cell::new(false) });

fn mute() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !MUTED.get() {
                before(info);
            }
        }));
    });
}

fn config(seed: u64) -> Config {
    Config {
        frames: 16384,
        cpus: 3,
        seed,
        ..Config::default()
    }
}

/// Runs the model; what it noticed, if anything.
fn noticed(seed: u64, steps: u32, mutation: Option<Mutation>) -> Option<String> {
    mute();
    let mut w = World::new(config(seed));
    w.inject = if seed.is_multiple_of(2) { 0 } else { 5 };
    w.sim.mutate(mutation);
    MUTED.set(true);
    let r = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..steps {
            w.step();
        }
        w.finish();
    }));
    MUTED.set(false);
    r.err().map(|e| {
        let text = e
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| e.downcast_ref::<&str>().map(|s| (*s).to_string()))
            .unwrap_or_default();
        text.lines().next().unwrap_or("a panic").to_string()
    })
}

/// Flushes that none of these programs can cause, and why.
const UNREACHED: &[(&str, &str)] = &[
    // They map no driver's frames: `mixed.rs` takes those back.
    ("rmap/mod.rs", "let Ok(page) = vma.folio("),
    // An empty table goes with the mapping it was made for, before another can move there.
    ("table/lock.rs", "if !empty.is_empty()"),
];

const SEEDS: u64 = 40;
const STEPS: u32 = 150;

/// The first seed of a mutated run that is noticed.
fn hunt(m: Mutation) -> Option<(u64, String)> {
    (0..SEEDS).find_map(|seed| noticed(seed, STEPS, Some(m)).map(|why| (seed, why)))
}

/// The places that a healthy run uses.
fn places() -> (BTreeMap<Site, mm::sim::mutate::Used>, BTreeSet<Site>) {
    let (mut flushes, mut notes) = (BTreeMap::new(), BTreeSet::new());
    for seed in 0..8 {
        let mut w = World::new(config(seed));
        for _ in 0..STEPS {
            w.step();
        }
        let sim = w.sim;
        w.finish();
        for (site, used) in sim.sites() {
            let all: &mut mm::sim::mutate::Used = flushes.entry(site).or_default();
            all.pages += used.pages;
            all.all += used.all;
            all.tables += used.tables;
        }
        notes.extend(sim.note_sites());
    }
    (flushes, notes)
}

#[test]
fn the_healthy_kernel_is_not_accused() {
    for seed in 0..SEEDS / 2 {
        assert_eq!(noticed(seed, STEPS, None), None, "seed {seed}");
    }
}

#[test]
fn each_flush_that_is_left_out_is_noticed() {
    let (flushes, _) = places();
    assert!(flushes.len() >= 6, "only {flushes:?}");
    let mut missed = Vec::new();
    for (site, used) in flushes {
        let mut all = vec![
            Mutation::Drop(site),
            Mutation::DropRemote(site),
            Mutation::DropLocal(site),
        ];
        if used.tables > 0 {
            all.push(Mutation::KeepUppers(site));
        }
        // A space whose last user has left has nothing on the CPU that ends it.
        if site.file.ends_with("address_space.rs") {
            all.retain(|m| !matches!(m, Mutation::DropLocal(_)));
        }
        for m in all {
            let name = format!("{m:?}").split('(').next().unwrap().to_string();
            match hunt(m) {
                Some((seed, why)) => println!("{name} at {site}: seed {seed}: {why}"),
                None => missed.push(format!("{name} at {site} ({used:?})")),
            }
        }
    }
    assert!(missed.is_empty(), "not noticed:\n  {}", missed.join("\n  "));
}

#[test]
fn each_note_that_is_left_out_is_noticed() {
    let (_, notes) = places();
    assert!(notes.len() >= 4, "only {notes:?}");
    let mut missed = Vec::new();
    for site in notes {
        match hunt(Mutation::SkipNote(site)) {
            Some((seed, why)) => println!("SkipNote at {site}: seed {seed}: {why}"),
            None => missed.push(site.to_string()),
        }
    }
    assert!(missed.is_empty(), "not noticed:\n  {}", missed.join("\n  "));
}

#[test]
fn a_tag_that_is_trusted_after_a_missed_flush_is_noticed() {
    let (seed, why) = hunt(Mutation::TrustTags).expect("not noticed");
    println!("TrustTags: seed {seed}: {why}");
}

/// A place that flushes and that no run of the model reaches would be no mutation point at all.
#[test]
fn every_flush_in_the_sources_is_a_mutation_point() {
    fn walk(dir: &Path, out: &mut Vec<(String, u32)>) {
        for e in std::fs::read_dir(dir).unwrap() {
            let p = e.unwrap().path();
            let name = p.display().to_string();
            if p.is_dir() {
                if !name.ends_with("/sim") {
                    walk(&p, out);
                }
                continue;
            }
            if name.ends_with("tests.rs") || name.ends_with("table/tlb.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&p).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            for (n, line) in lines.iter().enumerate() {
                let before = &lines[n.saturating_sub(2)..n];
                if UNREACHED
                    .iter()
                    .any(|(f, above)| name.ends_with(f) && before.iter().any(|l| l.contains(above)))
                {
                    continue;
                }
                let code = line.split("//").next().unwrap();
                let calls = [
                    "TlbBatch::begin(",
                    ".tlb.flush(",
                    "batch.note(",
                    "batch.note_tables(",
                    ".shootdown(",
                    ".flush_local(",
                ];
                if calls.iter().any(|c| code.contains(c)) {
                    out.push((name.clone(), n as u32 + 1));
                }
            }
        }
    }
    let mut calls = Vec::new();
    walk(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut calls,
    );
    assert!(calls.len() >= 10, "{calls:?}");
    let (flushes, notes) = places();
    let known: Vec<Site> = flushes.into_keys().chain(notes).collect();
    let unknown: Vec<String> = calls
        .into_iter()
        .filter(|(file, line)| {
            !known.iter().any(|s| {
                file.ends_with(s.file.trim_start_matches("mm/")) && s.line.abs_diff(*line) <= 2
            })
        })
        .map(|(f, l)| format!("{f}:{l}"))
        .collect();
    assert!(
        unknown.is_empty(),
        "flushes that no run reaches:\n  {}",
        unknown.join("\n  ")
    );
}
