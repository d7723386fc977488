//! A screen: QEMU's `-device bochs-display`. Its memory is what the screen shows, in the mode that Bochs's VBE registers are told once; then
//! there is nothing to do. `/dev/fb0` is the file: `fs/fb.rs`.

use spin::Once;

use super::Driver;
use super::pci::{Function, Window};
use crate::fs::IoBuf;

const ID: (u16, u16) = (0x1234, 0x1111);
/// A display that is no VGA: one of those has the same number, and is blank until other registers are told, too.
const CLASS: u32 = 0x03_8000;

/// Where the VBE registers are, each of 16 bits.
const VBE: u32 = 0x500;
const VBE_LEN: u32 = 2 * 11;
const VBE_ID: u32 = 0;
const WIDTH: u32 = 1;
const HEIGHT: u32 = 2;
const DEPTH: u32 = 3;
const ENABLE: u32 = 4;
const VIRTUAL_WIDTH: u32 = 6;
const X_OFFSET: u32 = 8;
const Y_OFFSET: u32 = 9;
/// `ENABLE`: on; the memory is one piece.
const ON: u16 = 1;
const LINEAR: u16 = 0x40;

/// The most memory that is used; more than the mode needs, for whoever draws out of sight.
const MOST: u64 = 16 << 20;

pub struct Screen {
    /// Its memory.
    pub window: Window,
    /// Where that is mapped.
    base: u64,
}

impl Screen {
    pub const WIDTH: u32 = 1024;
    pub const HEIGHT: u32 = 768;
    /// Bytes of a line; a pixel is a word, blue its lowest byte.
    pub const LINE: u32 = 4 * Self::WIDTH;

    /// Where `at` is mapped, and how many of the bytes from there on `buf` is for. Beyond the end there are none.
    fn room(&self, buf: &IoBuf<'_>, at: u64) -> (u64, usize) {
        let at = at.min(self.window.len);
        let room = self.window.len - at;
        (self.base + at, room.min(buf.left() as u64) as usize)
    }

    /// Copies what is at `at` to `buf`: how many bytes.
    pub fn read(&self, buf: &mut IoBuf<'_>, at: u64) -> usize {
        let (at, n) = self.room(buf, at);
        // SAFETY: inside the mapped memory (`room`), which no reference covers.
        unsafe { buf.put_raw(at as *const u8, n) }
    }

    /// The other way round.
    pub fn write(&self, buf: &mut IoBuf<'_>, at: u64) -> usize {
        let (at, n) = self.room(buf, at);
        // SAFETY: as above.
        unsafe { buf.take_raw(at as *mut u8, n) }
    }
}

static SCREEN: Once<Screen> = Once::new();

/// The machine's, if it has one.
pub fn screen() -> Option<&'static Screen> {
    SCREEN.get()
}

/// The first one is taken.
pub fn is_one(function: Function) -> bool {
    function.id() == ID && function.class() == CLASS && SCREEN.get().is_none()
}

/// `None`: it is not what it should be.
pub fn start(function: Function) -> Option<&'static dyn Driver> {
    function.enable();
    let vbe = function.registers(2, VBE, VBE_LEN)?;
    let id = vbe.read16(2 * VBE_ID);
    let (window, base) = function.memory(0, MOST)?;
    if id & 0xfff0 != 0xb0c0 || window.len < u64::from(Screen::LINE * Screen::HEIGHT) {
        return None;
    }
    for (register, value) in [
        (ENABLE, 0),
        (WIDTH, Screen::WIDTH as u16),
        (HEIGHT, Screen::HEIGHT as u16),
        (DEPTH, 32),
        (VIRTUAL_WIDTH, Screen::WIDTH as u16),
        (X_OFFSET, 0),
        (Y_OFFSET, 0),
        (ENABLE, ON | LINEAR),
    ] {
        vbe.write16(2 * register, value);
    }
    let (width, height) = (Screen::WIDTH, Screen::HEIGHT);
    crate::info!("fb0: {width} by {height}, {} MiB", window.len >> 20);
    Some(SCREEN.call_once(|| Screen { window, base }))
}

impl Driver for Screen {
    /// Whoever has its memory mapped goes on drawing.
    fn let_go(&self) -> bool {
        false
    }
}
