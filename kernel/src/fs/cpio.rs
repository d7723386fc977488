//! The boot archive: cpio "newc" records, read in place.
//!
//! A record is a header of thirteen 8-digit hexadecimal fields after the magic `070701` (or `070702`), the
//! NUL-terminated name, and the data; name and data are each padded so that the next part starts at a
//! multiple of four. `TRAILER!!!` ends the archive. Nothing in it is trusted: every length is checked
//! against what is left, and a broken record ends the iteration with an error.
#![forbid(unsafe_code)]

/// One file of the archive; name and data borrow it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Path, without a leading slash or `./`.
    pub name: &'a [u8],
    /// Content; a symlink's target.
    pub data: &'a [u8],
    /// Inode number inside the archive: equal numbers with `nlink > 1` are one file.
    pub ino: u32,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names the file has.
    pub nlink: u32,
    /// Modification time, seconds.
    pub mtime: u32,
    /// Device numbers of a device node.
    pub rdev: (u32, u32),
    /// Device the file lived on: part of its identity for hard links.
    pub dev: (u32, u32),
}

/// The archive is cut short or not in newc format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

const HEADER: usize = 110;

/// Iterates over an archive's entries, stopping at the trailer.
pub struct Reader<'a> {
    rest: &'a [u8],
    done: bool,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `archive`.
    pub fn new(archive: &'a [u8]) -> Self {
        Reader {
            rest: archive,
            done: false,
        }
    }

    fn record(&mut self) -> Result<Option<Entry<'a>>, Malformed> {
        let header = self.rest.get(..HEADER).ok_or(Malformed)?;
        if &header[..6] != b"070701" && &header[..6] != b"070702" {
            return Err(Malformed);
        }
        let field = |n: usize| hex(&header[6 + 8 * n..14 + 8 * n]);
        let (size, name_len) = (field(6)? as usize, field(11)? as usize);
        let name_end = HEADER.checked_add(name_len).ok_or(Malformed)?;
        let name = self.rest.get(HEADER..name_end).ok_or(Malformed)?;
        let name = name.strip_suffix(b"\0").ok_or(Malformed)?;
        let data_at = align4(name_end).ok_or(Malformed)?;
        let data_end = data_at.checked_add(size).ok_or(Malformed)?;
        if name == b"TRAILER!!!" {
            return Ok(None);
        }
        let data = self.rest.get(data_at..data_end).ok_or(Malformed)?;
        let next = align4(data_end).ok_or(Malformed)?.min(self.rest.len());
        self.rest = &self.rest[next..];
        Ok(Some(Entry {
            name: plain(name),
            data,
            ino: field(0)?,
            mode: field(1)?,
            uid: field(2)?,
            gid: field(3)?,
            nlink: field(4)?,
            mtime: field(5)?,
            dev: (field(7)?, field(8)?),
            rdev: (field(9)?, field(10)?),
        }))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.record() {
            Ok(Some(e)) => Some(Ok(e)),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(e) => {
                self.done = true;
                Some(Err(e))
            }
        }
    }
}

/// The content of the entry called `name`, if the archive has it.
pub fn find<'a>(archive: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    Reader::new(archive)
        .map_while(Result::ok)
        .find(|e| e.name == name)
        .map(|e| e.data)
}

/// `name` without leading slashes and `./`.
fn plain(mut name: &[u8]) -> &[u8] {
    loop {
        match name {
            [b'/', rest @ ..] | [b'.', b'/', rest @ ..] => name = rest,
            _ => return name,
        }
    }
}

fn align4(n: usize) -> Option<usize> {
    Some(n.checked_add(3)? & !3)
}

fn hex(digits: &[u8]) -> Result<u32, Malformed> {
    digits.iter().try_fold(0u32, |v, &d| {
        let d = (d as char).to_digit(16).ok_or(Malformed)?;
        Ok(v << 4 | d)
    })
}
