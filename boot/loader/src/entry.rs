//! From 32-bit protected mode to Rust, and out of the loader again.
//!
//! PVH: paging off, flat segments, `ebx` = `hvm_start_info`. Long mode and NX are checked here because a CPU without
//! them cannot run the rest. The identity map of the first 4 GiB is assembled into the image: it costs nothing.

use bootloader_api::BootInfo;
use core::arch::{asm, global_asm};

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18              # namesz, descsz, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

    .section .text.pvh, "ax", @progbits
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld
    mov esp, offset {stack} + {stack_len}
    mov ebp, ebx
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb 2f
    mov eax, 0x80000001
    cpuid
    test edx, 1 << 29
    jz 2f
    test edx, 1 << 20
    jz 3f

    mov eax, offset identity_p4
    mov cr3, eax
    mov eax, 1 << 5             # CR4.PAE
    mov cr4, eax
    mov ecx, 0xc0000080         # EFER: LME, NXE
    rdmsr
    or eax, (1 << 8) | (1 << 11)
    wrmsr
    mov eax, 0x80010033         # CR0: PG, WP, NE, ET, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    ljmp 8, offset long_mode

2:  mov esi, offset no_long_mode
    jmp 4f
3:  mov esi, offset no_nx
4:  mov dx, 0x2fd               # The line goes to COM2, or to COM1 where there is no other.
    in al, dx
    cmp al, 0xff
    jne 5f
    mov dx, 0x3fd
5:  call line32
    mov eax, {no_feature}
    mov dx, {exit_port}
    out dx, eax
6:  hlt
    jmp 6b

line32:                         # esi: text, dx: line status port
    lodsb
    mov cl, al
7:  in al, dx
    test al, 0x40
    jz 7b
    test cl, cl
    jz 8f
    sub dx, 5
    mov al, cl
    out dx, al
    add dx, 5
    jmp line32
8:  ret

    .code64
long_mode:
    mov eax, 16
    mov ss, eax
    mov ds, eax
    mov es, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, offset {stack} + {stack_len}
    mov edi, ebp
    xor ebp, ebp
    call {start}
    ud2

    .section .rodata.pvh, "a", @progbits
no_long_mode:
    .asciz "pinfold loader: the CPU lacks long mode\n"
no_nx:
    .asciz "pinfold loader: the CPU lacks NX\n"
    .balign 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

    # Present and writable; the CPU writes accessed bits here.
    .section .data.pvh, "aw", @progbits
    .balign 4096
identity_p4:
    .quad identity_p3 + 3
    .fill 511, 8, 0
identity_p3:
    .quad identity_p2 + 3, identity_p2 + 0x1003, identity_p2 + 0x2003, identity_p2 + 0x3003
    .fill 508, 8, 0
identity_p2:
    .set page, 0
    .rept 2048
    .quad page + 0x83
    .set page, page + 0x200000
    .endr
"#,
    stack = sym STACK,
    stack_len = const STACK_LEN,
    start = sym crate::start,
    no_feature = const crate::fail::Failure::NoFeature as u32,
    exit_port = const crate::fail::EXIT_PORT,
);

const STACK_LEN: usize = 16 * 1024;

#[repr(C, align(4096))]
struct Stack([u8; STACK_LEN]);

static mut STACK: Stack = Stack([0; STACK_LEN]);

/// Enters the kernel.
///
/// # Safety
/// The active page tables map `entry` executable and the memory below `stack_top` writable; `info` stays for ever.
pub unsafe fn jump(entry: u64, stack_top: u64, info: &'static mut BootInfo) -> ! {
    // SAFETY: as above. The zero is the return address that the ABI expects above the stack's end.
    unsafe {
        asm!(
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "push 0",
            "jmp {entry}",
            stack = in(reg) stack_top,
            entry = in(reg) entry,
            in("rdi") info,
            options(noreturn),
        )
    }
}
