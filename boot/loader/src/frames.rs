//! The loader's memory: one growing run of frames behind the loader itself, so that the kernel gets one region of
//! `Bootloader` memory and the rest of RAM in one piece.

use crate::fail::{Failure, stop};
use crate::start_info::Machine;

pub const FRAME: u64 = 4096;

/// Hands out frames in rising order; never takes one back.
pub struct Frames {
    next: u64,
    limit: u64,
}

impl Frames {
    /// Frames from `start` to the end of the RAM it stands in, or to the archive.
    pub fn new(machine: &Machine, start: u64) -> Self {
        let (ramdisk, ramdisk_len) = machine.ramdisk_range();
        if ramdisk < start && ramdisk + ramdisk_len > crate::own_memory().0 {
            stop(
                Failure::BadBootInformation,
                format_args!("bad boot information: the archive lies on the loader"),
            );
        }
        let ram = machine
            .map
            .iter()
            .find(|entry| entry.is_ram() && entry.start < start && start <= entry.end());
        let end = ram.map_or(start, |entry| entry.end().min(1 << 32));
        let limit = if ramdisk >= start {
            end.min(ramdisk)
        } else {
            end
        };
        Self { next: start, limit }
    }

    /// The first byte never handed out.
    pub fn end(&self) -> u64 {
        self.next
    }

    /// `len` bytes (whole frames), holding whatever was there.
    pub fn take(&mut self, len: u64) -> u64 {
        let taken = self.next;
        match taken.checked_add(len.next_multiple_of(FRAME)) {
            Some(end) if end <= self.limit => self.next = end,
            _ => {
                let room = (self.limit - self.next) / 1024;
                let what = format_args!(
                    "too little memory: {} KiB wanted, {room} KiB left",
                    len / 1024
                );
                stop(Failure::TooLittleMemory, what)
            }
        }
        taken
    }

    /// `len` bytes (whole frames) of zeroes.
    pub fn take_zeroed(&mut self, len: u64) -> u64 {
        let taken = self.take(len);
        // SAFETY: just taken: RAM that is identity-mapped and nobody else's.
        unsafe { fill_zero(taken, len.next_multiple_of(FRAME)) };
        taken
    }
}

/// Copies by eight bytes, because each turn is an instruction.
///
/// # Safety
/// `from` is readable and `to` is RAM of the loader's own, both for `len` bytes.
pub unsafe fn copy(from: u64, to: u64, len: u64) {
    // SAFETY: as above; the direction flag is clear.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            "mov ecx, eax",
            "rep movsb",
            inout("rcx") len / 8 => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            in("eax") (len % 8) as u32,
            options(nostack, preserves_flags),
        );
    }
}

/// Clears by eight bytes where it can.
///
/// # Safety
/// `start` is RAM of the loader's own for `len` bytes.
pub unsafe fn fill_zero(start: u64, len: u64) {
    // SAFETY: as above; the direction flag is clear.
    unsafe {
        core::arch::asm!(
            "rep stosq",
            "mov ecx, edx",
            "rep stosb",
            inout("rcx") len / 8 => _,
            inout("rdi") start => _,
            in("rax") 0u64,
            in("edx") (len % 8) as u32,
            options(nostack, preserves_flags),
        );
    }
}
