//! A space's VMAs against a sorted list: what is mapped where after any sequence of calls, and where a mapping
//! goes that names no place (every gap tried). The tree's own shape: `src/space/tree_tests.rs`.

mod common;

use common::{P, new_space};
use linux_raw_sys::general as sys;
use mm::addr::MMAP_MIN_ADDR;
use mm::ops::{self, MmapArgs};
use mm::sim::{Config, Machine, Sim};
use mm::space::VmaFlags;
use mm::{AddressSpace, Errno, USER_END};
use proptest::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

/// Pages of the region that is played in; the search for gaps begins at its end.
const PAGES: u64 = 3000;
const BASE: u64 = 0x4000_0000;
const GUARD: u64 = 256 * P;

#[derive(Clone, Debug)]
enum Op {
    /// Length, and a hint or 0.
    Anywhere(u64, u64),
    /// At a page, so long, growing down?
    Fixed(u64, u64, bool),
    NoReplace(u64, u64),
    Unmap(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let page = 0..PAGES;
    let len = prop_oneof![4 => 1..8u64, 2 => 100..400u64, 1 => 1000..2500u64];
    prop_oneof![
        3 => (len.clone(), prop_oneof![Just(u64::MAX), page.clone()]).prop_map(|(n, h)| Op::Anywhere(n, h)),
        3 => (page.clone(), len.clone(), any::<bool>()).prop_map(|(p, n, g)| Op::Fixed(p, n, g)),
        1 => (page.clone(), len.clone()).prop_map(|(p, n)| Op::NoReplace(p, n)),
        3 => (page, len).prop_map(|(p, n)| Op::Unmap(p, n)),
    ]
}

/// Start, end, grows down; sorted and disjoint.
#[derive(Default)]
struct Model(Vec<(u64, u64, bool)>);

impl Model {
    fn cut(&mut self, s: u64, e: u64) {
        self.0 = self
            .0
            .iter()
            .flat_map(|&(a, b, g)| [(a, b.min(s), g), (a.max(e), b, g)])
            .filter(|(a, b, _)| a < b)
            .collect();
    }
    fn put(&mut self, s: u64, e: u64, grows: bool) {
        self.cut(s, e);
        self.0.push((s, e, grows));
        self.0.sort();
    }
    fn free(&self, s: u64, e: u64) -> bool {
        self.0.iter().all(|&(a, b, _)| e <= a || b <= s)
    }
    /// Free, and not in the gap kept below a stack, as far as that reaches.
    fn fits(&self, s: u64, e: u64) -> bool {
        let above = self.0.iter().find(|v| v.1 > s);
        above.is_none_or(|&(a, _, grows)| {
            let below = self
                .0
                .iter()
                .filter(|v| v.1 <= a)
                .map(|v| v.1)
                .max()
                .unwrap_or(0);
            let guarded = if grows {
                a.saturating_sub(GUARD).max(below)
            } else {
                a
            };
            e <= guarded
        })
    }
    fn place(&self, len: u64, hint: u64) -> Option<u64> {
        if hint >= MMAP_MIN_ADDR && hint + len <= USER_END && self.fits(hint, hint + len) {
            return Some(hint);
        }
        let top = BASE + PAGES * P;
        // The highest: just below the end, or below something that is there or its guard.
        let edges = |a: u64| [a, a.saturating_sub(GUARD)];
        let ends = self.0.iter().flat_map(|v| edges(v.0)).chain([top]);
        let best = ends
            .filter(|e| *e <= top)
            .filter_map(|e| e.checked_sub(len))
            .filter(|s| *s >= MMAP_MIN_ADDR && self.fits(*s, s + len))
            .max();
        best.or_else(|| {
            let third = USER_END / 3 / P * P;
            self.0
                .iter()
                .map(|v| v.1)
                .chain([third])
                .filter(|s| *s >= third && s + len <= USER_END && self.fits(*s, s + len))
                .min()
        })
    }
    /// Neighbours alike are one.
    fn joined(&self) -> Vec<(u64, u64, bool)> {
        join(self.0.iter().copied())
    }
}

fn join(all: impl Iterator<Item = (u64, u64, bool)>) -> Vec<(u64, u64, bool)> {
    let mut out: Vec<(u64, u64, bool)> = Vec::new();
    for (s, e, g) in all {
        match out.last_mut() {
            Some(l) if l.1 == s && l.2 == g => l.1 = e,
            _ => out.push((s, e, g)),
        }
    }
    out
}

fn map(
    sim: Machine,
    space: &AddressSpace<Machine>,
    addr: u64,
    pages: u64,
    flags: u32,
) -> Result<u64, Errno> {
    let args = MmapArgs {
        addr,
        len: pages * P,
        prot: sys::PROT_READ,
        flags: flags | sys::MAP_PRIVATE | sys::MAP_ANONYMOUS,
        file: None,
    };
    ops::mmap(space, &mut sim.can_wait(), args)
}

fn play(ops_: &[Op]) {
    let sim = Sim::new(Config {
        frames: 256,
        cpus: 1,
        mischief: 0,
        ..Config::default()
    })
    .on(0);
    let space = new_space(sim);
    space.layout.mmap_base.store(BASE + PAGES * P, Relaxed);
    let mut model = Model::default();
    for op in ops_ {
        match *op {
            Op::Anywhere(n, hint) => {
                let hint = if hint == u64::MAX { 0 } else { BASE + hint * P };
                let want = model.place(n * P, hint);
                let got = map(sim, &space, hint, n, 0).ok();
                assert_eq!(got, want, "{op:x?}");
                if let Some(at) = want {
                    model.put(at, at + n * P, false);
                }
            }
            Op::Fixed(p, n, grows) => {
                let at = BASE + p * P;
                let flags = sys::MAP_FIXED | if grows { sys::MAP_GROWSDOWN } else { 0 };
                assert_eq!(map(sim, &space, at, n, flags), Ok(at));
                model.put(at, at + n * P, grows);
            }
            Op::NoReplace(p, n) => {
                let at = BASE + p * P;
                let got = map(sim, &space, at, n, sys::MAP_FIXED_NOREPLACE);
                if model.free(at, at + n * P) {
                    assert_eq!(got, Ok(at));
                    model.put(at, at + n * P, false);
                } else {
                    assert_eq!(got, Err(Errno::EEXIST));
                }
            }
            Op::Unmap(p, n) => {
                let at = BASE + p * P;
                ops::munmap(&space, &mut sim.can_wait(), at, n * P).unwrap();
                model.cut(at, at + n * P);
            }
        }
        let mut wait = sim.can_wait();
        let guard = space.mmap_read(&mut wait);
        let grows = |f: VmaFlags| f.contains(VmaFlags::GROWSDOWN);
        let real: Vec<_> = guard
            .all()
            .map(|v| (v.start(), v.end(), grows(v.flags())))
            .collect();
        // Memory that nobody touched merges wherever it meets its like.
        assert_eq!(real, model.joined(), "after {op:x?}");
        // Every page's VMA, by search from the root.
        for &(s, e, _) in &real {
            for va in [s, s + (e - s) / 2, e - 1] {
                assert_eq!(guard.find(va).map(|v| v.start()), Some(s));
            }
            assert_eq!(
                guard.find_from(e).map(|v| v.start()),
                real.iter().map(|v| v.0).find(|a| *a >= e)
            );
        }
    }
    ops::exit(&space, &mut sim.can_wait());
    sim.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vmas_are_where_the_sorted_list_says(ops in prop::collection::vec(op(), 1..70)) {
        play(&ops);
    }
}
