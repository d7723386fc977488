//! The serial console's two ends: bytes that arrive, and bytes that go out unchanged.
//!
//! The receive interrupt only puts bytes into a ring (`RECEIVED`, interrupts off) and wakes the console thread, which
//! hands them to the terminal. `OUTPUT`, a sleeping lock, keeps one write's bytes together.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::file::File;
use super::inode::FileOps;
use super::iobuf::IoBuf;
use super::poll::{Notify, Ready};
use crate::SysResult;
use crate::serial;
use crate::sync::{IrqLock, Mutex};
use crate::task::{Sleep, WaitQueue};

const RING: usize = 1024;

/// Bytes received and not yet seen by the console thread.
struct Ring {
    bytes: [u8; RING],
    head: usize,
    len: usize,
}

static RECEIVED: IrqLock<Ring> = IrqLock::new(Ring {
    bytes: [0; RING],
    head: 0,
    len: 0,
});
static PENDING: AtomicUsize = AtomicUsize::new(0);
static ARRIVED: WaitQueue = WaitQueue::new();

/// One write's bytes reach the port together.
static OUTPUT: Mutex<()> = Mutex::new(());

/// A byte came from the serial port. Interrupt context; when the ring is full it is lost, as on hardware.
pub fn on_rx(byte: u8) {
    let mut ring = RECEIVED.lock();
    if ring.len == RING {
        return;
    }
    let at = (ring.head + ring.len) % RING;
    ring.bytes[at] = byte;
    ring.len += 1;
    PENDING.store(ring.len, Ordering::SeqCst);
    drop(ring);
    ARRIVED.wake_one();
}

/// The console thread: feeds what was received to the terminal.
pub(super) fn thread(_: usize) {
    loop {
        let _ = ARRIVED.wait_while(Sleep::Uninterruptible, None, || {
            PENDING.load(Ordering::SeqCst) == 0
        });
        let mut bytes = [0u8; 64];
        let n = {
            let mut ring = RECEIVED.lock();
            let n = ring.len.min(bytes.len());
            for b in &mut bytes[..n] {
                *b = ring.bytes[ring.head];
                ring.head = (ring.head + 1) % RING;
            }
            ring.len -= n;
            PENDING.store(ring.len, Ordering::SeqCst);
            n
        };
        super::tty::receive(&bytes[..n]);
    }
}

/// Writes to the port as it is.
pub(super) fn raw_write(bytes: &[u8]) {
    serial::write(bytes);
}

/// Hands the buffer to `emit` piece by piece, one writer at a time.
pub(super) fn write_chunks(buf: &mut IoBuf<'_>, mut emit: impl FnMut(&[u8])) -> SysResult {
    let mut done = 0;
    while buf.left() > 0 {
        let mut chunk = [0u8; 512];
        let n = match buf.take(&mut chunk) {
            Ok(n) => n,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        {
            let _one = OUTPUT.lock();
            emit(&chunk[..n]);
        }
        done += n;
        if crate::task::fatal_signal_pending() {
            break;
        }
        crate::task::cond_resched();
    }
    Ok(done)
}

/// The console without a terminal: bytes go out unchanged, nothing comes in.
pub struct RawConsole;

impl FileOps for RawConsole {
    fn read(&self, _file: &File, _buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        Ok(0)
    }

    fn write(&self, _file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        write_chunks(buf, raw_write)
    }

    fn splices_by_copy(&self) -> bool {
        true
    }

    fn seekable(&self) -> bool {
        false
    }

    fn poll(&self, _file: &File, _watcher: Option<&Arc<dyn Notify>>) -> Ready {
        Ready::READ | Ready::WRITE
    }

    fn pollable(&self) -> bool {
        true
    }
}
