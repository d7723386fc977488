//! From one thread to another: registers, address space, extended state.
//!
//! Kernel threads have no space of their own and run in whatever is loaded. The extended state is
//! saved whenever a user thread leaves its CPU, and loaded only if this CPU's registers no longer
//! hold it. The kernel itself uses none.

use core::ptr;
use core::sync::atomic::Ordering;

use super::ptrace::{HOOK_CALLS, HOOK_DEBUG};
use super::thread::{DEAD, Thread};
use crate::arch::{self, fpu};

/// What a CPU's registers hold.
pub(super) struct Local {
    /// Whose extended state, if `fpu_cpu` of that thread names this CPU, too.
    fpu_owner: *const Thread,
    /// What is set up for a tracer (`ptrace::HOOK_*`).
    hooked: u8,
}

impl Local {
    pub(super) const fn new() -> Local {
        Local {
            fpu_owner: ptr::null(),
            hooked: 0,
        }
    }
}

/// Continues `next`; returns when `prev` runs again, perhaps on another CPU.
///
/// # Safety
/// Interrupts are off, `local` and `cpu` are this CPU's, its run queue is locked, `prev` runs, and
/// `next` is alive, runnable and in no queue.
pub(super) unsafe fn switch_to(local: &mut Local, cpu: usize, prev: &Thread, next: &Thread) {
    if !prev.space_ptr.load(Ordering::Relaxed).is_null()
        && prev.state.load(Ordering::Relaxed) != DEAD
    {
        // SAFETY: `prev` is the running thread, and nobody else touches these fields of it.
        unsafe {
            let p = &mut *prev.private.ptr();
            p.fs_base = arch::fs_base();
            p.gs_base = arch::user_gs_base();
            if let Some(state) = prev.fpu.get() {
                fpu::save(state);
                prev.fpu_cpu.store(cpu as u32, Ordering::Relaxed);
                local.fpu_owner = prev;
            }
        }
    }
    // SAFETY: the space of a user thread is alive as long as the thread has not dropped it.
    if let Some(space) = unsafe { next.space_ptr.load(Ordering::Relaxed).as_ref() } {
        super::space::load(space, cpu);
        // SAFETY: `next` does not run, so its fields are ours while its queue is locked.
        unsafe {
            let p = &*next.private.ptr();
            arch::set_fs_base(p.fs_base);
            arch::set_user_gs_base(p.gs_base);
            if !(ptr::eq(local.fpu_owner, next)
                && next.fpu_cpu.load(Ordering::Relaxed) == cpu as u32)
                && let Some(state) = next.fpu.get()
            {
                fpu::restore(state);
            }
        }
        let hooked = next.hooked.load(Ordering::Relaxed);
        if local.hooked | hooked != 0 {
            hook(local, next, hooked);
        }
        local.fpu_owner = next;
        next.fpu_cpu.store(cpu as u32, Ordering::Relaxed);
    }
    if let Some(stack) = &next.stack {
        arch::set_kernel_stack(stack.top());
    }
    arch::set_current((next as *const Thread).cast_mut().cast(), &next.work);
    // SAFETY: `next`'s context was saved by this function or by `prepare`, and continues once: it
    // was taken out of its queue. `prev`'s belongs to us.
    unsafe { arch::switch::switch(prev.ctx.get(), next.ctx.get()) };
}

/// Sets up for a traced thread, or takes back, what this CPU does for its tracer.
#[cold]
#[inline(never)]
fn hook(local: &mut Local, next: &Thread, hooked: u8) {
    if (local.hooked ^ hooked) & HOOK_CALLS != 0 {
        arch::watch_syscalls(hooked & HOOK_CALLS != 0);
    }
    if hooked & HOOK_DEBUG != 0 {
        // SAFETY: `next` does not run, and its tracer changes this only while it stands still: it was woken since.
        arch::debug::load(&unsafe { &*next.trace.ptr() }.debug);
    } else if local.hooked & HOOK_DEBUG != 0 {
        arch::debug::clear();
    }
    local.hooked = hooked;
}

/// The running thread's registers into `to`, which has not started: for fork.
pub(super) fn copy_user_state(me: &Thread, to: &Thread) {
    let was_on = arch::irq_save();
    // SAFETY: `me` runs here with interrupts off, so the registers are its own; `to` is new.
    unsafe {
        if let Some(state) = to.fpu.get() {
            fpu::save(state);
        }
        let p = to.private.get();
        p.fs_base = arch::fs_base();
        p.gs_base = arch::user_gs_base();
    }
    arch::irq_restore(was_on);
    let _ = me;
}

/// The running thread's extended state, brought into memory and handed to `f`; what `f` leaves is
/// loaded when `f` returns true.
pub(super) fn with_fpu<R>(f: impl FnOnce(&mut fpu::FpuState) -> (R, bool)) -> Option<R> {
    let me = super::current();
    // SAFETY: the running thread's own field; a switch only saves into it, which is why the
    // registers are written back right below with interrupts off.
    let state = unsafe { me.fpu.get().as_mut()? };
    let was_on = arch::irq_save();
    fpu::save(state);
    let (r, load) = f(state);
    if load {
        fpu::restore(state);
    }
    arch::irq_restore(was_on);
    Some(r)
}

/// The running thread gets `space` (exec) or none (exit).
pub(super) fn adopt_space(me: &Thread, space: *const super::Space) {
    let was_on = arch::irq_save();
    me.space_ptr.store(space.cast_mut(), Ordering::Relaxed);
    // SAFETY: the caller keeps the space alive in the thread's own field.
    if let Some(space) = unsafe { space.as_ref() } {
        super::space::load(space, arch::cpu_id());
    }
    arch::irq_restore(was_on);
}
