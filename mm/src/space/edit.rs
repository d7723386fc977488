//! Changing what is mapped: insert, split, merge, unlink, change. All of it under the mmap write lock,
//! and failure-atomic: an edit first counts and allocates the VMAs that its splits need, and only then
//! write-locks what it is about to touch and begins; from there it cannot fail.
//!
//! A VMA's range and offset change under its lists' locks as well (edges.rs, rule 1), file before family.

use super::detach::Detached;
use super::flags::VmaFlags;
use super::locks::{MmapWriteGuard, TABLES_END, Vmas};
use super::tree::TreeEdit;
use super::vma::{NewVma, Vma};
use crate::addr::UserRange;
use crate::object::edges::RmapGuard;
use crate::phys::{Hw, NoFrame};
use core::ptr::NonNull;

/// Most VMAs that a space may have (Linux's `max_map_count`).
pub const MAX_VMAS: u32 = 65530;

/// VMAs made ready for the splits of one edit: at most one at each end.
struct Spare<H: Hw> {
    hw: H,
    vmas: [Option<NonNull<Vma<H>>>; 2],
}

impl<H: Hw> Spare<H> {
    fn get(hw: H, n: usize) -> Result<Self, NoFrame> {
        let mut s = Self {
            hw,
            vmas: [None, None],
        };
        for slot in &mut s.vmas[..n] {
            *slot = Some(Vma::alloc(hw)?);
        }
        Ok(s)
    }

    fn take(&mut self) -> Option<NonNull<Vma<H>>> {
        self.vmas.iter_mut().find_map(Option::take)
    }
}

impl<H: Hw> Drop for Spare<H> {
    fn drop(&mut self) {
        while let Some(v) = self.take() {
            // SAFETY: from `Vma::alloc` and not used: those that were used were taken.
            unsafe { Vma::release(self.hw, v) };
        }
    }
}

/// Both lists that a VMA is in, locked.
struct Edges<'a, H: Hw> {
    vma: &'a Vma<H>,
    file: Option<RmapGuard<'a, H>>,
    anon: Option<RmapGuard<'a, H>>,
}

impl<'a, H: Hw> Edges<'a, H> {
    fn lock(hw: H, vma: &'a Vma<H>) -> Self {
        Self {
            vma,
            file: vma.object().map(|o| o.edges().lock(hw)),
            anon: vma.family().map(|f| f.edges().lock(hw)),
        }
    }

    /// The VMA covers more than before.
    fn renew(&mut self) {
        if let Some(file) = &mut self.file {
            // SAFETY: a VMA with an object is in the object's list while it is in the tree.
            unsafe { file.renew(self.vma.file_edge()) };
        }
        if let Some(anon) = &mut self.anon {
            // SAFETY: `lock` found the VMA joined.
            unsafe { anon.renew(self.vma.anon_edge()) };
        }
    }
}

impl<'a, H: Hw> MmapWriteGuard<'a, H> {
    #[inline]
    fn edit(&self) -> TreeEdit<'a> {
        // SAFETY: we are the mmap write lock; an edit ends before the method that began it, or is handed on.
        unsafe { self.space.vmas.tree.edit() }
    }

    /// Maps a free range. Extends a neighbour where the new mapping continues it, and then joins the two
    /// that meet. The result is write-locked, and so is what it was merged with.
    pub fn insert(&mut self, new: NewVma<H>) -> Result<&Vma<H>, NoFrame> {
        let hw = self.space.hw();
        let mut spare = Spare {
            hw,
            vmas: [None, None],
        };
        self.insert_with(new, &mut spare)
    }

    /// Puts a mapping in the place of whatever the range holds, which `zap` empties and frees first: once
    /// the new VMA is in its object's list, the reverse map may walk the range's tables. Nothing
    /// changed on error.
    pub fn replace(
        &mut self,
        new: NewVma<H>,
        zap: impl FnOnce(Detached<'a, H>),
    ) -> Result<(), NoFrame> {
        // The range may lie inside one VMA: two more then.
        if self.count() + 2 > MAX_VMAS {
            return Err(NoFrame);
        }
        let mut spare = Spare::get(self.space.hw(), 1)?;
        zap(self.unlink(new.range)?);
        let inserted = self.insert_with(new, &mut spare);
        debug_assert!(inserted.is_ok(), "what it needs was made ready");
        Ok(())
    }

    fn insert_with(
        &mut self,
        mut new: NewVma<H>,
        spare: &mut Spare<H>,
    ) -> Result<&Vma<H>, NoFrame> {
        // What is new has changed (SOFTD-1), and so has a VMA that it is merged with.
        new.flags |= VmaFlags::SOFTDIRTY;
        let (start, end) = (new.range.start(), new.range.end());
        debug_assert!(start < end && self.is_free(new.range));
        let pages = new.range.pages();
        let hw = self.space.hw();
        let upper = self.find_from(start);
        let lower = match upper {
            Some(v) => v.node().prev(),
            None => self.space.vmas.tree.last(),
        };
        // SAFETY: nodes of the tree, under the mmap lock.
        let lower = lower.map(|n| unsafe { Vma::<H>::of(n) });
        let object = new.object.as_ref();
        if let Some(l) = lower.filter(|l| {
            l.end() == start && l.accepts(new.flags, new.pgoff, object, l.pgoff() + l.pages())
        }) {
            self.write_lock_vma(l);
            self.grow(l, l.start(), end, l.pgoff());
            l.set_flags(l.flags() | VmaFlags::SOFTDIRTY);
            self.charge(new.flags, pages as i64);
            self.merge_at(end);
            return self.find_from(start).ok_or(NoFrame);
        }
        if let Some(u) = upper.filter(|u| {
            u.start() == end
                && new.pgoff + pages == u.pgoff()
                && u.accepts(new.flags, u.pgoff(), object, u.pgoff())
        }) {
            self.write_lock_vma(u);
            self.grow(u, start, u.end(), new.pgoff);
            u.set_flags(u.flags() | VmaFlags::SOFTDIRTY);
            self.charge(new.flags, pages as i64);
            return Ok(u);
        }
        if self.count() >= MAX_VMAS {
            return Err(NoFrame);
        }
        let vma = match spare.take() {
            Some(v) => v,
            None => Vma::alloc(hw)?,
        };
        // SAFETY: from alloc, in no tree.
        unsafe {
            let v = vma.as_ref();
            v.init(self.space, start, end, new.flags, new.pgoff, new.object);
            self.enter(vma, false, None);
        }
        self.charge(new.flags, pages as i64);
        // SAFETY: in the tree, under the lock that we borrow it from.
        Ok(unsafe { vma.as_ref() })
    }

    /// Maps what `from` (another space's VMA, write-locked) maps, at the same place, with `flags`: fork.
    /// The family is joined if anonymous pages may follow. Never merges: the parent's VMAs did not.
    pub fn insert_copy(&mut self, from: &Vma<H>, flags: VmaFlags) -> Result<&Vma<H>, NoFrame> {
        let vma = Vma::alloc(self.space.hw())?;
        let joined = from.family().is_some() && !flags.contains(VmaFlags::WIPEONFORK);
        // SAFETY: from alloc, in no tree.
        unsafe {
            vma.as_ref().init(
                self.space,
                from.start(),
                from.end(),
                flags,
                from.pgoff(),
                from.object().cloned(),
            );
            self.enter(vma, joined, Some(from));
        }
        self.charge(flags, from.pages() as i64);
        // SAFETY: in the tree, under the lock that we borrow it from.
        Ok(unsafe { vma.as_ref() })
    }

    /// Puts an initialised VMA into the lists and the tree, write-locked.
    ///
    /// # Safety
    /// From `Vma::init`; its range is free. `behind` as for `Vma::link_edges`.
    unsafe fn enter(&self, vma: NonNull<Vma<H>>, joined: bool, behind: Option<&Vma<H>>) {
        // SAFETY: the caller's VMA, alive.
        let v = unsafe { vma.as_ref() };
        self.write_lock_vma(v);
        // SAFETY: in no list; `Detached` or `merge_at` unlinks before it is dissolved.
        unsafe { v.link_edges(self.space.hw(), joined, behind) };
        // SAFETY: initialised, in slab memory; `Detached` or `merge_at` removes it before it is dissolved.
        let put = unsafe { self.edit().insert(vma.cast()) };
        debug_assert!(put.is_ok(), "a VMA on top of another");
    }

    /// Grows a write-locked VMA of the tree.
    pub(super) fn grow(&self, v: &Vma<H>, start: u64, end: u64, pgoff: u64) {
        let mut edges = Edges::lock(self.space.hw(), v);
        edges.renew();
        v.set_pgoff(pgoff);
        self.edit()
            .set_range(v.node_ptr(), start, end, v.flags().guard());
    }

    /// Splits a write-locked VMA at `at`, which lies inside; the upper part is the new one.
    fn split_at(&self, v: &Vma<H>, at: u64, spare: &mut Spare<H>) {
        let Some(new) = spare.take() else {
            unreachable!("splits are counted before they begin");
        };
        let hw = self.space.hw();
        // SAFETY: a spare, in no tree.
        let u = unsafe { new.as_ref() };
        let pgoff = v.index_of(at);
        // SAFETY: as above.
        unsafe {
            u.init(
                self.space,
                at,
                v.end(),
                v.flags(),
                pgoff,
                v.object().cloned(),
            )
        };
        self.write_lock_vma(u);
        // The upper part is in the lists before the lower one ends earlier: no walker misses pages.
        // SAFETY: in no list; see `enter`.
        unsafe { u.link_edges(hw, v.family().is_some(), None) };
        let edges = Edges::lock(hw, v);
        let mut edit = self.edit();
        edit.set_range(v.node_ptr(), v.start(), at, v.flags().guard());
        // SAFETY: as in `enter`.
        let put = unsafe { edit.insert(new.cast()) };
        debug_assert!(put.is_ok());
        drop(edit);
        drop(edges);
    }

    /// Joins the VMAs that meet at `at` if one continues the other. Both are write-locked first.
    fn merge_at(&self, at: u64) {
        let Some(u) = self.find_from(at).filter(|u| u.start() == at) else {
            return;
        };
        let Some(l) = self.prev(u).filter(|l| l.continues_into(u)) else {
            return;
        };
        self.write_lock_vma(l);
        self.write_lock_vma(u);
        let hw = self.space.hw();
        if u.family().is_some() {
            l.join_family();
        }
        l.set_flags(l.flags() | u.flags() & VmaFlags::SOFTDIRTY);
        let end = u.end();
        let gone = NonNull::from(u);
        {
            let mut edges = Edges::lock(hw, l);
            edges.renew();
            let mut edit = self.edit();
            edit.remove(gone.cast());
            edit.set_range(l.node_ptr(), l.start(), end, l.flags().guard());
        }
        // SAFETY: out of the tree and write-locked; its range, and hence its entries, are the lower one's now.
        unsafe {
            u.unlink_edges(hw);
            Vma::dissolve(hw, gone);
        }
    }

    /// Splits where `start` and `end` fall inside VMAs that `wanted` selects, which are write-locked then.
    fn split_ends(
        &mut self,
        range: UserRange,
        wanted: impl Fn(&Vma<H>) -> bool,
    ) -> Result<(), NoFrame> {
        let inside = |va| self.find(va).filter(|v| v.start() < va && wanted(v));
        let (low, high) = (inside(range.start()), inside(range.end()));
        let n = usize::from(low.is_some()) + usize::from(high.is_some());
        if n == 0 {
            return Ok(());
        }
        if self.count() + n as u32 > MAX_VMAS {
            return Err(NoFrame);
        }
        let mut spare = Spare::get(self.space.hw(), n)?;
        // The upper end first: the lower part keeps its identity, so `low` stays right if both are one.
        if let Some(v) = high {
            self.write_lock_vma(v);
            self.split_at(v, range.end(), &mut spare);
        }
        if let Some(v) = low {
            self.write_lock_vma(v);
            self.split_at(v, range.start(), &mut spare);
        }
        Ok(())
    }

    /// Takes everything in the range out of the tree, cutting VMAs at its ends. Nothing changed on error.
    pub fn unlink(&mut self, range: UserRange) -> Result<Detached<'a, H>, NoFrame> {
        self.split_ends(range, |_| true)?;
        let mut out = Detached::new(self.space);
        let mut at = self.find_from(range.start());
        if at.is_none_or(|v| v.start() >= range.end()) {
            return Ok(out);
        }
        let mut edit = self.edit();
        while let Some(v) = at.filter(|v| v.start() < range.end()) {
            at = self.next(v);
            self.write_lock_vma(v);
            self.charge(v.flags(), -(v.pages() as i64));
            out.widen(Vmas::<H>::bounds_around(v.node()));
            edit.remove(v.node_ptr());
            // SAFETY: write-locked, and out of the tree now.
            unsafe { out.push(NonNull::from(v)) };
        }
        Ok(out)
    }

    /// Takes everything out: exit and exec.
    pub fn unlink_all(&mut self) -> Detached<'a, H> {
        let mut out = Detached::new(self.space);
        let mut at = self.space.vmas.tree.first();
        let mut edit = self.edit();
        edit.clear();
        while let Some(n) = at {
            // SAFETY: it was in the tree, whose list its `next` still tells; the lock is ours.
            let v = unsafe { Vma::<H>::of(n) };
            at = v.node().next();
            self.write_lock_vma(v);
            // SAFETY: write-locked, and out of the tree now.
            unsafe { out.push(NonNull::from(v)) };
        }
        out.widen((0, TABLES_END));
        self.space.counts.reset();
        out
    }

    /// Gives the VMAs of the range, cut at its ends, the flags that `f` says (asked more than once, so
    /// it must answer alike), and merges what has become alike. VMAs whose flags stay are not touched. Those
    /// that change are write-locked. Nothing changed on error.
    pub fn change(
        &mut self,
        range: UserRange,
        f: impl Fn(&Vma<H>) -> VmaFlags,
    ) -> Result<(), NoFrame> {
        self.split_ends(range, |v| f(v) != v.flags())?;
        for v in self.iter(range) {
            let (old, new) = (v.flags(), f(v));
            if old == new {
                continue;
            }
            self.write_lock_vma(v);
            let pages = v.pages() as i64;
            self.charge(old, -pages);
            self.charge(new, pages);
            self.set_flags(v, new);
        }
        let mut at = range.start();
        while at <= range.end() {
            self.merge_at(at);
            match self.find_from(at) {
                Some(v) => at = v.end(),
                None => break,
            }
        }
        Ok(())
    }

    /// Merges at a boundary what `insert`, `change` or `mremap` made alike.
    pub fn merge_around(&mut self, range: UserRange) {
        self.merge_at(range.start());
        self.merge_at(range.end());
    }

    fn set_flags(&self, v: &Vma<H>, new: VmaFlags) {
        let old = v.flags();
        let writes = VmaFlags::SHARED.union(VmaFlags::MAYWRITE);
        debug_assert_eq!(old.contains(writes), new.contains(writes));
        let _edges = Edges::lock(self.space.hw(), v);
        v.set_flags(new);
        if old.guard() != new.guard() {
            self.edit()
                .set_range(v.node_ptr(), v.start(), v.end(), new.guard());
        }
    }
}

#[cfg(all(test, feature = "sim"))]
#[path = "edit_tests.rs"]
mod tests;
