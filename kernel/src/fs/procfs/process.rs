//! /proc/PID, /proc/PID/task/TID and what is in them.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::any::Any;
use core::fmt::{self, Write};

use super::super::attr::{Attr, AttrCell, Kind};
use super::super::fdtable::FdTable;
use super::super::file::File;
use super::super::inode::{DirSink, FileOps, FsStat, Inode, Link};
use super::super::path::Path;
use super::super::pseudo::{LinkInode, PASSING_INO, Source, Text, TextInode, dots};
use super::opened::Opened;
use super::{clear_refs, kin, maps, memory, mounts, number, pagemap, status};
use crate::task::{Process, Thread, table};
use mm::Errno;

/// Which process, and which of its threads (the one that stands for it unless named).
#[derive(Clone, Copy)]
pub struct Target {
    pub pid: u32,
    pub tid: Option<u32>,
}

impl Target {
    pub fn process(&self) -> Result<Arc<Process>, Errno> {
        table::find_process(self.pid).ok_or(Errno::ESRCH)
    }

    /// The thread, while it lives.
    pub fn thread(&self) -> Result<Arc<Thread>, Errno> {
        match self.tid {
            Some(tid) => table::find_thread(tid)
                .filter(|t| t.process.pid == self.pid)
                .ok_or(Errno::ESRCH),
            None => self.process()?.main_thread().ok_or(Errno::ESRCH),
        }
    }

    fn files(&self) -> Result<Arc<FdTable>, Errno> {
        self.thread()?.files_of().ok_or(Errno::ESRCH)
    }

    fn ino(&self, entry: u64) -> u64 {
        PASSING_INO * (1 + u64::from(self.tid.unwrap_or(self.pid)))
            + entry
            + if self.tid.is_some() { 1 << 30 } else { 0 }
    }
}

type Make = fn(&Target, &mut Text) -> fmt::Result;
type Write_ = fn(&Target, &[u8]) -> Result<(), Errno>;
type Open = fn(&Target) -> Result<Arc<dyn FileOps>, Errno>;
type Follow = fn(&Target) -> Result<Link, Errno>;

enum Entry {
    Text(Make),
    Settable(Make, Write_),
    Link(Follow),
    Open(Open),
    Dir(List),
}

/// Directories inside a process's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    Process,
    Fd,
    FdInfo,
    Task,
}

const ENTRIES: [(&str, u32, Entry); 25] = [
    ("auxv", 0o400, Entry::Text(memory::auxv)),
    ("clear_refs", 0o200, Entry::Open(clear_refs::open)),
    ("cmdline", 0o444, Entry::Text(status::cmdline)),
    (
        "comm",
        0o644,
        Entry::Settable(status::comm, status::set_comm),
    ),
    (
        "coredump_filter",
        0o644,
        Entry::Settable(status::core_filter, status::set_core_filter),
    ),
    ("cwd", 0o777, Entry::Link(cwd)),
    ("environ", 0o400, Entry::Text(status::environ)),
    ("exe", 0o777, Entry::Link(exe)),
    ("fd", 0o500, Entry::Dir(List::Fd)),
    ("fdinfo", 0o555, Entry::Dir(List::FdInfo)),
    ("limits", 0o444, Entry::Text(status::limits)),
    ("maps", 0o444, Entry::Text(maps::maps)),
    ("mem", 0o600, Entry::Open(memory::open)),
    ("mountinfo", 0o444, Entry::Text(mounts::mountinfo)),
    ("mounts", 0o444, Entry::Text(mounts::mounts)),
    ("oom_score", 0o444, Entry::Text(status::oom_score)),
    (
        "oom_score_adj",
        0o644,
        Entry::Settable(status::oom_score_adj, status::set_oom_score_adj),
    ),
    ("pagemap", 0o400, Entry::Open(pagemap::open)),
    ("root", 0o777, Entry::Link(root)),
    ("smaps", 0o444, Entry::Text(maps::smaps)),
    ("smaps_rollup", 0o444, Entry::Text(maps::smaps_rollup)),
    ("stat", 0o444, Entry::Text(status::stat)),
    ("statm", 0o444, Entry::Text(status::statm)),
    ("status", 0o444, Entry::Text(status::status)),
    ("task", 0o555, Entry::Dir(List::Task)),
];

/// The inode number of a process's directory.
pub fn dir_ino(pid: u32) -> u64 {
    Target { pid, tid: None }.ino(0)
}

/// The directory of process `pid`; a thread's id works too, as on Linux.
pub fn directory(pid: u32) -> Result<Arc<dyn Inode>, Errno> {
    let thread = table::find_thread(pid).ok_or(Errno::ENOENT)?;
    if thread.process.pid == 0 {
        return Err(Errno::ENOENT);
    }
    let target = Target {
        pid: thread.process.pid,
        tid: None,
    };
    Ok(Dir::inode(target, List::Process, 0, 0o555))
}

struct ProcText {
    target: Target,
    make: Make,
    write: Option<Write_>,
}

impl Source for ProcText {
    fn check(&self) -> Result<(), Errno> {
        self.target.process().map(drop)
    }

    fn make(&self, out: &mut Text) -> fmt::Result {
        (self.make)(&self.target, out)
    }

    fn write(&self, text: &[u8]) -> Result<(), Errno> {
        self.write.ok_or(Errno::EINVAL)?(&self.target, text)
    }
}

/// One of the directories.
struct Dir {
    target: Target,
    list: List,
    attrs: AttrCell,
}

impl Dir {
    fn inode(target: Target, list: List, entry: u64, perm: u32) -> Arc<dyn Inode> {
        let attrs = AttrCell::new(kin().dev, target.ino(entry), Kind::Directory, perm, 0);
        Arc::new(Dir {
            target,
            list,
            attrs,
        })
    }

    fn entry(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        let i = ENTRIES
            .iter()
            .position(|(n, _, _)| n.as_bytes() == name)
            .ok_or(Errno::ENOENT)?;
        let (_, perm, entry) = &ENTRIES[i];
        let (target, perm) = (self.target, *perm);
        let ino = target.ino(i as u64 + 1);
        let text = |make, write| {
            TextInode::inode(
                kin(),
                ino,
                perm,
                ProcText {
                    target,
                    make,
                    write,
                },
            )
        };
        Ok(match entry {
            Entry::Text(make) => text(*make, None),
            Entry::Settable(make, write) => text(*make, Some(*write)),
            Entry::Link(follow) => {
                let follow = *follow;
                LinkInode::inode(kin(), ino, perm, move || follow(&target))
            }
            Entry::Open(open) => {
                let open = *open;
                Opened::inode(ino, perm, move || open(&target))
            }
            Entry::Dir(List::Task) if target.tid.is_some() => return Err(Errno::ENOENT),
            Entry::Dir(list) => Dir::inode(target, *list, i as u64 + 1, perm),
        })
    }

    fn descriptor(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        let fd = number(name)
            .and_then(|n| i32::try_from(n).ok())
            .ok_or(Errno::ENOENT)?;
        let file = self.target.files()?.get(fd).map_err(|_| Errno::ENOENT)?;
        let target = self.target;
        let ino = target.ino(4096 + fd as u64 * 2);
        if self.list == List::FdInfo {
            let info = move |out: &mut Text| match target.files().and_then(|t| t.get(fd)) {
                Ok(file) => fdinfo(&file, out),
                Err(_) => Ok(()),
            };
            return Ok(TextInode::inode(kin(), ino + 1, 0o444, info));
        }
        let read = if file.readable() { 0o500 } else { 0o100 };
        let perm = read | if file.writable() { 0o300 } else { 0 };
        Ok(LinkInode::inode(kin(), ino, perm, move || {
            Ok(Link::Jump(target.files()?.get(fd)?.path().clone()))
        }))
    }

    fn is_gone(&self) -> bool {
        match self.target.tid {
            Some(_) => self.target.thread().is_err(),
            None => self.target.process().is_err(),
        }
    }
}

fn fdinfo(file: &File, out: &mut Text) -> fmt::Result {
    let pos = if file.ops().seekable() { file.pos() } else { 0 };
    writeln!(out, "pos:\t{pos}")?;
    writeln!(out, "flags:\t0{:o}", file.flags())?;
    writeln!(out, "mnt_id:\t{}", file.path().mnt.id)?;
    writeln!(out, "ino:\t{}", file.inode().attr().ino)?;
    file.ops().info(out)
}

impl Inode for Dir {
    fn attr(&self) -> Attr {
        let mut attr = self.attrs.get(0, 0);
        if let Ok(p) = self.target.process() {
            attr.uid = p.euid();
            attr.gid = p.creds().egid;
        }
        attr
    }

    fn kind(&self) -> Kind {
        Kind::Directory
    }

    fn cacheable(&self) -> bool {
        false
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>, Errno> {
        if self.is_gone() {
            return Err(Errno::ESRCH);
        }
        match self.list {
            List::Process => self.entry(name),
            List::Fd | List::FdInfo => self.descriptor(name),
            List::Task => {
                let tid = number(name).ok_or(Errno::ENOENT)?;
                let target = Target {
                    tid: Some(tid),
                    ..self.target
                };
                target.thread().map_err(|_| Errno::ENOENT)?;
                Ok(Dir::inode(target, List::Process, 0, 0o555))
            }
        }
    }

    fn create(&self, _name: &[u8], _mode: u32, _rdev: u64) -> Result<Arc<dyn Inode>, Errno> {
        Err(Errno::ENOENT)
    }

    fn statfs(&self) -> FsStat {
        FsStat {
            magic: kin().magic,
            blocks: 0,
            free: 0,
            files: 0,
            files_free: 0,
        }
    }

    fn open(self: Arc<Self>, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>, Errno> {
        if self.is_gone() {
            return Err(Errno::ESRCH);
        }
        Ok(self)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl FileOps for Dir {
    fn is_dir(&self) -> bool {
        true
    }

    fn readdir(&self, _file: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result<(), Errno> {
        if self.is_gone() {
            return Err(Errno::ENOENT);
        }
        let own = self.attrs.ino();
        if !dots(own, own, pos, sink) {
            return Ok(());
        }
        match self.list {
            List::Process => {
                for (i, (name, _, entry)) in ENTRIES.iter().enumerate().skip(*pos as usize - 2) {
                    let kind = match entry {
                        Entry::Link(_) => Kind::Symlink,
                        Entry::Dir(_) => Kind::Directory,
                        _ => Kind::Regular,
                    };
                    let hidden = *name == "task" && self.target.tid.is_some();
                    if !hidden
                        && !sink.add(
                            self.target.ino(i as u64 + 1),
                            *pos + 1,
                            kind,
                            name.as_bytes(),
                        )
                    {
                        return Ok(());
                    }
                    *pos += 1;
                }
            }
            List::Fd | List::FdInfo => {
                let (kind, odd) = if self.list == List::Fd {
                    (Kind::Symlink, 0)
                } else {
                    (Kind::Regular, 1)
                };
                let files = self.target.files()?;
                while let Some((fd, _)) = files.next_from(*pos as usize - 2) {
                    let name = alloc::format!("{fd}");
                    let ino = self.target.ino(4096 + fd as u64 * 2 + odd);
                    if !sink.add(ino, fd as u64 + 3, kind, name.as_bytes()) {
                        break;
                    }
                    *pos = fd as u64 + 3;
                }
            }
            List::Task => {
                let mut tids: alloc::vec::Vec<u32> = self
                    .target
                    .process()?
                    .threads()
                    .iter()
                    .map(|t| t.tid())
                    .collect();
                tids.sort_unstable();
                tids.retain(|t| u64::from(*t) + 2 > *pos);
                for tid in tids {
                    let name = alloc::format!("{tid}");
                    let target = Target {
                        tid: Some(tid),
                        ..self.target
                    };
                    let next = u64::from(tid) + 2;
                    if !sink.add(target.ino(0), next, Kind::Directory, name.as_bytes()) {
                        break;
                    }
                    *pos = next;
                }
            }
        }
        Ok(())
    }
}

fn cwd(t: &Target) -> Result<Link, Errno> {
    Ok(Link::Jump(t.thread()?.fs_of().ok_or(Errno::ENOENT)?.cwd()))
}

fn root(t: &Target) -> Result<Link, Errno> {
    Ok(Link::Jump(t.thread()?.fs_of().ok_or(Errno::ENOENT)?.root()))
}

fn exe(t: &Target) -> Result<Link, Errno> {
    Ok(Link::Jump(
        t.process()?.exe().ok_or(Errno::ENOENT)?.path().clone(),
    ))
}
