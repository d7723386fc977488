//! What QEMU tells: `hvm_start_info`, its module list (the initrd) and its memory map.

use crate::fail::{Failure, stop};
use crate::frames::FRAME;

const MAGIC: u32 = 0x336e_c578;
const MAX_REGIONS: usize = 128;
const FOUR_GIB: u64 = 1 << 32;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_len: u32,
    reserved: u32,
}

#[repr(C)]
struct Module {
    start: u64,
    len: u64,
    command_line: u64,
    reserved: u64,
}

/// One row of the memory map, in E820 terms.
#[repr(C)]
pub struct MapEntry {
    pub start: u64,
    pub len: u64,
    pub kind: u32,
    reserved: u32,
}

impl MapEntry {
    pub fn is_ram(&self) -> bool {
        self.kind == 1
    }

    /// RAM, or tables that the firmware keeps in RAM.
    fn is_memory(&self) -> bool {
        matches!(self.kind, 1 | 3 | 4)
    }

    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// The machine as the firmware left it.
pub struct Machine {
    pub map: &'static [MapEntry],
    pub ramdisk: &'static [u8],
    pub rsdp: Option<u64>,
    /// Where the physical memory map ends: at least 4 GiB, because devices live below.
    pub end_of_memory: u64,
}

impl Machine {
    /// Physical start and length of the archive.
    pub fn ramdisk_range(&self) -> (u64, u64) {
        (self.ramdisk.as_ptr() as u64, self.ramdisk.len() as u64)
    }
}

/// Reads what is at `address`, stopping where it is not what PVH promises.
pub fn read(address: u64) -> Machine {
    let bad = |why: &str| -> ! {
        stop(
            Failure::BadBootInformation,
            format_args!("bad boot information: {why}"),
        )
    };
    let list = |start: u64, count: u32, size: usize| {
        let in_reach =
            start != 0 && start.is_multiple_of(8) && start + count as u64 * size as u64 <= FOUR_GIB;
        (count != 0 && in_reach).then_some(start)
    };
    if list(address, 1, size_of::<StartInfo>()).is_none() {
        bad("no start info");
    }
    // SAFETY: aligned and inside the identity map; PVH leaves the structure there and nothing writes to it.
    let info = unsafe { &*(address as *const StartInfo) };
    if info.magic != MAGIC {
        bad("wrong magic number");
    }
    if info.version < 1 {
        bad("no memory map");
    }
    if info.modules == 0 {
        stop(
            Failure::NoKernel,
            format_args!("no archive (QEMU's -initrd)"),
        );
    }
    let Some(modules) = list(info.module_list, info.modules, size_of::<Module>()) else {
        bad("module list out of reach");
    };
    let map = match list(info.memory_map, info.memory_map_len, size_of::<MapEntry>()) {
        Some(map) if info.memory_map_len as usize <= MAX_REGIONS => map,
        _ => bad("memory map out of reach"),
    };
    // SAFETY: aligned and inside the identity map (`list`); frames are taken from above 1 MiB only, where PVH's
    // structures are not.
    let (module, map) = unsafe {
        let map = core::slice::from_raw_parts(map as *const MapEntry, info.memory_map_len as usize);
        (&*(modules as *const Module), map)
    };
    let module_end = module.start.saturating_add(module.len);
    let in_ram = |entry: &MapEntry| {
        entry.is_ram() && entry.start <= module.start && module_end <= entry.end()
    };
    if module.start < 1 << 20 || module_end > FOUR_GIB || !map.iter().any(in_ram) {
        bad("archive out of reach");
    }
    let end = map
        .iter()
        .filter(|e| e.is_memory())
        .map(MapEntry::end)
        .max()
        .unwrap_or(0);
    Machine {
        map,
        // SAFETY: in RAM and inside the identity map, checked above; nobody writes there (`Frames` stays clear of it).
        ramdisk: unsafe {
            core::slice::from_raw_parts(module.start as *const u8, module.len as usize)
        },
        rsdp: (info.rsdp != 0).then_some(info.rsdp),
        end_of_memory: end.max(FOUR_GIB).next_multiple_of(FRAME),
    }
}
