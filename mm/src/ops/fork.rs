//! fork: the child maps what the parent maps; private pages are shared until one of them writes.
//!
//! The parent's mmap lock is held for writing and every VMA write-locked, so no fault comes in between;
//! the fork sequence is odd meanwhile, so no lockless pin does (BUG-7). Writable entries of private pages
//! become read-only in both, exclusive pages cease to be so; a page that may be pinned stays the
//! parent's, and the child gets a copy at once (ADJ-4), its frame taken before the table locks. What a
//! fault can find again is not copied (PFN-4). What becomes read-only loses its accessed bit as
//! well: whether anybody reads it before it is copied on write decides who must be told then (`cow`).
//! The parent's translations are flushed before its locks go.

use super::exit;
use crate::addr::{PAGE_SHIFT, PMD_SIZE, UserRange};
use crate::errno::Errno;
use crate::hw::FlushRange;
use crate::phys::{Folio, Frame, Hw, NoFrame, Owned, Use, flag, lru};
use crate::race::{Point, planted, point};
use crate::space::{AddressSpace, MmapWriteGuard, RssKind, Vma, VmaFlags};
use crate::sync::atomic::Ordering::Relaxed;
use crate::table::pte::bit;
use crate::table::{CopyStep, LeafBits, PtGuard, Pte};
use crate::wait::CanWait;
use alloc::sync::Arc;

/// A space for a child of the process that has `parent`.
pub fn fork<H: Hw>(
    parent: &AddressSpace<H>,
    wait: &mut CanWait<H>,
) -> Result<Arc<AddressSpace<H>>, Errno> {
    let from = parent.mmap_write_killable(wait)?;
    if parent.is_doomed() {
        return Err(Errno::EINTR);
    }
    let child = AddressSpace::new_child(parent)?;
    parent.fork_seq.begin();
    let copied = {
        // Nobody else has the child: this does not wait.
        let to = child.try_mmap_write().ok_or(Errno::ENOMEM)?;
        copy_all(&from, to)
    };
    point(parent.hw(), Point::ForkCopied);
    parent.fork_seq.end();
    parent.tlb.flush(wait, FlushRange::All);
    drop(from);
    if let Err(e) = copied {
        exit::exit(&child, wait);
        return Err(e.into());
    }
    Ok(child)
}

fn copy_all<H: Hw>(
    from: &MmapWriteGuard<'_, H>,
    mut to: MmapWriteGuard<'_, H>,
) -> Result<(), NoFrame> {
    for vma in from.all() {
        let flags = vma.flags();
        if flags.contains(VmaFlags::DONTCOPY) {
            continue;
        }
        from.write_lock_vma(vma);
        from.space().hw().cond_resched();
        let copy = to.insert_copy(vma, flags - VmaFlags::LOCKED_MASK)?.range();
        let entries = vma.family().is_some() && !flags.contains(VmaFlags::WIPEONFORK)
            || flags.intersects(VmaFlags::PFNMAP | VmaFlags::MIXEDMAP);
        if entries {
            copy_entries(from, &to, vma, copy)?;
        }
    }
    Ok(())
}

fn copy_entries<H: Hw>(
    from: &MmapWriteGuard<'_, H>,
    to: &MmapWriteGuard<'_, H>,
    vma: &Vma<H>,
    range: UserRange,
) -> Result<(), NoFrame> {
    let (parent, child) = (from.space(), to.space());
    let hw = parent.hw();
    let mut spare = None;
    let mut next = range.start();
    while let Some(start) = parent.tables.next_table(next, range.end(), from) {
        next = ((start & !(PMD_SIZE - 1)) + PMD_SIZE).min(range.end());
        let piece = UserRange::new(start, next).ok_or(NoFrame)?;
        let first = PtGuard::<H>::index(piece.start());
        let end = first + piece.pages() as usize;
        let mut copy = Copy {
            hw,
            vma,
            bits: own_bits(vma),
            tracked: vma
                .object()
                .map_or(0, |o| u64::from(o.is_tracked()) * bit::W),
            family: child.anon_family().word(),
            index0: vma.index_of(piece.start()).wrapping_sub(first as u64),
            anon: 0,
            file: 0,
        };
        let (cow, has_pinned) = (vma.flags().is_cow(), parent.has_pinned.load(Relaxed));
        let mut at = first;
        while at < end {
            let mut dst = match child.tables.pte_table_alloc(piece.start(), to) {
                Ok(dst) => dst,
                Err(e) => {
                    copy.count(child, vma);
                    if let Some(frame) = spare.take() {
                        hw.phys().free(hw, frame);
                    }
                    return Err(e);
                }
            };
            let Some(mut src) = parent.tables.pte_table(piece.start(), from) else {
                break;
            };
            let rest = at..end;
            at = match (cow, has_pinned) {
                (true, false) => copy.entries::<true, false>(&mut src, &mut dst, rest, &mut spare),
                (true, true) => copy.entries::<true, true>(&mut src, &mut dst, rest, &mut spare),
                (false, _) => copy.entries::<false, true>(&mut src, &mut dst, rest, &mut spare),
            };
            drop((src, dst));
            if at < end {
                // Stopped at a page that needs a copy of its own.
                let frame = hw.phys().alloc(hw, Use::Movable);
                if frame.is_none() {
                    copy.count(child, vma);
                    return Err(NoFrame);
                }
                spare = frame;
            }
        }
        copy.count(child, vma);
        hw.cond_resched();
    }
    if let Some(frame) = spare {
        hw.phys().free(hw, frame);
    }
    Ok(())
}

fn own_bits<H: Hw>(vma: &Vma<H>) -> LeafBits {
    let write = vma.flags().contains(VmaFlags::WRITE);
    let made = bit::D | bit::SOFT_DIRTY | if write { bit::W } else { 0 };
    LeafBits(vma.prot_bits().0 & !bit::MLOCKED | made)
}

/// Copies the entries of one table.
struct Copy<'v, H: Hw> {
    hw: H,
    vma: &'v Vma<H>,
    bits: LeafBits,
    /// W of a file that is written back: the child asks for the right itself, since who takes it away may have been at the
    /// child's entries already.
    tracked: u64,
    family: usize,
    /// Family offset of entry 0.
    index0: u64,
    anon: i64,
    file: i64,
}

impl<H: Hw> Copy<'_, H> {
    /// Copies until the end, or up to a page that must not be shared while `spare` is empty. `COW`: the
    /// VMA's writes go to private copies. `PINNED`: the space has had pins.
    #[inline(never)]
    fn entries<const COW: bool, const PINNED: bool>(
        &mut self,
        src: &mut PtGuard<H>,
        dst: &mut PtGuard<H>,
        range: core::ops::Range<usize>,
        spare: &mut Option<Frame<Owned>>,
    ) -> usize {
        let hw = self.hw;
        let (mut special, mut file) = (0, 0);
        let (base, frames) = (src.base(), hw.frames_end());
        let (at, given) = src.copy_each(dst, range, |i, mut old| {
            let behind = match old.plain(0, 0, frames) {
                Some(pfn) => Ok(Folio::new(hw, pfn)),
                None => self.vma.folio(base + ((i as u64) << PAGE_SHIFT), old),
            };
            match behind {
                Ok(folio) => {
                    let d = folio.desc();
                    if !folio.is_anon() {
                        file += 1;
                        if d.has_any(flag::TAIL | flag::RESERVED) {
                            if folio.is_nobodys() {
                                return CopyStep::Give(self.nobodys(old));
                            }
                            d.map_inc();
                            Folio::of_page(hw, old.pfn()).desc().get();
                            return CopyStep::Give(old.without(bit::A | bit::D | bit::MLOCKED));
                        }
                    } else if d.has(flag::ANON_EXCLUSIVE) {
                        // Nobody pins while the sequence is odd: a space without pins needs no second look.
                        if !PINNED || planted(5) {
                            d.clear(flag::ANON_EXCLUSIVE);
                        } else if !folio.try_share() {
                            return match spare.take() {
                                Some(frame) => CopyStep::Give(self.copy_page(i, folio, frame)),
                                None => CopyStep::Stop,
                            };
                        }
                    }
                    point(hw, Point::ForkShare);
                    d.get();
                    d.map_inc();
                }
                Err(bare) if bare.special() => {
                    old = bare;
                    special += 1;
                }
                // Swap and migration entries: with reclaim; bad ones never.
                Err(_) => return CopyStep::Skip,
            }
            // The child locks nothing.
            let new = old.without(bit::A | bit::MLOCKED);
            if !COW {
                CopyStep::Give(new.without(bit::D | self.tracked))
            } else if old.writable() {
                CopyStep::Share(new.without(bit::W))
            } else {
                CopyStep::Give(new)
            }
        });
        self.anon += given - special - file;
        self.file += file;
        at
    }

    /// The child's entry where a frame is shown that nobody can have, and that is no page of a file either: it was counted as one.
    /// Who takes it away tells of it.
    #[cold]
    #[inline(never)]
    fn nobodys(&mut self, old: Pte) -> Pte {
        self.file -= 1;
        let new = old.without(bit::W | bit::A | bit::D | bit::MLOCKED);
        new.with(bit::SPECIAL)
    }

    #[cold]
    fn copy_page(&mut self, i: usize, from: Folio<H>, frame: Frame<Owned>) -> Pte {
        let hw = self.hw;
        hw.copy_frame(hw.frame_ptr(frame.pfn()), from.ptr());
        let folio = Folio::init_anon(hw, frame, self.family, self.index0.wrapping_add(i as u64));
        lru::add_new(hw, folio.pfn());
        Pte::leaf(folio.pfn(), self.bits)
    }

    fn count(&self, child: &AddressSpace<H>, vma: &Vma<H>) {
        if self.anon != 0 {
            child.add_rss(RssKind::Anon, self.anon);
        }
        if self.file != 0 {
            child.add_rss(vma.file_rss(), self.file);
        }
    }
}
