//! Requests in flight: whose each slot of a queue is. The same for all disks.
//!
//! A queue has `SLOTS` requests in flight at most. A slot is *free*, *taken* by a thread that has a command for it, then *busy* with the
//! device. One lock says which, and has the ring, too: so a slot is busy from when the device can know of it, and not before.
//!
//! 1. A thread takes a slot, makes it busy and sleeps. The interrupt handler makes it *done* and wakes the thread, which takes the answer and
//!    frees the slot.
//! 2. A `flight::Request` makes its slot busy and is kept in it. The handler puts the command of its next part into the same slot;
//!    after the last it frees the slot, and the request has landed. Who takes the request out of its slot, under the lock, answers for it:
//!    the handler, or who has found that the device is dead.
//! 3. A device that does not answer in time is stopped, by whoever notices: a thread that waits for its answer or for a slot, or the disk's
//!    own ([`Slots::give_up`]). Then its requests have failed, and so do all that come later. Once it has forgotten what it was told it
//!    touches no memory. One that does not even do that is *lost*: what is not answered in time has failed, too, but the device
//!    keeps the slot and the memory for ever ([`Reached::lose`]), whoever has let go of it.
//! 4. A device that is to go ([`let_go`]) gets no more requests; what it has been given ends as ever, or by 3. Then it is stopped, too.
//!
//! What the device says is not believed: a completion of a slot that is not busy is reported, once, and left alone; and in one
//! interrupt it is not asked more often than it can have done something.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use core::mem::take;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use mm::Errno;

use super::block::Reached;
use super::flight::{self, Request};
use super::iommu::Dma;
use super::irq::Line;
use crate::arch::time::now_ns;
use crate::sync::{IrqGuard, IrqLock, Mutex};
use crate::task::{Sleep, WaitQueue};

/// Requests of a queue in flight.
pub const SLOTS: usize = 32;
const ALL: u32 = u32::MAX >> (32 - SLOTS);

/// What makes a device forget all that it was told.
pub trait Reset: Send + Sync {
    /// Whether it has. May sleep.
    fn reset(&self) -> bool;
}

/// It is used; it is to go, and gets no more requests; it has been stopped, and is quiet; it should be, and is not.
const ALIVE: u8 = 0;
const LEAVING: u8 = 1;
const QUIET: u8 = 2;
const LOST: u8 = 3;

/// How a device is stopped.
pub struct Control {
    /// What messages call it.
    name: &'static str,
    device: Box<dyn Reset>,
    stopping: Mutex<()>,
    fate: AtomicU8,
}

impl Control {
    /// It stays.
    pub fn new(name: &'static str, device: impl Reset + 'static) -> &'static Control {
        Box::leak(Box::new(Control {
            name,
            device: Box::new(device),
            stopping: Mutex::new(()),
            fate: AtomicU8::new(ALIVE),
        }))
    }

    /// Before it is used, or when that cannot be.
    pub fn reset(&self) -> bool {
        self.device.reset()
    }

    fn fate(&self) -> u8 {
        self.fate.load(Ordering::Relaxed)
    }

    /// It should be quiet, and is not.
    pub fn is_lost(&self) -> bool {
        self.fate() == LOST
    }

    /// The end of a device, which does what `why` says; whether it is quiet.
    #[cold]
    fn stop(&self, why: &str) -> bool {
        let _one = self.stopping.lock();
        let before = self.fate();
        if before != QUIET {
            let (fate, how) = match self.device.reset() {
                true => (QUIET, "is stopped"),
                false => (LOST, "keeps its memory"),
            };
            if fate != before {
                let name = self.name;
                crate::warn!("{name}: a device that {why} {how}");
            }
            self.fate.store(fate, Ordering::Relaxed);
        }
        self.fate() == QUIET
    }

    /// It gets no more requests.
    fn leave(&self) {
        let _one = self.stopping.lock();
        if self.fate() == ALIVE {
            self.fate.store(LEAVING, Ordering::Relaxed);
        }
    }
}

/// What a device has done that is stopped by who waits for it.
const SILENT: &str = "does not answer";

/// A device is to go: what its `queues` have been given ends, and it forgets them. Whether it has. May sleep.
pub fn let_go<R: Ring>(control: &Control, queues: &[&Slots<R>]) -> bool {
    control.leave();
    queues.iter().for_each(|queue| queue.drain());
    let quiet = control.stop("leaves");
    queues.iter().for_each(|queue| queue.give_up());
    quiet
}

/// A device's word that it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// `None`: of nothing that it can have been given.
    pub slot: Option<usize>,
    pub answer: Result<u32, Errno>,
}

/// How a device is told of commands, and tells of their end.
pub trait Ring: Sync + Sized + 'static {
    /// What a slot is for.
    type Command<'a>;
    /// The memory that it names.
    fn memory<'a>(command: &'a Self::Command<'_>) -> Option<Reached<'a>>;
    /// Where both sides are.
    type Ends: Send;

    /// Writes the command into what is the slot's own, then into the ring, where the device sees it. Whether the bell is to be rung. Nobody
    /// else has the slot, nor has the device.
    fn put(&self, ends: &mut Self::Ends, slot: usize, command: &Self::Command<'_>) -> bool;
    /// The next completion. `None`: no more, and the next one interrupts.
    fn take(&self, ends: &mut Self::Ends) -> Option<Completion>;
    /// Without the lock, if `put` said so.
    fn bell(&self) {}
}

/// Who makes commands of transfers.
pub trait Parts<R: Ring>: Sync {
    /// A command that moves bytes of `memory` after the first `skip`, from or to the sector that is theirs if the first is
    /// `sector`'s; and how many. There are some.
    fn part<'a>(
        &self,
        sector: u64,
        memory: Reached<'a>,
        skip: u64,
    ) -> Result<(R::Command<'a>, u64), Errno>;
}

/// A request that the device has.
struct Flight<R: Ring> {
    request: Box<Request>,
    parts: &'static dyn Parts<R>,
    /// Bytes that have been moved, and those that are being moved.
    moved: u64,
    moving: u64,
    deadline: u64,
}

#[derive(Default)]
enum State<R: Ring> {
    /// Free or taken.
    #[default]
    Idle,
    /// A thread waits for the device, or it is lost and nobody does.
    Busy,
    /// A request does.
    Flying(Flight<R>),
    /// The thread has yet to see it.
    Done(Result<u32, Errno>),
}

struct Inner<R: Ring> {
    /// Free slots, bit by bit.
    free: u32,
    states: [State<R>; SLOTS],
    ends: R::Ends,
}

/// A queue.
pub struct Slots<R: Ring> {
    ring: R,
    control: &'static Control,
    /// Nanoseconds that a command may take.
    patience: u64,
    inner: IrqLock<Inner<R>>,
    /// Threads that wait for a slot; and those that wait for the answer of theirs.
    room: WaitQueue,
    done: [WaitQueue; SLOTS],
    /// The device has said nonsense, and we have said so.
    confused: AtomicBool,
}

impl<R: Ring> Slots<R> {
    pub fn new(control: &'static Control, ring: R, ends: R::Ends) -> Self {
        Slots {
            ring,
            control,
            patience: super::patience(),
            inner: IrqLock::new(Inner {
                free: ALL,
                states: [const { State::Idle }; SLOTS],
                ends,
            }),
            room: WaitQueue::new(),
            done: [const { WaitQueue::new() }; SLOTS],
            confused: AtomicBool::new(false),
        }
    }

    /// Commands may take so many nanoseconds.
    pub fn with_patience(self, patience: u64) -> Self {
        Slots { patience, ..self }
    }

    pub fn ring(&self) -> &R {
        &self.ring
    }

    /// Whether the device has said nonsense.
    pub fn is_confused(&self) -> bool {
        self.confused.load(Ordering::Relaxed)
    }

    /// Runs a command: the device's answer, or `EIO` if there will be none. The caller keeps the memory that it names where it
    /// is until then.
    #[inline]
    pub fn request(&self, command: R::Command<'_>) -> Result<u32, Errno> {
        let (i, mut inner) = self.take_slot()?;
        inner.states[i] = State::Busy;
        let bell = self.ring.put(&mut inner.ends, i, &command);
        drop(inner);
        if bell {
            self.ring.bell();
        }
        let pending = || {
            let busy = matches!(self.inner.lock().states[i], State::Busy);
            busy && self.control.fate() != QUIET
        };
        let deadline = Some(now_ns() + self.patience);
        let done = self.done[i].wait_while(Sleep::Uninterruptible, deadline, pending);
        if done.is_err() && self.control.stop(SILENT) {
            self.give_up();
        }
        let mut inner = self.inner.lock();
        let State::Done(answer) = inner.states[i] else {
            // The slot is nobody's any more: nor is the queue.
            if self.control.fate() != QUIET
                && let Some(memory) = R::memory(&command)
            {
                memory.lose();
            }
            return Err(Errno::EIO);
        };
        inner.states[i] = State::Idle;
        inner.free |= 1 << i;
        drop(inner);
        self.freed(1);
        answer
    }

    /// Moves all of `memory`, one command after the other.
    pub fn transfer(
        &self,
        parts: &dyn Parts<R>,
        sector: u64,
        memory: &Reached<'_>,
    ) -> Result<(), Errno> {
        let mut moved = 0;
        while moved < memory.bytes() {
            let (command, n) = parts.part(sector, *memory, moved)?;
            self.request(command)?;
            moved += n;
        }
        Ok(())
    }

    /// Begins `request`, which is given to [`flight::done`] in the end. The device reaches its memory by way of `dma`.
    pub fn begin(&self, dma: Dma, parts: &'static dyn Parts<R>, mut request: Box<Request>) {
        let slot = request.lend(dma).and_then(|()| self.take_slot());
        let (i, mut inner) = match slot {
            Ok(slot) => slot,
            Err(errno) => {
                request.answer(Err(errno));
                return flight::done(request);
            }
        };
        inner.states[i] = State::Flying(Flight {
            request,
            parts,
            moved: 0,
            moving: 0,
            deadline: 0,
        });
        let flown = self.fly(&mut inner, i, Ok(0));
        drop(inner);
        match flown {
            Ok(true) => self.ring.bell(),
            Ok(false) => {}
            Err(request) => {
                flight::done(request);
                self.freed(1);
            }
        }
    }

    /// The last command of the request in slot `i` has been answered: puts the next, and says whether the bell is to be rung; or frees the
    /// slot, and the request has landed.
    fn fly(
        &self,
        inner: &mut Inner<R>,
        i: usize,
        answer: Result<u32, Errno>,
    ) -> Result<bool, Box<Request>> {
        let Inner { states, ends, free } = inner;
        let State::Flying(flight) = &mut states[i] else {
            return Ok(false);
        };
        flight.moved += flight.moving;
        let mut result = answer.map(drop);
        if result.is_ok() && flight.moved < flight.request.bytes() {
            let memory = flight.request.reached();
            match flight
                .parts
                .part(flight.request.sector, memory, flight.moved)
            {
                Ok((command, moving)) => {
                    flight.moving = moving;
                    flight.deadline = now_ns() + self.patience;
                    return Ok(self.ring.put(ends, i, &command));
                }
                Err(errno) => result = Err(errno),
            }
        }
        let State::Flying(mut flight) = take(&mut states[i]) else {
            return Ok(false);
        };
        flight.request.answer(result);
        *free |= 1 << i;
        Err(flight.request)
    }

    /// Stops the device if it has not answered a request that was begun. Those of a device that is stopped have failed, those that it has not
    /// answered in time if it is lost; and who waits for it looks again. May sleep.
    pub fn give_up(&self) {
        let now = now_ns();
        let late = |state: &State<R>| matches!(state, State::Flying(f) if f.deadline < now);
        if self.inner.lock().states.iter().any(late) {
            self.control.stop(SILENT);
        }
        let fate = self.control.fate();
        if matches!(fate, ALIVE | LEAVING) {
            return;
        }
        let quiet = fate == QUIET;
        self.room.wake_all();
        for thread in self.done.iter().filter(|_| quiet) {
            thread.wake_all();
        }
        for i in 0..SLOTS {
            let mut inner = self.inner.lock();
            match take(&mut inner.states[i]) {
                State::Flying(mut flight) if quiet || flight.deadline < now => {
                    if !quiet {
                        inner.states[i] = State::Busy;
                        flight.request.reached().lose();
                    }
                    drop(inner);
                    flight.request.answer(Err(Errno::EIO));
                    flight::done(flight.request);
                }
                state => inner.states[i] = state,
            }
        }
    }

    /// A free slot, and the lock; `EIO` of a queue that is used no more.
    fn take_slot(&self) -> Result<(usize, IrqGuard<'_, Inner<R>>), Errno> {
        loop {
            let mut inner = self.inner.lock();
            // Under the lock: who gives up looks at each slot under it after he has said so, and finds what is put before.
            if self.control.fate() != ALIVE {
                return Err(Errno::EIO);
            }
            if inner.free != 0 {
                let i = inner.free.trailing_zeros();
                inner.free &= !(1 << i);
                return Ok((i as usize, inner));
            }
            drop(inner);
            let full = || self.inner.lock().free == 0 && self.control.fate() == ALIVE;
            let deadline = Some(now_ns() + self.patience);
            let room = self.room.wait_while(Sleep::Uninterruptible, deadline, full);
            if room.is_err() {
                // Whoever else would do so may be waiting for this thread.
                self.give_up();
            }
        }
    }

    /// So many slots have become free.
    fn freed(&self, slots: usize) {
        match self.control.fate() {
            ALIVE => self.room.wake_some(slots),
            _ => self.room.wake_all(), // among them who drains it
        };
    }

    /// Sleeps until nothing is in flight, or the device has been stopped. It gets no more requests already.
    fn drain(&self) {
        self.room.wake_all();
        let flying = || self.inner.lock().free != ALL && self.control.fate() == LEAVING;
        let wait = |deadline| {
            self.room
                .wait_while(Sleep::Uninterruptible, deadline, flying)
        };
        while wait(Some(now_ns() + self.patience)).is_err() {
            self.give_up();
        }
    }

    /// The device has done what it was not given.
    #[cold]
    fn nonsense(&self, slot: Option<usize>) {
        if !self.confused.swap(true, Ordering::Relaxed) {
            let name = self.control.name;
            match slot {
                Some(i) => {
                    crate::warn!("{name}: a device has done {i}, which it was not given")
                }
                None => crate::warn!("{name}: a device has done what it was not given"),
            }
        }
    }
}

impl<R: Ring> Line for Slots<R> {
    fn interrupt(&self) {
        let (mut woken, mut landed, mut bell) = (0u32, 0, false);
        let mut inner = self.inner.lock();
        // One that is sane has no more to say than it has slots, and what is put meanwhile; the last look finds nothing.
        let mut looks = SLOTS + 1;
        while looks > 0
            && let Some(Completion { slot, answer }) = self.ring.take(&mut inner.ends)
        {
            looks -= 1;
            let Some(i) = slot.filter(|&i| i < SLOTS) else {
                self.nonsense(slot);
                continue;
            };
            match inner.states[i] {
                State::Busy => {
                    inner.states[i] = State::Done(answer);
                    woken |= 1 << i;
                }
                State::Flying(_) => match self.fly(&mut inner, i, answer) {
                    Ok(ring) => {
                        bell |= ring;
                        looks += 1;
                    }
                    Err(request) => {
                        flight::done(request);
                        landed += 1;
                    }
                },
                State::Idle | State::Done(_) => self.nonsense(slot),
            }
        }
        drop(inner);
        if bell {
            self.ring.bell();
        }
        self.freed(landed);
        while woken != 0 {
            self.done[woken.trailing_zeros() as usize].wake_all();
            woken &= woken - 1;
        }
    }
}
