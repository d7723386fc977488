//! mremap: shrink, grow in place, or move; a move takes whole level-1 tables where both places agree
//! modulo 2 MiB, and entries elsewhere. No page is copied.
//!
//! While entries are on their way the lists of the VMA's mappers are locked: the reverse map sees each page
//! in the old place or in the new one.

use super::{limits, munmap, populate, range};
use crate::addr::{MMAP_MIN_ADDR, PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, USER_END, UserRange, page_up};
use crate::errno::Errno;
use crate::phys::{Hw, NoFrame};
use crate::space::{AddressSpace, MmapWriteGuard, NewVma, Vma, VmaFlags};
use crate::sync::atomic::Ordering::Relaxed;
use crate::table::{PtGuard, TlbBatch};
use crate::wait::CanWait;
use linux_raw_sys::general as sys;

/// What mremap was asked.
#[derive(Clone, Copy)]
pub struct MremapArgs {
    /// Old place.
    pub addr: u64,
    /// Bytes there.
    pub old_len: u64,
    /// Bytes wanted.
    pub new_len: u64,
    /// MREMAP_*.
    pub flags: u32,
    /// New place, with MREMAP_FIXED (a hint with MREMAP_DONTUNMAP).
    pub new_addr: u64,
}

/// Returns the new address. What locked memory has grown by is brought in.
pub fn mremap<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    a: MremapArgs,
) -> Result<u64, Errno> {
    let at = remap(space, wait, a)?;
    if space.counts.locked_vm.load(Relaxed) != 0
        && a.new_len > a.old_len
        && let (Some(old), Some(new)) = (page_up(a.old_len), page_up(a.new_len))
        && let Some(more) = UserRange::new(at + old, at + new)
    {
        let _ = populate::populate_all(space, wait, more, VmaFlags::LOCKED);
    }
    Ok(at)
}

fn remap<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    a: MremapArgs,
) -> Result<u64, Errno> {
    let has = |f: u32| a.flags & f != 0;
    let (fixed, may_move) = (has(sys::MREMAP_FIXED), has(sys::MREMAP_MAYMOVE));
    let dont_unmap = has(sys::MREMAP_DONTUNMAP);
    let known = sys::MREMAP_FIXED | sys::MREMAP_MAYMOVE | sys::MREMAP_DONTUNMAP;
    if a.flags & !known != 0
        || (fixed || dont_unmap) && !may_move
        || dont_unmap && a.old_len != a.new_len
        || a.addr & (PAGE_SIZE - 1) != 0
    {
        return Err(Errno::EINVAL);
    }
    let old_len = page_up(a.old_len).ok_or(Errno::EINVAL)?;
    let new_len = page_up(a.new_len)
        .filter(|&l| l != 0)
        .ok_or(Errno::EINVAL)?;
    let mut guard = space.mmap_write_killable(wait)?;
    if guard.find(a.addr).is_none() {
        return Err(Errno::EFAULT);
    }
    if fixed || dont_unmap {
        return move_to(wait, &mut guard, a, old_len, new_len);
    }
    if old_len >= new_len {
        if old_len > new_len {
            // Lengths near the end of all numbers wrap around, as in Linux; what comes of it is a range like any other.
            let tail = a.addr.wrapping_add(new_len);
            let tail = range(tail, old_len - new_len, Errno::EINVAL)?;
            munmap::unmap(wait, &mut guard, tail)?;
        }
        return Ok(a.addr);
    }
    let vma = resizable(space, &guard, a, old_len, new_len)?;
    let (end, flags) = (vma.end(), vma.flags());
    if old_len == end - a.addr
        && grow_in_place(wait.hw(), &mut guard, a.addr, end, new_len - old_len, flags)?
    {
        return Ok(a.addr);
    }
    if !may_move {
        return Err(Errno::ENOMEM);
    }
    let to = guard
        .find_gap(new_len, 0, MMAP_MIN_ADDR)
        .ok_or(Errno::ENOMEM)?;
    move_vma(wait, &mut guard, a.addr, old_len, to, new_len, false)
}

/// The VMA, if that much of it may become so long (Linux's `vma_to_resize`).
fn resizable<'g, H: Hw>(
    space: &AddressSpace<H>,
    guard: &'g MmapWriteGuard<'_, H>,
    a: MremapArgs,
    old_len: u64,
    new_len: u64,
) -> Result<&'g Vma<H>, Errno> {
    let vma = guard.find(a.addr).ok_or(Errno::EFAULT)?;
    let flags = vma.flags();
    // Length 0 duplicates a shared mapping; there is nothing to duplicate of a private one.
    if old_len == 0 && !flags.intersects(VmaFlags::SHARED | VmaFlags::MAYSHARE) {
        return Err(Errno::EINVAL);
    }
    let pinned_down = flags.intersects(VmaFlags::DONTEXPAND | VmaFlags::PFNMAP);
    if a.flags & sys::MREMAP_DONTUNMAP != 0 && pinned_down {
        return Err(Errno::EINVAL);
    }
    if old_len > vma.end() - a.addr {
        return Err(Errno::EFAULT);
    }
    if new_len == old_len {
        return Ok(vma);
    }
    if vma
        .index_of(a.addr)
        .checked_add(new_len >> PAGE_SHIFT)
        .is_none()
    {
        return Err(Errno::EINVAL);
    }
    if pinned_down {
        return Err(Errno::EFAULT);
    }
    let more = new_len.saturating_sub(old_len) >> PAGE_SHIFT;
    if !space.may_lock(flags, more) {
        return Err(Errno::EAGAIN);
    }
    if new_len > old_len && !limits::may_expand(space, flags, (new_len - old_len) >> PAGE_SHIFT) {
        return Err(Errno::ENOMEM);
    }
    Ok(vma)
}

/// The VMA ends where the caller's range does: what follows may be free.
fn grow_in_place<H: Hw>(
    hw: H,
    guard: &mut MmapWriteGuard<'_, H>,
    addr: u64,
    end: u64,
    more: u64,
    flags: VmaFlags,
) -> Result<bool, Errno> {
    let Some(r) = UserRange::from_len(end, more) else {
        return Ok(false);
    };
    if !guard.is_free(r) {
        return Ok(false);
    }
    let vma = guard.find(addr).ok_or(Errno::EFAULT)?;
    if !flags.contains(VmaFlags::SHARED) {
        limits::enough_memory(hw, flags, r.pages())?;
    }
    let new = NewVma {
        range: r,
        flags,
        pgoff: vma.index_of(end),
        object: vma.object().cloned(),
    };
    guard.insert(new)?;
    Ok(true)
}

/// MREMAP_FIXED and MREMAP_DONTUNMAP.
fn move_to<H: Hw>(
    wait: &CanWait<H>,
    guard: &mut MmapWriteGuard<'_, H>,
    a: MremapArgs,
    mut old_len: u64,
    new_len: u64,
) -> Result<u64, Errno> {
    let to = a.new_addr;
    if to & (PAGE_SIZE - 1) != 0 || new_len > USER_END || to > USER_END - new_len {
        return Err(Errno::EINVAL);
    }
    let (old_end, new_end) = (a.addr.saturating_add(old_len), to + new_len);
    if old_end > to && new_end > a.addr {
        return Err(Errno::EINVAL);
    }
    let fixed = a.flags & sys::MREMAP_FIXED != 0;
    if fixed {
        if to < MMAP_MIN_ADDR {
            return Err(Errno::EPERM);
        }
        let r = UserRange::new(to, new_end).ok_or(Errno::EINVAL)?;
        munmap::unmap(wait, guard, r)?;
    }
    if old_len > new_len {
        let tail = range(a.addr + new_len, old_len - new_len, Errno::EINVAL)?;
        munmap::unmap(wait, guard, tail)?;
        old_len = new_len;
    }
    let space = guard.space();
    let vma = resizable(space, guard, a, old_len, new_len)?;
    let dont_unmap = a.flags & sys::MREMAP_DONTUNMAP != 0;
    if dont_unmap && !limits::may_expand(space, vma.flags(), old_len >> PAGE_SHIFT) {
        return Err(Errno::ENOMEM);
    }
    let to = if fixed {
        to
    } else {
        guard
            .find_gap(new_len, to, MMAP_MIN_ADDR)
            .ok_or(Errno::ENOMEM)?
    };
    move_vma(wait, guard, a.addr, old_len, to, new_len, dont_unmap)
}

/// Moves `old_len` bytes of mapping; the rest of `new_len` is new. Fails before anything moved.
fn move_vma<H: Hw>(
    wait: &CanWait<H>,
    guard: &mut MmapWriteGuard<'_, H>,
    from: u64,
    old_len: u64,
    to: u64,
    new_len: u64,
    dont_unmap: bool,
) -> Result<u64, Errno> {
    let space = guard.space();
    let old = UserRange::from_len(from, old_len).ok_or(Errno::EINVAL)?;
    let new = UserRange::from_len(to, new_len).ok_or(Errno::EINVAL)?;
    let vma = guard.find(from).ok_or(Errno::EFAULT)?;
    let flags = vma.flags();
    if !flags.contains(VmaFlags::SHARED) {
        limits::enough_memory(wait.hw(), flags, new.pages())?;
    }
    let moves_anon = vma.family().is_some();
    // Untouched anonymous memory is born again where it goes, so that it merges there.
    let pgoff = if vma.is_anon() && !moves_anon {
        to >> PAGE_SHIFT
    } else {
        vma.index_of(from)
    };
    let target = NewVma {
        range: new,
        flags,
        pgoff,
        object: vma.object().cloned(),
    };
    guard.insert(target)?;
    guard.write_lock_range(old);
    guard.write_lock_range(new);
    if moves_anon && let Some(v) = guard.find(to) {
        v.join_family();
    }
    let mut batch = TlbBatch::begin(wait, &space.tlb);
    let moved = move_entries(space, guard, &mut batch, old, to);
    if moved.is_err() {
        // Back again: the tables of the old place are still there, so this needs no frame.
        let back = UserRange::from_len(to, old_len).ok_or(Errno::EINVAL)?;
        let undone = move_entries(space, guard, &mut batch, back, from);
        debug_assert!(undone.is_ok());
    }
    batch.flush();
    drop(batch);
    if let Err(e) = moved {
        munmap::unmap(wait, guard, new)?;
        return Err(e.into());
    }
    if dont_unmap {
        // Nothing is there to be kept in memory. Splitting may want memory: then it is locked as it fills.
        let unlock = |v: &Vma<H>| v.flags() - VmaFlags::LOCKED_MASK;
        let _ = guard.change(old, unlock);
    } else if old_len != 0 {
        // Splitting the old VMA may want memory: what cannot go stays mapped, and empty. The move is done,
        // so this is no error (Linux does the same).
        let _ = munmap::unmap(wait, guard, old);
    }
    Ok(to)
}

/// Moves the entries of `old` to `to`.
fn move_entries<H: Hw>(
    space: &AddressSpace<H>,
    guard: &MmapWriteGuard<'_, H>,
    batch: &mut TlbBatch<'_, H>,
    old: UserRange,
    to: u64,
) -> Result<(), NoFrame> {
    let hw = space.hw();
    let shift = to.wrapping_sub(old.start());
    let vma = guard.find(old.start()).ok_or(NoFrame)?;
    let mut at = old.start();
    while let Some(next) = space.tables.next_table(at, old.end(), guard) {
        at = next;
        let dst = at.wrapping_add(shift);
        let file = vma.object().map(|o| o.edges().lock(hw));
        let anon = vma.family().map(|f| f.edges().lock(hw));
        // A piece lies in one table on either side.
        let room = |a: u64| PMD_SIZE - (a & (PMD_SIZE - 1));
        let left = old.end() - at;
        let len = room(at).min(room(dst)).min(left);
        let moved = if len == PMD_SIZE {
            let whole = (left / PMD_SIZE) as usize;
            let n = space.tables.move_tables(at, dst, whole, guard, batch);
            n.map(|n| n as u64 * PMD_SIZE)
        } else {
            move_some(space, guard, batch, at, dst, len).map(|()| len)
        };
        // Before the lists are let go: whoever unmaps a page there flushes its new place only.
        batch.flush();
        drop((file, anon));
        at += moved?;
        hw.cond_resched();
    }
    Ok(())
}

fn move_some<H: Hw>(
    space: &AddressSpace<H>,
    guard: &MmapWriteGuard<'_, H>,
    batch: &mut TlbBatch<'_, H>,
    at: u64,
    dst: u64,
    len: u64,
) -> Result<(), NoFrame> {
    let index = PtGuard::<H>::index;
    let n = (len >> PAGE_SHIFT) as usize;
    if at & !(PMD_SIZE - 1) == dst & !(PMD_SIZE - 1) {
        // One table on both sides.
        if let Some(mut pt) = space.tables.pte_table(at, guard) {
            for k in 0..n {
                if !pt.get(index(at) + k).is_empty() {
                    let e = pt.take(index(at) + k);
                    pt.install(index(dst) + k, e);
                }
            }
        }
    } else {
        let mut new = space.tables.pte_table_alloc(dst, guard)?;
        // The write lock keeps every other pair of locks of this space away.
        if let Some(mut old) = space.tables.pte_table(at, guard) {
            old.move_each(&mut new, index(at)..index(at) + n, index(dst));
        }
    }
    batch.note(at, at + len);
    Ok(())
}
