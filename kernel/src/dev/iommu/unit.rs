//! A unit: its registers, its queue, its reports.
//!
//! What its caches shall forget is written into a queue, at the end of which stands "then say so": the unit writes a number of ours to memory. The
//! queue is empty again before its lock is given up. Without that answer no frame may be used for anything else, so there is no going on without it.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::super::irq::{self, Line};
use super::super::pci::{self, Function, Registers};
use crate::arch::{self, time::now_ns};
use crate::memory::{direct, frames};
use crate::sync::IrqLock;

/// Registers.
const CAP: u32 = 0x08;
const ECAP: u32 = 0x10;
const GCMD: u32 = 0x18;
const GSTS: u32 = 0x1c;
const RTADDR: u32 = 0x20;
const FSTS: u32 = 0x34;
const FECTL: u32 = 0x38;
const FEDATA: u32 = 0x3c;
const FEADDR: u32 = 0x40;
const FEUADDR: u32 = 0x44;
const IQT: u32 = 0x88;
const IQA: u32 = 0x90;
const PAGE: u32 = 4096;

/// `GCMD` and `GSTS`: translate; the root table is set; the queue is on; interrupts are translated. A command is what is on and one change of it;
/// what is no state is no part of that.
const TRANSLATE: u32 = 1 << 31;
const SET_ROOT: u32 = 1 << 30;
const QUEUE: u32 = 1 << 26;
const INTERRUPTS: u32 = 1 << 25;
const STATES: u32 = 0x96ff_ffff;
/// How often a command's end is looked for.
const LOOKS: u32 = 10_000_000;

/// `CAP`: what must be flushed by hand; absent entries are remembered; pages one by one; drains writes, and reads; reads of
/// nothing in memory that can only be written.
const FLUSHES_WRITES: u64 = 1 << 4;
const CACHES_ABSENT: u64 = 1 << 7;
const ZERO_READS: u64 = 1 << 22;
const BY_PAGE: u64 = 1 << 39;
const DRAINS_WRITES: u64 = 1 << 54;
const DRAINS_READS: u64 = 1 << 55;
/// `ECAP`: looks into the processors' caches; has a queue.
const COHERENT: u64 = 1;
const HAS_QUEUE: u64 = 1 << 1;

/// `FSTS`: reports were lost; there is one; the queue has stopped for one of three reasons.
const LOST: u32 = 1;
const PENDING: u32 = 1 << 1;
const STOPPED: u32 = 7 << 4;
/// A report's upper half: there is one; it was a read.
const FAULT: u64 = 1 << 63;
const READ: u64 = 1 << 62;

/// Entries of the queue: a page of them.
const DEPTH: u64 = 256;
/// What to forget: functions, addresses; and what to do then: write a number.
const FUNCTIONS: u64 = 1;
const ADDRESSES: u64 = 2;
const SAY_SO: u64 = 5 | 1 << 5;
/// Of everything, of a domain (or a function), of pages.
const ALL: u64 = 1 << 4;
const ONE: u64 = 2 << 4;
const PAGES: u64 = 3 << 4;
/// After what is on its way has arrived.
const DRAIN_WRITES: u64 = 1 << 6;
const DRAIN_READS: u64 = 1 << 7;

/// Nanoseconds that forgetting may take: far more than any unit needs.
const PATIENCE: u64 = 10_000_000_000;

struct Queue {
    tail: u64,
    said: u32,
}

/// How often the log may tell of a fault: so many lines in so many nanoseconds (as Linux).
const BURST: u32 = 10;
const INTERVAL: u64 = 5_000_000_000;

struct Told {
    since: u64,
    lines: u32,
}

pub(super) struct Unit {
    /// Where its registers are.
    pub(super) base: u64,
    registers: Registers,
    cap: u64,
    coherent: bool,
    /// Levels of tables.
    pub(super) levels: u32,
    pub(super) root: u64,
    /// The queue's page; and where the unit says that it has done.
    entries: u64,
    answer: u64,
    queue: IrqLock<Queue>,
    told: IrqLock<Told>,
    left: AtomicBool,
    /// What was refused; how often there was more than is known; how often something was to be forgotten.
    pub(super) faults: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) flushes: AtomicU64,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "addresses of {} bits", self.width())
    }
}

impl Unit {
    /// Switches on the unit at `base`: nobody reaches anything. `None`: it lacks something, or does not do what it is told.
    pub(super) fn start(base: u64) -> Option<&'static Unit> {
        let registers = Registers::map(base, PAGE)?;
        let (cap, ecap) = (registers.read64(CAP), registers.read64(ECAP));
        let reports = (cap >> 24 & 0x3ff) as u32 * 16 + (cap >> 40 & 255) as u32 * 16 + 16;
        if ecap & HAS_QUEUE == 0 || cap & FLUSHES_WRITES != 0 || reports > PAGE {
            return None;
        }
        // Three levels of tables reach 39 bits, four 48.
        let levels = [4, 3].into_iter().find(|n| cap >> (8 + n - 2) & 1 != 0)?;
        let unit: &'static Unit = Box::leak(Box::new(Unit {
            base,
            registers,
            cap,
            coherent: ecap & COHERENT != 0,
            levels,
            root: frames::alloc_zeroed()?,
            entries: frames::alloc_zeroed()?,
            answer: frames::alloc_zeroed()?,
            queue: IrqLock::new(Queue { tail: 0, said: 0 }),
            told: IrqLock::new(Told { since: 0, lines: 0 }),
            left: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        }));
        unit.clean(unit.root, PAGE.into());
        let r = &unit.registers;
        // The firmware may have used it.
        for state in [TRANSLATE, INTERRUPTS, QUEUE] {
            unit.command(state, false)?;
        }
        r.write64(RTADDR, unit.root);
        unit.command(SET_ROOT, true)?;
        r.write64(IQT, 0);
        r.write64(IQA, unit.entries);
        unit.command(QUEUE, true)?;
        unit.forget(&[[FUNCTIONS | ALL, 0]]);
        unit.forget(&[[ADDRESSES | ALL | unit.drains(), 0]]);
        unit.take_faults();
        let at = pci::message(0);
        r.write32(FEDATA, irq::vector(unit)?.into());
        r.write32(FEADDR, at as u32);
        r.write32(FEUADDR, 0);
        r.write32(FECTL, 0);
        unit.command(TRANSLATE, true)?;
        Some(unit)
    }

    /// Switches one thing on or off, and waits until it is.
    fn command(&self, what: u32, on: bool) -> Option<()> {
        let r = &self.registers;
        let states = r.read32(GSTS) & STATES;
        r.write32(GCMD, if on { states | what } else { states & !what });
        (0..LOOKS)
            .any(|_| (r.read32(GSTS) & what != 0) == on)
            .then_some(())
    }

    /// Bits of an address that it translates.
    pub(super) fn width(&self) -> u32 {
        (12 + 9 * self.levels).min((self.cap >> 16 & 63) as u32 + 1)
    }

    /// How many domains it tells apart.
    pub(super) fn domains(&self) -> u64 {
        1 << (4 + 2 * (self.cap & 7))
    }

    /// Whether it remembers that there was nothing.
    pub(super) fn caches_absent(&self) -> bool {
        self.cap & CACHES_ABSENT != 0
    }

    /// Whether a device may be allowed to write and not to read: some read nothing, to hear that their writes have arrived.
    pub(super) fn write_only(&self) -> bool {
        self.cap & ZERO_READS != 0
    }

    fn drains(&self) -> u64 {
        let writes = if self.cap & DRAINS_WRITES != 0 {
            DRAIN_WRITES
        } else {
            0
        };
        let reads = if self.cap & DRAINS_READS != 0 {
            DRAIN_READS
        } else {
            0
        };
        writes | reads
    }

    /// What has been written to tables is where the unit sees it.
    pub(super) fn clean(&self, pa: u64, len: u64) {
        if !self.coherent {
            (0..len)
                .step_by(64)
                .for_each(|at| arch::clflush(direct(pa + at)));
        }
    }

    /// Writes an entry of a table.
    pub(super) fn write(&self, entry: &AtomicU64, value: u64) {
        entry.store(value, Ordering::Release);
        if !self.coherent {
            arch::clflush(entry.as_ptr() as u64);
        }
    }

    /// The unit remembers no more what `requester` may reach, of domain `domain`.
    pub(super) fn forget_function(&self, requester: u16, domain: u16) {
        let function = FUNCTIONS | PAGES | u64::from(domain) << 16 | u64::from(requester) << 32;
        self.forget(&[[function, 0], self.domain(domain)]);
    }

    fn domain(&self, domain: u16) -> [u64; 2] {
        [ADDRESSES | ONE | self.drains() | u64::from(domain) << 16, 0]
    }

    /// All of a domain's addresses.
    pub(super) fn forget_domain(&self, domain: u16) {
        self.forget(&[self.domain(domain)]);
    }

    /// Frames of a domain, first to last: as blocks of 2^n, each of which lies at a multiple of its size.
    pub(super) fn forget_frames(&self, domain: u16, runs: &[(u64, u64)]) {
        let most = (self.cap >> 48 & 63) as u32;
        let mut entries = [[0; 2]; RUNS];
        for (entry, &(first, last)) in entries.iter_mut().zip(runs) {
            let size = u64::BITS - (first ^ last).leading_zeros();
            if self.cap & BY_PAGE == 0 || size > most || runs.len() > RUNS {
                return self.forget_domain(domain);
            }
            let at = (first >> size << size) << 12;
            let id = u64::from(domain) << 16;
            *entry = [ADDRESSES | PAGES | self.drains() | id, at | u64::from(size)];
        }
        self.forget(&entries[..runs.len()]);
    }

    /// Returns when the unit has done all of `what`.
    fn forget(&self, what: &[[u64; 2]]) {
        if what.is_empty() {
            return;
        }
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let answer = word(self.answer);
        let mut queue = self.queue.lock();
        queue.said = queue.said.wrapping_add(1);
        let said = queue.said;
        let then = [SAY_SO | u64::from(said) << 32, self.answer];
        for half in what.iter().chain([&then]) {
            let at = self.entries + 16 * queue.tail;
            self.write(entry(at, 0), half[0]);
            self.write(entry(at, 1), half[1]);
            queue.tail = (queue.tail + 1) % DEPTH;
        }
        self.registers.write64(IQT, queue.tail << 4);
        let deadline = now_ns() + PATIENCE;
        while answer.load(Ordering::Acquire) != said {
            let stopped = self.registers.read32(FSTS) & STOPPED;
            if stopped != 0 || now_ns() > deadline {
                panic!("the IOMMU does not forget what it shall ({stopped:#x})");
            }
            core::hint::spin_loop();
        }
    }

    /// What a look has left: nobody interrupts for that.
    pub(super) fn take_rest(&self) {
        if self.left.swap(false, Ordering::Relaxed) {
            self.take_faults();
        }
    }

    /// Tells of what has been refused since the last look. A look ends, however fast they come.
    fn take_faults(&self) {
        let mut told = self.told.lock();
        let first = (self.cap >> 24 & 0x3ff) as u32 * 16;
        let reports = (self.cap >> 40 & 255) as u32 + 1;
        for _ in 0..64 {
            let status = self.registers.read32(FSTS);
            if status & (PENDING | LOST) == 0 {
                return;
            }
            let oldest = status >> 8 & 255;
            for n in 0..reports {
                let at = first + 16 * ((oldest + n) % reports);
                let what = self.registers.read64(at + 8);
                if what & FAULT != 0 {
                    let page = self.registers.read64(at);
                    self.registers.write32(at + 12, (FAULT >> 32) as u32);
                    self.faults.fetch_add(1, Ordering::Relaxed);
                    told.fault(page & !0xfff, what);
                }
            }
            if status & LOST != 0 {
                self.registers.write32(FSTS, LOST);
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.left.store(true, Ordering::Relaxed);
    }
}

/// Runs of frames that are forgotten one by one.
pub(super) const RUNS: usize = 8;

impl Told {
    fn fault(&mut self, page: u64, what: u64) {
        let now = now_ns();
        if now > self.since + INTERVAL {
            (self.since, self.lines) = (now, 0);
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines > BURST {
            return;
        }
        let function = Function::of_requester(what as u16);
        let how = if what & READ != 0 { "read" } else { "write" };
        let reason = what >> 32 & 255;
        let why = match reason {
            1 | 2 => "nobody drives it",
            4 => "it is too far",
            5 | 6 => "it was not given that",
            _ => "tables are wrong",
        };
        crate::warn!("iommu: {function} may not {how} {page:#x}: {why} (fault {reason})");
        if self.lines == BURST {
            crate::warn!("iommu: more of them are counted only");
        }
    }
}

impl Line for Unit {
    fn interrupt(&self) {
        self.take_faults();
    }
}

/// Entry `i` of a table at `pa`.
pub(super) fn entry(pa: u64, i: usize) -> &'static AtomicU64 {
    debug_assert!(pa.is_multiple_of(16) && i < 512);
    // SAFETY: in the direct map; tables, and what lies beside them, are accessed as atomics and by the unit as long as they are any.
    unsafe { &*(direct(pa) as *const AtomicU64).add(i) }
}

/// Where the unit writes a number.
fn word(pa: u64) -> &'static AtomicU32 {
    // SAFETY: a frame that is the unit's for ever, accessed as this atomic and by it.
    unsafe { &*(direct(pa) as *const AtomicU32) }
}
