//! Intel's IOMMU (VT-d 4.1, legacy mode): a device reaches the frames that it was given, and no others.
//!
//! `unit` the registers, the queue of what caches shall forget, the reports of what was refused · `domain` what one function may reach.
//!
//! 1. A function that is not *attached* reaches nothing. Its driver attaches it (`Dma::of`), which gives it a domain: tables
//!    of its own, empty at first.
//! 2. Addresses stay what they are: a frame is mapped at its own address or not at all. So a machine without an IOMMU
//!    takes the same path with nothing in it (`Dma::DIRECT`).
//! 3. What a device uses for ever (rings, lists) comes from `Dma::alloc`, mapped for ever. What it uses for one transfer is a `block::Memory`,
//!    whose addresses are told only by what maps it: a `block::Mapped` or a `flight::Request`. To be read by the device, it can be read and
//!    not written.
//! 4. Each entry counts who wants it read and who wants it written, for two transfers may want one frame. The last one takes the
//!    right away, and waits for the unit to say that it has forgotten it, under the domain's lock; only then may the pins go. The lock makes
//!    who maps the same frame next wait, too: else the device might be held to the old right by what the unit still remembers.
//! 5. What is refused interrupts: who, where, how goes to the log and is counted (`/sys/kernel/debug/iommu`).
//!
//! Interrupt messages are no memory and go their own way; they are not translated.

mod domain;
mod unit;

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use mm::Errno;
use spin::{Mutex as Spin, Once};

use super::block::{Piece, Way};
use super::pci::Function;
use crate::arch::dmar;
use crate::memory::frames;
use domain::Domain;
use unit::Unit;

/// Rights, as an entry has them.
pub const READS: u64 = 1;
pub const WRITES: u64 = 2;

static UNITS: Once<Vec<&'static Unit>> = Once::new();
static DOMAINS: Spin<Vec<&'static Domain>> = Spin::new(Vec::new());

/// Switches the machine's units on, before any device is. Once.
pub(super) fn start() {
    let on = dmar::units().filter_map(|said| {
        let unit = Unit::start(said.registers);
        match unit {
            Some(unit) => crate::info!("iommu: {:#x} is on, {unit}", said.registers),
            None => crate::warn!("iommu: {:#x} is not understood, left off", said.registers),
        }
        unit
    });
    UNITS.call_once(|| on.collect());
}

fn units() -> &'static [&'static Unit] {
    UNITS.get().map_or(&[], Vec::as_slice)
}

/// The unit that translates a function's addresses. `None`: there is none, or the one that does is left off.
fn unit_of(function: Function) -> Option<&'static Unit> {
    let named = |said: &dmar::Unit| {
        said.scopes().any(|scope| {
            Function::at(scope.bus, scope.path).is_some_and(|at| {
                at == function || scope.bridge && function.above().any(|bridge| bridge == at)
            })
        })
    };
    let all_others = |said: &dmar::Unit| said.all_others;
    let said = dmar::units().find(named);
    let said = said.or_else(|| dmar::units().find(all_others))?;
    let mut on = units().iter().copied();
    on.find(|unit| unit.base == said.registers)
}

/// A function's way to memory.
#[derive(Clone, Copy)]
pub struct Dma(Option<&'static Domain>);

impl Dma {
    /// Past every IOMMU.
    pub const DIRECT: Dma = Dma(None);

    /// The way of whatever the function asks of its bus. `None`: there is no memory for its tables, or it cannot be told from its neighbours.
    pub fn of(function: Function) -> Option<Dma> {
        let Some(unit) = unit_of(function) else {
            return Some(Dma::past(function));
        };
        let mut domains = DOMAINS.lock();
        let known = domains.iter().find(|d| d.function() == function);
        if let Some(&domain) = known {
            return Some(Dma(Some(domain)));
        }
        if !function.above().all(Function::forwards_names) {
            crate::warn!("iommu: {function} is behind a bridge that hides its name");
            return None;
        }
        let domain = Domain::new(unit, function)?;
        domains.push(domain);
        Some(Dma(Some(domain)))
    }

    /// The same, of a device that goes past every unit.
    pub fn past(function: Function) -> Dma {
        if !units().is_empty() {
            crate::warn!("iommu: {function} goes past it: it reaches all memory");
        }
        Dma::DIRECT
    }

    /// A zeroed block of 2^`order` frames that the device may use for ever.
    pub fn alloc(self, order: u8, rights: u64) -> Option<u64> {
        let pa = frames::alloc_zeroed_block(order)?;
        let piece = Piece {
            pa,
            len: 4096 << order,
        };
        match self.map([piece].into_iter(), rights) {
            Ok(()) => Some(pa),
            Err(_) => {
                // SAFETY: just taken, and no device has heard of it.
                unsafe { frames::free(pa, order) };
                None
            }
        }
    }

    /// Whether there is anything to do for it.
    pub fn translates(self) -> bool {
        self.0.is_some()
    }

    fn map(self, pieces: impl Iterator<Item = Piece> + Clone, rights: u64) -> Result<(), Errno> {
        match self.0 {
            Some(domain) => domain.map(pieces, rights),
            None => Ok(()),
        }
    }

    /// The device may use them, until [`Dma::take_back`]. `ENOMEM`: no memory for a table; `EIO`: it cannot reach that far.
    pub(super) fn lend(
        self,
        pieces: impl Iterator<Item = Piece> + Clone,
        way: Way,
    ) -> Result<(), Errno> {
        self.map(pieces, rights(way))
    }

    /// The same of the kernel's own, which is not refused for want of tables. Sleeps.
    pub(super) fn lend_surely(
        self,
        pieces: impl Iterator<Item = Piece> + Clone,
        way: Way,
    ) -> Result<(), Errno> {
        match self.0 {
            Some(domain) => domain.map_surely(pieces, rights(way)),
            None => Ok(()),
        }
    }

    /// The end of [`Dma::lend`]: when this returns, the device reaches them no more, unless others lend them to it.
    pub(super) fn take_back(self, pieces: impl Iterator<Item = Piece>, way: Way) {
        if let Some(domain) = self.0 {
            domain.unmap(pieces, rights(way));
        }
    }
}

fn rights(way: Way) -> u64 {
    match way {
        Way::Fill => WRITES,
        Way::Drain => READS,
    }
}

/// Frees tables in which there is nothing.
pub fn trim() {
    // A driver that starts has the lock, and its tables are not empty for long.
    if let Some(domains) = DOMAINS.try_lock() {
        domains.iter().for_each(|domain| domain.trim());
    }
}

/// What `/sys/kernel/debug/iommu` says.
pub fn report(out: &mut dyn fmt::Write) -> fmt::Result {
    if units().is_empty() {
        return writeln!(out, "off");
    }
    for unit in units() {
        unit.take_rest();
    }
    let sum = |of: fn(&Unit) -> &AtomicU64| -> u64 {
        let units = units().iter();
        units.map(|unit| of(unit).load(Ordering::Relaxed)).sum()
    };
    writeln!(out, "faults {}", sum(|unit| &unit.faults))?;
    writeln!(out, "lost {}", sum(|unit| &unit.lost))?;
    writeln!(out, "flushes {}", sum(|unit| &unit.flushes))?;
    writeln!(out, "mapped {}", domain::MAPPED.load(Ordering::Relaxed))
}
