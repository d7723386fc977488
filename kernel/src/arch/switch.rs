//! Kernel stacks change hands.

use core::arch::naked_asm;

/// Where a thread that does not run left its stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Context {
    rsp: u64,
}

impl Context {
    /// Of a thread that has not run yet or is running.
    pub const fn empty() -> Self {
        Context { rsp: 0 }
    }

    /// Where the stack was left; for backtraces.
    pub fn rsp(&self) -> u64 {
        self.rsp
    }
}

/// Saves the callee-saved registers and the stack in `prev`, continues `next`.
///
/// # Safety
/// Interrupts off; `next` was filled by `switch` or `prepare` and is continued once.
#[unsafe(naked)]
pub unsafe extern "C" fn switch(prev: *mut Context, next: *const Context) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, [rsi]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// A context that calls `entry(arg)` on a fresh stack, with interrupts off.
///
/// # Safety
/// `stack_top` is the 16-byte aligned top of a mapped stack nobody uses (the top of what is left of it).
pub unsafe fn prepare(stack_top: u64, entry: extern "C" fn(usize) -> !, arg: usize) -> Context {
    // r15 r14 r13 r12 rbp rbx, return address, and zeros: alignment, the end of backtraces.
    let words = [
        0,
        0,
        arg as u64,
        entry as usize as u64,
        0,
        0,
        start as *const () as u64,
        0,
        0,
    ];
    let rsp = stack_top - 8 * words.len() as u64;
    // SAFETY: the caller's stack.
    unsafe { (rsp as *mut [u64; 9]).write(words) };
    Context { rsp }
}

/// First instructions of a new context: r12 is the entry, r13 its argument.
#[unsafe(naked)]
extern "C" fn start() {
    naked_asm!("mov rdi, r13", "call r12", "ud2")
}

/// Calls `f(arg)` on the stack below `top`; interrupts, and whoever is switched to meanwhile, do not mind.
///
/// # Safety
/// `top` is the 16-byte aligned top of a mapped stack that nobody uses until this returns, and that is large enough.
#[unsafe(naked)]
pub unsafe extern "C" fn call_on(top: u64, f: extern "C" fn(*mut ()), arg: *mut ()) {
    // Debuggers follow rbp to the caller's stack; our own backtraces end at `top`.
    naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "mov rsp, rdi",
        "mov rdi, rdx",
        "call rsi",
        "mov rsp, rbp",
        "pop rbp",
        "ret",
    )
}
