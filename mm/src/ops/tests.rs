//! What a process sees, on the simulated machine: faults, the mmap family, fork and exit.

use crate::addr::{PAGE_SIZE, PMD_SIZE};
use crate::errno::Errno;
use crate::fault::{self, Access, Fault, FaultResult};
use crate::object::FileObject;
use crate::ops::{self, FileMap, MmapArgs, MremapArgs};
use crate::phys::{Folio, Hw};
use crate::sim::mmu::{PageFault, Want};
use crate::sim::{Config, Machine, Sim};
use crate::space::{AddressSpace, RssKind};
use crate::sync::atomic::Ordering::Relaxed;
use alloc::sync::Arc;
use alloc::vec::Vec;
use linux_raw_sys::general as sys;

const P: u64 = PAGE_SIZE;
const RW: u32 = sys::PROT_READ | sys::PROT_WRITE;

/// A machine with one process, loaded on CPU 0.
struct World {
    sim: Machine,
    space: Arc<AddressSpace<Machine>>,
    free_at_start: u64,
}

impl World {
    fn new() -> Self {
        let sim = Sim::new(Config {
            cpus: 2,
            ..Config::default()
        })
        .on(0);
        // The first objects of each slab take a frame that stays: make and drop one of everything.
        let mut w = Self {
            sim,
            space: Self::process(sim),
            free_at_start: 0,
        };
        let a = w.map(P);
        w.write(a, 1);
        w.unmap(a, P);
        w.free_at_start = w.free();
        w
    }
    fn process(sim: Machine) -> Arc<AddressSpace<Machine>> {
        let space = AddressSpace::new(sim).expect("memory");
        space.layout.mmap_base.store(0x7fff_0000_0000, Relaxed);
        space.layout.start_brk.store(0x1000_0000, Relaxed);
        space.layout.brk.store(0x1000_0000, Relaxed);
        Self::load(sim, &space);
        space
    }
    fn load(sim: Machine, space: &AddressSpace<Machine>) {
        let mut wait = sim.can_wait();
        let irq = wait.irq_off();
        space.activate(&irq);
        drop(irq);
        sim.set_lazy(false);
    }
    fn unload(sim: Machine, space: &AddressSpace<Machine>) {
        let mut wait = sim.can_wait();
        let irq = wait.irq_off();
        crate::hw::Cpu::load_kernel_root(sim);
        space.leave(&irq);
        drop(irq);
        sim.set_lazy(true);
    }
    fn free(&self) -> u64 {
        crate::phys::slab::shrink(self.sim);
        self.sim.phys().free_frames(self.sim)
    }
    fn trap(&self) -> impl FnMut(PageFault) -> bool {
        let (sim, space) = (self.sim, self.space.clone());
        move |f| matches!(fault(sim, &space, f), FaultResult::Done { .. })
    }
    fn write(&self, va: u64, b: u8) {
        self.sim.write(va, b, &mut self.trap()).expect("writable");
    }
    fn read(&self, va: u64) -> u8 {
        self.sim.read(va, &mut self.trap()).expect("readable")
    }
    /// What the fault of this access says.
    fn try_access(&self, va: u64, want: Want) -> FaultResult {
        match self.sim.touch(va, want, 0) {
            Ok(_) => FaultResult::Done { major: false },
            Err(f) => fault(self.sim, &self.space, f),
        }
    }
    fn args(addr: u64, len: u64, prot: u32, flags: u32) -> MmapArgs<Machine> {
        MmapArgs {
            addr,
            len,
            prot,
            flags,
            file: None,
        }
    }
    fn mmap(&self, a: MmapArgs<Machine>) -> Result<u64, Errno> {
        ops::mmap(&self.space, &mut self.sim.can_wait(), a)
    }
    fn map(&self, len: u64) -> u64 {
        self.mmap(Self::args(
            0,
            len,
            RW,
            sys::MAP_PRIVATE | sys::MAP_ANONYMOUS,
        ))
        .expect("mapped")
    }
    fn map_file(&self, object: &Arc<FileObject<Machine>>, len: u64, kind: u32) -> u64 {
        let mut a = Self::args(0, len, RW, kind);
        a.file = Some(FileMap {
            object: object.clone(),
            pgoff: 0,
            readable: true,
            writable: true,
            append: false,
            executable: true,
        });
        self.mmap(a).expect("mapped")
    }
    fn unmap(&self, addr: u64, len: u64) {
        ops::munmap(&self.space, &mut self.sim.can_wait(), addr, len).expect("unmapped");
    }
    fn protect(&self, addr: u64, len: u64, prot: u32) -> Result<(), Errno> {
        ops::mprotect(&self.space, &mut self.sim.can_wait(), addr, len, prot)
    }
    fn fork(&self) -> Result<Arc<AddressSpace<Machine>>, Errno> {
        ops::fork(&self.space, &mut self.sim.can_wait())
    }
    /// Runs `f` in another space.
    fn in_space<R>(&mut self, other: &Arc<AddressSpace<Machine>>, f: impl FnOnce(&Self) -> R) -> R {
        Self::unload(self.sim, &self.space);
        Self::load(self.sim, other);
        let mine = core::mem::replace(&mut self.space, other.clone());
        let r = f(self);
        self.space = mine;
        Self::unload(self.sim, other);
        Self::load(self.sim, &self.space);
        r
    }
    fn rss(&self) -> (u64, u64) {
        (
            self.space.rss(RssKind::Anon),
            self.space.rss(RssKind::Shmem),
        )
    }
    /// Unmaps all; not one frame may be missing, not one translation left.
    fn finish(self) {
        self.sim.check_no_stale();
        self.sim.check();
        Self::unload(self.sim, &self.space);
        ops::exit(&self.space, &mut self.sim.can_wait());
        assert_eq!(self.rss(), (0, 0));
        assert_eq!(self.space.counts.total_vm.load(Relaxed), 0);
        self.sim.check();
        assert_eq!(self.free(), self.free_at_start, "frames");
    }
}

fn fault(sim: Machine, space: &AddressSpace<Machine>, f: PageFault) -> FaultResult {
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

const ANON: u32 = sys::MAP_PRIVATE | sys::MAP_ANONYMOUS;

#[test]
fn memory_reads_zero_keeps_what_is_written_and_goes_whole() {
    let w = World::new();
    let a = w.map(600 * P);
    for i in 0..600 {
        assert_eq!(w.read(a + i * P), 0);
    }
    assert_eq!(w.rss(), (0, 0), "the zero page is not counted");
    for i in 0..600 {
        w.write(a + i * P, i as u8);
    }
    assert_eq!(w.rss(), (600, 0));
    for i in 0..600 {
        assert_eq!(w.read(a + i * P), i as u8);
    }
    w.unmap(a + P, 598 * P);
    assert_eq!(w.rss(), (2, 0));
    assert_eq!(w.read(a), 0);
    assert_eq!(w.read(a + 599 * P), 599u64 as u8);
    assert_eq!(
        w.try_access(a + P, Want::Read),
        FaultResult::Segv { code: 1 }
    );
    w.finish();
}

#[test]
fn the_child_sees_the_moment_of_the_fork() {
    let mut w = World::new();
    let a = w.map(40 * P);
    for i in 0..40 {
        w.write(a + i * P, 7);
    }
    let child = w.fork().expect("forked");
    assert_eq!(child.rss(RssKind::Anon), 40);
    for i in 0..20 {
        w.write(a + i * P, 9);
    }
    w.in_space(&child, |c| {
        for i in 0..40 {
            assert_eq!(c.read(a + i * P), 7);
            c.write(a + i * P, 8);
        }
        assert_eq!(c.rss(), (40, 0));
    });
    for i in 0..40 {
        assert_eq!(w.read(a + i * P), if i < 20 { 9 } else { 7 });
    }
    ops::exit(&child, &mut w.sim.can_wait());
    drop(child);
    // Alone again: reused, not copied.
    let before = w.free();
    for i in 0..40 {
        w.write(a + i * P, 3);
    }
    assert_eq!(w.free(), before);
    w.finish();
}

#[test]
fn fork_copies_rather_than_shares_a_pinned_page() {
    let mut w = World::new();
    let a = w.map(2 * P);
    w.write(a, 1);
    w.write(a + P, 2);
    let frame_at = |w: &World| {
        let mut wait = w.sim.can_wait();
        let g = w.space.mmap_read(&mut wait);
        let pt = w.space.tables.pte_table(a, &g).expect("a table");
        pt.get(crate::table::PtGuard::<Machine>::index(a)).pfn()
    };
    let pfn = frame_at(&w);
    let folio = Folio::new(w.sim, pfn);
    w.space.has_pinned.store(true, Relaxed);
    assert!(folio.desc().pin(1));
    let child = w.fork().expect("forked");
    assert!(folio.is_exclusive());
    w.write(a, 5);
    assert_eq!(
        frame_at(&w),
        pfn,
        "the parent still writes the pinned frame"
    );
    w.in_space(&child, |c| {
        assert_eq!(c.read(a), 1);
        assert_eq!(c.read(a + P), 2);
    });
    folio.put_many(crate::phys::count::PIN_BIAS);
    ops::exit(&child, &mut w.sim.can_wait());
    drop(child);
    w.finish();
}

#[test]
fn private_and_shared_file_mappings() {
    let mut w = World::new();
    let object = FileObject::new(w.sim).expect("memory");
    object.extend(40 * P);
    let s = w.map_file(&object, 64 * P, sys::MAP_SHARED);
    let p = w.map_file(&object, 64 * P, sys::MAP_PRIVATE);
    for i in 0..40 {
        w.write(s + i * P, i as u8 + 1);
    }
    assert_eq!(w.rss(), (0, 40));
    for i in 0..20 {
        assert_eq!(w.read(p + i * P), i as u8 + 1);
    }
    for i in 0..40 {
        w.write(p + i * P, 99);
    }
    for i in 0..40 {
        assert_eq!(w.read(s + i * P), i as u8 + 1, "the file keeps its bytes");
        assert_eq!(w.read(p + i * P), 99);
    }
    assert_eq!(w.rss(), (40, 40));
    assert_eq!(
        w.try_access(s + 40 * P, Want::Read),
        FaultResult::Bus { code: 2 }
    );
    assert_eq!(
        w.try_access(p + 40 * P, Want::Write),
        FaultResult::Bus { code: 2 }
    );
    let child = w.fork().expect("forked");
    w.in_space(&child, |c| {
        c.write(s, 55);
        assert_eq!(c.read(p), 99);
    });
    assert_eq!(w.read(s), 55, "shared with the child");
    ops::exit(&child, &mut w.sim.can_wait());
    drop((child, object));
    w.finish();
}

#[test]
fn protection_is_taken_and_given_without_losing_content() {
    let w = World::new();
    let a = w.map(8 * P);
    for i in 0..8 {
        w.write(a + i * P, 4);
    }
    w.protect(a + 2 * P, 2 * P, 0).expect("none");
    assert_eq!(
        w.try_access(a + 2 * P, Want::Read),
        FaultResult::Segv { code: 2 }
    );
    w.protect(a, 2 * P, sys::PROT_READ).expect("read");
    assert_eq!(w.read(a), 4);
    assert_eq!(w.try_access(a, Want::Write), FaultResult::Segv { code: 2 });
    assert_eq!(
        w.try_access(a + 5 * P, Want::Exec),
        FaultResult::Segv { code: 2 }
    );
    w.protect(a, 8 * P, RW).expect("all");
    for i in 0..8 {
        assert_eq!(w.read(a + i * P), 4);
        w.write(a + i * P, 5);
    }
    assert_eq!(
        w.space.mmap_read(&mut w.sim.can_wait()).count(),
        1,
        "merged again"
    );
    assert_eq!(w.protect(a + 7 * P, 2 * P, 0), Err(Errno::ENOMEM));
    assert_eq!(
        w.try_access(a + 7 * P, Want::Read),
        FaultResult::Segv { code: 2 }
    );
    w.finish();
}

#[test]
fn mremap_moves_pages_not_bytes() {
    let w = World::new();
    let len = 2 * PMD_SIZE + 4 * P;
    for shift in [0, 3 * P] {
        let a = w.map(len + PMD_SIZE);
        let a = (a + PMD_SIZE - 1) & !(PMD_SIZE - 1);
        for i in (0..len / P).step_by(7) {
            w.write(a + i * P, i as u8);
        }
        let rss = w.rss();
        let to = 0x6000_0000_0000 + shift;
        let m = MremapArgs {
            addr: a,
            old_len: len,
            new_len: len + P,
            flags: sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED,
            new_addr: to,
        };
        assert_eq!(ops::mremap(&w.space, &mut w.sim.can_wait(), m), Ok(to));
        assert_eq!(w.rss(), rss);
        for i in (0..len / P).step_by(7) {
            assert_eq!(w.read(to + i * P), i as u8);
        }
        assert_eq!(w.read(to + len), 0);
        assert_eq!(w.try_access(a, Want::Read), FaultResult::Segv { code: 1 });
        w.unmap(to, len + P);
    }
    w.finish();
}

#[test]
fn mremap_grows_shrinks_and_leaves_behind() {
    let w = World::new();
    let a = w.map(64 * P);
    w.unmap(a + 8 * P, 56 * P);
    w.write(a, 1);
    let call = |addr, old, new, flags, to| {
        let m = MremapArgs {
            addr,
            old_len: old,
            new_len: new,
            flags,
            new_addr: to,
        };
        ops::mremap(&w.space, &mut w.sim.can_wait(), m)
    };
    assert_eq!(call(a, 8 * P, 32 * P, 0, 0), Ok(a));
    w.write(a + 31 * P, 2);
    assert_eq!(call(a, 32 * P, 4 * P, 0, 0), Ok(a));
    assert_eq!(w.rss(), (1, 0));
    let flags = sys::MREMAP_MAYMOVE | sys::MREMAP_DONTUNMAP;
    let b = call(a, 4 * P, 4 * P, flags, 0).expect("moved");
    assert_eq!(w.read(b), 1);
    assert_eq!(w.read(a), 0, "left behind, empty");
    assert_eq!(call(a, 0, P, sys::MREMAP_MAYMOVE, 0), Err(Errno::EINVAL));
    assert_eq!(call(a + 1, P, P, 0, 0), Err(Errno::EINVAL));
    assert_eq!(
        call(a, P, 2 * P, sys::MREMAP_FIXED | sys::MREMAP_MAYMOVE, a),
        Err(Errno::EINVAL)
    );
    w.finish();
}

#[test]
fn dontneed_wipeonfork_dontfork() {
    let mut w = World::new();
    let a = w.map(6 * P);
    for i in 0..6 {
        w.write(a + i * P, 3);
    }
    let advise =
        |w: &World, at, len, what| ops::madvise(&w.space, &mut w.sim.can_wait(), at, len, what);
    advise(&w, a, P, sys::MADV_DONTNEED).expect("dontneed");
    assert_eq!(w.read(a), 0);
    advise(&w, a + P, P, sys::MADV_WIPEONFORK).expect("wipe");
    advise(&w, a + 2 * P, P, sys::MADV_DONTFORK).expect("dontfork");
    assert_eq!(advise(&w, a, P, sys::MADV_HUGEPAGE), Err(Errno::EINVAL));
    w.unmap(a + 4 * P, P);
    assert_eq!(
        advise(&w, a + 3 * P, 3 * P, sys::MADV_DONTNEED),
        Err(Errno::ENOMEM)
    );
    assert_eq!(w.read(a + 5 * P), 0, "done beyond the hole");
    let child = w.fork().expect("forked");
    w.in_space(&child, |c| {
        assert_eq!(c.read(a + P), 0);
        assert_eq!(
            c.try_access(a + 2 * P, Want::Read),
            FaultResult::Segv { code: 1 }
        );
    });
    assert_eq!(w.read(a + P), 3);
    ops::exit(&child, &mut w.sim.can_wait());
    drop(child);
    w.finish();
}

#[test]
fn the_break_moves_and_says_where_it_is() {
    let w = World::new();
    let brk = |to| ops::brk(&w.space, &mut w.sim.can_wait(), to);
    let base = brk(0);
    assert_eq!(brk(base + 3 * P + 5), base + 3 * P + 5);
    w.write(base + 3 * P, 1);
    assert_eq!(brk(base + P), base + P);
    assert_eq!(
        w.try_access(base + P, Want::Read),
        FaultResult::Segv { code: 1 }
    );
    assert_eq!(brk(u64::MAX), base + P);
    w.space.limits.data.store(4 * P, Relaxed);
    assert_eq!(brk(base + 8 * P), base + P);
    w.finish();
}

#[test]
fn stacks_grow_by_faults_down_to_the_gap() {
    let w = World::new();
    let top = 0x5000_0000_0000;
    let flags = ANON | sys::MAP_FIXED | sys::MAP_GROWSDOWN;
    let s = w.mmap(World::args(top, 2 * P, RW, flags)).expect("stack");
    w.mmap(World::args(s - 300 * P, P, RW, ANON | sys::MAP_FIXED))
        .expect("below");
    w.write(s - 10 * P, 1);
    assert_eq!(
        w.try_access(s - 60 * P, Want::Write),
        FaultResult::Segv { code: 1 }
    );
    w.space.limits.stack.store(20 * P, Relaxed);
    assert_eq!(
        w.try_access(s - 19 * P, Want::Write),
        FaultResult::Segv { code: 1 }
    );
    assert_eq!(w.read(s - 10 * P), 1);
    w.finish();
}

#[test]
fn a_stack_does_not_grow_to_address_zero() {
    let w = World::new();
    let flags = ANON | sys::MAP_FIXED | sys::MAP_GROWSDOWN;
    w.mmap(World::args(0x12000, P, RW, flags)).expect("stack");
    w.write(0x10000, 1);
    for va in [0xffff, 0xf000, 0] {
        assert_eq!(
            w.try_access(va, Want::Write),
            FaultResult::Segv { code: 1 },
            "{va:#x}"
        );
    }
    w.finish();
}

#[test]
fn mremap_takes_any_lengths() {
    let w = World::new();
    let a = w.map(8 * P);
    let lengths = [
        0,
        1,
        P,
        2 * P,
        1 << 47,
        1 << 63,
        u64::MAX - 2 * P,
        u64::MAX - P + 1,
        u64::MAX,
    ];
    for old_len in lengths {
        for new_len in lengths {
            for new_addr in [0, a + 4 * P, !(P - 1)] {
                for flags in 0..8 {
                    let args = MremapArgs {
                        addr: a + 2 * P,
                        old_len,
                        new_len,
                        flags,
                        new_addr,
                    };
                    w.mmap(World::args(a, 8 * P, RW, ANON | sys::MAP_FIXED))
                        .expect("mapped");
                    let _ = ops::mremap(&w.space, &mut w.sim.can_wait(), args);
                }
            }
        }
    }
    w.unmap(0x10000, 0x7fff_ffff_f000 - 0x10000);
    w.finish();
}

#[test]
fn fixed_mappings_replace_and_populate_touches() {
    let w = World::new();
    let a = w.map(8 * P);
    for i in 0..8 {
        w.write(a + i * P, 1);
    }
    let again = ANON | sys::MAP_FIXED;
    assert_eq!(
        w.mmap(World::args(a + 2 * P, 3 * P, RW, again | sys::MAP_POPULATE)),
        Ok(a + 2 * P)
    );
    assert_eq!(w.rss(), (8, 0));
    assert_eq!(w.read(a + 2 * P), 0);
    assert_eq!(w.read(a + 5 * P), 1);
    let careful = ANON | sys::MAP_FIXED_NOREPLACE;
    assert_eq!(w.mmap(World::args(a, P, RW, careful)), Err(Errno::EEXIST));
    let mut vec = [9u8; 8];
    assert_eq!(
        ops::mincore(&w.space, &mut w.sim.can_wait(), a, &mut vec),
        Ok(8)
    );
    assert_eq!(vec, [1; 8]);
    for (len, flags, e) in [
        (0, ANON, Errno::EINVAL),
        (u64::MAX, ANON, Errno::ENOMEM),
        (1 << 47, ANON, Errno::ENOMEM),
        (P, sys::MAP_ANONYMOUS, Errno::EINVAL),
        (P, ANON | sys::MAP_HUGETLB, Errno::EINVAL),
    ] {
        assert_eq!(w.mmap(World::args(0, len, RW, flags)), Err(e));
    }
    assert_eq!(
        w.mmap(World::args(1 << 20 | 1, P, RW, again)),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        w.mmap(World::args(u64::MAX - P + 1, P, RW, again)),
        Err(Errno::ENOMEM)
    );
    w.finish();
}

/// Every allocation of an operation fails once; the space is then as before, or the operation was whole.
#[test]
fn an_allocation_that_fails_halfway_changes_nothing() {
    let w = World::new();
    let a = w.map(8 * P);
    for i in 0..8 {
        w.write(a + i * P, 1);
    }
    let shape = |w: &World| {
        let mut wait = w.sim.can_wait();
        let g = w.space.mmap_read(&mut wait);
        g.all()
            .map(|v| (v.start(), v.end(), v.flags()))
            .collect::<alloc::vec::Vec<_>>()
    };
    let phys = w.sim.phys();
    for n in 1..6 {
        let before = shape(&w);
        phys.fail_after(n);
        let r = w.mmap(World::args(
            a + 2 * P,
            P,
            sys::PROT_READ,
            ANON | sys::MAP_FIXED,
        ));
        phys.fail_after(0);
        if r.is_err() {
            assert_eq!(r, Err(Errno::ENOMEM));
            assert_eq!(shape(&w), before);
            assert_eq!(w.read(a + 2 * P), 1);
        }
        let before = shape(&w);
        phys.fail_after(n);
        let r = ops::munmap(&w.space, &mut w.sim.can_wait(), a + 4 * P, P);
        phys.fail_after(0);
        if r.is_err() {
            assert_eq!(shape(&w), before);
        }
        phys.fail_after(n);
        let r = w.fork();
        phys.fail_after(0);
        if let Ok(child) = r {
            ops::exit(&child, &mut w.sim.can_wait());
        }
        assert_eq!(w.read(a + 7 * P), 1);
        w.write(a + 7 * P, 1);
    }
    w.finish();
}

/// Three threads of one process write their own bytes in their own and in shared places, while mappings come
/// and go, permissions flip and children are forked.
#[test]
fn threads_that_fault_unmap_and_fork_against_each_other() {
    let config = Config {
        cpus: 4,
        threads: true,
        frames: 1 << 14,
        ..Config::default()
    };
    let sim = Sim::new(config).on(0);
    let space = AddressSpace::new(sim).expect("memory");
    space.layout.mmap_base.store(0x7fff_0000_0000, Relaxed);
    let rounds = 400u64;
    let enter = move |cpu: usize, space: &Arc<AddressSpace<Machine>>| World {
        sim: {
            sim.on(cpu);
            World::load(sim, space);
            sim
        },
        space: space.clone(),
        free_at_start: 0,
    };
    let shared = {
        let w = enter(0, &space);
        let a = w.map(64 * P);
        World::unload(sim, &space);
        a
    };
    let threads: std::vec::Vec<_> = (0..4usize)
        .map(|me| {
            let space = space.clone();
            std::thread::spawn(move || {
                let mut w = enter(me, &space);
                let mine = w.map(32 * P);
                for round in 0..rounds {
                    let tag = (round as u8).wrapping_mul(7).wrapping_add(me as u8) | 1;
                    for i in 0..32 {
                        w.write(mine + i * P, tag);
                    }
                    // Page i of the shared part belongs to thread i % 4; all bytes of a page agree.
                    for i in (me as u64..64).step_by(4) {
                        w.write(shared + i * P + 8, tag);
                        assert_eq!(w.read(shared + i * P + 8), tag);
                    }
                    let t = w.map(5 * P);
                    assert_eq!(w.read(t), 0);
                    w.write(t + 4 * P, tag);
                    match (round + me as u64) % 4 {
                        0 => {
                            let child = w.fork().expect("forked");
                            for i in 0..32 {
                                w.write(mine + i * P, tag ^ 0x80);
                            }
                            w.in_space(&child, |c| {
                                for i in 0..32 {
                                    assert_eq!(c.read(mine + i * P), tag, "the child's page {i}");
                                    c.write(mine + i * P, 1);
                                }
                            });
                            for i in 0..32 {
                                assert_eq!(w.read(mine + i * P), tag ^ 0x80, "page {i}");
                            }
                            ops::exit(&child, &mut sim.can_wait());
                        }
                        1 => {
                            w.protect(mine, 16 * P, sys::PROT_READ).expect("read");
                            assert_eq!(w.read(mine + P), tag);
                            w.protect(mine, 16 * P, RW).expect("write");
                        }
                        2 => {
                            let wait = &mut sim.can_wait();
                            ops::madvise(&w.space, wait, mine, 8 * P, sys::MADV_DONTNEED)
                                .expect("zap");
                            assert_eq!(w.read(mine + 7 * P), 0);
                            assert_eq!(w.read(mine + 8 * P), tag);
                        }
                        _ => {
                            let m = MremapArgs {
                                addr: t,
                                old_len: 5 * P,
                                new_len: 9 * P,
                                flags: sys::MREMAP_MAYMOVE,
                                new_addr: 0,
                            };
                            let to = ops::mremap(&w.space, &mut sim.can_wait(), m).expect("moved");
                            assert_eq!(w.read(to + 4 * P), tag);
                            w.unmap(to, 9 * P);
                            continue;
                        }
                    }
                    assert_eq!(w.read(t + 4 * P), tag);
                    w.unmap(t, 5 * P);
                }
                w.unmap(mine, 32 * P);
                World::unload(sim, &w.space);
            })
        })
        .collect();
    for t in threads {
        t.join().expect("a thread failed");
    }
    sim.on(0);
    sim.check();
    ops::exit(&space, &mut sim.can_wait());
    assert_eq!(space.rss_total(), 0);
    drop(space);
    sim.check();
}

/// Whether pagemap would call the page soft-dirty, and whether the machine lets it be written.
fn soft_dirty(w: &World, va: u64) -> (bool, bool) {
    let mut wait = w.sim.can_wait();
    let guard = w.space.mmap_read(&mut wait);
    let vma = guard.find(va).expect("mapped");
    let entry = w
        .space
        .tables
        .pte_table(va, &guard)
        .map(|t| t.get(crate::table::PtGuard::<Machine>::index(va)));
    let entry = entry.unwrap_or_default();
    let marked = !vma.flags().tracks_writes() || entry.soft_dirty();
    (marked, entry.writable())
}

fn clear(w: &World, what: ops::ClearRefs) {
    ops::clear_refs(&w.space, &mut w.sim.can_wait(), what).expect("cleared");
    w.sim.check_no_stale();
}

/// SOFTD-1: a write after clearing is seen, whatever happened to the page in between; nothing else is.
#[test]
fn a_write_after_clearing_is_seen_and_nothing_else() {
    let w = World::new();
    let object = FileObject::new(w.sim).expect("memory");
    object.extend(8 * P);
    for shared in [false, true] {
        let a = if shared {
            w.map_file(&object, 8 * P, sys::MAP_SHARED)
        } else {
            w.map(8 * P)
        };
        w.write(a, 1);
        w.read(a + P);
        assert!(soft_dirty(&w, a + 2 * P).0, "a new mapping has changed");
        clear(&w, ops::ClearRefs::SoftDirty);
        for i in 0..3 {
            assert!(!soft_dirty(&w, a + i * P).0, "page {i}");
        }
        // Reads, first ones too, change nothing.
        for i in 0..4 {
            w.read(a + i * P);
            assert_eq!(soft_dirty(&w, a + i * P), (false, false), "page {i}");
        }
        // Rights taken and given back: a page that was not written may not become writable by it.
        for prot in [sys::PROT_READ, RW] {
            ops::mprotect(&w.space, &mut w.sim.can_wait(), a, 8 * P, prot).expect("protected");
        }
        assert_eq!(soft_dirty(&w, a), (false, false));
        for i in [0, 1, 3, 4] {
            w.write(a + i * P, 2);
            assert_eq!(soft_dirty(&w, a + i * P), (true, true), "page {i}");
        }
        assert!(!soft_dirty(&w, a + 2 * P).0);
        // What was written stays marked, and is not asked again.
        ops::mprotect(&w.space, &mut w.sim.can_wait(), a, 8 * P, sys::PROT_READ)
            .expect("protected");
        assert_eq!(soft_dirty(&w, a), (true, false));
        w.unmap(a, 8 * P);
    }
    drop(object);
    w.finish();
}

/// SOFTD-1: a device writes without a fault: what it has pinned stays writable and marked.
#[test]
fn what_is_pinned_stays_marked() {
    use crate::gup::{GupFlags, PageSlot, Write, pin_user_pages_remote};
    let w = World::new();
    let a = w.map(2 * P);
    w.write(a, 1);
    w.write(a + P, 1);
    let mut wait = w.sim.can_wait();
    let slots = [PageSlot::EMPTY];
    let none = GupFlags::empty();
    let pins = pin_user_pages_remote::<Write, _, _>(&w.space, &mut wait, a, none, slots);
    let pins = pins.expect("pinned");
    clear(&w, ops::ClearRefs::SoftDirty);
    assert_eq!(soft_dirty(&w, a), (true, true));
    assert_eq!(soft_dirty(&w, a + P), (false, false));
    drop(pins);
    clear(&w, ops::ClearRefs::SoftDirty);
    assert_eq!(soft_dirty(&w, a), (false, false));
    w.finish();
}

/// SOFTD-1: marks go through fork and a move; copies on write are writes.
#[test]
fn soft_dirty_survives_fork_and_a_move() {
    let w = World::new();
    let a = w.map(4 * P);
    w.write(a, 1);
    w.write(a + P, 1);
    clear(&w, ops::ClearRefs::SoftDirty);
    w.write(a, 2);
    let child = ops::fork(&w.space, &mut w.sim.can_wait()).expect("forked");
    assert_eq!(soft_dirty(&w, a), (true, false));
    assert_eq!(soft_dirty(&w, a + P), (false, false));
    {
        let mut wait = w.sim.can_wait();
        let guard = child.mmap_read(&mut wait);
        let pt = child.tables.pte_table(a, &guard).expect("copied");
        let first = crate::table::PtGuard::<Machine>::index(a);
        assert_eq!(
            [0, 1].map(|i| pt.get(first + i).soft_dirty()),
            [true, false]
        );
    }
    w.write(a + P, 3);
    assert_eq!(soft_dirty(&w, a + P), (true, true));
    ops::exit(&child, &mut w.sim.can_wait());
    drop(child);
    let to = ops::mremap(
        &w.space,
        &mut w.sim.can_wait(),
        MremapArgs {
            addr: a,
            old_len: 4 * P,
            new_len: 4 * P,
            flags: sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED,
            new_addr: a - 64 * P,
        },
    )
    .expect("moved");
    for i in 0..4 {
        assert!(soft_dirty(&w, to + i * P).0, "what moved has changed");
    }
    w.unmap(to, 4 * P);
    w.finish();
}

/// clear_refs 1 to 3 forget uses, of the kind of mapping that they name.
#[test]
fn uses_are_forgotten_by_kind_of_mapping() {
    use crate::ops::ClearRefs::*;
    let w = World::new();
    let object = FileObject::new(w.sim).expect("memory");
    object.extend(P);
    let (anon, file) = (w.map(P), w.map_file(&object, P, sys::MAP_SHARED));
    let young = |va| {
        let mut wait = w.sim.can_wait();
        let guard = w.space.mmap_read(&mut wait);
        let pt = w.space.tables.pte_table(va, &guard).expect("touched");
        pt.get(crate::table::PtGuard::<Machine>::index(va)).young()
    };
    for (what, left) in [
        (All, [false, false]),
        (Anon, [false, true]),
        (Mapped, [true, false]),
        (SoftDirty, [true, true]),
    ] {
        w.write(anon, 1);
        w.write(file, 1);
        // Quietly: a CPU that speculates uses pages, too.
        w.sim.quietly(|| {
            clear(&w, what);
            assert_eq!([anon, file].map(young), left, "{what:?}");
        });
    }
    w.unmap(anon, P);
    w.unmap(file, P);
    drop(object);
    w.finish();
}

mod locked {
    //! mlock, populate: what is locked, what is there, what is counted (SPEC POP-1 to POP-6, FAULT-12, BUG-19).

    use super::*;
    use crate::phys::lru::List;
    use crate::space::VmaFlags;

    fn lock(w: &World, at: u64, len: u64) -> Result<(), Errno> {
        ops::mlock(&w.space, &mut w.sim.can_wait(), at, len, 0)
    }
    fn unlock(w: &World, at: u64, len: u64) {
        ops::munlock(&w.space, &mut w.sim.can_wait(), at, len).expect("unlocked");
    }
    fn unevictable(w: &World) -> u64 {
        w.sim.phys().lru.count(w.sim, List::Unevictable)
    }
    fn locked_vm(w: &World) -> u64 {
        w.space.counts.locked_vm.load(Relaxed)
    }
    fn advise(w: &World, at: u64, len: u64, what: u32) -> Result<(), Errno> {
        ops::madvise(&w.space, &mut w.sim.can_wait(), at, len, what)
    }
    /// Pages that are there, as (pages, writable ones).
    fn present(w: &World, at: u64, pages: u64) -> (u64, u64) {
        let mut wait = w.sim.can_wait();
        let g = w.space.mmap_read(&mut wait);
        let mut n = (0, 0);
        for va in (at..at + pages * P).step_by(P as usize) {
            if let Some(pt) = w.space.tables.pte_table(va, &g) {
                let e = pt.get(crate::table::PtGuard::<Machine>::index(va));
                n.0 += u64::from(e.present());
                n.1 += u64::from(e.present() && e.writable());
            }
        }
        n
    }

    #[test]
    fn pop_3_locked_pages_are_unevictable_until_the_last_lock_goes() {
        let mut w = World::new();
        let a = w.map(700 * P);
        for i in 0..20 {
            w.write(a + i * P, 1);
        }
        lock(&w, a, 700 * P).expect("locked");
        assert_eq!(present(&w, a, 700), (700, 700), "POP-1: writable now");
        assert_eq!((unevictable(&w), locked_vm(&w)), (700, 700));
        lock(&w, a, 700 * P).expect("once more is nothing more");
        assert_eq!((unevictable(&w), locked_vm(&w)), (700, 700));
        unlock(&w, a + 100 * P, 100 * P);
        assert_eq!((unevictable(&w), locked_vm(&w)), (600, 600));
        // A child shares the pages and locks none; its own lock takes copies (POP-1) or, of what only is read, counts.
        let child = w.fork().expect("forked");
        assert_eq!(child.counts.locked_vm.load(Relaxed), 0);
        w.in_space(&child, |c| {
            assert_eq!(unevictable(c), 600);
            c.protect(a, 10 * P, sys::PROT_READ).expect("read only");
            lock(c, a, 20 * P).expect("locked");
            assert_eq!(present(c, a, 20), (20, 10));
            assert_eq!(unevictable(c), 610, "ten are shared and locked twice");
        });
        unlock(&w, a, 10 * P);
        assert_eq!(unevictable(&w), 610, "the child still locks them");
        ops::exit(&child, &mut w.sim.can_wait());
        drop(child);
        assert_eq!(unevictable(&w), 590);
        // A copy on write takes the lock over.
        let child = w.fork().expect("forked");
        for i in 0..700 {
            w.write(a + i * P, 2);
        }
        assert_eq!(unevictable(&w), 590);
        ops::exit(&child, &mut w.sim.can_wait());
        drop(child);
        w.unmap(a + 300 * P, 100 * P);
        assert_eq!((unevictable(&w), locked_vm(&w)), (490, 490));
        assert_eq!(
            advise(&w, a + 20 * P, P, sys::MADV_DONTNEED),
            Err(Errno::EINVAL)
        );
        advise(&w, a + 20 * P, P, sys::MADV_DONTNEED_LOCKED).expect("dropped");
        assert_eq!((unevictable(&w), locked_vm(&w)), (489, 490));
        assert_eq!(w.read(a + 20 * P), 0);
        assert_eq!(unevictable(&w), 489, "nobody locks the zero page");
        w.write(a + 20 * P, 1);
        assert_eq!(unevictable(&w), 490);
        let b = mremap(&w, a + 400 * P, 300 * P, 600 * P);
        assert_eq!((unevictable(&w), locked_vm(&w)), (790, 790));
        assert_eq!(present(&w, b, 600), (600, 600), "growth is brought in");
        // What is moved away from is left mapped, and locks nothing any more.
        let flags = sys::MREMAP_MAYMOVE | sys::MREMAP_DONTUNMAP;
        let args = MremapArgs {
            addr: b,
            old_len: 600 * P,
            new_len: 600 * P,
            flags,
            new_addr: 0,
        };
        let c = ops::mremap(&w.space, &mut w.sim.can_wait(), args).expect("moved");
        assert_eq!((unevictable(&w), locked_vm(&w)), (790, 790));
        w.write(b, 1);
        assert_eq!(unevictable(&w), 790, "the old place is locked no more");
        unlock(&w, c, 600 * P);
        assert_eq!((unevictable(&w), locked_vm(&w)), (190, 190));
        let sim = w.sim;
        w.finish();
        assert_eq!(sim.phys().lru.count(sim, List::Unevictable), 0);
    }

    fn mremap(w: &World, addr: u64, old_len: u64, new_len: u64) -> u64 {
        let args = MremapArgs {
            addr,
            old_len,
            new_len,
            flags: sys::MREMAP_MAYMOVE,
            new_addr: 0,
        };
        ops::mremap(&w.space, &mut w.sim.can_wait(), args).expect("moved")
    }

    #[test]
    fn pop_3_pages_of_files_are_counted_once_for_each_lock() {
        let w = World::new();
        let object = FileObject::new(w.sim).expect("memory");
        object.extend(64 * P);
        let a = w.map_file(&object, 64 * P, sys::MAP_SHARED);
        let b = w.map_file(&object, 64 * P, sys::MAP_SHARED);
        lock(&w, a, 64 * P).expect("locked");
        lock(&w, b, 32 * P).expect("locked");
        assert_eq!((unevictable(&w), locked_vm(&w)), (64, 96));
        unlock(&w, a, 64 * P);
        assert_eq!(unevictable(&w), 32);
        // Truncation finds them by the file's list, and mapped for locked memory they come back locked.
        let mut wait = w.sim.can_wait();
        object.set_size(&mut wait, 8 * P);
        assert_eq!(unevictable(&w), 8);
        object.set_size(&mut wait, 16 * P);
        w.read(b + 9 * P);
        assert_eq!(unevictable(&w), 9);
        object.punch_hole(&mut wait, 0, 4 * P);
        assert_eq!(unevictable(&w), 5);
        assert_eq!(lock(&w, b, 64 * P), Err(Errno::ENOMEM), "beyond the end");
        w.unmap(b, 64 * P);
        assert_eq!(unevictable(&w), 0);
        drop(object);
        w.finish();
    }

    #[test]
    fn a_lock_fails_within_limits_and_leaves_the_space_as_it_was() {
        let w = World::new();
        w.space.limits.memlock.store(64 * P, Relaxed);
        let a = w.map(100 * P);
        assert_eq!(lock(&w, a, 65 * P), Err(Errno::ENOMEM));
        assert_eq!((locked_vm(&w), present(&w, a, 100)), (0, (0, 0)));
        lock(&w, a, 64 * P).expect("as much as allowed");
        lock(&w, a + 32 * P, 32 * P).expect("what is locked does not count twice");
        assert_eq!(lock(&w, a + 32 * P, 33 * P), Err(Errno::ENOMEM));
        let mut args = World::args(0, P, RW, ANON | sys::MAP_LOCKED);
        assert_eq!(w.mmap(args).err(), Some(Errno::EAGAIN));
        unlock(&w, a, P);
        args = World::args(0, P, RW, ANON | sys::MAP_LOCKED);
        let b = w.mmap(args).expect("one page");
        assert_eq!(present(&w, b, 1), (1, 1));
        let all = |flags| ops::mlockall(&w.space, &mut w.sim.can_wait(), flags);
        assert_eq!(all(sys::MCL_CURRENT), Err(Errno::ENOMEM));
        all(sys::MCL_FUTURE).expect("promised");
        let heap = |to| ops::brk(&w.space, &mut w.sim.can_wait(), to);
        assert_eq!(heap(0x1000_0000 + P), 0x1000_0000, "no room for the heap");
        unlock(&w, a, 8 * P);
        assert_eq!(heap(0x1000_0000 + P), 0x1000_0000 + P);
        assert_eq!(present(&w, 0x1000_0000, 1), (1, 1));
        w.space.limits.memlock.store(0, Relaxed);
        assert_eq!(all(sys::MCL_CURRENT), Err(Errno::EPERM));
        assert_eq!(lock(&w, a, 0), Err(Errno::EPERM));
        w.space.limits.memlock.store(u64::MAX, Relaxed);
        ops::munlockall(&w.space, &mut w.sim.can_wait()).expect("unlocked");
        assert_eq!((unevictable(&w), locked_vm(&w)), (0, 0));
        // Every frame that could be missing: EAGAIN, or (for want of a VMA) ENOMEM; what was locked can be unlocked.
        for n in 1..40 {
            w.sim.phys().fail_after(n);
            let locked = lock(&w, a + 10 * P, 20 * P);
            w.sim.phys().fail_after(0);
            assert!(
                matches!(locked, Ok(()) | Err(Errno::EAGAIN | Errno::ENOMEM)),
                "{locked:?}"
            );
            unlock(&w, a, 100 * P);
            assert_eq!((unevictable(&w), locked_vm(&w)), (0, 0));
            advise(&w, a, 100 * P, sys::MADV_DONTNEED).expect("dropped");
        }
        w.finish();
    }

    #[test]
    fn pop_1_whatever_can_be_accessed_at_all_is_populated() {
        let w = World::new();
        for prot in 1..8 {
            let a = w.mmap(World::args(0, 4 * P, prot, ANON)).expect("mapped");
            lock(&w, a, 4 * P).expect("any permission will do");
            let writable = u64::from(prot & sys::PROT_WRITE != 0) * 4;
            assert_eq!(present(&w, a, 4), (4, writable), "prot {prot}");
        }
        let a = w.mmap(World::args(0, 4 * P, 0, ANON)).expect("mapped");
        assert_eq!(lock(&w, a, 4 * P), Err(Errno::ENOMEM), "EFAULT inside");
        assert_eq!(present(&w, a, 4), (0, 0));
        // VMA-10: a key that the thread may not use is as good as no permission.
        let b = w.map(4 * P);
        let mut wait = w.sim.can_wait();
        {
            let mut g = w.space.mmap_write(&mut wait);
            let r = crate::addr::UserRange::new(b, b + 4 * P).expect("a range");
            g.change(r, |v| v.flags().with_key(3)).expect("changed");
        }
        w.sim.set_pkru(3 << 6);
        assert_eq!(lock(&w, b, 4 * P), Err(Errno::ENOMEM));
        assert_eq!(
            advise(&w, b, P, sys::MADV_POPULATE_READ),
            Err(Errno::EINVAL)
        );
        assert_eq!(present(&w, b, 4), (0, 0));
        w.sim.set_pkru(0);
        w.finish();
    }

    #[test]
    fn fault_12_a_dying_thread_brings_no_page_in() {
        use crate::hw::Cpu;
        let w = World::new();
        let a = w.map(20 * P);
        let me = w.sim.waiter();
        crate::sim::park::set_killed(me, true);
        assert_eq!(lock(&w, a, 20 * P), Err(Errno::EINTR));
        assert_eq!(
            advise(&w, a, 20 * P, sys::MADV_POPULATE_WRITE),
            Err(Errno::EINTR)
        );
        let b = w
            .mmap(World::args(0, 20 * P, RW, ANON | sys::MAP_POPULATE))
            .expect("mapped");
        crate::sim::park::set_killed(me, false);
        assert_eq!((present(&w, a, 20), present(&w, b, 20)), ((0, 0), (0, 0)));
        w.finish();
    }

    /// Entries come and go on four CPUs while locks do; what counts them must end at nothing.
    #[test]
    fn pop_3_counts_are_exact_whoever_races_with_whom() {
        let sim = Sim::new(Config {
            cpus: 4,
            threads: true,
            frames: 1 << 14,
            ..Config::default()
        })
        .on(0);
        let space = AddressSpace::new(sim).expect("memory");
        space.layout.mmap_base.store(0x7fff_0000_0000, Relaxed);
        let enter = move |cpu: usize, space: &Arc<AddressSpace<Machine>>| {
            sim.on(cpu);
            World::load(sim, space);
            World {
                sim,
                space: space.clone(),
                free_at_start: 0,
            }
        };
        let object = FileObject::new(sim).expect("memory");
        object.extend(64 * P);
        let (anon, file) = {
            let w = enter(0, &space);
            let at = (w.map(64 * P), w.map_file(&object, 64 * P, sys::MAP_SHARED));
            World::unload(sim, &space);
            at
        };
        let threads: std::vec::Vec<_> = (0..4u64)
            .map(|me| {
                let (space, object) = (space.clone(), object.clone());
                std::thread::spawn(move || {
                    let mut w = enter(me as usize, &space);
                    for round in 0..300 {
                        let at = (round * 7 + me * 13) % 48 * P;
                        match me {
                            0 => {
                                let _ = lock(&w, anon + at, 16 * P);
                                let _ = lock(&w, file + at, 16 * P);
                                unlock(&w, anon + (at + 32 * P) % (48 * P), 16 * P);
                            }
                            1 => {
                                let wait = &mut sim.can_wait();
                                object.set_size(wait, at + P);
                                object.set_size(wait, 64 * P);
                                let _ = ops::mlock(&space, wait, file + at, P, sys::MLOCK_ONFAULT);
                                unlock(&w, file + at, 3 * P);
                            }
                            2 => {
                                advise(&w, anon + at, 8 * P, sys::MADV_DONTNEED_LOCKED)
                                    .expect("dropped");
                                for i in 0..16 {
                                    let _ = w.try_access(anon + at + i * P, Want::Write);
                                    let _ = w.try_access(file + at + i * P, Want::Write);
                                }
                            }
                            _ => {
                                let child = w.fork().expect("forked");
                                w.in_space(&child, |c| {
                                    let _ = lock(c, anon + at, 4 * P);
                                    let _ = lock(c, file + at, 4 * P);
                                });
                                ops::exit(&child, &mut sim.can_wait());
                                w.protect(anon + at, 2 * P, sys::PROT_READ).expect("read");
                                w.protect(anon + at, 2 * P, RW).expect("write");
                            }
                        }
                    }
                    World::unload(sim, &space);
                })
            })
            .collect();
        for t in threads {
            t.join().expect("no thread panics");
        }
        sim.on(0);
        // Of what is left each page in a locked VMA counts.
        let w = enter(0, &space);
        unlock(&w, anon, 64 * P);
        unlock(&w, file, 64 * P);
        assert_eq!((unevictable(&w), locked_vm(&w)), (0, 0));
        lock(&w, anon, 64 * P).expect("locked");
        lock(&w, file, 64 * P).expect("locked");
        assert_eq!(unevictable(&w), 128);
        World::unload(sim, &space);
        ops::exit(&space, &mut sim.can_wait());
        assert_eq!(unevictable(&w), 0);
        drop((w, space));
        sim.check();
    }

    #[test]
    fn pop_3_who_lists_a_page_finds_it_locked() {
        let w = World::new();
        let frame = w.sim.phys().alloc(w.sim, crate::phys::Use::Movable);
        let folio = Folio::init_file(w.sim, frame.expect("a frame").zero(w.sim), 64, 0, true);
        folio.mlock();
        assert_eq!(unevictable(&w), 0, "on no list");
        folio.lru_add();
        assert_eq!(unevictable(&w), 1);
        let isolated = crate::phys::lru::isolate(w.sim, folio.get()).expect("listed");
        folio.munlock();
        drop(isolated);
        assert_eq!(unevictable(&w), 0, "unlocked while isolated");
        let isolated = crate::phys::lru::isolate(w.sim, folio.get()).expect("listed");
        folio.mlock();
        folio.mlock();
        drop(isolated);
        folio.munlock();
        assert_eq!(unevictable(&w), 1, "one lock is left");
        folio.munlock();
        assert_eq!(unevictable(&w), 0);
        folio.put();
        w.finish();
    }

    #[test]
    fn pop_4_locked_on_fault_waits_for_the_fault() {
        let w = World::new();
        let a = w.map(20 * P);
        w.write(a, 1);
        let mut wait = w.sim.can_wait();
        ops::mlock(&w.space, &mut wait, a, 20 * P, sys::MLOCK_ONFAULT).expect("locked");
        assert_eq!((unevictable(&w), present(&w, a, 20).0), (1, 1));
        w.write(a + 7 * P, 1);
        assert_eq!(unevictable(&w), 2);
        lock(&w, a, 20 * P).expect("locked for good");
        assert_eq!(unevictable(&w), 20);
        w.finish();
    }

    /// POP-6, LOOP-4, ADJ-2.
    #[test]
    fn pop_6_populate_says_why_it_stopped() {
        let w = World::new();
        let (read, write) = (sys::MADV_POPULATE_READ, sys::MADV_POPULATE_WRITE);
        let a = w.map(20 * P);
        w.unmap(a + 10 * P, P);
        assert_eq!(advise(&w, a, 20 * P, write), Err(Errno::ENOMEM));
        assert_eq!(present(&w, a, 20), (10, 10), "up to the hole");
        w.protect(a + 5 * P, P, sys::PROT_READ).expect("read only");
        assert_eq!(advise(&w, a, 10 * P, write), Err(Errno::EINVAL));
        advise(&w, a, 10 * P, read).expect("readable");
        let object = FileObject::new(w.sim).expect("memory");
        object.extend(4 * P);
        let f = w.map_file(&object, 8 * P, sys::MAP_SHARED);
        assert_eq!(advise(&w, f, 8 * P, read), Err(Errno::EFAULT));
        let dirty = |w: &World| {
            let mut wait = w.sim.can_wait();
            let g = w.space.mmap_read(&mut wait);
            let pt = w.space.tables.pte_table(f, &g).expect("a table");
            (0..4)
                .filter(|i| {
                    pt.get(crate::table::PtGuard::<Machine>::index(f + i * P))
                        .dirty()
                })
                .count()
        };
        assert_eq!(dirty(&w), 0);
        advise(&w, f, 4 * P, write).expect("writable");
        assert_eq!(dirty(&w), 4, "dirty, as if written");
        drop(object);
        w.finish();
    }

    #[test]
    fn pop_1_copies_are_made_of_what_is_shared() {
        let mut w = World::new();
        let a = w.map(4 * P);
        for i in 0..4 {
            w.write(a + i * P, 5);
        }
        let child = w.fork().expect("forked");
        assert_eq!(present(&w, a, 4), (4, 0));
        w.protect(a, 4 * P, sys::PROT_READ).expect("read only");
        lock(&w, a, 4 * P).expect("locked");
        assert_eq!(present(&w, a, 4), (4, 0));
        // mprotect breaks the sharing of locked memory at once.
        w.protect(a, 4 * P, RW).expect("writable");
        assert_eq!(present(&w, a, 4), (4, 4));
        w.in_space(&child, |c| assert_eq!(c.read(a), 5));
        ops::exit(&child, &mut w.sim.can_wait());
        drop(child);
        w.finish();
    }

    #[test]
    fn bug_19_populate_stays_out_of_the_gap_below_a_stack() {
        let w = World::new();
        let top = 0x7000_0000_0000;
        let args = World::args(top, 4 * P, RW, ANON | sys::MAP_FIXED | sys::MAP_GROWSDOWN);
        w.mmap(args).expect("a stack");
        let low = top - 256 * P;
        let below = World::args(low - P, P, RW, ANON | sys::MAP_FIXED);
        w.mmap(below).expect("as close as it may be");
        let before = w.space.counts.total_vm.load(Relaxed);
        ops::mlockall(&w.space, &mut w.sim.can_wait(), sys::MCL_CURRENT).expect("locked");
        assert_eq!(w.space.counts.total_vm.load(Relaxed), before);
        assert_eq!(
            (present(&w, low, 256), present(&w, top, 4)),
            ((0, 0), (4, 4))
        );
        assert_eq!(
            w.try_access(top - P, Want::Write),
            FaultResult::Segv { code: 1 }
        );
        w.unmap(low - P, P);
        // Growth of a locked stack is locked, as far as the limit goes (VMA-1).
        w.space.limits.memlock.store(6 * P, Relaxed);
        w.write(top - 2 * P, 1);
        assert_eq!(locked_vm(&w), 6);
        assert_eq!(
            w.try_access(top - 3 * P, Want::Write),
            FaultResult::Segv { code: 1 }
        );
        let mut wait = w.sim.can_wait();
        let g = w.space.mmap_read(&mut wait);
        assert!(
            g.find(top)
                .is_some_and(|v| v.flags().contains(VmaFlags::LOCKED))
        );
        drop(g);
        w.finish();
    }
}

/// VMA-10: memory gets a key at once on every CPU, keeps it through faults, rights and fork, and loses it again.
#[test]
fn keys_come_with_the_memory_and_are_asked_by_every_cpu() {
    use crate::hw::Cpu;
    use crate::ops::Key;
    let w = World::new();
    let wait = || w.sim.can_wait();
    let key_mprotect =
        |a, len, prot, key| ops::pkey_mprotect(&w.space, &mut wait(), a, len, prot, key);
    let a = w.map(4 * P);
    w.write(a, 1);
    w.read(a + P);
    let key = ops::pkey_alloc(&w.space, &mut wait()).expect("a key");
    assert_eq!(key, 1);
    w.sim.set_pkru(1 << (2 * key));
    assert!(w.sim.pkey_allows(0, true) && !w.sim.pkey_allows(key, false));
    assert_eq!(key_mprotect(a, P, RW, Key::Named(5)), Err(Errno::EINVAL));
    assert_eq!(key_mprotect(a, 2 * P, RW, Key::Named(1)), Ok(()));
    w.sim.check_no_stale();
    let refused = |va, want| {
        let f = w.sim.touch(va, want, 0).expect_err("refused");
        (f.present, f.key)
    };
    for va in [a, a + P] {
        assert_eq!(refused(va, Want::Read), (true, true));
    }
    // Writes only: the copy on write happens, and has the key.
    w.sim.set_pkru(2 << (2 * key));
    assert_eq!(w.read(a), 1);
    assert_eq!(refused(a, Want::Write), (true, true));
    w.sim.set_pkru(0);
    let child = w.fork().expect("forked");
    w.write(a, 2);
    w.write(a + P, 2);
    w.protect(a, 4 * P, sys::PROT_READ).expect("protected");
    w.protect(a, 4 * P, RW).expect("protected");
    w.sim.set_pkru(1 << (2 * key));
    for va in [a, a + P] {
        assert_eq!(refused(va, Want::Read), (true, true));
    }
    assert_eq!(w.read(a + 2 * P), 0);
    // The child's memory and keys are the parent's.
    {
        let mut wait = w.sim.can_wait();
        let guard = child.mmap_read(&mut wait);
        assert_eq!(guard.find(a).expect("copied").flags().key(), key);
        let table = child.tables.pte_table(a, &guard).expect("copied");
        let entry = table.get(crate::table::PtGuard::<Machine>::index(a));
        assert_eq!(entry.key(), key);
    }
    assert_eq!(ops::pkey_free(&child, &mut wait(), 1), Ok(()));
    assert_eq!(ops::pkey_free(&child, &mut wait(), 1), Err(Errno::EINVAL));
    ops::exit(&child, &mut wait());
    drop(child);
    assert_eq!(key_mprotect(a, 2 * P, RW, Key::Named(0)), Ok(()));
    assert_eq!((w.read(a), w.read(a + P)), (2, 2));
    w.sim.set_pkru(0);
    w.unmap(a, 4 * P);
    w.finish();
}

/// Execute-only memory has a key that no program can name, and gives it up with the first other right.
#[test]
fn execute_only_memory_has_a_key_of_its_own() {
    use crate::ops::Key;
    let w = World::new();
    let wait = || w.sim.can_wait();
    let a = w.map(P);
    let key_of = |va| {
        w.space
            .mmap_read(&mut wait())
            .find(va)
            .map(|v| v.flags().key())
    };
    let exec = ops::exec_only_key(&w.space, &mut wait()).expect("a key");
    assert_eq!(ops::exec_only_key(&w.space, &mut wait()), Some(exec));
    let only = |prot, key| ops::pkey_mprotect(&w.space, &mut wait(), a, P, prot, key);
    assert_eq!(
        only(sys::PROT_EXEC, Key::Named(exec as i32)),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        ops::pkey_free(&w.space, &mut wait(), exec as i32),
        Err(Errno::EINVAL)
    );
    assert_eq!(only(sys::PROT_EXEC, Key::ExecOnly(exec)), Ok(()));
    assert_eq!(key_of(a), Some(exec));
    assert_eq!(only(sys::PROT_READ, Key::Same), Ok(()));
    assert_eq!(key_of(a), Some(0));
    // A named key stays when the memory becomes execute-only and back.
    let named = ops::pkey_alloc(&w.space, &mut wait()).expect("a key");
    assert_eq!(only(RW, Key::Named(named as i32)), Ok(()));
    assert_eq!(only(sys::PROT_EXEC, Key::Same), Ok(()));
    assert_eq!(only(RW, Key::Same), Ok(()));
    assert_eq!(key_of(a), Some(named));
    let more = (0..20).filter(|_| ops::pkey_alloc(&w.space, &mut wait()).is_ok());
    assert_eq!(more.count(), 13);
    w.unmap(a, P);
    w.finish();
}

/// What a core file of `len` bytes from `at` would hold: pages by offset, with their first byte.
fn dumped(w: &World, at: u64, len: u64) -> Vec<(u64, u8)> {
    let mut pages = Vec::new();
    let (mut va, end) = (at, at + len);
    let mut byte = [0];
    loop {
        va = ops::coredump::next(&w.space, &mut w.sim.can_wait(), va, end);
        if va == end {
            return pages;
        }
        if ops::coredump::page(&w.space, &mut w.sim.can_wait(), va, &mut byte) {
            pages.push((va - at, byte[0]));
        }
        va += P;
    }
}

/// DUMP-1, DUMP-2: a dump finds what was written, even without rights, faults untouched pages of files in, and takes
/// neither a frame nor a table for what was never touched.
#[test]
fn a_dump_costs_nothing_for_holes() {
    let w = World::new();
    let (gib, mid) = (1 << 30, (512 << 20) + 5 * P);
    let kind = sys::MAP_PRIVATE | sys::MAP_ANONYMOUS | sys::MAP_NORESERVE;
    let a = w.mmap(World::args(0, gib, RW, kind)).expect("mapped");
    w.write(a + mid, 7);
    assert_eq!(w.read(a + mid + P), 0);
    assert_eq!(w.read(a + 3 * PMD_SIZE), 0);
    let child = w.fork().expect("memory");
    let before = w.free();
    let mut all = Vec::new();
    for part in (0..gib).step_by(256 << 20) {
        all.extend(
            dumped(&w, a + part, 256 << 20)
                .iter()
                .map(|&(at, b)| (part + at, b)),
        );
    }
    // The zero page is a hole, and what is shared since the fork is read where it is.
    assert_eq!(all, [(mid, 7)]);
    assert_eq!(w.free(), before, "frames");
    ops::exit(&child, &mut w.sim.can_wait());
    drop(child);
    w.protect(a, gib, sys::PROT_NONE).expect("protected");
    assert_eq!(dumped(&w, a + mid, 2 * P), [(0, 7)]);
    w.unmap(a, gib);
    let object = FileObject::new(w.sim).expect("memory");
    object.extend(2 * P);
    let b = w.map_file(&object, 3 * P, sys::MAP_PRIVATE);
    assert_eq!(dumped(&w, b, 3 * P), [(0, 0), (P, 0)]);
    w.unmap(b, 3 * P);
    drop(object);
    w.finish();
}

/// VMA-11: secret memory is mapped shared, locked, not to be dumped; a frame comes back to the direct map whoever
/// drops it last, a mapping's entry too.
#[test]
fn secret_memory_comes_back_with_its_last_holder() {
    use crate::space::VmaFlags;
    let w = World::new();
    let object = FileObject::new_secret(w.sim);
    object.extend(4 * P);
    let file = |kind, prot| {
        let mut a = World::args(0, 4 * P, prot, kind);
        a.file = Some(FileMap {
            object: object.clone(),
            pgoff: 0,
            readable: true,
            writable: true,
            append: false,
            executable: true,
        });
        w.mmap(a)
    };
    assert_eq!(file(sys::MAP_PRIVATE, RW), Err(Errno::EINVAL));
    let exec = RW | sys::PROT_EXEC;
    assert_eq!(file(sys::MAP_SHARED, exec), Err(Errno::EPERM));
    let a = file(sys::MAP_SHARED, RW).expect("mapped");
    let flags = w
        .space
        .mmap_read(&mut w.sim.can_wait())
        .find(a)
        .expect("mapped")
        .flags();
    assert!(flags.is_secret() && flags.contains(VmaFlags::LOCKED | VmaFlags::DONTDUMP));
    assert_eq!(object.pages(), 0, "nothing is touched ahead");
    w.write(a, 7);
    w.write(a + 3 * P, 9);
    assert_eq!((w.read(a), w.read(a + 3 * P)), (7, 9));
    // The cache lets go of one page before its entry does.
    let mut out = [const { None }; 1];
    assert_eq!(object.evict_some(0, 1, |_| true, &mut out), 1);
    drop(out);
    drop(object);
    w.unmap(a, 4 * P);
    w.finish();
}
