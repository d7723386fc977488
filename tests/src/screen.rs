//! What a program draws on /dev/fb0, as QEMU shows it.

use crate::build;
use crate::console::Console;
use crate::machines::{Verdict, find};
use crate::monitor::{Gone, Monitor};
use std::fs;

const WIDTH: usize = 1024;
const HEIGHT: usize = 768;

/// As `guest/c/fb.c` draws it.
fn pixel(x: usize, y: usize) -> [u8; 3] {
    match y {
        100 => [0x12, 0x34, 0x56],
        _ => [(x / 4) as u8, (y / 3) as u8, (x ^ y) as u8],
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
