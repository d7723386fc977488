//! The root file system that travels in the archive: busybox and its applets, a minimal `/etc`, empty mount points, and
//! the files that the user names.
//!
//! All commands live in `/bin`; `/sbin`, `/usr/bin` and `/usr/sbin` are links to it, and `/usr/lib*` to `/lib*`. A path
//! is written to the archive with such links resolved and after its parents.

use crate::archive::Archive;
use crate::{Error, GuestFile, failed};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const LINKS: [(&str, &str, &str); 6] = [
    ("sbin", "bin", "bin"),
    ("usr/bin", "bin", "../bin"),
    ("usr/sbin", "bin", "../bin"),
    ("usr/lib", "lib", "../lib"),
    ("usr/lib64", "lib64", "../lib64"),
    ("var/tmp", "tmp", "../tmp"),
];
const DIRECTORIES: [(&str, u32); 12] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("dev/shm", 0o1777),
    ("etc", 0o755),
    ("lib", 0o755),
    ("lib64", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
];
/// `poweroff` and its like ask process 1, which here is no init: they call the kernel instead.
const ENDINGS: [&str; 3] = ["halt", "poweroff", "reboot"];
const ETC: [(&str, &str); 5] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hostname", "pinfold\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    (
        "etc/profile",
        "export PS1='\\w \\$ '\nalias halt='busybox halt -f' poweroff='busybox poweroff -f' reboot='busybox reboot -f'\n",
    ),
];

enum Node {
    Directory(u32),
    File(u32, Vec<u8>),
    Symlink(String),
}

/// Paths without a leading slash, parents before children by their order.
#[derive(Default)]
pub struct RootFs {
    nodes: BTreeMap<String, Node>,
    parents: BTreeSet<String>,
}

impl RootFs {
    /// The directories, links and `/etc` that every guest has.
    pub fn new() -> Self {
        let mut fs = Self::default();
        for (path, permissions) in DIRECTORIES {
            fs.nodes.insert(path.into(), Node::Directory(permissions));
        }
        for (path, _, target) in LINKS {
            fs.nodes.insert(path.into(), Node::Symlink(target.into()));
        }
        for (path, text) in ETC {
            fs.add(path, Node::File(0o644, text.into()));
        }
        fs
    }

    /// `/bin/busybox` and a link for each of its applets.
    pub fn add_busybox(&mut self, busybox: &Path) -> Result<(), Error> {
        let content = fs::read(busybox).map_err(failed("read", busybox))?;
        let list = Command::new(busybox)
            .arg("--list")
            .stdin(Stdio::null())
            .output();
        let list = list.map_err(failed("run", busybox))?;
        self.add("bin/busybox", Node::File(0o755, content));
        for applet in String::from_utf8_lossy(&list.stdout).lines() {
            let path = format!("bin/{}", applet.rsplit('/').next().unwrap_or(applet));
            if ENDINGS.contains(&applet) {
                let script = format!("#!/bin/sh\nexec /bin/busybox {applet} -f \"$@\"\n");
                self.add(&path, Node::File(0o755, script.into()));
            } else if applet != "busybox" {
                self.add(&path, Node::Symlink("busybox".into()));
            }
        }
        Ok(())
    }

    /// Copies a file, or a directory with all that is in it.
    pub fn add_host(&mut self, file: &GuestFile) -> Result<(), Error> {
        let mut guest = file.guest.clone();
        if guest.is_empty() || guest.ends_with('/') {
            let name = file.host.file_name().unwrap_or_default();
            guest.push_str(&name.to_string_lossy());
        }
        // The named file itself is followed when it is a link; links inside a directory stay links.
        let host = fs::canonicalize(&file.host).map_err(failed("find", &file.host))?;
        self.copy(&host, &guest)
    }

    fn copy(&mut self, host: &Path, guest: &str) -> Result<(), Error> {
        let metadata = fs::symlink_metadata(host).map_err(failed("find", host))?;
        let permissions = metadata.permissions().mode();
        if metadata.is_symlink() {
            let target = fs::read_link(host).map_err(failed("read", host))?;
            self.add(guest, Node::Symlink(target.to_string_lossy().into_owned()));
        } else if metadata.is_dir() {
            if !normal(guest).is_empty() {
                self.add(guest, Node::Directory(permissions));
            }
            let entries = fs::read_dir(host).map_err(failed("read", host))?;
            for entry in entries {
                let entry = entry.map_err(failed("read", host))?;
                self.copy(
                    &entry.path(),
                    &format!("{guest}/{}", entry.file_name().to_string_lossy()),
                )?;
            }
        } else {
            let content = fs::read(host).map_err(failed("read", host))?;
            self.add(guest, Node::File(permissions, content));
        }
        Ok(())
    }

    /// Puts a node at its resolved path; the last one to come stays.
    fn add(&mut self, path: &str, node: Node) {
        let path = normal(path);
        if let (Some(Node::Directory(_) | Node::Symlink(_)), Node::Directory(_)) =
            (self.nodes.get(&path), &node)
        {
            return;
        }
        for (at, _) in path.match_indices('/') {
            self.parents.insert(path[..at].into());
        }
        self.nodes.insert(path, node);
    }

    /// Appends everything to the archive.
    pub fn write(mut self, archive: &mut Archive) {
        for parent in std::mem::take(&mut self.parents) {
            self.nodes.entry(parent).or_insert(Node::Directory(0o755));
        }
        for (path, node) in &self.nodes {
            match node {
                Node::Directory(permissions) => archive.directory(path, *permissions),
                Node::File(permissions, content) => archive.file(path, *permissions, content),
                Node::Symlink(target) => archive.symlink(path, target),
            }
        }
    }
}

/// `path` without empty parts, dots and our own directory links.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    for (link, target, _) in LINKS {
        if let Some(rest) = path.strip_prefix(link).filter(|rest| rest.starts_with('/')) {
            return format!("{target}{rest}");
        }
    }
    path
}

/// The busybox to use: the one named, else `$BUSYBOX`, else the one in `PATH`; it must be static.
pub fn find_busybox(named: Option<&Path>) -> Result<Option<PathBuf>, Error> {
    let from_env = std::env::var_os("BUSYBOX")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    if let Some(path) = named.map(PathBuf::from).or(from_env) {
        let content = fs::read(&path).map_err(failed("read", &path))?;
        return match is_static(&content) {
            true => Ok(Some(path)),
            false => Err(Error(format!("{} is not a static program", path.display()))),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path).map(|dir| dir.join("busybox"));
    Ok(candidates.find(|path| fs::read(path).is_ok_and(|content| is_static(&content))))
}

/// Whether an ELF file asks for no interpreter.
fn is_static(file: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, len: usize| {
        let bytes = file.get(at..at + len)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |sum, &byte| sum << 8 | byte as usize),
        )
    };
    let interpreter = || {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|i| number(table + i * size, 4))
            .find(|kind| *kind == Some(PT_INTERP as usize))
    };
    file.starts_with(b"\x7fELF\x02") && interpreter().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_through_our_own_links() {
        assert_eq!(normal("/usr/bin/env"), "bin/env");
        assert_eq!(normal("//usr/lib/./x/../y"), "lib/y");
        assert_eq!(normal("usr/library/x"), "usr/library/x");
        assert_eq!(normal("/sbin"), "sbin");
        assert_eq!(normal("../../etc"), "etc");
    }

    #[test]
    fn parents_come_before_children() {
        let mut fs = RootFs::new();
        fs.add("/opt/a/b", Node::File(0o644, b"x".to_vec()));
        fs.add("/opt/a-c", Node::File(0o644, b"y".to_vec()));
        fs.add("/usr/lib/x86/z", Node::File(0o644, b"z".to_vec()));
        let mut archive = Archive::default();
        fs.write(&mut archive);
        let bytes = archive.finish();
        let at = |name: &str| {
            let name = format!("{name}\0");
            bytes
                .windows(name.len())
                .position(|w| w == name.as_bytes())
                .unwrap_or_else(|| panic!("{name}"))
        };
        assert!(at("opt") < at("opt/a") && at("opt/a") < at("opt/a/b"));
        assert!(at("lib") < at("lib/x86") && at("lib/x86") < at("lib/x86/z"));
    }

    #[test]
    fn a_directory_travels_whole() {
        let dir = std::env::temp_dir().join(format!("launcher-rootfs-{}", std::process::id()));
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/file"), "content").unwrap();
        std::os::unix::fs::symlink("file", dir.join("sub/link")).unwrap();
        let mut root = RootFs::default();
        root.add_host(&GuestFile {
            host: dir.clone(),
            guest: "/data".into(),
        })
        .unwrap();
        root.add_host(&GuestFile {
            host: dir.join("sub/link"),
            guest: "/bin/".into(),
        })
        .unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert!(
            matches!(root.nodes.get("data/sub/file"), Some(Node::File(_, content)) if content == b"content")
        );
        assert!(
            matches!(root.nodes.get("data/sub/link"), Some(Node::Symlink(target)) if target == "file")
        );
        assert!(matches!(root.nodes.get("bin/link"), Some(Node::File(..))));
    }
}
