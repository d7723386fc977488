//! The ways into the kernel and back.
//!
//! SYSCALL keeps the whole `TrapFrame` and leaves by SYSRET without reloading what the Rust ABI kept
//! (rbx, rbp, r12-r15): on that path nothing changed the frame but its result. A call that replaces the
//! frame (sigreturn, exec) says so with `full_frame_return`, which sets a work bit; every non-zero work
//! word leaves through `exit_slow` and a full IRET. The address that SYSRET jumps to is the one user code
//! executed SYSCALL before, so it is below `USER_END` and canonical.
//!
//! The threads that a tracer watches enter by an address of their own; the switch loads it.
//!
//! A page fault from user mode saves only what the ABI lets Rust destroy; the frame's other six slots are
//! filled when there is work (signals need them), when they again hold the user's values.
//!
//! Entries from user mode run with interrupts off until the Rust side turns them on (SYSCALL: at once).
//! NMI, double fault, machine check and debug come on stacks of their own whose top names the CPU, so
//! they do not care which GS was loaded.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, Ordering};

use super::percpu;

global_asm!(
    // 3 bytes, patched to CLAC/STAC where the CPU has SMAP.
    ".macro SMAP_SITE kind",
    "771: .byte 0x0f, 0x1f, 0x00",
    ".pushsection .smap_sites, \"a\", @progbits",
    ".quad 771b, \\kind",
    ".popsection",
    ".endm",
    ".macro PUSH_LOW",
    "push rdi",
    "push rsi",
    "push rdx",
    "push rcx",
    "push rax",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    ".endm",
    ".macro PUSH_HIGH",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    ".endm",
    ".macro POP_LOW",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rax",
    "pop rcx",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    ".endm",
    ".macro POP_HIGH",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    ".endm",
    ".macro PUSH_SYSCALL",
    "swapgs",
    "mov gs:[{USER_RSP}], rsp",
    "mov rsp, gs:[{SYSCALL_RSP}]",
    "push {USER_DS}",
    "push qword ptr gs:[{USER_RSP}]",
    "sti",
    "push r11",
    "push {USER_CS}",
    "push rcx",
    "push rax",
    "PUSH_LOW",
    "PUSH_HIGH",
    "mov rdi, rsp",
    ".endm",
    ".pushsection .text.entry, \"ax\", @progbits",
    // ---- system call
    ".balign 64",
    ".global entry_syscall",
    "entry_syscall:",
    "PUSH_SYSCALL",
    "call {dispatch}",
    "cli",
    "mov rax, gs:[{WORK}]",
    "cmp dword ptr [rax], 0",
    "jne user_exit_slow",
    "mov r11, [rsp + 144]",
    "mov r10, [rsp + 56]",
    "mov r9, [rsp + 64]",
    "mov r8, [rsp + 72]",
    "mov rax, [rsp + 80]",
    "mov rcx, [rsp + 128]",
    "mov rdx, [rsp + 96]",
    "mov rsi, [rsp + 104]",
    "mov rdi, [rsp + 112]",
    "mov rsp, [rsp + 152]",
    "swapgs",
    "sysretq",
    // ---- system call of a thread that is watched: always back by the full path
    ".balign 64",
    ".global entry_syscall_watched",
    "entry_syscall_watched:",
    "PUSH_SYSCALL",
    "call {watched}",
    "jmp user_exit",
    // ---- page fault
    ".balign 64",
    ".global entry_page_fault",
    "entry_page_fault:",
    "cld",
    "SMAP_SITE 0",
    "test byte ptr [rsp + 16], 3",
    "jz 2f",
    "swapgs",
    "PUSH_LOW",
    "sub rsp, 56",
    "mov rsi, cr2",
    "mov rdx, [rsp + 128]",
    "lea rdi, [rsp + 8]",
    "call {user_page_fault}",
    "cli",
    "mov rax, gs:[{WORK}]",
    "cmp dword ptr [rax], 0",
    "jne 3f",
    "add rsp, 56",
    "POP_LOW",
    "add rsp, 8",
    "swapgs",
    "iretq",
    "2:",
    "PUSH_LOW",
    "PUSH_HIGH",
    "mov rdi, rsp",
    "mov rsi, cr2",
    "sub rsp, 8",
    "call {kernel_page_fault}",
    "add rsp, 56",
    "POP_LOW",
    "add rsp, 8",
    "iretq",
    "3:",
    "add rsp, 8",
    "mov [rsp], r15",
    "mov [rsp + 8], r14",
    "mov [rsp + 16], r13",
    "mov [rsp + 24], r12",
    "mov [rsp + 32], rbp",
    "mov [rsp + 40], rbx",
    "mov qword ptr [rsp + 120], -1",
    "jmp user_exit_slow",
    // ---- the other exceptions: error code and rdi pushed, vector in edi
    "exception:",
    "cld",
    "SMAP_SITE 0",
    "test byte ptr [rsp + 24], 3",
    "jz 2f",
    "swapgs",
    "exception_gs_loaded:",
    "2:",
    "push rsi",
    "mov esi, edi",
    "push rdx",
    "push rcx",
    "push rax",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "PUSH_HIGH",
    "mov rdi, rsp",
    "mov rbp, rsp",
    "and rsp, -16",
    "call {exception}",
    "mov rsp, rbp",
    "trap_return:",
    "test byte ptr [rsp + 136], 3",
    "jz frame_pop",
    "user_exit:",
    "cli",
    "mov rax, gs:[{WORK}]",
    "cmp dword ptr [rax], 0",
    "je user_frame_pop",
    // ---- back to user mode by the full path: the frame at rsp, complete; interrupts off
    "user_exit_slow:",
    "mov rdi, rsp",
    "mov rbp, rsp",
    "and rsp, -16",
    "call {exit_slow}",
    "mov rsp, rbp",
    "user_frame_pop:",
    "swapgs",
    "frame_pop:",
    "POP_HIGH",
    "POP_LOW",
    "add rsp, 8",
    "iretq",
    // ---- a new thread's or program's frame: rdi
    ".global entry_return_to_user",
    "entry_return_to_user:",
    "mov rsp, rdi",
    "jmp user_exit",
    // ---- interrupts: the stub's return address stands in orig_rax
    "interrupt:",
    "cld",
    "SMAP_SITE 0",
    "test byte ptr [rsp + 16], 3",
    "jz 2f",
    "swapgs",
    "2:",
    "PUSH_LOW",
    "PUSH_HIGH",
    "mov rsi, [rsp + 120]",
    "lea rax, [rip + entry_stubs]",
    "sub rsi, rax",
    "shr rsi, 3",
    "mov qword ptr [rsp + 120], -1",
    "mov rdi, rsp",
    "mov rbp, rsp",
    "and rsp, -16",
    "call {interrupt}",
    "mov rsp, rbp",
    "jmp trap_return",
    // ---- on a stack of its own, from any state: error code and rdi pushed, vector in edi
    "paranoid:",
    "cld",
    "SMAP_SITE 0",
    "push rsi",
    "push rdx",
    "push rcx",
    "push rax",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "PUSH_HIGH",
    "mov r12d, edi",
    "mov ecx, 0xc0000101",
    "rdmsr",
    "shl rdx, 32",
    "or rax, rdx",
    "mov rbx, rax",
    "mov rax, [rsp + 168]",
    "mov rdx, rax",
    "shr rdx, 32",
    "wrmsr",
    "mov rdi, rsp",
    "mov esi, r12d",
    "mov rbp, rsp",
    "and rsp, -16",
    "call {paranoid}",
    "mov rsp, rbp",
    "mov rax, rbx",
    "mov rdx, rbx",
    "shr rdx, 32",
    "mov ecx, 0xc0000101",
    "wrmsr",
    "jmp frame_pop",
    // ---- debug: from user mode it moves to the thread's stack, where it may sleep
    "entry_debug:",
    "push 0",
    "push rdi",
    "mov edi, 1",
    "test byte ptr [rsp + 24], 3",
    "jz paranoid",
    "cld",
    "SMAP_SITE 0",
    "swapgs",
    "mov rdi, rsp",
    "mov rsp, gs:[{SYSCALL_RSP}]",
    "add rsp, 8",
    "push [rdi + 48]",
    "push [rdi + 40]",
    "push [rdi + 32]",
    "push [rdi + 24]",
    "push [rdi + 16]",
    "push [rdi + 8]",
    "push [rdi]",
    "mov edi, 1",
    "jmp exception_gs_loaded",
    // ---- stubs
    ".macro EXCEPTION vector, error, to",
    ".balign 16",
    ".if \\error == 0",
    "push 0",
    ".endif",
    "push rdi",
    "mov edi, \\vector",
    "jmp \\to",
    ".endm",
    ".balign 16",
    ".global entry_exceptions",
    "entry_exceptions:",
    "EXCEPTION 0, 0, exception",
    ".balign 16",
    "jmp entry_debug",
    "EXCEPTION 2, 0, paranoid",
    "EXCEPTION 3, 0, exception",
    "EXCEPTION 4, 0, exception",
    "EXCEPTION 5, 0, exception",
    "EXCEPTION 6, 0, exception",
    "EXCEPTION 7, 0, exception",
    "EXCEPTION 8, 1, paranoid",
    "EXCEPTION 9, 0, exception",
    "EXCEPTION 10, 1, exception",
    "EXCEPTION 11, 1, exception",
    "EXCEPTION 12, 1, exception",
    "EXCEPTION 13, 1, exception",
    ".balign 16",
    "jmp entry_page_fault",
    "EXCEPTION 15, 0, exception",
    "EXCEPTION 16, 0, exception",
    "EXCEPTION 17, 1, exception",
    "EXCEPTION 18, 0, paranoid",
    "EXCEPTION 19, 0, exception",
    "EXCEPTION 20, 0, exception",
    "EXCEPTION 21, 1, exception",
    "EXCEPTION 22, 0, exception",
    "EXCEPTION 23, 0, exception",
    "EXCEPTION 24, 0, exception",
    "EXCEPTION 25, 0, exception",
    "EXCEPTION 26, 0, exception",
    "EXCEPTION 27, 0, exception",
    "EXCEPTION 28, 0, exception",
    "EXCEPTION 29, 1, exception",
    "EXCEPTION 30, 1, exception",
    "EXCEPTION 31, 0, exception",
    ".balign 16",
    ".global entry_stubs",
    "entry_stubs:",
    ".rept 256",
    ".balign 8",
    "call interrupt",
    ".endr",
    ".popsection",
    USER_RSP = const percpu::USER_RSP,
    SYSCALL_RSP = const percpu::SYSCALL_RSP,
    WORK = const percpu::WORK,
    USER_DS = const super::frame::USER_DS,
    USER_CS = const super::frame::USER_CS,
    dispatch = sym super::trap::syscall,
    watched = sym super::trap::watched_syscall,
    user_page_fault = sym super::trap::user_page_fault,
    kernel_page_fault = sym super::trap::kernel_page_fault,
    exception = sym super::trap::exception,
    interrupt = sym super::trap::interrupt,
    paranoid = sym super::trap::paranoid,
    exit_slow = sym super::trap::exit_slow,
);

unsafe extern "C" {
    fn entry_syscall();
    fn entry_syscall_watched();
    fn entry_exceptions();
    fn entry_stubs();
    fn entry_return_to_user(frame: *mut super::TrapFrame) -> !;
}

/// The address of the entry of `vector`.
pub(super) fn stub(vector: usize) -> u64 {
    if vector < 32 {
        entry_exceptions as *const () as u64 + 16 * vector as u64
    } else {
        entry_stubs as *const () as u64 + 8 * vector as u64
    }
}

/// Tells this CPU where SYSCALL goes.
pub(super) fn init_syscall() {
    use super::cpu::{CSTAR, LSTAR, SFMASK, STAR, wrmsr};
    // SAFETY: long mode has these registers; the entry above is what they expect.
    unsafe {
        wrmsr(STAR, 0x23 << 48 | u64::from(super::gdt::KERNEL_CS) << 32);
        wrmsr(LSTAR, entry_syscall as *const () as u64);
        wrmsr(CSTAR, 0);
        // TF, IF, DF, IOPL, NT, AC are cleared on entry.
        wrmsr(SFMASK, 0x4_7700);
    }
}

/// Where SYSCALL goes on this CPU from now on: for a thread whose calls are watched, or any other. Interrupts off.
pub fn watch_syscalls(on: bool) {
    let entry = if on {
        entry_syscall_watched as *const ()
    } else {
        entry_syscall as *const ()
    };
    // SAFETY: both entries are what the register expects.
    unsafe { super::cpu::wrmsr(super::cpu::LSTAR, entry as u64) };
}

/// Whether a first program has started: `make bench` reads the log line.
static SEEN_USER: AtomicBool = AtomicBool::new(false);

/// Loads the frame and goes to user mode (full IRET), after the work check. For new threads and exec.
/// The frame lies on the current kernel stack.
#[expect(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "TASK's contract: a frame on its own stack"
)]
pub fn return_to_user(frame: *mut super::TrapFrame) -> ! {
    if !SEEN_USER.load(Ordering::Relaxed) {
        SEEN_USER.store(true, Ordering::Relaxed);
        crate::info!("first user instruction at TSC {}", super::cpu::rdtsc());
    }
    super::irq_disable();
    // SAFETY: the caller's frame, on this stack; nothing above it is needed any more.
    unsafe {
        if !super::trap::sanitize(&mut *frame) {
            super::trap::full_frame_return();
        }
        entry_return_to_user(frame)
    }
}
