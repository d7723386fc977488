//! Unhook, shoot down, free.
//!
//! A page stays alive until every CPU that could reach it has forgotten it. Lockless readers
//! (`walk::peek`; `gup/fast.rs`, which tells the other half) keep interrupts off, so they acknowledge no
//! shootdown; a table they may be reading is therefore still waiting in a batch. A lazy CPU (it runs a kernel thread on a user's
//! tables) stays in the space's CPU set and is shot down like the others; it leaves the space before it
//! acknowledges.
//!
//! Rules: 1. an entry is emptied before the batch hears of what it held; 2. frames and tables are given
//! back only after the flush; 3. a flush awaits acknowledgements, so interrupts are on, and no lock is
//! held that somebody takes with interrupts off. Remembering never fails: a batch that is full flushes.

use crate::addr::{Order, Pfn};
use crate::hw::{AtomicCpuSet, FlushRange, FlushReq};
use crate::phys::{Folio, Frame, Hw, Zeroed, flag, lru};
use crate::race::{Point, planted, point};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use crate::sync::lockdep;
use crate::wait::CanWait;
use core::mem::MaybeUninit;

/// Whose translations: the part of a space that flushing needs.
pub struct TlbState {
    root: Pfn,
    id: u64,
    generation: AtomicU64,
    /// CPUs that may cache this space's translations.
    pub cpus: AtomicCpuSet,
}

impl TlbState {
    /// Of a new space; `id` was never used before.
    pub const fn new(root: Pfn, id: u64) -> Self {
        Self {
            root,
            id,
            generation: AtomicU64::new(1),
            cpus: AtomicCpuSet::new(),
        }
    }
    /// The root's frame.
    #[inline]
    pub fn root(&self) -> Pfn {
        self.root
    }
    /// The space's number.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id
    }
    /// Flushes so far, plus one.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }
    /// Makes every CPU forget `range` and returns when all have. Used through [`TlbBatch`], or alone
    /// when nothing is freed (permissions taken away).
    #[inline]
    #[cfg_attr(feature = "sim", track_caller)]
    pub fn flush<H: Hw>(&self, wait: &CanWait<H>, range: FlushRange) -> Flushed {
        self.flush_for(wait, range, Site::here(), false)
    }

    #[inline]
    fn flush_for<H: Hw>(
        &self,
        wait: &CanWait<H>,
        range: FlushRange,
        _site: Site,
        _tables: bool,
    ) -> Flushed {
        let hw = wait.hw();
        let generation = self.generation.fetch_add(1, SeqCst) + 1;
        let req = FlushReq {
            root: self.root,
            id: self.id,
            generation,
            range,
            #[cfg(feature = "sim")]
            site: _site.0,
            #[cfg(feature = "sim")]
            tables: _tables,
        };
        // After the generation: a CPU that enters from now on sees it, or is in the set we read.
        let cpus = self.cpus.load();
        lockdep::may_await(hw);
        hw.flush_local(req);
        if cpus & !(1 << hw.cpu()) != 0 && !planted(9) {
            hw.shootdown(&self.cpus, req);
        }
        Flushed(())
    }
}

/// Who asks for a flush: nothing but in the simulated machine, which can leave out the flushes of one
/// place to see a test fail.
#[derive(Clone, Copy)]
struct Site(#[cfg(feature = "sim")] &'static core::panic::Location<'static>);

impl Site {
    #[inline(always)]
    #[cfg_attr(feature = "sim", track_caller)]
    fn here() -> Self {
        Self(
            #[cfg(feature = "sim")]
            core::panic::Location::caller(),
        )
    }
}

/// Evidence that a shootdown completed. Only this file makes one.
///
/// ```compile_fail,E0423
/// let f = mm::table::Flushed(());
/// ```
pub struct Flushed(());

/// A table page that no entry points at any more (or not yet).
#[must_use = "an unhooked table goes to a TlbBatch"]
pub struct PtPage(Pfn);

impl PtPage {
    pub(super) fn unhooked(pfn: Pfn) -> Self {
        Self(pfn)
    }
    pub(super) fn into_pfn(self) -> Pfn {
        self.0
    }
    /// Never hooked, or destroyed with its space.
    pub(super) fn into_frame(self) -> Frame<Zeroed> {
        Frame::from_table(self.0)
    }
    /// Every CPU has forgotten it.
    pub fn free(self, _: &Flushed) -> Frame<Zeroed> {
        self.into_frame()
    }
}

/// Pages above which forgetting everything is cheaper than one by one.
const FULL_FLUSH_PAGES: u64 = 33;
/// What a batch holds on the stack.
const INLINE: usize = 126;
/// What it holds in the frame that it borrows when that is full.
const MORE: usize = 1024;

/// What has been unhooked and not yet forgotten by every CPU; drop flushes.
///
/// It may not begin with interrupts off:
/// ```compile_fail,E0502
/// fn f<H: mm::Hw>(w: &mut mm::wait::CanWait<H>, t: &mm::table::TlbState) {
///     let irq = w.irq_off();
///     let b = mm::table::TlbBatch::begin(w, t);
///     drop(irq);
/// }
/// ```
pub struct TlbBatch<'w, H: Hw> {
    wait: &'w CanWait<H>,
    tlb: &'w TlbState,
    start: u64,
    end: u64,
    /// No CPU has the space loaded or cached: nothing to flush (exit).
    dead: bool,
    full: bool,
    tables: u32,
    len: usize,
    more_len: usize,
    more: Option<Frame<crate::phys::Owned>>,
    site: Site,
    inline: [MaybeUninit<u32>; INLINE],
}

impl<'w, H: Hw> TlbBatch<'w, H> {
    /// Empty.
    #[inline]
    #[cfg_attr(feature = "sim", track_caller)]
    pub fn begin(wait: &'w CanWait<H>, tlb: &'w TlbState) -> Self {
        Self {
            wait,
            tlb,
            start: u64::MAX,
            end: 0,
            dead: false,
            full: false,
            tables: 0,
            len: 0,
            more_len: 0,
            more: None,
            site: Site::here(),
            inline: [const { MaybeUninit::uninit() }; INLINE],
        }
    }
    /// For a space that every CPU has left for good: frees without flushing. The set is empty, and nobody
    /// can load the root again.
    #[cfg_attr(feature = "sim", track_caller)]
    pub fn begin_dead(wait: &'w CanWait<H>, tlb: &'w TlbState) -> Self {
        assert!(tlb.cpus.load() == 0, "a CPU still has the space loaded");
        let mut b = Self::begin(wait, tlb);
        b.dead = true;
        b
    }
    /// The machine.
    #[inline]
    pub fn hw(&self) -> H {
        self.wait.hw()
    }
    /// Whether no CPU remembers anything of the space ([`TlbBatch::begin_dead`]).
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.dead
    }
    /// Leaves of `start..end` were emptied or lost rights.
    #[inline]
    #[cfg_attr(feature = "sim", track_caller)]
    pub fn note(&mut self, start: u64, end: u64) {
        #[cfg(feature = "sim")]
        if self.hw().forgets_note(Site::here().0) {
            return;
        }
        self.start = self.start.min(start);
        self.end = self.end.max(end);
    }
    /// Upper entries for `start..end` were emptied: cached upper levels must go, too.
    #[inline]
    #[cfg_attr(feature = "sim", track_caller)]
    pub fn note_tables(&mut self, start: u64, end: u64) {
        #[cfg(feature = "sim")]
        if self.hw().forgets_note(Site::here().0) {
            return;
        }
        self.full = true;
        self.note(start, end);
    }
    /// One reference of a folio whose mapping entry was taken is dropped after the flush. The caller has
    /// noted the address. `true`: the batch was full and has flushed, what was noted is forgotten.
    #[inline]
    pub fn retire_folio(&mut self, pfn: Pfn) -> bool {
        if self.len < INLINE {
            self.inline[self.len].write(pfn.0 as u32);
            self.len += 1;
            return false;
        }
        self.retire_more(pfn.0 as u32)
    }
    #[cold]
    #[inline(never)]
    fn retire_more(&mut self, word: u32) -> bool {
        let hw = self.hw();
        // Where no other CPU must be told, a flush costs less than the bookkeeping for a later one.
        let cheap = self.tlb.cpus.load() & !(1 << hw.cpu()) == 0;
        let mut full = cheap || self.more_len == MORE;
        if !full && self.more.is_none() {
            self.more = hw.phys().alloc(hw, crate::phys::Use::Kernel);
            full = self.more.is_none();
        }
        if full {
            self.flush();
        }
        if self.len < INLINE {
            self.inline[self.len].write(word);
            self.len += 1;
        } else if let Some(f) = &self.more {
            let p = self.hw().frame_ptr(f.pfn()) as *mut u32;
            // SAFETY: the frame is ours (`more`), and more_len < 1024 words of four bytes.
            unsafe { p.add(self.more_len).write(word) };
            self.more_len += 1;
        }
        full
    }
    /// A table is freed after the flush.
    #[inline]
    pub fn retire_table(&mut self, p: PtPage) {
        // A table's descriptor says TABLE: one list serves both.
        self.tables += 1;
        let _ = self.retire_folio(p.into_pfn());
    }
    /// Whether there is nothing to do.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0 && self.end == 0
    }
    /// Makes every CPU forget, then frees.
    pub fn flush(&mut self) {
        if self.is_empty() {
            return;
        }
        point(self.hw(), Point::Zapped);
        let flushed = if self.dead {
            // Nobody remembers anything: `begin_dead` checked that no CPU is left.
            Flushed(())
        } else {
            let pages = self.end.saturating_sub(self.start) >> 12;
            let range = if self.full || pages > FULL_FLUSH_PAGES {
                FlushRange::All
            } else {
                FlushRange::Pages {
                    start: self.start,
                    end: self.end,
                }
            };
            self.tlb.flush_for(self.wait, range, self.site, self.full)
        };
        self.start = u64::MAX;
        self.end = 0;
        self.full = false;
        self.release(&flushed);
    }

    /// Drops the references and frees the tables. One lock of an aging shard serves a run of folios.
    fn release(&mut self, flushed: &Flushed) {
        let hw = self.hw();
        let n = self.len;
        self.len = 0;
        // SAFETY: the first `len` slots were written by retire_folio.
        let inline =
            unsafe { core::slice::from_raw_parts_mut(self.inline.as_mut_ptr() as *mut u32, n) };
        release(hw, inline, flushed);
        if let Some(f) = self.more.take() {
            let p = hw.frame_ptr(f.pfn()) as *mut u32;
            // SAFETY: the frame is ours, its first `more_len` words were written by retire_more.
            release(
                hw,
                unsafe { core::slice::from_raw_parts_mut(p, self.more_len) },
                flushed,
            );
            self.more_len = 0;
            hw.phys().free(hw, f);
        }
        self.tables = 0;
    }
}

impl<H: Hw> Drop for TlbBatch<'_, H> {
    #[inline]
    fn drop(&mut self) {
        self.flush();
    }
}

fn release<H: Hw>(hw: H, pfns: &mut [u32], flushed: &Flushed) {
    let mut held: Option<(usize, _)> = None;
    // Those whose last reference this was gather at the front and are freed together.
    let mut dying = 0;
    for at in 0..pfns.len() {
        let pfn = Pfn(pfns[at] as u64);
        let d = hw.desc(pfn);
        let f = d.flags.load(Relaxed);
        if f & flag::TABLE != 0 {
            let frame = PtPage::unhooked(pfn).free(flushed);
            hw.phys().free_table(hw, frame);
            continue;
        }
        if !d.put_is_last(1) {
            continue;
        }
        // Ours alone now.
        debug_assert_eq!(d.mlock_count(), 0, "freeing a locked folio {pfn:?}");
        if d.flags.load(Relaxed) & flag::LRU != 0 {
            let shard = lru::shard_of(d);
            if held.as_ref().is_none_or(|(s, _)| *s != shard) {
                drop(held.take());
                held = Some((shard, hw.phys().lru.shard(hw, shard)));
            }
            if let Some((_, guard)) = &mut held {
                guard.unlink_dying(hw, pfn);
            }
        }
        if f & (flag::ORDER_MASK | flag::SECRET) != 0 {
            Folio::new(hw, pfn).free_unlisted();
            continue;
        }
        pfns[dying] = pfn.0 as u32;
        dying += 1;
    }
    drop(held);
    hw.phys().free_many(hw, &pfns[..dying]);
}

const _: () = assert!(Order::ZERO.pages() == 1);
