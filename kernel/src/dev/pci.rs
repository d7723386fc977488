//! PCI: configuration space (by the two ports that every PC has), capabilities, registers, MSI-X.
//!
//! Addresses of registers are the firmware's; a function that it gave none is left alone. How many there are the function says: what is
//! beyond them is somebody else's.

use core::fmt;
use mm::table::Caching;
use x86_64::instructions::port::Port;

use crate::memory::{direct, frames, kspace, ram_between};
use crate::sync::IrqLock;

/// The two configuration ports, used as a pair.
static PORTS: IrqLock<()> = IrqLock::new(());

const COMMAND: u8 = 0x04;
const STATUS: u8 = 0x06;
const CLASS: u8 = 0x08;
const HEADER: u8 = 0x0e;
const BARS: u8 = 0x10;
const SECONDARY_BUS: u8 = 0x19;
const CAPABILITIES: u8 = 0x34;
/// The interrupt line, and which of the function's four pins is on it.
const LINE: u8 = 0x3c;
/// `COMMAND`: answer to memory addresses, use the bus itself, no interrupt line.
const MEMORY: u16 = 1 << 1;
const MASTER: u16 = 1 << 2;
const NO_LINE: u16 = 1 << 10;
const HAS_CAPABILITIES: u16 = 1 << 4;
const MSI: u8 = 0x05;
pub const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;
/// Message control of the older kind: on; its address has 64 bits.
const MSI_ON: u16 = 1;
const MSI_64: u16 = 1 << 7;
/// Message control: on; and all vectors masked.
const MSIX_ON: u16 = 1 << 15;
const MSIX_MASKED: u16 = 1 << 14;
/// Where a write of a vector's number interrupts CPU 0 (Intel SDM 3A, 11.11).
const MESSAGE: u64 = 0xfee0_0000;

/// A device's function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Function {
    bus: u8,
    device: u8,
    function: u8,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// A window of memory addresses where a function answers.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub first: u64,
    pub len: u64,
}

/// Windows of a function, and of a bridge, by its header: there, other registers follow.
const WINDOWS: u8 = 6;
const BRIDGE_WINDOWS: u8 = 2;
const BRIDGE_HEADER: u8 = 1;
/// A bridge's class: from PCI to PCI.
const BRIDGE: u32 = 0x0604;
/// What a bridge is, if it has the `EXPRESS` capability: a root port, a switch's port upwards, one downwards.
const FORWARDS: [u16; 3] = [4, 5, 6];

/// Calls `found` for each function of the machine.
pub fn each(mut found: impl FnMut(Function)) {
    // Buses to look at, bit by bit; each is looked at once.
    let mut left = [1u64, 0, 0, 0];
    let mut seen = [0u64; 4];
    while let Some(word) = (0..4).find(|&w| left[w] != 0) {
        let bit = left[word].trailing_zeros();
        left[word] &= left[word] - 1;
        seen[word] |= 1 << bit;
        let bus = (64 * word as u32 + bit) as u8;
        for device in 0..32 {
            let first = Function {
                bus,
                device,
                function: 0,
            };
            if first.id().0 == 0xffff {
                continue;
            }
            let many = first.read8(HEADER) & 0x80 != 0;
            for function in 0..if many { 8 } else { 1 } {
                let f = Function { function, ..first };
                if f.id().0 == 0xffff {
                    continue;
                }
                if let Some(behind) = f.behind() {
                    let behind = behind as usize;
                    if seen[behind / 64] >> (behind % 64) & 1 == 0 {
                        left[behind / 64] |= 1 << (behind % 64);
                    }
                }
                found(f);
            }
        }
    }
}

impl Function {
    /// Vendor and device.
    pub fn id(self) -> (u16, u16) {
        let id = self.read32(0);
        (id as u16, (id >> 16) as u16)
    }

    /// Class, subclass and programming interface.
    pub fn class(self) -> u32 {
        self.read32(CLASS) >> 8
    }

    /// The bus behind a bridge.
    pub fn behind(self) -> Option<u8> {
        let is_bridge = self.class() >> 8 == BRIDGE;
        is_bridge.then(|| self.read8(SECONDARY_BUS))
    }

    /// The name that its requests bear.
    pub fn requester(self) -> u16 {
        u16::from(self.bus) << 8 | u16::from(self.device) << 3 | u16::from(self.function)
    }

    /// Whose requests bear `name`.
    pub fn of_requester(name: u16) -> Function {
        Function {
            bus: (name >> 8) as u8,
            device: (name >> 3 & 31) as u8,
            function: (name & 7) as u8,
        }
    }

    /// The function at the end of a path: from `bus` by device and function, and again from the bus behind that.
    pub fn at(bus: u8, path: &[[u8; 2]]) -> Option<Function> {
        let step = |from: Option<Function>, &[device, function]: &[u8; 2]| Function {
            bus: from.map_or(bus, |bridge| bridge.read8(SECONDARY_BUS)),
            device: device & 31,
            function: function & 7,
        };
        path.iter().fold(None, |from, next| Some(step(from, next)))
    }

    /// The bridges above it, the nearest first.
    pub fn above(self) -> impl Iterator<Item = Function> {
        core::iter::successors(Some(self), |below| {
            let mut bridge = None;
            each(|f| {
                // Buses are numbered downwards; else this might not end.
                if f.bus < below.bus && f.behind() == Some(below.bus) {
                    bridge = Some(f);
                }
            });
            bridge
        })
        .skip(1)
    }

    /// Whether it leaves the names of requests from below alone.
    pub fn forwards_names(self) -> bool {
        let express = self.capabilities().find(|&(id, _)| id == EXPRESS);
        express.is_some_and(|(_, at)| FORWARDS.contains(&(self.read16(at + 2) >> 4 & 15)))
    }

    fn select(self, offset: u8) {
        let at = 1 << 31
            | u32::from(self.bus) << 16
            | u32::from(self.device) << 11
            | u32::from(self.function) << 8
            | u32::from(offset & !3);
        // SAFETY: the address port; nothing happens before the data port is used, and `PORTS` is held.
        unsafe { Port::new(0xcf8).write(at) };
    }

    pub fn read32(self, offset: u8) -> u32 {
        let _pair = PORTS.lock();
        self.select(offset);
        // SAFETY: reading configuration space of functions that we know changes nothing.
        unsafe { Port::new(0xcfc).read() }
    }

    pub fn read16(self, offset: u8) -> u16 {
        (self.read32(offset) >> (8 * (offset & 2))) as u16
    }

    pub fn read8(self, offset: u8) -> u8 {
        (self.read32(offset) >> (8 * (offset & 3))) as u8
    }

    fn write32(self, offset: u8, value: u32) {
        let _pair = PORTS.lock();
        self.select(offset);
        // SAFETY: as `write16`.
        unsafe { Port::new(0xcfc).write(value) };
    }

    pub(super) fn write16(self, offset: u8, value: u16) {
        let _pair = PORTS.lock();
        self.select(offset);
        // SAFETY: a control word or an address of ours: `enable`, `window`, `Msix` and `hotplug` say what it does.
        unsafe { Port::new(0xcfc + u16::from(offset & 2)).write(value) };
    }

    /// Capabilities: identifier and offset, those with at least 20 bytes to the end of the space. A list that runs in circles ends.
    pub fn capabilities(self) -> impl Iterator<Item = (u8, u8)> {
        let listed = self.read16(STATUS) & HAS_CAPABILITIES != 0;
        let mut at = if listed {
            self.read8(CAPABILITIES) & !3
        } else {
            0
        };
        (0..48)
            .map_while(move |_| {
                let here = at;
                if here < 0x40 {
                    return None;
                }
                let word = self.read16(here);
                at = (word >> 8) as u8 & !3;
                Some((word as u8, here))
            })
            .filter(|&(_, at)| at <= 0xff - 19)
    }

    /// A memory window. `None`: it is none, nobody has placed it, or it is not what a window can be: one that is RAM, for instance. Its
    /// driver does not use it yet: to tell its size it is moved, and so does not answer meanwhile.
    pub fn window(self, window: u8) -> Option<Window> {
        let windows = match self.read8(HEADER) & 0x7f {
            BRIDGE_HEADER => BRIDGE_WINDOWS,
            _ => WINDOWS,
        };
        if window >= windows {
            return None;
        }
        let at = BARS + 4 * window;
        let low = self.read32(at);
        let wide = match low & 7 {
            0 => false,
            4 if window + 1 < windows => true,
            _ => return None,
        };
        let high = if wide { self.read32(at + 4) } else { 0 };
        let command = self.read16(COMMAND);
        self.write16(COMMAND, command & !MEMORY);
        self.write32(at, !0);
        let mut fixed = u64::from(self.read32(at) & !15) | !0 << 32;
        self.write32(at, low);
        if wide {
            self.write32(at + 4, !0);
            fixed = fixed & 0xffff_ffff | u64::from(self.read32(at + 4)) << 32;
            self.write32(at + 4, high);
        }
        self.write16(COMMAND, command);
        let first = u64::from(low & !15) | u64::from(high) << 32;
        let len = fixed.wrapping_neg();
        let end = first.checked_add(len).filter(|end| *end <= MAX_PHYS);
        let sound = len.is_power_of_two() && first != 0 && first & (len - 1) == 0;
        end.filter(|&end| sound && ram_between(first, end) == 0)
            .map(|_| Window { first, len })
    }

    /// Maps `len` bytes at `offset` of a memory window; no device of ours has a megabyte of registers.
    pub fn registers(self, window: u8, offset: u32, len: u32) -> Option<Registers> {
        if len == 0 || len > 1 << 20 {
            return None;
        }
        let window = self.window(window)?;
        let (offset, bytes) = (u64::from(offset), u64::from(len));
        (offset + bytes <= window.len).then(|| Registers {
            base: kspace::map_device(window.first + offset, bytes, Caching::Off),
            len,
        })
    }

    /// Maps at most `most` bytes of a window that is memory; where they are, and where they are mapped.
    pub fn memory(self, window: u8, most: u64) -> Option<(Window, u64)> {
        let mut window = self.window(window)?;
        window.len = window.len.min(most);
        let base = kspace::map_device(window.first, window.len, Caching::Combining);
        Some((window, base))
    }

    /// It may not read or write memory any more, nor interrupt.
    pub fn leave_the_bus(self) {
        self.write16(COMMAND, self.read16(COMMAND) & !MASTER | NO_LINE);
    }

    /// It may not use an interrupt line.
    pub fn leave_the_line(self) {
        self.write16(COMMAND, self.read16(COMMAND) | NO_LINE);
    }

    /// Lets it answer and use the bus; its interrupts are messages from now on.
    pub fn enable(self) {
        self.write16(COMMAND, self.read16(COMMAND) | MEMORY | MASTER | NO_LINE);
    }

    /// Its one interrupt message of the older kind: interrupts `cpu` at `vector`.
    pub fn msi(self, cpu: usize, vector: u8) -> Option<()> {
        let (_, at) = self.capabilities().find(|&(id, _)| id == MSI)?;
        let control = self.read16(at + 2);
        self.write32(at + 4, message(cpu) as u32);
        let data = if control & MSI_64 != 0 {
            self.write32(at + 8, 0);
            at + 12
        } else {
            at + 8
        };
        self.write16(data, u16::from(vector));
        // One message, though it might have several.
        self.write16(at + 2, control & !(7 << 4) | MSI_ON);
        Some(())
    }

    /// Lets it use the interrupt line that the firmware gave it: which.
    pub fn line(self) -> Option<u8> {
        let line = self.read16(LINE);
        let (irq, pin) = (line as u8, line >> 8);
        if pin == 0 || !(1..16).contains(&irq) {
            return None;
        }
        self.write16(COMMAND, self.read16(COMMAND) & !NO_LINE);
        Some(irq)
    }

    /// Its interrupt messages, switched on, none of them routed.
    pub fn msix(self) -> Option<Msix> {
        let (_, at) = self.capabilities().find(|&(id, _)| id == MSIX)?;
        let control = self.read16(at + 2);
        let entries = u32::from(control & 0x7ff) + 1;
        let table = self.read32(at + 4);
        let table = self.registers(table as u8 & 7, table & !7, 16 * entries)?;
        for entry in 0..entries {
            table.write32(16 * entry + 12, 1);
        }
        self.write16(at + 2, control & !MSIX_MASKED | MSIX_ON);
        Some(Msix { table, entries })
    }
}

/// Physical addresses have at most 52 bits.
const MAX_PHYS: u64 = 1 << 52;

/// Where to write a vector's number for `cpu`.
pub fn message(cpu: usize) -> u64 {
    MESSAGE | u64::from(crate::arch::apic_id(cpu)) << 12
}

/// A function's interrupt messages.
pub struct Msix {
    table: Registers,
    entries: u32,
}

impl Msix {
    /// Message `entry` interrupts `cpu` at `vector`. `None`: the function has fewer.
    pub fn route(&self, entry: u16, cpu: usize, vector: u8) -> Option<()> {
        let at = 16 * u32::from(entry);
        if u32::from(entry) >= self.entries {
            return None;
        }
        self.table.write32(at, message(cpu) as u32);
        self.table.write32(at + 4, 0);
        self.table.write32(at + 8, u32::from(vector));
        self.table.write32(at + 12, 0);
        Some(())
    }
}

/// Mapped registers of a device. An access beyond them is a mistake of ours, and panics.
pub struct Registers {
    base: u64,
    len: u32,
}

macro_rules! access {
    ($read:ident, $write:ident, $ty:ty) => {
        #[inline]
        pub fn $read(&self, offset: u32) -> $ty {
            // SAFETY: mapped for ever, and inside (`at`).
            unsafe { (self.at(offset, size_of::<$ty>()) as *const $ty).read_volatile() }
        }
        #[inline]
        pub fn $write(&self, offset: u32, value: $ty) {
            // SAFETY: as above. What a device does with memory is said to it by addresses, which its driver answers for.
            unsafe { (self.at(offset, size_of::<$ty>()) as *mut $ty).write_volatile(value) }
        }
    };
}

#[expect(clippy::len_without_is_empty, reason = "none is empty")]
impl Registers {
    /// Maps `len` bytes at a physical address that the firmware gave.
    pub fn map(first: u64, len: u32) -> Option<Registers> {
        let end = first.checked_add(u64::from(len))?;
        (first.is_multiple_of(4096) && end <= MAX_PHYS).then(|| Registers {
            base: kspace::map_device(first, u64::from(len), Caching::Off),
            len,
        })
    }

    fn at(&self, offset: u32, size: usize) -> u64 {
        assert!(offset as usize + size <= self.len as usize);
        self.base + u64::from(offset)
    }
    pub fn len(&self) -> u32 {
        self.len
    }
    /// A page of memory that stands for registers, so that a test can be the device. It stays.
    pub fn pretended() -> Option<Registers> {
        Some(Registers {
            base: direct(frames::alloc_zeroed()?),
            len: 4096,
        })
    }
    /// `len` of the registers, from `offset` on.
    pub fn part(&self, offset: u32, len: u32) -> Registers {
        assert!(u64::from(offset) + u64::from(len) <= u64::from(self.len));
        Registers {
            base: self.base + u64::from(offset),
            len,
        }
    }
    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
    access!(read64, write64, u64);
    /// Two halves, the lower first.
    pub fn write_halves(&self, offset: u32, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }
}
