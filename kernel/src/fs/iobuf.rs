//! The caller's memory in a read or write: user addresses, pages that he has pinned, or kernel slices behind one face.
//!
//! An `IoBuf` is consumed from the front. Bytes go in with `put*` (the file is being read) or come out with
//! `take*` (it is being written). A copy that meets a bad user address stops there and reports how much went
//! through, so that calls return partial results as Linux does. User copies may fault and sleep: never hold a
//! spin lock or a folio lock around them.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;

use crate::arch::{X86, uaccess};
use mm::gup::{LongtermPin, PageSlot, Write};
use mm::{Errno, PAGE_SIZE};

/// One piece of user memory.
#[derive(Clone, Copy, Debug)]
pub struct UserSpan {
    pub addr: u64,
    pub len: usize,
}

/// Pages that stay pinned for as long as their owner lives.
pub type LongPin = LongtermPin<X86, Write, Vec<PageSlot>>;

/// Memory that is pinned for long, and lent to one transfer after the other.
pub trait Kept: Send + Sync {
    /// The pages that byte `at` and those after it lie in, and where in them that is.
    fn pages(&self, at: usize) -> Option<(&LongPin, usize)>;
}

/// `len` bytes of such memory, from byte `at` on.
#[derive(Clone, Copy)]
pub struct KeptSpan<'a> {
    pub owner: &'a Arc<dyn Kept>,
    pub at: usize,
    pub len: usize,
}

/// What a device can be given of a buffer: its next bytes in a row.
#[derive(Clone, Copy)]
pub enum Front<'a> {
    User(UserSpan),
    Kept(KeptSpan<'a>),
}

#[derive(Clone, Copy)]
enum Piece<'a> {
    User(UserSpan),
    Kept(KeptSpan<'a>),
    Kernel {
        ptr: *mut u8,
        len: usize,
        writable: bool,
    },
}

/// Where a copy goes to or comes from.
enum Place {
    User(u64),
    Kernel { ptr: *mut u8, writable: bool },
}

/// What is left of the caller's buffer.
pub struct IoBuf<'a> {
    piece: Piece<'a>,
    rest: &'a [UserSpan],
    left: usize,
    _memory: PhantomData<&'a mut [u8]>,
}

impl<'a> IoBuf<'a> {
    /// A single range of user memory.
    pub fn user(addr: u64, len: usize) -> IoBuf<'static> {
        IoBuf {
            piece: Piece::User(UserSpan { addr, len }),
            rest: &[],
            left: len,
            _memory: PhantomData,
        }
    }

    /// Several ranges of user memory, one after the other; their lengths were checked not to wrap in total.
    pub fn user_vec(spans: &'a [UserSpan]) -> IoBuf<'a> {
        let left = spans.iter().map(|s| s.len).sum();
        let (first, rest) = match spans.split_first() {
            Some((first, rest)) => (*first, rest),
            None => (UserSpan { addr: 0, len: 0 }, spans),
        };
        IoBuf {
            piece: Piece::User(first),
            rest,
            left,
            _memory: PhantomData,
        }
    }

    /// Memory that is pinned.
    pub fn kept(span: KeptSpan<'a>) -> IoBuf<'a> {
        IoBuf {
            piece: Piece::Kept(span),
            rest: &[],
            left: span.len,
            _memory: PhantomData,
        }
    }

    /// Kernel memory to be filled.
    pub fn kernel_mut(buf: &'a mut [u8]) -> IoBuf<'a> {
        let piece = Piece::Kernel {
            ptr: buf.as_mut_ptr(),
            len: buf.len(),
            writable: true,
        };
        IoBuf {
            piece,
            rest: &[],
            left: buf.len(),
            _memory: PhantomData,
        }
    }

    /// Kernel memory to be read out.
    pub fn kernel(buf: &'a [u8]) -> IoBuf<'a> {
        let piece = Piece::Kernel {
            ptr: buf.as_ptr().cast_mut(),
            len: buf.len(),
            writable: false,
        };
        IoBuf {
            piece,
            rest: &[],
            left: buf.len(),
            _memory: PhantomData,
        }
    }

    /// `len` bytes of kernel memory that no Rust reference covers, to be filled or to be read out.
    ///
    /// # Safety
    /// While the value is used `ptr` has `len` readable and, if `writable`, writable bytes. They may change
    /// meanwhile: copies are plain bytes.
    pub unsafe fn kernel_raw(ptr: *mut u8, len: usize, writable: bool) -> IoBuf<'a> {
        IoBuf {
            piece: Piece::Kernel { ptr, len, writable },
            rest: &[],
            left: len,
            _memory: PhantomData,
        }
    }

    /// Where the next bytes are, if that is memory of the caller's.
    pub fn front(&self) -> Option<Front<'a>> {
        match self.piece {
            Piece::User(s) if s.len > 0 => Some(Front::User(s)),
            Piece::User(_) => {
                let next = self.rest.iter().copied().find(|s| s.len > 0);
                next.map(Front::User)
            }
            Piece::Kept(s) => (s.len > 0).then_some(Front::Kept(s)),
            Piece::Kernel { .. } => None,
        }
    }

    /// Whether every piece of the caller's memory begins and is long as `mask` (a power of two less one) says.
    pub fn is_aligned(&self, mask: u64) -> bool {
        let good = |s: &UserSpan| (s.addr | s.len as u64) & mask == 0;
        match &self.piece {
            Piece::User(s) => good(s) && self.rest.iter().all(good),
            Piece::Kept(s) => (s.at | s.len) as u64 & mask == 0,
            Piece::Kernel { .. } => false,
        }
    }

    /// In how many pages of the caller's the next `len` bytes lie, piece by piece; of what is pinned already in none.
    pub fn pages(&self, len: usize) -> usize {
        let Piece::User(first) = self.piece else {
            return 0;
        };
        let (mut left, mut pages) = (len, 0);
        for s in core::iter::once(&first).chain(self.rest) {
            let n = s.len.min(left);
            if n > 0 {
                pages += ((s.addr % PAGE_SIZE) as usize + n).div_ceil(PAGE_SIZE as usize);
            }
            left -= n;
        }
        pages
    }

    /// Bytes not consumed yet.
    #[inline]
    pub fn left(&self) -> usize {
        self.left
    }

    /// Copies up to `len` bytes at `src` into the buffer; returns how many went through.
    ///
    /// # Safety
    /// `src` has `len` readable bytes. They may change meanwhile (page cache): the copy is plain bytes.
    #[inline]
    pub unsafe fn put_raw(&mut self, src: *const u8, len: usize) -> usize {
        // One piece of user memory that takes all: the common case.
        if let Piece::User(s) = self.piece
            && len <= s.len
        {
            // SAFETY: the caller's bytes.
            let n = len - unsafe { uaccess::copy_out(s.addr, src, len) };
            return self.used(s, n);
        }
        self.each(len, |place, done, n| match place {
            // SAFETY: the caller's bytes from `done` on; `each` keeps `done + n` within `len`.
            Place::User(addr) => n - unsafe { uaccess::copy_out(addr, src.add(done), n) },
            Place::Kernel {
                writable: false, ..
            } => 0,
            Place::Kernel { ptr, .. } => {
                // SAFETY: as above; the destination was lent and has `n` bytes left. It may be the same page.
                unsafe { core::ptr::copy(src.add(done), ptr, n) };
                n
            }
        })
    }

    /// Copies up to `len` bytes out of the buffer to `dst`; returns how many went through.
    ///
    /// # Safety
    /// `dst` has `len` writable bytes that no Rust reference covers.
    #[inline]
    pub unsafe fn take_raw(&mut self, dst: *mut u8, len: usize) -> usize {
        if let Piece::User(s) = self.piece
            && len <= s.len
        {
            // SAFETY: the caller's bytes.
            let n = len - unsafe { uaccess::copy_in(dst, s.addr, len) };
            return self.used(s, n);
        }
        self.each(len, |place, done, n| match place {
            // SAFETY: the caller's bytes from `done` on; `each` keeps `done + n` within `len`.
            Place::User(addr) => n - unsafe { uaccess::copy_in(dst.add(done), addr, n) },
            Place::Kernel { ptr, .. } => {
                // SAFETY: as above; the source was lent and has `n` bytes left. It may be the same page: a file that
                // is spliced to itself.
                unsafe { core::ptr::copy(ptr.cast_const(), dst.add(done), n) };
                n
            }
        })
    }

    /// `n` bytes of the current piece `s` are done.
    #[inline]
    fn used(&mut self, s: UserSpan, n: usize) -> usize {
        self.piece = Piece::User(UserSpan {
            addr: s.addr + n as u64,
            len: s.len - n,
        });
        self.left -= n;
        n
    }

    /// Walks up to `len` bytes piece by piece, of pinned pages page by page. `copy(place, done, n)` moves `n` bytes and says how
    /// many it could.
    #[inline]
    fn each(&mut self, len: usize, mut copy: impl FnMut(Place, usize, usize) -> usize) -> usize {
        let len = len.min(self.left);
        let mut done = 0;
        while done < len {
            let (place, here) = match self.piece {
                Piece::User(s) => (Place::User(s.addr), s.len),
                Piece::Kept(s) => {
                    let pages = s.owner.pages(s.at);
                    let Some((ptr, run)) = pages.and_then(|(pages, at)| pages.byte(at)) else {
                        break;
                    };
                    // A page that `owner` keeps pinned for writing while it is borrowed.
                    let writable = true;
                    (Place::Kernel { ptr, writable }, run.min(s.len))
                }
                Piece::Kernel { ptr, len, writable } => (Place::Kernel { ptr, writable }, len),
            };
            if here == 0 {
                let Some((next, rest)) = self.rest.split_first() else {
                    break;
                };
                self.piece = Piece::User(*next);
                self.rest = rest;
                continue;
            }
            let n = here.min(len - done);
            let moved = copy(place, done, n);
            self.skip_in_piece(moved);
            done += moved;
            if moved < n {
                break;
            }
        }
        self.left -= done;
        done
    }

    #[inline]
    fn skip_in_piece(&mut self, n: usize) {
        match &mut self.piece {
            Piece::User(s) => {
                s.addr = s.addr.wrapping_add(n as u64);
                s.len -= n;
            }
            Piece::Kept(s) => {
                s.at += n;
                s.len -= n;
            }
            Piece::Kernel { ptr, len, .. } => {
                // Never past the lent slice's end: `n` is at most `len`.
                *ptr = ptr.wrapping_add(n);
                *len -= n;
            }
        }
    }

    /// Puts as much of `src` as fits; EFAULT when a bad address stopped it before the first byte.
    pub fn put(&mut self, src: &[u8]) -> Result<usize, Errno> {
        let want = src.len().min(self.left);
        // SAFETY: a slice's bytes are readable.
        let n = unsafe { self.put_raw(src.as_ptr(), src.len()) };
        if n == 0 && want > 0 {
            Err(Errno::EFAULT)
        } else {
            Ok(n)
        }
    }

    /// Fills as much of `dst` as the buffer has; EFAULT when a bad address stopped it before the first byte.
    pub fn take(&mut self, dst: &mut [u8]) -> Result<usize, Errno> {
        let want = dst.len().min(self.left);
        // SAFETY: an exclusive slice's bytes are writable, and nothing else refers to them during the call.
        let n = unsafe { self.take_raw(dst.as_mut_ptr(), dst.len()) };
        if n == 0 && want > 0 {
            Err(Errno::EFAULT)
        } else {
            Ok(n)
        }
    }

    /// Takes exactly `dst.len()` bytes, or fails with EFAULT; EINVAL when the buffer is shorter.
    pub fn take_exact(&mut self, dst: &mut [u8]) -> Result<(), Errno> {
        if self.left < dst.len() {
            return Err(Errno::EINVAL);
        }
        if self.take(dst)? < dst.len() {
            Err(Errno::EFAULT)
        } else {
            Ok(())
        }
    }

    /// Puts up to `len` zero bytes; returns how many went through.
    pub fn put_zeros(&mut self, len: usize) -> usize {
        self.each(len, |place, _, n| match place {
            Place::User(addr) => n - uaccess::clear_user(addr, n),
            Place::Kernel {
                writable: false, ..
            } => 0,
            Place::Kernel { ptr, .. } => {
                // SAFETY: lent to be written, `n` bytes left.
                unsafe { core::ptr::write_bytes(ptr, 0, n) };
                n
            }
        })
    }

    /// Consumes `len` bytes without touching them.
    #[inline]
    pub fn skip(&mut self, len: usize) {
        match self.piece {
            Piece::User(s) if len <= s.len => {
                self.skip_in_piece(len);
                self.left -= len;
            }
            _ => self.skip_pieces(len),
        }
    }

    fn skip_pieces(&mut self, len: usize) {
        self.each(len, |_, _, n| n);
    }
}
