//! mprotect: VMA by VMA, then its entries, one table at a time.

use super::pkey::Key;
use super::{each_table, limits, mmap::prot_flags, populate, range};
use crate::addr::{PAGE_SIZE, UserRange};
use crate::errno::Errno;
use crate::phys::Hw;
use crate::space::{AddressSpace, MmapWriteGuard, Vma, VmaFlags};
use crate::table::pte::bit;
use crate::table::{LeafBits, PtGuard, TlbBatch};
use crate::wait::CanWait;
use linux_raw_sys::general as sys;

const ACCESS: VmaFlags = VmaFlags::READ.union(VmaFlags::WRITE).union(VmaFlags::EXEC);
const KNOWN: u32 = sys::PROT_READ | sys::PROT_WRITE | sys::PROT_EXEC | sys::PROT_SEM;

/// Changes what a range allows. Locked memory that becomes private and writable gets its copies now: no access
/// to it waits for memory.
pub fn mprotect<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    addr: u64,
    len: u64,
    prot: u32,
) -> Result<(), Errno> {
    pkey_mprotect(space, wait, addr, len, prot, Key::Same)
}

/// The same, and which protection key it has.
pub fn pkey_mprotect<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    addr: u64,
    len: u64,
    prot: u32,
    key: Key,
) -> Result<(), Errno> {
    let mut copies = None;
    let done = protect(space, wait, addr, len, (prot, key), &mut copies);
    if let Some(r) = copies {
        let _ = populate::populate_all(space, wait, r, VmaFlags::LOCKED | VmaFlags::WRITE);
    }
    done
}

/// What precedes a hole is changed before `ENOMEM` says so.
fn protect<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    addr: u64,
    len: u64,
    (prot, key): (u32, Key),
    copies: &mut Option<UserRange>,
) -> Result<(), Errno> {
    let grows = prot & (sys::PROT_GROWSDOWN | sys::PROT_GROWSUP);
    let prot = prot & !(sys::PROT_GROWSDOWN | sys::PROT_GROWSUP);
    if grows == sys::PROT_GROWSDOWN | sys::PROT_GROWSUP || addr & (PAGE_SIZE - 1) != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(());
    }
    let mut r = range(addr, len, Errno::ENOMEM)?;
    if prot & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let mut guard = space.mmap_write_killable(wait)?;
    if let Key::Named(k) = key
        && !(wait.hw().has_pkeys() && space.keys.is_given(k))
    {
        return Err(Errno::EINVAL);
    }
    let first = guard
        .find_from(r.start())
        .filter(|v| v.start() < r.end())
        .ok_or(Errno::ENOMEM)?;
    if grows != 0 {
        // x86 stacks grow down only.
        if grows == sys::PROT_GROWSUP || !first.flags().contains(VmaFlags::GROWSDOWN) {
            return Err(Errno::EINVAL);
        }
        r = UserRange::new(first.start(), r.end()).ok_or(Errno::EINVAL)?;
    } else if first.start() > r.start() {
        return Err(Errno::ENOMEM);
    }
    let new = prot_flags(prot);
    let mut at = r.start();
    while at < r.end() {
        let vma = guard.find(at).ok_or(Errno::ENOMEM)?;
        let old = vma.flags();
        let part = UserRange::new(at, vma.end().min(r.end())).ok_or(Errno::EINVAL)?;
        at = part.end();
        let mut flags = (old - ACCESS) | new;
        match key {
            Key::Same if new != VmaFlags::EXEC && old & ACCESS == VmaFlags::EXEC => {
                if space.keys.is_exec_only(old.key()) {
                    flags = flags.with_key(0);
                }
            }
            Key::Same => {}
            Key::Named(k) => flags = flags.with_key(k as u32),
            Key::ExecOnly(k) => flags = flags.with_key(k),
        }
        if flags == old {
            continue;
        }
        let may = |have: VmaFlags, need: VmaFlags| !new.contains(need) || old.contains(have);
        if !may(VmaFlags::MAYREAD, VmaFlags::READ)
            || !may(VmaFlags::MAYWRITE, VmaFlags::WRITE)
            || !may(VmaFlags::MAYEXEC, VmaFlags::EXEC)
        {
            return Err(Errno::EACCES);
        }
        charge(space, wait.hw(), old, flags, part.pages())?;
        let flags = promise(vma, flags);
        protect_vma(space, wait, &mut guard, part, flags)?;
        let kind = VmaFlags::WRITE | VmaFlags::SHARED | VmaFlags::LOCKED;
        if old & kind == VmaFlags::LOCKED && flags.contains(VmaFlags::WRITE) {
            let start = copies.map_or(part.start(), UserRange::start);
            *copies = UserRange::new(start, part.end());
        }
    }
    Ok(())
}

/// What becomes private and writable counts from now on.
fn charge<H: Hw>(
    space: &AddressSpace<H>,
    hw: H,
    old: VmaFlags,
    new: VmaFlags,
    pages: u64,
) -> Result<(), Errno> {
    if !limits::is_data(new) || limits::is_data(old) {
        return Ok(());
    }
    if !limits::may_expand_data(space, pages) {
        return Err(Errno::ENOMEM);
    }
    limits::enough_memory(hw, new, pages)
}

/// ACCOUNT comes with the permission to write, and goes with it where nothing was written yet.
fn promise<H: Hw>(vma: &Vma<H>, new: VmaFlags) -> VmaFlags {
    let old = vma.flags();
    if new.contains(VmaFlags::WRITE) {
        if old.contains(VmaFlags::WRITE) {
            new
        } else {
            new | limits::account(new)
        }
    } else if vma.is_anon() && vma.family().is_none() {
        new - VmaFlags::ACCOUNT
    } else {
        new
    }
}

fn protect_vma<H: Hw>(
    space: &AddressSpace<H>,
    wait: &CanWait<H>,
    guard: &mut MmapWriteGuard<'_, H>,
    part: UserRange,
    flags: VmaFlags,
) -> Result<(), Errno> {
    let before = guard.find(part.start()).map(|v| v.flags().key());
    guard.change(part, |_| flags)?;
    // A remembered key is none of the rights that `protect_table` compares.
    let rekeyed = before != Some(flags.key());
    let vma = guard.find(part.start()).ok_or(Errno::ENOMEM)?;
    let mut batch = TlbBatch::begin(wait, &space.tlb);
    each_table(space, &*guard, part, |mut pt, piece| {
        if protect_table(&mut pt, wait.hw(), vma, piece) || rekeyed {
            drop(pt);
            batch.note(piece.start(), piece.end());
        }
    });
    batch.flush();
    Ok(())
}

/// What a set of leaf bits allows, as bits that are set where it is allowed.
#[inline]
fn rights(bits: u64) -> u64 {
    (bits ^ bit::NX) & (bit::P | bit::U | bit::W | bit::NX)
}

/// Rewrites the entries of one table in one pass; whether CPUs must forget what they remember of it,
/// because something was taken away.
#[inline]
fn protect_table<H: Hw>(pt: &mut PtGuard<H>, hw: H, vma: &Vma<H>, piece: UserRange) -> bool {
    let bits = vma.prot_bits();
    let refused = rights(!bits.0);
    let writable = LeafBits(bits.0 | bit::W);
    // A private page that is ours alone may be writable at once: no fault to come (UNSH-3).
    let try_write = vma.flags() & (VmaFlags::WRITE | VmaFlags::SHARED) == VmaFlags::WRITE;
    // ... but where writes are tracked it was written since tracking began.
    let known = if vma.flags().tracks_writes() {
        bit::SOFT_DIRTY
    } else {
        0
    };
    let mut lost = 0;
    let first = PtGuard::<H>::index(piece.start());
    pt.update_each(first..first + piece.pages() as usize, |old| {
        if try_write
            && old.0 & known == known
            && let Some(f) = old.folio(hw)
            && f.is_anon()
            && f.is_exclusive()
        {
            lost |= rights(old.0) & refused & !bit::W;
            return old.with_prot(writable);
        }
        lost |= rights(old.0) & refused;
        old.with_prot(bits)
    });
    lost != 0
}
