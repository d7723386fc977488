//! Argument and environment strings on their way from the old image to the new one: copied into
//! frames of the kernel's, since the old image is gone when the new stack is written.

use alloc::vec::Vec;

use mm::phys::Use;
use mm::{Errno, Hw};

use crate::arch::X86;
use crate::arch::uaccess::{copy_in, copy_to_user, get_user};
use crate::memory::PHYS;

const PAGE: usize = 4096;
/// Longest single string, with its NUL (Linux's MAX_ARG_STRLEN).
const MAX_STRING: usize = 32 * PAGE;
/// Bytes copied at once.
const CHUNK: usize = 64;
/// Most strings.
const MAX_COUNT: usize = 1 << 20;

type Frame = mm::phys::Frame<mm::phys::Owned>;

/// A growing run of strings, each ended by NUL.
pub struct Strings {
    pages: Vec<Frame>,
    len: usize,
    limit: usize,
    /// Length of each string with its NUL.
    lengths: Vec<u32>,
}

impl Strings {
    /// At most `limit` bytes, pointers included.
    pub fn new(limit: usize) -> Strings {
        Strings {
            pages: Vec::new(),
            len: 0,
            limit,
            lengths: Vec::new(),
        }
    }

    pub fn count(&self) -> usize {
        self.lengths.len()
    }

    /// Bytes of all strings.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Lengths with NUL.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// The room left in the last page, after adding one if it is full.
    fn room(&mut self) -> Result<(*mut u8, usize), Errno> {
        let used = self.len % PAGE;
        if used == 0 && self.len == self.pages.len() * PAGE {
            self.pages.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            let frame = PHYS.alloc(X86, Use::Kernel).ok_or(Errno::ENOMEM)?;
            self.pages.push(frame);
        }
        let page = X86.frame_ptr(self.pages[self.len / PAGE].pfn());
        Ok((page.wrapping_add(used), PAGE - used))
    }

    fn note(&mut self, start: usize) -> Result<(), Errno> {
        self.lengths.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.lengths.push((self.len - start) as u32);
        if self.len + self.lengths.len() * 8 > self.limit {
            return Err(Errno::E2BIG);
        }
        Ok(())
    }

    /// Appends a string of the kernel's.
    pub fn push(&mut self, s: &[u8]) -> Result<(), Errno> {
        let start = self.len;
        let mut rest = s;
        let mut nul = false;
        while !nul {
            let (to, room) = self.room()?;
            let n = rest.len().min(room);
            // SAFETY: `room` bytes at `to` are ours.
            unsafe { core::ptr::copy_nonoverlapping(rest.as_ptr(), to, n) };
            rest = &rest[n..];
            self.len += n;
            if n < room && rest.is_empty() {
                // SAFETY: as above, there is room for one more.
                unsafe { to.add(n).write(0) };
                self.len += 1;
                nul = true;
            }
        }
        self.note(start)
    }

    /// Appends a string of the user's.
    fn push_user(&mut self, mut at: u64) -> Result<(), Errno> {
        let start = self.len;
        loop {
            let (to, room) = self.room()?;
            // Not across a page of the source, so that a string at the end of memory can be read; and
            // little at a time, as most strings are short.
            let n = room.min(CHUNK).min(PAGE - (at as usize & (PAGE - 1)));
            // SAFETY: `room` bytes at `to` are ours.
            let missing = unsafe { copy_in(to, at, n) };
            let got = n - missing;
            // SAFETY: the bytes just written.
            let bytes = unsafe { core::slice::from_raw_parts(to, got) };
            match bytes.iter().position(|&b| b == 0) {
                Some(end) => {
                    self.len += end + 1;
                    break;
                }
                None if missing != 0 => return Err(Errno::EFAULT),
                None => self.len += got,
            }
            if self.len - start >= MAX_STRING || self.len > self.limit {
                return Err(Errno::E2BIG);
            }
            at = at.wrapping_add(got as u64);
        }
        self.note(start)
    }

    /// Appends the strings of a NULL-terminated array in user memory; a null array has none.
    pub fn push_user_array(&mut self, array: u64) -> Result<(), Errno> {
        if array == 0 {
            return Ok(());
        }
        for i in 0.. {
            if i >= MAX_COUNT as u64 {
                return Err(Errno::E2BIG);
            }
            let at: u64 = get_user(array.wrapping_add(i * 8))?;
            if at == 0 {
                break;
            }
            self.push_user(at)?;
            if crate::task::fatal_signal_pending() {
                return Err(Errno::EINTR);
            }
            crate::task::cond_resched();
        }
        Ok(())
    }

    /// Appends the strings of `other` from number `skip` on.
    pub fn append(&mut self, other: &Strings, skip: usize) -> Result<(), Errno> {
        let mut at: usize = other.lengths.iter().take(skip).map(|&n| n as usize).sum();
        for &n in other.lengths.iter().skip(skip) {
            let (start, end) = (self.len, at + n as usize);
            while at < end {
                let (to, room) = self.room()?;
                let from = X86
                    .frame_ptr(other.pages[at / PAGE].pfn())
                    .wrapping_add(at % PAGE);
                let n = room.min(end - at).min(PAGE - at % PAGE);
                // SAFETY: `n` bytes of the other's string, and room for them here.
                unsafe { core::ptr::copy_nonoverlapping(from, to, n) };
                self.len += n;
                at += n;
            }
            self.note(start)?;
        }
        Ok(())
    }

    /// Writes all strings to user memory at `to`.
    pub fn write_to(&self, to: u64) -> Result<(), Errno> {
        let mut left = self.len;
        for (i, page) in self.pages.iter().enumerate() {
            let n = left.min(PAGE);
            // SAFETY: the frame is ours and initialised up to `len`.
            let bytes = unsafe { core::slice::from_raw_parts(X86.frame_ptr(page.pfn()), n) };
            copy_to_user(to + (i * PAGE) as u64, bytes)?;
            left -= n;
        }
        Ok(())
    }
}

impl Drop for Strings {
    fn drop(&mut self) {
        for frame in self.pages.drain(..) {
            PHYS.free(X86, frame);
        }
    }
}
