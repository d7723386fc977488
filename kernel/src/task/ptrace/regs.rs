//! A tracee's registers as a tracer sees them: `struct user` and the register sets.
//!
//! What a tracer writes is checked as Linux checks it (EIO) and made safe again on the way to user mode; the
//! extended state passes the test that signal frames pass.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use mm::Errno;

use super::super::thread::Thread;
use super::request::with_stopped;
use super::{TRAP_FLAG, Tracing};
use crate::arch::fpu::FpuState;
use crate::arch::frame::{FRAME_WORDS, USER_CS, USER_DS};

/// Words of `struct user_regs_struct`: the frame's, then the bases and the data segments.
pub const REGS: usize = 27;
const CS: usize = 17;
const FLAGS: usize = 18;
const SS: usize = 20;
const FS_BASE: usize = 21;
const GS_BASE: usize = 22;
/// Flags a tracer may change: CF PF AF ZF SF TF DF OF NT RF AC.
const FLAG_MASK: u64 = 0x5_4dd5;
/// `struct user`: its size, and where the debug registers are.
const USER_SIZE: u64 = 928;
const DEBUG: core::ops::Range<u64> = 848..912;

pub use linux_raw_sys::elf_uapi::{NT_PRFPREG, NT_PRSTATUS, NT_X86_XSTATE};
/// Bytes of `struct user_fpregs_struct`.
pub const FPREGS: usize = 512;

fn read_all(t: &Thread, tr: &mut Tracing) -> [u64; REGS] {
    let mut r = [0; REGS];
    r[..FRAME_WORDS].copy_from_slice(tr.frame().words());
    if tr.forced_trap() {
        r[FLAGS] &= !TRAP_FLAG;
    }
    // SAFETY: the tracee stands still, off its CPU, which saved these.
    let (fs, gs) = unsafe { ((*t.private.ptr()).fs_base, (*t.private.ptr()).gs_base) };
    r[FS_BASE] = fs;
    r[GS_BASE] = gs;
    r
}

fn write_one(t: &Thread, tr: &mut Tracing, n: usize, v: u64) -> Result<(), Errno> {
    match n {
        // There is 64-bit code only, and no segment of its own.
        CS if v != USER_CS => return Err(Errno::EIO),
        SS if v != USER_DS => return Err(Errno::EIO),
        CS | SS => {}
        FS_BASE | GS_BASE => {
            if v >= mm::USER_END {
                return Err(Errno::EIO);
            }
            // SAFETY: the tracee stands still, off its CPU; it loads them when it runs again.
            let own = unsafe { &mut *t.private.ptr() };
            if n == FS_BASE {
                own.fs_base = v;
            } else {
                own.gs_base = v;
            }
        }
        23.. if v != 0 => return Err(Errno::EIO),
        23.. => {}
        FLAGS => {
            let mut v = v;
            if v & TRAP_FLAG != 0 {
                tr.own_trap();
            } else if tr.forced_trap() {
                v |= TRAP_FLAG;
            }
            let old = tr.frame().rflags;
            tr.frame().rflags = old & !FLAG_MASK | v & FLAG_MASK;
        }
        _ => tr.frame().words_mut()[n] = v,
    }
    Ok(())
}

/// PTRACE_GETREGS.
pub fn get(tid: u32) -> Result<[u64; REGS], Errno> {
    with_stopped(tid, |t, _, tr| read_all(t, tr))
}

/// PTRACE_SETREGS: the first `n` registers, up to one that is refused.
pub fn set(tid: u32, regs: &[u64]) -> Result<(), Errno> {
    with_stopped(tid, |t, _, tr| {
        regs.iter()
            .take(REGS)
            .enumerate()
            .try_for_each(|(n, &v)| write_one(t, tr, n, v))
    })?
}

/// PTRACE_PEEKUSER.
pub fn peek(tid: u32, at: u64) -> Result<u64, Errno> {
    with_stopped(tid, |t, _, tr| {
        if !at.is_multiple_of(8) || at >= USER_SIZE {
            return Err(Errno::EIO);
        }
        let n = (at / 8) as usize;
        Ok(if n < REGS {
            read_all(t, tr)[n]
        } else {
            match debug_register(at) {
                Some(n @ 0..=3) => tr.debug.places[n],
                Some(6) => tr.debug_status,
                Some(7) => tr.debug.control(),
                _ => 0,
            }
        })
    })?
}

/// Which debug register lies at an offset in `struct user`.
fn debug_register(at: u64) -> Option<usize> {
    DEBUG.contains(&at).then(|| (at - DEBUG.start) as usize / 8)
}

/// PTRACE_POKEUSER. The debug registers take what the CPU may be told: user addresses, aligned to their length.
pub fn poke(tid: u32, at: u64, v: u64) -> Result<(), Errno> {
    with_stopped(tid, |t, _, tr| {
        if !at.is_multiple_of(8) || at >= USER_SIZE {
            return Err(Errno::EIO);
        }
        let n = (at / 8) as usize;
        if n < REGS {
            return write_one(t, tr, n, v);
        }
        let (mut places, mut control) = (tr.debug.places, tr.debug.control());
        match debug_register(at) {
            Some(n @ 0..=3) => places[n] = v,
            Some(6) => {
                tr.debug_status = v;
                return Ok(());
            }
            Some(7) => control = v,
            _ => return Err(Errno::EIO),
        }
        tr.debug = tr.debug.checked(places, control).ok_or(Errno::EINVAL)?;
        Ok(())
    })?
}

fn buffer() -> Result<Vec<u8>, Errno> {
    let mut v = Vec::new();
    v.try_reserve_exact(FpuState::size())
        .map_err(|_| Errno::ENOMEM)?;
    v.resize(FpuState::size(), 0);
    Ok(v)
}

/// The extended state, as the XSAVE area that Linux shows.
pub fn xstate(tid: u32) -> Result<Vec<u8>, Errno> {
    let mut b = buffer()?;
    with_stopped(tid, |t, _, _| show(t, &mut b))??;
    Ok(b)
}

/// The extended state of a thread that is off its CPU.
pub(in crate::task) fn show(t: &Thread, b: &mut [u8]) -> Result<(), Errno> {
    // SAFETY: the caller's thread is off its CPU and its registers are saved.
    let state = unsafe { &*t.fpu.ptr() }.as_ref().ok_or(Errno::EIO)?;
    state.show(b);
    Ok(())
}

/// Replaces the extended state: the whole area, or its first 512 bytes.
pub fn set_xstate(tid: u32, new: &[u8]) -> Result<(), Errno> {
    if new.len() != FpuState::size() && new.len() != FPREGS {
        return Err(Errno::EFAULT);
    }
    let mut b = buffer()?;
    with_stopped(tid, |t, _, _| {
        show(t, &mut b)?;
        b[..new.len()].copy_from_slice(new);
        // SAFETY: the tracee stands still, off its CPU, which saved this state.
        let state = unsafe { &mut *t.fpu.ptr() }.as_mut().ok_or(Errno::EIO)?;
        state.load_shown(&mut b, new.len() == FPREGS)?;
        // No CPU's registers hold it any more.
        t.fpu_cpu.store(u32::MAX, Ordering::Relaxed);
        Ok(())
    })?
}
