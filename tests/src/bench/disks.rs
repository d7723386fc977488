//! Rows of disks and of files on them, beside Debian's Linux.
//!
//! Devices answer when the host lets them, so time says nothing here: a QEMU plugin (`bench/count.c`) counts the instructions that
//! the guest executes, and a halted CPU executes none. `bench/disk.c` does each row in rounds; the least round is the figure.
//! Linux runs the same program on the same images in the same machine.

use super::{baseline, tool};
use crate::build::{self, Result};
use launcher::archive::Archive;
use launcher::{Config, GuestFile, Mode};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// As `bench/disk.c`.
const LENGTH: u64 = 48 << 20;
/// Direct I/O and faults on cached pages: at most half of Linux. Of a cached read 512 instructions are the copy.
const BARS: &[(&str, f64)] = &[
    ("odirect_read_4K", 0.5),
    ("odirect_read_4K_32", 0.5),
    ("odirect_read_256K", 0.5),
    ("odirect_read_256K_32", 0.5),
    ("odirect_file_read_4K", 0.5),
    ("mmap_file_fault_cached", 0.5),
    ("mmap_file_fault_cold", 0.5),
    ("cached_read_4K", 0.55),
];
/// How often Linux runs. What the runs' figures differ by is written beside the least of them.
const RUNS: usize = 3;

fn path(name: &str) -> PathBuf {
    crate::root().join("target/bench").join(name)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The two images, new.
fn images() -> Result<[PathBuf; 2]> {
    let (raw, ext4, files) = (path("raw.img"), path("ext4.img"), path("files"));
    let make = || {
        fs::create_dir_all(&files)?;
        let mut out = BufWriter::new(File::create(&raw)?);
        for at in (0..LENGTH).step_by(8) {
            out.write_all(&at.to_le_bytes())?;
        }
        out.flush()?;
        fs::copy(&raw, files.join("data"))?;
        File::create(&ext4)
    };
    make().map_err(|error| format!("an image: {error}"))?;
    let (from, to) = (text(&files), text(&ext4));
    let words = ["-q", "-F", "-b", "4096", "-d", &from, &to, "128M"];
    crate::ext4::tool("mkfs.ext4", &words)?;
    Ok([raw, ext4])
}

/// QEMU's words for the disks, the clock and the plugin.
fn machine(images: &[PathBuf; 2], marks: &Path) -> Result<Vec<String>> {
    let plugin = tool("count", &["-shared", "-fPIC"])?;
    let _ = fs::remove_file(marks);
    let mut words = vec!["-icount".into(), "shift=0,sleep=on".into()];
    for (image, options) in images.iter().zip(["readonly=on,", ""]) {
        let id = format!("disk{}", words.len());
        let drive = format!("{options}format=raw,if=none,id={id},file={}", text(image));
        words.extend(["-drive".into(), drive, "-device".into()]);
        words.push(format!("virtio-blk-pci,drive={id}"));
    }
    let plugin = format!("{},out={}", text(&plugin), text(marks));
    words.extend(["-plugin".into(), plugin]);
    Ok(words)
}

/// Each row's least round, from what the program printed and the plugin counted.
fn rows(printed: &str, marks: &Path) -> Result<Vec<(String, u64)>> {
    let marks = fs::read_to_string(marks).map_err(|_| "QEMU's plugin has written nothing")?;
    let mut marks = marks.lines().filter_map(|line| line.parse::<u64>().ok());
    let mut rows = Vec::new();
    for line in printed.lines().filter_map(|l| l.strip_prefix("BENCH ")) {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |n: usize| words.get(n)?.parse::<u64>().ok();
        let (Some(times), Some(rounds)) = (number(1), number(2)) else {
            return Err(format!("not a row: {line}"));
        };
        let round = |_| Some(marks.next()?.abs_diff(marks.next()?) / times);
        let least = (0..rounds).filter_map(round).min();
        rows.push((words[0].into(), least.ok_or("marks are missing")?));
    }
    match printed.contains("BENCH-END") {
        true => Ok(rows),
        false => Err(format!("the benchmark did not finish:\n{printed}")),
    }
}

fn ours(disk: PathBuf) -> Result<Vec<(String, u64)>> {
    let marks = path("marks");
    let mut config = Config::new(build::kernel()?, Mode::Exec);
    let guest = String::from("/bin/disk");
    config.argv = [&guest, "/dev/vda", "/dev/vdb"].map(String::from).to_vec();
    config.files = vec![GuestFile { host: disk, guest }];
    (config.icount, config.smp) = (true, 1);
    config.timeout = Some(Duration::from_secs(900));
    config.qemu_args = machine(&images()?, &marks)?;
    let outcome = launcher::run(&config).map_err(|error| error.to_string())?;
    let printed = String::from_utf8_lossy(&outcome.stdout).into_owned();
    rows(&printed, &marks).map_err(|why| format!("{why}\n{}", outcome.log))
}

/// Linux's rows: the least, and what the runs differ by.
const LINUX: &str = "linux-6.1-disks.tsv";

/// Prints our rows beside Linux's; whether all bars hold.
pub fn report() -> Result<bool> {
    let linux = baseline(LINUX)?;
    let mut good = true;
    println!(
        "\n{:28} {:>10} {:>10}",
        "outside halt", "Pinfold", "Linux 6.1"
    );
    for (name, cost) in ours(tool("disk", &["-static"])?)? {
        let Some((_, [theirs, spread])) = linux.iter().find(|(row, _)| *row == name) else {
            return Err(format!("Linux has no row {name}: make bench-linux"));
        };
        let ratio = cost as f64 / theirs;
        let bar = BARS.iter().find(|(row, _)| *row == name);
        let over = bar.is_some_and(|(_, bar)| ratio > *bar);
        good &= !over;
        let mark = if over { "  over the bar" } else { "" };
        print!("{name:28} {cost:>10} {theirs:>10} {ratio:>7.3}{mark}");
        match *spread > 2.0 {
            true => println!("  (Linux's runs differ by {spread}%)"),
            false => println!(),
        }
    }
    Ok(good)
}

/// Debian's kernel package, unpacked: where it is, and the kernel's release.
fn linux() -> Result<(PathBuf, String)> {
    let (home, tree) = (path("linux"), path("linux/tree"));
    fs::create_dir_all(&home).map_err(|error| error.to_string())?;
    let find = || {
        let mut names = fs::read_dir(tree.join("boot")).ok()?.flatten();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
        names.find_map(|entry| Some(name(entry)?.strip_prefix("vmlinuz-")?.to_string()))
    };
    if find().is_none() {
        let depends = Command::new("apt-cache")
            .args(["depends", "linux-image-cloud-amd64"])
            .output()
            .map_err(|error| format!("apt-cache: {error}: this wants Debian"))?;
        let depends = String::from_utf8_lossy(&depends.stdout).into_owned();
        // The last word is the package of today's release.
        let package = depends
            .split_whitespace()
            .last()
            .ok_or("Debian has no package linux-image-cloud-amd64")?;
        let mut get = Command::new("apt-get");
        build::run(get.current_dir(&home).args(["download", "-q", package]))?;
        let packages = fs::read_dir(&home).map_err(|error| error.to_string())?;
        let mut packages = packages.flatten().map(|entry| entry.path());
        let package = packages
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .ok_or("apt-get has brought no package")?;
        build::run(Command::new("dpkg").arg("-x").arg(package).arg(&tree))?;
    }
    let release = find().ok_or("the package has no kernel")?;
    Ok((tree, release))
}

/// What Linux loads before there are disks.
const MODULES: [&str; 6] = [
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
];
/// As little else as can be: what we do not have either costs Linux nothing.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr norandmaps nohz=off cgroup_disable=memory psi=0 audit=0 \
                       apparmor=0 transparent_hugepage=madvise";

/// Linux's first files.
fn archive(tree: &Path, release: &str, disk: &Path) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let busybox = std::env::var("PATH").unwrap_or_default();
    let busybox = std::env::split_paths(&busybox)
        .map(|directory| directory.join("busybox"))
        .find(|path| path.exists())
        .ok_or("no busybox")?;
    let mut archive = Archive::default();
    let mut init = String::from(
        "#!/busybox sh\n/busybox mount -t devtmpfs none /dev\n/busybox mount -t proc none /proc\n",
    );
    for directory in ["dev", "proc"] {
        archive.directory(directory, 0o755);
    }
    for module in MODULES {
        let file = tree.join(format!("lib/modules/{release}/kernel/drivers/{module}.ko"));
        let name = module.replace('/', "-");
        archive.file(&name, 0o644, &read(&file)?);
        let _ = writeln!(init, "/busybox insmod /{name}");
    }
    init += "/disk /dev/vda /dev/vdb\n/busybox poweroff -f\n";
    archive.file("busybox", 0o755, &read(&busybox)?);
    archive.file("disk", 0o755, &read(disk)?);
    archive.file("init", 0o755, init.as_bytes());
    Ok(archive.finish())
}

/// `make bench-linux`: measures Linux and writes its rows.
pub fn measure() -> Result<()> {
    let (tree, release) = linux()?;
    let disk = tool("disk", &["-static"])?;
    let (initrd, marks) = (path("linux/initrd"), path("linux/marks"));
    fs::write(&initrd, archive(&tree, &release, &disk)?).map_err(|error| error.to_string())?;
    let mut figures: Vec<(String, Vec<u64>)> = Vec::new();
    for run in 1..=RUNS {
        println!("Linux {release}, run {run} of {RUNS}");
        let mut qemu = Command::new("timeout");
        qemu.args(["900", "qemu-system-x86_64", "-nodefaults", "-no-reboot"])
            .args("-display none -m 1G -smp 1 -serial stdio -cpu max,-erms,-fsrm -accel tcg,thread=single".split(' '))
            .arg("-kernel")
            .arg(tree.join(format!("boot/vmlinuz-{release}")))
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", CMDLINE])
            .args(machine(&images()?, &marks)?);
        let output = qemu.output().map_err(|error| error.to_string())?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        for (name, cost) in rows(&printed, &marks)? {
            match figures.iter_mut().find(|(row, _)| *row == name) {
                Some((_, costs)) => costs.push(cost),
                None => figures.push((name, vec![cost])),
            }
        }
    }
    let mut file = format!(
        "# Guest instructions per operation outside halt, Debian's Linux {release} on QEMU, rows as disk.c defines them: `make bench-linux`.\n\
         # The least round of {RUNS} runs, and by how many percent the runs' least rounds differ.\n\
         # Kernel command line: {CMDLINE}\n\
         row\tlinux\tspread\n"
    );
    for (name, costs) in figures {
        let (least, most) = (costs.iter().min().unwrap(), costs.iter().max().unwrap());
        let spread = 100.0 * (*most as f64 / *least as f64 - 1.0);
        let _ = writeln!(file, "{name}\t{least}\t{spread:.1}");
    }
    fs::write(crate::root().join("tests/bench").join(LINUX), &file)
        .map_err(|error| error.to_string())?;
    print!("{file}");
    Ok(())
}
