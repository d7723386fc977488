//! Moving page references: `splice`, `tee`, `vmsplice`, and copies between files.
//!
//! What leaves a file for a pipe is a reference to its page (`FileOps::splice_read`); what leaves a pipe for a
//! pipe is the buffer itself; only what goes from a pipe to a file is copied, once, by the file's own write.
//!
//! As on Linux, the pipe's ring stays locked while a file is read into it or written from it: bytes keep their
//! order. But a stream (a terminal, a socket) is read first, for it may block, and whoever reads the pipe must not wait
//! for that: what it gives then goes in even if somebody filled the pipe meanwhile. Rings are locked
//! before the lock of whatever is spliced to or from; of two rings, the one with the lower address first. All
//! waits here end with a signal, those for a ring with a fatal one.

use super::buf::PAGE;
use super::{Pipe, PipeBuf, PipeEnd, Ring, some};
use crate::SysResult;
use crate::arch::X86;
use crate::fs::caller;
use crate::fs::file::File;
use crate::fs::iobuf::UserSpan;
use crate::sync::MutexGuard;
use crate::task::space::can_wait;
use crate::task::{Sleep, cond_resched, current};
use core::sync::atomic::Ordering;
use mm::Errno;
use mm::gup::{GupFlags, PageSlot, get_user_pages_fast, put_pages, to_program};

/// The pipe that an open file is an end of.
pub fn pipe_of(file: &File) -> Option<&Pipe> {
    file.ops_as::<PipeEnd>().map(|end| &*end.pipe)
}

impl Pipe {
    /// The ring, with something in it; `None` at the end.
    fn data(&self, nonblock: bool) -> Result<Option<MutexGuard<'_, Ring>>, Errno> {
        loop {
            let ring = self.lock_woken(&self.read_wait)?;
            if !ring.bufs.is_empty() {
                return Ok(Some(ring));
            }
            let writers_gone = Self::gone(&self.writers);
            drop(ring);
            if writers_gone {
                return Ok(None);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            self.wait_for_data()?;
        }
    }

    /// The ring, with room for one more buffer. SIGPIPE and EPIPE when nobody is left to read.
    fn room(&self, nonblock: bool) -> Result<MutexGuard<'_, Ring>, Errno> {
        loop {
            let ring = self.lock_woken(&self.write_wait)?;
            if Self::gone(&self.readers) {
                drop(ring);
                caller::send_sigpipe();
                return Err(Errno::EPIPE);
            }
            if !self.full() {
                return Ok(ring);
            }
            drop(ring);
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            let full = || self.full() && !Self::gone(&self.readers);
            self.write_wait
                .wait_while(Sleep::Interruptible, None, full)
                .map_err(|_| Errno::ERESTARTSYS)?;
        }
    }

    /// Waits for room, and leaves it: whoever waits behind us hears of it now, for we may wait for other things.
    fn await_room(&self, nonblock: bool) -> Result<(), Errno> {
        drop(self.room(nonblock)?);
        self.write_wait.wake_one();
        Ok(())
    }

    /// Locks both rings, when `self` has something and `to` has room; `None` at the end of `self`.
    fn with<'a>(
        &'a self,
        to: &'a Pipe,
        nonblock: bool,
    ) -> Result<Option<[MutexGuard<'a, Ring>; 2]>, Errno> {
        loop {
            if self.data(nonblock)?.is_none() {
                return Ok(None);
            }
            to.await_room(nonblock)?;
            let (source, sink) = if core::ptr::from_ref(self) < core::ptr::from_ref(to) {
                let first = self.ring.lock_killable()?;
                (first, to.ring.lock_killable()?)
            } else {
                let first = to.ring.lock_killable()?;
                (self.ring.lock_killable()?, first)
            };
            if !source.bufs.is_empty() && !to.full() && !Self::gone(&to.readers) {
                return Ok(Some([source, sink]));
            }
        }
    }

    /// Puts page references in until `next` has no more or the pipe is full; waits for the first place. `next`
    /// runs with the ring locked and hears how many places are left.
    pub fn lend(
        &self,
        nonblock: bool,
        mut next: impl FnMut(usize) -> Result<Option<PipeBuf>, Errno>,
    ) -> SysResult {
        let mut ring = self.room(nonblock)?;
        let was_empty = ring.bufs.is_empty();
        let mut done = 0;
        let result = loop {
            let room = self.capacity.load(Ordering::Relaxed);
            let room = room.saturating_sub(ring.bufs.len());
            if room == 0 {
                break Ok(done);
            }
            match next(room) {
                Ok(Some(buf)) => {
                    done += buf.len();
                    ring.bufs.push_back(buf);
                }
                Ok(None) => break Ok(done),
                Err(e) => break some(done, e),
            }
        };
        self.used.store(ring.bufs.len(), Ordering::SeqCst);
        self.after_add(ring, was_empty);
        result
    }

    /// Puts in one buffer, which cannot be given back: over the capacity, if need be.
    fn add(&self, buf: PipeBuf) -> SysResult {
        let mut ring = self.ring.lock();
        if Self::gone(&self.readers) {
            drop(ring);
            caller::send_sigpipe();
            return Err(Errno::EPIPE);
        }
        ring.bufs.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        let (was_empty, len) = (ring.bufs.is_empty(), buf.len());
        self.push(&mut ring, buf);
        self.after_add(ring, was_empty);
        Ok(len)
    }
}

/// Up to `len` bytes from `file` at `pos`, which moves, into `to`.
pub fn file_to_pipe(
    file: &File,
    pos: &mut u64,
    to: &Pipe,
    len: usize,
    nonblock: bool,
) -> SysResult {
    if !file.ops().seekable() {
        // Once: a second read could wait for more.
        to.await_room(nonblock)?;
        let Some(buf) = file.ops().splice_read(file, pos, len, nonblock)? else {
            return Ok(0);
        };
        return to.add(buf);
    }
    let mut left = len;
    to.lend(nonblock, |_| {
        if left == 0 {
            return Ok(None);
        }
        cond_resched();
        let buf = file.ops().splice_read(file, pos, left, nonblock)?;
        left -= buf.as_ref().map_or(0, PipeBuf::len);
        Ok(buf)
    })
}

/// Pages of the running process, on their way into a pipe.
struct OwnPages<'a> {
    spans: &'a [UserSpan],
    /// Where in the first span.
    at: usize,
    /// References that no buffer has taken over yet.
    slots: [PageSlot; 16],
    next: usize,
    got: usize,
}

impl OwnPages<'_> {
    /// The next page's piece. References are taken for no more pages than there is `room`.
    fn next(&mut self, room: usize) -> Result<Option<PipeBuf>, Errno> {
        while let Some(span) = self.spans.first().filter(|s| s.len == self.at) {
            debug_assert!(span.len == self.at);
            (self.spans, self.at) = (&self.spans[1..], 0);
        }
        let Some(span) = self.spans.first() else {
            return Ok(None);
        };
        let va = span.addr + self.at as u64;
        let in_page = va as usize % PAGE;
        if self.next == self.got {
            let pages = (in_page + span.len - self.at).div_ceil(PAGE);
            let want = pages.min(room).min(self.slots.len());
            let space = current().space().ok_or(Errno::EFAULT)?;
            let flags = GupFlags::empty();
            let slots = &mut self.slots[..want];
            let held = get_user_pages_fast(space, &mut can_wait(), va, flags, slots)
                .map_err(to_program)?;
            // Each buffer takes one over; `drop` has the others.
            (self.next, self.got) = (0, held.len());
            core::mem::forget(held);
        }
        let Some(&slot) = self.slots[..self.got].get(self.next) else {
            return Ok(None);
        };
        self.next += 1;
        let n = (PAGE - in_page).min(span.len - self.at);
        self.at += n;
        Ok(Some(PipeBuf::of_page(slot, in_page, n)))
    }
}

impl Drop for OwnPages<'_> {
    fn drop(&mut self) {
        put_pages(X86, &self.slots[self.next..self.got]);
    }
}

/// The running process's pages at `spans`, by reference, as many as fit. What it writes to them later may be seen by
/// the reader or not; what another process writes is not.
pub fn memory_to_pipe(spans: &[UserSpan], to: &Pipe, nonblock: bool) -> SysResult {
    let mut pages = OwnPages {
        spans,
        at: 0,
        slots: [PageSlot::EMPTY; 16],
        next: 0,
        got: 0,
    };
    to.lend(nonblock, |room| pages.next(room))
}

/// Up to `len` bytes from `from` into `file` at `pos`, which moves.
pub fn pipe_to_file(
    from: &Pipe,
    file: &File,
    pos: &mut u64,
    len: usize,
    nonblock: bool,
) -> SysResult {
    let Some(mut ring) = from.data(nonblock)? else {
        return Ok(0);
    };
    let was_full = from.full();
    let mut done = 0;
    let result = loop {
        let Some(front) = ring.bufs.front().filter(|_| done < len) else {
            break Ok(done);
        };
        let n = front.len().min(len - done);
        match file.ops().splice_write(file, &mut front.bytes(n), pos) {
            Ok(wrote) => {
                from.consume(&mut ring, wrote.min(n));
                done += wrote.min(n);
                if wrote < n {
                    break Ok(done);
                }
            }
            Err(e) => break some(done, e),
        }
        cond_resched();
    };
    from.after_take(ring, was_full);
    result
}

/// Moves up to `len` bytes from one pipe to another; they stay behind as well if `tee`.
pub fn pipe_to_pipe(from: &Pipe, to: &Pipe, len: usize, nonblock: bool, tee: bool) -> SysResult {
    let [mut source, mut sink] = match from.with(to, nonblock) {
        Ok(Some(both)) => both,
        Ok(None) => return Ok(0),
        Err(e) => {
            // We may have been woken in the place of somebody who can go on.
            if !from.empty() {
                from.read_wait.wake_one();
            }
            return Err(e);
        }
    };
    let (was_full, was_empty) = (from.full(), to.empty());
    let mut done = 0;
    let mut at = 0;
    let result = loop {
        if done == len || to.full() {
            break Ok(done);
        }
        let Some(n) = source.bufs.get(at).map(|b| b.len().min(len - done)) else {
            break Ok(done);
        };
        let whole = n == source.bufs[at].len();
        if whole && !tee {
            if let Some(buf) = source.bufs.pop_front() {
                to.push(&mut sink, buf);
            }
            from.used.store(source.bufs.len(), Ordering::SeqCst);
        } else {
            match source.bufs[at].share(n) {
                Ok(shared) => to.push(&mut sink, shared),
                Err(e) => break some(done, e),
            }
            if tee {
                at += 1;
            } else {
                from.consume(&mut source, n);
            }
        }
        done += n;
    };
    from.after_take(source, was_full);
    to.after_add(sink, was_empty);
    result
}

/// Copies up to `len` bytes from one file to another, a page at a time and without a pipe between them. Both
/// positions move.
pub fn direct(
    from: &File,
    from_pos: &mut u64,
    to: &File,
    to_pos: &mut u64,
    len: usize,
) -> SysResult {
    let mut done = 0;
    while done < len {
        let at = *from_pos;
        let buf = match from.ops().splice_read(from, from_pos, len - done, false) {
            Ok(Some(buf)) => buf,
            Ok(None) => break,
            Err(e) => return some(done, e),
        };
        let wrote = to.ops().splice_write(to, &mut buf.bytes(buf.len()), to_pos);
        let n = *wrote.as_ref().unwrap_or(&0);
        done += n;
        if n < buf.len() {
            // What found no place is read again next time.
            *from_pos = at + n as u64;
            return wrote.map(|_| done).or_else(|e| some(done, e));
        }
        if crate::task::signal_pending() {
            break;
        }
        cond_resched();
    }
    Ok(done)
}
