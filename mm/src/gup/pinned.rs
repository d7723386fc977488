//! Pages that are held, and letting go of them.
//!
//! Who holds pages has their frame numbers in slots that he brings himself (a slice on the stack, an array, a
//! `Vec`), so nothing here allocates. A value that is dropped lets go; one that is leaked (`mem::forget`) shows as
//! a difference of the pin counters for ever. Letting go is allowed with interrupts off as well, though not in an
//! interrupt's handler: the last one frees, under locks that the interrupted thread may hold.
//!
//! Write pins mark their pages dirty when they end, unless told that nothing was written.

#![forbid(unsafe_code)]

use crate::addr::Pfn;
use crate::hw::Warning;
use crate::phys::count::PIN_BIAS;
use crate::phys::{Folio, Hw, flag};
use core::marker::PhantomData;

/// A page by its frame's number (not its folio's).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct PageSlot(u32);

impl PageSlot {
    /// No page.
    pub const EMPTY: Self = Self(0);

    /// Holds nothing by itself.
    #[inline]
    pub const fn new(pfn: Pfn) -> Self {
        Self(pfn.0 as u32)
    }
    /// The frame.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 as u64)
    }
}

/// To read a pinned page.
#[derive(Debug)]
pub enum Read {}
/// To write it, too.
#[derive(Debug)]
pub enum Write {}

mod sealed {
    use super::PageSlot;
    pub trait Sealed {}
    impl Sealed for super::Read {}
    impl Sealed for super::Write {}
    impl Sealed for [PageSlot] {}
    impl<const N: usize> Sealed for [PageSlot; N] {}
    impl Sealed for alloc::vec::Vec<PageSlot> {}
    impl Sealed for alloc::boxed::Box<[PageSlot]> {}
    impl<S: Sealed + ?Sized> Sealed for &mut S {}
}

/// Where a caller keeps his slots: arrays, slices, `Vec`s and boxes. Sealed, for what is said of the pages rests on it:
/// nobody but its owner changes them, and it shows the same ones each time it is asked.
///
/// ```compile_fail,E0277
/// struct Fickle;
/// impl AsRef<[mm::gup::PageSlot]> for Fickle { fn as_ref(&self) -> &[mm::gup::PageSlot] { &[] } }
/// impl AsMut<[mm::gup::PageSlot]> for Fickle { fn as_mut(&mut self) -> &mut [mm::gup::PageSlot] { &mut [] } }
/// impl mm::gup::Slots for Fickle {}
/// ```
pub trait Slots: sealed::Sealed + AsRef<[PageSlot]> + AsMut<[PageSlot]> {}
impl Slots for [PageSlot] {}
impl<const N: usize> Slots for [PageSlot; N] {}
impl Slots for alloc::vec::Vec<PageSlot> {}
impl Slots for alloc::boxed::Box<[PageSlot]> {}
impl<S: Slots + ?Sized> Slots for &mut S {}

/// [`Read`] or [`Write`].
pub trait Access: sealed::Sealed {
    /// Whether the pages may be written.
    const WRITE: bool;
}
impl Access for Read {
    const WRITE: bool = false;
}
impl Access for Write {
    const WRITE: bool = true;
}

/// Pinned pages, for whoever touches their bytes, himself or by a device. Dropping unpins:
///
/// ```compile_fail,E0382
/// fn f<H: mm::Hw>(p: mm::gup::PinnedPages<H, mm::gup::Read, Vec<mm::gup::PageSlot>>) { p.unpin(); p.unpin(); }
/// ```
/// What was pinned to be read is not written:
///
/// ```compile_fail,E0599
/// fn f<H: mm::Hw>(p: &mm::gup::PinnedPages<H, mm::gup::Read, Vec<mm::gup::PageSlot>>) { p.copy_in(0, b"x"); }
/// ```
#[must_use = "dropping unpins at once"]
pub struct PinnedPages<H: Hw, A: Access, S: Slots> {
    hw: H,
    slots: S,
    len: usize,
    clean: bool,
    _access: PhantomData<A>,
}

impl<H: Hw, A: Access, S: Slots> PinnedPages<H, A, S> {
    /// Answers for the pins of the first `len` slots.
    #[inline]
    pub(super) fn adopt(hw: H, slots: S, len: usize) -> Self {
        debug_assert!(len <= slots.as_ref().len());
        Self {
            hw,
            slots,
            len,
            clean: false,
            _access: PhantomData,
        }
    }
    /// How many pages.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The pages, in the order of their addresses.
    #[inline]
    pub fn pages(&self) -> &[PageSlot] {
        &self.slots.as_ref()[..self.len]
    }
    /// The machine.
    #[inline]
    pub fn hw(&self) -> H {
        self.hw
    }
    /// Lets go.
    #[inline]
    pub fn unpin(self) {}
    /// Lets go of pages that nobody has written.
    #[inline]
    pub fn unpin_clean(mut self) {
        self.clean = true;
    }
}

impl<H: Hw, A: Access, S: Slots> Drop for PinnedPages<H, A, S> {
    #[inline]
    fn drop(&mut self) {
        let pages = &self.slots.as_ref()[..self.len];
        if A::WRITE && !self.clean {
            unpin_each::<H, true>(self.hw, pages);
        } else {
            unpin_each::<H, false>(self.hw, pages);
        }
    }
}

/// Referenced pages: they stay allocated, and no more. Whoever holds one is not told when its process gets
/// another page in its place, so this is for the page, not for its bytes (PIN-17). Dropping lets go.
#[must_use = "dropping lets go at once"]
pub struct HeldPages<H: Hw, S: Slots> {
    hw: H,
    slots: S,
    len: usize,
}

impl<H: Hw, S: Slots> HeldPages<H, S> {
    #[inline]
    pub(super) fn adopt(hw: H, slots: S, len: usize) -> Self {
        debug_assert!(len <= slots.as_ref().len());
        Self { hw, slots, len }
    }
    /// How many pages.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The pages, in the order of their addresses.
    #[inline]
    pub fn pages(&self) -> &[PageSlot] {
        &self.slots.as_ref()[..self.len]
    }
    /// The machine.
    #[inline]
    pub fn hw(&self) -> H {
        self.hw
    }
    /// Lets go.
    #[inline]
    pub fn put(self) {}
    /// The caller answers for the references from now on: `put_pages`, or `FolioRef::adopt` of each page's folio.
    #[inline]
    pub fn into_slots(self) -> (S, usize)
    where
        S: Default,
    {
        let mut this = self;
        let len = core::mem::take(&mut this.len);
        (core::mem::take(&mut this.slots), len)
    }
}

impl<H: Hw, S: Slots> Drop for HeldPages<H, S> {
    #[inline]
    fn drop(&mut self) {
        put_pages(self.hw, &self.slots.as_ref()[..self.len]);
    }
}

/// Gives back one reference for each page (PIN-17).
#[inline]
pub fn put_pages<H: Hw>(hw: H, pages: &[PageSlot]) {
    for &slot in pages {
        let d = hw.desc(slot.pfn());
        if d.has(flag::TAIL) {
            Folio::of_page(hw, slot.pfn()).put();
        } else if d.put_is_last(1) {
            Folio::new(hw, slot.pfn()).free();
        }
    }
}

/// Pages of `count` from `first` on that share its folio, and that folio (PIN-12).
#[inline]
pub(super) fn range_run<H: Hw>(hw: H, first: Pfn, count: u64) -> (Folio<H>, u64) {
    let folio = Folio::of_page(hw, first);
    let end = folio.pfn().0 + folio.order().pages();
    (folio, count.min(end - first.0))
}

/// One folio's pins go; dirty first, so that it is known to be when it can be written back (PIN-10).
#[inline]
fn unpin_folio<H: Hw, const DIRTY: bool>(folio: Folio<H>, n: u64) {
    if DIRTY {
        folio.set_dirty();
    }
    folio.unpin(n as i32);
}

fn unpin_each<H: Hw, const DIRTY: bool>(hw: H, pages: &[PageSlot]) {
    let mut uncounted = 0;
    let mut rest = pages.iter();
    while let Some(&slot) = rest.next() {
        let d = hw.desc(slot.pfn());
        let flags = d.flags();
        if flags & (flag::HEAD | flag::TAIL | flag::RESERVED) != 0 {
            if flags & flag::RESERVED != 0 {
                uncounted += 1; // PIN-7
            } else {
                let more = unpin_run::<H, DIRTY>(hw, slot, rest.as_slice());
                rest = rest.as_slice()[more..].iter();
            }
            continue;
        }
        check(hw, slot.pfn());
        if DIRTY && flags & flag::DIRTY == 0 {
            Folio::new(hw, slot.pfn()).set_dirty();
        }
        if d.put_is_last(PIN_BIAS) {
            Folio::new(hw, slot.pfn()).free();
        }
    }
    let gone = pages.len() - uncounted;
    if gone != 0 {
        hw.phys().count_unpinned(hw.cpu(), gone as u64);
    }
}

/// A page of a large folio and those of `rest` that follow it in the same one (PIN-9); how many of `rest`.
#[cold]
#[inline(never)]
fn unpin_run<H: Hw, const DIRTY: bool>(hw: H, first: PageSlot, rest: &[PageSlot]) -> usize {
    let folio = Folio::of_page(hw, first.pfn());
    let end = folio.pfn().0 + folio.order().pages();
    let same = |s: &&PageSlot| (folio.pfn().0..end).contains(&s.pfn().0);
    let more = rest.iter().take_while(same).count();
    unpin_folio::<H, DIRTY>(folio, 1 + more as u64);
    more
}

/// A pinned page of anonymous memory is its process's alone (PIN-13, UNSH-4).
#[inline(always)]
pub(super) fn check<H: Hw>(hw: H, pfn: Pfn) {
    if cfg!(debug_assertions) {
        let folio = Folio::new(hw, pfn);
        if folio.is_anon() && !folio.is_exclusive() {
            hw.warn(Warning::PinnedShared(pfn));
        }
    }
}

/// Numbers that are an errno in disguise.
fn is_errno(count: u64) -> bool {
    count > u64::MAX - 4095
}

/// Ends one pin for each of the first `count` pages. Any lock may be held, interrupts may be off. What a failed pin returned is no count: nothing
/// happens then (PIN-9).
pub fn unpin_user_pages<H: Hw>(hw: H, pages: &[PageSlot], count: u64) {
    unpin_user_pages_dirty_lock(hw, pages, count, false);
}

/// The same, in the same states, and the pages are dirty first if `make_dirty` (PIN-10).
pub fn unpin_user_pages_dirty_lock<H: Hw>(hw: H, pages: &[PageSlot], count: u64, make_dirty: bool) {
    let Some(pages) = usize::try_from(count).ok().and_then(|n| pages.get(..n)) else {
        hw.warn(Warning::UnpinCount);
        return;
    };
    if make_dirty {
        unpin_each::<H, true>(hw, pages);
    } else {
        unpin_each::<H, false>(hw, pages);
    }
}

/// Ends one pin for each of `count` frames in a row, folio by folio (PIN-11); likewise.
pub fn unpin_user_page_range_dirty_lock<H: Hw>(hw: H, first: Pfn, count: u64, make_dirty: bool) {
    if is_errno(count) {
        hw.warn(Warning::UnpinCount);
        return;
    }
    let (mut at, mut left) = (first, count);
    while left != 0 {
        let (folio, n) = range_run(hw, at, left);
        if at != hw.phys().zero_page() {
            if make_dirty {
                unpin_folio::<H, true>(folio, n);
            } else {
                unpin_folio::<H, false>(folio, n);
            }
            hw.phys().count_unpinned(hw.cpu(), n);
        }
        (at, left) = (Pfn(at.0 + n), left - n);
    }
}

/// One more pin of a page that is pinned already (PIN-16); `false` near the limit.
pub fn pin_again<H: Hw>(hw: H, page: PageSlot) -> bool {
    if page.pfn() == hw.phys().zero_page() {
        return true;
    }
    let folio = Folio::of_page(hw, page.pfn());
    debug_assert!(folio.maybe_pinned());
    let pinned = folio.desc().pin(1);
    if pinned {
        hw.phys().count_pinned(hw.cpu(), 1);
    }
    pinned
}
