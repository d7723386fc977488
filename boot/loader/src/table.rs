//! The page tables that the kernel starts on.
//!
//! Leaves are as large as alignment allows. Nothing is mapped twice: an address that is asked for and taken means a
//! kernel that contradicts itself. Addresses that the kernel leaves open are given from free gibibytes of the kernel half
//! (or of the kernel's dynamic range), with an unmapped page between two of them.

use crate::cpu;
use crate::fail::{Failure, stop};
use crate::frames::{FRAME, Frames};
use bootloader_api::config::{Mapping, Mappings};
use core::arch::asm;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const SLOT: u64 = 1 << 39;
const GIB: u64 = 1 << 30;
/// The first address of the kernel half.
pub const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

/// What a mapping permits.
#[derive(Clone, Copy)]
pub struct Flags(u64);

impl Flags {
    pub const TEXT: Self = Self(PRESENT | ACCESSED);
    pub const RODATA: Self = Self(PRESENT | ACCESSED | NO_EXECUTE);
    pub const DATA: Self = Self(PRESENT | ACCESSED | DIRTY | WRITABLE | NO_EXECUTE);
    /// Data in every address space, for ever.
    pub const DIRECT: Self = Self(Self::DATA.0 | GLOBAL);

    pub fn global(self) -> Self {
        Self(self.0 | GLOBAL)
    }
}

/// A root under construction, and the window for addresses of the loader's choice.
pub struct Tables {
    root: u64,
    gib_pages: bool,
    /// Free addresses: the next one, and the end of the gibibytes they are in.
    dynamic: (u64, u64),
    dynamic_range: (u64, u64),
    fixed: [Option<u64>; 4],
}

impl Tables {
    pub fn new(frames: &mut Frames, asked: &Mappings) -> Self {
        let fixed = |mapping: Mapping| match mapping {
            Mapping::FixedAddress(at) => Some(at),
            Mapping::Dynamic => None,
        };
        Self {
            root: frames.take_zeroed(FRAME),
            gib_pages: cpu::has_gib_pages(),
            dynamic: (0, 0),
            dynamic_range: (
                asked
                    .dynamic_range_start
                    .unwrap_or(KERNEL_HALF)
                    .max(KERNEL_HALF),
                asked.dynamic_range_end.unwrap_or(0xffff_ffff_ffff_f000),
            ),
            fixed: [
                fixed(asked.kernel_stack),
                fixed(asked.boot_info),
                fixed(asked.ramdisk_memory),
                asked.physical_memory.and_then(fixed),
            ],
        }
    }

    /// Where `len` bytes go: where the kernel says, or somewhere free.
    pub fn place(&mut self, asked: Mapping, len: u64, align: u64) -> u64 {
        match asked {
            Mapping::FixedAddress(at)
                if at >= KERNEL_HALF
                    && at.is_multiple_of(FRAME)
                    && at.checked_add(len).is_some() =>
            {
                at
            }
            Mapping::FixedAddress(at) => stop(
                Failure::BadKernel,
                format_args!("the kernel asks for a mapping at {at:#x}"),
            ),
            Mapping::Dynamic => {
                let mut at = self.dynamic.0.next_multiple_of(align);
                if at + len + FRAME > self.dynamic.1 {
                    at = self.free_run(len + FRAME, align.max(FRAME));
                    self.dynamic.1 = (at + len + FRAME).next_multiple_of(GIB);
                }
                self.dynamic.0 = at + len.next_multiple_of(FRAME) + FRAME;
                at
            }
        }
    }

    /// The start of `len` bytes in the dynamic range, in gibibytes that nobody uses or has asked for.
    fn free_run(&self, len: u64, align: u64) -> u64 {
        let mut start = self.dynamic_range.0.next_multiple_of(align);
        let mut at = start;
        while at < self.dynamic_range.1 && len <= self.dynamic_range.1 - start {
            if self.is_taken(at) {
                start = match (at + 1).checked_next_multiple_of(GIB.max(align)) {
                    Some(next) => next,
                    None => break,
                };
                at = start;
            } else if at | (GIB - 1) >= start + (len - 1) {
                return start;
            } else {
                at = (at | (GIB - 1)) + 1;
            }
        }
        stop(
            Failure::BadKernel,
            format_args!("no room in the kernel's dynamic range"),
        )
    }

    /// Whether something is, or will be, in the gibibyte of `at`.
    fn is_taken(&self, at: u64) -> bool {
        let above = self.entry(self.root, at, 3).0;
        let mapped = above != 0 && self.entry(above & ADDRESS, at, 2).0 != 0;
        mapped
            || self
                .fixed
                .iter()
                .flatten()
                .any(|fixed| fixed / GIB == at / GIB)
    }

    /// Maps `len` bytes from `from` to physical `to`, all page-aligned.
    pub fn map(&mut self, frames: &mut Frames, mut from: u64, mut to: u64, len: u64, flags: Flags) {
        let mut left = len.next_multiple_of(FRAME);
        while left != 0 {
            let level = (0..=if self.gib_pages { 2 } else { 1 })
                .rev()
                .find(|level| {
                    let size = FRAME << (9 * level);
                    (from | to).is_multiple_of(size) && left >= size
                })
                .unwrap_or(0);
            let mut table = self.root;
            for above in (level + 1..=3).rev() {
                table = self.descend(frames, table, from, above);
            }
            // One table's worth of leaves after another: the descent is paid once for 512 of them.
            let size = FRAME << (9 * level);
            loop {
                let (old, slot) = self.entry(table, from, level);
                if old != 0 {
                    stop(
                        Failure::BadKernel,
                        format_args!("the kernel asks for {from:#x} twice"),
                    );
                }
                // SAFETY: `slot` is an entry of a table that this root owns (`entry`).
                unsafe { *slot = to | flags.0 | if level > 0 { LARGE } else { 0 } };
                from = from.wrapping_add(size);
                to += size;
                left -= size;
                if left < size || from.is_multiple_of(size << 9) {
                    break;
                }
            }
        }
    }

    /// The table under `at`'s entry in `table`, made when there is none.
    fn descend(&mut self, frames: &mut Frames, table: u64, at: u64, level: u32) -> u64 {
        let (old, slot) = self.entry(table, at, level);
        if old & LARGE != 0 {
            stop(
                Failure::BadKernel,
                format_args!("the kernel asks for {at:#x} twice"),
            );
        }
        if old != 0 {
            return old & ADDRESS;
        }
        let new = frames.take_zeroed(FRAME);
        // SAFETY: `slot` is an entry of a table that this root owns (`entry`).
        unsafe { *slot = new | PRESENT | WRITABLE | ACCESSED };
        new
    }

    /// What `table` (of `level`) holds for `at`, and where.
    fn entry(&self, table: u64, at: u64, level: u32) -> (u64, *mut u64) {
        let index = (at >> (12 + 9 * level)) & 511;
        let slot = (table + index * 8) as *mut u64;
        // SAFETY: tables are frames of the loader's own, identity-mapped, zeroed when made.
        (unsafe { *slot }, slot)
    }

    /// Makes the root its own entry, as the kernel asks, and returns the index.
    pub fn recursive(&mut self, asked: Mapping) -> u16 {
        let free = |at: &u64| *at < self.dynamic_range.1 && self.entry(self.root, *at, 3).0 == 0;
        let at = match asked {
            Mapping::FixedAddress(at) => Some(at),
            Mapping::Dynamic => (256..511)
                .map(|slot| KERNEL_HALF + (slot - 256) * SLOT)
                .find(free),
        };
        let Some(slot) = at
            .map(|at| self.entry(self.root, at, 3))
            .filter(|(old, _)| *old == 0)
        else {
            stop(
                Failure::BadKernel,
                format_args!("no free slot for a recursive mapping"),
            );
        };
        // SAFETY: an entry of the root, and free.
        unsafe { *slot.1 = self.root | PRESENT | WRITABLE | ACCESSED | NO_EXECUTE };
        (at.unwrap_or_default() >> 39 & 511) as u16
    }

    /// Loads the root. The loader's own memory is mapped in it; other physical memory is out of reach from here on.
    pub fn activate(&self) {
        // SAFETY: `start` has mapped the loader's text, data and stack at their own addresses.
        unsafe { asm!("mov cr3, {}", in(reg) self.root, options(nostack, preserves_flags)) };
    }
}
