//! Processes on the simulated machine beside a model of what they must see: page → rights and bytes.
#![allow(dead_code, reason = "each test uses its part")]

mod driver;

use driver::{Device, in_window};
use linux_raw_sys::general as sys;
use mm::fault::{self, Access, Fault, FaultResult};
use mm::gup::{self, GupFlags, PageSlot, Read};
use mm::hw::Cpu;
use mm::object::cache::Dirty;
use mm::object::{Source, Unfilled};
use mm::ops::{self, FileMap, MmapArgs, MremapArgs};
use mm::phys::{Hw, slab};
use mm::sim::mmu::{PageFault, Want};
use mm::sim::rng::Rng;
use mm::sim::{Config, Machine, Sim};
use mm::space::VmaFlags;
use mm::{AddressSpace, CanWait, Errno, FileObject};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub const P: u64 = 4096;
pub const R: u32 = sys::PROT_READ;
pub const W: u32 = sys::PROT_WRITE;
pub const X: u32 = sys::PROT_EXEC;
/// Two megabytes below a gigabyte: the window's tables hang in two different upper tables.
pub const BASE: u64 = 0x3fe0_0000;
/// Four level-1 tables.
pub const PAGES: u64 = 2048;
/// Bytes of a page that are looked at.
pub const OFFSETS: [u64; 4] = [0, 1, 2047, 4095];

pub type Bytes = [u8; 4];

/// What a page shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Back {
    /// Private anonymous.
    Anon(Bytes),
    /// Page `index` of object `object`; a private mapping may have a copy.
    File {
        object: usize,
        index: u64,
        shared: bool,
        copy: Option<Bytes>,
    },
    /// A driver's memory: a window onto bare frames, or a mixed area.
    Driver {
        window: bool,
        /// Which of its pages is there; none comes of itself.
        shows: Option<usize>,
        /// What the VMA says of its place.
        index: u64,
        shared: bool,
        copy: Option<Bytes>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub prot: u32,
    pub back: Back,
    pub dontfork: bool,
    pub wipe: bool,
}

impl Page {
    fn new(prot: u32, back: Back) -> Self {
        Self {
            prot,
            back,
            dontfork: false,
            wipe: false,
        }
    }
}

#[derive(Clone)]
pub struct Proc {
    pub space: Arc<AddressSpace<Machine>>,
    pub pages: BTreeMap<u64, Page>,
}

/// What a disk has of a file: pages that were written back.
pub type Store = Mutex<BTreeMap<u64, Box<[u8; P as usize]>>>;

struct Backed(Machine, Arc<Store>);

impl Source<Machine> for Backed {
    fn read(&self, _: &mut CanWait<Machine>, first: u64, into: &Unfilled) -> Result<(), Errno> {
        let store = self.1.lock().unwrap();
        for (index, pfn) in (first..).zip(into.pfns()) {
            let bytes = store.get(&index).map_or([0; P as usize], |b| **b);
            // SAFETY: a frame of this machine that nobody else has yet.
            unsafe {
                self.0
                    .frame_ptr(pfn)
                    .cast::<[u8; P as usize]>()
                    .write(bytes)
            };
        }
        Ok(())
    }
    fn writable(&self) -> bool {
        true
    }
    fn write(
        &self,
        _: &mut CanWait<Machine>,
        first: u64,
        pages: &Dirty<Machine>,
        len: u64,
    ) -> Result<(), Errno> {
        let mut store = self.1.lock().unwrap();
        for at in (0..len).step_by(P as usize) {
            let mut bytes = Box::new([0; P as usize]);
            pages.copy(at, &mut *bytes);
            store.insert(first + at / P, bytes);
        }
        Ok(())
    }
}

/// A file object; `None` for shared anonymous memory, whose object only mm has.
pub struct Object {
    pub object: Option<Arc<FileObject<Machine>>>,
    pub pages: u64,
    pub data: BTreeMap<u64, Bytes>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Sees {
    Byte(u8),
    Segv(i32),
    Bus,
}

pub struct World {
    pub sim: Machine,
    pub rng: Rng,
    pub procs: BTreeMap<u32, Proc>,
    pub objects: Vec<Object>,
    /// Until the end.
    device: Option<Device>,
    /// Where the second object is written back to.
    store: Arc<Store>,
    next: u32,
    free_at_start: u64,
    pub log: Vec<String>,
    /// One operation in this many meets an allocation failure; 0 none.
    pub inject: u64,
    pub max_procs: usize,
    /// The next operation's allocation that fails.
    force: Option<u64>,
    pub ops_done: BTreeMap<&'static str, (u32, u32)>,
}

macro_rules! say {
    ($w:expr, $($a:tt)*) => { $w.log.push(format!($($a)*)) };
}
use say;

/// A file that may be mapped in every way.
pub fn opened(object: Arc<FileObject<Machine>>, pgoff: u64) -> FileMap<Machine> {
    FileMap {
        object,
        pgoff,
        readable: true,
        writable: true,
        append: false,
        executable: true,
    }
}

pub fn frames_free(sim: Machine) -> u64 {
    slab::shrink(sim);
    sim.phys().free_frames(sim)
}

pub fn trap(sim: Machine, space: &AddressSpace<Machine>, f: PageFault) -> FaultResult {
    let access = match f.want {
        Want::Read => Access::Read,
        Want::Write => Access::Write,
        Want::Exec => Access::Exec,
    };
    let f = Fault {
        va: f.va,
        access,
        user: true,
        present: f.present,
    };
    fault::user_fault(space, &mut sim.can_wait(), f)
}

pub fn new_space(sim: Machine) -> Arc<AddressSpace<Machine>> {
    use std::sync::atomic::Ordering::Relaxed;
    let space = AddressSpace::new(sim).expect("memory");
    space.layout.mmap_base.store(BASE + PAGES * P, Relaxed);
    space.layout.start_brk.store(0x1000_0000, Relaxed);
    space.layout.brk.store(0x1000_0000, Relaxed);
    space
}

/// The calling CPU runs a thread of `space` from now on; it kept `others` until then, if any.
pub fn switch_to(
    sim: Machine,
    space: &AddressSpace<Machine>,
    others: &[Arc<AddressSpace<Machine>>],
) {
    sim.set_lazy(false);
    let before = sim.loaded_root();
    if before != space.tlb.root() {
        let mut wait = sim.can_wait();
        let irq = wait.irq_off();
        space.activate(&irq);
        if let Some(o) = others.iter().find(|o| o.tlb.root() == before) {
            o.leave(&irq);
        }
    }
}

/// The calling CPU goes back to the kernel's root.
pub fn switch_away(sim: Machine, space: &AddressSpace<Machine>) {
    if sim.loaded_root() == space.tlb.root() {
        let mut wait = sim.can_wait();
        let irq = wait.irq_off();
        sim.load_kernel_root();
        space.leave(&irq);
        drop(irq);
    }
    sim.set_lazy(true);
}

impl World {
    pub fn new(config: Config) -> Self {
        let sim = Sim::new(config).on(0);
        let free_at_start = frames_free(sim);
        let mut w = Self {
            sim,
            rng: Rng::new(config.seed ^ 0x5ca1_ab1e),
            procs: BTreeMap::new(),
            objects: Vec::new(),
            device: Some(Device::new(sim)),
            store: Arc::default(),
            next: 0,
            free_at_start,
            log: Vec::new(),
            inject: 0,
            max_procs: 3,
            force: None,
            ops_done: BTreeMap::new(),
        };
        let space = new_space(sim);
        w.add(space, BTreeMap::new());
        for pages in [40, 700] {
            let object = match pages {
                40 => FileObject::new(sim).expect("memory"),
                _ => FileObject::new_paged(sim, Box::new(Backed(sim, w.store.clone())), 0),
            };
            object.set_size(&mut sim.can_wait(), pages * P);
            w.objects.push(Object {
                object: Some(object),
                pages,
                data: BTreeMap::new(),
            });
        }
        w
    }
    fn add(&mut self, space: Arc<AddressSpace<Machine>>, pages: BTreeMap<u64, Page>) {
        self.procs.insert(self.next, Proc { space, pages });
        self.next += 1;
    }
    pub fn fail(&self, what: &str) -> ! {
        if let Ok(to) = std::env::var("PINFOLD_LOG") {
            let _ = std::fs::write(to, self.log.join("\n"));
        }
        let tail = self.log.len().saturating_sub(25);
        panic!(
            "{what}\nlast operations:\n  {}\nreplay with PINFOLD_SEED={:#x}",
            self.log[tail..].join("\n  "),
            self.sim.config().seed
        );
    }
    /// CPU `c` runs process `p`.
    fn enter(&mut self, c: usize, p: u32) -> Arc<AddressSpace<Machine>> {
        let space = self.procs[&p].space.clone();
        let all: Vec<_> = self.procs.values().map(|p| p.space.clone()).collect();
        self.sim.on(c);
        switch_to(self.sim, &space, &all);
        space
    }
    fn after(&self) {
        self.sim.check_no_stale();
        if let Some(v) = self.sim.violation() {
            self.fail(&v);
        }
    }

    fn any_page(&mut self) -> u64 {
        let table = self.rng.below(PAGES / 512 + 1) * 512;
        let at = match self.rng.below(10) {
            0..=1 => table,
            2..=7 => (table + self.rng.below(16)).saturating_sub(8),
            _ => self.rng.below(PAGES),
        };
        BASE / P + at.min(PAGES - 1)
    }
    fn any_len(&mut self, from: u64) -> u64 {
        let n = match self.rng.below(12) {
            0..=8 => self.rng.range(1, 7),
            9 => self.rng.range(6, 60),
            10 => 512,
            _ => *self.rng.pick(&[1024, 1024, 1300]),
        };
        n.min((BASE / P + PAGES).saturating_sub(from)).max(1)
    }
    fn any_prot(&mut self) -> u32 {
        *self.rng.pick(&[R | W, R | W, R | W, R | W, R, R | X, W, 0])
    }
    fn any_proc(&mut self) -> u32 {
        let ids: Vec<u32> = self.procs.keys().copied().collect();
        *self.rng.pick(&ids)
    }
    fn any_cpu(&mut self) -> usize {
        self.rng.below(self.sim.config().cpus as u64) as usize
    }
    /// A page that is mapped, most of the time.
    fn some_page(&mut self, p: u32) -> u64 {
        let pages = &self.procs[&p].pages;
        if pages.is_empty() || self.rng.one_in(10) {
            return self.any_page();
        }
        let n = self.rng.below(pages.len() as u64) as usize;
        let near = self.any_page();
        let pages = &self.procs[&p].pages;
        // Half of the time near a table's edge, where most of the trouble is.
        let at = if n.is_multiple_of(2) {
            pages.range(near..).next()
        } else {
            pages.iter().nth(n)
        };
        at.map_or(near, |(k, _)| *k)
    }

    /// What an access must find.
    pub fn sees(&self, p: u32, page: u64, off: usize, want: Want) -> Sees {
        let Some(m) = self.procs[&p].pages.get(&page) else {
            return Sees::Segv(1);
        };
        let ok = match want {
            Want::Read => m.prot != 0,
            Want::Write => m.prot & W != 0,
            Want::Exec => m.prot & X != 0,
        };
        if !ok {
            return Sees::Segv(2);
        }
        match &m.back {
            Back::Anon(b) => Sees::Byte(b[off]),
            Back::File { copy: Some(b), .. } | Back::Driver { copy: Some(b), .. } => {
                Sees::Byte(b[off])
            }
            Back::Driver { shows, .. } => match shows {
                Some(n) => Sees::Byte(self.device().data[*n][off]),
                None => Sees::Bus,
            },
            Back::File { object, index, .. } => {
                let o = &self.objects[*object];
                if *index >= o.pages {
                    Sees::Bus
                } else {
                    Sees::Byte(o.data.get(index).map_or(0, |b| b[off]))
                }
            }
        }
    }
    fn model_write(&mut self, p: u32, page: u64, off: usize, byte: u8) {
        let m = self
            .procs
            .get_mut(&p)
            .unwrap()
            .pages
            .get_mut(&page)
            .unwrap();
        match &mut m.back {
            Back::Anon(b) => b[off] = byte,
            Back::File {
                object,
                index,
                shared,
                copy,
            } => {
                let data = &mut self.objects[*object].data;
                if *shared {
                    data.entry(*index).or_default()[off] = byte;
                } else {
                    let b =
                        copy.get_or_insert_with(|| data.get(index).copied().unwrap_or_default());
                    b[off] = byte;
                }
            }
            Back::Driver {
                shows,
                shared,
                copy,
                ..
            } => {
                let data = &mut self.device.as_mut().expect("not the end yet").data;
                match (shared, shows) {
                    (true, Some(n)) => data[*n][off] = byte,
                    (_, n) => copy.get_or_insert_with(|| n.map_or([0; 4], |n| data[n]))[off] = byte,
                }
            }
        }
    }

    /// One user access by CPU `c` in process `p`, compared with the model.
    pub fn touch(&mut self, c: usize, p: u32, page: u64, want: Want) {
        let space = self.enter(c, p);
        let off = self.rng.below(4) as usize;
        let byte = self.rng.word() as u8;
        let va = page * P + OFFSETS[off];
        let expect = self.sees(p, page, off, want);
        let starve = self.inject != 0 && self.rng.one_in(self.inject * 4);
        if starve {
            self.sim.phys().fail_after(self.rng.range(1, 4));
        }
        say!(self, "cpu {c} proc {p}: {want:?} {va:#x} expect {expect:?}");
        let mut last = None;
        let sim = self.sim;
        let got = sim.access(va, want, byte, &mut |f| match trap(sim, &space, f) {
            FaultResult::Done { .. } => {
                // Before the access is tried again, which would forget what it finds in its way.
                sim.check_no_stale();
                true
            }
            FaultResult::Oom => {
                sim.phys().fail_after(0);
                assert!(
                    starve,
                    "out of memory with {} frames free",
                    sim.phys().free_frames(sim)
                );
                true
            }
            other => {
                last = Some(other);
                false
            }
        });
        self.sim.phys().fail_after(0);
        let got = match (got, last) {
            (Some(b), _) => Sees::Byte(b),
            (None, Some(FaultResult::Segv { code })) => Sees::Segv(code),
            (None, Some(FaultResult::Bus { .. })) => Sees::Bus,
            (None, other) => {
                self.after();
                self.fail(&format!("{va:#x}: {other:?}"))
            }
        };
        self.after();
        if got != expect {
            self.fail(&format!(
                "{want:?} of {va:#x} by process {p} on CPU {c}: {got:?}, must be {expect:?}"
            ));
        }
        if want == Want::Write && matches!(expect, Sees::Byte(_)) {
            self.model_write(p, page, off, byte);
            self.check_soft_dirty(p, page);
        }
    }
    /// Accesses by several CPUs, so that all of them keep something to be forgotten.
    fn warm(&mut self, p: u32, near: u64, len: u64) {
        for _ in 0..self.rng.below(5) {
            let c = self.any_cpu();
            let page = if self.rng.one_in(3) {
                self.some_page(p)
            } else {
                near + self.rng.below(len.min(12))
            };
            let want = *self
                .rng
                .pick(&[Want::Read, Want::Write, Want::Write, Want::Exec]);
            self.touch(c, p, page, want);
        }
    }

    /// The VMAs say what the model says.
    pub fn check_vmas(&self, p: u32) {
        let proc = &self.procs[&p];
        let mut wait = self.sim.can_wait();
        let guard = proc.space.mmap_read(&mut wait);
        let mut model = proc.pages.iter();
        for vma in guard.all() {
            let flags = vma.flags();
            for page in vma.start() / P..vma.end() / P {
                let Some((&at, m)) = model.next() else {
                    self.fail(&format!("{:#x} is mapped and must not be", page * P));
                };
                if at != page {
                    self.fail(&format!(
                        "{:#x} is mapped, the model's next is {:#x}",
                        page * P,
                        at * P
                    ));
                }
                let prot = prot_of(flags);
                let special = match &m.back {
                    Back::Driver { window: true, .. } => {
                        VmaFlags::PFNMAP | VmaFlags::IO | VmaFlags::DONTEXPAND
                    }
                    Back::Driver { .. } => VmaFlags::MIXEDMAP,
                    _ => VmaFlags::empty(),
                };
                let (file, shared) = match &m.back {
                    Back::Anon(_) => (None, false),
                    Back::Driver { index, shared, .. } => (Some((None, *index)), *shared),
                    Back::File {
                        object,
                        index,
                        shared,
                        ..
                    } => (Some((Some(*object), *index)), *shared),
                };
                let object_ok = match file {
                    None => vma.object().is_none(),
                    Some((o, index)) => {
                        vma.index_of(page * P) == index
                            && vma.object().is_some_and(|v| {
                                let known = o.and_then(|o| self.objects[o].object.as_ref());
                                known.is_none_or(|k| k.id() == v.id())
                            })
                    }
                };
                if prot != m.prot
                    || flags & VmaFlags::SPECIAL != special
                    || flags.contains(VmaFlags::SHARED) != shared
                    || flags.contains(VmaFlags::DONTCOPY) != m.dontfork
                    || flags.contains(VmaFlags::WIPEONFORK) != m.wipe
                    || !object_ok
                {
                    self.fail(&format!(
                        "{:#x}: VMA flags {flags:?}, the model says {m:?}",
                        page * P
                    ));
                }
            }
        }
        if let Some((at, _)) = model.next() {
            self.fail(&format!("{:#x} must be mapped and is not", at * P));
        }
        let total = proc
            .space
            .counts
            .total_vm
            .load(std::sync::atomic::Ordering::Relaxed);
        if total != proc.pages.len() as u64 {
            self.fail(&format!(
                "total_vm is {total}, {} pages are mapped",
                proc.pages.len()
            ));
        }
    }

    /// Runs an operation, perhaps with an allocation that fails; whether one was made to.
    fn attempt<T>(
        &mut self,
        name: &'static str,
        f: impl FnOnce(&mut mm::CanWait<Machine>) -> Result<T, Errno>,
    ) -> (Result<T, Errno>, bool) {
        let starve = self.inject != 0 && self.rng.one_in(self.inject);
        let force = self.force.take();
        let starve = starve || force.is_some();
        if starve {
            let n = match (force, self.rng.below(3)) {
                (Some(n), _) => n,
                (_, 0) => 1,
                (_, 1) => self.rng.range(1, 6),
                _ => self.rng.range(1, 40),
            };
            self.sim.phys().fail_after(n);
        }
        let r = f(&mut self.sim.can_wait());
        self.sim.phys().fail_after(0);
        let e = r.as_ref().err().map(|e| e.raw());
        say!(
            self,
            "  = {name}: {e:?}{}",
            if starve { " (starved)" } else { "" }
        );
        let count = self.ops_done.entry(name).or_default();
        count.0 += 1;
        count.1 += u32::from(r.is_err());
        self.after();
        (r, starve)
    }

    /// One random operation.
    pub fn step(&mut self) {
        let (c, p) = (self.any_cpu(), self.any_proc());
        let what = self.rng.below(100);
        match what {
            0..=15 => self.op_mmap(c, p),
            16..=19 => self.op_driver(c, p),
            20..=29 => self.op_munmap(c, p),
            30..=41 => self.op_mprotect(c, p),
            42..=51 => self.op_mremap(c, p),
            52..=59 => self.op_madvise(c, p),
            60..=64 => self.op_fork(c, p),
            65..=67 => self.op_exit(c, p),
            68..=71 => self.op_truncate(c),
            72 => self.op_clear_refs(c, p),
            73 => {
                say!(self, "shrink");
                self.sim.on(c);
                slab::shrink(self.sim);
                self.after();
            }
            78..=79 => self.op_bulk(c, p),
            77 => self.op_write_back(c),
            80..=83 => self.op_pin(c, p),
            74..=76 => {
                // A CPU goes idle and keeps what it has loaded.
                self.sim.on(c);
                self.sim.set_lazy(true);
            }
            _ => {
                for _ in 0..8 {
                    let (c, page) = (self.any_cpu(), self.some_page(p));
                    let want = *self
                        .rng
                        .pick(&[Want::Read, Want::Write, Want::Write, Want::Exec]);
                    self.touch(c, p, page, want);
                }
            }
        }
    }

    /// Which pages were used or written is forgotten.
    fn op_clear_refs(&mut self, c: usize, p: u32) {
        use ops::ClearRefs::*;
        let what = *self.rng.pick(&[All, Anon, Mapped, SoftDirty, SoftDirty]);
        let page = self.some_page(p);
        self.warm(p, page, 12);
        let space = self.enter(c, p);
        say!(self, "cpu {c} proc {p}: clear_refs {what:?}");
        let cleared = ops::clear_refs(&space, &mut self.sim.can_wait(), what);
        assert_eq!(cleared, Ok(()));
        self.after();
        self.warm(p, page, 12);
    }

    /// A page that was just written says so (SOFTD-1).
    fn check_soft_dirty(&self, p: u32, page: u64) {
        let space = &self.procs[&p].space;
        let mut wait = self.sim.can_wait();
        let guard = space.mmap_read(&mut wait);
        let vma = guard.find(page * P).expect("mapped");
        let table = space.tables.pte_table(page * P, &guard).expect("touched");
        let entry = table.get((page % 512) as usize);
        // Nobody looks for what was written to a device (as Linux has it).
        let tracked = !vma.flags().contains(VmaFlags::PFNMAP);
        if tracked && vma.flags().tracks_writes() && !entry.soft_dirty() {
            self.fail(&format!(
                "{:#x} was written and is not soft-dirty",
                page * P
            ));
        }
    }

    /// Many pages at once, so that batches overflow and tables move as a whole.
    fn op_bulk(&mut self, c: usize, p: u32) {
        let first = BASE / P;
        let page = first + self.rng.below(3) * 512;
        let len = self.rng.range(512, 700);
        self.do_mmap(
            c,
            p,
            page,
            len,
            R | W,
            sys::MAP_PRIVATE | sys::MAP_ANONYMOUS | sys::MAP_FIXED | sys::MAP_POPULATE,
            None,
        );
        for _ in 0..24 {
            let (c, at) = (self.any_cpu(), page + self.rng.below(512));
            self.touch(c, p, at, Want::Read);
        }
        match self.rng.below(4) {
            0 => {
                // No frame to remember more in: the batch flushes halfway.
                self.force = Some(1);
                let from = page + self.rng.below(100);
                let n = self.rng.range(150, 400);
                self.do_madvise(c, p, from, n, sys::MADV_DONTNEED);
            }
            1 => self.do_munmap(c, p, page, len),
            _ => {
                let to = first + self.rng.below(4) * 512;
                self.do_mremap(
                    c,
                    p,
                    page,
                    512,
                    to,
                    512,
                    sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED,
                );
            }
        }
    }

    fn op_mmap(&mut self, c: usize, p: u32) {
        let page = self.any_page();
        let len = self.any_len(page);
        let prot = self.any_prot();
        self.warm(p, page, len);
        let noreplace = self.rng.one_in(6);
        let fixed = if noreplace {
            sys::MAP_FIXED_NOREPLACE
        } else {
            sys::MAP_FIXED
        };
        let kind = self.rng.below(8);
        let object = self.rng.below(2) as usize;
        let first = self.rng.below(30);
        let (flags, file) = match kind {
            0..=3 => (sys::MAP_PRIVATE | sys::MAP_ANONYMOUS, None),
            4 => (sys::MAP_SHARED | sys::MAP_ANONYMOUS, None),
            5 => (sys::MAP_SHARED, Some((object, first))),
            _ => (sys::MAP_PRIVATE, Some((object, first))),
        };
        // Not of a private file: which of its pages are copied early is nobody's promise.
        let populate = match file {
            None if self.rng.one_in(6) => sys::MAP_POPULATE,
            _ => 0,
        };
        self.do_mmap(c, p, page, len, prot, flags | fixed | populate, file);
    }

    #[expect(clippy::too_many_arguments, reason = "as mmap has them")]
    fn do_mmap(
        &mut self,
        c: usize,
        p: u32,
        page: u64,
        len: u64,
        prot: u32,
        flags: u32,
        file: Option<(usize, u64)>,
    ) {
        let space = self.enter(c, p);
        let noreplace = flags & sys::MAP_FIXED_NOREPLACE != 0;
        let args = MmapArgs {
            addr: page * P,
            len: len * P - self.rng.below(2) * 7,
            prot,
            flags,
            file: file.map(|(o, pgoff)| opened(self.objects[o].object.clone().unwrap(), pgoff)),
        };
        say!(
            self,
            "cpu {c} proc {p}: mmap {:#x} +{len} prot {prot} flags {:#x} file {file:?}",
            page * P,
            flags
        );
        let (r, starved) = self.attempt("mmap", |w| ops::mmap(&space, w, args));
        let taken = self.procs[&p]
            .pages
            .range(page..page + len)
            .next()
            .is_some();
        match r {
            Ok(at) => {
                if at != page * P || (noreplace && taken) {
                    self.fail(&format!("mmap went to {at:#x}"));
                }
                let shared = flags & sys::MAP_SHARED != 0;
                let file = match (file, shared) {
                    (None, true) => {
                        self.objects.push(Object {
                            object: None,
                            pages: len,
                            data: BTreeMap::new(),
                        });
                        Some((self.objects.len() - 1, 0))
                    }
                    (f, _) => f,
                };
                let pages = &mut self.procs.get_mut(&p).unwrap().pages;
                for i in 0..len {
                    let back = match file {
                        None => Back::Anon([0; 4]),
                        Some((object, first)) => Back::File {
                            object,
                            index: first + i,
                            shared,
                            copy: None,
                        },
                    };
                    pages.insert(page + i, Page::new(prot, back));
                }
            }
            Err(Errno::EEXIST) if noreplace && taken => {}
            Err(Errno::ENOMEM) if starved => {}
            Err(e) => self.fail(&format!("mmap: {e:?}")),
        }
        self.check_vmas(p);
        self.warm(p, page, len);
    }

    /// Somebody takes hold of a page to read it: nobody does of a bare frame, or in a window.
    fn op_pin(&mut self, c: usize, p: u32) {
        let page = self.some_page(p);
        // What can be written or run can be read as well, though the VMA denies it: by the lockless walk.
        let odd = |m: &Page| m.prot != 0 && m.prot & R == 0;
        if self.procs[&p].pages.get(&page).is_some_and(odd) {
            return;
        }
        let space = self.enter(c, p);
        let fast = self.rng.one_in(2);
        let (va, none) = (page * P, GupFlags::empty());
        say!(self, "cpu {c} proc {p}: pin {va:#x} fast {fast}");
        let (wait, slots) = (&mut self.sim.can_wait(), [PageSlot::EMPTY; 1]);
        let pins = match fast {
            true => gup::pin_user_pages_fast::<Read, _, _>(&space, wait, va, none, slots),
            false => gup::pin_user_pages_remote::<Read, _, _>(&space, wait, va, none, slots),
        };
        let got = pins.map(|pins| {
            let (byte, _) = pins.byte(0).expect("a page");
            // SAFETY: the first byte of a page that is pinned.
            unsafe { byte.read_volatile() }
        });
        self.after();
        let expect = match self.procs[&p].pages.get(&page) {
            Some(m) if m.prot & R != 0 => match (&m.back, self.sees(p, page, 0, Want::Read)) {
                (Back::Driver { window: true, .. }, _) => Err(Errno::EFAULT),
                (
                    Back::Driver {
                        shows: Some(..Device::BARE),
                        copy: None,
                        ..
                    },
                    _,
                ) => Err(Errno::EEXIST),
                (_, Sees::Byte(b)) => Ok(b),
                _ => Err(Errno::EFAULT),
            },
            _ => Err(Errno::EFAULT),
        };
        // A copy in a window looks like any page to the lockless walk, which sees no VMA (as Linux's).
        let copied = self.sees(p, page, 0, Want::Read);
        if fast && expect == Err(Errno::EFAULT) && got.map(Sees::Byte) == Ok(copied) {
            let copy = |m: &Page| matches!(m.back, Back::Driver { copy: Some(_), .. });
            if self.procs[&p].pages.get(&page).is_some_and(copy) {
                return;
            }
        }
        if got != expect {
            self.fail(&format!("a pin of {va:#x}: {got:?}, must be {expect:?}"));
        }
    }

    fn op_munmap(&mut self, c: usize, p: u32) {
        let page = self.some_page(p);
        let len = self.any_len(page);
        self.do_munmap(c, p, page, len);
    }

    fn do_munmap(&mut self, c: usize, p: u32, page: u64, len: u64) {
        self.warm(p, page, len);
        let space = self.enter(c, p);
        say!(self, "cpu {c} proc {p}: munmap {:#x} +{len}", page * P);
        let (r, starved) = self.attempt("munmap", |w| ops::munmap(&space, w, page * P, len * P));
        match r {
            Ok(()) => {
                let pages = &mut self.procs.get_mut(&p).unwrap().pages;
                for i in page..page + len {
                    pages.remove(&i);
                }
            }
            Err(Errno::ENOMEM) if starved => {}
            Err(e) => self.fail(&format!("munmap: {e:?}")),
        }
        self.check_vmas(p);
        self.warm(p, page, len);
    }

    /// How far an operation that stops at the first VMA it cannot do has come.
    fn adopt_prefix(
        &mut self,
        p: u32,
        page: u64,
        len: u64,
        change: impl Fn(&mut Page),
        same: impl Fn(&Page, VmaFlags) -> bool,
    ) {
        let proc = self.procs.get_mut(&p).unwrap();
        let mut wait = self.sim.can_wait();
        let guard = proc.space.mmap_read(&mut wait);
        for at in page..page + len {
            let Some(m) = proc.pages.get_mut(&at) else {
                continue;
            };
            let mut new = m.clone();
            change(&mut new);
            let Some(v) = guard.find(at * P) else { break };
            if !same(&new, v.flags()) {
                break;
            }
            *m = new;
        }
    }

    fn op_mprotect(&mut self, c: usize, p: u32) {
        let page = self.some_page(p);
        let len = self.any_len(page);
        let prot = self.any_prot();
        self.warm(p, page, len);
        let space = self.enter(c, p);
        say!(
            self,
            "cpu {c} proc {p}: mprotect {:#x} +{len} prot {prot}",
            page * P
        );
        let (r, starved) = self.attempt("mprotect", |w| {
            ops::mprotect(&space, w, page * P, len * P, prot)
        });
        let hole = (page..page + len).find(|i| !self.procs[&p].pages.contains_key(i));
        match r {
            Ok(()) if hole.is_some() => self.fail("mprotect over a hole succeeded"),
            Ok(()) => {
                let pages = &mut self.procs.get_mut(&p).unwrap().pages;
                for (_, m) in pages.range_mut(page..page + len) {
                    m.prot = prot;
                }
            }
            Err(Errno::ENOMEM) if starved => {
                self.adopt_prefix(p, page, len, |m| m.prot = prot, |m, f| prot_of(f) == m.prot);
            }
            Err(Errno::ENOMEM) if hole.is_some() => {
                let pages = &mut self.procs.get_mut(&p).unwrap().pages;
                for (_, m) in pages.range_mut(page..hole.unwrap()) {
                    m.prot = prot;
                }
            }
            Err(e) => self.fail(&format!("mprotect: {e:?}")),
        }
        self.check_vmas(p);
        self.warm(p, page, len);
    }

    fn op_madvise(&mut self, c: usize, p: u32) {
        let page = self.some_page(p);
        let len = self.any_len(page);
        let advice = *self.rng.pick(&[
            sys::MADV_DONTNEED,
            sys::MADV_DONTNEED,
            sys::MADV_DONTNEED,
            sys::MADV_DONTFORK,
            sys::MADV_DOFORK,
            sys::MADV_WIPEONFORK,
            sys::MADV_KEEPONFORK,
        ]);
        self.do_madvise(c, p, page, len, advice);
    }

    fn do_madvise(&mut self, c: usize, p: u32, page: u64, len: u64, advice: u32) {
        self.warm(p, page, len);
        let space = self.enter(c, p);
        say!(
            self,
            "cpu {c} proc {p}: madvise {:#x} +{len} advice {advice}",
            page * P
        );
        let (r, starved) = self.attempt("madvise", |w| {
            ops::madvise(&space, w, page * P, len * P, advice)
        });
        let hole = (page..page + len).any(|i| !self.procs[&p].pages.contains_key(&i));
        let bad = self.procs[&p]
            .pages
            .range(page..page + len)
            .find(|(_, m)| match advice {
                sys::MADV_WIPEONFORK => !matches!(m.back, Back::Anon(_)),
                sys::MADV_DONTNEED | sys::MADV_DOFORK => in_window(m),
                _ => false,
            })
            .map(|(at, _)| *at);
        let apply = move |m: &mut Page| match advice {
            sys::MADV_DONTNEED => empty(m),
            sys::MADV_DONTFORK => m.dontfork = true,
            sys::MADV_DOFORK => m.dontfork = false,
            sys::MADV_WIPEONFORK => m.wipe = true,
            _ => m.wipe = false,
        };
        let same = |m: &Page, f: VmaFlags| {
            f.contains(VmaFlags::DONTCOPY) == m.dontfork
                && f.contains(VmaFlags::WIPEONFORK) == m.wipe
        };
        let end = bad.unwrap_or(page + len);
        match r {
            Err(Errno::ENOMEM) if starved && advice != sys::MADV_DONTNEED => {
                self.adopt_prefix(p, page, len, apply, same);
            }
            Ok(()) if hole || bad.is_some() => self.fail("madvise overlooked something"),
            Ok(()) => {
                let pages = &mut self.procs.get_mut(&p).unwrap().pages;
                pages
                    .range_mut(page..page + len)
                    .for_each(|(_, m)| apply(m));
            }
            Err(Errno::ENOMEM | Errno::EINVAL) if hole || bad.is_some() => {
                // What precedes a VMA that refuses is done; holes are passed over.
                let pages = &mut self.procs.get_mut(&p).unwrap().pages;
                pages.range_mut(page..end).for_each(|(_, m)| apply(m));
            }
            Err(e) => self.fail(&format!("madvise: {e:?}")),
        }
        self.check_vmas(p);
        self.warm(p, page, len);
    }

    fn op_mremap(&mut self, c: usize, p: u32) {
        let page = self.some_page(p);
        // Often a whole VMA: only that can move by tables.
        let (page, old) = if self.rng.one_in(2) {
            let mut wait = self.sim.can_wait();
            let guard = self.procs[&p].space.mmap_read(&mut wait);
            match guard.find(page * P) {
                Some(v) if v.pages() < 1100 => (v.start() / P, v.pages()),
                _ => (page, 3),
            }
        } else {
            (page, self.any_len(page))
        };
        let new = if self.rng.one_in(2) {
            old
        } else {
            self.any_len(page)
        };
        let to = self.any_page();
        let to = if old >= 512 && self.rng.one_in(2) {
            // So that whole tables move.
            (to & !511) | (page & 511)
        } else {
            to
        };
        if to + new > BASE / P + PAGES {
            return;
        }
        let flags = *self.rng.pick(&[
            0,
            sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED,
            sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED,
            sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED,
            sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED | sys::MREMAP_DONTUNMAP,
        ]);
        let new = if flags & sys::MREMAP_DONTUNMAP != 0 {
            old
        } else {
            new
        };
        self.do_mremap(c, p, page, old, to, new, flags);
    }

    #[expect(clippy::too_many_arguments, reason = "as mremap has them")]
    fn do_mremap(&mut self, c: usize, p: u32, page: u64, old: u64, to: u64, new: u64, flags: u32) {
        self.warm(p, page, old);
        let space = self.enter(c, p);
        let args = MremapArgs {
            addr: page * P,
            old_len: old * P,
            new_len: new * P,
            flags,
            new_addr: to * P,
        };
        say!(
            self,
            "cpu {c} proc {p}: mremap {:#x} +{old} -> {:#x} +{new} flags {flags}",
            page * P,
            to * P
        );
        let window = self.procs[&p].pages.get(&page).is_some_and(in_window);
        let (r, starved) = self.attempt("mremap", |w| ops::mremap(&space, w, args));
        let fixed = flags & sys::MREMAP_FIXED != 0;
        let proc = self.procs.get_mut(&p).unwrap();
        match r {
            Ok(at) => {
                if window && (new > old || flags & sys::MREMAP_DONTUNMAP != 0) {
                    self.fail("a window grew, or was left empty");
                }
                let moves = at != page * P;
                if at != if fixed { to * P } else { page * P } {
                    self.fail(&format!("mremap went to {at:#x}"));
                }
                let pages = &mut proc.pages;
                if fixed {
                    pages.retain(|i, _| !(to..to + new).contains(i));
                }
                pages.retain(|i, _| !(page + new..page + old).contains(i));
                if !moves && new <= old {
                    // Only shorter.
                } else {
                    let keep = old.min(new);
                    let run: Vec<Option<Page>> = (page..page + keep)
                        .map(|i| pages.get(&i).cloned())
                        .collect();
                    let Some(first) = run.first().cloned().flatten() else {
                        self.fail("mremap of nothing succeeded");
                    };
                    if run.iter().any(|m| m.is_none()) {
                        self.fail("mremap over a hole succeeded");
                    }
                    if moves {
                        let dontunmap = flags & sys::MREMAP_DONTUNMAP != 0;
                        for (i, m) in run.into_iter().enumerate() {
                            let at = page + i as u64;
                            let m = m.unwrap();
                            // Under starvation the old place may stay, emptied (Linux does the same).
                            let stays =
                                dontunmap || (starved && still_mapped(self.sim, &proc.space, at));
                            if stays {
                                empty(proc.pages.get_mut(&at).unwrap());
                            } else {
                                proc.pages.remove(&at);
                            }
                            proc.pages.insert(to + i as u64, m);
                        }
                    }
                    for i in keep..new {
                        let mut m = first.clone();
                        match &mut m.back {
                            Back::Anon(b) => *b = [0; 4],
                            Back::File { index, copy, .. } => {
                                *index += i;
                                *copy = None;
                            }
                            Back::Driver { index, .. } => {
                                *index += i;
                                empty(&mut m);
                            }
                        }
                        let at = if moves { to } else { page } + i;
                        if proc.pages.insert(at, m).is_some() {
                            self.fail("mremap grew over something");
                        }
                    }
                }
            }
            Err(e) => {
                let fine = match e {
                    Errno::ENOMEM => starved || !fixed,
                    Errno::EFAULT => {
                        !one_vma(self.sim, &proc.space, page, old) || window && new > old
                    }
                    Errno::EINVAL => {
                        page < to + new && to < page + old
                            || window && flags & sys::MREMAP_DONTUNMAP != 0
                    }
                    _ => false,
                };
                if !fine {
                    self.fail(&format!("mremap: {e:?}"));
                }
                // A place that was asked for by number is cleared first, and a longer end cut off (as Linux does).
                if fixed {
                    let gone: Vec<u64> = (to..to + new)
                        .chain(page + new..page + old)
                        .filter(|i| !still_mapped(self.sim, &proc.space, *i))
                        .collect();
                    proc.pages.retain(|i, _| !gone.contains(i));
                }
            }
        }
        self.check_vmas(p);
        self.warm(p, page, old);
        self.warm(p, to, new);
    }

    fn op_fork(&mut self, c: usize, p: u32) {
        if self.procs.len() >= self.max_procs {
            return;
        }
        let near = self.some_page(p);
        self.warm(p, near, 8);
        let space = self.enter(c, p);
        say!(self, "cpu {c} proc {p}: fork -> {}", self.next);
        let (r, starved) = self.attempt("fork", |w| ops::fork(&space, w));
        match r {
            Ok(child) => {
                let pages = self.procs[&p]
                    .pages
                    .iter()
                    .filter(|(_, m)| !m.dontfork)
                    .map(|(at, m)| {
                        let mut m = m.clone();
                        if m.wipe {
                            empty(&mut m);
                        }
                        (*at, m)
                    })
                    .collect();
                let id = self.next;
                self.add(child, pages);
                self.check_vmas(id);
                self.warm(id, near, 8);
            }
            Err(Errno::ENOMEM) if starved => {}
            Err(e) => self.fail(&format!("fork: {e:?}")),
        }
        self.check_vmas(p);
        self.warm(p, near, 8);
    }

    fn op_exit(&mut self, c: usize, p: u32) {
        if self.procs.len() == 1 {
            return;
        }
        self.exit(c, p);
    }
    /// Process `p` ends on CPU `c`; others may keep it lazily.
    pub fn exit(&mut self, c: usize, p: u32) {
        // Some end because others want their memory.
        if self.rng.one_in(2) {
            let page = self.some_page(p);
            self.warm(p, page, 12);
            let space = self.enter(c, p);
            say!(self, "cpu {c} proc {p}: reap");
            assert!(ops::reap(&space, &mut self.sim.can_wait()).is_some());
            self.after();
        }
        let space = self.enter(c, p);
        say!(self, "cpu {c} proc {p}: exit");
        for other in 0..self.sim.config().cpus {
            self.sim.on(other);
            if other == c || self.rng.one_in(2) {
                switch_away(self.sim, &space);
            } else if self.sim.loaded_root() == space.tlb.root() {
                self.sim.set_lazy(true);
            }
        }
        self.sim.on(c);
        ops::exit(&space, &mut self.sim.can_wait());
        self.after();
        self.procs.remove(&p);
        drop(space);
        self.after();
    }

    fn op_truncate(&mut self, c: usize) {
        let o = self.rng.below(2) as usize;
        let object = self.objects[o].object.clone().unwrap();
        let p = self.any_proc();
        let near = self.some_page(p);
        self.warm(p, near, 8);
        self.sim.on(c);
        if self.rng.one_in(3) {
            let from = self.rng.below(40);
            let to = from + self.rng.range(1, 20);
            say!(self, "cpu {c}: punch object {o} {from}..{to}");
            object.punch_hole(&mut self.sim.can_wait(), from * P, to * P);
            self.objects[o].data.retain(|i, _| !(from..to).contains(i));
            if o == 1 {
                let mut store = self.store.lock().unwrap();
                store.retain(|i, _| !(from..to).contains(i));
            }
        } else {
            let pages = self.rng.range(1, 60);
            say!(self, "cpu {c}: truncate object {o} to {pages} pages");
            object.set_size(&mut self.sim.can_wait(), pages * P);
            let ob = &mut self.objects[o];
            ob.pages = pages;
            ob.data.retain(|i, _| *i < pages);
            if o == 1 {
                self.store.lock().unwrap().retain(|i, _| *i < pages);
            }
            for proc in self.procs.values_mut() {
                for m in proc.pages.values_mut() {
                    if let Back::File {
                        object,
                        index,
                        copy,
                        ..
                    } = &mut m.back
                        && *object == o
                        && *index >= pages
                    {
                        *copy = None;
                    }
                }
            }
        }
        self.after();
        self.warm(p, near, 8);
    }

    /// What was stored is on the disk; perhaps memory is taken back, so that it comes from there next time.
    fn op_write_back(&mut self, c: usize) {
        let object = self.objects[1].object.clone().unwrap();
        let p = self.any_proc();
        let shared = |m: &Page| {
            let ours = matches!(
                &m.back,
                Back::File {
                    object: 1,
                    shared: true,
                    ..
                }
            );
            ours && m.prot & W != 0
        };
        let mut stored = self.procs[&p].pages.iter().filter(|(_, m)| shared(m));
        let near = match stored.next() {
            Some((page, _)) => *page,
            None => {
                let (page, first) = (self.any_page(), self.rng.below(30));
                let flags = sys::MAP_SHARED | sys::MAP_FIXED;
                self.do_mmap(c, p, page, 6, R | W, flags, Some((1, first)));
                page
            }
        };
        for _ in 0..3 {
            let (c, page) = (self.any_cpu(), near + self.rng.below(3));
            self.touch(c, p, page, Want::Write);
        }
        self.sim.on(c);
        say!(self, "cpu {c}: write back");
        let written = object.write_back(&mut self.sim.can_wait(), 0, u64::MAX);
        assert_eq!(written, Ok(()));
        self.after();
        for (index, bytes) in &self.objects[1].data {
            let store = self.store.lock().unwrap();
            let stored = store.get(index).map(|b| OFFSETS.map(|o| b[o as usize]));
            let stored = stored.unwrap_or_default();
            drop(store);
            if stored != *bytes {
                self.fail(&format!("page {index} has {bytes:?}, the disk {stored:?}"));
            }
        }
        // Those that have it in their TLB store again.
        self.warm(p, near, 8);
        if self.rng.one_in(2) {
            let mapped = self.rng.one_in(2);
            say!(self, "cpu {c}: let go, mapped {mapped}");
            self.sim.on(c);
            object.shrink(&mut self.sim.can_wait(), mapped);
            self.after();
        }
    }

    /// Reads back everything, ends every process, and counts the frames.
    pub fn finish(mut self) {
        let ids: Vec<u32> = self.procs.keys().copied().collect();
        for p in ids {
            let c = self.any_cpu();
            let pages: Vec<u64> = self.procs[&p].pages.keys().copied().collect();
            for page in pages {
                if matches!(self.sees(p, page, 0, Want::Read), Sees::Byte(_)) {
                    self.touch(c, p, page, Want::Read);
                }
            }
            self.exit(c, p);
        }
        self.objects.clear();
        self.end_device();
        let free = frames_free(self.sim);
        if free != self.free_at_start {
            self.fail(&format!(
                "{} frames free, {} at the start",
                free, self.free_at_start
            ));
        }
    }
}

fn prot_of(f: VmaFlags) -> u32 {
    let bit = |b, p| if f.contains(b) { p } else { 0 };
    bit(VmaFlags::READ, R) | bit(VmaFlags::WRITE, W) | bit(VmaFlags::EXEC, X)
}

fn empty(m: &mut Page) {
    match &mut m.back {
        Back::Anon(b) => *b = [0; 4],
        Back::File { copy, .. } => *copy = None,
        Back::Driver { shows, copy, .. } => (*shows, *copy) = (None, None),
    }
}

fn still_mapped(sim: Machine, space: &AddressSpace<Machine>, page: u64) -> bool {
    space
        .mmap_read(&mut sim.can_wait())
        .find(page * P)
        .is_some()
}

/// Whether the pages lie in one VMA (pages that look alike may not: moved memory keeps its offsets).
fn one_vma(sim: Machine, space: &AddressSpace<Machine>, from: u64, len: u64) -> bool {
    let mut wait = sim.can_wait();
    let guard = space.mmap_read(&mut wait);
    guard
        .find(from * P)
        .is_some_and(|v| v.end() >= (from + len) * P)
}
