//! Anonymous memory that nobody has touched: the zero page for readers, a cleared frame for writers.

#![forbid(unsafe_code)]

use super::{Cx, Step};
use crate::phys::{Folio, Hw, NoFrame};
use crate::space::RssKind;
use crate::table::pte::bit;
use crate::table::{MayInstall, PtGuard, Pte};

/// A write: a cleared frame of our own. Losing to another thread is success.
#[inline]
pub(super) fn first_touch<H: Hw, G: MayInstall<H>>(cx: &Cx<'_, H, G>) -> Step {
    let hw = cx.hw;
    let family = cx.vma.join_family();
    let frame = hw.phys().alloc(hw, G::FRAMES).ok_or(NoFrame)?.zero(hw);
    let mut pt = match cx.space.tables.pte_table_alloc(cx.va, cx.permit) {
        Ok(pt) => pt,
        Err(e) => {
            hw.phys().free(hw, frame);
            return Err(e.into());
        }
    };
    let i = PtGuard::<H>::index(cx.va);
    let now = pt.get(i);
    if !now.is_empty() {
        drop(pt);
        hw.phys().free(hw, frame);
        return cx.filled_already(now);
    }
    let folio = Folio::init_anon(hw, frame, family.word(), cx.index());
    let bits = cx.own_bits();
    cx.list(folio, bits);
    cx.space.add_rss(RssKind::Anon, 1);
    pt.install(i, Pte::leaf(folio.pfn(), bits));
    Ok(())
}

/// A read: the zero page, never counted (PFN-13).
#[inline]
pub(super) fn zero_page<H: Hw, G: MayInstall<H>>(cx: &Cx<'_, H, G>) -> Step {
    let mut pt = cx.space.tables.pte_table_alloc(cx.va, cx.permit)?;
    let i = PtGuard::<H>::index(cx.va);
    let now = pt.get(i);
    if !now.is_empty() {
        return cx.filled_already(now);
    }
    let zero = Pte::leaf(cx.hw.phys().zero_page(), cx.vma.prot_bits());
    // Nobody locks the zero page.
    pt.install(i, zero.with(bit::SPECIAL).without(bit::MLOCKED));
    Ok(())
}
