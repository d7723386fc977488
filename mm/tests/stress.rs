//! Host threads as CPUs of one process: they map, protect, discard, move, fork and unmap next to each other,
//! in the same tables, for thousands of rounds, each with content checks of what is its own.

mod common;

use common::{BASE, P, R, W, frames_free, new_space, switch_away, switch_to, trap};
use linux_raw_sys::general as sys;
use mm::fault::FaultResult;
use mm::hw::Cpu;
use mm::ops::{self, FileMap, MmapArgs, MremapArgs};
use mm::sim::mmu::Want;
use mm::sim::rng::{Rng, seed};
use mm::sim::{Config, Machine, Sim};
use mm::{AddressSpace, Errno, FileObject};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CPUS: usize = 4;
const ROUNDS: u32 = 2500;
/// Pages of a thread's own region; the regions lie side by side across a table's end.
const OWN: u64 = 40;

/// One page as its owner knows it: rights and first byte.
type Model = Vec<Option<(u32, u8)>>;

struct Worker<'a> {
    sim: Machine,
    space: &'a Arc<AddressSpace<Machine>>,
    file: &'a Arc<FileObject<Machine>>,
    rng: Rng,
    first: u64,
    pages: Model,
}

#[derive(PartialEq, Debug)]
enum Got {
    Byte(u8),
    Segv(i32),
    Bus,
}

fn access(sim: Machine, space: &AddressSpace<Machine>, va: u64, want: Want, byte: u8) -> Got {
    let mut last = None;
    let got = sim.access(va, want, byte, &mut |f| match trap(sim, space, f) {
        FaultResult::Done { .. } => true,
        FaultResult::Segv { code } => {
            last = Some(Got::Segv(code));
            false
        }
        FaultResult::Bus { .. } => {
            last = Some(Got::Bus);
            false
        }
        other => panic!("{va:#x}: {other:?}"),
    });
    match (got, last) {
        (Some(b), _) => Got::Byte(b),
        (None, Some(l)) => l,
        (None, None) => panic!("{:?}", sim.violation()),
    }
}

impl Worker<'_> {
    fn expect(&self, i: u64, want: Want) -> Got {
        match self.pages[i as usize] {
            None => Got::Segv(1),
            Some((prot, _)) if prot == 0 || (want == Want::Write && prot & W == 0) => Got::Segv(2),
            Some((_, b)) => Got::Byte(b),
        }
    }
    fn touch(&mut self, space: &AddressSpace<Machine>, i: u64, want: Want, byte: u8) -> bool {
        let va = (self.first + i) * P;
        let got = access(self.sim, space, va, want, byte);
        assert_eq!(got, self.expect(i, want), "{want:?} of {va:#x}");
        matches!(got, Got::Byte(_))
    }
    fn round(&mut self) {
        let (sim, space) = (self.sim, self.space.clone());
        let i = self.rng.below(OWN);
        let n = self.rng.range(1, 9).min(OWN - i);
        let (addr, len) = ((self.first + i) * P, n * P);
        let part = i as usize..(i + n) as usize;
        let mut wait = sim.can_wait();
        match self.rng.below(12) {
            0 | 1 => {
                let args = MmapArgs {
                    addr,
                    len,
                    prot: R | W,
                    flags: sys::MAP_PRIVATE | sys::MAP_ANONYMOUS | sys::MAP_FIXED,
                    file: None,
                };
                ops::mmap(&space, &mut wait, args).unwrap();
                self.pages[part].fill(Some((R | W, 0)));
            }
            2 => {
                ops::munmap(&space, &mut wait, addr, len).unwrap();
                self.pages[part].fill(None);
            }
            3 | 4 => {
                let prot = *self.rng.pick(&[R, R | W, 0]);
                let mapped = self.pages[part.clone()].iter().all(Option::is_some);
                let r = ops::mprotect(&space, &mut wait, addr, len, prot);
                assert_eq!(r.is_ok(), mapped);
                for m in &mut self.pages[part] {
                    match m {
                        Some((p, _)) => *p = prot,
                        None => break,
                    }
                }
            }
            5 => {
                let r = ops::madvise(&space, &mut wait, addr, len, sys::MADV_DONTNEED);
                assert!(matches!(r, Ok(()) | Err(Errno::ENOMEM)));
                self.pages[part].iter_mut().flatten().for_each(|m| m.1 = 0);
            }
            6 => {
                let to = self.rng.below(OWN - n + 1);
                if to < i + n && i < to + n {
                    return;
                }
                let args = MremapArgs {
                    addr,
                    old_len: len,
                    new_len: len,
                    flags: sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED,
                    new_addr: (self.first + to) * P,
                };
                match ops::mremap(&space, &mut wait, args) {
                    Ok(_) => {
                        let moved: Model = self.pages[part.clone()].to_vec();
                        self.pages[part].fill(None);
                        self.pages[to as usize..(to + n) as usize].copy_from_slice(&moved);
                    }
                    Err(e) => {
                        assert_eq!(e, Errno::EFAULT);
                        // The target may have been cleared first.
                        let guard = space.mmap_read(&mut wait);
                        for k in to..to + n {
                            if guard.find((self.first + k) * P).is_none() {
                                self.pages[k as usize] = None;
                            }
                        }
                    }
                }
            }
            7 if self.rng.one_in(8) => self.fork(),
            8 => self.file(),
            _ => {
                for _ in 0..6 {
                    let i = self.rng.below(OWN);
                    let want = *self.rng.pick(&[Want::Read, Want::Write]);
                    let byte = self.rng.word() as u8;
                    if self.touch(&space, i, want, byte)
                        && want == Want::Write
                        && let Some(m) = &mut self.pages[i as usize]
                    {
                        m.1 = byte;
                    }
                }
            }
        }
        if let Some(v) = sim.violation() {
            panic!("{v}");
        }
    }
    /// A child sees our region as it is now, and what it writes is its own.
    fn fork(&mut self) {
        let sim = self.sim;
        let child = ops::fork(self.space, &mut sim.can_wait()).unwrap();
        switch_to(sim, &child, std::slice::from_ref(self.space));
        for i in 0..OWN {
            if self.touch(&child, i, Want::Read, 0)
                && matches!(self.pages[i as usize], Some((p, _)) if p & W != 0)
            {
                self.touch(&child, i, Want::Write, 0xcc);
            }
        }
        switch_to(sim, self.space, std::slice::from_ref(&child));
        for i in 0..OWN {
            let space = self.space.clone();
            self.touch(&space, i, Want::Read, 0);
        }
        ops::exit(&child, &mut sim.can_wait());
    }
    /// A file that others truncate meanwhile: bytes are one of two, or the access is refused.
    fn file(&mut self) {
        let (sim, space) = (self.sim, self.space.clone());
        let mut wait = sim.can_wait();
        let kind = *self.rng.pick(&[sys::MAP_SHARED, sys::MAP_PRIVATE]);
        let args = MmapArgs {
            addr: 0,
            len: 20 * P,
            prot: R | W,
            flags: kind,
            file: Some(FileMap {
                object: self.file.clone(),
                pgoff: 0,
                readable: true,
                writable: true,
                append: false,
                executable: true,
            }),
        };
        let at = ops::mmap(&space, &mut wait, args).unwrap();
        for _ in 0..6 {
            let va = at + self.rng.below(20) * P;
            let want = *self.rng.pick(&[Want::Read, Want::Write]);
            match access(sim, &space, va, want, 0x77) {
                Got::Byte(0 | 0x77) | Got::Bus => {}
                other => panic!("file page {va:#x}: {other:?}"),
            }
        }
        if self.rng.one_in(3) {
            let pages = self.rng.below(24);
            self.file.set_size(&mut wait, pages * P);
        }
        ops::munmap(&space, &mut wait, at, 20 * P).unwrap();
    }
}

fn run(seed: u64) {
    let sim = Sim::new(Config {
        frames: 8192,
        cpus: CPUS,
        threads: true,
        seed,
        ..Config::default()
    })
    .on(0);
    let before = frames_free(sim);
    {
        let space = new_space(sim);
        let file = FileObject::new(sim).unwrap();
        file.set_size(&mut sim.can_wait(), 20 * P);
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            for cpu in 0..CPUS {
                let (space, file, stop) = (&space, &file, &stop);
                s.spawn(move || {
                    sim.on(cpu);
                    switch_to(sim, space, &[]);
                    let mut w = Worker {
                        sim,
                        space,
                        file,
                        rng: Rng::new(seed ^ cpu as u64),
                        first: (BASE >> 12) + 512 - OWN * 2 + cpu as u64 * OWN,
                        pages: vec![None; OWN as usize],
                    };
                    for _ in 0..ROUNDS {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let r =
                            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| w.round()));
                        if let Err(e) = r {
                            stop.store(true, Ordering::Relaxed);
                            std::panic::resume_unwind(e);
                        }
                    }
                    switch_away(sim, space);
                });
            }
        });
        sim.check_no_stale();
        sim.check();
        ops::exit(&space, &mut sim.can_wait());
    }
    sim.check();
    assert_eq!(frames_free(sim), before, "frames");
    let (all, late) = sim.shootdowns();
    println!("seed {seed}: {all} shootdowns, {late} waited for a CPU with interrupts off");
}

#[test]
fn threads_that_fault_map_fork_and_unmap_against_each_other() {
    for s in 0..3 {
        run(seed(0x51_0000 + s));
    }
}

/// Two threads fault in one VMA while a third takes it away and puts it back.
#[test]
fn a_vma_is_never_half_gone() {
    let sim = Sim::new(Config {
        cpus: 3,
        threads: true,
        seed: seed(7),
        ..Config::default()
    })
    .on(0);
    let before = frames_free(sim);
    {
        let space = new_space(sim);
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            for cpu in 1..3 {
                let (space, done) = (&space, &done);
                s.spawn(move || {
                    sim.on(cpu);
                    switch_to(sim, space, &[]);
                    let mut rng = Rng::new(cpu as u64);
                    while !done.load(Ordering::Relaxed) {
                        let va = BASE + rng.below(8) * P;
                        match access(sim, space, va, Want::Write, 5) {
                            Got::Byte(0 | 5) | Got::Segv(1) => {}
                            other => panic!("{other:?}"),
                        }
                    }
                    switch_away(sim, space);
                });
            }
            switch_to(sim, &space, &[]);
            for _ in 0..4000 {
                let args = MmapArgs {
                    addr: BASE,
                    len: 8 * P,
                    prot: R | W,
                    flags: sys::MAP_PRIVATE | sys::MAP_ANONYMOUS | sys::MAP_FIXED,
                    file: None,
                };
                ops::mmap(&space, &mut sim.can_wait(), args).unwrap();
                sim.cond_resched();
                ops::munmap(&space, &mut sim.can_wait(), BASE, 8 * P).unwrap();
                if sim.failed() {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            switch_away(sim, &space);
        });
        sim.check_no_stale();
        sim.check();
        ops::exit(&space, &mut sim.can_wait());
    }
    assert_eq!(frames_free(sim), before, "frames");
}

/// A private copy beyond the new end goes with the page it was a copy of, in the child that is just being
/// made, too.
#[test]
fn a_child_forked_during_a_truncation_keeps_nothing_beyond_the_end() {
    let sim = Sim::new(Config {
        cpus: 2,
        threads: true,
        seed: seed(11),
        ..Config::default()
    })
    .on(0);
    for round in 0..150 {
        let space = new_space(sim);
        switch_to(sim, &space, &[]);
        let file = FileObject::new(sim).unwrap();
        file.set_size(&mut sim.can_wait(), 64 * P);
        let args = |addr: u64| MmapArgs {
            addr,
            len: 64 * P,
            prot: R | W,
            flags: sys::MAP_PRIVATE | sys::MAP_FIXED,
            file: Some(FileMap {
                object: file.clone(),
                pgoff: 0,
                readable: true,
                writable: true,
                append: false,
                executable: true,
            }),
        };
        // Several mappers, so that the walk over them takes a while.
        for k in 0..6 {
            ops::mmap(&space, &mut sim.can_wait(), args(BASE + k * 0x20_0000)).unwrap();
            for i in 0..8 {
                access(
                    sim,
                    &space,
                    BASE + k * 0x20_0000 + i * 8 * P,
                    Want::Write,
                    9,
                );
            }
        }
        let child = std::thread::scope(|s| {
            let file = &file;
            s.spawn(move || {
                sim.on(1);
                (0..round * 3).for_each(|_| std::hint::spin_loop());
                file.set_size(&mut sim.can_wait(), 0);
            });
            ops::fork(&space, &mut sim.can_wait()).unwrap()
        });
        for (s, other) in [(&space, &child), (&child, &space)] {
            switch_to(sim, s, std::slice::from_ref(other));
            for k in 0..6 {
                for i in 0..8 {
                    let va = BASE + k * 0x20_0000 + i * 8 * P;
                    assert_eq!(
                        access(sim, s, va, Want::Read, 0),
                        Got::Bus,
                        "round {round}, {va:#x}"
                    );
                }
            }
        }
        switch_away(sim, &child);
        ops::exit(&child, &mut sim.can_wait());
        ops::exit(&space, &mut sim.can_wait());
        sim.check();
    }
}

/// A thread writes first one page, then another, the same number. A child never sees the second ahead of the first,
/// though its copy of the first page's entry was made long before.
#[test]
fn a_fork_is_one_moment() {
    let sim = Sim::new(Config {
        cpus: 2,
        threads: true,
        seed: seed(13),
        ..Config::default()
    })
    .on(0);
    let space = new_space(sim);
    switch_to(sim, &space, &[]);
    // VMAs of their own, in order of their addresses: fork deals with one after another.
    const VMAS: u64 = 24;
    let at = |k: u64| BASE + k * 4 * P;
    for k in 0..VMAS {
        let args = MmapArgs {
            addr: at(k),
            len: 2 * P,
            prot: R | W,
            flags: sys::MAP_PRIVATE | sys::MAP_ANONYMOUS | sys::MAP_FIXED,
            file: None,
        };
        ops::mmap(&space, &mut sim.can_wait(), args).unwrap();
        access(sim, &space, at(k), Want::Write, 0);
    }
    let (first, second) = (at(0), at(VMAS - 1));
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let (space, done) = (&space, &done);
        s.spawn(move || {
            sim.on(1);
            switch_to(sim, space, &[]);
            for n in 1u64.. {
                access(sim, space, first, Want::Write, n as u8);
                access(sim, space, second, Want::Write, n as u8);
                if done.load(Ordering::Relaxed) || sim.failed() {
                    break;
                }
            }
            switch_away(sim, space);
        });
        let mut torn = None;
        for round in 0..200 {
            let child = ops::fork(space, &mut sim.can_wait()).unwrap();
            switch_to(sim, &child, std::slice::from_ref(space));
            let seen = [first, second].map(|va| access(sim, &child, va, Want::Read, 0));
            switch_to(sim, space, std::slice::from_ref(&child));
            ops::exit(&child, &mut sim.can_wait());
            let [Got::Byte(a), Got::Byte(b)] = seen else {
                panic!("{seen:?}");
            };
            if a.wrapping_sub(b) > 1 {
                torn = Some((round, a, b));
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        switch_away(sim, space);
        assert_eq!(
            torn, None,
            "round, first and second page as a child saw them"
        );
    });
    ops::exit(&space, &mut sim.can_wait());
    sim.check();
}
