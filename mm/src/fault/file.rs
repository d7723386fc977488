//! Pages of memory-backed objects: found in, or made for, the page cache.
//!
//! Against truncation (object/cache.rs, rule 3): a page is looked up without a lock; under the table lock its
//! mapping count is raised and then its owner looked at. Gone means: undo, and let the access come again.

#![forbid(unsafe_code)]

use super::{Cx, Missing, Signal, Step, Stop, cow};
use crate::addr::PAGE_SHIFT;
use crate::object::{CacheError, FileObject};
use crate::phys::{Folio, FolioRef, Hw};
use crate::space::RssKind;
use crate::table::pte::bit;
use crate::table::{MayInstall, PtGuard, Pte};

/// Pages that one read fault may map, aligned window.
const AROUND: u64 = 16;

impl From<CacheError> for Stop {
    #[inline]
    fn from(e: CacheError) -> Self {
        match e {
            CacheError::NoFrame => Stop::NoFrame,
            CacheError::Beyond => Stop::Signal(Signal::BeyondEnd),
            CacheError::Absent => Stop::Absent(Missing::Content),
        }
    }
}

#[inline]
fn object<'a, H: Hw, G: MayInstall<H>>(cx: &Cx<'a, H, G>) -> Result<&'a FileObject<H>, Stop> {
    match cx.vma.object() {
        Some(o) => Ok(o),
        None => Err(CacheError::Beyond.into()),
    }
}

/// The cache's page at `index`, made if it is a hole (rule 4: the size first).
#[inline]
fn page<H: Hw>(object: &FileObject<H>, index: u64) -> Result<FolioRef<H>, Stop> {
    if index >= object.end_page() {
        return Err(CacheError::Beyond.into());
    }
    Ok(object.get_or_create(index)?)
}

/// Whether a write to a page of the object must be announced first. Under the table lock of an entry that maps it
/// (rule 6 of object/cache.rs).
#[inline]
pub(super) fn needs_notice<H: Hw>(object: Option<&FileObject<H>>, folio: Folio<H>) -> bool {
    object.is_some_and(FileObject::is_tracked) && !folio.is_dirty()
}

/// Fills the empty entry `i` with page `index`; the entry takes over the reference. `false`: truncated, or to be written
/// without notice.
#[inline]
fn map<H: Hw>(
    pt: &mut PtGuard<H>,
    i: usize,
    object: &FileObject<H>,
    index: u64,
    folio: FolioRef<H>,
    entry: Pte,
) -> bool {
    folio.desc().map_inc();
    // The marks are looked at after the count: who takes them away looks at the count after that.
    let silent = entry.writable() && needs_notice(Some(object), folio.folio());
    if silent || !object.owns(folio.folio(), index) {
        folio.desc().map_dec();
        return false;
    }
    let folio = folio.into_folio();
    pt.install(i, entry);
    if entry.mlocked() {
        folio.mlock();
    }
    true
}

/// A write to a shared mapping.
#[inline]
pub(super) fn shared_write<H: Hw, G: MayInstall<H>>(cx: &Cx<'_, H, G>) -> Step {
    let object = object(cx)?;
    let index = cx.index();
    let folio = page(object, index)?;
    if needs_notice(Some(object), folio.folio()) {
        return Err(Stop::Absent(Missing::Notice));
    }
    let mut pt = cx.space.tables.pte_table_alloc(cx.va, cx.permit)?;
    let i = PtGuard::<H>::index(cx.va);
    let now = pt.get(i);
    if !now.is_empty() {
        return cx.filled_already(now);
    }
    let entry = Pte::leaf(folio.pfn(), cx.own_bits());
    if map(&mut pt, i, object, index, folio, entry) {
        cx.space.add_rss(cx.vma.file_rss(), 1);
    }
    Ok(())
}

/// A write to a private mapping of a page that is not mapped: an early copy (PFN-11). A hole needs no
/// cache page to be copied from.
#[inline]
pub(super) fn private_write<H: Hw, G: MayInstall<H>>(cx: &Cx<'_, H, G>) -> Step {
    let hw = cx.hw;
    let object = object(cx)?;
    let index = cx.index();
    if index >= object.end_page() {
        return Err(CacheError::Beyond.into());
    }
    let family = cx.vma.join_family();
    let source = object.lookup(index);
    if source.is_none() && object.is_paged() {
        return Err(Stop::Absent(Missing::Content));
    }
    let frame = cow::filled(hw, G::FRAMES, source.as_ref())?;
    let mut pt = match cx.space.tables.pte_table_alloc(cx.va, cx.permit) {
        Ok(pt) => pt,
        Err(e) => {
            hw.phys().free(hw, frame);
            return Err(e.into());
        }
    };
    let i = PtGuard::<H>::index(cx.va);
    // Nothing of the object is mapped here: its truncation zaps this copy if it comes later, and has
    // stored the size if it came before.
    let now = pt.get(i);
    if !now.is_empty() || index >= object.end_page() {
        drop(pt);
        hw.phys().free(hw, frame);
        return if now.is_empty() {
            Ok(())
        } else {
            cx.filled_already(now)
        };
    }
    let folio = Folio::init_anon(hw, frame, family.word(), index);
    let bits = cx.own_bits();
    cx.list(folio, bits);
    cx.space.add_rss(RssKind::Anon, 1);
    pt.install(i, Pte::leaf(folio.pfn(), bits));
    Ok(())
}

/// A read: the page, and those around it that the cache has anyway.
pub(super) fn read<H: Hw, G: MayInstall<H>>(cx: &Cx<'_, H, G>) -> Step {
    let object = object(cx)?;
    let index = cx.index();
    let target = page(object, index)?;
    // The aligned window, cut to the VMA and to what one cache lookup sees; a table covers whole windows.
    let at = cx.va >> PAGE_SHIFT;
    let back = (at & (AROUND - 1))
        .min(at - (cx.vma.start() >> PAGE_SHIFT))
        .min(index & 63);
    let ahead = (AROUND - 1 - (at & (AROUND - 1)))
        .min((cx.vma.end() >> PAGE_SHIFT) - 1 - at)
        .min(63 - (index & 63));
    let first = index - back;
    let last = (index + ahead)
        .min(object.end_page().saturating_sub(1))
        .max(index);
    let mut found: [Option<FolioRef<H>>; AROUND as usize] = [const { None }; AROUND as usize];
    object.lookup_run(first, last, |index, folio| {
        found[(index - first) as usize] = Some(folio)
    });
    found[back as usize] = Some(target);

    let bits = cx.vma.prot_bits();
    let mut pt = cx.space.tables.pte_table_alloc(cx.va, cx.permit)?;
    let i0 = PtGuard::<H>::index(cx.va) - back as usize;
    let (mut mapped, mut there) = (0, Ok(()));
    for (k, slot) in found.iter_mut().enumerate() {
        let Some(folio) = slot.take() else {
            continue;
        };
        let now = pt.get(i0 + k);
        if !now.is_empty() {
            if k as u64 == back {
                there = cx.filled_already(now);
            }
            continue;
        }
        // Neighbours are guesses: nobody has used them here.
        let young = if k as u64 == back { 0 } else { bit::A };
        let entry = Pte::leaf(folio.pfn(), bits).without(young);
        mapped += i64::from(map(&mut pt, i0 + k, object, first + k as u64, folio, entry));
    }
    if mapped != 0 {
        cx.space.add_rss(cx.vma.file_rss(), mapped);
    }
    there
}
