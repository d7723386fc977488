//! A cpio archive in the "newc" format, as the kernel and the loader read it.

/// An archive under construction.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

impl Archive {
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, FILE | permissions & 0o7777, content);
    }

    pub fn directory(&mut self, path: &str, permissions: u32) {
        self.entry(path, DIRECTORY | permissions & 0o7777, &[]);
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, target.as_bytes());
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    /// Six magic digits and thirteen numbers of eight hexadecimal digits, the name, the content; both padded to four.
    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let inode = self.entries;
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).expect("newc files are smaller than 4 GiB");
        let name_size = path.len() as u32 + 1;
        self.bytes.extend_from_slice(b"070701");
        // Inode, mode, owner, group, links, time, size, two devices of two numbers, name size, no checksum.
        for number in [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0] {
            self.bytes
                .extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.directory("d", 0o1777);
        archive.file("d/f", 0o755, b"hello");
        archive.symlink("d/l", "f");
        archive.finish()
    }

    #[test]
    fn entries_are_padded_to_four() {
        let bytes = sample();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(bytes.len() % 4, 0);
        let file = bytes.windows(8).position(|w| w == b"hello\0\0\0").unwrap();
        assert_eq!(file % 4, 0);
    }

    #[test]
    fn another_cpio_reads_it() {
        let tool = Command::new("busybox")
            .args(["cpio", "-tv"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut tool) = tool else { return };
        tool.stdin.take().unwrap().write_all(&sample()).unwrap();
        let out = tool.wait_with_output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("drwxrwxrwt"), "{text}");
        assert!(
            lines[1].starts_with("-rwxr-xr-x") && lines[1].ends_with("d/f"),
            "{text}"
        );
        assert!(lines[2].ends_with("d/l -> f"), "{text}");
    }
}
