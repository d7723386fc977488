//! Page faults from user mode and from the kernel's own touches of user memory.
//!
//! A user fault arrives with interrupts off. The VMA's lock is looked for at once, as that needs them off
//! anyway; then they go on for good. A fault that finds no frame has dropped every lock when it comes
//! back here: `oom` makes memory free, and the instruction is run again, or the thread dies on its way out.

use linux_raw_sys::general::{SIGBUS, SIGSEGV};
use mm::fault::{self, Access, Fault, FaultResult};
use mm::{CanWait, IrqOff, USER_END};

use crate::arch::{self, TrapFrame, X86};
use crate::task::signal::SigInfo;
use crate::task::{self, Space, signal};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const RESERVED: u64 = 1 << 3;
const FETCH: u64 = 1 << 4;
/// The thread's rights to the page's protection key.
const KEY: u64 = 1 << 5;

#[inline]
fn decode(cr2: u64, err: u64, user: bool) -> Fault {
    let access = if err & WRITE != 0 {
        Access::Write
    } else if err & FETCH != 0 {
        Access::Exec
    } else {
        Access::Read
    };
    Fault {
        va: cr2,
        access,
        user,
        present: err & PRESENT != 0,
    }
}

/// A page fault raised in user mode. Called with interrupts off.
#[inline]
pub fn user_page_fault(frame: &mut TrapFrame, cr2: u64, err: u64) {
    let thread = task::current();
    let result = match (thread.space(), cr2 < USER_END) {
        (Some(space), true) if err & (RESERVED | KEY) == 0 => {
            let locked = {
                // SAFETY: interrupts are off since the trap.
                let irq = unsafe { IrqOff::assume(X86) };
                space.vma_read(&irq, cr2)
            };
            arch::irq_enable();
            // SAFETY: interrupts are on, a trap from user mode holds no lock.
            let mut wait = unsafe { CanWait::assume(X86) };
            fault::user_fault_locked(space, &mut wait, locked, decode(cr2, err, true))
        }
        _ if err & RESERVED != 0 => crate::fail::exception(frame, 14, err, cr2),
        (Some(space), true) => {
            arch::irq_enable();
            return refused_by_key(space, cr2, err);
        }
        _ => {
            arch::irq_enable();
            if err & FETCH != 0 && crate::vsyscall::call(frame, cr2) {
                return;
            }
            FaultResult::Segv {
                code: fault::SEGV_MAPERR,
            }
        }
    };
    match result {
        FaultResult::Done { major } => thread.count_fault(major),
        other => unresolved(other, cr2, err),
    }
}

#[cold]
#[inline(never)]
fn unresolved(result: FaultResult, cr2: u64, err: u64) {
    match result {
        FaultResult::Done { .. } | FaultResult::Killed => {}
        FaultResult::Segv { code } => refuse(SIGSEGV, code, cr2, err),
        FaultResult::Bus { code } => refuse(SIGBUS, code, cr2, err),
        FaultResult::Oom => crate::oom::out_of_memory(&mut task::space::can_wait()),
    }
}

/// SIGSEGV, with the key of the mapping that is there now; somebody may have changed it meanwhile.
#[cold]
fn refused_by_key(space: &Space, cr2: u64, err: u64) {
    const SEGV_PKUERR: i32 = 4;
    // SAFETY: interrupts are on, a trap from user mode holds no lock.
    let mut wait = unsafe { CanWait::assume(X86) };
    let Ok(guard) = space.mmap_read_killable(&mut wait) else {
        return;
    };
    let key = guard.find(cr2).map(|vma| vma.flags().key());
    drop(guard);
    match key {
        Some(key) => {
            signal::note_trap(14, err, cr2);
            signal::force(SigInfo::key_fault(SIGSEGV, SEGV_PKUERR, cr2, key), false);
        }
        None => refuse(SIGSEGV, fault::SEGV_MAPERR, cr2, err),
    }
}

fn refuse(signo: u32, code: i32, cr2: u64, err: u64) {
    signal::note_trap(14, err, cr2);
    signal::force_fault(signo, code, cr2);
}

/// A page fault raised by the kernel, not in a `nofault` section. True: resolved, run the instruction again.
/// False: the exception table decides (the copy ends early, with EFAULT).
pub fn kernel_fault(frame: &mut TrapFrame, cr2: u64, err: u64) -> bool {
    const RFLAGS_IF: u64 = 1 << 9;
    let Some(thread) = task::try_current() else {
        return false;
    };
    let Some(space) = thread.space() else {
        return false;
    };
    // With interrupts off nobody may wait; reserved bits set are a broken table; what the caller's keys refuse to
    // itself they refuse to us.
    if frame.rflags & RFLAGS_IF == 0 || err & (RESERVED | KEY) != 0 {
        return false;
    }
    // SAFETY: interrupts were on when the copy ran, and are again; user memory is touched without spin locks held.
    let mut wait = unsafe { CanWait::assume(X86) };
    match fault::user_fault(space, &mut wait, decode(cr2, err, false)) {
        FaultResult::Done { major } => {
            thread.count_fault(major);
            true
        }
        FaultResult::Oom => {
            crate::oom::out_of_memory(&mut wait);
            // Runs the copy again, which faults again if there is still no frame.
            !task::fatal_signal_pending()
        }
        FaultResult::Segv { .. } | FaultResult::Bus { .. } | FaultResult::Killed => false,
    }
}
