//! Four CPUs in one process pin, write, discard, unmap and fork next to each other, without a plan: whoever pins a page
//! shares it with his process until he lets go, a child has what there was at its fork, and in the end every pin is back and
//! every frame.

mod common;
mod lab;

use common::{BASE, P, R, W, frames_free, new_space, switch_away, switch_to, trap};
use lab::{ANON, FIXED, Pins};
use mm::fault::FaultResult;
use mm::gup::{self, GupFlags, PageSlot, Read, Write};
use mm::ops::{self, MmapArgs, access};
use mm::phys::Hw;
use mm::sim::mmu::Want;
use mm::sim::rng::{Rng, seed};
use mm::sim::{Config, Machine, Sim};
use mm::{AddressSpace, Errno};
use std::sync::Arc;

const CPUS: usize = 4;
const ROUNDS: u32 = 6000;
/// Pages of each thread; the regions lie side by side across a table's end.
const OWN: u64 = 24;

/// A pin that is kept for a while, and what it is of.
struct Kept {
    pins: Pins<Write>,
    first: u64,
    /// Pages that have been discarded or unmapped since: the process has others now.
    gone: Vec<bool>,
}

struct Worker<'a> {
    sim: Machine,
    space: &'a Arc<AddressSpace<Machine>>,
    rng: Rng,
    start: u64,
    /// First byte of each page.
    bytes: Vec<u8>,
    kept: Option<Kept>,
}

impl Worker<'_> {
    fn touch(&self, i: u64, want: Want, byte: u8) -> u8 {
        let va = self.start + i * P;
        let got = self.sim.access(va, want, byte, &mut |f| {
            matches!(trap(self.sim, self.space, f), FaultResult::Done { .. })
        });
        got.unwrap_or_else(|| panic!("{va:#x}: {:?}", self.sim.violation()))
    }
    fn load(&self, i: u64) {
        assert_eq!(
            self.touch(i, Want::Read, 0),
            self.bytes[i as usize],
            "page {i}"
        );
    }
    fn store(&mut self, i: u64) {
        let byte = self.rng.word() as u8;
        self.touch(i, Want::Write, byte);
        self.bytes[i as usize] = byte;
    }
    fn frame(&self, page: PageSlot) -> *mut u8 {
        self.sim.frame_ptr(page.pfn())
    }
    fn dma_write(&self, page: PageSlot, byte: u8) {
        // SAFETY: pinned for writing; frames are bytes that everybody writes by whole stores.
        unsafe { self.frame(page).write_volatile(byte) };
    }
    fn dma_read(&self, page: PageSlot) -> u8 {
        // SAFETY: pinned.
        unsafe { self.frame(page).read_volatile() }
    }
    /// The kept pins and the process still mean the same pages.
    fn check_kept(&mut self) {
        let Some(kept) = self.kept.take() else {
            return;
        };
        for (n, page) in kept.pins.pages().iter().enumerate() {
            if kept.gone[n] {
                continue;
            }
            let i = kept.first + n as u64;
            assert_eq!(
                self.dma_read(*page),
                self.bytes[i as usize],
                "a stale pin of {i}"
            );
            if self.rng.one_in(2) {
                let byte = self.rng.word() as u8;
                self.dma_write(*page, byte);
                self.bytes[i as usize] = byte;
                self.load(i);
            } else {
                self.store(i);
                assert_eq!(
                    self.dma_read(*page),
                    self.bytes[i as usize],
                    "a store past the pin of {i}"
                );
            }
        }
        if !self.rng.one_in(3) {
            self.kept = Some(kept);
        }
    }
    fn lost(&mut self, i: u64, n: u64) {
        for k in i..i + n {
            self.bytes[k as usize] = 0;
        }
        if let Some(kept) = &mut self.kept {
            for (k, gone) in kept.gone.iter_mut().enumerate() {
                *gone |= (i..i + n).contains(&(kept.first + k as u64));
            }
        }
    }
    fn round(&mut self) {
        let (sim, space) = (self.sim, self.space.clone());
        let i = self.rng.below(OWN);
        let n = self.rng.range(1, 7).min(OWN - i);
        let va = self.start + i * P;
        let wait = &mut sim.can_wait();
        match self.rng.below(14) {
            0..=2 => self.store(i),
            3 => self.load(i),
            4..=6 if self.kept.is_none() => {
                let slots = vec![PageSlot::EMPTY; n as usize];
                let none = GupFlags::empty();
                let pins: Result<Pins<Write>, Errno> = if self.rng.one_in(3) {
                    gup::pin_user_pages_remote(&space, wait, va, none, slots)
                } else {
                    gup::pin_user_pages_fast(&space, wait, va, none, slots)
                };
                let pins = pins.unwrap();
                assert_eq!(pins.len() as u64, n);
                let gone = vec![false; n as usize];
                self.kept = Some(Kept {
                    pins,
                    first: i,
                    gone,
                });
            }
            7 => {
                // To read: what the process writes is seen, after forks as well.
                let slots = vec![PageSlot::EMPTY; n as usize];
                let flags = GupFlags::LONGTERM;
                let pins: Pins<Read> =
                    gup::pin_user_pages_fast(&space, wait, va, flags, slots).unwrap();
                self.store(i);
                assert_eq!(self.dma_read(pins.pages()[0]), self.bytes[i as usize]);
            }
            8 => {
                ops::madvise(
                    &space,
                    wait,
                    va,
                    n * P,
                    linux_raw_sys::general::MADV_DONTNEED,
                )
                .unwrap();
                self.lost(i, n);
            }
            9 => {
                ops::munmap(&space, wait, va, n * P).unwrap();
                map(sim, &space, va, n);
                self.lost(i, n);
            }
            10 if self.rng.one_in(3) => {
                let child = ops::fork(&space, wait).unwrap();
                let then = self.bytes.clone();
                for k in 0..OWN {
                    if self.rng.one_in(2) {
                        self.store(k);
                    }
                }
                self.check_kept();
                for (k, byte) in then.iter().enumerate() {
                    let mut b = [0];
                    let at = self.start + k as u64 * P;
                    access::read(&child, wait, at, &mut b, GupFlags::empty()).unwrap();
                    assert_eq!(b[0], *byte, "the child's page {k}");
                }
                ops::exit(&child, wait);
            }
            11 => {
                let mut b = [0; 2];
                access::read(&space, wait, va, &mut b[..1], GupFlags::empty()).unwrap();
                assert_eq!(b[0], self.bytes[i as usize]);
                let byte = self.rng.word() as u8;
                access::write(&space, wait, va, &[byte], GupFlags::empty()).unwrap();
                self.bytes[i as usize] = byte;
                self.load(i);
            }
            _ => self.check_kept(),
        }
    }
}

fn map(sim: Machine, space: &AddressSpace<Machine>, addr: u64, pages: u64) {
    let args = MmapArgs {
        addr,
        len: pages * P,
        prot: R | W,
        flags: ANON | FIXED,
        file: None,
    };
    ops::mmap(space, &mut sim.can_wait(), args).unwrap();
}

/// BUG-5, BUG-6, BUG-7, BUG-9, PIN-14, PIN-15, UNSH-3, LOOP-6, FAULT-15.
#[test]
fn pins_forks_and_unmaps_at_random() {
    lab::plant();
    let seed = seed(7);
    let sim = Sim::new(Config {
        cpus: CPUS,
        threads: true,
        seed,
        ..Config::default()
    });
    sim.on(0);
    let free = frames_free(sim);
    let space = new_space(sim);
    let base = BASE + 1024 * P - 2 * OWN * P;
    map(sim, &space, base, OWN * CPUS as u64);
    std::thread::scope(|scope| {
        for c in 0..CPUS {
            let space = &space;
            scope.spawn(move || {
                sim.on(c);
                switch_to(sim, space, &[]);
                let mut w = Worker {
                    sim,
                    space,
                    rng: Rng::new(seed ^ (c as u64 + 1) << 20),
                    start: base + c as u64 * OWN * P,
                    bytes: vec![0; OWN as usize],
                    kept: None,
                };
                for _ in 0..ROUNDS {
                    if sim.failed() {
                        break;
                    }
                    w.round();
                }
                w.check_kept();
                drop(w);
                switch_away(sim, space);
            });
        }
    });
    sim.on(0);
    ops::exit(&space, &mut sim.can_wait());
    drop(space);
    let (acquired, released) = sim.phys().pin_counts();
    assert!(acquired > 1000, "{acquired} pins");
    assert_eq!(acquired, released);
    assert_eq!(frames_free(sim), free);
    assert!(sim.warnings().is_empty(), "PIN-13");
    sim.check_no_stale();
    sim.check();
}
