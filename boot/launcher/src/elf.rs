//! The kernel's file without its debug sections: they would fill guest memory and nobody there reads them.
//!
//! Section numbers stay, so symbols and links stay right; a dropped section becomes an empty one of no type.

const HEADER: usize = 64;
const SECTION: usize = 64;
const SHT_NULL: u32 = 0;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_NOBITS: u32 = 8;
const SHF_ALLOC: u64 = 2;

struct Section {
    kind: u32,
    flags: u64,
    offset: usize,
    size: usize,
}

/// `file` without the sections that are neither loaded nor symbols; unchanged when it is not an ELF file we understand,
/// because what to say about that is the loader's business.
pub fn without_debug(file: Vec<u8>) -> Vec<u8> {
    strip(&file).unwrap_or(file)
}

fn strip(file: &[u8]) -> Option<Vec<u8>> {
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = u64_at(file, 40)? as usize;
    let count = u16_at(file, 60)? as usize;
    if u16_at(file, 58)? as usize != SECTION || table == 0 {
        return None;
    }
    let mut headers = file
        .get(table..table.checked_add(count * SECTION)?)?
        .to_vec();
    let section = |headers: &[u8], index: usize| {
        let at = index * SECTION;
        Some(Section {
            kind: u32_at(headers, at + 4)?,
            flags: u64_at(headers, at + 8)?,
            offset: u64_at(headers, at + 24)? as usize,
            size: u64_at(headers, at + 32)? as usize,
        })
    };
    // Everything loaded stays where it is, together with the program headers.
    let segments =
        u64_at(file, 32)? as usize + u16_at(file, 56)? as usize * u16_at(file, 54)? as usize;
    let mut kept = segments.max(HEADER);
    for index in 0..count {
        let s = section(&headers, index)?;
        if s.flags & SHF_ALLOC != 0 && s.kind != SHT_NOBITS {
            kept = kept.max(s.offset.checked_add(s.size)?);
        }
    }
    let mut out = file.get(..kept)?.to_vec();
    for index in 0..count {
        let s = section(&headers, index)?;
        if s.flags & SHF_ALLOC != 0 || s.kind == SHT_NULL {
            continue;
        }
        let header = &mut headers[index * SECTION..][..SECTION];
        if matches!(s.kind, SHT_SYMTAB | SHT_STRTAB) {
            let content = file.get(s.offset..s.offset.checked_add(s.size)?)?;
            out.resize(out.len().next_multiple_of(16), 0);
            header[24..32].copy_from_slice(&(out.len() as u64).to_le_bytes());
            out.extend_from_slice(content);
        } else {
            header[4..].fill(0);
        }
    }
    out.resize(out.len().next_multiple_of(16), 0);
    let table = out.len() as u64;
    out.extend_from_slice(&headers);
    out[40..48].copy_from_slice(&table.to_le_bytes());
    Some(out)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_stay_and_debug_goes() {
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let small = without_debug(file.clone());
        assert!(small.len() < file.len());
        let symbol = b"symbols_stay_and_debug_goes";
        assert!(small.windows(symbol.len()).any(|w| w == symbol));
        assert_eq!(without_debug(small.clone()), small);
    }

    #[test]
    fn what_is_no_elf_file_stays_as_it_is() {
        for file in [
            &b""[..],
            b"\x7fELF",
            b"\x7fELF\x02\x01 and then nothing",
            &[0; 200],
        ] {
            assert_eq!(without_debug(file.to_vec()), file);
        }
    }
}
