//! The end of the kernel: the other CPUs stopped, a report on the log channel, QEMU left with the panic code.
//!
//! The backtrace is the stack's words that lie in the kernel's text just after a call: no frame pointers, so
//! some may be leftovers of earlier calls. Names come from the symbol table of the kernel's own ELF file in
//! the archive.

use core::fmt::{self, Write};
use core::panic::PanicInfo;

use crate::arch::{self, TrapFrame, serial};
use crate::memory::{self, kspace};

const MAX_LINES: usize = 24;

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
}

/// Writes to the log channel: in `mode=exec` the console belongs to the program.
struct Report;

impl Write for Report {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        serial::write_log(s.as_bytes());
        Ok(())
    }
}

/// Stops everybody else and makes the channels ours. A second CPU that fails stays here; a CPU that fails
/// while it reports ends the machine with what has been said.
fn begin() {
    mm::sync::lockdep::disable();
    arch::irq_disable();
    match arch::stop_others() {
        Ok(()) => {}
        Err(cpu) if cpu == arch::cpu_id() => {
            serial::write_log(b"\nthe report failed\n");
            arch::power_off(arch::EXIT_PANIC)
        }
        Err(_) => arch::stop(),
    }
    // SAFETY: the others are stopped, and this CPU does not come back.
    unsafe { serial::force_unlock() };
}

fn who(out: &mut Report) {
    let _ = write!(out, "cpu {}, ", arch::cpu_id());
    crate::task::describe_current(out);
    let _ = writeln!(out);
}

/// Reports and ends the machine.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    let frame = arch::frame::here();
    begin();
    let out = &mut Report;
    let _ = writeln!(out, "\nkernel panic: {}", info.message());
    if let Some(at) = info.location() {
        let _ = writeln!(out, "at {at}");
    }
    who(out);
    registers(out, &frame);
    backtrace(out, frame.rsp);
    arch::power_off(arch::EXIT_PANIC)
}

/// An exception in the kernel that nothing explains.
pub fn exception(frame: &TrapFrame, vector: u64, err: u64, cr2: u64) -> ! {
    begin();
    let out = &mut Report;
    let name = NAMES.get(vector as usize).copied().unwrap_or("exception");
    let _ = writeln!(
        out,
        "\nkernel panic: {name} (vector {vector}, error {err:#x}, cr2 {cr2:#x})"
    );
    if vector == 14 {
        let _ = writeln!(
            out,
            "{} of {cr2:#x}: {}",
            if err & 16 != 0 {
                "execution"
            } else if err & 2 != 0 {
                "write"
            } else {
                "read"
            },
            if kspace::guard_of(cr2).is_some() {
                "the guard below a kernel stack"
            } else if err & 8 != 0 {
                "a page table has a reserved bit set"
            } else if cr2 < 1 << 47 {
                "user memory, touched outside of uaccess"
            } else if err & 1 != 0 {
                "protected"
            } else {
                "nothing is mapped there"
            }
        );
    }
    who(out);
    registers(out, frame);
    backtrace(out, frame.rsp);
    arch::power_off(arch::EXIT_PANIC)
}

/// A double fault: nearly always a kernel stack that ran into its guard.
pub fn double_fault(frame: &TrapFrame, cr2: u64) -> ! {
    begin();
    let out = &mut Report;
    let overflow = [cr2, frame.rsp.wrapping_sub(8)]
        .into_iter()
        .find_map(|at| kspace::guard_of(at).map(|bottom| (at, bottom)));
    let _ = match overflow {
        Some((at, bottom)) => writeln!(
            out,
            "\nkernel panic: kernel stack overflow: the stack from {bottom:#x} ran into its guard at {at:#x}"
        ),
        None => writeln!(out, "\nkernel panic: double fault (cr2 {cr2:#x})"),
    };
    who(out);
    registers(out, frame);
    backtrace(out, frame.rsp);
    arch::power_off(arch::EXIT_PANIC)
}

const NAMES: [&str; 22] = [
    "divide error",
    "debug",
    "NMI",
    "breakpoint",
    "overflow",
    "bound",
    "invalid opcode",
    "no FPU",
    "double fault",
    "overrun",
    "invalid TSS",
    "segment not present",
    "stack fault",
    "general protection",
    "page fault",
    "reserved",
    "x87 error",
    "alignment check",
    "machine check",
    "SIMD error",
    "virtualization",
    "control protection",
];

fn registers(out: &mut Report, f: &TrapFrame) {
    let _ = writeln!(
        out,
        "rip {:016x} rsp {:016x} flags {:x} cs {:x} cr3 {:x}",
        f.rip,
        f.rsp,
        f.rflags,
        f.cs,
        arch::cr3()
    );
    let rows = [
        [
            ("rax", f.rax),
            ("rbx", f.rbx),
            ("rcx", f.rcx),
            ("rdx", f.rdx),
        ],
        [
            ("rsi", f.rsi),
            ("rdi", f.rdi),
            ("rbp", f.rbp),
            ("r8 ", f.r8),
        ],
        [
            ("r9 ", f.r9),
            ("r10", f.r10),
            ("r11", f.r11),
            ("r12", f.r12),
        ],
        [
            ("r13", f.r13),
            ("r14", f.r14),
            ("r15", f.r15),
            ("ss ", f.ss),
        ],
    ];
    for row in rows {
        for (name, value) in row {
            let _ = write!(out, "{name} {value:016x} ");
        }
        let _ = writeln!(out);
    }
    let _ = write!(out, "at ");
    symbol(out, f.rip);
    let _ = writeln!(out);
}

fn in_text(address: u64) -> bool {
    (&raw const __text_start as u64..&raw const __text_end as u64).contains(&address)
}

/// Whether a call instruction ends at `address`.
fn follows_call(address: u64) -> bool {
    if !in_text(address) || !in_text(address - 8) {
        return false;
    }
    // SAFETY: eight bytes of mapped text.
    let before = unsafe { core::slice::from_raw_parts((address - 8) as *const u8, 8) };
    before[3] == 0xe8 || (1..7).any(|i| before[i] == 0xff && before[i + 1] >> 3 & 7 == 2)
}

/// Prints the calls whose return addresses lie above `rsp`; one that follows itself is printed once and counted.
fn backtrace(out: &mut Report, rsp: u64) {
    let _ = writeln!(out, "backtrace:");
    let mut at = rsp & !7;
    // A stack pointer in the guard: what is above it.
    if let Some(bottom) = kspace::guard_of(at) {
        at = bottom;
    }
    let end = kspace::top_of(at).unwrap_or(at + (64 << 10));
    let (mut lines, mut last, mut times) = (0, 0, 0);
    while at < end && lines < MAX_LINES && kspace::translate(at).is_some() {
        // SAFETY: mapped, as `translate` says.
        let word = unsafe { (at as *const u64).read_volatile() };
        at += 8;
        if !follows_call(word) {
            continue;
        }
        if word == last {
            times += 1;
            continue;
        }
        repeated(out, times);
        let _ = write!(out, "  {word:016x} ");
        symbol(out, word - 1);
        let _ = writeln!(out);
        (lines, last, times) = (lines + 1, word, 0);
    }
    repeated(out, times);
}

fn repeated(out: &mut Report, times: u32) {
    if times > 0 {
        let _ = writeln!(out, "  ... and {times} times more");
    }
}

/// Prints the name of the function that `address` is in.
fn symbol(out: &mut dyn Write, address: u64) {
    match memory::boot_file("boot/kernel").and_then(|elf| lookup(elf, address)) {
        Some((name, offset)) => {
            demangle(out, name);
            let _ = write!(out, "+{offset:#x}");
        }
        None => {
            let _ = write!(out, "{address:#x}");
        }
    }
}

fn word(bytes: &[u8], at: usize, len: usize) -> Option<usize> {
    let mut v = [0; 8];
    v[..len].copy_from_slice(bytes.get(at..at.checked_add(len)?)?);
    Some(u64::from_le_bytes(v) as usize)
}

/// The last symbol at or before `address`, and how far.
fn lookup(elf: &[u8], address: u64) -> Option<(&str, u64)> {
    let (table, size, count) = (
        word(elf, 0x28, 8)?,
        word(elf, 0x3a, 2)?,
        word(elf, 0x3c, 2)?,
    );
    let section = |i: usize| elf.get(table + i * size..table + (i + 1) * size);
    for i in 0..count {
        let header = section(i)?;
        if word(header, 4, 4)? != 2 {
            continue;
        }
        let symbols = elf
            .get(word(header, 0x18, 8)?..)?
            .get(..word(header, 0x20, 8)?)?;
        let strings = section(word(header, 0x28, 4)?)?;
        let strings = elf.get(word(strings, 0x18, 8)?..)?;
        let mut best: Option<(usize, u64)> = None;
        for symbol in symbols.chunks_exact(24) {
            let value = word(symbol, 8, 8)? as u64;
            let function = symbol[4] & 15 <= 2;
            if function
                && value <= address
                && in_text(value)
                && best.is_none_or(|(_, v)| v <= value)
            {
                best = Some((word(symbol, 0, 4)?, value));
            }
        }
        let (name, value) = best?;
        let name = strings.get(name..)?;
        let end = name.iter().position(|b| *b == 0)?;
        return Some((core::str::from_utf8(&name[..end]).ok()?, address - value));
    }
    None
}

/// The path in a mangled name (legacy or v0): its identifiers, joined. Enough to read a backtrace.
fn demangle(out: &mut dyn Write, name: &str) {
    let legacy = name.starts_with("_ZN");
    if !legacy && !name.starts_with("_R") {
        let _ = out.write_str(name);
        return;
    }
    let bytes = name.as_bytes();
    let mut at = 2;
    let mut first = true;
    while at < bytes.len() {
        // v0: "s", base 62, "_" tells crates and closures apart.
        if !legacy && bytes[at] == b's' {
            let end = bytes[at + 1..]
                .iter()
                .position(|b| !b.is_ascii_alphanumeric());
            if let Some(end) = end.map(|n| at + 1 + n)
                && bytes[end] == b'_'
                && bytes.get(end + 1).is_some_and(u8::is_ascii_digit)
            {
                at = end + 1;
            }
        }
        if !bytes[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let digits = bytes[at..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        let len: usize = name[at..at + digits].parse().unwrap_or(0);
        at += digits;
        if !legacy && bytes.get(at) == Some(&b'_') {
            at += 1;
        }
        let Some(part) = name
            .get(at..at.saturating_add(len))
            .filter(|p| !p.is_empty())
        else {
            continue;
        };
        at += len;
        let hash = legacy && len == 17 && part.starts_with('h') && bytes.get(at) == Some(&b'E');
        if hash {
            break;
        }
        let _ = write!(out, "{}{part}", if first { "" } else { "::" });
        first = false;
    }
}
