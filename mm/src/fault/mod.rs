//! From an address to a folio: one handler for the `#PF` trap and for the kernel's own use (FAULT-15).
//!
//! Protocol. A fault runs under the lock of its VMA, or, when that cannot be had, under the mmap lock
//! for reading; both are `MayInstall`. A frame is taken and filled *before* the table lock; whoever
//! finds the entry changed under the lock gives its frame back and is done: the access is tried
//! again. Nothing here sleeps with a lock held; a fault that finds no frame drops every lock before
//! it says so (DESIGN 6.4). A signal is only reported under a lock that keeps the VMA as it is.

#![forbid(unsafe_code)]

mod anon;
mod cow;
mod file;
pub mod fixup;
mod unshare;

use crate::addr::{PAGE_SIZE, USER_END, page_down};
use crate::errno::Errno;
use crate::hw::FlushRange;
use crate::phys::{Folio, Hw, NoFrame, lru};
use crate::race::{Point, planted, point_unlocked};
use crate::space::{AddressSpace, MmapReadGuard, Vma, VmaFlags, VmaReadGuard};
use crate::table::pte::bit;
use crate::table::{LeafBits, MayInstall, Pte, Unmovable};
use crate::wait::CanWait;

/// What the access was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Exec,
}

/// An address and why it was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The byte that was touched.
    pub va: u64,
    /// How.
    pub access: Access,
    /// By user code; false: by the kernel on the user's behalf.
    pub user: bool,
    /// The entry was there and did not allow it. A hint: it may have changed since.
    pub present: bool,
}

/// What the trap handler does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum FaultResult {
    /// Runs the instruction again.
    Done {
        /// Content had to be read in.
        major: bool,
    },
    /// Sends SIGSEGV with this code (1 `SEGV_MAPERR`, 2 `SEGV_ACCERR`).
    Segv {
        /// `si_code`.
        code: i32,
    },
    /// Sends SIGBUS with this code (2 `BUS_ADRERR`).
    Bus {
        /// `si_code`.
        code: i32,
    },
    /// Makes memory free, however, and tries again. No lock is held.
    Oom,
    /// Lets the thread die: a fatal signal ended the wait for a lock.
    Killed,
}

/// Nothing is mapped there.
pub const SEGV_MAPERR: i32 = 1;
/// What is mapped does not allow it.
pub const SEGV_ACCERR: i32 = 2;
/// No such address behind the mapping.
pub const BUS_ADRERR: i32 = 2;

/// Why an address cannot be made accessible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGSEGV, nothing mapped.
    NotMapped,
    /// SIGSEGV, not allowed.
    NotAllowed,
    /// SIGBUS, beyond the end of the object.
    BeyondEnd,
    /// SIGBUS, the object's source failed, or has no room; or nobody knows what is there.
    Unreadable,
}

impl Signal {
    fn result(self) -> FaultResult {
        match self {
            Signal::NotMapped => FaultResult::Segv { code: SEGV_MAPERR },
            Signal::NotAllowed => FaultResult::Segv { code: SEGV_ACCERR },
            Signal::BeyondEnd | Signal::Unreadable => FaultResult::Bus { code: BUS_ADRERR },
        }
    }
}

/// Who holds the lock now, and what the caller does next. What was looked up before is not used after:
///
/// ```compile_fail,E0505
/// use mm::fault::{Access, Fault, FaultOutcome, handle};
/// fn f<H: mm::Hw>(g: mm::space::MmapReadGuard<'_, H>, s: &mm::AddressSpace<H>, w: &mm::CanWait<H>, at: Fault) -> u64 {
///     let vma = g.find(at.va).unwrap();
///     let _ = handle(g, s, w, at);
///     vma.start()
/// }
/// ```
#[must_use]
pub enum FaultOutcome<G> {
    /// The caller follows the address again; somebody may have been faster, so it may fault again.
    Mapped(G),
    /// The caller makes room, takes the lock again and starts over.
    NoFrame,
    /// The page is not in memory, or not ready to be written: the caller sees to it ([`page_in`]), takes the lock again and
    /// starts over.
    Absent(Missing),
    /// The caller reports it.
    Signal(G, Signal),
}

/// Why a fault was not resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    Signal(Signal),
    NoFrame,
    /// See [`FaultOutcome::Absent`].
    Absent(Missing),
}

/// What somebody has to wait for, without locks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// The page must be read in.
    Content,
    /// Its file has not been told that it will be written (rule 6 of object/cache.rs).
    Notice,
}

impl From<NoFrame> for Stop {
    #[inline]
    fn from(_: NoFrame) -> Self {
        Stop::NoFrame
    }
}

/// Resolved, or why not.
pub(crate) type Step = Result<(), Stop>;

/// One fault in one VMA, under a lock that lets us install.
pub(crate) struct Cx<'a, H: Hw, G: MayInstall<H>> {
    pub hw: H,
    pub space: &'a AddressSpace<H>,
    pub wait: &'a CanWait<H>,
    pub permit: &'a G,
    pub vma: &'a Vma<H>,
    /// The page.
    pub va: u64,
}

/// What an entry gets that is written through at once; soft-dirty goes with D (SOFTD-1).
pub(crate) const WRITTEN: u64 = bit::W | bit::D | bit::SOFT_DIRTY;

impl<H: Hw, G: MayInstall<H>> Cx<'_, H, G> {
    /// The page's offset in its object or family, in pages.
    #[inline]
    pub fn index(&self) -> u64 {
        self.vma.index_of(self.va)
    }
    /// Bits of an anonymous leaf that its owner may use as the VMA says.
    #[inline]
    pub fn own_bits(&self) -> LeafBits {
        let write = self.vma.flags().contains(VmaFlags::WRITE);
        LeafBits(self.vma.prot_bits().0 | if write { WRITTEN } else { 0 })
    }
    /// Lists a new anonymous page, which will be mapped with `bits`.
    #[inline]
    pub fn list(&self, folio: Folio<H>, bits: LeafBits) {
        if bits.mlocked() {
            folio.begin_mlocked();
        }
        lru::add_new(self.hw, folio.pfn());
    }
    /// The entry was to be filled, and is not empty. That another thread was faster is success; what is neither present nor
    /// of a kind that anybody makes never will be (PFN-8).
    #[cold]
    pub fn filled_already(&self, e: Pte) -> Step {
        if e.present() {
            return Ok(());
        }
        self.vma.report(self.va, e);
        Err(Stop::Signal(Signal::Unreadable))
    }
    /// Every CPU forgets the page. Interrupts are on (`wait`); see `cow` for the table lock.
    #[inline]
    pub fn forget_everywhere(&self) {
        self.space.tlb.flush(self.wait, self.flush_range());
    }
    #[inline]
    fn flush_range(&self) -> FlushRange {
        FlushRange::Pages {
            start: self.va,
            end: self.va + PAGE_SIZE,
        }
    }
}

/// The trap's entry: tries the VMA's own lock, then the mmap lock; grows stacks.
#[inline]
pub fn user_fault<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    fault: Fault,
) -> FaultResult {
    if fault.va >= USER_END {
        return Signal::NotMapped.result();
    }
    let locked = {
        let irq = wait.irq_off();
        space.vma_read(&irq, fault.va)
    };
    user_fault_locked(space, wait, locked, fault)
}

/// As [`user_fault`] for a caller that has looked for the VMA's lock already, interrupts off.
#[inline(always)]
pub fn user_fault_locked<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    locked: Option<VmaReadGuard<'_, H>>,
    fault: Fault,
) -> FaultResult {
    let Some(guard) = locked else {
        return under_mmap_lock(space, wait, fault);
    };
    let step = resolve(space, wait, &guard, &*guard, &fault);
    drop(guard);
    result(space, wait, fault.va, step)
}

/// What comes of a step. No lock is held.
#[inline]
fn result<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    va: u64,
    step: Step,
) -> FaultResult {
    match step {
        Ok(()) => FaultResult::Done { major: false },
        Err(Stop::Signal(s)) => s.result(),
        Err(Stop::NoFrame) => FaultResult::Oom,
        // The access comes again, and finds the page.
        Err(Stop::Absent(what)) => match page_in(space, wait, va, what) {
            Ok(()) => FaultResult::Done { major: true },
            Err(Errno::EINTR) => FaultResult::Killed,
            Err(Errno::ENOMEM) => FaultResult::Oom,
            Err(_) => Signal::Unreadable.result(),
        },
    }
}

/// Reads in what is mapped at an address, or makes it ready to be written, with no lock held meanwhile (LOCK-5, FAULT-6):
/// nothing that was looked up before may be used after. Success does not promise that the page is there: the caller
/// starts over.
///
/// `EIO`, `ENOSPC` its source failed, `ENOMEM`, `EINTR` for a dying thread.
#[cold]
#[inline(never)]
pub fn page_in<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    va: u64,
    what: Missing,
) -> Result<(), Errno> {
    let guard = space.mmap_read_killable(wait)?;
    let found = guard
        .find(va)
        .and_then(|vma| Some((vma.object()?.clone(), vma.index_of(page_down(va)))));
    drop(guard);
    point_unlocked(wait, Point::FaultUnlocked);
    match found {
        Some((object, index)) => match what {
            Missing::Content => object.page_in(wait, index),
            Missing::Notice => object.make_writable(wait, index),
        },
        None => Ok(()),
    }
}

#[cold]
#[inline(never)]
fn under_mmap_lock<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    fault: Fault,
) -> FaultResult {
    loop {
        let Ok(guard) = space.mmap_read_killable(wait) else {
            return FaultResult::Killed;
        };
        let above = match guard.find_from(fault.va) {
            Some(vma) if vma.start() <= fault.va => {
                let step = resolve(space, wait, &guard, vma, &fault);
                drop(guard);
                return result(space, wait, fault.va, step);
            }
            Some(vma) => vma.flags().contains(VmaFlags::GROWSDOWN),
            None => false,
        };
        drop(guard);
        if !above {
            return Signal::NotMapped.result();
        }
        // A stack: growing needs the lock for writing, and everything is looked at again (BUG-18).
        let Ok(mut guard) = space.mmap_write_killable(wait) else {
            return FaultResult::Killed;
        };
        if guard.expand_down(fault.va).is_err() {
            return Signal::NotMapped.result();
        }
    }
}

/// For those who hold the mmap lock and want an address made accessible (GUP, fixups, populate): never
/// grows a stack (VMA-1). The guard comes back unless the lock had to go.
pub fn handle<'a, H: Hw>(
    guard: MmapReadGuard<'a, H>,
    space: &AddressSpace<H>,
    wait: &CanWait<H>,
    fault: Fault,
) -> FaultOutcome<MmapReadGuard<'a, H>> {
    let step = match guard.find(fault.va) {
        Some(vma) => resolve(space, wait, &guard, vma, &fault),
        None => Err(Stop::Signal(Signal::NotMapped)),
    };
    outcome(guard, step)
}

/// What the VMA allows (FAULT-14; reads of anything accessible, as the machine cannot refuse them).
#[inline]
fn allowed(flags: VmaFlags, access: Access) -> bool {
    match access {
        Access::Read => flags.intersects(VmaFlags::READ | VmaFlags::WRITE | VmaFlags::EXEC),
        Access::Write => flags.contains(VmaFlags::WRITE),
        Access::Exec => flags.contains(VmaFlags::EXEC),
    }
}

/// Check, dispatch.
#[inline(always)]
pub(crate) fn resolve<H: Hw, G: MayInstall<H>>(
    space: &AddressSpace<H>,
    wait: &CanWait<H>,
    permit: &G,
    vma: &Vma<H>,
    fault: &Fault,
) -> Step {
    if !allowed(vma.flags(), fault.access) {
        return Err(Stop::Signal(Signal::NotAllowed));
    }
    let cx = Cx {
        hw: wait.hw(),
        space,
        wait,
        permit,
        vma,
        va: page_down(fault.va),
    };
    dispatch(&cx, fault.access == Access::Write, fault.present)
}

/// The access is allowed.
#[inline(always)]
fn dispatch<H: Hw, G: MayInstall<H>>(cx: &Cx<'_, H, G>, write: bool, present: bool) -> Step {
    // Under the VMA's lock or the mmap lock: who empties the space has excluded both since it said so.
    if cx.space.is_doomed() && !cx.vma.flags().contains(VmaFlags::SHARED) {
        return Err(Stop::Signal(Signal::Unreadable));
    }
    if present {
        return if write {
            cow::write_protected(cx)
        } else {
            spurious()
        };
    }
    if cx.vma.object().is_none() {
        if write {
            anon::first_touch(cx)
        } else {
            anon::zero_page(cx)
        }
    } else if !write {
        file::read(cx)
    } else if cx.vma.flags().contains(VmaFlags::SHARED) {
        file::shared_write(cx)
    } else {
        file::private_write(cx)
    }
}

/// What a kernel caller needs of a page whose VMA it has checked itself (`Vma::allows`; FAULT-1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Something is mapped.
    Read,
    /// It may be written; `present`: an entry stood there and did not allow it.
    Write {
        /// As [`Fault::present`].
        present: bool,
    },
    /// It belongs to this space alone, and need not be writable: for a read-only pin (UNSH-2).
    Unshare,
    /// The same, and its entry says that it was written: for a forced write to what the VMA does not let be
    /// written (WALK-6, SOFTD-1).
    Forced,
}

/// One address as a kernel caller needs it, under its lock, which stays.
#[inline(never)]
pub(crate) fn need<H: Hw, G: MayInstall<H>>(
    space: &AddressSpace<H>,
    wait: &CanWait<H>,
    permit: &G,
    vma: &Vma<H>,
    va: u64,
    need: Need,
) -> Step {
    let cx = Cx {
        hw: wait.hw(),
        space,
        wait,
        permit,
        vma,
        va: page_down(va),
    };
    match need {
        Need::Read => dispatch(&cx, false, false)?,
        Need::Write { present } => dispatch(&cx, true, present)?,
        Need::Unshare => unshare::step(&cx)?,
        Need::Forced => {
            unshare::step(&cx)?;
            if !planted(25) {
                cow::mark_written(&cx);
            }
        }
    }
    cx.hw.count_fault();
    Ok(())
}

/// [`need`] under the mmap lock, which comes back unless it had to go (FAULT-5): then whatever was looked up
/// before is looked up again.
pub(crate) fn handle_need<'a, H: Hw>(
    guard: MmapReadGuard<'a, H>,
    space: &AddressSpace<H>,
    wait: &CanWait<H>,
    va: u64,
    what: Need,
    unmovable: bool,
) -> FaultOutcome<MmapReadGuard<'a, H>> {
    let step = match guard.find(va) {
        Some(vma) if unmovable => need(space, wait, &Unmovable(&guard), vma, va, what),
        Some(vma) => need(space, wait, &guard, vma, va, what),
        None => Err(Stop::Signal(Signal::NotMapped)),
    };
    outcome(guard, step)
}

fn outcome<G>(guard: G, step: Step) -> FaultOutcome<G> {
    match step {
        Ok(()) => FaultOutcome::Mapped(guard),
        Err(Stop::Signal(s)) => FaultOutcome::Signal(guard, s),
        Err(Stop::NoFrame) => FaultOutcome::NoFrame,
        Err(Stop::Absent(what)) => FaultOutcome::Absent(what),
    }
}

/// The entry allows it: this CPU remembered something stricter, and forgot it by faulting (the machine drops
/// what it kept of an address when that faults).
#[cold]
pub(crate) fn spurious() -> Step {
    Ok(())
}
