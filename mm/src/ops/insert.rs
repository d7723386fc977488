//! A driver's own memory in a process, entry by entry, in a VMA with MIXEDMAP: pages of a folio that the kernel made (Linux's
//! `vm_insert_page`), and bare frames (`vmf_insert_mixed`).
//!
//! The pages are counted like any others, so they are pinned like any others, and a large folio's are counted on its head
//! (PIN-2). The frames are special, whether or not they have a descriptor, so nobody counts or pins them; but unlike those of
//! a VMA with PFNMAP they do not follow from where they are, and the walk that meets one must be able to step over it (PFN-10).

use crate::Pfn;
use crate::addr::page_down;
use crate::errno::Errno;
use crate::phys::{FolioRef, Hw};
use crate::space::{AddressSpace, RssKind, Vma, VmaFlags};
use crate::table::{Caching, MayInstall, PtGuard, Pte};

/// What a driver shows at a page.
#[derive(Clone, Copy)]
pub enum Shown<'a, H: Hw> {
    /// Page `.1` of a folio.
    Page(&'a FolioRef<H>, u64),
    /// A bare frame.
    Frame {
        /// Which.
        pfn: Pfn,
        /// How the machine may keep it.
        caching: Caching,
    },
    /// Nothing: SIGBUS.
    Hole,
}

/// Where an entry is to be made: in a VMA of the driver's with MIXEDMAP (`EINVAL`), where nothing is mapped yet (`EBUSY`).
fn slot<H: Hw, G: MayInstall<H>>(
    space: &AddressSpace<H>,
    permit: &G,
    vma: &Vma<H>,
    va: u64,
) -> Result<(PtGuard<H>, usize), Errno> {
    let inside = vma.start() <= va && va < vma.end();
    if !inside || !vma.flags().contains(VmaFlags::MIXEDMAP) {
        return Err(Errno::EINVAL);
    }
    let pt = space.tables.pte_table_alloc(page_down(va), permit)?;
    let i = PtGuard::<H>::index(va);
    if !pt.get(i).is_empty() {
        return Err(Errno::EBUSY);
    }
    Ok((pt, i))
}

/// Maps page `nth` of `folio` at `va`. The entry has a reference of its own. A private VMA takes only pages that are a
/// folio of their own (`EINVAL`): copying does not look for heads.
pub fn insert_page<H: Hw, G: MayInstall<H>>(
    space: &AddressSpace<H>,
    permit: &G,
    vma: &Vma<H>,
    va: u64,
    folio: &FolioRef<H>,
    nth: u64,
) -> Result<(), Errno> {
    let pages = folio.order().pages();
    let fits = nth < pages && (pages == 1 || vma.flags().contains(VmaFlags::SHARED));
    if !fits || folio.is_anon() {
        return Err(Errno::EINVAL);
    }
    let (mut pt, i) = slot(space, permit, vma, va)?;
    let page = Pfn(folio.pfn().0 + nth);
    space.hw().desc(page).map_inc();
    let _ = folio.clone().into_folio();
    space.add_rss(RssKind::Shmem, 1);
    pt.install(i, Pte::leaf(page, vma.prot_bits()));
    Ok(())
}

/// Maps a bare frame at `va`, which the driver keeps there for as long as anybody may map it. A private copy comes with the
/// first write: no private VMA gives W to what is not its own.
pub fn insert_frame<H: Hw, G: MayInstall<H>>(
    space: &AddressSpace<H>,
    permit: &G,
    vma: &Vma<H>,
    va: u64,
    pfn: Pfn,
    caching: Caching,
) -> Result<(), Errno> {
    if pfn.0 >= super::mmap::END_PFN {
        return Err(Errno::EINVAL);
    }
    let (mut pt, i) = slot(space, permit, vma, va)?;
    pt.install(i, Pte::raw(pfn, vma.prot_bits(), caching));
    Ok(())
}
