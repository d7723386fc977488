//! The general heap.
//!
//! Up to 2048 bytes: size classes, carved from single frames, with magazines per CPU. A magazine is a list
//! of free objects linked through their first words; each CPU has two per class, and full ones change hands
//! with the class's depot, so that allocation and freeing take a few instructions whoever frees. The kernel
//! is not preempted and no interrupt handler allocates, so a CPU's magazines need no lock.
//! Up to a page: a frame each, so that who counts frames knows whether there is room (blocks of file systems).
//! Above: `linked_list_allocator` arenas, each a block of frames or, where memory is in pieces, single frames that are mapped in a
//! row; for cold objects only. The direct map has no such row in one piece: no device is given heap memory. A row that holds nothing stays
//! until [`give_back`]: every CPU must forget it, and who frees may hold any lock.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicUsize, Ordering};

use linked_list_allocator::Heap as Arena;
use mm::{Hw, Pfn};

use super::{direct, frames, kspace};
use crate::arch::{self, MAX_CPUS, X86};
use crate::sync::IrqLock;

const CLASSES: [usize; 12] = [16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048];
const LARGEST: usize = 2048;
/// Objects that change hands at a time.
const BATCH: usize = 16;
const PAGE: usize = 4096;

/// Class of each size, in steps of 16 bytes.
const CLASS_OF: [u8; LARGEST / 16 + 1] = {
    let mut table = [0u8; LARGEST / 16 + 1];
    let mut i = 0;
    while i < table.len() {
        let mut class = 0;
        while CLASSES[class] < i * 16 {
            class += 1;
        }
        table[i] = class as u8;
        i += 1;
    }
    table
};

/// The kernel's global allocator.
pub struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

/// Free objects, linked through their first words.
#[derive(Clone, Copy)]
struct Magazine {
    head: *mut u8,
    len: usize,
}

const EMPTY: Magazine = Magazine {
    head: null_mut(),
    len: 0,
};

impl Magazine {
    #[inline(always)]
    fn pop(&mut self) -> *mut u8 {
        let p = self.head;
        // SAFETY: not empty (the callers check), and a free object holds the link to the next.
        self.head = unsafe { p.cast::<*mut u8>().read() };
        self.len -= 1;
        p
    }

    #[inline(always)]
    fn push(&mut self, p: *mut u8) {
        // SAFETY: a free object of at least 16 bytes, ours.
        unsafe { p.cast::<*mut u8>().write(self.head) };
        self.head = p;
        self.len += 1;
    }
}

#[derive(Clone, Copy)]
struct Pair {
    loaded: Magazine,
    spare: Magazine,
}

#[repr(align(64))]
struct Local(UnsafeCell<[Pair; CLASSES.len()]>);
// SAFETY: each is used by its own CPU, in thread context, which is not preempted.
unsafe impl Sync for Local {}
static LOCAL: [Local; MAX_CPUS] = [const {
    Local(UnsafeCell::new(
        [Pair {
            loaded: EMPTY,
            spare: EMPTY,
        }; CLASSES.len()],
    ))
}; MAX_CPUS];

/// Full magazines, linked through the second words of their first objects, and loose objects of `trim`.
struct Depot {
    full: *mut u8,
    loose: Magazine,
}
// SAFETY: behind a lock.
unsafe impl Send for Depot {}
static DEPOTS: [IrqLock<Depot>; CLASSES.len()] = [const {
    IrqLock::new(Depot {
        full: null_mut(),
        loose: EMPTY,
    })
}; CLASSES.len()];

static SLAB_FRAMES: AtomicUsize = AtomicUsize::new(0);
static PAGE_FRAMES: AtomicUsize = AtomicUsize::new(0);
static ARENA_FRAMES: AtomicUsize = AtomicUsize::new(0);

/// The class for a layout, if it is a small one. Objects lie at multiples of their size in a page, so they
/// are aligned to the largest power of two that divides it.
#[inline(always)]
fn class_of(layout: &Layout) -> Option<usize> {
    if layout.size() > LARGEST {
        return None;
    }
    let mut class = CLASS_OF[layout.size().div_ceil(16)] as usize;
    if layout.align() > 16 {
        while class < CLASSES.len() && CLASSES[class] & (layout.align() - 1) != 0 {
            class += 1;
        }
        if class == CLASSES.len() {
            return None;
        }
    }
    Some(class)
}

#[inline(always)]
fn pair(class: usize) -> *mut Pair {
    LOCAL[arch::cpu_id()]
        .0
        .get()
        .cast::<Pair>()
        .wrapping_add(class)
}

#[cold]
#[inline(never)]
fn refill(class: usize) -> *mut u8 {
    // SAFETY: this CPU's pair; nothing in here sleeps.
    let pair = unsafe { &mut *pair(class) };
    if pair.spare.len > 0 {
        core::mem::swap(&mut pair.loaded, &mut pair.spare);
        return pair.loaded.pop();
    }
    let mut depot = DEPOTS[class].lock();
    if !depot.full.is_null() {
        let head = depot.full;
        // SAFETY: a full magazine's first object: next object, next magazine.
        depot.full = unsafe { head.cast::<*mut u8>().add(1).read() };
        pair.loaded = Magazine { head, len: BATCH };
        return pair.loaded.pop();
    }
    if depot.loose.len > 0 {
        while depot.loose.len > 0 && pair.loaded.len < BATCH {
            let p = depot.loose.pop();
            pair.loaded.push(p);
        }
        return pair.loaded.pop();
    }
    drop(depot);
    let Some(pa) = frames::alloc(0) else {
        return null_mut();
    };
    SLAB_FRAMES.fetch_add(1, Ordering::Relaxed);
    // `trim` counts there; the frame's last owner may have left something.
    X86.desc(Pfn(pa >> 12)).private.store(0, Ordering::Relaxed);
    let (page, size) = (direct(pa) as *mut u8, CLASSES[class]);
    for at in (0..PAGE / size).rev() {
        pair.loaded.push(page.wrapping_add(at * size));
    }
    let first = pair.loaded.pop();
    // A page may hold more than a batch: the rest waits in the depot.
    let mut depot = DEPOTS[class].lock();
    while pair.loaded.len > BATCH {
        let p = pair.loaded.pop();
        depot.loose.push(p);
    }
    first
}

#[cold]
#[inline(never)]
fn spill(class: usize) {
    // SAFETY: as in `refill`.
    let pair = unsafe { &mut *pair(class) };
    let full = core::mem::replace(&mut pair.spare, pair.loaded);
    pair.loaded = EMPTY;
    if full.len == BATCH {
        let mut depot = DEPOTS[class].lock();
        // SAFETY: the first of a magazine of free objects; classes have room for two words.
        unsafe { full.head.cast::<*mut u8>().add(1).write(depot.full) };
        depot.full = full.head;
    } else if full.len > 0 {
        let mut full = full;
        let mut depot = DEPOTS[class].lock();
        while full.len > 0 {
            let p = full.pop();
            depot.loose.push(p);
        }
    }
}

// SAFETY: objects are handed out once until they come back, as large and aligned as asked (`class_of`, `has_frame`, arenas).
unsafe impl GlobalAlloc for Heap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class_of(&layout) else {
            return large_alloc(layout);
        };
        // SAFETY: this CPU's pair; we are not preempted here.
        let loaded = unsafe { &mut (*pair(class)).loaded };
        if loaded.len > 0 {
            loaded.pop()
        } else {
            refill(class)
        }
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let Some(class) = class_of(&layout) else {
            // SAFETY: the caller's promise.
            return unsafe { large_free(ptr, layout) };
        };
        if cfg!(feature = "test") {
            // SAFETY: the object is free now, `layout.size()` bytes are in it.
            unsafe { ptr.write_bytes(0x6b, layout.size()) };
        }
        // SAFETY: as in `alloc`.
        let loaded = unsafe { &mut (*pair(class)).loaded };
        if loaded.len == BATCH {
            spill(class);
        }
        loaded.push(ptr);
    }
}

fn has_frame(layout: &Layout) -> bool {
    layout.size() > LARGEST && layout.size() <= PAGE && layout.align() <= PAGE
}

#[cold]
fn large_alloc(layout: Layout) -> *mut u8 {
    if !has_frame(&layout) {
        return arena_alloc(layout);
    }
    let Some(pa) = frames::alloc(0) else {
        return null_mut();
    };
    PAGE_FRAMES.fetch_add(1, Ordering::Relaxed);
    direct(pa) as *mut u8
}

/// # Safety
/// `large_alloc(layout)` returned `ptr`.
#[cold]
unsafe fn large_free(ptr: *mut u8, layout: Layout) {
    if !has_frame(&layout) {
        // SAFETY: the caller's promise; the layout says that it came from there.
        return unsafe { arena_free(ptr, layout) };
    }
    PAGE_FRAMES.fetch_sub(1, Ordering::Relaxed);
    // SAFETY: the frame of `large_alloc`, and nobody uses it any more.
    unsafe { frames::free(ptr as u64 - super::DIRECT_MAP, 0) };
}

struct Span {
    start: usize,
    pages: usize,
    arena: Arena,
}

impl Span {
    fn take(&mut self, layout: Layout) -> Option<*mut u8> {
        let was_empty = self.is_empty();
        let p = self.arena.allocate_first_fit(layout).ok()?;
        if was_empty {
            ARENA_FRAMES.fetch_add(self.pages, Ordering::Relaxed);
        }
        Some(p.as_ptr())
    }

    fn is_empty(&self) -> bool {
        self.arena.used() == 0
    }

    /// Single frames in a row.
    fn is_row(&self) -> bool {
        self.start as u64 >= kspace::ROWS
    }

    fn has(&self, ptr: *mut u8) -> bool {
        (self.start..self.start + self.pages * PAGE).contains(&(ptr as usize))
    }
}

/// Each has addresses of its own for a row.
enum Slot {
    Free,
    /// Its row comes, or goes.
    Busy,
    Used(Span),
}

const SLOTS: usize = 1024;
/// Bytes of a row at most.
pub const ROW: usize = ((kspace::DEVICES - kspace::ROWS) / SLOTS as u64) as usize;

struct Arenas {
    slots: [Slot; SLOTS],
}

impl Arenas {
    /// Makes the first slot busy whose state is as `wanted`: which, and what it was.
    fn claim(&mut self, wanted: impl Fn(&Slot) -> bool) -> Option<(usize, Slot)> {
        let n = self.slots.iter().position(wanted)?;
        Some((n, core::mem::replace(&mut self.slots[n], Slot::Busy)))
    }
}

/// Taken with interrupts off, but never by a handler.
static ARENAS: IrqLock<Arenas> = IrqLock::new(Arenas {
    slots: [const { Slot::Free }; SLOTS],
});

/// Frames that an arena is made of at least, if there are as many.
const SPAN: usize = 64;
const MAX_ORDER: u8 = 10;

/// As many pages in a row, or a few more, for slot `n`: the first byte, and how many.
fn pages_for(n: usize, pages: usize) -> Option<(usize, usize)> {
    let order = pages.next_power_of_two().trailing_zeros() as u8;
    if order <= MAX_ORDER
        && let Some(pa) = frames::alloc(order)
    {
        return Some((direct(pa) as usize, 1 << order));
    }
    // What no block is large enough for leaves the kernel its reserve.
    if order > MAX_ORDER && X86.phys().free_frames(X86) < super::RESERVE + pages as u64 {
        return None;
    }
    let start = kspace::ROWS + (n * ROW) as u64;
    kspace::map_row(start, pages as u64)?;
    Some((start as usize, pages))
}

#[cold]
fn arena_alloc(layout: Layout) -> *mut u8 {
    let mut arenas = ARENAS.lock();
    for slot in &mut arenas.slots {
        if let Slot::Used(span) = slot
            && let Some(p) = span.take(layout)
        {
            return p;
        }
    }
    let needed = layout
        .size()
        .saturating_add(layout.align())
        .saturating_add(64);
    if needed > ROW {
        return null_mut();
    }
    let Some((n, _)) = arenas.claim(|slot| matches!(slot, Slot::Free)) else {
        return null_mut();
    };
    drop(arenas);
    let least = needed.div_ceil(PAGE);
    let found = pages_for(n, least.max(SPAN)).or_else(|| pages_for(n, least));
    let (mut slot, mut got) = (Slot::Free, null_mut());
    if let Some((start, pages)) = found {
        let mut arena = Arena::empty();
        // SAFETY: pages of ours, for as long as the arena lives.
        unsafe { arena.init(start as *mut u8, pages * PAGE) };
        let mut span = Span {
            start,
            pages,
            arena,
        };
        got = span.take(layout).unwrap_or(null_mut());
        slot = Slot::Used(span);
    }
    ARENAS.lock().slots[n] = slot;
    got
}

/// # Safety
/// `arena_alloc(layout)` returned `ptr`.
#[cold]
unsafe fn arena_free(ptr: *mut u8, layout: Layout) {
    let mut arenas = ARENAS.lock();
    for slot in &mut arenas.slots {
        let Slot::Used(span) = slot else { continue };
        if !span.has(ptr) {
            continue;
        }
        // SAFETY: it came from this arena.
        unsafe { span.arena.deallocate(NonNull::new_unchecked(ptr), layout) };
        if span.is_empty() {
            ARENA_FRAMES.fetch_sub(span.pages, Ordering::Relaxed);
            if !span.is_row() {
                let (start, pages) = (span.start as u64, span.pages);
                *slot = Slot::Free;
                // SAFETY: nothing of the arena is in use.
                unsafe { frames::free(start - super::DIRECT_MAP, pages.trailing_zeros() as u8) };
            }
        }
        return;
    }
    panic!("freed {ptr:p}, which no arena has");
}

/// Gives rows that hold nothing back to the frame allocator; how many frames. Thread context, interrupts on, no lock held.
pub fn give_back() -> u64 {
    let unused = |slot: &Slot| matches!(slot, Slot::Used(span) if span.is_row() && span.is_empty());
    let mut given = 0;
    loop {
        let claimed = ARENAS.lock().claim(unused);
        let Some((n, Slot::Used(span))) = claimed else {
            return given;
        };
        // SAFETY: the slot's row from `pages_for`; nothing is in it, and nothing comes while the slot is busy.
        unsafe { kspace::unmap_row(span.start as u64, span.pages as u64) };
        ARENAS.lock().slots[n] = Slot::Free;
        given += span.pages as u64;
    }
}

/// Frames that the heap has; a row that holds nothing is not among them.
pub fn frames_held() -> u64 {
    let kinds = [&SLAB_FRAMES, &PAGE_FRAMES, &ARENA_FRAMES];
    let held: usize = kinds.iter().map(|n| n.load(Ordering::Relaxed)).sum();
    held as u64
}

/// This CPU's magazines into the depots. Other CPUs' cannot be emptied by an interrupt: it may have come in
/// the middle of `alloc`.
fn empty_local() {
    for (class, depot) in DEPOTS.iter().enumerate() {
        // SAFETY: this CPU's pair, thread context.
        let pair = unsafe { &mut *pair(class) };
        let mut depot = depot.lock();
        for magazine in [&mut pair.loaded, &mut pair.spare] {
            while magazine.len > 0 {
                let p = magazine.pop();
                depot.loose.push(p);
            }
        }
    }
}

/// Gives wholly free pages back to the frame allocator: those that no other CPU's magazine has objects of.
/// Thread context.
pub fn trim() {
    empty_local();
    for (class, size) in CLASSES.iter().enumerate() {
        let mut depot = DEPOTS[class].lock();
        while !depot.full.is_null() {
            let head = depot.full;
            // SAFETY: as in `refill`.
            depot.full = unsafe { head.cast::<*mut u8>().add(1).read() };
            let mut full = Magazine { head, len: BATCH };
            while full.len > 0 {
                let p = full.pop();
                depot.loose.push(p);
            }
        }
        // Count the free objects of each page in its descriptor, then leave out the full pages.
        let desc = |p: *mut u8| X86.desc(Pfn((p as u64 - super::DIRECT_MAP) >> 12));
        let mut p = depot.loose.head;
        while !p.is_null() {
            desc(p).private.fetch_add(1, Ordering::Relaxed);
            // SAFETY: a free object of the list.
            p = unsafe { p.cast::<*mut u8>().read() };
        }
        let whole = (PAGE / size) as u64;
        let mut rest = core::mem::replace(&mut depot.loose, EMPTY);
        let mut pages = null_mut::<u8>();
        while rest.len > 0 {
            let p = rest.pop();
            if desc(p).private.load(Ordering::Relaxed) != whole {
                depot.loose.push(p);
            } else if p as usize & (PAGE - 1) == 0 {
                // SAFETY: the first object of a page that is wholly free; its second word links the pages.
                unsafe { p.cast::<*mut u8>().add(1).write(pages) };
                pages = p;
            }
        }
        let mut p = depot.loose.head;
        while !p.is_null() {
            desc(p).private.store(0, Ordering::Relaxed);
            // SAFETY: as above.
            p = unsafe { p.cast::<*mut u8>().read() };
        }
        while !pages.is_null() {
            let page = pages;
            // SAFETY: as above; no list has an object of the page any more.
            unsafe {
                pages = page.cast::<*mut u8>().add(1).read();
                desc(page).private.store(0, Ordering::Relaxed);
                SLAB_FRAMES.fetch_sub(1, Ordering::Relaxed);
                frames::free(page as u64 - super::DIRECT_MAP, 0);
            }
        }
    }
}
