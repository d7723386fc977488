//! What cpuinfo says of the CPU.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;
use core::arch::x86_64::{__cpuid, __cpuid_count};

/// What CPUID says of this CPU.
pub struct CpuIdentity {
    pub vendor: String,
    pub name: String,
    pub family: u32,
    pub model: u32,
    pub stepping: u32,
    pub physical_bits: u32,
    pub flags: String,
}

/// Bits of CPUID leaf 1 (EDX, then ECX) and leaf 7 (EBX, then ECX) with Linux's names.
const FEATURES: [(usize, u32, &str); 44] = [
    (0, 0, "fpu"),
    (0, 3, "pse"),
    (0, 4, "tsc"),
    (0, 5, "msr"),
    (0, 6, "pae"),
    (0, 8, "cx8"),
    (0, 9, "apic"),
    (0, 13, "pge"),
    (0, 15, "cmov"),
    (0, 16, "pat"),
    (0, 19, "clflush"),
    (0, 23, "mmx"),
    (0, 24, "fxsr"),
    (0, 25, "sse"),
    (0, 26, "sse2"),
    (1, 0, "pni"),
    (1, 1, "pclmulqdq"),
    (1, 9, "ssse3"),
    (1, 12, "fma"),
    (1, 13, "cx16"),
    (1, 17, "pcid"),
    (1, 19, "sse4_1"),
    (1, 20, "sse4_2"),
    (1, 21, "x2apic"),
    (1, 22, "movbe"),
    (1, 23, "popcnt"),
    (1, 25, "aes"),
    (1, 26, "xsave"),
    (1, 28, "avx"),
    (1, 29, "f16c"),
    (1, 30, "rdrand"),
    (1, 31, "hypervisor"),
    (2, 0, "fsgsbase"),
    (2, 3, "bmi1"),
    (2, 5, "avx2"),
    (2, 7, "smep"),
    (2, 8, "bmi2"),
    (2, 9, "erms"),
    (2, 10, "invpcid"),
    (2, 18, "rdseed"),
    (2, 19, "adx"),
    (2, 20, "smap"),
    (3, 3, "pku"),
    (3, 4, "ospke"),
];

/// Asks CPUID.
pub fn identity() -> CpuIdentity {
    let words = |w: &[u32]| -> String {
        let bytes: Vec<u8> = w
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .take_while(|b| *b != 0)
            .collect();
        String::from(String::from_utf8_lossy(&bytes).trim())
    };
    let zero = __cpuid(0);
    let one = __cpuid(1);
    let seven = if zero.eax >= 7 {
        let seven = __cpuid_count(7, 0);
        [seven.ebx, seven.ecx]
    } else {
        [0; 2]
    };
    let highest = __cpuid(0x8000_0000).eax;
    let name = if highest >= 0x8000_0004 {
        let parts = [0x8000_0002u32, 0x8000_0003, 0x8000_0004].map(__cpuid);
        words(
            &parts
                .iter()
                .flat_map(|p| [p.eax, p.ebx, p.ecx, p.edx])
                .collect::<Vec<_>>(),
        )
    } else {
        String::new()
    };
    let base = one.eax >> 8 & 0xf;
    let family = if base == 0xf {
        base + (one.eax >> 20 & 0xff)
    } else {
        base
    };
    let model = one.eax >> 4 & 0xf
        | if base == 6 || base == 0xf {
            one.eax >> 12 & 0xf0
        } else {
            0
        };
    let sets = [one.edx, one.ecx, seven[0], seven[1]];
    let mut flags = String::new();
    for (set, bit, name) in FEATURES {
        if sets[set] >> bit & 1 != 0 {
            flags.push(' ');
            flags.push_str(name);
        }
    }
    flags.push_str(" syscall nx lm");
    CpuIdentity {
        vendor: words(&[zero.ebx, zero.edx, zero.ecx]),
        name,
        family,
        model,
        stepping: one.eax & 0xf,
        physical_bits: crate::arch::physical_bits(),
        flags,
    }
}
