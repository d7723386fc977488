//! The kernel half: its root, what is mapped in it, kernel stacks, and frames in a row for the heap.
//!
//! Every top-level entry of the kernel half that is ever used is filled at boot and never changes, so a
//! user root copies entries 256 to 511 once. Tables below are added, never freed. Kernel stacks have an
//! unmapped guard as large as the stack below them.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mm::Pfn;
use mm::table::Caching;

use super::regions::Early;
use super::{direct, frames};
use crate::arch::{self, MAX_CPUS};
use crate::sync::IrqLock;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const LARGE_LEAF: u64 = 0x80;
const GLOBAL: u64 = 0x100;
const NX: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits of a kernel data leaf (accessed and dirty are set: nobody asks).
pub(super) const DATA: u64 = PRESENT | WRITABLE | GLOBAL | NX | 0x60;
const TABLE: u64 = PRESENT | WRITABLE | 0x20;

const STACK_SIZE: u64 = 16 << 10;
const STACK_ORDER: u8 = 2;
const STACK_SLOT: u64 = 2 * STACK_SIZE;
/// Frames in a row, above the stacks in the same top-level entry; who maps some shares the addresses out.
pub(super) const ROWS: u64 = super::KSPACE + (128 << 30);
/// Device registers, in the upper part.
pub(super) const DEVICES: u64 = super::KSPACE + (256 << 30);

/// Size of a leaf.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaf {
    Small,
    Large,
}

static ROOT: AtomicU64 = AtomicU64::new(0);
static BOOT_STACK: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Held while tables of the kernel half change.
static TABLES: IrqLock<()> = IrqLock::new(());
static DEVICES_USED: AtomicU64 = AtomicU64::new(0);

/// The kernel's own root: an empty lower half.
#[inline]
pub fn kernel_root() -> Pfn {
    Pfn(ROOT.load(Ordering::Relaxed))
}

fn table(pa: u64) -> *mut u64 {
    direct(pa & ADDRESS) as *mut u64
}

fn index(va: u64, level: u32) -> usize {
    (va >> (12 + 9 * level) & 511) as usize
}

/// Makes the kernel's root from the loader's: its kernel half, and our top-level entries; leaves the
/// loader's lower half. The boot stack has this bottom and length.
pub(super) fn init(early: &mut Early, stack: (u64, u64)) {
    BOOT_STACK[0].store(stack.0, Ordering::Relaxed);
    BOOT_STACK[1].store(stack.0 + stack.1, Ordering::Relaxed);
    let root = early.frame();
    let old = table(arch::cr3());
    for i in 256..512 {
        // SAFETY: both are page-table pages in the direct map.
        unsafe {
            let entry = *old.add(i);
            *table(root).add(i) = entry;
        }
    }
    for va in [super::VMEMMAP, super::KSPACE] {
        let slot = index(va, 3);
        // SAFETY: as above; the new table is zeroed.
        unsafe { *table(root).add(slot) = early.frame() | TABLE };
    }
    ROOT.store(root >> 12, Ordering::Relaxed);
    // SAFETY: the kernel half is the one that is loaded now.
    unsafe { arch::set_cr3(root) };
}

/// The physical address behind a kernel address.
pub fn translate(va: u64) -> Option<u64> {
    let mut pa = ROOT.load(Ordering::Relaxed) << 12;
    for level in (0..4).rev() {
        // SAFETY: a page-table page of the kernel half; such pages are never freed.
        let entry = unsafe { table(pa).add(index(va, level)).read_volatile() };
        if entry & PRESENT == 0 {
            return None;
        }
        if level == 0 || entry & LARGE_LEAF != 0 {
            let mask = (1u64 << (12 + 9 * level)) - 1;
            return Some((entry & ADDRESS & !mask) | va & mask);
        }
        pa = entry;
    }
    None
}

/// The leaf's bits behind a kernel address, for the protection check at boot.
pub fn leaf_bits(va: u64) -> Option<u64> {
    let mut pa = ROOT.load(Ordering::Relaxed) << 12;
    for level in (0..4).rev() {
        // SAFETY: as in `translate`.
        let entry = unsafe { table(pa).add(index(va, level)).read_volatile() };
        if entry & PRESENT == 0 {
            return None;
        }
        if level == 0 || entry & LARGE_LEAF != 0 {
            return Some(entry & !ADDRESS);
        }
        pa = entry;
    }
    None
}

unsafe extern "C" {
    static __rodata_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __data_start: u8;
    static __bss_end: u8;
}

/// Panics unless the image is mapped W^X: text read-only, the rest not executable, constants read-only; and
/// nothing that we mapped ourselves is executable.
pub fn check_protection() {
    let rodata = &raw const __rodata_start as u64..&raw const __text_start as u64;
    let text = &raw const __text_start as u64..&raw const __text_end as u64;
    let data = &raw const __data_start as u64..&raw const __bss_end as u64;
    let wanted = [(rodata, NX), (text, 0), (data, NX | WRITABLE)];
    for (range, bits) in wanted {
        for va in (range.start & !4095..range.end).step_by(4096) {
            let has = leaf_bits(va).map(|b| b & (NX | WRITABLE));
            assert!(
                has == Some(bits),
                "the kernel's page {va:#x} is mapped with {has:x?}"
            );
        }
    }
    assert!(
        leaf_bits(direct(0x10_0000)).is_some_and(|b| b & NX != 0),
        "the direct map is executable"
    );
    assert!(
        leaf_bits(0).is_none(),
        "the kernel's root maps the lower half"
    );
}

/// The slot of `va` at `level`, with the tables above it made from `frame`.
fn slot(va: u64, level: u32, frame: &mut dyn FnMut() -> Option<u64>) -> Option<*mut u64> {
    let mut pa = ROOT.load(Ordering::Relaxed) << 12;
    for at in (level + 1..4).rev() {
        // SAFETY: a page-table page of the kernel half, and we hold `TABLES`.
        unsafe {
            let entry = table(pa).add(index(va, at));
            if *entry & PRESENT == 0 {
                assert!(at < 3, "top-level entries are filled at boot");
                entry.write_volatile(frame()? | TABLE);
            }
            assert!(*entry & LARGE_LEAF == 0 || at == 3, "a leaf is in the way");
            pa = *entry;
        }
    }
    Some(table(pa).wrapping_add(index(va, level)))
}

/// Maps one leaf; `frame` brings zeroed frames for tables.
pub(super) fn map(
    va: u64,
    pa: u64,
    leaf: Leaf,
    bits: u64,
    frame: &mut dyn FnMut() -> Option<u64>,
) -> Option<()> {
    let _held = TABLES.lock();
    let (level, bits) = if leaf == Leaf::Large {
        (1, bits | LARGE_LEAF)
    } else {
        (0, bits)
    };
    let at = slot(va, level, frame)?;
    // SAFETY: the slot is in a table of the kernel half, which `TABLES` guards.
    unsafe {
        assert!(*at & PRESENT == 0, "{va:#x} is mapped already");
        at.write_volatile(pa | bits);
    }
    Some(())
}

fn unmap(va: u64) {
    let _held = TABLES.lock();
    if let Some(at) = slot(va, 0, &mut || None) {
        // SAFETY: as in `map`.
        unsafe { at.write_volatile(0) };
    }
}

/// The small leaf of the direct map behind `va`, made by splitting the large one that covers it: another table that
/// says the same, so nobody need forget anything. Leaves are never joined again. `TABLES` is held.
fn split(va: u64) -> Option<*mut u64> {
    let mut pa = ROOT.load(Ordering::Relaxed) << 12;
    for level in (1..4).rev() {
        // SAFETY: a page-table page of the kernel half, and we hold `TABLES`; the new one is ours until it is hooked.
        unsafe {
            let entry = table(pa).add(index(va, level));
            let old = *entry;
            assert!(old & PRESENT != 0, "{va:#x} is not in the direct map");
            if old & LARGE_LEAF == 0 {
                pa = old;
                continue;
            }
            let size = 1u64 << (12 + 9 * (level - 1));
            let bits = old & !ADDRESS & if level == 1 { !LARGE_LEAF } else { !0 };
            let base = old & ADDRESS & !(512 * size - 1);
            let new = frames::alloc(0)?;
            for i in 0..512 {
                *table(new).add(i as usize) = (base + i * size) | bits;
            }
            entry.write_volatile(new | TABLE);
            pa = new;
        }
    }
    Some(table(pa).wrapping_add(index(va, 0)))
}

/// Takes a frame out of the direct map; false when there is no memory for a table. Interrupts on: every CPU has
/// forgotten it afterwards.
pub(crate) fn hide(pfn: Pfn) -> bool {
    let va = direct(pfn.0 << 12);
    {
        let _held = TABLES.lock();
        let Some(leaf) = split(va) else {
            return false;
        };
        // SAFETY: a leaf of the direct map, which `TABLES` guards; nobody uses the frame through it.
        unsafe { leaf.write_volatile(*leaf & !PRESENT) };
    }
    arch::flush_kernel(va, va + 4096);
    true
}

/// Puts a hidden frame back. What is not present is in no cache: nothing to flush.
pub(crate) fn show(pfn: Pfn) {
    let _held = TABLES.lock();
    if let Some(leaf) = split(direct(pfn.0 << 12)) {
        // SAFETY: as in `hide`, which left the rest of the leaf.
        unsafe { leaf.write_volatile(*leaf | PRESENT) };
    }
}

/// Maps the gate page, for user mode to read: the one leaf of the kernel half that has the user bit, and so have
/// the tables above it.
pub fn map_gate(va: u64, page: Pfn) -> Option<()> {
    const USER: u64 = 4;
    let _held = TABLES.lock();
    let leaf = slot(va, 0, &mut frames::alloc_zeroed)?;
    let mut pa = ROOT.load(Ordering::Relaxed) << 12;
    // SAFETY: tables of the kernel half, which `TABLES` guards; `slot` has made those that were missing.
    unsafe {
        for level in (1..4).rev() {
            let entry = table(pa).add(index(va, level));
            entry.write_volatile(*entry | USER);
            pa = *entry;
        }
        leaf.write_volatile(page.0 << 12 | PRESENT | USER | NX | 0x60);
    }
    Some(())
}

/// Maps device registers or memory, for ever.
pub fn map_device(pa: u64, len: u64, caching: Caching) -> u64 {
    let first = pa & !4095;
    let pages = ((pa + len).next_multiple_of(4096) - first) >> 12;
    let va = DEVICES + (DEVICES_USED.fetch_add(pages, Ordering::Relaxed) << 12);
    for i in 0..pages {
        map(
            va + i * 4096,
            first + i * 4096,
            Leaf::Small,
            DATA | caching.bits(),
            &mut frames::alloc_zeroed,
        )
        .expect("tables of device registers");
    }
    va + (pa - first)
}

/// A root for the first steps of another CPU: the kernel's, and one page at its own address. Drop frees it.
pub(crate) struct TrampolineRoot([u64; 4]);

/// See [`TrampolineRoot`]. Its top table lies below 4 GiB, where a 32-bit CR3 reaches.
pub(crate) fn trampoline_root(page: u64) -> TrampolineRoot {
    let tables = [(); 4].map(|()| {
        let frame = crate::memory::frames::alloc_low().expect("tables of the trampoline");
        // SAFETY: just taken.
        unsafe { super::regions::zero(frame, 4096) };
        frame
    });
    // SAFETY: four frames of ours; entries of the kernel half are copied from the root.
    unsafe {
        for i in 256..512 {
            *table(tables[0]).add(i) = *table(ROOT.load(Ordering::Relaxed) << 12).add(i);
        }
        for level in 1..4 {
            *table(tables[level - 1]).add(index(page, 4 - level as u32)) = tables[level] | TABLE;
        }
        *table(tables[3]).add(index(page, 0)) = page | PRESENT | WRITABLE | 0x60;
    }
    TrampolineRoot(tables)
}

impl TrampolineRoot {
    pub(crate) fn cr3(&self) -> u64 {
        self.0[0]
    }
}

impl Drop for TrampolineRoot {
    fn drop(&mut self) {
        for table in self.0 {
            // SAFETY: the CPUs that used it have loaded the kernel's root.
            unsafe { frames::free(table, 0) };
        }
    }
}

/// Free stacks, still mapped, linked through their topmost word. One list for each CPU, its length capped,
/// and one for all.
struct Free {
    head: u64,
    len: usize,
}

const CACHED: usize = 16;
static FREE: [IrqLock<Free>; MAX_CPUS + 1] =
    [const { IrqLock::new(Free { head: 0, len: 0 }) }; MAX_CPUS + 1];
/// Slots whose stacks were unmapped by `trim`, and how many slots there are.
static SLOTS: AtomicUsize = AtomicUsize::new(0);
static MAPPED: AtomicUsize = AtomicUsize::new(0);
static HOLES: IrqLock<Holes> = IrqLock::new(Holes {
    len: 0,
    slots: [0; 1024],
});

struct Holes {
    len: usize,
    slots: [u32; 1024],
}

impl Free {
    fn push(&mut self, top: u64) {
        // SAFETY: a mapped stack that nobody uses.
        unsafe { ((top - 8) as *mut u64).write(self.head) };
        self.head = top;
        self.len += 1;
    }

    fn pop(&mut self) -> Option<u64> {
        let top = self.head;
        if top == 0 {
            return None;
        }
        // SAFETY: as in `push`.
        self.head = unsafe { ((top - 8) as *const u64).read() };
        self.len -= 1;
        Some(top)
    }
}

/// 16 KiB of mapped stack with an unmapped guard below.
pub struct KernelStack {
    top: u64,
}

impl KernelStack {
    /// Mostly from this CPU's cache.
    pub fn new() -> Option<Self> {
        let mine = &FREE[arch::cpu_id()];
        if let Some(top) = mine.lock().pop() {
            return Some(KernelStack { top });
        }
        if let Some(top) = FREE[MAX_CPUS].lock().pop() {
            return Some(KernelStack { top });
        }
        Self::make()
    }

    #[cold]
    fn make() -> Option<Self> {
        let hole = {
            let mut holes = HOLES.lock();
            holes.len.checked_sub(1).map(|last| {
                holes.len = last;
                holes.slots[last] as usize
            })
        };
        let slot = hole.unwrap_or_else(|| SLOTS.fetch_add(1, Ordering::Relaxed));
        let bottom = super::KSPACE + slot as u64 * STACK_SLOT + STACK_SIZE;
        assert!(bottom < ROWS);
        let give_back = || {
            let mut holes = HOLES.lock();
            let at = holes.len;
            if at < holes.slots.len() {
                holes.slots[at] = slot as u32;
                holes.len += 1;
            }
        };
        let Some(pa) = frames::alloc(STACK_ORDER) else {
            give_back();
            return None;
        };
        for at in (0..STACK_SIZE).step_by(4096) {
            if map(
                bottom + at,
                pa + at,
                Leaf::Small,
                DATA,
                &mut frames::alloc_zeroed,
            )
            .is_none()
            {
                (0..at).step_by(4096).for_each(|done| unmap(bottom + done));
                // Nobody has touched the addresses, so no CPU has cached them.
                // SAFETY: unmapped, ours.
                unsafe { frames::free(pa, STACK_ORDER) };
                give_back();
                return None;
            }
        }
        MAPPED.fetch_add(1, Ordering::Relaxed);
        Some(KernelStack {
            top: bottom + STACK_SIZE,
        })
    }

    /// One past the highest byte; 16-byte aligned.
    pub fn top(&self) -> u64 {
        self.top
    }
}

impl Drop for KernelStack {
    fn drop(&mut self) {
        let mut mine = FREE[arch::cpu_id()].lock();
        if mine.len < CACHED {
            mine.push(self.top);
        } else {
            drop(mine);
            FREE[MAX_CPUS].lock().push(self.top);
        }
    }
}

/// Maps single frames at `pages` addresses in a row, where nothing is mapped.
pub(super) fn map_row(start: u64, pages: u64) -> Option<()> {
    for at in (0..pages).map(|n| start + (n << 12)) {
        let pa = frames::alloc(0);
        let mapped = pa.and_then(|pa| map(at, pa, Leaf::Small, DATA, &mut frames::alloc_zeroed));
        if mapped.is_none() {
            let done = (start..at).step_by(4096).filter_map(|done| {
                let pa = translate(done);
                unmap(done);
                pa
            });
            // Nobody has touched the addresses, so no CPU has cached them.
            // SAFETY: unmapped, ours.
            pa.into_iter()
                .chain(done)
                .for_each(|pa| unsafe { frames::free(pa, 0) });
            return None;
        }
    }
    Some(())
}

/// Unmaps such a row and frees its frames. Thread context, interrupts on.
///
/// # Safety
/// `map_row` mapped it, and nobody uses it any more.
pub(super) unsafe fn unmap_row(start: u64, pages: u64) {
    const AT_ONCE: u64 = 64;
    let end = start + (pages << 12);
    for first in (start..end).step_by((AT_ONCE << 12) as usize) {
        let last = end.min(first + (AT_ONCE << 12));
        let mut row = [0u64; AT_ONCE as usize];
        for (va, pa) in (first..last).step_by(4096).zip(&mut row) {
            *pa = translate(va).expect("a mapped row");
            unmap(va);
        }
        arch::flush_kernel(first, last);
        for pa in &row[..((last - first) >> 12) as usize] {
            // SAFETY: `map_row` took it; unmapped, and every CPU has forgotten it.
            unsafe { frames::free(*pa, 0) };
        }
    }
}

/// Slots of a large stack.
const LARGE: usize = 4;

/// 112 KiB of mapped stack with an unmapped guard below, for code that asks for more than threads have. Never unmapped:
/// the next one who wants one gets it.
pub struct LargeStack {
    top: u64,
}

static UNUSED: IrqLock<(usize, [u64; 16])> = IrqLock::new((0, [0; 16]));

impl LargeStack {
    pub fn new() -> Option<Self> {
        let mut unused = UNUSED.lock();
        if let Some(last) = unused.0.checked_sub(1) {
            unused.0 = last;
            return Some(LargeStack {
                top: unused.1[last],
            });
        }
        drop(unused);
        let first = super::KSPACE + SLOTS.fetch_add(LARGE, Ordering::Relaxed) as u64 * STACK_SLOT;
        let top = first + LARGE as u64 * STACK_SLOT;
        assert!(top < ROWS);
        let bottom = first + STACK_SIZE;
        // Where there is no memory the addresses are lost; there are plenty.
        map_row(bottom, (top - bottom) >> 12)?;
        Some(LargeStack { top })
    }

    /// Calls `f` on this stack.
    pub fn run<F: FnOnce() -> R, R>(&mut self, f: F) -> R {
        struct Call<F, R> {
            f: Option<F>,
            result: Option<R>,
        }
        extern "C" fn call<F: FnOnce() -> R, R>(arg: *mut ()) {
            // SAFETY: the `Call` below, which `run` lends until this returns.
            let call = unsafe { &mut *arg.cast::<Call<F, R>>() };
            call.result = call.f.take().map(|f| f());
        }
        let mut lent = Call {
            f: Some(f),
            result: None,
        };
        // SAFETY: our stack, borrowed for the call; its size is for the caller to know.
        unsafe { arch::switch::call_on(self.top, call::<F, R>, (&raw mut lent).cast()) };
        lent.result.expect("the call has returned")
    }
}

impl Drop for LargeStack {
    fn drop(&mut self) {
        let mut unused = UNUSED.lock();
        let n = unused.0;
        if n < unused.1.len() {
            unused.1[n] = self.top;
            unused.0 += 1;
        }
    }
}

/// Unmaps the stacks that nobody uses and frees their frames. Thread context, interrupts on.
pub fn trim() {
    loop {
        let mut tops = [0u64; 32];
        let mut n = 0;
        for list in &FREE {
            let mut list = list.lock();
            while n < tops.len() {
                let Some(top) = list.pop() else { break };
                tops[n] = top;
                n += 1;
            }
        }
        if n == 0 {
            return;
        }
        let mut blocks = [0u64; 32];
        for (top, block) in tops[..n].iter().zip(&mut blocks) {
            let bottom = top - STACK_SIZE;
            *block = translate(bottom).expect("a mapped stack");
            (0..STACK_SIZE)
                .step_by(4096)
                .for_each(|at| unmap(bottom + at));
        }
        arch::flush_kernel(super::KSPACE, DEVICES);
        for (top, block) in tops[..n].iter().zip(blocks) {
            // SAFETY: unmapped, and every CPU has forgotten it.
            unsafe { frames::free(block, STACK_ORDER) };
            MAPPED.fetch_sub(1, Ordering::Relaxed);
            let mut holes = HOLES.lock();
            let at = holes.len;
            // A full list forgets the address range, of which there is plenty.
            if at < holes.slots.len() {
                holes.slots[at] = ((top - STACK_SIZE - super::KSPACE) / STACK_SLOT) as u32;
                holes.len += 1;
            }
        }
    }
}

/// Frames that kernel stacks hold, used or cached.
pub fn stack_frames() -> usize {
    MAPPED.load(Ordering::Relaxed) << STACK_ORDER
}

/// The boot stack, as the loader made it: bottom and top. One unmapped page lies below.
pub fn boot_stack() -> (u64, u64) {
    let [bottom, top] = &BOOT_STACK;
    (bottom.load(Ordering::Relaxed), top.load(Ordering::Relaxed))
}

/// How far `va` lies in a slot of kernel stacks, if in one.
fn offset_in_slot(va: u64) -> Option<u64> {
    let end = super::KSPACE + SLOTS.load(Ordering::Relaxed) as u64 * STACK_SLOT;
    (super::KSPACE..end)
        .contains(&va)
        .then(|| (va - super::KSPACE) % STACK_SLOT)
}

/// If `va` is in the guard below a kernel stack: that stack's bottom.
pub(crate) fn guard_of(va: u64) -> Option<u64> {
    let (bottom, _) = boot_stack();
    if (bottom.wrapping_sub(4096)..bottom).contains(&va) {
        return Some(bottom);
    }
    let offset = offset_in_slot(va)?;
    // A large stack goes through where other slots have their guard.
    (offset < STACK_SIZE && translate(va).is_none()).then_some(va - offset + STACK_SIZE)
}

/// The top of the kernel stack that `va` lies in.
pub(crate) fn top_of(va: u64) -> Option<u64> {
    let (bottom, top) = boot_stack();
    if (bottom..top).contains(&va) {
        return Some(top);
    }
    offset_in_slot(va)?;
    let mut pages = (va & !4095..DEVICES).step_by(4096);
    // The next slot's guard ends it.
    pages.find(|at| translate(*at).is_none())
}
