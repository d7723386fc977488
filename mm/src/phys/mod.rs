//! What memory is: frames with one owner, folios with counts, and where they come from.
//!
//! Order-0 frames go through a cache for each CPU in front of the buddy lists; a cache has a lock of its
//! own (uncontended but for [`Phys::drain`]), so that the free count is exact at any time: what is not in
//! a list or a cache is in use. Interrupt handlers do not allocate.

pub mod buddy;
pub mod count;
pub mod folio;
pub mod frame;
pub mod lru;
pub mod slab;
pub mod zone;

pub use folio::{Folio, FolioRef, dirty_pages};
pub use frame::{Frame, FrameDesc, FrameState, Owned, Zeroed, flag};
pub use zone::{Use, Zone};

use crate::addr::{Order, Pfn};
use crate::hw::{Cpu, MAX_CPUS};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed};
use crate::sync::{Class, SpinLock};
use buddy::Buddy;

/// The machine's memory. The whole of the door: [`Cpu`] and this.
pub trait Hw: Cpu {
    /// The frame's bytes, through the direct map.
    fn frame_ptr(self, pfn: Pfn) -> *mut u8;
    /// The frame's descriptor; `pfn` lies below [`Hw::frames_end`]. It need not be memory: many that are none may share one, whose
    /// counts mean nothing.
    fn desc(self, pfn: Pfn) -> &'static FrameDesc;
    /// One past the last frame that has a descriptor: all before it do.
    fn frames_end(self) -> u64;
    /// The machine's memory, free or not.
    fn phys(self) -> &'static Phys;
    /// Fills a frame with zeroes.
    fn clear_frame(self, p: *mut u8);
    /// Copies a frame.
    fn copy_frame(self, dst: *mut u8, src: *const u8);
    /// Copies what stands behind the address `va` of the space with `root`: a bare frame, perhaps of a device, perhaps gone by
    /// now. It is read as the program would, faults are not served. `false`: not all of it could be read (PFN-7), or the running
    /// program's space is another. Any context but an interrupt handler.
    fn copy_raw(self, into: &mut Frame<Owned>, root: Pfn, va: u64) -> bool;
    /// Takes a frame out of the direct map, and returns when no CPU can reach it there; `false`: no memory for the
    /// smaller leaves that this takes. Interrupts on, as for a shootdown.
    fn hide_frame(self, pfn: Pfn) -> bool;
    /// Puts it back.
    fn show_frame(self, pfn: Pfn);
    /// The kernel's own root, whose upper half every user root copies.
    fn kernel_root(self) -> Pfn;
    /// The page of the kernel half that is part of every process (GATE-1), if there is one.
    fn gate_page(self) -> Option<u64> {
        None
    }
    /// A block was handed out. For machines that watch every frame; nothing in a kernel.
    #[inline(always)]
    fn frames_born(self, _pfn: Pfn, _order: Order) {}
    /// The kernel or a device is about to use the bytes of a pinned folio (PIN-18), which starts at `_pfn`: machines whose memory
    /// must be exported first do it here. Called after the pin, under the table lock or with interrupts off.
    #[inline(always)]
    fn make_accessible(self, _pfn: Pfn) -> Result<(), crate::errno::Errno> {
        Ok(())
    }
    /// A thread that holds no lock found no frame: makes room, however long it takes. `false`: gives up.
    #[inline(always)]
    fn make_room(self, _wait: &mut crate::wait::CanWait<Self>) -> bool {
        false
    }
    /// A block comes back: from now on nobody may reach it.
    #[inline(always)]
    fn frames_dead(self, _pfn: Pfn, _order: Order) {}
}

// One cache line each, so that two folios never share one.
const _: () = assert!(core::mem::size_of::<FrameDesc>() == 64);

/// No frame is free; `reclaim` may know how to make one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoFrame;

/// Frames moved between a cache and the lists at a time: 2^6.
const BATCH: Order = Order::new(6).unwrap();
const CACHE: usize = 192;
const TABLES: usize = 32;

/// One CPU's free frames of one kind.
struct Cache {
    len: usize,
    pfns: [u32; CACHE],
}

impl Cache {
    const fn new() -> Self {
        Self {
            len: 0,
            pfns: [0; CACHE],
        }
    }
}

/// One CPU's frames: ordinary ones, movable ones, and table pages that are known to be zero (a table is
/// freed with every entry cleared, so clearing it again would be work done twice).
#[repr(align(64))]
struct PerCpu {
    normal: SpinLock<Cache>,
    movable: SpinLock<Cache>,
    tables: SpinLock<(usize, [u32; TABLES])>,
}

/// Frame allocator, aging lists and slabs of one machine.
pub struct Phys {
    zones: [SpinLock<Buddy>; zone::ZONES],
    cpus: [PerCpu; MAX_CPUS],
    movable: AtomicU64,
    /// Frames that user pages and their tables leave to the kernel.
    reserve: AtomicU64,
    zero: AtomicU32,
    /// Fault injection: allocations to go until one fails; 0 is off.
    #[cfg(any(feature = "poison", feature = "sim"))]
    fail_after: AtomicU64,
    pub(crate) lru: lru::Lru,
    pub(crate) slabs: slab::Slabs,
    pins: [PinStat; MAX_CPUS],
    bad_entries: AtomicU64,
}

/// One CPU's pins, per page (PIN-14).
#[repr(align(64))]
struct PinStat {
    acquired: AtomicU64,
    released: AtomicU64,
}

impl Default for Phys {
    fn default() -> Self {
        Self::new()
    }
}

impl Phys {
    /// No memory yet: [`Phys::add_memory`] brings it.
    pub const fn new() -> Self {
        Self {
            zones: [
                SpinLock::new(Class::Zone, Buddy::new(Zone::Dma32)),
                SpinLock::new(Class::Zone, Buddy::new(Zone::Normal)),
                SpinLock::new(Class::Zone, Buddy::new(Zone::Movable)),
            ],
            cpus: [const {
                PerCpu {
                    normal: SpinLock::new(Class::FrameCache, Cache::new()),
                    movable: SpinLock::new(Class::FrameCache, Cache::new()),
                    tables: SpinLock::new(Class::FrameCache, (0, [0; TABLES])),
                }
            }; MAX_CPUS],
            movable: AtomicU64::new(0),
            reserve: AtomicU64::new(0),
            zero: AtomicU32::new(0),
            #[cfg(any(feature = "poison", feature = "sim"))]
            fail_after: AtomicU64::new(0),
            lru: lru::Lru::new(),
            slabs: slab::Slabs::new(),
            pins: [const {
                PinStat {
                    acquired: AtomicU64::new(0),
                    released: AtomicU64::new(0),
                }
            }; MAX_CPUS],
            bad_entries: AtomicU64::new(0),
        }
    }

    /// Hands the frames `start..end` to the allocator, once, at boot. Their descriptors are zero. Frame 0
    /// is never managed: number 0 ends lists.
    pub fn add_memory<H: Hw>(&self, hw: H, start: Pfn, end: Pfn, zone: Zone) {
        let mut at = start.0.max(1);
        let fixed = flag::MANAGED | (zone as u64) << flag::ZONE_SHIFT;
        let mut buddy = self.zones[zone as usize].lock(hw);
        while at < end.0 {
            let mut order = Order::MAX;
            while at & (order.pages() - 1) != 0 || at + order.pages() > end.0 {
                order = Order::new(order.get() as u8 - 1).unwrap_or(Order::ZERO);
            }
            for pfn in at..at + order.pages() {
                hw.desc(Pfn(pfn)).flags.store(fixed, Relaxed);
            }
            buddy.managed += order.pages();
            buddy.give(hw, Pfn(at), order);
            at += order.pages();
        }
        if zone == Zone::Movable {
            self.movable
                .fetch_add(end.0.saturating_sub(start.0), Relaxed);
        }
    }

    /// The frame that reads as zeroes in every space; made once at boot, never counted (PIN-7).
    #[inline]
    pub fn zero_page(&self) -> Pfn {
        Pfn(self.zero.load(Relaxed) as u64)
    }
    /// Makes the zero page. `None` without memory.
    pub fn make_zero_page<H: Hw>(&self, hw: H) -> Option<()> {
        let f = self.alloc(hw, Use::Kernel)?.zero(hw);
        hw.desc(f.pfn()).set(flag::RESERVED);
        self.zero.store(f.into_pfn().0 as u32, Relaxed);
        Some(())
    }

    /// User pages and page tables are refused when the lists they would come from hold fewer frames than
    /// this: what signals and dying processes need must not hang on a victim's memory.
    pub fn reserve(&self) -> u64 {
        self.reserve.load(Relaxed)
    }
    /// So many more.
    pub fn grow_reserve(&self, frames: u64) {
        self.reserve.fetch_add(frames, Relaxed);
    }
    /// The end of a [`Phys::grow_reserve`].
    pub fn shrink_reserve(&self, frames: u64) {
        self.reserve.fetch_sub(frames, Relaxed);
    }

    /// One frame, or `None` when no list or cache that `want` may use has one.
    #[inline]
    pub fn alloc<H: Hw>(&self, hw: H, want: Use) -> Option<Frame<Owned>> {
        #[cfg(any(feature = "poison", feature = "sim"))]
        if self.injected_failure() {
            return None;
        }
        let cpu = &self.cpus[hw.cpu()];
        if want == Use::Movable
            && self.movable.load(Relaxed) != 0
            && let Some(pfn) = self.pop(hw, &cpu.movable, &[Zone::Movable], false)
        {
            return Some(born(hw, pfn, Order::ZERO));
        }
        if want == Use::Dma32 {
            return self.alloc_order(hw, Order::ZERO, want);
        }
        let pfn = self.pop(hw, &cpu.normal, Use::Kernel.zones(), want == Use::Movable)?;
        Some(born(hw, pfn, Order::ZERO))
    }

    /// One frame that nobody can move, for user memory: leaves the kernel's reserve alone.
    pub fn alloc_unmovable<H: Hw>(&self, hw: H) -> Option<Frame<Owned>> {
        #[cfg(any(feature = "poison", feature = "sim"))]
        if self.injected_failure() {
            return None;
        }
        let cache = &self.cpus[hw.cpu()].normal;
        let pfn = self.pop(hw, cache, Use::Kernel.zones(), true)?;
        Some(born(hw, pfn, Order::ZERO))
    }

    #[inline]
    fn pop<H: Hw>(
        &self,
        hw: H,
        cache: &SpinLock<Cache>,
        from: &[Zone],
        modest: bool,
    ) -> Option<Pfn> {
        let mut c = cache.lock(hw);
        if c.len == 0 {
            self.refill(hw, &mut c, from, modest)?;
        }
        c.len -= 1;
        let at = c.len;
        // A full or larger length cannot be: the index below is within the array.
        Some(Pfn(*c.pfns.get(at)? as u64))
    }

    #[cold]
    #[inline(never)]
    fn refill<H: Hw>(&self, hw: H, c: &mut Cache, from: &[Zone], modest: bool) -> Option<()> {
        let keep = if modest { self.reserve() } else { 0 };
        for &z in from {
            let mut buddy = self.zones[z as usize].lock(hw);
            if buddy.free < keep {
                continue;
            }
            if let Some((pfn, order)) = buddy.take_up_to(hw, BATCH) {
                let n = order.pages() as usize;
                // Highest first, so that frames come out in rising order.
                for (i, slot) in c.pfns[..n].iter_mut().enumerate() {
                    *slot = (pfn.0 + (n - 1 - i) as u64) as u32;
                }
                c.len = n;
                return Some(());
            }
        }
        // Other CPUs' caches and the zero-table caches are the last frames there are.
        self.steal(hw, c, from)
    }

    fn steal<H: Hw>(&self, hw: H, c: &mut Cache, from: &[Zone]) -> Option<()> {
        let movable = from[0] == Zone::Movable;
        for cpu in &self.cpus {
            let other = if movable { &cpu.movable } else { &cpu.normal };
            // try: our own cache is locked already, and two thieves must not wait for each other.
            if let Some(mut o) = other.try_lock(hw)
                && o.len > 0
            {
                let n = o.len.div_ceil(2);
                let left = o.len - n;
                c.pfns[..n].copy_from_slice(&o.pfns[left..left + n]);
                o.len = left;
                c.len = n;
                return Some(());
            }
            if !movable
                && let Some(mut t) = cpu.tables.try_lock(hw)
                && t.0 > 0
            {
                t.0 -= 1;
                c.pfns[0] = t.1[t.0];
                c.len = 1;
                return Some(());
            }
        }
        None
    }

    /// A zeroed frame for a page table.
    #[inline]
    pub fn alloc_table<H: Hw>(&self, hw: H) -> Option<Frame<Zeroed>> {
        #[cfg(any(feature = "poison", feature = "sim"))]
        if self.injected_failure() {
            return None;
        }
        let mut t = self.cpus[hw.cpu()].tables.lock(hw);
        if t.0 > 0 {
            t.0 -= 1;
            let pfn = t.1[t.0];
            drop(t);
            hw.desc(Pfn(pfn as u64)).refs.store(1, Relaxed);
            hw.frames_born(Pfn(pfn as u64), Order::ZERO);
            return Some(Frame::new(Pfn(pfn as u64), Order::ZERO));
        }
        drop(t);
        let cache = &self.cpus[hw.cpu()].normal;
        let pfn = self.pop(hw, cache, Use::Kernel.zones(), true)?;
        Some(born(hw, pfn, Order::ZERO).zero(hw))
    }

    /// Takes back a table page, every entry of which is zero.
    #[inline]
    pub fn free_table<H: Hw>(&self, hw: H, f: Frame<Zeroed>) {
        debug_assert!(is_zero(hw, f.pfn()));
        let d = hw.desc(f.pfn());
        if !d.put_is_last(1) {
            return; // as in `free`
        }
        d.flags.store(d.flags.load(Relaxed) & flag::FIXED, Relaxed);
        if !cfg!(feature = "poison") {
            let mut t = self.cpus[hw.cpu()].tables.lock(hw);
            let n = t.0;
            if let Some(slot) = t.1.get_mut(n) {
                hw.frames_dead(f.pfn(), Order::ZERO);
                *slot = f.into_pfn().0 as u32;
                t.0 = n + 1;
                return;
            }
        }
        self.give_back(hw, f.into_pfn(), Order::ZERO);
    }

    /// 2^order frames in a row, aligned to their size.
    pub fn alloc_order<H: Hw>(&self, hw: H, order: Order, want: Use) -> Option<Frame<Owned>> {
        #[cfg(any(feature = "poison", feature = "sim"))]
        if self.injected_failure() {
            return None;
        }
        for pass in 0..2 {
            for &z in want.zones() {
                let got = self.zones[z as usize].lock(hw).take(hw, order);
                if let Some(pfn) = got {
                    return Some(born(hw, pfn, order));
                }
            }
            if pass == 0 {
                self.drain(hw);
            }
        }
        None
    }

    /// Takes a block back, with its owner's reference.
    #[inline]
    pub fn free<H: Hw, S: FrameState>(&self, hw: H, f: Frame<S>) {
        // Somebody may have found its number in a stale place (a page cache read without a lock) and hold
        // it for as long as it takes to see that it is another page now: that one frees it.
        if hw.desc(f.pfn()).put_is_last(1) {
            let order = f.order();
            self.give_back(hw, f.into_pfn(), order);
        }
    }

    /// Nobody holds a reference: back into a cache or the lists.
    #[inline]
    pub(crate) fn give_back<H: Hw>(&self, hw: H, pfn: Pfn, order: Order) {
        hw.frames_dead(pfn, order);
        let d = hw.desc(pfn);
        let fixed = d.flags.load(Relaxed) & flag::FIXED;
        d.flags.store(fixed, Relaxed);
        if cfg!(feature = "poison") {
            poison(hw, pfn, order);
        }
        let z = (fixed & flag::ZONE_MASK) >> flag::ZONE_SHIFT;
        if order != Order::ZERO {
            for tail in 1..order.pages() {
                let t = hw.desc(Pfn(pfn.0 + tail));
                t.flags.store(t.flags.load(Relaxed) & flag::FIXED, Relaxed);
            }
            self.zones[z as usize].lock(hw).give(hw, pfn, order);
            return;
        }
        let cpu = &self.cpus[hw.cpu()];
        let cache = if z == Zone::Movable as u64 {
            &cpu.movable
        } else {
            &cpu.normal
        };
        let mut c = cache.lock(hw);
        if c.len == CACHE {
            self.spill(hw, &mut c, CACHE - BATCH.pages() as usize);
        }
        let n = c.len;
        if let Some(slot) = c.pfns.get_mut(n) {
            *slot = pfn.0 as u32;
            c.len = n + 1;
        }
    }

    /// [`Phys::free`] of many small folios' frames that nobody refers to any more.
    pub(crate) fn free_many<H: Hw>(&self, hw: H, pfns: &[u32]) {
        let cpu = &self.cpus[hw.cpu()];
        let mut at = 0;
        while at < pfns.len() {
            let movable = is_movable(hw, pfns[at]);
            let mut c = if movable {
                cpu.movable.lock(hw)
            } else {
                cpu.normal.lock(hw)
            };
            while at < pfns.len() {
                let pfn = Pfn(pfns[at] as u64);
                let d = hw.desc(pfn);
                let fixed = d.flags.load(Relaxed) & flag::FIXED;
                if (fixed & flag::ZONE_MASK == (Zone::Movable as u64) << flag::ZONE_SHIFT)
                    != movable
                {
                    break;
                }
                hw.frames_dead(pfn, Order::ZERO);
                d.mapping.store(0, Relaxed);
                d.flags.store(fixed, Relaxed);
                if cfg!(feature = "poison") {
                    poison(hw, pfn, Order::ZERO);
                }
                if c.len == CACHE {
                    self.spill(hw, &mut c, CACHE - BATCH.pages() as usize);
                }
                let n = c.len;
                if let Some(slot) = c.pfns.get_mut(n) {
                    *slot = pfn.0 as u32;
                    c.len = n + 1;
                }
                at += 1;
            }
        }
    }

    /// Gives a cache's frames back to the lists until about `keep` are left: the oldest go. What came as a whole
    /// block often goes as one, which spares the merging.
    #[cold]
    #[inline(never)]
    fn spill<H: Hw>(&self, hw: H, c: &mut Cache, keep: usize) {
        let n = c.len - keep.min(c.len);
        let mut at = 0;
        while at < n {
            let zone_of = |pfn: u32| {
                (hw.desc(Pfn(pfn as u64)).flags.load(Relaxed) & flag::ZONE_MASK) >> flag::ZONE_SHIFT
            };
            let z = zone_of(c.pfns[at]);
            let mut buddy = self.zones[z as usize].lock(hw);
            while at < n && zone_of(c.pfns[at]) == z {
                let run = &c.pfns[at..c.len];
                match whole_block(run) {
                    Some(first) if zone_of(run[BATCH.pages() as usize - 1]) == z => {
                        buddy.give(hw, first, BATCH);
                        at += BATCH.pages() as usize;
                    }
                    _ => {
                        buddy.give(hw, Pfn(c.pfns[at] as u64), Order::ZERO);
                        at += 1;
                    }
                }
            }
        }
        c.pfns.copy_within(at..c.len, 0);
        c.len -= at;
    }

    /// Empties every CPU's caches into the lists, so that blocks can merge.
    pub fn drain<H: Hw>(&self, hw: H) {
        for cpu in &self.cpus {
            for cache in [&cpu.normal, &cpu.movable] {
                let mut c = cache.lock(hw);
                self.spill(hw, &mut c, 0);
            }
            let mut t = cpu.tables.lock(hw);
            while t.0 > 0 {
                t.0 -= 1;
                let pfn = Pfn(t.1[t.0] as u64);
                self.zones[zone_index(hw, pfn)]
                    .lock(hw)
                    .give(hw, pfn, Order::ZERO);
            }
        }
    }

    /// Frames nobody uses: exact when nobody allocates meanwhile.
    pub fn free_frames<H: Hw>(&self, hw: H) -> u64 {
        let lists: u64 = self.zones.iter().map(|z| z.lock(hw).free).sum();
        let caches: u64 = self
            .cpus
            .iter()
            .map(|c| {
                // One at a time: a guard in a sum lives as long as the sum.
                let normal = c.normal.lock(hw).len;
                let movable = c.movable.lock(hw).len;
                let tables = c.tables.lock(hw).0;
                (normal + movable + tables) as u64
            })
            .sum();
        lists + caches
    }
    /// Folios on each kind of aging list, in the order of `lru::List`.
    pub fn aging<H: Hw>(&self, hw: H) -> [u64; lru::LISTS] {
        self.lru.counts(hw)
    }

    /// Frames under management.
    pub fn managed_frames<H: Hw>(&self, hw: H) -> u64 {
        self.zones.iter().map(|z| z.lock(hw).managed).sum()
    }
    /// Free and managed frames of one zone's lists.
    pub fn zone_frames<H: Hw>(&self, hw: H, zone: Zone) -> (u64, u64) {
        let b = self.zones[zone as usize].lock(hw);
        (b.free, b.managed)
    }

    /// `n` pages were pinned. An interrupt may count, too, hence a whole step.
    #[inline]
    pub(crate) fn count_pinned(&self, cpu: usize, n: u64) {
        self.pins[cpu].acquired.fetch_add(n, Relaxed);
    }
    /// `n` pages were unpinned.
    #[inline]
    pub(crate) fn count_unpinned(&self, cpu: usize, n: u64) {
        self.pins[cpu].released.fetch_add(n, Relaxed);
    }
    /// Pins taken and given back since boot, per page (PIN-14): equal when none is outstanding.
    pub fn pin_counts(&self) -> (u64, u64) {
        // Released first, so that nobody sees more of those than of the others.
        let sum =
            |f: fn(&PinStat) -> &AtomicU64| self.pins.iter().map(|p| f(p).load(Acquire)).sum();
        let released = sum(|p| &p.released);
        (sum(|p| &p.acquired), released)
    }

    /// A page table has an entry that nobody made (PFN-8).
    pub(crate) fn count_bad_entry(&self) {
        self.bad_entries.fetch_add(1, Relaxed);
    }
    /// How often one was met since boot.
    pub fn bad_entries(&self) -> u64 {
        self.bad_entries.load(Relaxed)
    }

    /// Test hook (K-25): the `n`th allocation from now fails; 0 turns it off.
    #[cfg(any(feature = "poison", feature = "sim"))]
    pub fn fail_after(&self, n: u64) {
        self.fail_after.store(n, Relaxed);
    }

    #[cfg(any(feature = "poison", feature = "sim"))]
    fn injected_failure(&self) -> bool {
        self.fail_after.load(Relaxed) != 0 && self.fail_after.fetch_sub(1, Relaxed) == 1
    }
}

fn is_movable<H: Hw>(hw: H, pfn: u32) -> bool {
    zone_index(hw, Pfn(pfn as u64)) == Zone::Movable as usize
}

/// If a cache's entries begin with all frames of one aligned block of `BATCH`, in rising or falling order: the block.
fn whole_block(pfns: &[u32]) -> Option<Pfn> {
    const N: usize = BATCH.pages() as usize;
    let run: &[u32; N] = pfns.first_chunk()?;
    let step = run[1].wrapping_sub(run[0]);
    let first = if step == 1 { run[0] } else { run[N - 1] };
    if first % N as u32 != 0 || (step != 1 && step != u32::MAX) {
        return None;
    }
    run.windows(2)
        .all(|w| w[1].wrapping_sub(w[0]) == step)
        .then_some(Pfn(first as u64))
}

fn zone_index<H: Hw>(hw: H, pfn: Pfn) -> usize {
    ((hw.desc(pfn).flags.load(Relaxed) & flag::ZONE_MASK) >> flag::ZONE_SHIFT) as usize
}

/// A block begins its life: one reference, no mapping.
#[inline]
fn born<H: Hw>(hw: H, pfn: Pfn, order: Order) -> Frame<Owned> {
    if cfg!(feature = "poison") {
        check_poison(hw, pfn, order);
    }
    let d = hw.desc(pfn);
    debug_assert_eq!(
        d.refs.load(Relaxed),
        0,
        "frame {pfn:?} was given back with references"
    );
    d.refs.store(1, Relaxed);
    if order != Order::ZERO {
        d.flags.store(
            d.flags.load(Relaxed) | (order.get() as u64) << flag::ORDER_SHIFT,
            Relaxed,
        );
    }
    hw.frames_born(pfn, order);
    Frame::new(pfn, order)
}

/// What a freed frame is filled with in test builds.
pub const POISON_FREE: u64 = 0x0101_0101_0101_0101;
/// What a fresh frame is filled with in test builds.
pub const POISON_FRESH: u64 = 0x0505_0505_0505_0505;

#[cold]
fn poison<H: Hw>(hw: H, pfn: Pfn, order: Order) {
    for i in 0..order.pages() {
        fill(hw, Pfn(pfn.0 + i), POISON_FREE);
    }
    if order == Order::ZERO {
        hw.desc(pfn).private.store(POISON_FREE, Relaxed);
    }
}

#[cold]
fn check_poison<H: Hw>(hw: H, pfn: Pfn, order: Order) {
    for i in 0..order.pages() {
        let pfn = Pfn(pfn.0 + i);
        let d = hw.desc(pfn);
        // Only frames that were freed one by one carry the mark; it goes with this use. What comes in its place is
        // not zero: a new owner relies on nothing.
        if d.private.swap(POISON_FRESH, Relaxed) == POISON_FREE {
            let p = hw.frame_ptr(pfn) as *const u64;
            for w in 0..512 {
                // SAFETY: the frame is free and ours; its 4096 bytes lie behind frame_ptr.
                let v = unsafe { p.add(w).read_volatile() };
                assert!(
                    v == POISON_FREE,
                    "frame {pfn:?} was written at byte {} after it was freed: {v:#x}",
                    w * 8
                );
            }
        }
        fill(hw, pfn, POISON_FRESH);
    }
}

fn fill<H: Hw>(hw: H, pfn: Pfn, word: u64) {
    let p = hw.frame_ptr(pfn) as *mut u64;
    for w in 0..512 {
        // SAFETY: the frame is not in use and ours to fill; its 4096 bytes lie behind frame_ptr.
        unsafe { p.add(w).write(word) };
    }
}

fn is_zero<H: Hw>(hw: H, pfn: Pfn) -> bool {
    let p = hw.frame_ptr(pfn) as *const u64;
    // SAFETY: the caller owns the frame; its 4096 bytes lie behind frame_ptr.
    (0..512).all(|w| unsafe { p.add(w).read() } == 0)
}
