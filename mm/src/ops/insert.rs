//! A driver's own memory in a process: pages of a folio that the kernel made, entry by entry (Linux's
//! `vm_insert_page`). They are counted like any other page, so they are pinned like any other, and a large folio's
//! are counted on its head (PIN-2).

use crate::Pfn;
use crate::addr::page_down;
use crate::errno::Errno;
use crate::phys::{FolioRef, Hw};
use crate::space::{AddressSpace, RssKind, Vma, VmaFlags};
use crate::table::{MayInstall, PtGuard, Pte};

/// Maps page `nth` of `folio` at `va`, where nothing is mapped yet (`EBUSY`), in a shared VMA of the driver's with
/// MIXEDMAP (`EINVAL`). The entry has a reference of its own.
pub fn insert_page<H: Hw, G: MayInstall<H>>(
    space: &AddressSpace<H>,
    permit: &G,
    vma: &Vma<H>,
    va: u64,
    folio: &FolioRef<H>,
    nth: u64,
) -> Result<(), Errno> {
    let fits = vma.start() <= va && va < vma.end() && nth < folio.order().pages();
    if !fits || !vma.flags().contains(VmaFlags::MIXEDMAP | VmaFlags::SHARED) || folio.is_anon() {
        return Err(Errno::EINVAL);
    }
    let va = page_down(va);
    let mut pt = space.tables.pte_table_alloc(va, permit)?;
    let i = PtGuard::<H>::index(va);
    if !pt.get(i).is_empty() {
        return Err(Errno::EBUSY);
    }
    let page = Pfn(folio.pfn().0 + nth);
    space.hw().desc(page).map_inc();
    let _ = folio.clone().into_folio();
    space.add_rss(RssKind::Shmem, 1);
    pt.install(i, Pte::leaf(page, vma.prot_bits()));
    Ok(())
}
