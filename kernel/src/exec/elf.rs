//! ELF headers: from bytes to what is to be mapped. Pure; every malformed input is ENOEXEC (or EINVAL
//! and ENOMEM where Linux says so), decided before anything changes.

use alloc::vec::Vec;

use mm::Errno;

pub const EHDR_SIZE: usize = 64;
pub const PHDR_SIZE: usize = 56;
const PAGE: u64 = 4096;
/// No segment may end above this.
const USER_END: u64 = 0x7fff_ffff_f000;

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_GNU_STACK: u32 = 0x6474_e551;
pub const PF_X: u32 = 1;
pub const PF_W: u32 = 2;
pub const PF_R: u32 = 4;

/// What the ELF header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// ET_DYN: may be moved.
    pub dynamic: bool,
    pub entry: u64,
    pub phoff: u64,
    pub phnum: u16,
}

/// A PT_LOAD segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub vaddr: u64,
    pub filesz: u64,
    pub memsz: u64,
    pub flags: u32,
}

/// Everything exec needs to know of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub header: Header,
    pub segments: Vec<Segment>,
    /// Where PT_INTERP's string lies in the file.
    pub interp: Option<(u64, usize)>,
    /// PT_GNU_STACK asks for an executable stack.
    pub exec_stack: bool,
    /// Largest alignment of a segment.
    pub align: u64,
    /// Where the program headers are in memory, before relocation; 0 if nowhere.
    pub phdr: u64,
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut w = [0; 8];
    w.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(w)
}

impl Header {
    /// Reads the first bytes of a file.
    pub fn parse(b: &[u8]) -> Result<Header, Errno> {
        let bad = Err(Errno::ENOEXEC);
        if b.len() < EHDR_SIZE || &b[..4] != b"\x7fELF" {
            return bad;
        }
        // 64 bits, little endian, version 1.
        if b[4] != 2 || b[5] != 1 || b[6] != 1 {
            return bad;
        }
        let (kind, machine) = (u16_at(b, 16), u16_at(b, 18));
        if (kind != 2 && kind != 3) || machine != 62 {
            return bad;
        }
        let phnum = u16_at(b, 56);
        if u16_at(b, 54) as usize != PHDR_SIZE || phnum == 0 || phnum as usize > 65536 / PHDR_SIZE {
            return bad;
        }
        Ok(Header {
            dynamic: kind == 3,
            entry: u64_at(b, 24),
            phoff: u64_at(b, 32),
            phnum,
        })
    }

    /// Bytes of the program headers.
    pub fn phdr_bytes(&self) -> usize {
        self.phnum as usize * PHDR_SIZE
    }
}

impl Image {
    /// Reads the program headers.
    pub fn parse(header: Header, ph: &[u8]) -> Result<Image, Errno> {
        if ph.len() < header.phdr_bytes() {
            return Err(Errno::ENOEXEC);
        }
        let mut image = Image {
            header,
            segments: Vec::new(),
            interp: None,
            exec_stack: false,
            align: PAGE,
            phdr: 0,
        };
        image
            .segments
            .try_reserve_exact(4)
            .map_err(|_| Errno::ENOMEM)?;
        for p in ph[..header.phdr_bytes()].chunks_exact(PHDR_SIZE) {
            let (kind, flags) = (u32_at(p, 0), u32_at(p, 4));
            let seg = Segment {
                offset: u64_at(p, 8),
                vaddr: u64_at(p, 16),
                filesz: u64_at(p, 32),
                memsz: u64_at(p, 40),
                flags,
            };
            match kind {
                PT_LOAD if seg.memsz != 0 => {
                    seg.check()?;
                    let align = u64_at(p, 48);
                    if align.is_power_of_two() {
                        image.align = image.align.max(align.min(1 << 30));
                    }
                    if (seg.offset..seg.offset.saturating_add(seg.filesz)).contains(&header.phoff)
                        && image.phdr == 0
                    {
                        image.phdr = seg.vaddr.wrapping_add(header.phoff - seg.offset);
                    }
                    image.segments.push(seg);
                }
                PT_INTERP if image.interp.is_none() => {
                    if !(2..=4096).contains(&seg.filesz) {
                        return Err(Errno::ENOEXEC);
                    }
                    image.interp = Some((seg.offset, seg.filesz as usize));
                }
                PT_GNU_STACK => image.exec_stack = flags & PF_X != 0,
                _ => {}
            }
        }
        if image.segments.is_empty() {
            return Err(Errno::ENOEXEC);
        }
        Ok(image)
    }

    /// First and last byte + 1 of the image, page aligned, before relocation.
    pub fn span(&self) -> (u64, u64) {
        let starts = self.segments.iter().map(|s| s.vaddr);
        let ends = self.segments.iter().map(|s| s.vaddr + s.memsz);
        let (first, last) = (starts.min().unwrap_or(0), ends.max().unwrap_or(0));
        (first & !(PAGE - 1), (last + PAGE - 1) & !(PAGE - 1))
    }
}

impl Segment {
    /// Sizes and addresses that cannot be mapped.
    fn check(&self) -> Result<(), Errno> {
        let end = self.vaddr.checked_add(self.memsz).ok_or(Errno::ENOEXEC)?;
        let file_end = self.offset.checked_add(self.filesz).ok_or(Errno::ENOEXEC)?;
        if self.filesz > self.memsz || end > USER_END || file_end > i64::MAX as u64 {
            return Err(Errno::ENOEXEC);
        }
        if self.vaddr % PAGE != self.offset % PAGE {
            return Err(Errno::ENOEXEC);
        }
        Ok(())
    }

    /// `PROT_*` of its mapping.
    pub fn prot(&self) -> u32 {
        use linux_raw_sys::general as sys;
        let bit = |f: u32, p: u32| if self.flags & f != 0 { p } else { 0 };
        bit(PF_R, sys::PROT_READ) | bit(PF_W, sys::PROT_WRITE) | bit(PF_X, sys::PROT_EXEC)
    }
}
