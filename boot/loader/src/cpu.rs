//! What the kernel cannot do without. Long mode and NX have been checked on the way here (`entry`).

use crate::fail::{Failure, stop};
use core::arch::x86_64::__cpuid;

/// Name and bit of CPUID leaf 1, EDX.
const BASIC: [(&str, u32); 9] = [
    ("FPU", 0),
    ("PSE", 3),
    ("TSC", 4),
    ("MSR", 5),
    ("APIC", 9),
    ("PGE", 13),
    ("CMOV", 15),
    ("FXSR", 24),
    ("SSE2", 26),
];
const SYSCALL: u32 = 11;

/// Stops with the missing feature's name.
pub fn require_features() {
    let basic = __cpuid(1).edx;
    for (name, bit) in BASIC {
        if basic & (1 << bit) == 0 {
            stop(Failure::NoFeature, format_args!("the CPU lacks {name}"));
        }
    }
    if __cpuid(0x8000_0001).edx & (1 << SYSCALL) == 0 {
        stop(Failure::NoFeature, format_args!("the CPU lacks SYSCALL"));
    }
}

/// Whether the tables may use 1 GiB leaves.
pub fn has_gib_pages() -> bool {
    __cpuid(0x8000_0001).edx & (1 << 26) != 0
}
