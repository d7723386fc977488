//! VMA locks against those who change VMAs, on host threads.

use super::*;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE as P};
use crate::sim::{Config, Sim};
use crate::space::{NewVma, VmaFlags};
use crate::sync::atomic::{AtomicBool, AtomicU64};
use std::vec::Vec;

const BASE: u64 = 0x10_0000_0000;
const RW: VmaFlags = VmaFlags::READ
    .union(VmaFlags::WRITE)
    .union(VmaFlags::MAYREAD)
    .union(VmaFlags::MAYWRITE);

/// Two readers take VMA locks without any other while a writer maps, unmaps and protects. A word for each
/// page says whether the writer believes to be alone with it.
#[test]
fn a_vma_lock_excludes_whoever_changes_the_vma() {
    const PAGES: u64 = 48;
    let sim = Sim::new(Config {
        mischief: 0,
        frames: 512,
        cpus: 3,
        threads: true,
        ..Config::default()
    });
    let space = AddressSpace::new(sim.on(0)).unwrap();
    let alone: Vec<AtomicBool> = (0..PAGES).map(|_| AtomicBool::new(false)).collect();
    let mapped: Vec<AtomicBool> = (0..PAGES).map(|_| AtomicBool::new(false)).collect();
    let done = AtomicBool::new(false);
    let locked = AtomicU64::new(0);
    std::thread::scope(|s| {
        for cpu in 1..3 {
            let (space, alone, mapped, done, locked) = (&space, &alone, &mapped, &done, &locked);
            s.spawn(move || {
                let mut wait = sim.on(cpu).can_wait();
                let mut x = cpu as u64;
                while !done.load(SeqCst) {
                    x = x
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let page = (x >> 33) % PAGES;
                    let va = BASE + page * P;
                    let guard = space.vma_read(&wait.irq_off(), va);
                    let Some(v) = guard else {
                        std::thread::yield_now();
                        continue;
                    };
                    locked.fetch_add(1, Relaxed);
                    for _ in 0..3 {
                        assert!(v.start() <= va && va < v.end());
                        assert!(mapped[page as usize].load(SeqCst), "locked what is gone");
                        assert_eq!(v.pgoff(), v.start() >> PAGE_SHIFT);
                        assert!(core::ptr::eq(v.space(), &**space));
                        for p in v.start()..v.end() {
                            if p % P == 0 {
                                let p = (p - BASE) / P;
                                assert!(!alone[p as usize].load(SeqCst), "page {p}");
                            }
                        }
                    }
                }
            });
        }
        let mut wait = sim.on(0).can_wait();
        let mut x = 99u64;
        for round in 0..10_000_000 {
            // However late the host lets the readers begin.
            if round > 40_000 && locked.load(Relaxed) > 1000 {
                break;
            }
            x = x
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let (start, n) = ((x >> 33) % (PAGES - 8), 1 + (x >> 50) % 8);
            let range = UserRange::from_len(BASE + start * P, n * P).unwrap();
            let mut g = space.mmap_write(&mut wait);
            // Whatever the edit below may merge with or cut is excluded first.
            let wide = UserRange::new(range.start() - P, range.end() + P).unwrap();
            g.write_lock_range(wide);
            let pages: Vec<u64> = g
                .iter(wide)
                .flat_map(|v| v.start() / P..v.end() / P)
                .map(|p| p - BASE / P)
                .collect();
            let mark = |on| {
                pages
                    .iter()
                    .for_each(|&p| alone[p as usize].store(on, SeqCst))
            };
            mark(true);
            if g.is_free(range) {
                let flags = if x & 1 << 40 == 0 {
                    RW
                } else {
                    RW | VmaFlags::DONTDUMP
                };
                let pgoff = range.start() >> PAGE_SHIFT;
                g.insert(NewVma {
                    range,
                    flags,
                    pgoff,
                    object: None,
                })
                .unwrap();
            } else if round % 3 == 0 {
                g.change(range, |v| v.flags() ^ VmaFlags::WRITE).unwrap();
            } else {
                drop(g.unlink(range).unwrap());
            }
            mark(false);
            for p in start..start + n {
                let there = g.find(BASE + p * P).is_some();
                mapped[p as usize].store(there, SeqCst);
            }
            drop(g);
            if round % 64 == 0 {
                crate::phys::slab::shrink(sim);
                std::thread::yield_now();
            }
        }
        done.store(true, SeqCst);
        drop(space.mmap_write(&mut wait).unlink_all());
    });
    assert!(locked.load(Relaxed) > 100, "the readers did not get in");
    sim.check();
}
