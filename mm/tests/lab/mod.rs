//! A small machine and a few processes on it, for tests that take hold of pages.
#![allow(dead_code, reason = "each test uses its part")]

use crate::common::{BASE, P, frames_free, new_space, opened, switch_away, switch_to, trap};
use linux_raw_sys::general as sys;
use mm::fault::FaultResult;
use mm::gup::{GupFlags, PageSlot, PinnedPages};
use mm::object::FileObject;
use mm::ops::{self, MmapArgs};
use mm::phys::{Folio, Hw};
use mm::sim::mmu::{PageFault, Want};
use mm::sim::{Config, Machine, Sim};
use mm::space::VmaFlags;
use mm::table::{MayInstall, Pte, PteState, StableVma, walk};
use mm::{AddressSpace, CanWait, Pfn};
use std::sync::{Arc, Mutex};

/// A process: alive until `Lab::exit` or `Lab::done`, whatever the test keeps.
pub type Space = &'static AddressSpace<Machine>;
pub type File = Arc<FileObject<Machine>>;
pub const FIXED: u32 = sys::MAP_FIXED;
pub const PRIVATE: u32 = sys::MAP_PRIVATE;
pub const SHARED: u32 = sys::MAP_SHARED;
pub const ANON: u32 = sys::MAP_PRIVATE | sys::MAP_ANONYMOUS;
pub const NONE: GupFlags = GupFlags::empty();
/// What comes of a fault.
pub const MINOR: FaultResult = FaultResult::Done { major: false };
pub const MAJOR: FaultResult = FaultResult::Done { major: true };
pub const BUS: FaultResult = FaultResult::Bus { code: 2 };

pub type Pins<A> = PinnedPages<Machine, A, Vec<PageSlot>>;

pub fn slots(n: usize) -> Vec<PageSlot> {
    vec![PageSlot::EMPTY; n]
}

type Hook = Box<dyn FnOnce(&mut CanWait<Machine>) + Send>;

/// Something that happens once, when a disk comes to it.
#[derive(Default)]
pub struct Once(Mutex<Option<Hook>>);

impl Once {
    pub fn set(&self, hook: impl FnOnce(&mut CanWait<Machine>) + Send + 'static) {
        *self.0.lock().unwrap() = Some(Box::new(hook));
    }
    pub fn run(&self, wait: &mut CanWait<Machine>) {
        let hook = self.0.lock().unwrap().take();
        if let Some(hook) = hook {
            hook(wait);
        }
    }
}

/// To map `pages` at page `at` of the window.
pub fn map_args(
    at: u64,
    pages: u64,
    prot: u32,
    flags: u32,
    file: Option<File>,
) -> MmapArgs<Machine> {
    MmapArgs {
        addr: BASE + at * P,
        len: pages * P,
        prot,
        flags: flags | FIXED,
        file: file.map(|object| opened(object, 0)),
    }
}

/// The bug that this run shall have (`catches`).
pub fn plant() {
    let n = std::env::var("PINFOLD_PLANT").map_or(0, |n| n.parse().unwrap());
    mm::race::script::plant(n);
}

/// Each test, run by itself with a bug planted, fails.
pub fn catches(bugs: &[(u8, &str)]) {
    let mut missed = Vec::new();
    for (n, test) in bugs {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--test-threads=1"])
            .env("PINFOLD_PLANT", n.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(said.contains("running 1 test"), "{test}: {said}");
        if run.status.success() {
            missed.push(format!("{test} passes with bug {n} planted"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// The tests' own permit, where they play the other CPU in the middle of something.
pub struct Sure;
// SAFETY: the tests know who else is at the tables: a walk that stands still.
unsafe impl<H: Hw> StableVma<H> for Sure {}
// SAFETY: as above.
unsafe impl<H: Hw> MayInstall<H> for Sure {}

/// The machine, and what must be as before in the end.
pub struct Lab {
    pub sim: Machine,
    free: u64,
    spaces: Mutex<Vec<Arc<AddressSpace<Machine>>>>,
    files: Mutex<Vec<&'static File>>,
}

impl Lab {
    pub fn new() -> Self {
        Self::with(Config {
            mischief: 0,
            ..Config::default()
        })
    }
    pub fn with(config: Config) -> Self {
        plant();
        let sim = Sim::new(config).on(0);
        Self {
            sim,
            free: frames_free(sim),
            spaces: Mutex::default(),
            files: Mutex::default(),
        }
    }
    /// A process.
    pub fn space(&self) -> Space {
        self.keep(new_space(self.sim))
    }
    fn keep(&self, s: Arc<AddressSpace<Machine>>) -> Space {
        // SAFETY: the list keeps it where it is until `exit`.
        let space = unsafe { &*Arc::as_ptr(&s) };
        self.spaces.lock().unwrap().push(s);
        space
    }
    /// The calling CPU runs it.
    pub fn run(&self, s: Space) {
        let all = self.spaces.lock().unwrap().clone();
        switch_to(self.sim, s, &all);
    }
    /// CPU `c` runs it, and stands for the caller from now on.
    pub fn run_on(&self, c: usize, s: Space) {
        self.sim.on(c);
        self.run(s);
    }
    pub fn fork(&self, s: Space) -> Space {
        self.keep(ops::fork(s, &mut self.sim.can_wait()).unwrap())
    }
    /// Maps `pages` at page `at` of the window; returns the address.
    pub fn map(&self, s: Space, at: u64, pages: u64, prot: u32, flags: u32) -> u64 {
        self.map_file(s, at, pages, prot, flags, None)
    }
    pub fn map_file(
        &self,
        s: Space,
        at: u64,
        pages: u64,
        prot: u32,
        flags: u32,
        file: Option<&File>,
    ) -> u64 {
        let args = map_args(at, pages, prot, flags, file.cloned());
        ops::mmap(s, &mut self.sim.can_wait(), args).unwrap()
    }
    /// The lab keeps it until `done`.
    pub fn file(&self, pages: u64) -> &'static File {
        let o = FileObject::new(self.sim).unwrap();
        o.set_size(&mut self.sim.can_wait(), pages * P);
        let kept: &'static File = Box::leak(Box::new(o));
        self.files.lock().unwrap().push(kept);
        kept
    }
    pub fn unmap(&self, s: Space, va: u64, pages: u64) {
        ops::munmap(s, &mut self.sim.can_wait(), va, pages * P).unwrap();
    }
    pub fn protect(&self, s: Space, va: u64, pages: u64, prot: u32) {
        ops::mprotect(s, &mut self.sim.can_wait(), va, pages * P, prot).unwrap();
    }
    pub fn dontneed(&self, s: Space, va: u64, pages: u64) {
        ops::madvise(
            s,
            &mut self.sim.can_wait(),
            va,
            pages * P,
            sys::MADV_DONTNEED,
        )
        .unwrap();
    }
    fn access(&self, s: Space, va: u64, want: Want, byte: u8) -> Option<u8> {
        self.run(s);
        let got = self.sim.access(va, want, byte, &mut |f| {
            matches!(trap(self.sim, s, f), FaultResult::Done { .. })
        });
        self.sim.check();
        got
    }
    /// The program writes a byte.
    pub fn store(&self, s: Space, va: u64, byte: u8) {
        assert!(self.access(s, va, Want::Write, byte).is_some(), "{va:#x}");
    }
    /// The program reads one; none: it dies of it.
    pub fn load(&self, s: Space, va: u64) -> Option<u8> {
        self.access(s, va, Want::Read, 0)
    }
    pub fn store_each(&self, s: Space, va: u64, pages: u64, byte: u8) {
        for i in 0..pages {
            self.store(s, va + i * P, byte.wrapping_add(i as u8));
        }
    }
    /// A fault as the machine would report it, without an access.
    pub fn fault(&self, s: Space, va: u64, want: Want, present: bool) -> FaultResult {
        let fault = PageFault {
            va,
            want,
            present,
            key: false,
        };
        self.run(s);
        trap(self.sim, s, fault)
    }
    /// The entry of `va`.
    pub fn entry(&self, s: Space, va: u64) -> Pte {
        let guard = s.mmap_read(&mut self.sim.can_wait());
        match walk::lookup(self.sim, s.tables.root(), va, &guard).1 {
            PteState::Leaf(entry) => entry,
            PteState::Absent => Pte::EMPTY,
            other => panic!("{other:?}"),
        }
    }
    pub fn vma_flags(&self, s: Space, va: u64) -> VmaFlags {
        let guard = s.mmap_read(&mut self.sim.can_wait());
        guard.find(va).unwrap().flags()
    }
    /// The first byte of a frame, as whoever owns it writes it.
    pub fn poke(&self, pfn: Pfn, byte: u8) {
        // SAFETY: the tests' machine; its frames are atomics to everybody.
        unsafe { self.sim.frame_ptr(pfn).write_volatile(byte) };
    }
    pub fn peek(&self, pfn: Pfn) -> u8 {
        // SAFETY: as above.
        unsafe { self.sim.frame_ptr(pfn).read_volatile() }
    }
    /// A device writes a byte of a page.
    pub fn dma_write(&self, page: PageSlot, byte: u8) {
        self.poke(page.pfn(), byte);
    }
    pub fn dma_read(&self, page: PageSlot) -> u8 {
        self.peek(page.pfn())
    }
    pub fn refs(&self, page: PageSlot) -> i32 {
        self.folio(page.pfn()).desc().ref_count()
    }
    pub fn folio(&self, pfn: Pfn) -> Folio<Machine> {
        Folio::of_page(self.sim, pfn)
    }
    /// Pins that are outstanding.
    pub fn pins(&self) -> u64 {
        let (acquired, released) = self.sim.phys().pin_counts();
        acquired - released
    }
    pub fn exit(&self, s: Space) {
        for c in 0..self.sim.config().cpus {
            self.sim.on(c);
            switch_away(self.sim, s);
        }
        self.sim.on(0);
        ops::exit(s, &mut self.sim.can_wait());
        self.spaces
            .lock()
            .unwrap()
            .retain(|o| !std::ptr::eq(Arc::as_ptr(o), s));
    }
    /// All processes end; nothing is pinned, no frame is missing, nothing was violated.
    pub fn done(self) {
        self.sim.no_pause();
        let all: Vec<Space> = self
            .spaces
            .lock()
            .unwrap()
            .iter()
            // SAFETY: as in `keep`.
            .map(|s| unsafe { &*Arc::as_ptr(s) })
            .collect();
        for s in all {
            self.exit(s);
        }
        for f in self.files.lock().unwrap().drain(..) {
            // SAFETY: leaked by `file`; no process maps it and the test is over.
            drop(unsafe { Box::from_raw(std::ptr::from_ref(f).cast_mut()) });
        }
        assert_eq!(self.pins(), 0, "pins outstanding");
        assert_eq!(frames_free(self.sim), self.free, "frames lost");
        self.sim.check_no_stale();
        self.sim.check();
    }
}
