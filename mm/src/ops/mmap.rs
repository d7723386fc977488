//! mmap: arguments to a new VMA.

use super::insert::{Shown, insert_frame, insert_page};
use super::{limits, mlock, munmap, populate};
use crate::addr::{
    MMAP_MIN_ADDR, PAGE_SHIFT, PAGE_SIZE, Pfn, USER_END, UserRange, page_down, page_up,
};
use crate::errno::Errno;
use crate::object::FileObject;
use crate::phys::{FolioRef, Hw};
use crate::space::{AddressSpace, MmapWriteGuard, NewVma, VmaFlags};
use crate::table::{Caching, PtGuard, Pte};
use crate::wait::CanWait;
use alloc::sync::Arc;
use linux_raw_sys::general as sys;

/// No file is larger: offsets are positive. A mapping that would end beyond is refused.
const MAX_FILE: u64 = i64::MAX as u64;

/// The file behind a mapping, and how it was opened.
pub struct FileMap<H: Hw> {
    /// Its pages.
    pub object: Arc<FileObject<H>>,
    /// First page of the mapping.
    pub pgoff: u64,
    /// Opened for reading.
    pub readable: bool,
    /// Opened for writing.
    pub writable: bool,
    /// Writes only append: no writable shared mapping.
    pub append: bool,
    /// May hold code (not mounted noexec).
    pub executable: bool,
}

/// Where MAP_32BIT maps.
const LOW_START: u64 = 0x4000_0000;
const LOW_END: u64 = 0x8000_0000;

/// What mmap was asked.
pub struct MmapArgs<H: Hw> {
    /// Hint or, with MAP_FIXED, the place.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// PROT_*.
    pub prot: u32,
    /// MAP_*.
    pub flags: u32,
    /// None: anonymous.
    pub file: Option<FileMap<H>>,
}

/// MAP_* that Linux has always ignored when it did not know them; MAP_SHARED_VALIDATE knows only these.
const LEGACY: u32 = sys::MAP_SHARED
    | sys::MAP_PRIVATE
    | sys::MAP_FIXED
    | sys::MAP_ANONYMOUS
    | sys::MAP_DENYWRITE
    | sys::MAP_EXECUTABLE
    | sys::MAP_UNINITIALIZED
    | sys::MAP_GROWSDOWN
    | sys::MAP_LOCKED
    | sys::MAP_NORESERVE
    | sys::MAP_POPULATE
    | sys::MAP_NONBLOCK
    | sys::MAP_STACK
    | sys::MAP_HUGETLB
    | sys::MAP_32BIT
    | (sys::MAP_HUGE_MASK << sys::MAP_HUGE_SHIFT);

/// PROT_* to the bits that are allowed now.
#[inline]
pub(crate) fn prot_flags(prot: u32) -> VmaFlags {
    let mut f = VmaFlags::empty();
    if prot & sys::PROT_READ != 0 {
        f |= VmaFlags::READ;
    }
    if prot & sys::PROT_WRITE != 0 {
        f |= VmaFlags::WRITE;
    }
    if prot & sys::PROT_EXEC != 0 {
        f |= VmaFlags::EXEC;
    }
    f
}

const MAY: VmaFlags = VmaFlags::MAYREAD
    .union(VmaFlags::MAYWRITE)
    .union(VmaFlags::MAYEXEC);

fn vma_flags<H: Hw>(a: &MmapArgs<H>) -> Result<VmaFlags, Errno> {
    let mut f = prot_flags(a.prot) | MAY;
    if a.flags & sys::MAP_NORESERVE != 0 {
        f |= VmaFlags::NORESERVE;
    }
    if a.flags & sys::MAP_HUGETLB != 0 {
        return Err(Errno::EINVAL); // not built
    }
    if a.flags & sys::MAP_LOCKED != 0 {
        f |= VmaFlags::LOCKED;
    }
    let kind = a.flags & sys::MAP_TYPE;
    let down = a.flags & sys::MAP_GROWSDOWN != 0;
    let shared = VmaFlags::SHARED | VmaFlags::MAYSHARE;
    match (&a.file, kind) {
        (None, sys::MAP_SHARED) if !down => Ok(f | shared),
        (None, sys::MAP_PRIVATE) => {
            if down {
                f |= VmaFlags::GROWSDOWN;
            }
            Ok(f)
        }
        (None, _) => Err(Errno::EINVAL),
        (Some(file), sys::MAP_SHARED | sys::MAP_SHARED_VALIDATE | sys::MAP_PRIVATE) => {
            if kind == sys::MAP_SHARED_VALIDATE && a.flags & !LEGACY & !sys::MAP_TYPE != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            if kind != sys::MAP_PRIVATE {
                if f.contains(VmaFlags::WRITE) && (!file.writable || file.append) {
                    return Err(Errno::EACCES);
                }
                f |= shared;
                if !file.writable {
                    f -= VmaFlags::MAYWRITE | VmaFlags::SHARED;
                }
            }
            if !file.readable {
                return Err(Errno::EACCES);
            }
            let secret = file.object.is_secret();
            if secret {
                f |= VmaFlags::SECRET | VmaFlags::LOCKED | VmaFlags::DONTDUMP;
            }
            if !file.executable || secret {
                if f.contains(VmaFlags::EXEC) {
                    return Err(Errno::EPERM);
                }
                f -= VmaFlags::MAYEXEC;
            }
            if down || secret && kind == sys::MAP_PRIVATE {
                return Err(Errno::EINVAL);
            }
            Ok(f)
        }
        (Some(_), _) => Err(Errno::EINVAL),
    }
}

/// Where the mapping goes.
fn place<H: Hw>(
    guard: &MmapWriteGuard<'_, H>,
    addr: u64,
    len: u64,
    flags: u32,
) -> Result<UserRange, Errno> {
    if len > USER_END {
        return Err(Errno::ENOMEM);
    }
    if flags & (sys::MAP_FIXED | sys::MAP_FIXED_NOREPLACE) != 0 {
        if addr > USER_END - len {
            return Err(Errno::ENOMEM);
        }
        let r = UserRange::from_len(addr, len).ok_or(Errno::EINVAL)?;
        if addr < MMAP_MIN_ADDR {
            return Err(Errno::EPERM);
        }
        if flags & sys::MAP_FIXED_NOREPLACE != 0 && !guard.is_free(r) {
            return Err(Errno::EEXIST);
        }
        return Ok(r);
    }
    let mut hint = page_down(addr);
    if hint != 0 && hint < MMAP_MIN_ADDR {
        hint = MMAP_MIN_ADDR;
    }
    let at = if flags & sys::MAP_32BIT != 0 {
        guard.find_gap_between(len, hint, LOW_START, LOW_END)
    } else {
        guard.find_gap(len, hint, MMAP_MIN_ADDR)
    };
    let at = at.ok_or(Errno::ENOMEM)?;
    UserRange::from_len(at, len).ok_or(Errno::ENOMEM)
}

/// Maps; returns the address. `ENOMEM` leaves the space as it was.
pub fn mmap<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    a: MmapArgs<H>,
) -> Result<u64, Errno> {
    mmap_with_key(space, wait, a, 0)
}

/// The same, with a protection key.
pub fn mmap_with_key<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    a: MmapArgs<H>,
    key: u32,
) -> Result<u64, Errno> {
    map(space, wait, a, key, Contents::Object)
}

/// A driver's own memory: the pages of `buffer`, from the file's offset on, are there at once; past its end
/// nothing is (SIGBUS). `a.file` is the driver's file, whose object is empty. Shared and writable mappings only (`EINVAL`).
pub fn mmap_buffer<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    a: MmapArgs<H>,
    buffer: &FolioRef<H>,
) -> Result<u64, Errno> {
    map(space, wait, a, 0, Contents::Buffer(buffer))
}

/// Bare frames from `first` on, one for each page (PFN-2): a device's registers, a window into memory. Nobody counts them, and
/// there is nothing else to come: a page that is missing is SIGBUS. `a.file` is the driver's file, whose object is empty. A
/// private mapping copies what is written. `EINVAL` past the end of physical addresses.
pub fn mmap_raw<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    a: MmapArgs<H>,
    first: Pfn,
    caching: Caching,
) -> Result<u64, Errno> {
    let pages = page_up(a.len).ok_or(Errno::ENOMEM)? >> PAGE_SHIFT;
    let end = first.0.checked_add(pages);
    if end.is_none_or(|end| end > END_PFN) || a.file.is_none() {
        return Err(Errno::EINVAL);
    }
    map(space, wait, a, 0, Contents::Raw(first, caching))
}

/// Page by page what a driver shows: pages that are counted and bare frames side by side (`ops::insert`), say a ring and the
/// doorbell behind it. Past the end of `shown` there is nothing (SIGBUS). `a.file` is the driver's file, whose object is empty
/// (`EINVAL` without one).
pub fn mmap_mixed<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    a: MmapArgs<H>,
    shown: &[Shown<'_, H>],
) -> Result<u64, Errno> {
    if a.file.is_none() {
        return Err(Errno::EINVAL);
    }
    map(space, wait, a, 0, Contents::Mixed(shown))
}

/// What is mapped at once.
enum Contents<'a, H: Hw> {
    /// Nothing: the object's pages come when they are touched.
    Object,
    Buffer(&'a FolioRef<H>),
    Raw(Pfn, Caching),
    Mixed(&'a [Shown<'a, H>]),
}

/// Physical addresses have 52 bits.
pub(super) const END_PFN: u64 = 1 << (52 - PAGE_SHIFT);

fn map<H: Hw>(
    space: &AddressSpace<H>,
    wait: &mut CanWait<H>,
    mut a: MmapArgs<H>,
    key: u32,
    contents: Contents<'_, H>,
) -> Result<u64, Errno> {
    let hw = wait.hw();
    if a.len == 0 {
        return Err(Errno::EINVAL);
    }
    let len = page_up(a.len)
        .filter(|&l| l <= USER_END)
        .ok_or(Errno::ENOMEM)?;
    if let Some(f) = &a.file
        && f.pgoff > (MAX_FILE - len) >> PAGE_SHIFT
    {
        return Err(Errno::EOVERFLOW);
    }
    let mut flags = vma_flags(&a)?.with_key(key);
    match contents {
        Contents::Object => {}
        Contents::Buffer(_) if !flags.contains(VmaFlags::SHARED) => return Err(Errno::EINVAL),
        Contents::Buffer(_) | Contents::Mixed(_) => flags |= VmaFlags::MIXEDMAP,
        Contents::Raw(first, _) => {
            flags |= VmaFlags::IO | VmaFlags::PFNMAP | VmaFlags::DONTEXPAND | VmaFlags::DONTDUMP;
            // As Linux, whose private mappings tell raw frames from copies by it.
            if flags.is_cow()
                && let Some(file) = &mut a.file
            {
                file.pgoff = first.0;
            }
        }
    }
    if a.file.is_none() && flags.contains(VmaFlags::SHARED) {
        // Shared anonymous memory is a file without a name.
        limits::enough_memory(hw, flags | VmaFlags::WRITE, len >> PAGE_SHIFT)?;
        let object = FileObject::new(hw).ok_or(Errno::ENOMEM)?;
        object.extend(len);
        a.file = Some(FileMap {
            object,
            pgoff: 0,
            readable: true,
            writable: true,
            append: false,
            executable: true,
        });
    } else if !flags.contains(VmaFlags::SHARED) {
        limits::enough_memory(hw, flags, len >> PAGE_SHIFT)?;
        flags |= limits::account(flags);
    }

    let mut guard = space.mmap_write_killable(wait)?;
    let range = place(&guard, a.addr, len, a.flags)?;
    if a.flags & sys::MAP_LOCKED != 0 {
        mlock::may_lock_at_all(space)?;
    }
    flags |= space.def_flags();
    if !space.may_lock(flags, range.pages()) {
        return Err(Errno::EAGAIN);
    }
    let populate = flags.contains(VmaFlags::LOCKED) && !flags.is_secret();
    // A driver's memory stays where it is, without being locked or counted as such.
    if flags.intersects(VmaFlags::SPECIAL) {
        flags -= VmaFlags::LOCKED_MASK;
    }
    let (object, pgoff) = match a.file {
        Some(f) => (Some(f.object), f.pgoff),
        None => (None, range.start() >> PAGE_SHIFT),
    };
    let new = NewVma {
        range,
        flags,
        pgoff,
        object,
    };
    map_region(space, wait, &mut guard, new)?;
    let filled = match contents {
        Contents::Object => Ok(()),
        Contents::Buffer(buffer) => fill(space, &guard, range, pgoff, buffer),
        Contents::Raw(first, caching) => fill_raw(space, &guard, range, first, caching),
        Contents::Mixed(shown) => fill_mixed(space, &guard, range, shown),
    };
    if let Err(e) = filled {
        munmap::unmap(wait, &mut guard, range)?;
        return Err(e);
    }
    drop(guard);
    // Secret memory is locked, and comes when it is touched.
    if populate || a.flags & (sys::MAP_POPULATE | sys::MAP_NONBLOCK) == sys::MAP_POPULATE {
        // What fails now will fail again when it is touched.
        let _ = populate::populate_all(space, wait, range, VmaFlags::empty());
    }
    Ok(range.start())
}

/// Maps what `buffer` has from page `pgoff` on.
fn fill<H: Hw>(
    space: &AddressSpace<H>,
    guard: &MmapWriteGuard<'_, H>,
    range: UserRange,
    pgoff: u64,
    buffer: &FolioRef<H>,
) -> Result<(), Errno> {
    let vma = guard.find(range.start()).ok_or(Errno::EFAULT)?;
    let has = buffer.order().pages().saturating_sub(pgoff);
    for i in 0..range.pages().min(has) {
        let va = range.start() + (i << PAGE_SHIFT);
        insert_page(space, guard, vma, va, buffer, pgoff + i)?;
    }
    Ok(())
}

/// Maps what a driver shows.
fn fill_mixed<H: Hw>(
    space: &AddressSpace<H>,
    guard: &MmapWriteGuard<'_, H>,
    range: UserRange,
    shown: &[Shown<'_, H>],
) -> Result<(), Errno> {
    let vma = guard.find(range.start()).ok_or(Errno::EFAULT)?;
    for (va, &what) in (range.start()..range.end())
        .step_by(PAGE_SIZE as usize)
        .zip(shown)
    {
        match what {
            Shown::Page(folio, nth) => insert_page(space, guard, vma, va, folio, nth)?,
            Shown::Frame { pfn, caching } => insert_frame(space, guard, vma, va, pfn, caching)?,
            Shown::Hole => {}
        }
    }
    Ok(())
}

/// Maps bare frames.
fn fill_raw<H: Hw>(
    space: &AddressSpace<H>,
    guard: &MmapWriteGuard<'_, H>,
    range: UserRange,
    first: Pfn,
    caching: Caching,
) -> Result<(), Errno> {
    let vma = guard.find(range.start()).ok_or(Errno::EFAULT)?;
    let bits = vma.prot_bits();
    for piece in super::tables(range) {
        let mut pt = space.tables.pte_table_alloc(piece.start(), guard)?;
        let at = (piece.start() - range.start()) >> PAGE_SHIFT;
        let i = PtGuard::<H>::index(piece.start());
        for n in 0..piece.pages() {
            pt.install(
                i + n as usize,
                Pte::raw(Pfn(first.0 + at + n), bits, caching),
            );
        }
        drop(pt);
        space.hw().cond_resched();
    }
    Ok(())
}

/// Replaces whatever `new.range` held.
pub(crate) fn map_region<H: Hw>(
    space: &AddressSpace<H>,
    wait: &CanWait<H>,
    guard: &mut MmapWriteGuard<'_, H>,
    new: NewVma<H>,
) -> Result<(), Errno> {
    let (range, flags) = (new.range, new.flags);
    let replaced: u64 = guard
        .iter(range)
        .filter_map(|v| v.range().intersect(range))
        .map(UserRange::pages)
        .sum();
    if !limits::may_expand(space, flags, range.pages() - replaced) {
        return Err(Errno::ENOMEM);
    }
    if replaced == 0 {
        guard.insert(new)?;
        return Ok(());
    }
    Ok(guard.replace(new, |old| munmap::zap_detached(wait, old))?)
}

const _: () = assert!(MMAP_MIN_ADDR.is_multiple_of(PAGE_SIZE));
