//! /dev/fb0: the screen's memory, for programs that know Linux's frame buffers. `mmap` shows it write-combined; `read` and `write` copy.
//!
//! It has one mode. `FBIOPUT_VSCREENINFO` says which, whatever it was asked for, as drivers do that have no choice.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use mm::Errno;
use mm::table::Caching;

use super::file::File;
use super::inode::{FileOps, Mappable};
use super::iobuf::IoBuf;
use crate::SysResult;
use crate::arch::uaccess::{get_user, put_user};
use crate::dev::bochs::{Screen, screen};

const FBIOGET_VSCREENINFO: u32 = 0x4600;
const FBIOPUT_VSCREENINFO: u32 = 0x4601;
const FBIOGET_FSCREENINFO: u32 = 0x4602;

/// `fb_var_screeninfo`, in words.
type Variable = [u32; 40];
/// `fb_fix_screeninfo`, in words.
type Fixed = [u32; 20];

/// The mode.
fn variable() -> Variable {
    let mut words = [0; 40];
    words[..4].copy_from_slice(&[Screen::WIDTH, Screen::HEIGHT, Screen::WIDTH, Screen::HEIGHT]);
    words[6] = 32; // bits of a pixel
    // Where a colour is, and how many bits it has: red, green, blue.
    for (at, shift) in [(8, 16), (11, 8), (14, 0)] {
        words[at] = shift;
        words[at + 1] = 8;
    }
    // Millimetres: nobody knows.
    (words[22], words[23]) = (!0, !0);
    words
}

/// The memory.
fn fixed(screen: &Screen) -> Fixed {
    const TRUE_COLOUR: u32 = 2;
    let mut words = [0; 20];
    for (word, text) in words.iter_mut().zip(b"bochs-display\0\0\0".chunks_exact(4)) {
        *word = u32::from_le_bytes([text[0], text[1], text[2], text[3]]);
    }
    words[4] = screen.window.first as u32;
    words[5] = (screen.window.first >> 32) as u32;
    words[6] = screen.window.len as u32;
    words[9] = TRUE_COLOUR;
    words[12] = Screen::LINE;
    words
}

pub fn open() -> Result<Arc<dyn FileOps>, Errno> {
    let screen = screen().ok_or(Errno::ENODEV)?;
    Ok(Arc::new(Buffer(screen)))
}

struct Buffer(&'static Screen);

impl FileOps for Buffer {
    fn read(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let wanted = buf.left() > 0 && *pos < self.0.window.len;
        let n = self.0.read(buf, *pos);
        *pos += n as u64;
        if n == 0 && wanted {
            return Err(Errno::EFAULT);
        }
        Ok(n)
    }

    /// `EFBIG` beyond the end; `ENOSPC` at it.
    fn write(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let (left, len) = (buf.left() as u64, self.0.window.len);
        if *pos > len {
            return Err(Errno::EFBIG);
        }
        let n = self.0.write(buf, *pos);
        if n == 0 && left > 0 {
            return Err(match *pos {
                at if at < len => Errno::EFAULT,
                _ if left > len => Errno::EFBIG,
                _ => Errno::ENOSPC,
            });
        }
        *pos += n as u64;
        Ok(n)
    }

    fn mmap_at(&self, _file: &File, offset: u64, _len: u64) -> Result<Mappable, Errno> {
        let window = self.0.window;
        let len = window.len.checked_sub(offset).ok_or(Errno::EINVAL)?;
        Ok(Mappable::Raw {
            first: window.first + offset,
            len,
            caching: Caching::Combining,
        })
    }

    fn ioctl(&self, _file: &File, cmd: u32, arg: u64) -> SysResult {
        match cmd {
            FBIOGET_VSCREENINFO => put_user(arg, &variable())?,
            FBIOPUT_VSCREENINFO => {
                let _wish: Variable = get_user(arg)?;
                put_user(arg, &variable())?;
            }
            FBIOGET_FSCREENINFO => put_user(arg, &fixed(self.0))?,
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }
}
