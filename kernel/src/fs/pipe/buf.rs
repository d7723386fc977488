//! What stands in a pipe: references to pages, and which of their bytes are meant.
//!
//! A page may be the pipe's own, filled by a `write`; or somebody else's, held by reference: of a file's cache
//! (`splice`), of a process (`vmsplice`), of another pipe's buffer (`tee`). Bytes are only ever added to an own
//! page, and only through the one buffer that says so: [`PipeBuf::append`] is all that writes, and
//! [`PipeBuf::share`] and the constructors of lent pages never say so. A page that other eyes see stays as it is,
//! whatever is written to the pipe after it (CVE-2022-0847 is what happens otherwise).

use crate::arch::X86;
use crate::fs::iobuf::IoBuf;
use mm::gup::PageSlot;
use mm::phys::{Folio, FolioRef, Hw, Use};
use mm::{Errno, PAGE_SIZE};

pub(super) const PAGE: usize = PAGE_SIZE as usize;

/// `len` bytes from `at` of a folio, which is held.
pub struct PipeBuf {
    folio: FolioRef<X86>,
    /// From the folio's first byte: large folios have several pages.
    at: u32,
    len: u32,
    /// The page is a pipe's own and its bytes past this buffer's end are nobody's: they may be filled.
    grows: bool,
}

/// An empty page for a pipe's own use.
pub(super) fn new_page() -> Result<FolioRef<X86>, Errno> {
    crate::memory::headroom()?;
    let frame = X86.phys().alloc(X86, Use::Kernel).ok_or(Errno::ENOMEM)?;
    Ok(FolioRef::adopt(Folio::new(X86, frame.into_pfn())))
}

impl PipeBuf {
    /// Fills `page`, which nobody else has, with `n` bytes of `buf`; the page comes back if they cannot be read.
    #[inline]
    pub(super) fn fill(
        page: FolioRef<X86>,
        buf: &mut IoBuf<'_>,
        n: usize,
    ) -> Result<Self, FolioRef<X86>> {
        let n = n.min(PAGE);
        // SAFETY: a page of our own, `n` bytes of it.
        if unsafe { buf.take_raw(page.ptr(), n) } < n {
            return Err(page);
        }
        Ok(PipeBuf {
            folio: page,
            at: 0,
            len: n as u32,
            grows: true,
        })
    }

    /// A new page that `read` filled: bytes of a file that has no pages to lend. `None`: there were none.
    pub(in crate::fs) fn copied(
        most: usize,
        read: impl FnOnce(&mut IoBuf<'_>) -> Result<usize, Errno>,
    ) -> Result<Option<Self>, Errno> {
        let folio = new_page()?;
        let n = most.min(PAGE);
        // SAFETY: a page of our own, `n` bytes of it, until the buffer is dropped.
        let got = read(&mut unsafe { IoBuf::kernel_raw(folio.ptr(), n, true) })?;
        Ok((got > 0).then_some(PipeBuf {
            folio,
            at: 0,
            len: got.min(n) as u32,
            grows: false,
        }))
    }

    /// `len` bytes from `at` of somebody's folio.
    pub fn lent(folio: FolioRef<X86>, at: usize, len: usize) -> Self {
        debug_assert!(at + len <= PAGE << folio.order().get());
        PipeBuf {
            folio,
            at: at as u32,
            len: len as u32,
            grows: false,
        }
    }

    /// `len` bytes from `at` of a page of which the caller hands over one reference.
    pub(super) fn of_page(slot: PageSlot, at: usize, len: usize) -> Self {
        let folio = Folio::of_page(X86, slot.pfn());
        let first = (slot.pfn().0 - folio.pfn().0) as usize * PAGE;
        PipeBuf::lent(FolioRef::adopt(folio), first + at, len)
    }

    /// `len` zero bytes (at most a page).
    pub(in crate::fs) fn zeros(len: usize) -> Self {
        let folio = Folio::new(X86, X86.phys().zero_page());
        PipeBuf::lent(folio.get(), 0, len.min(PAGE))
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// The first `len` bytes as a buffer of their own, which never grows. EFAULT where the page has too many
    /// references already.
    pub(super) fn share(&self, len: usize) -> Result<Self, Errno> {
        let folio = self.folio.try_get().ok_or(Errno::EFAULT)?;
        Ok(PipeBuf {
            folio,
            at: self.at,
            len: (len as u32).min(self.len),
            grows: false,
        })
    }

    /// Drops the first `n` bytes.
    #[inline]
    pub(super) fn skip(&mut self, n: usize) {
        let n = (n as u32).min(self.len);
        (self.at, self.len) = (self.at + n, self.len - n);
    }

    /// Whether `n` more bytes fit behind those that are there.
    #[inline]
    pub(super) fn has_room(&self, n: usize) -> bool {
        self.grows && n <= PAGE - (self.at + self.len) as usize
    }

    /// Adds `n` bytes of `buf`, for which there is room; false and nothing if they cannot be read.
    #[inline]
    pub(super) fn append(&mut self, buf: &mut IoBuf<'_>, n: usize) -> bool {
        if !self.has_room(n) {
            return false;
        }
        let end = (self.at + self.len) as usize;
        // SAFETY: the page is a pipe's own and no other buffer reaches past `end` (`grows`); `end + n` is within it.
        if unsafe { buf.take_raw(self.folio.ptr().add(end), n) } < n {
            return false;
        }
        self.len += n as u32;
        true
    }

    /// Copies the first `n` bytes (of `len`) into `buf`; false if they cannot all be stored.
    #[inline]
    pub(super) fn put(&self, buf: &mut IoBuf<'_>, n: usize) -> bool {
        assert!(n <= self.len());
        // SAFETY: the reference keeps the folio; `at + len` is within it. Others may write it meanwhile: bytes are
        // copied as they are.
        unsafe { buf.put_raw(self.folio.ptr().add(self.at as usize), n) == n }
    }

    /// The first `n` bytes as something to be written to a file.
    pub(super) fn bytes(&self, n: usize) -> IoBuf<'_> {
        // SAFETY: the folio stays for the borrow, and `at + len` is within it. It is not written to.
        unsafe {
            let first = self.folio.ptr().add(self.at as usize);
            IoBuf::kernel_raw(first, n.min(self.len()), false)
        }
    }

    /// The page, if nobody else has it and it may be filled anew.
    #[inline]
    pub(super) fn into_spare(self) -> Option<FolioRef<X86>> {
        (self.grows && self.folio.desc().ref_count() == 1).then_some(self.folio)
    }
}
