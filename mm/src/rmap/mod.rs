//! From a folio to its mappers, and from a piece of a file to everything that maps it.
//!
//! Walks take an owner's edges under their lock, hence may follow and zap and never install
//! (object/edges.rs). The edge lock is held over the table locks and over the flush that a batch ends with:
//! it is what keeps the space there. Long walks let go of it every [`PIECE`] pages.

pub mod clean;
pub mod truncate;

use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PMD_SIZE};
use crate::object::{AnonFamily, FileObject, RmapGuard};
use crate::phys::{Folio, Hw};
use crate::space::{AddressSpace, RssKind, Vma};
use crate::table::{PtGuard, TlbBatch};
use crate::wait::CanWait;

/// Pages of one VMA that are dealt with before the edge lock is given up for a moment.
pub const PIECE: u64 = 1024;

/// What an unmap of a file range does with private copies of its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copies {
    /// They stay: the file's page is gone, the process's is not (hole punching).
    Keep,
    /// They go, too (truncation).
    Drop,
}

/// Who owns a folio; the caller keeps it alive.
#[derive(Clone, Copy)]
pub enum Owner<'a, H: Hw> {
    /// A page-cache page.
    File(&'a FileObject<H>),
    /// An anonymous page.
    Anon(&'a AnonFamily<H>),
}

/// Calls `f` with each entry that maps the folio, its table locked: space, VMA, address, table, index.
/// Ends early when `f` says `false`. Interrupts on.
pub fn walk_folio<H: Hw>(
    hw: H,
    owner: Owner<'_, H>,
    folio: Folio<H>,
    mut f: impl FnMut(&AddressSpace<H>, &Vma<H>, u64, &mut PtGuard<H>, usize) -> bool,
) {
    let guard = match owner {
        Owner::File(o) => o.edges().lock(hw),
        Owner::Anon(a) => a.edges().lock(hw),
    };
    for e in guard.edges() {
        // SAFETY: edges of an object's list are VMAs' file edges, those of a family's their anonymous
        // edges; the list is locked.
        let vma = unsafe {
            match owner {
                Owner::File(_) => Vma::<H>::of_file_edge(e),
                Owner::Anon(_) => Vma::<H>::of_anon_edge(e),
            }
        };
        let Some(va) = vma.va_of(folio.index()) else {
            continue;
        };
        let space = vma.space();
        let Some(mut table) = space.tables.pte_table(va, &guard) else {
            continue;
        };
        let i = PtGuard::<H>::index(va);
        let pte = table.get(i);
        let maps = pte.is_counted() && pte.pfn() == folio.pfn();
        if maps && !f(space, vma, va, &mut table, i) {
            return;
        }
    }
}

/// Takes every mapping of pages `first..end` of the object away. One caller at a time for an object: it
/// holds `resize`.
fn unmap_file_range<H: Hw>(
    object: &FileObject<H>,
    (first, end): (u64, u64),
    copies: Copies,
    wait: &mut CanWait<H>,
) {
    let hw = object.hw();
    let mut guard = object.edges().lock(hw);
    let walk = guard.begin_walk();
    while let Some((edge, from)) = guard.walk_next(&walk) {
        // SAFETY: an edge of an object's list is a VMA's file edge; the list is locked.
        let vma = unsafe { Vma::<H>::of_file_edge(edge) };
        let low = first.max(from).max(vma.pgoff());
        let high = end.min(vma.pgoff() + vma.pages());
        if low >= high {
            guard.walk_done(&walk);
            continue;
        }
        let stop = high.min(low + PIECE);
        let va = |index: u64| vma.start() + ((index - vma.pgoff()) << PAGE_SHIFT);
        {
            // The space stays while the edge is locked, so the flush at the end of this block comes first.
            let mut batch = TlbBatch::begin(wait, &vma.space().tlb);
            zap(vma, va(low), va(stop), copies, &guard, &mut batch);
        }
        if stop < high {
            guard.walk_pause(&walk, stop);
        } else {
            guard.walk_done(&walk);
        }
        drop(guard);
        hw.cond_resched();
        guard = object.edges().lock(hw);
    }
}

/// Empties the entries of `start..end` that map pages of the VMA's file (and private copies, if they go).
fn zap<H: Hw>(
    vma: &Vma<H>,
    start: u64,
    end: u64,
    copies: Copies,
    guard: &RmapGuard<'_, H>,
    batch: &mut TlbBatch<'_, H>,
) {
    let space = vma.space();
    let mut va = start;
    while va < end {
        let stop = end.min((va | (PMD_SIZE - 1)) + 1);
        let Some(mut table) = space.tables.pte_table(va, guard) else {
            va = stop;
            continue;
        };
        let (mut file, mut anon) = (0, 0);
        while va < stop {
            let i = PtGuard::<H>::index(va);
            let pte = table.get(i);
            va += PAGE_SIZE;
            if !pte.present() {
                continue;
            }
            let Ok(page) = vma.folio(va - PAGE_SIZE, pte) else {
                table.take(i);
                batch.note(va - PAGE_SIZE, va);
                continue;
            };
            // A driver's may be a later page of a large folio: mapped by itself, referenced as a whole.
            let folio = Folio::of_page(page.hw(), page.pfn());
            let is_anon = folio.is_anon();
            if is_anon && copies == Copies::Keep {
                continue;
            }
            let old = table.take(i);
            if is_anon {
                anon += 1;
            } else {
                file += 1;
                if old.dirty() {
                    folio.set_dirty();
                }
            }
            if old.mlocked() {
                folio.munlock();
            }
            page.desc().map_dec();
            batch.note(va - PAGE_SIZE, va);
            batch.retire_folio(folio.pfn());
        }
        drop(table);
        space.add_rss(vma.file_rss(), -file);
        space.add_rss(RssKind::Anon, -anon);
    }
}
