//! The simulated machine itself: it must catch what it claims to catch.

use mm::hw::{Cpu, FlushRange};
use mm::phys::{Hw, Use};
use mm::sim::mmu::Want;
use mm::sim::{Config, Machine, Mutation, Sim};
use mm::table::{
    LeafBits, MayFree, MayInstall, PtGuard, Pte, StableVma, Tables, TlbBatch, TlbState,
};
use mm::{CanWait, Pfn};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const VA: u64 = 0x40_0000;

/// These tests hold no lock, and nobody else is there.
struct Alone;
// SAFETY: one test thread changes the tables at a time.
unsafe impl<H: Hw> StableVma<H> for Alone {}
// SAFETY: as above.
unsafe impl<H: Hw> MayInstall<H> for Alone {}
// SAFETY: as above.
unsafe impl<H: Hw> MayFree<H> for Alone {}

struct Space {
    sim: Machine,
    tables: Tables<Machine>,
    tlb: TlbState,
}

impl Space {
    fn new(sim: Machine, id: u64) -> Self {
        let tables = Tables::new(sim).unwrap();
        let tlb = TlbState::new(tables.root(), id);
        Self { sim, tables, tlb }
    }
    /// The calling CPU switches to the space, as `AddressSpace` does.
    fn enter(&self) {
        let saved = self.sim.irq_save();
        self.tlb.cpus.insert(self.sim.cpu());
        self.sim
            .load_root(self.tlb.root(), self.tlb.id(), self.tlb.generation());
        self.sim.set_lazy(false);
        self.sim.irq_restore(saved);
    }
    fn leave(&self) {
        let saved = self.sim.irq_save();
        self.sim.load_kernel_root();
        self.tlb.cpus.remove(self.sim.cpu());
        self.sim.irq_restore(saved);
    }
    fn map(&self, va: u64, write: bool) -> Pfn {
        let f = self
            .sim
            .phys()
            .alloc(self.sim, Use::Movable)
            .unwrap()
            .zero(self.sim);
        let pfn = f.into_pfn();
        let mut g = self.tables.pte_table_alloc(va, &Alone).unwrap();
        g.install(
            PtGuard::<Machine>::index(va),
            Pte::leaf(pfn, LeafBits::user(true, write, false)),
        );
        pfn
    }
    fn take(&self, va: u64) -> Pte {
        let mut g = self.tables.pte_table(va, &Alone).unwrap();
        g.take(PtGuard::<Machine>::index(va))
    }
    /// Unmaps one page and its tables.
    fn unmap(&self, wait: &CanWait<Machine>, va: u64) {
        let mut b = TlbBatch::begin(wait, &self.tlb);
        let old = self.take(va);
        b.note(va, va + 4096);
        b.retire_folio(old.pfn());
        self.tables
            .free_tables((va, va + 4096), (0, mm::USER_END), &mut b, &Alone);
    }
}

fn quiet(cpus: usize) -> Machine {
    Sim::new(Config {
        cpus,
        mischief: 0,
        ..Config::default()
    })
}

#[test]
fn a_cleared_entry_is_still_used_until_it_is_flushed() {
    let sim = quiet(2);
    let s = Space::new(sim.on(0), 1);
    s.map(VA, true);
    for cpu in [0, 1] {
        sim.on(cpu);
        s.enter();
        assert_eq!(sim.touch(VA, Want::Write, 7), Ok([0, 7][cpu]));
    }
    s.take(VA);
    assert_eq!(sim.touch(VA, Want::Read, 0), Ok(7), "the CPU remembers");
    assert!(sim.find_stale().unwrap().contains("nothing is mapped"));
    let wait = sim.on(0).can_wait();
    s.tlb.flush(
        &wait,
        FlushRange::Pages {
            start: VA,
            end: VA + 4096,
        },
    );
    assert_eq!(sim.find_stale(), None);
    for cpu in [0, 1] {
        let f = sim.on(cpu).touch(VA, Want::Read, 0).unwrap_err();
        assert!(!f.present);
    }
    sim.check();
}

/// What a batch is told may come in any order.
#[test]
fn a_batch_flushes_all_that_it_was_told() {
    let sim = quiet(1);
    let s = Space::new(sim.on(0), 1);
    s.enter();
    for pages in [[0, 5], [5, 0]] {
        for page in pages {
            s.map(VA + page * 4096, true);
            sim.touch(VA + page * 4096, Want::Write, 7).unwrap();
        }
        let wait = sim.can_wait();
        let mut batch = TlbBatch::begin(&wait, &s.tlb);
        for page in pages {
            let va = VA + page * 4096;
            let old = s.take(va);
            batch.note(va, va + 4096);
            let _ = batch.retire_folio(old.pfn());
        }
        batch.flush();
        drop(batch);
        assert_eq!(sim.find_stale(), None);
    }
    sim.check();
}

#[test]
fn the_walker_marks_accessed_and_dirty_by_itself() {
    let sim = quiet(1);
    let s = Space::new(sim.on(0), 1);
    let f = sim
        .phys()
        .alloc(sim, Use::Movable)
        .unwrap()
        .zero(sim)
        .into_pfn();
    let i = PtGuard::<Machine>::index(VA);
    let clean = Pte::leaf(f, LeafBits::user(true, true, false)).without(mm::table::pte::bit::A);
    s.tables
        .pte_table_alloc(VA, &Alone)
        .unwrap()
        .install(i, clean);
    s.enter();
    sim.touch(VA, Want::Read, 0).unwrap();
    let e = s.tables.pte_table(VA, &Alone).unwrap().get(i);
    assert!(e.young() && !e.dirty());
    sim.touch(VA, Want::Write, 1).unwrap();
    assert!(s.tables.pte_table(VA, &Alone).unwrap().get(i).dirty());
    sim.check();
}

#[test]
fn freeing_a_frame_before_the_flush_is_caught() {
    let sim = quiet(2);
    let s = Space::new(sim.on(0), 1);
    let pfn = s.map(VA, true);
    sim.on(1);
    s.enter();
    sim.touch(VA, Want::Read, 0).unwrap();
    sim.on(0);
    s.take(VA);
    mm::phys::Folio::new(sim, pfn).put();
    assert!(sim.violation().unwrap().contains("is freed while CPU 1"));
    sim.on(1).touch(VA, Want::Read, 0).unwrap();
}

#[test]
fn a_table_whose_upper_entry_is_still_kept_may_not_be_freed() {
    for whole in [true, false] {
        let sim = quiet(2);
        let s = Space::new(sim.on(0), 1);
        s.map(VA, true);
        sim.on(1);
        s.enter();
        sim.touch(VA, Want::Read, 0).unwrap();
        let wait = sim.on(0).can_wait();
        if !whole {
            // Learn the place from a run that does nothing, then let it forget leaves only.
            let t = Space::new(sim, 2);
            t.map(VA, true);
            t.unmap(&wait, VA);
            let (site, used) = sim.sites().into_iter().next().unwrap();
            assert!(used.all > 0);
            sim.mutate(Some(Mutation::KeepUppers(site)));
        }
        s.unmap(&wait, VA);
        match sim.violation() {
            None => assert!(whole),
            Some(v) => assert!(!whole && v.contains("keeps a table"), "{v}"),
        }
    }
}

#[test]
fn every_frame_comes_back() {
    let sim = quiet(2);
    sim.on(0);
    let wait = sim.can_wait();
    let before = (sim.phys().free_frames(sim), sim.ram().living());
    let mut s = Space::new(sim, 1);
    s.enter();
    for i in 0..600 {
        s.map(VA + i * 4096, true);
        sim.touch(VA + i * 4096, Want::Write, i as u8).unwrap();
    }
    for i in 0..600 {
        assert_eq!(sim.touch(VA + i * 4096, Want::Read, 0), Ok(i as u8));
        s.unmap(&wait, VA + i * 4096);
    }
    s.leave();
    // SAFETY: everything was unmapped, and the only CPU has left.
    unsafe { s.tables.destroy() };
    sim.check();
    assert_eq!(before, (sim.phys().free_frames(sim), sim.ram().living()));
}

#[test]
fn tags_keep_entries_apart_and_a_missed_flush_is_made_up_for() {
    for trust in [false, true] {
        let sim = quiet(2);
        sim.on(0);
        let (a, b) = (Space::new(sim, 1), Space::new(sim, 2));
        a.map(VA, true);
        b.map(VA, true);
        a.enter();
        sim.touch(VA, Want::Write, 0xa).unwrap();
        a.leave();
        b.enter();
        assert_eq!(sim.touch(VA, Want::Write, 0xb), Ok(0));
        b.leave();
        // While this CPU is away, another one unmaps: no shootdown reaches us.
        let wait = sim.on(1).can_wait();
        a.unmap(&wait, VA);
        assert_eq!(sim.violation(), None);
        sim.on(0);
        sim.mutate(trust.then_some(Mutation::TrustTags));
        a.enter();
        let r = sim.touch(VA, Want::Read, 0);
        if trust {
            assert!(sim.violation().unwrap().contains("after it was freed"));
        } else {
            r.unwrap_err();
            sim.check();
        }
    }
}

#[test]
fn a_lazy_cpu_leaves_before_it_acknowledges() {
    let sim = quiet(2);
    let s = Space::new(sim.on(0), 1);
    s.map(VA, true);
    sim.on(1);
    s.enter();
    sim.touch(VA, Want::Read, 0).unwrap();
    sim.set_lazy(true);
    let wait = sim.on(0).can_wait();
    s.unmap(&wait, VA);
    assert_eq!(s.tlb.cpus.load(), 0);
    assert_eq!(sim.on(1).loaded_root(), sim.kernel_root());
    sim.check();
}

/// BUG-9, FAST-2: who has interrupts off acknowledges nothing, so a table that it may be reading stays.
#[test]
fn a_table_is_not_freed_while_a_lockless_reader_is_in_it() {
    let sim = Sim::new(Config {
        cpus: 2,
        threads: true,
        ..Config::default()
    });
    let s = Space::new(sim.on(0), 1);
    s.map(VA, true);
    let (inside, unmapped) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sim.on(1);
            s.enter();
            sim.touch(VA, Want::Read, 0).unwrap();
            let mut wait = sim.can_wait();
            let irq = wait.irq_off();
            let living = sim.ram().living();
            inside.store(true, Ordering::SeqCst);
            // Until the other CPU waits for us, and a little longer.
            while sim.shootdowns().1 == 0 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            assert!(!unmapped.load(Ordering::SeqCst), "freed under a reader");
            assert_eq!(living, sim.ram().living());
            drop(irq);
        });
        scope.spawn(|| {
            let wait = sim.on(0).can_wait();
            while !inside.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            s.unmap(&wait, VA);
            unmapped.store(true, Ordering::SeqCst);
        });
    });
    sim.check();
    assert_eq!(sim.shootdowns(), (1, 1));
}

#[test]
#[should_panic(expected = "awaited with interrupts off")]
fn waiting_for_acknowledgements_with_interrupts_off_is_caught() {
    let sim = quiet(2);
    let s = Space::new(sim.on(0), 1);
    let wait = sim.can_wait();
    sim.on(1);
    s.enter();
    sim.on(0).irq_save();
    s.tlb.flush(&wait, FlushRange::All);
    sim.check();
}

#[test]
fn a_double_free_is_caught() {
    let sim = quiet(1);
    sim.on(0);
    let f = sim.phys().alloc(sim, Use::Kernel).unwrap();
    let d = sim.desc(f.pfn());
    let twin = mm::phys::Folio::new(sim, f.pfn());
    sim.phys().free(sim, f);
    d.refs.store(1, std::sync::atomic::Ordering::Relaxed);
    twin.put();
    assert!(sim.violation().unwrap().contains("freed twice"));
}
