//! A regular file's bytes: the page cache object of mm, with read, write, truncate and allocate on top.
//!
//! Reads and writes hold a reference to the page they copy to or from, no lock: a truncation that runs meanwhile
//! takes the page out of the file, and the copy goes to a page that is the caller's alone. Changes of the size
//! are ordered by `resize`, a sleeping lock that writers past the end take as well; a user page fault while
//! writing never needs it.

use alloc::sync::Arc;
use core::ops::Range;

use super::caller;
use super::inode::Object;
use super::iobuf::IoBuf;
use super::pipe::PipeBuf;
use super::writeback;
use crate::SysResult;
use crate::arch::X86;
use crate::sync::Mutex;
use crate::task::space::can_wait;
use mm::object::cache::{CacheError, cached_pages};
use mm::phys::FolioRef;
use mm::{Errno, PAGE_SIZE};

/// Largest file: offsets stay positive and page indices in range.
pub const MAX_SIZE: u64 = i64::MAX as u64 & !(PAGE_SIZE - 1);

/// Pages that files may fill: half of memory, as Linux's tmpfs has it.
pub fn page_limit() -> u64 {
    static LIMIT: spin::Once<u64> = spin::Once::new();
    *LIMIT.call_once(|| crate::memory::totals().0 / 2)
}

/// Pages that are prepared at once for a write.
const PREPARED: u64 = 256;

/// The bytes of a file.
pub struct Content {
    object: Arc<Object>,
    /// Held while the size changes, and by writes that may extend the file.
    resize: Mutex<()>,
    /// No byte comes to lie there.
    end: u64,
    /// A disk's: RLIMIT_FSIZE is about files.
    device: bool,
}

fn offset_in_page(pos: u64) -> usize {
    (pos % PAGE_SIZE) as usize
}

/// The pages in which these bytes are: the first, and the one after the last.
pub fn pages_of(range: &Range<u64>) -> (u64, u64) {
    (range.start / PAGE_SIZE, range.end.div_ceil(PAGE_SIZE))
}

impl Content {
    pub fn new() -> Result<Self, Errno> {
        let object = Object::new(X86).ok_or(Errno::ENOMEM)?;
        Ok(Content::of(object, MAX_SIZE))
    }

    /// Of a file that ends at `end` at the latest.
    pub fn of(object: Arc<Object>, end: u64) -> Self {
        Content {
            object,
            resize: Mutex::new(()),
            end,
            device: false,
        }
    }

    /// Of a disk, whose size does not change.
    pub fn of_disk(object: Arc<Object>) -> Self {
        Content {
            end: object.size(),
            object,
            resize: Mutex::new(()),
            device: true,
        }
    }

    /// How long the caller may make a file.
    fn limit(&self) -> u64 {
        match self.device {
            true => u64::MAX,
            false => caller::file_limit(),
        }
    }

    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    pub fn size(&self) -> u64 {
        self.object.size()
    }

    /// Memory in use, in 512-byte blocks.
    pub fn blocks(&self) -> u64 {
        self.object.pages() * (PAGE_SIZE / 512)
    }

    /// Reads at `pos` and moves it; 0 at the end.
    pub fn read(&self, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        self.read_pages(buf, pos, true)
    }

    /// The same as far as the pages are in memory; EAGAIN.
    pub fn read_cached(&self, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        self.read_pages(buf, pos, false)
    }

    fn read_pages(&self, buf: &mut IoBuf<'_>, pos: &mut u64, wait: bool) -> SysResult {
        let mut done = 0;
        while buf.left() > 0 {
            let size = self.size();
            if *pos >= size {
                break;
            }
            let at = offset_in_page(*pos);
            let n = (PAGE_SIZE as usize - at)
                .min(buf.left())
                .min((size - *pos).min(PAGE_SIZE) as usize);
            let moved = match self.object.read_page(*pos / PAGE_SIZE) {
                // SAFETY: the reference keeps the frame; `at + n` is within it. Others may write it meanwhile, as
                // through a shared mapping: bytes are copied as they are.
                Some(page) => unsafe { buf.put_raw(page.ptr().add(at), n) },
                None if self.object.is_paged() => {
                    let there = match wait {
                        true => self.object.page_in(&mut can_wait(), *pos / PAGE_SIZE),
                        false => Err(Errno::EAGAIN),
                    };
                    match there {
                        Ok(()) if !crate::task::fatal_signal_pending() => continue,
                        Err(errno) if done == 0 => return Err(errno),
                        _ => break,
                    }
                }
                None => buf.put_zeros(n),
            };
            *pos += moved as u64;
            done += moved;
            if moved < n {
                return if done == 0 {
                    Err(Errno::EFAULT)
                } else {
                    Ok(done)
                };
            }
            crate::task::cond_resched();
        }
        Ok(done)
    }

    /// The bytes at `pos`, which moves, to the page's or file's end, at most `most`: by reference. `None` at the end.
    pub fn lend(&self, pos: &mut u64, most: usize) -> Option<PipeBuf> {
        let left = self.size().checked_sub(*pos).filter(|&left| left > 0)?;
        let at = offset_in_page(*pos);
        let n = (PAGE_SIZE as usize - at)
            .min(most)
            .min(left.min(PAGE_SIZE) as usize);
        let buf = match self.object.read_page(*pos / PAGE_SIZE) {
            Some(page) => PipeBuf::lent(page, at, n),
            None => PipeBuf::zeros(n),
        };
        *pos += n as u64;
        Some(buf)
    }

    /// Writes at `pos` (at the end with `append`) and moves it, extending the file. `may_grow` refuses with EPERM
    /// before anything happens (memfd seals).
    pub fn write(
        &self,
        buf: &mut IoBuf<'_>,
        pos: &mut u64,
        append: bool,
        may_grow: bool,
    ) -> SysResult {
        if buf.left() == 0 {
            return Ok(0);
        }
        let end = |pos: u64| pos.saturating_add(buf.left() as u64);
        // Inside the file nothing changes but bytes; past its end the size moves, one writer at a time.
        let mut resize = if append || end(*pos) > self.size() {
            Some(self.resize.lock())
        } else {
            None
        };
        if append {
            *pos = self.size();
        }
        if end(*pos) > self.size() && !may_grow {
            return Err(Errno::EPERM);
        }
        let limit = self.limit();
        if *pos >= limit {
            return Err(caller::file_too_large());
        }
        if *pos >= self.end {
            return Err(Errno::EFBIG);
        }
        if resize.is_some() {
            self.object.clear_tail(*pos);
        }
        let end = self.end.min(limit);
        let tracked = self.object.is_tracked();
        let mut prepared = 0;
        let mut done = 0;
        while buf.left() > 0 && *pos < end {
            let at = offset_in_page(*pos);
            let n = (PAGE_SIZE as usize - at)
                .min(buf.left())
                .min((end - *pos) as usize);
            let index = *pos / PAGE_SIZE;
            if tracked && index >= prepared {
                let pages = (at + buf.left()).div_ceil(PAGE_SIZE as usize) as u64;
                let pages = pages.min(PREPARED);
                match self.object.prepare(&mut can_wait(), index, pages) {
                    Ok(()) => prepared = index + pages,
                    Err(errno) => return if done == 0 { Err(errno) } else { Ok(done) },
                }
            }
            let page = match self.page_to_write(index, resize.is_some()) {
                Ok(p) => p,
                Err(CacheError::Absent) => match self.object.page_in(&mut can_wait(), index) {
                    Ok(()) if !crate::task::fatal_signal_pending() => continue,
                    Err(errno) if done == 0 => return Err(errno),
                    _ => return Ok(done),
                },
                // The file was cut meanwhile: now the write extends it.
                Err(CacheError::Beyond) if resize.is_none() => {
                    resize = Some(self.resize.lock());
                    if !may_grow {
                        return if done == 0 {
                            Err(Errno::EPERM)
                        } else {
                            Ok(done)
                        };
                    }
                    self.object.clear_tail(*pos);
                    continue;
                }
                // Of a file on a disk memory is a cache only: room can be made.
                Err(CacheError::NoFrame)
                    if tracked && writeback::shrink(&mut can_wait(), true) > 0 =>
                {
                    continue;
                }
                Err(_) => {
                    return if done == 0 {
                        Err(if tracked {
                            Errno::ENOMEM
                        } else {
                            Errno::ENOSPC
                        })
                    } else {
                        Ok(done)
                    };
                }
            };
            // SAFETY: the reference keeps the frame; `at + n` is within it. Others may read or write it meanwhile:
            // bytes are copied as they are.
            let moved = unsafe { buf.take_raw(page.ptr().add(at), n) };
            *pos += moved as u64;
            done += moved;
            if resize.is_none() {
                self.object.mark_dirty(&page);
            } else if moved > 0 {
                self.object.wrote(&page, *pos);
            } else {
                // A page made past the end for nothing must not stay there.
                drop(page);
                self.object.set_size(&mut can_wait(), self.size());
            }
            if moved < n {
                return if done == 0 {
                    Err(Errno::EFAULT)
                } else {
                    Ok(done)
                };
            }
            crate::task::cond_resched();
        }
        Ok(done)
    }

    /// The page at `index`, made if need be; past the end only for who is `resizing`.
    fn page_to_write(&self, index: u64, resizing: bool) -> Result<FolioRef<X86>, CacheError> {
        if let Some(page) = self.object.lookup(index) {
            return Ok(page);
        }
        let full = !self.object.is_paged() && cached_pages() >= page_limit();
        if full || crate::memory::headroom().is_err() {
            return Err(CacheError::NoFrame);
        }
        match resizing {
            true => self.object.write_page(index),
            false => self.object.get_or_create(index),
        }
    }

    /// What is dirty of `range` is written to where it came from. Errors as [`mm::object::FileObject::write_back`].
    pub fn write_back(&self, range: Range<u64>) -> Result<(), Errno> {
        let (first, end) = pages_of(&range);
        self.object.write_back(&mut can_wait(), first, end)
    }

    /// The bytes of `range` are others now where they came from. The caller keeps away who copies into cached pages.
    pub fn invalidate(&self, range: Range<u64>) {
        let (first, end) = pages_of(&range);
        self.object.invalidate(&mut can_wait(), first, end);
    }

    /// `range` will be `needed`, or not again.
    pub fn advise(&self, range: Range<u64>, needed: bool) {
        if needed {
            let (first, end) = pages_of(&range);
            self.object.read_ahead(&mut can_wait(), first, end);
        } else {
            // Whole pages, as Linux: others may hold what somebody still needs.
            let first = range.start.div_ceil(PAGE_SIZE);
            self.object
                .forget(&mut can_wait(), first, range.end / PAGE_SIZE);
        }
    }

    /// Sets the size: what lies beyond is dropped, also from mappings.
    pub fn truncate(&self, len: u64) -> Result<(), Errno> {
        if len > self.size() && len > caller::file_limit() {
            return Err(caller::file_too_large());
        }
        if len > self.end {
            return Err(Errno::EFBIG);
        }
        let _resize = self.resize.lock();
        self.object.set_size(&mut can_wait(), len);
        Ok(())
    }

    /// fallocate: `punch` drops whole pages and zeroes the edges; else pages are made; `keep_size` as named.
    pub fn allocate(
        &self,
        offset: u64,
        len: u64,
        punch: bool,
        keep_size: bool,
    ) -> Result<(), Errno> {
        let end = offset
            .checked_add(len)
            .filter(|e| *e <= MAX_SIZE)
            .ok_or(Errno::EFBIG)?;
        if !punch && end > self.size() && end > caller::file_limit() {
            return Err(caller::file_too_large());
        }
        let _resize = self.resize.lock();
        if punch {
            self.object.punch_hole(&mut can_wait(), offset, end);
            return Ok(());
        }
        // Pages past the end cannot be kept without moving it.
        let made_to = if keep_size { end.min(self.size()) } else { end };
        let mut page = offset / PAGE_SIZE;
        while page * PAGE_SIZE < made_to {
            // A frame for each page, as tmpfs promises; the kernel's reserve is left alone.
            let made = match crate::task::fatal_signal_pending() {
                true => Err(Errno::EINTR),
                false => self.page_to_write(page, true).map_err(|_| Errno::ENOSPC),
            };
            if let Err(e) = made {
                self.object.set_size(&mut can_wait(), self.size());
                return Err(e);
            }
            page += 1;
            crate::task::cond_resched();
        }
        if !keep_size && end > self.size() {
            self.object.clear_tail(end);
            self.object.extend(end);
        }
        Ok(())
    }

    /// The first page with data (or, with `hole`, without) at or after `pos`.
    pub fn seek_data(&self, pos: u64, hole: bool) -> Result<u64, Errno> {
        let size = self.size();
        if pos >= size {
            return Err(Errno::ENXIO);
        }
        if !hole {
            // A sparse file may be exabytes long: from page to page, not from offset to offset.
            let page = self.object.next_page(pos / PAGE_SIZE).ok_or(Errno::ENXIO)?;
            let at = page * PAGE_SIZE;
            return if at < size {
                Ok(at.max(pos))
            } else {
                Err(Errno::ENXIO)
            };
        }
        let mut at = pos;
        while at < size {
            if self.object.read_page(at / PAGE_SIZE).is_none() {
                return Ok(at);
            }
            at = (at / PAGE_SIZE + 1) * PAGE_SIZE;
            crate::task::cond_resched();
        }
        Ok(size)
    }
}
