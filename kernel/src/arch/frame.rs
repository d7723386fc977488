//! The registers of an interrupted program, in Linux's `pt_regs` order.

/// User code segment selector (Linux's).
pub const USER_CS: u64 = 0x33;
/// User data segment selector (Linux's).
pub const USER_DS: u64 = 0x2b;

/// What entry pushes on the kernel stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// System call number, or the exception's error code, or the interrupt's vector.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// Words of a frame.
pub const FRAME_WORDS: usize = core::mem::size_of::<TrapFrame>() / 8;

impl TrapFrame {
    /// The registers in the frame's order.
    pub fn words(&self) -> &[u64; FRAME_WORDS] {
        // SAFETY: as many u64 fields, in C's layout.
        unsafe { &*(self as *const TrapFrame).cast() }
    }

    pub fn words_mut(&mut self) -> &mut [u64; FRAME_WORDS] {
        // SAFETY: as above; any value is valid.
        unsafe { &mut *(self as *mut TrapFrame).cast() }
    }

    /// System call argument 0 to 5.
    #[inline]
    pub fn arg(&self, n: usize) -> u64 {
        match n {
            0 => self.rdi,
            1 => self.rsi,
            2 => self.rdx,
            3 => self.r10,
            4 => self.r8,
            _ => self.r9,
        }
    }

    #[inline]
    pub fn set_ret(&mut self, v: u64) {
        self.rax = v;
    }

    /// Whether user mode was interrupted.
    #[inline]
    pub fn from_user(&self) -> bool {
        self.cs & 3 != 0
    }

    /// A frame for a program's first instruction: user segments, interrupts on, all else zero.
    pub const fn zero() -> Self {
        TrapFrame {
            r15: 0,
            r14: 0,
            r13: 0,
            r12: 0,
            rbp: 0,
            rbx: 0,
            r11: 0,
            r10: 0,
            r9: 0,
            r8: 0,
            rax: 0,
            rcx: 0,
            rdx: 0,
            rsi: 0,
            rdi: 0,
            orig_rax: u64::MAX,
            rip: 0,
            cs: USER_CS,
            rflags: 0x202,
            rsp: 0,
            ss: USER_DS,
        }
    }
}

/// The registers as they are where this is called, for the report of a panic. r15 is taken to hold them.
#[inline(always)]
pub fn here() -> TrapFrame {
    let mut frame = TrapFrame::zero();
    // SAFETY: writes within `frame`, whose layout is fixed; `r15` is the only register that the block changes.
    unsafe {
        core::arch::asm!(
            "mov [r15], r15",
            "mov [r15 + 0x08], r14",
            "mov [r15 + 0x10], r13",
            "mov [r15 + 0x18], r12",
            "mov [r15 + 0x20], rbp",
            "mov [r15 + 0x28], rbx",
            "mov [r15 + 0x30], r11",
            "mov [r15 + 0x38], r10",
            "mov [r15 + 0x40], r9",
            "mov [r15 + 0x48], r8",
            "mov [r15 + 0x50], rax",
            "mov [r15 + 0x58], rcx",
            "mov [r15 + 0x60], rdx",
            "mov [r15 + 0x68], rsi",
            "mov [r15 + 0x70], rdi",
            "mov [r15 + 0x98], rsp",
            "mov word ptr [r15 + 0x88], cs",
            "mov word ptr [r15 + 0xa0], ss",
            "pushfq",
            "pop qword ptr [r15 + 0x90]",
            "lea r15, [rip]",
            inout("r15") &raw mut frame => frame.rip,
        );
    }
    frame
}
