//! Copies between kernel and user memory.
//!
//! Every routine that touches user memory stands in the assembly below, between STAC and CLAC (patched in
//! where the CPU has SMAP), and lists its touching instructions in `.ex_table` with the place to go on when
//! a fault cannot be resolved. Ranges are checked against `USER_END` before; kernel memory is out of reach.
//! Faults are served like a program's own and may sleep, except inside the `nofault` forms.

use alloc::vec::Vec;
use core::arch::global_asm;
use core::mem::{MaybeUninit, size_of};

use mm::Errno;

use super::percpu;

/// One past the last user address.
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// Plain data: every bit pattern is a value, no padding.
///
/// # Safety
/// As the sentence above says.
pub unsafe trait Pod: Copy + 'static {}

macro_rules! pod { ($($t:ty),*) => { $(
    // SAFETY: an integer.
    unsafe impl Pod for $t {}
)* }; }
pod!(
    u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize
);
// SAFETY: an array of plain data is plain data.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

global_asm!(
    ".macro SMAP_SITE2 kind",
    "771: .byte 0x0f, 0x1f, 0x00",
    ".pushsection .smap_sites, \"a\", @progbits",
    ".quad 771b, \\kind",
    ".popsection",
    ".endm",
    ".macro FAULTS at, to",
    ".pushsection .ex_table, \"a\", @progbits",
    ".quad \\at, \\to",
    ".popsection",
    ".endm",
    ".pushsection .text.uaccess, \"ax\", @progbits",
    // uaccess_copy(dst, src, len) -> bytes not copied
    ".balign 16",
    ".global uaccess_copy",
    "uaccess_copy:",
    "mov rcx, rdx",
    "shr rcx, 3",
    "and edx, 7",
    "SMAP_SITE2 1",
    "1: rep movsq",
    "mov ecx, edx",
    "2: rep movsb",
    "3:",
    "SMAP_SITE2 0",
    "mov rax, rcx",
    "ret",
    // A word may straddle a good and a bad page: byte by byte up to there.
    "4: lea rcx, [rdx + rcx * 8]",
    "5: rep movsb",
    "jmp 3b",
    "FAULTS 1b, 4b",
    "FAULTS 2b, 3b",
    "FAULTS 5b, 3b",
    // kernel_copy(dst, src, len) -> bytes not copied
    ".balign 16",
    ".global kernel_copy",
    ".global kernel_copy_at",
    "kernel_copy:",
    "mov rcx, rdx",
    "kernel_copy_at: rep movsb",
    "2: mov rax, rcx",
    "ret",
    "FAULTS kernel_copy_at, 2b",
    // uaccess_copy4(dst, src, words) -> words not copied
    ".balign 16",
    ".global uaccess_copy4",
    "uaccess_copy4:",
    "mov rcx, rdx",
    "SMAP_SITE2 1",
    "1: rep movsd",
    "2:",
    "SMAP_SITE2 0",
    "mov rax, rcx",
    "ret",
    "FAULTS 1b, 2b",
    // uaccess_clear(dst, len) -> bytes not cleared
    ".balign 16",
    ".global uaccess_clear",
    "uaccess_clear:",
    "mov rcx, rsi",
    "shr rcx, 3",
    "mov edx, esi",
    "and edx, 7",
    "xor eax, eax",
    "SMAP_SITE2 1",
    "1: rep stosq",
    "mov ecx, edx",
    "2: rep stosb",
    "3:",
    "SMAP_SITE2 0",
    "mov rax, rcx",
    "ret",
    // A word may straddle a good and a bad page: byte by byte up to there.
    "4: lea rcx, [rdx + rcx * 8]",
    "5: rep stosb",
    "jmp 3b",
    "FAULTS 1b, 4b",
    "FAULTS 2b, 3b",
    "FAULTS 5b, 3b",
    // Single values: (value, error) in rax, rdx; error is 0 or 1.
    ".macro GET name, load",
    ".balign 16",
    ".global \\name",
    "\\name:",
    "xor edx, edx",
    "SMAP_SITE2 1",
    "1: \\load",
    "2:",
    "SMAP_SITE2 0",
    "ret",
    "3: mov edx, 1",
    "jmp 2b",
    "FAULTS 1b, 3b",
    ".endm",
    "GET uaccess_get1, \"movzx eax, byte ptr [rdi]\"",
    "GET uaccess_get4, \"mov eax, [rdi]\"",
    "GET uaccess_get8, \"mov rax, [rdi]\"",
    // uaccess_putN(dst, value) -> 0 or 1
    ".macro PUT name, store",
    ".balign 16",
    ".global \\name",
    "\\name:",
    "xor eax, eax",
    "SMAP_SITE2 1",
    "1: \\store",
    "2:",
    "SMAP_SITE2 0",
    "ret",
    "3: mov eax, 1",
    "jmp 2b",
    "FAULTS 1b, 3b",
    ".endm",
    "PUT uaccess_put1, \"mov [rdi], sil\"",
    "PUT uaccess_put4, \"mov [rdi], esi\"",
    "PUT uaccess_put8, \"mov [rdi], rsi\"",
    // uaccess_cmpxchg4(addr, old, new) -> (found, error)
    ".balign 16",
    ".global uaccess_cmpxchg4",
    "uaccess_cmpxchg4:",
    "mov eax, esi",
    "mov ecx, edx",
    "xor edx, edx",
    "SMAP_SITE2 1",
    "1: lock cmpxchg [rdi], ecx",
    "2:",
    "SMAP_SITE2 0",
    "ret",
    "3: mov edx, 1",
    "jmp 2b",
    "FAULTS 1b, 3b",
    ".popsection",
);

#[repr(C)]
struct Got {
    value: u64,
    error: u64,
}

unsafe extern "C" {
    fn uaccess_copy(dst: u64, src: u64, len: usize) -> usize;
    fn kernel_copy(dst: u64, src: u64, len: usize) -> usize;
    static kernel_copy_at: u8;
    fn uaccess_copy4(dst: u64, src: u64, words: usize) -> usize;
    fn uaccess_clear(dst: u64, len: usize) -> usize;
    fn uaccess_get1(src: u64) -> Got;
    fn uaccess_get4(src: u64) -> Got;
    fn uaccess_get8(src: u64) -> Got;
    fn uaccess_put1(dst: u64, v: u64) -> u32;
    fn uaccess_put4(dst: u64, v: u64) -> u32;
    fn uaccess_put8(dst: u64, v: u64) -> u32;
    fn uaccess_cmpxchg4(addr: u64, old: u32, new: u32) -> Got;
    static __ex_table_start: [u64; 2];
    static __ex_table_end: [u64; 2];
}

/// Where to go on after a fault at `rip` that nothing resolves, if that instruction may fault.
pub(super) fn fixup(rip: u64) -> Option<u64> {
    let (mut at, end) = (&raw const __ex_table_start, &raw const __ex_table_end);
    while at < end {
        // SAFETY: the linker script delimits pairs that `FAULTS` wrote.
        let [from, to] = unsafe { *at };
        if from == rip {
            return Some(to);
        }
        at = at.wrapping_add(1);
    }
    None
}

#[inline(always)]
fn is_user(at: u64, len: usize) -> bool {
    at <= USER_END && len as u64 <= USER_END - at
}

/// Fills `dst` from user memory; EFAULT.
#[inline]
pub fn copy_from_user(dst: &mut [u8], src: u64) -> Result<(), Errno> {
    // SAFETY: `dst` is ours to write.
    match unsafe { copy_in(dst.as_mut_ptr(), src, dst.len()) } {
        0 => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Writes `src` to user memory; EFAULT.
#[inline]
pub fn copy_to_user(dst: u64, src: &[u8]) -> Result<(), Errno> {
    // SAFETY: `src` is ours to read.
    match unsafe { copy_out(dst, src.as_ptr(), src.len()) } {
        0 => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Faults may sleep, so no lock may be held here that faults or other CPUs wait for.
#[inline(always)]
fn may_fault() {
    #[cfg(feature = "test")]
    if !percpu::in_nofault() {
        mm::sync::lockdep::may_copy_user(super::X86);
    }
}

/// Bytes not copied.
///
/// # Safety
/// `dst` has `len` writable bytes.
#[inline]
pub unsafe fn copy_in(dst: *mut u8, src: u64, len: usize) -> usize {
    may_fault();
    if !is_user(src, len) {
        return len;
    }
    // SAFETY: the caller's `dst`; the source is in the user half, faults are listed.
    unsafe { uaccess_copy(dst as u64, src, len) }
}

/// Bytes not copied.
///
/// # Safety
/// `src` has `len` readable bytes.
#[inline]
pub unsafe fn copy_out(dst: u64, src: *const u8, len: usize) -> usize {
    may_fault();
    if !is_user(dst, len) {
        return len;
    }
    // SAFETY: the caller's `src`; the destination is in the user half, faults are listed.
    unsafe { uaccess_copy(dst, src as u64, len) }
}

/// As [`copy_in`], without serving faults: never sleeps, so it may run under locks.
///
/// # Safety
/// `dst` has `len` writable bytes.
pub unsafe fn copy_in_nofault(dst: *mut u8, src: u64, len: usize) -> usize {
    // SAFETY: the caller's promise.
    percpu::nofault(|| unsafe { copy_in(dst, src, len) })
}

/// Copies what a device has behind a user's page, in words of 4 bytes, which is what registers take; faults are not served.
/// Whether all of it could be read.
///
/// # Safety
/// `dst` has `len` writable bytes.
pub unsafe fn copy_registers_nofault(dst: *mut u8, src: u64, len: usize) -> bool {
    debug_assert!(src.is_multiple_of(4) && len.is_multiple_of(4));
    // SAFETY: the caller's `dst`; the source is in the user half, faults are listed.
    is_user(src, len) && percpu::nofault(|| unsafe { uaccess_copy4(dst as u64, src, len / 4) }) == 0
}

/// As [`copy_out`], without serving faults.
///
/// # Safety
/// `src` has `len` readable bytes.
pub unsafe fn copy_out_nofault(dst: u64, src: *const u8, len: usize) -> usize {
    // SAFETY: the caller's promise.
    percpu::nofault(|| unsafe { copy_out(dst, src, len) })
}

/// Copies between places of the kernel half that may not be mapped, a byte at a time; bytes not copied.
///
/// # Safety
/// Where they are mapped, the `len` bytes at `src` may be read and those at `dst` written.
pub unsafe fn copy_kernel_nofault(dst: u64, src: u64, len: usize) -> usize {
    debug_assert!(!is_user(dst, 0) && !is_user(src, 0));
    // SAFETY: the caller's promise; faults are listed.
    unsafe { kernel_copy(dst, src, len) }
}

/// Whether the instruction at `rip` may miss in the kernel half.
pub(super) fn may_miss(rip: u64) -> bool {
    rip == &raw const kernel_copy_at as u64
}

/// Reads a value.
#[inline]
pub fn get_user<T: Pod>(src: u64) -> Result<T, Errno> {
    may_fault();
    if !is_user(src, size_of::<T>()) {
        return Err(Errno::EFAULT);
    }
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: in the user half, faults are listed; `value` is filled before it is taken, and any bits are a `T`.
    unsafe {
        let got = match size_of::<T>() {
            1 => uaccess_get1(src),
            4 => uaccess_get4(src),
            8 => uaccess_get8(src),
            n => {
                if uaccess_copy(value.as_mut_ptr() as u64, src, n) != 0 {
                    return Err(Errno::EFAULT);
                }
                return Ok(value.assume_init());
            }
        };
        if got.error != 0 {
            return Err(Errno::EFAULT);
        }
        value
            .as_mut_ptr()
            .cast::<u8>()
            .copy_from_nonoverlapping((&raw const got.value).cast(), size_of::<T>());
        Ok(value.assume_init())
    }
}

/// Writes a value.
#[inline]
pub fn put_user<T: Pod>(dst: u64, v: &T) -> Result<(), Errno> {
    may_fault();
    if !is_user(dst, size_of::<T>()) {
        return Err(Errno::EFAULT);
    }
    let p: *const T = v;
    // SAFETY: in the user half, faults are listed; `v` has that many bytes, without padding.
    let failed = unsafe {
        match size_of::<T>() {
            1 => uaccess_put1(dst, u64::from(p.cast::<u8>().read())) != 0,
            4 => uaccess_put4(dst, u64::from(p.cast::<u32>().read_unaligned())) != 0,
            8 => uaccess_put8(dst, p.cast::<u64>().read_unaligned()) != 0,
            n => uaccess_copy(dst, p as u64, n) != 0,
        }
    };
    if failed { Err(Errno::EFAULT) } else { Ok(()) }
}

/// Zeroes; bytes not cleared.
pub fn clear_user(dst: u64, len: usize) -> usize {
    may_fault();
    if !is_user(dst, len) {
        return len;
    }
    // SAFETY: in the user half, faults are listed.
    unsafe { uaccess_clear(dst, len) }
}

/// A NUL-terminated string without its NUL; ENAMETOOLONG when there is none in `max` bytes.
pub fn read_cstr(src: u64, max: usize) -> Result<Vec<u8>, Errno> {
    let mut out = Vec::new();
    let mut at = src;
    let mut chunk = [0u8; 128];
    while out.len() < max {
        // Not over a page's end: the next page may be missing when the string ends before.
        let len = chunk
            .len()
            .min(max - out.len())
            .min(4096 - (at as usize & 4095));
        copy_from_user(&mut chunk[..len], at)?;
        let end = chunk[..len].iter().position(|b| *b == 0);
        let take = end.unwrap_or(len);
        out.try_reserve(take).map_err(|_| Errno::ENOMEM)?;
        out.extend_from_slice(&chunk[..take]);
        if end.is_some() {
            return Ok(out);
        }
        at += len as u64;
    }
    Err(Errno::ENAMETOOLONG)
}

/// Reads a futex word.
#[inline]
pub fn user_load_u32(addr: u64) -> Result<u32, Errno> {
    get_user::<u32>(addr)
}

/// As `user_load_u32`, but EFAULT where a fault would be needed; does not sleep.
#[inline]
pub fn user_load_u32_nofault(addr: u64) -> Result<u32, Errno> {
    percpu::nofault(|| get_user::<u32>(addr))
}

/// Stores `new` where `old` is, in one step; the value found.
pub fn user_cmpxchg_u32(addr: u64, old: u32, new: u32) -> Result<u32, Errno> {
    may_fault();
    if !is_user(addr, 4) {
        return Err(Errno::EFAULT);
    }
    // SAFETY: in the user half, faults are listed.
    let got = unsafe { uaccess_cmpxchg4(addr, old, new) };
    if got.error != 0 {
        Err(Errno::EFAULT)
    } else {
        Ok(got.value as u32)
    }
}

/// As `user_cmpxchg_u32`, but EFAULT where a fault would be needed; does not sleep.
pub fn user_cmpxchg_u32_nofault(addr: u64, old: u32, new: u32) -> Result<u32, Errno> {
    percpu::nofault(|| user_cmpxchg_u32(addr, old, new))
}
