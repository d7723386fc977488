//! What a program draws on /dev/fb0, as QEMU shows it.

use crate::build;
use crate::console::Console;
use crate::guest_dir;
use crate::machines::{Verdict, find};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

const WIDTH: usize = 1024;
const HEIGHT: usize = 768;

/// As `guest/c/fb.c` draws it.
fn pixel(x: usize, y: usize) -> [u8; 3] {
    match y {
        100 => [0x12, 0x34, 0x56],
        _ => [(x / 4) as u8, (y / 3) as u8, (x ^ y) as u8],
    }
}

/// A file that is gone when the test is over.
pub(crate) struct Gone(pub(crate) PathBuf);

impl Gone {
    pub(crate) fn named(name: &str) -> Self {
        let gone = Gone(guest_dir().join(name));
        let _ = fs::remove_file(&gone.0);
        gone
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// QEMU's monitor.
pub(crate) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Of a machine with these [words](Monitor::words); it has been greeted.
    pub(crate) fn of(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| error.to_string())?;
        let mut monitor = Monitor(BufReader::new(stream));
        monitor.says(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(monitor)
    }

    pub(crate) fn words(socket: &Path) -> [String; 2] {
        let place = format!("unix:{},server=on,wait=off", socket.display());
        ["-qmp".into(), place]
    }

    /// Says a command; events may come before the answer, which is returned.
    pub(crate) fn says(&mut self, command: &str) -> Result<String, String> {
        let failed = |error: std::io::Error| format!("{command}: {error}");
        writeln!(self.0.get_mut(), "{command}").map_err(failed)?;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).map_err(failed)? == 0 {
                return Err(format!("{command}: no answer"));
            }
            if line.starts_with("{\"error\"") {
                return Err(format!("{command}: {line}"));
            }
            if line.starts_with("{\"return\"") {
                return Ok(line);
            }
        }
    }
}

/// The bytes of a picture in the format that QEMU writes.
fn pixels(picture: &[u8]) -> Result<&[u8], String> {
    let header = format!("P6\n{WIDTH} {HEIGHT}\n255\n");
    picture
        .strip_prefix(header.as_bytes())
        .filter(|pixels| pixels.len() == 3 * WIDTH * HEIGHT)
        .ok_or(format!(
            "the picture begins {:?}",
            String::from_utf8_lossy(&picture[..picture.len().min(16)])
        ))
}

pub fn a_picture_is_on_the_screen() -> Verdict {
    // The kernel that checks its sums: a position may be any number.
    let kernel = build::test_kernel()?.display().to_string();
    let (socket, picture) = (Gone::named("fb.sock"), Gone::named("fb.ppm"));
    let program = format!("{}:/fb", find("fb").host_path().display());
    let [option, place] = Monitor::words(&socket.0);
    let qemu = ["-device", "bochs-display", &option, &place];
    let mut words = vec!["--kernel", &kernel, "--file", &program];
    words.extend(qemu.iter().flat_map(|word| ["--qemu-arg", word]));
    let mut console = Console::start_with(&words)?;
    console.expect("# ")?;
    console.types("/fb\r", "\ndrawn\r\n")?;

    let failed = |error: std::io::Error| error.to_string();
    let mut monitor = Monitor::of(&socket.0)?;
    let path = picture.0.display();
    monitor.says(&format!(
        r#"{{"execute":"screendump","arguments":{{"filename":"{path}"}}}}"#
    ))?;
    let bytes = fs::read(&picture.0).map_err(failed)?;
    for (n, shown) in pixels(&bytes)?.chunks_exact(3).enumerate() {
        let (x, y) = (n % WIDTH, n / WIDTH);
        if shown != pixel(x, y) {
            return Err(format!("at {x}, {y} the screen shows {shown:02x?}"));
        }
    }

    console.types("\r", "# ")?;
    console.types("echo status $?\r", "\nstatus 0\r\n")?;
    console.expect("# ")?;
    console.type_in("poweroff\r")?;
    console.end()
}
