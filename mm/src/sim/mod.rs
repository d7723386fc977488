//! The simulated machine: memory, CPUs with misbehaving MMUs, late acknowledgements. `&'static Sim: Hw`.
//!
//! Two ways to run it.
//! - *Stepped*: one host thread plays all CPUs ([`Sim::on`]), one operation at a time. At every call
//!   through the door ([`Cpu`], [`Hw`]) the other CPUs may, by the seed, walk speculatively, use what
//!   they keep, or forget some of it: whatever real ones do between two instructions of ours.
//! - *Threads*: one host thread for each CPU ([`Sim::on`] at its beginning); races are the host's.
//!
//! An acknowledgement is an interrupt that the target takes: in either mode the sender applies it on the
//! target's behalf, under the target's lock, as soon as the target has interrupts on (and after letting
//! it use its stale entries a little longer). A target with interrupts off makes the sender wait.
//!
//! What is detected, at once and with the seed: a kept translation or walk that reaches a frame after it
//! was freed; a frame freed while a CPU can still reach it; a frame freed twice; a shootdown awaited
//! with interrupts off; and by [`Sim::check_no_stale`], whenever nothing is in flight: any kept
//! translation that says more than the tables.

pub mod hooks;
pub mod ipi;
pub mod mmu;
pub mod mutate;
pub mod park;
pub mod ram;
pub mod rng;

use crate::addr::{Order, Pfn};
use crate::errno::Errno;
use crate::hw::{AtomicCpuSet, Cpu, FlushReq, MAX_CPUS, Park, Parked, Waiter, Warning};
use crate::phys::{Frame, FrameDesc, Hw, Owned, Phys, Use, Zone};
use crate::race::Point;
use crate::wait::CanWait;
use mmu::{Mmu, PageFault, Want};
use park::Parker;
use ram::Ram;
use rng::Rng;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

pub use mutate::{Mutation, Site};

/// What machine to build.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Frames of RAM, frame 0 included.
    pub frames: u64,
    /// How many of them, the last ones, are movable.
    pub movable: u64,
    /// CPUs, at most [`MAX_CPUS`].
    pub cpus: usize,
    /// Host threads play the CPUs.
    pub threads: bool,
    /// All that is random.
    pub seed: u64,
    /// How often a door call is disturbed: one in this many; 0 never.
    pub mischief: u64,
    /// Whether CPUs tag what they keep (PCID); else a new root forgets all but global entries.
    pub pcid: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            frames: 4096,
            movable: 0,
            cpus: 2,
            threads: false,
            seed: rng::seed(1),
            mischief: 4,
            pcid: true,
        }
    }
}

/// One CPU.
struct SimCpu {
    state: Mutex<CpuState>,
    /// Interrupts off.
    masked: AtomicBool,
    /// Runs nothing of the loaded space: a kernel thread or idle, keeping it lazily.
    lazy: AtomicBool,
    /// The key register: two bits a key, access and write disabled.
    pkru: AtomicU32,
    /// How often it has found a lock taken.
    spins: AtomicU64,
}

struct CpuState {
    mmu: Mmu,
    /// Spaces whose entries are kept, with the flush generation they are good for.
    slots: Vec<Slot>,
}

#[derive(Clone, Copy)]
struct Slot {
    id: u64,
    generation: u64,
}

/// PCIDs a CPU juggles.
const SLOTS: usize = 4;

/// The machine. Leaked: it lives as long as the test.
pub struct Sim {
    config: Config,
    ram: Ram,
    phys: Phys,
    cpus: Vec<SimCpu>,
    kernel_root: AtomicU64,
    rng: Mutex<Rng>,
    clock: AtomicU64,
    violations: Mutex<Vec<String>>,
    failed: AtomicBool,
    pub(crate) mutations: mutate::Mutations,
    hooks: hooks::Hooks,
    no_fast_walk: AtomicBool,
    shootdowns: AtomicUsize,
    late: AtomicUsize,
    /// Frames outside of the direct map, and whether there ever was one.
    hidden: Mutex<BTreeSet<u64>>,
    any_hidden: AtomicBool,
    quiet: AtomicBool,
}

/// The handle that mm gets.
pub type Machine = &'static Sim;

thread_local! {
    static TURN: Cell<u64> = const { Cell::new(1) };
    static ME: Cell<usize> = const { Cell::new(0) };
    #[cfg(feature = "lockdep")]
    static HELD: &'static crate::sync::lockdep::Held = Box::leak(Box::default());
    static PARKER: &'static Parker = Box::leak(Box::new(Parker::new()));
}

impl Sim {
    /// Builds and boots a machine.
    pub fn new(config: Config) -> Machine {
        assert!((1..=MAX_CPUS).contains(&config.cpus));
        let ram = Ram::new(config.frames);
        let mut rng = Rng::new(config.seed);
        let cpus = (0..config.cpus)
            .map(|_| SimCpu {
                state: Mutex::new(CpuState {
                    mmu: Mmu::new(Pfn(0), rng.word()),
                    slots: Vec::new(),
                }),
                masked: AtomicBool::new(false),
                lazy: AtomicBool::new(true),
                pkru: AtomicU32::new(0),
                spins: AtomicU64::new(0),
            })
            .collect();
        let sim: Machine = Box::leak(Box::new(Sim {
            config,
            ram,
            phys: Phys::new(),
            cpus,
            kernel_root: AtomicU64::new(0),
            rng: Mutex::new(rng),
            clock: AtomicU64::new(0),
            violations: Mutex::new(Vec::new()),
            failed: AtomicBool::new(false),
            mutations: mutate::Mutations::default(),
            hooks: hooks::Hooks::default(),
            no_fast_walk: AtomicBool::new(false),
            shootdowns: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
            hidden: Mutex::new(BTreeSet::new()),
            any_hidden: AtomicBool::new(false),
            quiet: AtomicBool::new(true),
        }));
        let split = config.frames - config.movable;
        sim.phys.add_memory(sim, Pfn(1), Pfn(split), Zone::Normal);
        if config.movable != 0 {
            sim.phys
                .add_memory(sim, Pfn(split), Pfn(config.frames), Zone::Movable);
        }
        let root = sim
            .phys
            .alloc(sim, Use::Kernel)
            .expect("a machine has memory")
            .zero(sim)
            .into_pfn();
        sim.kernel_root.store(root.0, Ordering::SeqCst);
        for c in &sim.cpus {
            lock(&c.state).mmu.set_root(root, 0);
        }
        sim.phys.make_zero_page(sim).expect("a machine has memory");
        sim.quiet.store(false, Ordering::SeqCst);
        sim
    }
    /// How it was built.
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// Its memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }
    /// With or without the lockless walk (FAST-21).
    pub fn set_fast_walk(&self, on: bool) {
        self.no_fast_walk.store(!on, Ordering::Relaxed);
    }
    /// The calling host thread acts as this CPU from now on.
    pub fn on(&'static self, cpu: usize) -> Machine {
        assert!(cpu < self.config.cpus);
        ME.set(cpu);
        TURN.set(self.config.seed ^ (cpu as u64) << 32 ^ 0x9e37);
        self
    }
    /// The right to wait, for test code: no simulated lock is held and interrupts are on.
    pub fn can_wait(&'static self) -> CanWait<Machine> {
        assert!(!self.cpus[self.me()].masked.load(Ordering::SeqCst));
        // SAFETY: interrupts are on, and the caller is a test outside of every mm call.
        unsafe { CanWait::assume(self) }
    }
    fn me(&self) -> usize {
        ME.get()
    }
    fn here(&self) -> MutexGuard<'_, CpuState> {
        lock(&self.cpus[self.me()].state)
    }
    /// Whether this CPU keeps the space it has loaded only lazily from now on. Who comes back from that says
    /// so first and looks at `loaded_root` then: it may have been told to leave.
    pub fn set_lazy(&self, lazy: bool) {
        self.cpus[self.me()].lazy.store(lazy, Ordering::SeqCst);
    }
    /// How often CPU `cpu` has found a lock taken: whether it waits for one.
    pub fn spins(&self, cpu: usize) -> u64 {
        self.cpus[cpu].spins.load(Ordering::SeqCst)
    }
    /// Loads this CPU's key register (PKRU).
    pub fn set_pkru(&self, pkru: u32) {
        self.cpus[self.me()].pkru.store(pkru, Ordering::SeqCst);
        self.here().mmu.set_pkru(pkru);
    }
    /// Runs `f` without mischief at the door.
    pub fn quietly<R>(&self, f: impl FnOnce() -> R) -> R {
        let before = self.quiet.swap(true, Ordering::SeqCst);
        let r = f();
        self.quiet.store(before, Ordering::SeqCst);
        r
    }

    /// A user access of one byte by this CPU: `Ok` with the byte loaded (or stored over), or the fault.
    pub fn touch(&'static self, va: u64, want: Want, byte: u8) -> Result<u8, PageFault> {
        let mut here = self.here();
        let r = here.mmu.translate(&self.ram, va, want);
        let v = here.mmu.take_violation();
        // What is not this access's memory any more stays as it is: the report shall be the only damage.
        let store = want == Want::Write && v.is_none();
        // SAFETY: a translation of this machine, used before this CPU can acknowledge anything (we hold
        // its state).
        let r = r.map(|p| unsafe {
            let old = ram::load(p);
            if store {
                ram::store(p, byte);
            }
            old
        });
        drop(here);
        self.report(v);
        r
    }
    /// An atomic 32-bit compare-and-swap by user code, as a lock or a futex word needs it.
    pub fn user_cas(
        &'static self,
        va: u64,
        old: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, PageFault> {
        assert!(va.is_multiple_of(4));
        let mut here = self.here();
        let r = here.mmu.translate(&self.ram, va, Want::Write).map(|p| {
            // SAFETY: as in `touch`; aligned, within the page.
            let word = unsafe { &*(p as *const std::sync::atomic::AtomicU32) };
            word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
        });
        let v = here.mmu.take_violation();
        drop(here);
        self.report(v);
        r
    }
    /// A user load; `fault` is the page-fault trap: true means "try again".
    pub fn read(&'static self, va: u64, fault: &mut dyn FnMut(PageFault) -> bool) -> Option<u8> {
        self.access(va, Want::Read, 0, fault)
    }
    /// A user store.
    pub fn write(
        &'static self,
        va: u64,
        byte: u8,
        fault: &mut dyn FnMut(PageFault) -> bool,
    ) -> Option<()> {
        self.access(va, Want::Write, byte, fault).map(|_| ())
    }
    /// Any user access, with the trap. `None`: the trap did not resolve it.
    pub fn access(
        &'static self,
        va: u64,
        want: Want,
        byte: u8,
        fault: &mut dyn FnMut(PageFault) -> bool,
    ) -> Option<u8> {
        for _ in 0..1000 {
            match self.touch(va, want, byte) {
                Ok(b) => return Some(b),
                Err(f) => {
                    if !fault(f) || self.failed() {
                        return None;
                    }
                }
            }
        }
        self.report(Some(format!(
            "a {want:?} of {va:#x} faulted 1000 times and each fault was called resolved"
        )));
        None
    }
    /// This CPU speculates on an address.
    pub fn speculate(&'static self, va: u64) {
        let mut here = self.here();
        here.mmu.speculate(&self.ram, va);
        let v = here.mmu.take_violation();
        drop(here);
        self.report(v);
    }
    /// How many leaves of its space this CPU keeps.
    pub fn kept(&self) -> usize {
        self.here().mmu.kept()
    }
    /// Shootdowns so far, and how many of them waited for a CPU with interrupts off.
    pub fn shootdowns(&self) -> (usize, usize) {
        (
            self.shootdowns.load(Ordering::SeqCst),
            self.late.load(Ordering::SeqCst),
        )
    }

    /// Remembers what went wrong.
    pub fn report(&self, violation: Option<String>) {
        if let Some(v) = violation {
            self.failed.store(true, Ordering::SeqCst);
            let mut all = lock(&self.violations);
            if all.is_empty() && self.config.threads {
                std::eprintln!("{v}"); // the threads that stumble over it say less
            }
            if all.len() < 16 {
                all.push(v);
            }
        }
    }
    /// Whether anything went wrong.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }
    /// What went wrong first.
    pub fn violation(&self) -> Option<String> {
        lock(&self.violations).first().cloned()
    }
    /// Panics with the seed when anything went wrong.
    pub fn check(&self) {
        if let Some(v) = self.violation() {
            panic!("{v}\nreplay with PINFOLD_SEED={}", self.config.seed);
        }
    }
    /// Nothing is in flight: no CPU keeps more than the tables say.
    pub fn find_stale(&self) -> Option<String> {
        self.cpus.iter().enumerate().find_map(|(n, c)| {
            lock(&c.state)
                .mmu
                .stale(&self.ram)
                .map(|why| format!("stale translation on CPU {n}: {why}"))
        })
    }
    /// [`Self::find_stale`] as a violation.
    pub fn check_no_stale(&self) {
        self.report(self.find_stale());
    }

    /// Other CPUs do what they do between two instructions of ours.
    fn mischief(&'static self) {
        let every = self.config.mischief;
        if every == 0 || self.quiet.load(Ordering::Relaxed) {
            return;
        }
        if self.config.threads {
            // Another thread goes on just here.
            let n = TURN
                .get()
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            TURN.set(n);
            if (n >> 33).is_multiple_of(every * 4) {
                std::thread::yield_now();
            }
            return;
        }
        let me = self.me();
        let (who, what) = {
            let mut rng = lock(&self.rng);
            if !rng.one_in(every) {
                return;
            }
            (rng.below(self.config.cpus as u64) as usize, rng.below(8))
        };
        self.act(who, what, who == me);
    }

    /// One thing that CPU `who` does by itself.
    fn act(&'static self, who: usize, what: u64, same: bool) {
        let mut c = lock(&self.cpus[who].state);
        match what {
            0 => c.mmu.evict_some(),
            1 => c.mmu.speculate_hot(&self.ram),
            2 => c.mmu.speculate_lost(&self.ram),
            3 => {
                // Near something it knows, where neighbours are likely.
                if let Some(va) = c.mmu.any_kept() {
                    let off = c.mmu.random(9);
                    let va = (va + off * 4096).saturating_sub(4 * 4096);
                    c.mmu.speculate(&self.ram, va);
                }
            }
            _ if !same => c.mmu.use_any_leaf(&self.ram),
            _ => {}
        }
        let v = c.mmu.take_violation();
        drop(c);
        self.report(v);
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that panicked elsewhere has said why already.
    m.lock().unwrap_or_else(|e| e.into_inner())
}

impl Cpu for Machine {
    type IrqState = bool;
    fn irq_save(self) -> bool {
        self.mischief();
        // Under the state's lock: an acknowledgement on our behalf is either done or will wait.
        let here = self.here();
        let was_on = !self.cpus[self.me()].masked.swap(true, Ordering::SeqCst);
        drop(here);
        if was_on && self.config.threads {
            self.mischief();
        }
        was_on
    }
    fn irq_restore(self, was_on: bool) {
        if was_on {
            self.cpus[self.me()].masked.store(false, Ordering::SeqCst);
            self.mischief();
        }
    }
    fn irqs_on(self) -> bool {
        !self.cpus[self.me()].masked.load(Ordering::SeqCst)
    }
    fn cpu(self) -> usize {
        self.me()
    }
    fn spin_hint(self) {
        assert!(
            self.config.threads,
            "a stepped CPU spins: nobody will ever release that lock"
        );
        self.cpus[self.me()].spins.fetch_add(1, Ordering::SeqCst);
        std::thread::yield_now();
    }
    fn has_pkeys(self) -> bool {
        true
    }
    fn pkey_allows(self, key: u32, write: bool) -> bool {
        mmu::key_allows(
            self.cpus[self.me()].pkru.load(Ordering::SeqCst),
            key.into(),
            write,
        )
    }
    fn forgets_note(self, site: &'static std::panic::Location<'static>) -> bool {
        self.mutations.forgets_note(site)
    }
    #[cfg(feature = "lockdep")]
    fn held(self) -> &'static crate::sync::lockdep::Held {
        HELD.with(|h| *h)
    }
    fn waiter(self) -> Waiter {
        PARKER.with(|p| p.waiter())
    }
    fn park(self, how: Park) -> Parked {
        assert!(self.irqs_on(), "a CPU with interrupts off goes to sleep");
        assert!(
            self.config.threads,
            "a stepped thread sleeps: nobody will ever wake it"
        );
        PARKER.with(|p| p.park(how))
    }
    fn unpark(self, w: Waiter) {
        park::unpark(w);
    }
    fn fatal_signal_pending(self) -> bool {
        PARKER.with(|p| p.killed())
    }
    fn signal_pending(self) -> bool {
        PARKER.with(|p| p.signalled())
    }
    fn warn(self, w: Warning) {
        self.hooks.warn(w);
    }
    fn walks_fast(self) -> bool {
        !self.no_fast_walk.load(Ordering::Relaxed)
    }
    fn pause(self, at: Point) {
        self.hooks.pause(at);
    }
    fn cond_resched(self) {
        self.mischief();
        if self.config.threads {
            std::thread::yield_now();
        }
    }
    fn load_root(self, root: Pfn, id: u64, generation: u64) {
        self.load(root, id, generation);
        self.mischief();
    }
    fn load_kernel_root(self) {
        let root = Pfn(self.kernel_root.load(Ordering::SeqCst));
        let mut here = self.here();
        here.mmu.set_root(root, 0);
        if !self.config.pcid {
            here.mmu.flush_everything();
        }
    }
    fn loaded_root(self) -> Pfn {
        self.here().mmu.root()
    }
    fn flush_local(self, req: FlushReq) {
        self.mischief();
        if self.mutations.keeps(&req, mutate::Half::Local) {
            return;
        }
        self.forget(self.me(), &req, None);
    }
    fn shootdown(self, cpus: &AtomicCpuSet, req: FlushReq) {
        self.send_shootdown(cpus, req);
    }
    fn grace_period(self) {
        self.send_grace();
    }
}

impl Hw for Machine {
    fn frame_ptr(self, pfn: Pfn) -> *mut u8 {
        if self.any_hidden.load(Ordering::SeqCst) && lock(&self.hidden).contains(&pfn.0) {
            self.report(Some(format!(
                "the kernel reaches for frame {:#x}, which left the direct map",
                pfn.0
            )));
        }
        self.ram.ptr(pfn)
    }
    fn hide_frame(self, pfn: Pfn) -> bool {
        assert!(self.irqs_on(), "a shootdown is awaited with interrupts off");
        if !lock(&self.hidden).insert(pfn.0) {
            self.report(Some(format!("frame {:#x} was hidden twice", pfn.0)));
        }
        self.any_hidden.store(true, Ordering::SeqCst);
        self.mischief();
        true
    }
    fn show_frame(self, pfn: Pfn) {
        if !lock(&self.hidden).remove(&pfn.0) {
            self.report(Some(format!("frame {:#x} was not hidden", pfn.0)));
        }
    }
    fn desc(self, pfn: Pfn) -> &'static FrameDesc {
        self.ram.desc(pfn)
    }
    fn frames_end(self) -> u64 {
        self.ram.frames()
    }
    fn phys(self) -> &'static Phys {
        &self.phys
    }
    fn clear_frame(self, p: *mut u8) {
        self.mischief();
        for i in 0..512 {
            // SAFETY: a frame's 512 words; other CPUs may read it through the direct map only.
            unsafe { (*(p as *const AtomicU64).add(i)).store(0, Ordering::Relaxed) };
        }
    }
    /// A piece at a time, as the program would load it.
    fn copy_raw(self, into: &mut Frame<Owned>, root: Pfn, va: u64) -> bool {
        if self.loaded_root() != root {
            return false;
        }
        let to = self.frame_ptr(into.pfn());
        (0..4096).step_by(512).all(|at| {
            self.mischief();
            let mut here = self.here();
            if !here.mmu.answers(&self.ram, va) {
                return false;
            }
            let from = here.mmu.translate(&self.ram, va + at as u64, Want::Read);
            let v = here.mmu.take_violation();
            // SAFETY: a translation of this machine, used before this CPU can acknowledge anything (we hold its state),
            // and the caller's frame; 64 words each, atomics to everybody.
            let copied = from.map(|from| unsafe { ram::copy_words(from, to.add(at), 64) });
            drop(here);
            self.report(v);
            copied.is_ok()
        })
    }
    fn copy_frame(self, dst: *mut u8, src: *const u8) {
        self.mischief();
        for i in 0..512 {
            if i == 256 {
                self.mischief();
            }
            // SAFETY: two frames of 512 words each; a user may write the source meanwhile, hence atomics.
            unsafe {
                let v = (*(src as *const AtomicU64).add(i)).load(Ordering::Relaxed);
                (*(dst as *const AtomicU64).add(i)).store(v, Ordering::Relaxed);
            }
        }
    }
    fn kernel_root(self) -> Pfn {
        Pfn(self.kernel_root.load(Ordering::SeqCst))
    }
    fn make_accessible(self, pfn: Pfn) -> Result<(), Errno> {
        self.hooks.make_accessible(pfn)
    }
    fn make_room(self, _: &mut CanWait<Machine>) -> bool {
        self.hooks.make_room()
    }
    fn frames_born(self, pfn: Pfn, order: Order) {
        for i in 0..order.pages() {
            if !self.ram.birth(Pfn(pfn.0 + i)) {
                self.report(Some(format!("frame {:#x} was handed out twice", pfn.0 + i)));
            }
        }
        self.clock.fetch_add(1, Ordering::Relaxed);
        self.mischief();
    }
    fn frames_dead(self, pfn: Pfn, order: Order) {
        if lock(&self.hidden).contains(&pfn.0) {
            self.report(Some(format!("frame {:#x} is freed and hidden", pfn.0)));
        }
        for (n, c) in self.cpus.iter().enumerate() {
            let reach = lock(&c.state).mmu.still_reaches(pfn, order.pages());
            self.report(
                reach.map(|how| format!("frame {:#x} is freed while CPU {n} keeps a {how}", pfn.0)),
            );
        }
        for i in 0..order.pages() {
            if !self.ram.death(Pfn(pfn.0 + i)) {
                self.report(Some(format!("frame {:#x} was freed twice", pfn.0 + i)));
            }
        }
        self.mischief();
    }
}
