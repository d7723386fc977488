//! Connected pairs of local sockets, SOCK_STREAM and SOCK_SEQPACKET: two pipes or two queues of messages, one each
//! way. No names, no listening, no passed descriptors.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::{AtomicBool, Ordering};
use linux_raw_sys::general as sys;

use super::anon::AnonNode;
use super::caller;
use super::file::File;
use super::inode::FileOps;
use super::iobuf::IoBuf;
use super::packets::Packets;
use super::pipe::{Pipe, PipeBuf};
use super::poll::{Notify, Ready};
use crate::SysResult;
use mm::Errno;

/// One direction of a pair; what its methods say, `Pipe` says.
pub trait Lane: Send + Sync {
    fn read(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult;
    fn write(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult;
    fn enter(&self, reads: bool, writes: bool);
    fn leave(&self, reads: bool, writes: bool);
    fn ready_to_read(&self) -> Ready;
    fn ready_to_write(&self) -> Ready;
    fn watch(&self, watcher: &Arc<dyn Notify>);
    fn available(&self) -> usize;
}

impl Lane for Pipe {
    fn read(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult {
        Pipe::read(self, buf, nonblock)
    }
    fn write(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult {
        Pipe::write(self, buf, nonblock)
    }
    fn enter(&self, reads: bool, writes: bool) {
        Pipe::enter(self, reads, writes);
    }
    fn leave(&self, reads: bool, writes: bool) {
        Pipe::leave(self, reads, writes);
    }
    fn ready_to_read(&self) -> Ready {
        Pipe::ready_to_read(self)
    }
    fn ready_to_write(&self) -> Ready {
        Pipe::ready_to_write(self)
    }
    fn watch(&self, watcher: &Arc<dyn Notify>) {
        Pipe::watch(self, watcher);
    }
    fn available(&self) -> usize {
        Pipe::available(self)
    }
}

/// One end.
pub struct Socket {
    from_peer: Arc<dyn Lane>,
    to_peer: Arc<dyn Lane>,
    /// SIGPIPE tells a sender that the peer is gone: of streams only.
    stream: bool,
    /// Directions this end still has: `shutdown` and the last close end them, once.
    receives: AtomicBool,
    sends: AtomicBool,
}

impl Socket {
    fn new(from_peer: Arc<dyn Lane>, to_peer: Arc<dyn Lane>, stream: bool) -> Arc<Self> {
        from_peer.enter(true, false);
        to_peer.enter(false, true);
        Arc::new(Socket {
            from_peer,
            to_peer,
            stream,
            receives: AtomicBool::new(true),
            sends: AtomicBool::new(true),
        })
    }

    /// Both ends of a new pair; not `stream`: of messages.
    pub fn pair(stream: bool, nonblock: bool) -> Result<(Arc<File>, Arc<File>), Errno> {
        let lane = || -> Result<Arc<dyn Lane>, Errno> {
            Ok(if stream {
                Pipe::new()?
            } else {
                Packets::create()?
            })
        };
        let (there, back) = (lane()?, lane()?);
        let flags = sys::O_RDWR | if nonblock { sys::O_NONBLOCK } else { 0 };
        let end = |s| File::new(AnonNode::socket(), s, flags);
        let (a, b) = (
            Socket::new(back.clone(), there.clone(), stream),
            Socket::new(there, back, stream),
        );
        Ok((end(a), end(b)))
    }

    /// Ends reading, writing, or both.
    pub fn shutdown(&self, reads: bool, writes: bool) {
        if reads && self.receives.swap(false, Ordering::SeqCst) {
            self.from_peer.leave(true, false);
        }
        if writes && self.sends.swap(false, Ordering::SeqCst) {
            self.to_peer.leave(false, true);
        }
    }

    pub fn receive(&self, buf: &mut IoBuf<'_>, nonblock: bool) -> SysResult {
        if !self.receives.load(Ordering::SeqCst) {
            return Ok(0);
        }
        self.from_peer.read(buf, nonblock)
    }

    /// Sends all of `buf`; `signal`: SIGPIPE when the peer is gone.
    pub fn send(&self, buf: &mut IoBuf<'_>, nonblock: bool, signal: bool) -> SysResult {
        let result = match self.sends.load(Ordering::SeqCst) {
            true => self.to_peer.write(buf, nonblock),
            false => Err(Errno::EPIPE),
        };
        if result == Err(Errno::EPIPE) && signal && self.stream {
            caller::send_sigpipe();
        }
        result
    }
}

impl FileOps for Socket {
    fn read(&self, file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.receive(buf, file.nonblocking())
    }

    fn write(&self, file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.send(buf, file.nonblocking(), true)
    }

    fn try_read(&self, _file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.receive(buf, true)
    }

    fn try_write(&self, _file: &File, buf: &mut IoBuf<'_>, _pos: &mut u64) -> SysResult {
        self.send(buf, true, true)
    }

    fn splice_read(
        &self,
        file: &File,
        _pos: &mut u64,
        most: usize,
        nonblock: bool,
    ) -> Result<Option<PipeBuf>, Errno> {
        let nonblock = nonblock || file.nonblocking();
        PipeBuf::copied(most, |buf| self.receive(buf, nonblock))
    }

    fn splice_write(&self, file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        self.write(file, buf, pos)
    }

    fn seekable(&self) -> bool {
        false
    }

    fn poll(&self, _file: &File, watcher: Option<&Arc<dyn Notify>>) -> Ready {
        if let Some(w) = watcher {
            self.from_peer.watch(w);
            self.to_peer.watch(w);
        }
        let mut ready = Ready::empty();
        let (input, output) = (
            self.from_peer.ready_to_read(),
            self.to_peer.ready_to_write(),
        );
        let receiving = self.receives.load(Ordering::SeqCst);
        if !receiving || input.intersects(Ready::READ | Ready::HUP) {
            ready |= Ready::READ;
        }
        if !receiving || input.contains(Ready::HUP) {
            ready |= Ready::RDHUP;
        }
        if output.contains(Ready::ERR) && input.contains(Ready::HUP) {
            ready |= Ready::HUP;
        }
        if output.intersects(Ready::WRITE | Ready::ERR) {
            ready |= Ready::WRITE;
        }
        ready
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, _file: &File, cmd: u32, arg: u64) -> SysResult {
        if cmd == linux_raw_sys::ioctl::FIONREAD {
            let n = self.from_peer.available().min(i32::MAX as usize) as i32;
            crate::arch::uaccess::put_user(arg, &n)?;
            return Ok(0);
        }
        Err(Errno::ENOTTY)
    }

    fn release(&self, _file: &File) {
        self.shutdown(true, true);
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}
