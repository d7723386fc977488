//! The kernel's ELF file: checked, its configuration read, its segments copied and mapped with their own permissions.

use crate::fail::{Failure, stop};
use crate::frames::{self, FRAME, Frames};
use crate::table::{Flags, KERNEL_HALF, Tables};
use bootloader_api::BootloaderConfig;
use bootloader_api::info::TlsTemplate;
use core::fmt::Arguments;
use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PF_W, PF_X, PT_LOAD, PT_TLS};
use elf::endian::LittleEndian;

/// A kernel that can be loaded.
pub struct Kernel {
    pub file: &'static [u8],
    pub config: BootloaderConfig,
    pub entry: u64,
    pub tls: Option<TlsTemplate>,
    elf: ElfBytes<'static, LittleEndian>,
}

fn bad(why: Arguments) -> ! {
    stop(Failure::BadKernel, format_args!("malformed kernel: {why}"))
}

/// Checks everything that does not need memory.
pub fn parse(file: &'static [u8]) -> Kernel {
    let elf = match ElfBytes::<LittleEndian>::minimal_parse(file) {
        Ok(elf) => elf,
        Err(error) => bad(format_args!("{error}")),
    };
    if elf.ehdr.class != elf::file::Class::ELF64 || elf.ehdr.e_machine != EM_X86_64 {
        bad(format_args!("not for x86-64"));
    }
    if elf.ehdr.e_type != ET_EXEC {
        bad(format_args!("not linked at a fixed address"));
    }
    let config = match elf.section_header_by_name(".bootloader-config") {
        Ok(Some(header)) => match elf.section_data(&header) {
            Ok((bytes, None)) => BootloaderConfig::deserialize(bytes),
            _ => bad(format_args!(".bootloader-config lies outside the file")),
        },
        _ => bad(format_args!("no .bootloader-config section")),
    };
    let config = match config {
        Ok(config) => config,
        Err(why) => bad(format_args!(".bootloader-config: {why}")),
    };
    if config.mappings.aslr {
        bad(format_args!(
            "it asks for random addresses, which this loader does not give"
        ));
    }

    let entry = elf.ehdr.e_entry;
    let mut has_entry = false;
    let mut tls = None;
    for segment in elf.segments().into_iter().flatten() {
        let start = segment.p_vaddr;
        let Some(end) = start.checked_add(segment.p_memsz) else {
            bad(format_args!("segment at {start:#x} wraps"));
        };
        match segment.p_type {
            PT_LOAD => {
                if start < KERNEL_HALF {
                    bad(format_args!(
                        "segment at {start:#x} is not in the upper half"
                    ));
                }
                if segment.p_filesz > segment.p_memsz || elf.segment_data(&segment).is_err() {
                    bad(format_args!("segment at {start:#x} lies outside the file"));
                }
                if segment.p_flags & PF_W != 0 && segment.p_flags & PF_X != 0 {
                    bad(format_args!(
                        "segment at {start:#x} is writable and executable"
                    ));
                }
                has_entry |= segment.p_flags & PF_X != 0 && (start..end).contains(&entry);
            }
            PT_TLS => {
                tls = Some(TlsTemplate {
                    start_addr: start,
                    file_size: segment.p_filesz,
                    mem_size: segment.p_memsz,
                });
            }
            _ => {}
        }
    }
    if !has_entry {
        bad(format_args!(
            "its entry {entry:#x} is not in an executable segment"
        ));
    }
    Kernel {
        file,
        config,
        entry,
        tls,
        elf,
    }
}

impl Kernel {
    /// Copies each segment to frames of its own and maps it.
    pub fn load(&self, tables: &mut Tables, frames: &mut Frames) {
        for segment in self.elf.segments().into_iter().flatten() {
            if segment.p_type != PT_LOAD || segment.p_memsz == 0 {
                continue;
            }
            let Ok(data) = self.elf.segment_data(&segment) else {
                continue;
            };
            let before = segment.p_vaddr % FRAME;
            let Some(len) = (before + segment.p_memsz).checked_next_multiple_of(FRAME) else {
                bad(format_args!("segment at {:#x} wraps", segment.p_vaddr));
            };
            let to = frames.take(len);
            let filled = before + data.len() as u64;
            // SAFETY: `len` bytes of RAM have just been taken, and `before + p_filesz <= before + p_memsz <= len`
            // (`parse`); the source is inside the archive, which lies elsewhere.
            unsafe {
                frames::fill_zero(to, before);
                frames::copy(data.as_ptr() as u64, to + before, data.len() as u64);
                frames::fill_zero(to + filled, len - filled);
            }
            let flags = match (segment.p_flags & PF_W != 0, segment.p_flags & PF_X != 0) {
                (true, _) => Flags::DATA,
                (false, true) => Flags::TEXT,
                (false, false) => Flags::RODATA,
            };
            tables.map(frames, segment.p_vaddr - before, to, len, flags.global());
        }
    }
}
