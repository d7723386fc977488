//! What `stat` shows: kinds of files, their attributes, time stamps.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};
use linux_raw_sys::general::{
    S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, S_ISGID, S_ISUID,
};
use spin::Mutex as Spin;

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Regular,
    Directory,
    Symlink,
    Char,
    Block,
    Fifo,
    Socket,
}

impl Kind {
    /// The kind that the type bits of `mode` name.
    pub fn of_mode(mode: u32) -> Option<Kind> {
        Some(match mode & S_IFMT {
            S_IFREG => Kind::Regular,
            S_IFDIR => Kind::Directory,
            S_IFLNK => Kind::Symlink,
            S_IFCHR => Kind::Char,
            S_IFBLK => Kind::Block,
            S_IFIFO => Kind::Fifo,
            S_IFSOCK => Kind::Socket,
            _ => return None,
        })
    }

    /// The type bits of a mode.
    pub fn bits(self) -> u32 {
        match self {
            Kind::Regular => S_IFREG,
            Kind::Directory => S_IFDIR,
            Kind::Symlink => S_IFLNK,
            Kind::Char => S_IFCHR,
            Kind::Block => S_IFBLK,
            Kind::Fifo => S_IFIFO,
            Kind::Socket => S_IFSOCK,
        }
    }

    /// `d_type` of a directory entry.
    pub fn dirent_type(self) -> u8 {
        (self.bits() >> 12) as u8
    }
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    pub sec: i64,
    pub nsec: u32,
}

impl Stamp {
    /// The time of day.
    pub fn now() -> Self {
        let ns = crate::arch::time::now_ns().wrapping_add(crate::arch::time::realtime_offset_ns());
        Stamp {
            sec: (ns / 1_000_000_000) as i64,
            nsec: (ns % 1_000_000_000) as u32,
        }
    }
}

/// A device number, as user programs see it (`makedev`).
pub const fn makedev(major: u32, minor: u32) -> u64 {
    let (major, minor) = (major as u64, minor as u64);
    (major & 0xfff) << 8 | (major >> 12) << 32 | (minor & 0xff) | (minor & !0xff) << 12
}

/// Major part of a device number.
pub const fn major(dev: u64) -> u32 {
    (dev >> 8 & 0xfff | dev >> 32 & 0xffff_f000) as u32
}

/// Minor part of a device number.
pub const fn minor(dev: u64) -> u32 {
    (dev & 0xff | dev >> 12 & 0xffff_ff00) as u32
}

/// Everything `stat` reports.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    pub dev: u64,
    pub ino: u64,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub atime: Stamp,
    pub mtime: Stamp,
    pub ctime: Stamp,
    pub btime: Stamp,
}

/// A change of attributes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttrChange {
    /// Permission bits.
    pub perm: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<Stamp>,
    pub mtime: Option<Stamp>,
}

/// The changeable part of an inode that lives in memory.
pub struct AttrCell {
    dev: u64,
    ino: u64,
    kind: Kind,
    rdev: u64,
    state: Spin<State>,
}

struct State {
    perm: u32,
    nlink: u32,
    uid: u32,
    gid: u32,
    atime: Stamp,
    mtime: Stamp,
    ctime: Stamp,
    btime: Stamp,
}

impl AttrCell {
    /// A new inode's attributes: the caller owns it, one link (a directory has two), times now.
    pub fn new(dev: u64, ino: u64, kind: Kind, perm: u32, rdev: u64) -> Self {
        let now = Stamp::now();
        let nlink = if kind == Kind::Directory { 2 } else { 1 };
        let (uid, gid) = super::access::new_owner();
        AttrCell {
            dev,
            ino,
            kind,
            rdev,
            state: Spin::new(State {
                perm: perm & 0o7777,
                nlink,
                uid,
                gid,
                atime: now,
                mtime: now,
                ctime: now,
                btime: now,
            }),
        }
    }

    /// Those that an inode on a disk has.
    pub fn of(attr: &Attr, kind: Kind) -> Self {
        AttrCell {
            dev: attr.dev,
            ino: attr.ino,
            kind,
            rdev: attr.rdev,
            state: Spin::new(State {
                perm: attr.mode & 0o7777,
                nlink: attr.nlink,
                uid: attr.uid,
                gid: attr.gid,
                atime: attr.atime,
                mtime: attr.mtime,
                ctime: attr.ctime,
                btime: attr.btime,
            }),
        }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn dev(&self) -> u64 {
        self.dev
    }

    pub fn ino(&self) -> u64 {
        self.ino
    }

    pub fn rdev(&self) -> u64 {
        self.rdev
    }

    /// The attributes, with the size the caller knows.
    pub fn get(&self, size: u64, blocks: u64) -> Attr {
        let s = self.state.lock();
        Attr {
            dev: self.dev,
            ino: self.ino,
            mode: self.kind.bits() | s.perm,
            nlink: s.nlink,
            uid: s.uid,
            gid: s.gid,
            rdev: self.rdev,
            size,
            blocks,
            atime: s.atime,
            mtime: s.mtime,
            ctime: s.ctime,
            btime: s.btime,
        }
    }

    /// Applies `change`; the change time moves.
    pub fn set(&self, change: &AttrChange) {
        let now = Stamp::now();
        let mut s = self.state.lock();
        if let Some(p) = change.perm {
            s.perm = p & 0o7777;
        }
        if self.kind == Kind::Regular && (change.uid.is_some() || change.gid.is_some()) {
            // A new owner has not asked for the set-id bits (without group execute, S_ISGID means something else).
            s.perm &= !(S_ISUID | if s.perm & 0o010 != 0 { S_ISGID } else { 0 });
        }
        s.uid = change.uid.unwrap_or(s.uid);
        s.gid = change.gid.unwrap_or(s.gid);
        s.atime = change.atime.unwrap_or(s.atime);
        s.mtime = change.mtime.unwrap_or(s.mtime);
        s.ctime = now;
    }

    /// The content changed.
    pub fn touch(&self) {
        let now = Stamp::now();
        let mut s = self.state.lock();
        s.mtime = now;
        s.ctime = now;
    }

    /// The content was read.
    pub fn accessed(&self) {
        let now = Stamp::now();
        self.state.lock().atime = now;
    }

    /// The content was read: whether that is news (`relatime`), because it has changed since it was read last, or that was yesterday.
    pub fn accessed_again(&self) -> bool {
        const DAY: i64 = 24 * 60 * 60;
        let now = Stamp::now();
        let mut s = self.state.lock();
        let news = s.atime <= s.mtime || s.atime <= s.ctime || now.sec - s.atime.sec >= DAY;
        if news {
            s.atime = now;
        }
        news
    }

    /// The file was made then.
    pub fn born(&self, at: Stamp) {
        let mut s = self.state.lock();
        (s.atime, s.mtime, s.ctime, s.btime) = (at, at, at, at);
    }

    /// The link count that a disk has.
    pub fn set_links(&self, links: u32) {
        let now = Stamp::now();
        let mut s = self.state.lock();
        if s.nlink != links {
            s.nlink = links;
            s.ctime = now;
        }
    }

    pub fn nlink(&self) -> u32 {
        self.state.lock().nlink
    }

    /// Adds to the link count, never below zero; returns the new one.
    pub fn add_links(&self, delta: i32) -> u32 {
        let now = Stamp::now();
        let mut s = self.state.lock();
        s.nlink = s.nlink.saturating_add_signed(delta);
        s.ctime = now;
        s.nlink
    }
}

/// Device numbers of file systems without a device, as Linux hands them out: major 0, minor counting.
pub fn anonymous_dev() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    makedev(0, NEXT.fetch_add(1, Ordering::Relaxed) as u32)
}
