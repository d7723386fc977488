//! What the entries of `entry.rs` call.

use core::sync::atomic::Ordering;

use super::apic;
use super::cpu;
use super::frame::{TrapFrame, USER_CS, USER_DS};
use super::ipi;
use super::percpu;
use super::uaccess;

/// Interrupt vectors; the local APIC's priority is their high digit.
pub const VECTOR_COM1: u8 = 0x34;
pub const VECTOR_RESCHED: u8 = 0xf1;
pub const VECTOR_SHOOTDOWN: u8 = 0xf2;
pub const VECTOR_CALL: u8 = 0xf3;
pub const VECTOR_TIMER: u8 = 0xf4;
pub const VECTOR_SPURIOUS: u8 = 0xff;

const RFLAGS_AC: u64 = 1 << 18;

pub(super) extern "C" fn syscall(frame: &mut TrapFrame) {
    crate::syscall::dispatch(frame);
}

pub(super) extern "C" fn watched_syscall(frame: &mut TrapFrame) {
    crate::task::ptrace::stop::system_call(frame);
}

/// Interrupts off; the frame's rbx, rbp, r12-r15 are not filled (see `entry.rs`).
pub(super) extern "C" fn user_page_fault(frame: &mut TrapFrame, cr2: u64, err: u64) {
    crate::trap::user_page_fault(frame, cr2, err);
}

pub(super) extern "C" fn kernel_page_fault(frame: &mut TrapFrame, cr2: u64) {
    let err = frame.orig_rax;
    let user_address = cr2 < 1 << 47;
    // With SMAP, touching user memory outside `uaccess` is a bug, not a fault to resolve.
    let allowed = !cpu::features().smap() || frame.rflags & RFLAGS_AC != 0;
    if user_address && allowed {
        if !percpu::in_nofault() {
            if frame.rflags & 0x200 != 0 {
                super::irq_enable();
            }
            let resolved = crate::trap::kernel_fault(frame, cr2, err);
            super::irq_disable();
            if resolved {
                return;
            }
        }
        if let Some(fixup) = uaccess::fixup(frame.rip) {
            frame.rip = fixup;
            return;
        }
    }
    if !user_address
        && uaccess::may_miss(frame.rip)
        && let Some(fixup) = uaccess::fixup(frame.rip)
    {
        frame.rip = fixup;
        return;
    }
    crate::fail::exception(frame, 14, err, cr2);
}

pub(super) extern "C" fn exception(frame: &mut TrapFrame, vector: u64) {
    let err = frame.orig_rax;
    frame.orig_rax = u64::MAX;
    if frame.from_user() {
        // What the debug trap was is this CPU's secret: asked before another thread may run here.
        let err = if vector == 1 {
            super::debug::take_status()
        } else {
            err
        };
        super::irq_enable();
        crate::task::signal::force_exception(frame, vector as _, err);
    } else if let Some(fixup) = uaccess::fixup(frame.rip) {
        frame.rip = fixup;
    } else {
        crate::fail::exception(frame, vector, err, cpu::cr2());
    }
}

pub(super) extern "C" fn interrupt(frame: &mut TrapFrame, vector: u64) {
    mm::sync::lockdep::irq_enter(super::X86);
    handle(frame, vector);
    mm::sync::lockdep::irq_exit(super::X86);
}

fn handle(frame: &mut TrapFrame, vector: u64) {
    match vector as u8 {
        VECTOR_TIMER => {
            apic::eoi();
            percpu::this().timer_irqs.fetch_add(1, Ordering::Relaxed);
            crate::task::on_timer(frame.from_user());
        }
        // The way out looks at the work word, `hlt` has been left.
        VECTOR_RESCHED => apic::eoi(),
        VECTOR_SHOOTDOWN => {
            apic::eoi();
            ipi::serve_shootdowns();
        }
        VECTOR_CALL => {
            apic::eoi();
            ipi::serve_calls();
        }
        VECTOR_COM1 => {
            super::serial::receive();
            apic::eoi();
        }
        // A spurious interrupt is not acknowledged.
        VECTOR_SPURIOUS => {}
        vector => {
            if !crate::dev::dispatch(vector) {
                crate::warn!("unexpected interrupt {vector:#x}");
            }
            apic::eoi();
        }
    }
}

/// NMI, double fault, machine check, and debug traps of the kernel; on stacks of their own.
pub(super) extern "C" fn paranoid(frame: &mut TrapFrame, vector: u64) {
    match vector {
        2 => ipi::on_nmi(),
        1 => {
            super::debug::take_status();
        }
        8 => crate::fail::double_fault(frame, cpu::cr2()),
        _ => crate::fail::exception(frame, vector, frame.orig_rax, cpu::cr2()),
    }
}

/// The last steps to user mode when there is work: interrupts off on entry and return, no work left.
pub(super) extern "C" fn exit_slow(frame: &mut TrapFrame) {
    loop {
        let work = percpu::work();
        work.fetch_and(!percpu::WORK_FRAME, Ordering::Relaxed);
        if work.load(Ordering::Relaxed) != 0 {
            super::irq_enable();
            crate::task::exit_work(frame);
            super::irq_disable();
            continue;
        }
        if sanitize(frame) {
            return;
        }
        // IRET to such an address would fault in the kernel: the program faults instead.
        super::irq_enable();
        crate::task::signal::force_exception(frame, 13, 0);
        super::irq_disable();
    }
}

/// Makes a frame safe for IRET: user segments, flags a program may have. False: its address is not canonical.
pub(super) fn sanitize(frame: &mut TrapFrame) -> bool {
    const USER_FLAGS: u64 = 0x25_4dd5; // CF PF AF ZF SF TF DF OF NT RF AC ID
    frame.cs = USER_CS;
    frame.ss = USER_DS;
    frame.rflags = frame.rflags & USER_FLAGS | 0x202;
    if frame.rip >> 47 == 0 {
        return true;
    }
    // What a signal frame should show stays; what IRET loads must be safe even if nothing handles it.
    false
}

/// To be called by a system call that replaced the frame (sigreturn, exec): the return loads all of it.
pub fn full_frame_return() {
    percpu::work().fetch_or(percpu::WORK_FRAME, Ordering::Relaxed);
}
