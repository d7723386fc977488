//! Typed slabs: fixed-size objects on hot paths, built on frames.
//!
//! Memory of a slab is type-stable: an object is made once by [`SlabObject::fresh`] when its frame is
//! carved and is a valid `T` ever after, in use or not, so a lockless reader that holds a stale address
//! still reads a `T` (and must find out that it is stale). A freed object is not touched: which
//! objects are free is written beside them, not in them. Frames go back to the allocator only in
//! [`shrink`], after every CPU has taken an interrupt.
//!
//! Each CPU has a magazine of free objects per type; behind it, partly used frames are listed under the
//! slab's lock. A frame begins with a header, then objects.

use super::Hw;
use super::frame::{Frame, Owned, flag};
use super::zone::Use;
use crate::addr::{Order, PAGE_SIZE, Pfn};
use crate::hw::MAX_CPUS;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Class, SpinLock, lockdep};
use core::marker::PhantomData;
use core::mem::{align_of, size_of};
use core::ptr::NonNull;

/// Slab types that a machine has room for.
pub const SLABS: usize = 8;
const MAGAZINE: usize = 30;
const MAX_OBJECTS: usize = 64;

/// What may live in a slab.
///
/// # Safety
/// `SLAB` names one type only, and any thread may read a `Self` through `&Self` at any time, also after
/// it was freed: all its fields are atomics, locks, or guarded by such.
pub unsafe trait SlabObject: Sync + Sized + 'static {
    /// Index of the slab, below [`SLABS`]; no two types share one.
    const SLAB: usize;
    /// An object as it first lies in memory.
    fn fresh() -> Self;
}

struct Header {
    prev: u32,
    next: u32,
    /// Objects of this frame that are free and not in a magazine: a stack of indices.
    free: u16,
    total: u16,
    stack: [u8; MAX_OBJECTS],
}

#[derive(Clone, Copy)]
struct Magazine {
    len: usize,
    objects: [usize; MAGAZINE],
}

struct Partial {
    head: u32,
    frames: u64,
}

#[repr(align(64))]
struct Mag(SpinLock<Magazine>);

struct RawSlab {
    mags: [Mag; MAX_CPUS],
    partial: SpinLock<Partial>,
}

/// All slabs of a machine.
pub struct Slabs([RawSlab; SLABS]);

impl Slabs {
    pub(super) const fn new() -> Self {
        Self(
            [const {
                RawSlab {
                    mags: [const {
                        Mag(SpinLock::new(
                            Class::Magazine,
                            Magazine {
                                len: 0,
                                objects: [0; MAGAZINE],
                            },
                        ))
                    }; MAX_CPUS],
                    partial: SpinLock::new(Class::Slab, Partial { head: 0, frames: 0 }),
                }
            }; SLABS],
        )
    }
}

struct Layout<T>(PhantomData<T>);

impl<T: SlabObject> Layout<T> {
    const FIRST: usize = {
        let a = align_of::<T>();
        size_of::<Header>().div_ceil(a) * a
    };
    const COUNT: usize = {
        let n = (PAGE_SIZE as usize - Self::FIRST) / size_of::<T>();
        let n = if n > MAX_OBJECTS { MAX_OBJECTS } else { n };
        assert!(n >= 1, "too large for a slab");
        assert!(align_of::<T>() <= 64);
        n
    };
}

/// An object of the slab, as whoever freed it last left it. `None` without memory.
#[inline]
pub fn alloc<T: SlabObject, H: Hw>(hw: H) -> Option<NonNull<T>> {
    #[cfg(any(feature = "poison", feature = "sim"))]
    if hw.phys().injected_failure() {
        return None;
    }
    let slab = &hw.phys().slabs.0[T::SLAB];
    let mut m = slab.mags[hw.cpu()].0.lock(hw);
    if m.len == 0 {
        refill::<T, H>(hw, slab, &mut m)?;
    }
    m.len -= 1;
    let at = m.len;
    NonNull::new(*m.objects.get(at)? as *mut T)
}

/// Gives an object back; its memory stays a `T`, untouched.
///
/// # Safety
/// `p` came from [`alloc()`] of the same type and machine and is not freed twice; only lockless readers that
/// know how to find out may still hold it.
#[inline]
pub unsafe fn free<T: SlabObject, H: Hw>(hw: H, p: NonNull<T>) {
    let slab = &hw.phys().slabs.0[T::SLAB];
    let mut m = slab.mags[hw.cpu()].0.lock(hw);
    if m.len == MAGAZINE {
        spill(hw, slab, &mut m, MAGAZINE / 2);
    }
    let at = m.len;
    if let Some(slot) = m.objects.get_mut(at) {
        *slot = p.as_ptr() as usize;
        m.len = at + 1;
    }
}

fn header<H: Hw>(hw: H, pfn: u32) -> *mut Header {
    hw.frame_ptr(Pfn(pfn as u64)) as *mut Header
}

#[cold]
fn refill<T: SlabObject, H: Hw>(hw: H, slab: &RawSlab, m: &mut Magazine) -> Option<()> {
    let mut partial = slab.partial.lock(hw);
    if partial.head == 0 {
        // Zone locks come after slab locks in the order, so allocating here is fine.
        let frame = hw.phys().alloc(hw, Use::Kernel)?;
        let pfn = carve::<T, H>(hw, frame);
        partial.frames += 1;
        link(hw, &mut partial, pfn);
    }
    while m.len < MAGAZINE / 2 && partial.head != 0 {
        let pfn = partial.head;
        let h = header(hw, pfn);
        let base = h as usize + Layout::<T>::FIRST;
        // SAFETY: listed frames carry a header, reached only under the slab's lock, which we hold.
        let h = unsafe { &mut *h };
        while h.free > 0 && m.len < MAGAZINE / 2 {
            h.free -= 1;
            m.objects[m.len] = base + h.stack[h.free as usize] as usize * size_of::<T>();
            m.len += 1;
        }
        if h.free == 0 {
            unlink(hw, &mut partial, pfn);
        }
    }
    Some(())
}

fn carve<T: SlabObject, H: Hw>(hw: H, frame: Frame<Owned>) -> u32 {
    let pfn = frame.into_pfn();
    let d = hw.desc(pfn);
    d.flags.store(d.flags.load(Relaxed) | flag::SLAB, Relaxed);
    d.index.store(size_of::<T>() as u64, Relaxed);
    d.private.store(Layout::<T>::FIRST as u64, Relaxed);
    let base = hw.frame_ptr(pfn);
    let n = Layout::<T>::COUNT;
    let mut stack = [0; MAX_OBJECTS];
    for (i, s) in stack[..n].iter_mut().enumerate() {
        *s = (n - 1 - i) as u8;
    }
    // SAFETY: the frame is ours alone (just allocated), page aligned, and header and objects fit (Layout).
    unsafe {
        for i in 0..n {
            (base.add(Layout::<T>::FIRST) as *mut T)
                .add(i)
                .write(T::fresh());
        }
        (base as *mut Header).write(Header {
            prev: 0,
            next: 0,
            free: n as u16,
            total: n as u16,
            stack,
        });
    }
    pfn.0 as u32
}

/// Moves the oldest `n` objects of a magazine back to their frames.
#[cold]
fn spill<H: Hw>(hw: H, slab: &RawSlab, m: &mut Magazine, n: usize) {
    let mut partial = slab.partial.lock(hw);
    for &p in &m.objects[..n] {
        let page = p & !(PAGE_SIZE as usize - 1);
        let base = page as *mut Header;
        // SAFETY: every slab object lies in a frame that begins with a header, reached only under the
        // slab's lock, which we hold.
        let h = unsafe { &mut *base };
        let pfn = pfn_of(hw, base);
        let d = hw.desc(Pfn(pfn as u64));
        let (size, first) = (
            d.index.load(Relaxed) as usize,
            d.private.load(Relaxed) as usize,
        );
        h.stack[h.free as usize] = ((p - page - first) / size) as u8;
        h.free += 1;
        if h.free == 1 {
            link(hw, &mut partial, pfn);
        }
    }
    m.objects.copy_within(n..m.len, 0);
    m.len -= n;
}

fn pfn_of<H: Hw>(hw: H, p: *mut Header) -> u32 {
    // The direct map is linear: the distance from frame 0's address is the number.
    ((p as usize - hw.frame_ptr(Pfn(0)) as usize) / PAGE_SIZE as usize) as u32
}

fn link<H: Hw>(hw: H, partial: &mut Partial, pfn: u32) {
    let old = partial.head;
    // SAFETY: both are slab frames with headers, reached only under the slab's lock (the caller's `partial`).
    unsafe {
        (*header(hw, pfn)).prev = 0;
        (*header(hw, pfn)).next = old;
        if old != 0 {
            (*header(hw, old)).prev = pfn;
        }
    }
    partial.head = pfn;
}

fn unlink<H: Hw>(hw: H, partial: &mut Partial, pfn: u32) {
    // SAFETY: as in `link`.
    unsafe {
        let (prev, next) = ((*header(hw, pfn)).prev, (*header(hw, pfn)).next);
        if prev == 0 {
            partial.head = next;
        } else {
            (*header(hw, prev)).next = next;
        }
        if next != 0 {
            (*header(hw, next)).prev = prev;
        }
    }
}

/// Returns frames without a live object to the allocator; how many. Waits for every CPU to take an
/// interrupt, so that no lockless reader still looks at them: interrupts on, no lock held.
pub fn shrink<H: Hw>(hw: H) -> u64 {
    let mut freed = 0;
    for slab in &hw.phys().slabs.0 {
        for mag in &slab.mags {
            let mut m = mag.0.lock(hw);
            let n = m.len;
            spill(hw, slab, &mut m, n);
        }
        let mut empty = 0;
        {
            let mut partial = slab.partial.lock(hw);
            let mut at = partial.head;
            while at != 0 {
                // SAFETY: listed frames carry headers, reached under the slab's lock.
                let (next, whole) = unsafe {
                    let h = &*header(hw, at);
                    (h.next, h.free == h.total)
                };
                if whole {
                    unlink(hw, &mut partial, at);
                    partial.frames -= 1;
                    // SAFETY: unlinked, no live object: ours to chain.
                    unsafe { (*header(hw, at)).next = empty };
                    empty = at;
                }
                at = next;
            }
        }
        if empty == 0 {
            continue;
        }
        lockdep::may_await(hw);
        hw.grace_period();
        while empty != 0 {
            // SAFETY: ours since it was unlinked above.
            let next = unsafe { (*header(hw, empty)).next };
            hw.phys()
                .free(hw, Frame::<Owned>::new(Pfn(empty as u64), Order::ZERO));
            freed += 1;
            empty = next;
        }
    }
    freed
}

/// Frames that slabs hold.
pub fn frames<H: Hw>(hw: H) -> u64 {
    hw.phys()
        .slabs
        .0
        .iter()
        .map(|s| s.partial.lock(hw).frames)
        .sum()
}
