//! What a caller may ask for, and what only the entries add (ARG-1, ARG-2): two types, so that nobody outside
//! says "pin" to a function that counts a plain reference.

#![forbid(unsafe_code)]

use crate::errno::Errno;
use crate::hw::Warning;
use crate::phys::Hw;
use crate::space::Ask;

bitflags::bitflags! {
    /// A caller's wishes, with the values of Linux's `FOLL_*`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct GupFlags: u32 {
        /// The pages will be written. Pins say it by their type ([`super::Write`]).
        const WRITE = 1;
        /// For a core dump: what would only read as zeroes is a hole, `EFAULT`.
        const DUMP = 1 << 2;
        /// Present permissions do not count, only those that the mapping could be given.
        const FORCE = 1 << 3;
        /// Does not wait for memory: what was had by then, and the lock is kept.
        const NOWAIT = 1 << 4;
        /// Never faults: what is not there already is `EFAULT`.
        const NOFAULT = 1 << 5;
        /// `EHWPOISON` for a broken page, which is `EFAULT` otherwise. No page is known to be broken here.
        const HWPOISON = 1 << 6;
        /// Anonymous memory only.
        const ANON = 1 << 7;
        /// User mode may hold the pin for ever. Pins only.
        const LONGTERM = 1 << 8;
        /// Any signal ends a wait, not only a fatal one.
        const INTERRUPTIBLE = 1 << 11;
    }
}

impl GupFlags {
    /// A word from outside, a driver's or an ioctl's: what is not a caller's to say, or is not known, is `EINVAL`.
    pub fn from_raw(bits: u32) -> Result<Self, Errno> {
        Self::from_bits(bits).ok_or(Errno::EINVAL)
    }
}

/// A call that no caller should make: said aloud, nothing done.
#[cold]
pub(super) fn refuse<H: Hw>(hw: H) -> Errno {
    hw.warn(Warning::GupArguments);
    Errno::EINVAL
}

/// How the pages are held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hold {
    /// Not at all: only faulted in (LOOP-3).
    No,
    /// A reference each (`FOLL_GET`).
    Get,
    /// A pin each (`FOLL_PIN`).
    Pin,
}

/// One call's wishes, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub flags: GupFlags,
    pub hold: Hold,
    /// Marks pages accessed, and dirty when they are to be written (WALK-7).
    pub touch: bool,
    /// Of another process.
    pub remote: bool,
}

impl Want {
    /// ARG-2: the same refusals for every entry, before anything is looked at.
    pub fn new<H: Hw>(hw: H, flags: GupFlags, hold: Hold, touch: bool) -> Result<Self, Errno> {
        if flags.contains(GupFlags::LONGTERM) && hold != Hold::Pin {
            return Err(refuse(hw));
        }
        Ok(Self {
            flags,
            hold,
            touch,
            remote: false,
        })
    }
    pub fn remote(self) -> Self {
        Self {
            remote: true,
            ..self
        }
    }
    #[inline]
    pub fn write(&self) -> bool {
        self.flags.contains(GupFlags::WRITE)
    }
    #[inline]
    pub fn has(&self, f: GupFlags) -> bool {
        self.flags.contains(f)
    }
    #[inline]
    pub fn pin(&self) -> bool {
        self.hold == Hold::Pin
    }
    pub fn ask(&self) -> Ask {
        Ask {
            write: self.write(),
            force: self.has(GupFlags::FORCE),
            anon_only: self.has(GupFlags::ANON),
            foreign: self.remote,
            lasting: self.pin() && self.has(GupFlags::LONGTERM),
        }
    }
}
