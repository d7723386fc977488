//! Faults against truncation and hole punching, on three CPUs: whatever the order, a page that left the file
//! leaves every address space, and every frame comes back (object/cache.rs, rules 1 to 4).

use mm::fault::{self, Access, Fault, FaultResult};
use mm::hw::Cpu;
use mm::object::FileObject;
use mm::ops::{self, FileMap, MmapArgs};
use mm::phys::{Folio, Hw, slab};
use mm::sim::mmu::{PageFault, Want};
use mm::sim::{Config, Machine, Sim};
use mm::space::{AddressSpace, RssKind};
use mm::table::PtGuard;
use mm::{CanWait, UserRange};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

const P: u64 = 4096;
const PAGES: u64 = 24;
const MAP_SHARED: u32 = 1;
const MAP_PRIVATE: u32 = 2;

fn load(sim: Machine, space: &AddressSpace<Machine>) {
    space.activate(&sim.can_wait().irq_off());
    sim.set_lazy(false);
}

fn unload(sim: Machine, space: &AddressSpace<Machine>) {
    let mut wait = sim.can_wait();
    let irq = wait.irq_off();
    sim.load_kernel_root();
    space.leave(&irq);
    drop(irq);
    sim.set_lazy(true);
}

fn trap(sim: Machine, space: &AddressSpace<Machine>, f: PageFault) -> FaultResult {
    let access = match f.want {
        Want::Read => Access::Read,
        Want::Write => Access::Write,
        Want::Exec => Access::Exec,
    };
    let fault = Fault {
        va: f.va,
        access,
        user: true,
        present: f.present,
    };
    fault::user_fault(space, &mut sim.can_wait(), fault)
}

fn map(
    sim: Machine,
    space: &AddressSpace<Machine>,
    o: &Arc<FileObject<Machine>>,
    flags: u32,
) -> u64 {
    let file = FileMap {
        object: o.clone(),
        pgoff: 0,
        readable: true,
        writable: true,
        append: false,
        executable: true,
    };
    let args = MmapArgs {
        addr: 0,
        len: PAGES * P,
        prot: 3,
        flags,
        file: Some(file),
    };
    ops::mmap(space, &mut sim.can_wait(), args).expect("mapped")
}

/// With faults kept out: what is mapped and not a private copy is in the cache.
fn mapped_pages_are_the_files(
    space: &AddressSpace<Machine>,
    wait: &mut CanWait<Machine>,
    o: &FileObject<Machine>,
    bases: &[u64],
) {
    let guard = space.mmap_write(wait);
    for &base in bases {
        guard.write_lock_range(UserRange::from_len(base, PAGES * P).unwrap());
        for i in 0..PAGES {
            let Some(table) = space.tables.pte_table(base + i * P, &guard) else {
                continue;
            };
            let pte = table.get(PtGuard::<Machine>::index(base + i * P));
            let folio = Folio::new(space.hw(), pte.pfn());
            if pte.present() && !pte.special() && !folio.is_anon() {
                assert!(o.owns(folio, i), "page {i} is mapped and not the file's");
            }
        }
    }
}

/// Ends the other threads, also when this one fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn a_truncated_page_is_mapped_nowhere() {
    let sim = Sim::new(Config {
        cpus: 3,
        threads: true,
        frames: 2048,
        ..Config::default()
    })
    .on(0);
    slab::shrink(sim);
    let free = sim.phys().free_frames(sim);
    let o = FileObject::new(sim).unwrap();
    o.set_size(&mut sim.can_wait(), PAGES * P);
    let space = AddressSpace::new(sim).unwrap();
    space.layout.mmap_base.store(0x7fff_0000_0000, SeqCst);
    let shared = map(sim, &space, &o, MAP_SHARED);
    let private = map(sim, &space, &o, MAP_PRIVATE);
    let done = AtomicBool::new(false);
    let (hits, misses) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|s| {
        for cpu in 1..3 {
            let (space, done, hits, misses) = (&space, &done, &hits, &misses);
            s.spawn(move || {
                let sim = sim.on(cpu);
                load(sim, space);
                let mut x = cpu as u64;
                while !done.load(SeqCst) && !sim.failed() {
                    x = x
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let base = if x & 1 << 40 == 0 { shared } else { private };
                    let va = base + (x >> 33) % PAGES * P;
                    let want = if x & 1 << 41 == 0 {
                        Want::Read
                    } else {
                        Want::Write
                    };
                    loop {
                        match sim.touch(va, want, 1) {
                            Ok(_) => hits.fetch_add(1, SeqCst),
                            Err(f) => match trap(sim, space, f) {
                                FaultResult::Done { .. } => continue,
                                FaultResult::Bus { .. } => misses.fetch_add(1, SeqCst),
                                other => panic!("{other:?} at {va:#x}"),
                            },
                        };
                        break;
                    }
                }
                unload(sim, space);
            });
        }
        let sim = sim.on(0);
        let stop = Stop(&done);
        let mut wait = sim.can_wait();
        let mut x = 7u64;
        let mut round = 0;
        while round < 600 || hits.load(SeqCst) < 200 && !sim.failed() {
            round += 1;
            x = x
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let at = (x >> 33) % PAGES;
            if x & 1 << 50 == 0 {
                o.set_size(&mut wait, at * P + 1);
                // Nobody can have got a page in past the end since.
                assert!(o.next_page(at + 1).is_none());
                o.set_size(&mut wait, PAGES * P);
            } else {
                o.punch_hole(&mut wait, at * P, (at + 5) * P);
            }
            mapped_pages_are_the_files(&space, &mut wait, &o, &[shared, private]);
        }
        o.set_size(&mut wait, 0);
        drop(stop);
    });
    sim.check();
    assert!(misses.load(SeqCst) > 0, "nobody met the end of the file");
    assert_eq!(o.pages(), 0);
    assert_eq!(space.rss(RssKind::Shmem), 0);
    assert_eq!(space.rss(RssKind::Anon), 0);
    ops::exit(&space, &mut sim.can_wait());
    drop(space);
    assert_eq!(Arc::strong_count(&o), 1);
    drop(o);
    slab::shrink(sim);
    assert_eq!(sim.phys().free_frames(sim), free);
    sim.check();
}
