//! Pipes.
//!
//! A pipe is a ring of page references (`buf`) under a sleeping lock, which is held across the copies to and from
//! user memory. The counters beside it (buffers used, open ends) are atomics, changed under the lock and read by
//! waiters without it: a waiter queues itself and then looks, the other side changes and then wakes. Wake-ups are
//! sent only where somebody can be waiting: readers when the ring was empty, writers when it was full. A woken
//! reader that leaves something behind wakes the next one. [`splice`] moves references in and out.

mod buf;
mod end;
pub mod splice;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use linux_raw_sys::general as sys;

use super::attr::{AttrCell, Kind, anonymous_dev};
use super::caller;
use super::fifo::PipeNode;
use super::file::File;
use super::inode::Inode;
use super::iobuf::IoBuf;
use super::path::Path;
use super::poll::{Notify, PollQueue, Ready};
use crate::SysResult;
use crate::arch::X86;
use crate::sync::{Mutex, MutexGuard};
use crate::task::{Sleep, WaitQueue};
use buf::{PAGE, new_page};
use mm::Errno;
use mm::phys::FolioRef;

pub use buf::PipeBuf;
pub use end::PipeEnd;
pub(super) use end::ends;

/// Buffers a new pipe holds: 64 KiB.
const DEFAULT_BUFS: usize = 16;
/// Most F_SETPIPE_SZ grants to anybody: 1 MiB.
const MAX_BUFS: usize = 256;
/// Most it grants at all: what Linux can allocate a ring for.
const MOST_BUFS: usize = 1 << 16;

struct Ring {
    bufs: VecDeque<PipeBuf>,
    /// One emptied page, kept for the next write.
    spare: Option<FolioRef<X86>>,
}

impl Ring {
    /// Copies out and drops what was copied. Bytes that a bad address stopped stay.
    fn take(&mut self, buf: &mut IoBuf<'_>) -> SysResult {
        let mut done = 0;
        while let Some(front) = self.bufs.front_mut() {
            let all = front.len();
            let n = all.min(buf.left());
            if n == 0 {
                break;
            }
            if !front.put(buf, n) {
                return some(done, Errno::EFAULT);
            }
            done += n;
            if n == all {
                self.drop_front();
            } else {
                front.skip(n);
            }
        }
        Ok(done)
    }

    /// Drops the first buffer; its page may serve again.
    #[inline]
    fn drop_front(&mut self) {
        let emptied = self.bufs.pop_front();
        if self.spare.is_none() {
            self.spare = emptied.and_then(PipeBuf::into_spare);
        }
    }
}

/// What a call says that has moved `done` bytes and then failed.
fn some(done: usize, e: Errno) -> SysResult {
    if done == 0 { Err(e) } else { Ok(done) }
}

/// The pipe itself; each end is an open file on it.
pub struct Pipe {
    ring: Mutex<Ring>,
    used: AtomicUsize,
    capacity: AtomicUsize,
    pub(super) readers: AtomicUsize,
    pub(super) writers: AtomicUsize,
    /// Openings of either end so far: a FIFO's opener waits for one, even if its peer has left again.
    pub(super) reader_opens: AtomicUsize,
    pub(super) writer_opens: AtomicUsize,
    pub(super) read_wait: WaitQueue,
    pub(super) write_wait: WaitQueue,
    watchers: PollQueue,
    pub(super) attrs: AttrCell,
}

impl Pipe {
    pub(super) fn new() -> Result<Arc<Self>, Errno> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        static DEV: spin::Once<u64> = spin::Once::new();
        crate::memory::headroom()?;
        let dev = *DEV.call_once(anonymous_dev);
        let mut bufs = VecDeque::new();
        bufs.try_reserve_exact(DEFAULT_BUFS)
            .map_err(|_| Errno::ENOMEM)?;
        Ok(Arc::new(Pipe {
            ring: Mutex::new(Ring { bufs, spare: None }),
            used: AtomicUsize::new(0),
            capacity: AtomicUsize::new(DEFAULT_BUFS),
            readers: AtomicUsize::new(0),
            writers: AtomicUsize::new(0),
            reader_opens: AtomicUsize::new(0),
            writer_opens: AtomicUsize::new(0),
            read_wait: WaitQueue::new(),
            write_wait: WaitQueue::new(),
            watchers: PollQueue::new(),
            attrs: AttrCell::new(
                dev,
                NEXT.fetch_add(1, Ordering::Relaxed),
                Kind::Fifo,
                0o600,
                0,
            ),
        }))
    }

    fn empty(&self) -> bool {
        self.used.load(Ordering::SeqCst) == 0
    }

    fn full(&self) -> bool {
        self.used.load(Ordering::SeqCst) >= self.capacity.load(Ordering::SeqCst)
    }

    pub(super) fn gone(end: &AtomicUsize) -> bool {
        end.load(Ordering::SeqCst) == 0
    }

    /// Takes what is there, waiting for the first byte unless `nonblock`. 0: no writer is left.
    pub fn read(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult {
        if buf.left() == 0 {
            return Ok(0);
        }
        loop {
            if self.empty() && !nonblock && !Self::gone(&self.writers) {
                self.wait_for_data()?;
            }
            let mut ring = self.lock_woken(&self.read_wait)?;
            if !ring.bufs.is_empty() {
                let was_full = self.full();
                let result = ring.take(buf);
                self.used.store(ring.bufs.len(), Ordering::SeqCst);
                self.after_take(ring, was_full);
                return result;
            }
            let writers_gone = Self::gone(&self.writers);
            drop(ring);
            if writers_gone {
                return Ok(0);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
        }
    }

    /// The ring. A dying thread, which may have been woken in the place of somebody else, wakes another of `queue`.
    fn lock_woken(&self, queue: &WaitQueue) -> Result<MutexGuard<'_, Ring>, Errno> {
        self.ring.lock_killable().inspect_err(|_| {
            queue.wake_one();
        })
    }

    /// Unlocks after something may have been taken, and wakes whom that concerns.
    #[inline]
    fn after_take(&self, ring: MutexGuard<'_, Ring>, was_full: bool) {
        let left = !ring.bufs.is_empty();
        drop(ring);
        if was_full && !self.full() {
            self.write_wait.wake_one();
        }
        if left {
            self.read_wait.wake_one();
        }
        self.watchers.notify();
    }

    /// Unlocks after something may have been added, and wakes whom that concerns.
    fn after_add(&self, ring: MutexGuard<'_, Ring>, was_empty: bool) {
        let has_data = !ring.bufs.is_empty();
        drop(ring);
        if was_empty && has_data {
            self.read_wait.wake_one();
        }
        if !self.full() {
            self.write_wait.wake_one();
        }
        self.watchers.notify();
    }

    fn wait_for_data(&self) -> Result<(), Errno> {
        self.read_wait
            .wait_while(Sleep::Interruptible, None, || {
                self.empty() && !Self::gone(&self.writers)
            })
            .map_err(|_| Errno::ERESTARTSYS)
    }

    /// Drops `n` bytes of the first buffer, which has that many.
    fn consume(&self, ring: &mut Ring, n: usize) {
        if let Some(front) = ring.bufs.front_mut() {
            front.skip(n);
            if front.len() == 0 {
                ring.drop_front();
                self.used.store(ring.bufs.len(), Ordering::SeqCst);
            }
        }
    }

    /// Puts a buffer behind the others; there is room.
    #[inline]
    fn push(&self, ring: &mut Ring, buf: PipeBuf) {
        ring.bufs.push_back(buf);
        self.used.store(ring.bufs.len(), Ordering::SeqCst);
    }

    /// Puts everything in, waiting for room unless `nonblock`. The caller sends SIGPIPE on EPIPE.
    pub fn write(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult {
        if buf.left() == 0 {
            return Ok(0);
        }
        let mut done = 0;
        loop {
            let mut ring = self.ring.lock();
            if Self::gone(&self.readers) {
                return some(done, Errno::EPIPE);
            }
            let was_empty = ring.bufs.is_empty();
            let result = self.fill(&mut ring, buf);
            let room_left = ring.bufs.len() < self.capacity.load(Ordering::Relaxed);
            let has_data = !ring.bufs.is_empty();
            drop(ring);
            let wrote = *result.as_ref().unwrap_or(&0);
            if was_empty && has_data {
                self.read_wait.wake_one();
            }
            if wrote > 0 {
                self.watchers.notify();
            }
            done += wrote;
            // Whoever was woken for room that he leaves passes it on, also when he fails.
            if room_left {
                self.write_wait.wake_one();
            }
            if let Err(e) = result {
                return some(done, e);
            }
            if buf.left() == 0 {
                return Ok(done);
            }
            if nonblock {
                return some(done, Errno::EAGAIN);
            }
            let waited = self.write_wait.wait_while(Sleep::Interruptible, None, || {
                self.full() && !Self::gone(&self.readers)
            });
            if waited.is_err() {
                return some(done, Errno::ERESTARTSYS);
            }
        }
    }

    /// Adds what there is room for; a write of at most a page goes into one page, whole or not at all. What a bad
    /// address stopped within a page is not added.
    fn fill(&self, ring: &mut Ring, buf: &mut IoBuf<'_>) -> SysResult {
        let capacity = self.capacity.load(Ordering::Relaxed);
        let mut done = 0;
        // The last page takes more, if all of a short write fits.
        let n = buf.left() % PAGE;
        if n > 0
            && let Some(last) = ring.bufs.back_mut()
            && last.has_room(n)
        {
            if !last.append(buf, n) {
                return Err(Errno::EFAULT);
            }
            done += n;
        }
        while buf.left() > 0 && ring.bufs.len() < capacity {
            let page = match ring.spare.take() {
                Some(p) => p,
                None => match new_page() {
                    Ok(p) => p,
                    Err(e) => return some(done, e),
                },
            };
            let n = buf.left().min(PAGE);
            match PipeBuf::fill(page, buf, n) {
                Ok(filled) => self.push(ring, filled),
                Err(page) => {
                    ring.spare = Some(page);
                    return some(done, Errno::EFAULT);
                }
            }
            done += n;
        }
        Ok(done)
    }

    /// Bytes waiting (FIONREAD).
    pub fn available(&self) -> usize {
        self.ring.lock().bufs.iter().map(PipeBuf::len).sum()
    }

    /// Capacity in bytes (F_GETPIPE_SZ).
    pub fn capacity(&self) -> usize {
        self.capacity.load(Ordering::Relaxed) * PAGE
    }

    /// F_SETPIPE_SZ: rounds up to a power of two of pages; EBUSY when more is inside.
    pub fn set_capacity(&self, bytes: usize) -> SysResult {
        if bytes > 1 << 31 {
            return Err(Errno::EINVAL);
        }
        let bufs = bytes.max(1).div_ceil(PAGE).next_power_of_two();
        let mut ring = self.ring.lock();
        let old = self.capacity.load(Ordering::Relaxed);
        if bufs > old && bufs > MAX_BUFS && !caller::capable(caller::CAP_SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
        if ring.bufs.len() > bufs {
            return Err(Errno::EBUSY);
        }
        if bufs > old {
            if bufs > MOST_BUFS {
                return Err(Errno::ENOMEM);
            }
            crate::memory::headroom()?;
            let more = bufs - ring.bufs.len();
            ring.bufs
                .try_reserve_exact(more)
                .map_err(|_| Errno::ENOMEM)?;
        } else {
            ring.bufs.shrink_to(bufs);
        }
        self.capacity.store(bufs, Ordering::SeqCst);
        drop(ring);
        self.write_wait.wake_all();
        self.watchers.notify();
        Ok(bufs * PAGE)
    }

    pub(super) fn ready_to_read(&self) -> Ready {
        let mut r = Ready::empty();
        if !self.empty() {
            r |= Ready::READ;
        }
        if Self::gone(&self.writers) {
            r |= Ready::HUP;
        }
        r
    }

    pub(super) fn ready_to_write(&self) -> Ready {
        let mut r = Ready::empty();
        if !self.full() {
            r |= Ready::WRITE;
        }
        if Self::gone(&self.readers) {
            r |= Ready::ERR;
        }
        r
    }

    /// Tells `watcher` of changes at either end.
    pub(super) fn watch(&self, watcher: &Arc<dyn Notify>) {
        self.watchers.add(watcher);
    }

    /// One more open end of each kind named.
    pub(super) fn enter(&self, reads: bool, writes: bool) {
        self.readers.fetch_add(usize::from(reads), Ordering::SeqCst);
        self.writers
            .fetch_add(usize::from(writes), Ordering::SeqCst);
        self.reader_opens
            .fetch_add(usize::from(reads), Ordering::SeqCst);
        self.writer_opens
            .fetch_add(usize::from(writes), Ordering::SeqCst);
        self.read_wait.wake_all();
        self.write_wait.wake_all();
        self.watchers.notify();
    }

    pub(super) fn leave(&self, reads: bool, writes: bool) {
        let last_reader = reads && self.readers.fetch_sub(1, Ordering::SeqCst) == 1;
        let last_writer = writes && self.writers.fetch_sub(1, Ordering::SeqCst) == 1;
        if last_reader || last_writer {
            self.read_wait.wake_all();
            self.write_wait.wake_all();
            self.watchers.notify();
        }
    }

    /// The two ends of a new pipe.
    pub fn pair(flags: u32) -> Result<(Arc<File>, Arc<File>), Errno> {
        let pipe = Pipe::new()?;
        let inode: Arc<dyn Inode> = PipeNode::inode(&pipe);
        let name = alloc::format!("pipe:[{}]", pipe.attrs.ino());
        let path = Path::unnamed(inode, name.as_bytes(), false);
        let status = flags & (sys::O_NONBLOCK | sys::O_DIRECT);
        let end = |mode| File::new(path.clone(), PipeEnd::open(&pipe, mode), mode | status);
        Ok((end(sys::O_RDONLY), end(sys::O_WRONLY)))
    }
}
