//! Finding one file in a newc archive, without walking further than needed.

const HEADER: usize = 110;
const FILE_SIZE: usize = 6;
const NAME_SIZE: usize = 11;

/// The content of the file called `name`; `None` where the archive ends, or stops being one, before it.
pub fn find<'a>(mut archive: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    loop {
        let header = archive.get(..HEADER)?;
        if &header[..6] != b"070701" && &header[..6] != b"070702" {
            return None;
        }
        let file_size = field(header, FILE_SIZE)?;
        let name_end = HEADER.checked_add(field(header, NAME_SIZE)?)?;
        let found = archive.get(HEADER..name_end)?.split(|&b| b == 0).next()?;
        let data = name_end.checked_next_multiple_of(4)?;
        let end = data.checked_add(file_size)?;
        if found == name {
            return archive.get(data..end);
        }
        if found == b"TRAILER!!!" {
            return None;
        }
        archive = archive.get(end.checked_next_multiple_of(4)?..)?;
    }
}

/// The header's `index`th number: eight hexadecimal digits.
fn field(header: &[u8], index: usize) -> Option<usize> {
    let digits = &header[6 + 8 * index..][..8];
    usize::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}
