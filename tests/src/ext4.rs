//! Files on disks: images that the host makes and checks, and a guest that works on them.

use crate::disks::{Image, Kind, NVME, raw};
use crate::machines::{Test, Verdict, ensure, exec, find, frames_are_back, says_ok, tests};
use crate::plug::what_fsync_promised_survives_a_power_cut;
use crate::{build, guest_dir, runner};
use launcher::{Config, Outcome};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const MB: u64 = 1 << 20;

tests!["ext4":
    what_fsync_promised_survives_a_power_cut,
    names_on_one_cpu,
    names_on_four_cpus,
    calls_say_what_they_say_on_linux,
    data_on_one_cpu,
    data_on_two_cpus,
    data_on_four_cpus,
    a_full_disk_says_so_and_goes_on,
    a_read_only_mount_stays_so,
    attributes_and_times_are_the_hosts,
    a_disk_is_unmounted_before_it_is_mounted_again,
    a_program_runs_from_a_disk,
    processes_share_files_on_two_cpus,
    processes_share_files_on_four_cpus,
    a_file_is_copied_to_another_disk,
    bad_blocks_of_a_file_are_its_users_affair,
    hostile_images_harm_nobody,
    larger_lists_than_memory_are_not_made,
    a_file_larger_than_memory_is_written,
    a_journal_larger_than_memory_is_not_kept,
    memory_is_gone_and_nothing_else,
    flights_on_one_cpu,
    flights_on_two_cpus,
    flights_on_four_cpus,
    nvme_flights_on_four_cpus,
    who_takes_blocks_away_waits_for_flights,
    lock_5_the_mapping_changes_on_one_cpu,
    lock_5_the_mapping_changes_on_two_cpus,
    lock_5_the_mapping_changes_on_four_cpus,
    a_bad_block_of_a_file_is_an_error_of_its_flight,
];

/// Runs a tool of e2fsprogs; what it said.
pub(crate) fn tool(name: &str, words: &[&str]) -> Result<String, String> {
    let out = Command::new(name)
        .args(words)
        .env("PATH", format!("{}:/usr/sbin:/sbin", env!("PATH")))
        .output()
        .map_err(|error| format!("{name}: {error} (e2fsprogs is missing: make setup)"))?;
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    match out.status.success() {
        true => Ok(said.into_owned()),
        false => Err(format!("{name} {words:?}: {}\n{said}", out.status)),
    }
}

/// A directory that is gone when the test is over.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self, String> {
        let dir = Scratch(guest_dir().join(format!("{name}.dir")));
        let _ = fs::remove_dir_all(&dir.0);
        fs::create_dir_all(&dir.0).map_err(|error| error.to_string())?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An image with a file system of `mb` megabytes, which has what `seed` puts into a directory.
pub(crate) fn volume(
    name: &str,
    mb: u64,
    block: &str,
    seed: impl Fn(&Path) -> std::io::Result<()>,
) -> Result<Image, String> {
    let dir = Scratch::new(name)?;
    seed(&dir.0).map_err(|error| error.to_string())?;
    let image = Image(guest_dir().join(format!("{name}.img")));
    let _ = fs::remove_file(&image.0);
    let (from, to) = (dir.0.to_string_lossy(), image.0.to_string_lossy());
    let size = format!("{mb}M");
    tool("mkfs.ext4", &["-q", "-b", block, "-d", &from, &to, &size])?;
    Ok(image)
}

/// FNV-1a.
fn sum(bytes: &[u8]) -> u64 {
    let step = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The image is sound, and its files are what the guest has seen.
fn checked(image: &Image, outcome: &Outcome) -> Verdict {
    let path = image.0.to_string_lossy();
    tool("e2fsck", &["-fn", &path])?;
    let dump = Scratch::new(&format!("{}.dump", image.0.file_stem().unwrap().display()))?;
    let to = dump.0.to_string_lossy();
    tool("debugfs", &["-R", &format!("rdump / {to}"), &path])?;
    let said = String::from_utf8_lossy(&outcome.stdout);
    let mut files = 0;
    for line in said.lines().filter_map(|line| line.strip_prefix("file ")) {
        let mut words = line.rsplitn(3, ' ');
        let (Some(hash), Some(size), Some(name)) = (words.next(), words.next(), words.next())
        else {
            return Err(format!("the guest says: {line}"));
        };
        let at = dump.0.join(name.trim_start_matches('/'));
        let bytes = fs::read(&at).map_err(|error| format!("{name}: {error}"))?;
        if bytes.len().to_string() != size || format!("{:016x}", sum(&bytes)) != hash {
            return Err(format!(
                "{name}: {} bytes, the guest saw {size}",
                bytes.len()
            ));
        }
        files += 1;
    }
    (files > 0)
        .then_some(())
        .ok_or_else(|| "the guest saw no file".into())
}

fn seed(dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir.join("seed/deep/er"))?;
    fs::write(dir.join("seed/one"), "one\n")?;
    let long: Vec<u8> = (0..300_000u32).flat_map(|i| i.to_le_bytes()).collect();
    fs::write(dir.join("seed/deep/er/long"), &long)?;
    std::os::unix::fs::symlink("deep/er/long", dir.join("seed/link"))?;
    for i in 0..300 {
        fs::write(dir.join(format!("seed/deep/{i} of them")), [i as u8; 77])?;
    }
    // A hole with something behind it.
    let sparse = fs::File::create(dir.join("seed/sparse"))?;
    sparse.set_len(3_000_000)?;
    std::os::unix::fs::FileExt::write_at(&sparse, b"behind", 2_000_000).map(drop)
}

pub(crate) fn run(
    words: &[&str],
    cpus: u32,
    images: &[(Kind, &str)],
    more: impl FnOnce(&mut Config),
) -> Result<Outcome, String> {
    run_on("ext4", words, cpus, images, more)
}

fn run_on(
    program: &str,
    words: &[&str],
    cpus: u32,
    images: &[(Kind, &str)],
    more: impl FnOnce(&mut Config),
) -> Result<Outcome, String> {
    let kernel = runner::kernel_for(cpus)?;
    let outcome = exec(find(program), words, |config| {
        config.kernel = kernel;
        config.smp = cpus;
        config.cmdline = "leakcheck".into();
        config.timeout = Some(Duration::from_secs(300));
        config.qemu_args = images
            .iter()
            .enumerate()
            .flat_map(|(n, (kind, options))| kind.disk(&format!("d{n}"), options))
            .collect();
        more(config);
    })?;
    let fine = outcome.status == 0 && outcome.stdout.ends_with(b"ok\n");
    ensure(fine, "not as it should", &outcome)?;
    // The stack of a mount is kept for the next one; so is the worker's. And the heap keeps frames that have a few small
    // objects left in them: some tens of them, after ten mounts as after one.
    frames_are_back(&outcome, 128 + 32 * images.len() as i64)?;
    Ok(outcome)
}

fn one(what: &str, cpus: u32, mb: u64, block: &str, kind: Kind) -> Verdict {
    let [disk, _] = kind.names();
    let name = format!("ext4.{what}.{cpus}.{block}{}", disk.replace('/', "."));
    let image = volume(&name, mb, block, seed)?;
    let rounds = rounds();
    let (count, mut words) = (rounds.to_string(), vec![what, disk]);
    if what == "load" {
        words.push(&count);
    }
    let outcome = run(&words, cpus, &[(kind, &raw(&image.0))], |config| {
        let longer = config.timeout.map(|t| t + Duration::from_secs(rounds / 10));
        config.timeout = longer;
    })?;
    checked(&image, &outcome)
}

/// How long programs work on the same files: `EXT4_ROUNDS` for minutes or hours of it.
fn rounds() -> u64 {
    let said = std::env::var("EXT4_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok());
    said.unwrap_or(120)
}

fn names_on_one_cpu() -> Verdict {
    one("names", 1, 128, "4096", Kind::Virtio)
}

fn names_on_four_cpus() -> Verdict {
    one("names", 4, 128, "1024", NVME)
}

/// Of blocks of both sizes. What is claimed there holds on Linux's ext4.
fn calls_say_what_they_say_on_linux() -> Verdict {
    for (cpus, block) in [(1, "4096"), (2, "1024")] {
        let image = volume(&format!("ext4.calls.{cpus}"), 64, block, |_| Ok(()))?;
        let kernel = runner::kernel_for(cpus)?;
        let outcome = exec(find("calls"), &["/mnt", "/dev/vda"], |config| {
            config.kernel = kernel;
            config.smp = cpus;
            config.qemu_args = Kind::Virtio.disk("calls", &raw(&image.0));
        })?;
        says_ok(&outcome)?;
        tool("e2fsck", &["-fn", &image.0.to_string_lossy()])?;
    }
    Ok(())
}

fn data_on_one_cpu() -> Verdict {
    one("data", 1, 128, "1024", Kind::Virtio)
}

fn data_on_two_cpus() -> Verdict {
    one("data", 2, 128, "4096", NVME)
}

fn data_on_four_cpus() -> Verdict {
    one("data", 4, 128, "4096", Kind::Virtio)
}

fn a_full_disk_says_so_and_goes_on() -> Verdict {
    one("full", 2, 48, "4096", Kind::Virtio)
}

fn a_read_only_mount_stays_so() -> Verdict {
    one("readonly", 2, 64, "4096", Kind::Virtio)
}

/// What `debugfs` says of a time: seconds, and nanoseconds above two bits of other use.
fn time(said: &str, which: &str) -> Option<(u64, u64)> {
    let line = said.lines().find_map(|l| l.trim().strip_prefix(which))?;
    let (sec, extra) = line.trim().split(' ').next()?.split_once(':')?;
    let sec = u64::from_str_radix(sec.strip_prefix("0x")?, 16).ok()?;
    Some((sec, u64::from_str_radix(extra, 16).ok()? >> 2))
}

fn attributes_and_times_are_the_hosts() -> Verdict {
    let image = volume("ext4.attributes", 64, "4096", |_| Ok(()))?;
    let disks = [(Kind::Virtio, &*raw(&image.0))];
    let outcome = run(&["attributes", "/dev/vda"], 2, &disks, |_| {})?;
    checked(&image, &outcome)?;
    let path = image.0.to_string_lossy();
    let has = tool("debugfs", &["-R", "ea_list /x", &path])?;
    if !has.contains("user.long (5) = \"short\"") || !has.contains("trusted.root (4)") {
        return Err(format!("the host sees: {has}"));
    }
    let said = String::from_utf8_lossy(&outcome.stdout);
    let mut compared = 0;
    for line in said.lines().filter_map(|line| line.strip_prefix("times ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let there = tool("debugfs", &["-R", &format!("stat {}", words[0]), &path])?;
        for (n, which) in ["atime:", "mtime:", "ctime:"].into_iter().enumerate() {
            let word = |i: usize| u64::from_str_radix(words[1 + 2 * n + i], 16).ok();
            let here = word(0).zip(word(1));
            if here.is_none() || here != time(&there, which) {
                return Err(format!("{line}: {which} here {here:x?}, there: {there}"));
            }
        }
        compared += 1;
    }
    (compared == 5)
        .then_some(())
        .ok_or_else(|| format!("{compared} were compared"))
}

/// Four CPUs: who unmounts stands, who mounts waits.
fn a_disk_is_unmounted_before_it_is_mounted_again() -> Verdict {
    let kernel = build::test_kernel()?;
    let image = volume("ext4.twice", 64, "4096", seed)?;
    let disks = [(Kind::Virtio, &*raw(&image.0))];
    let outcome = run(&["twice", "/dev/vda"], 4, &disks, |config| {
        config.kernel = kernel;
    })?;
    checked(&image, &outcome)
}

fn a_program_runs_from_a_disk() -> Verdict {
    one("program", 2, 64, "4096", Kind::Virtio)
}

fn processes_share_files_on_two_cpus() -> Verdict {
    one("load", 2, 64, "4096", Kind::Virtio)
}

fn processes_share_files_on_four_cpus() -> Verdict {
    one("load", 4, 64, "4096", NVME)
}

/// A program copies 64 MiB from disk to disk with `O_DIRECT`, the CPU copies none of it, and the host finds it equal.
fn a_file_is_copied_to_another_disk() -> Verdict {
    let big: Vec<u8> = (0..64 * MB / 8)
        .flat_map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    let from = volume("ext4.copy.from", 128, "4096", |dir| {
        fs::write(dir.join("big"), &big)?;
        fs::create_dir(dir.join("to"))
    })?;
    let to = volume("ext4.copy.to", 128, "4096", |_| Ok(()))?;
    let disks = [(Kind::Virtio, &*raw(&from.0)), (NVME, &*raw(&to.0))];
    let outcome = run(&["copy", "/dev/vda", "/dev/nvme0n1"], 2, &disks, |_| {})?;
    checked(&from, &outcome)?;
    let path = to.0.to_string_lossy();
    tool("e2fsck", &["-fn", &path])?;
    let dump = Scratch::new("ext4.copied")?;
    let at = dump.0.join("big");
    tool(
        "debugfs",
        &["-R", &format!("dump /big {}", at.display()), &path],
    )?;
    let copied = fs::read(at).map_err(|error| error.to_string())?;
    (copied == big)
        .then_some(())
        .ok_or_else(|| "the copy differs".into())
}

fn a_file_larger_than_memory_is_written() -> Verdict {
    let image = volume("ext4.larger", 256, "4096", seed)?;
    let disks = [(Kind::Virtio, &*raw(&image.0))];
    let outcome = run(&["larger", "/dev/vda"], 2, &disks, |config| {
        config.mem = "64M".into();
    })?;
    checked(&image, &outcome)
}

fn small(what: &str, mb: u64, mem: &str) -> Verdict {
    let image = volume(&format!("ext4.{what}"), mb, "4096", seed)?;
    let disks = [(Kind::Virtio, &*raw(&image.0))];
    let outcome = run(&[what, "/dev/vda"], 2, &disks, |config| {
        config.mem = mem.into();
    })?;
    checked(&image, &outcome)
}

/// 64 MiB of it.
fn a_journal_larger_than_memory_is_not_kept() -> Verdict {
    small("journal", 4096, "64M")
}

fn memory_is_gone_and_nothing_else() -> Verdict {
    small("shortage", 512, "80M")
}

/// Images with bytes of their metadata overwritten, the superblock of some included.
fn hostile_images_harm_nobody() -> Verdict {
    let sound = volume("ext4.sound", 64, "4096", seed)?;
    let mut images = vec![];
    // Others than these: `SEED=n`.
    let seed_of = std::env::var("SEED").ok().and_then(|n| n.parse().ok());
    let mut dice = 0x9e37_79b9_7f4a_7c15u64 ^ seed_of.unwrap_or(0);
    let mut next = |n: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % n
    };
    // Where metadata lies: the first group's tables, and blocks of directories and extents that look like it.
    for n in 0..HOSTILE {
        let image = volume(
            &format!("ext4.hostile.{n}"),
            64,
            ["1024", "4096"][n % 2],
            seed,
        )?;
        let mut bytes = fs::read(&image.0).map_err(|error| error.to_string())?;
        for _ in 0..next(40) + 1 {
            let at = match next(8) {
                0 => 1024 + next(1024),
                1..=5 => 4096 + next(400 << 10),
                _ => next(bytes.len() as u64),
            };
            bytes[at as usize] = next(256) as u8;
        }
        if n % 4 == 3 {
            // Checksums would catch most of it: some have none.
            fs::write(&image.0, &bytes).map_err(|error| error.to_string())?;
            let path = image.0.to_string_lossy();
            let _ = tool("debugfs", &["-w", "-R", "feature -metadata_csum", &path]);
        } else {
            fs::write(&image.0, &bytes).map_err(|error| error.to_string())?;
        }
        images.push(image);
    }
    let names: Vec<String> = (0..HOSTILE as u8)
        .map(|n| format!("/dev/vd{}", char::from(b'b' + n)))
        .collect();
    let mut words = vec!["hostile", "/dev/vda"];
    words.extend(names.iter().map(String::as_str));
    let drives: Vec<String> = images.iter().map(|image| raw(&image.0)).collect();
    let first = raw(&sound.0);
    let mut disks = vec![(Kind::Virtio, first.as_str())];
    disks.extend(drives.iter().map(|drive| (Kind::Virtio, drive.as_str())));
    let outcome = run(&words, 2, &disks, |_| {})?;
    let said = String::from_utf8_lossy(&outcome.stdout);
    let line = said.lines().find(|line| line.ends_with("were mounted"));
    let mounted = line.and_then(|line| line.split(' ').next()?.parse().ok());
    ensure(
        mounted.unwrap_or(0) >= 4,
        "hardly any was mounted",
        &outcome,
    )?;
    checked(&sound, &outcome)
}

const HOSTILE: usize = 12;

/// Of groups of blocks, by a superblock that says that they have eight blocks each, or that the disk has 8 TiB; or of a journal's blocks,
/// by extents that have the same part of the disk again and again.
fn larger_lists_than_memory_are_not_made() -> Verdict {
    let sound = volume("ext4.small", 64, "4096", seed)?;
    let forged = |name: &str, block: &str, size: u64, forge: &dyn Fn(&fs::File, &Path)| {
        let image = volume(name, 64, block, |_| Ok(()))?;
        let path = image.0.to_string_lossy();
        tool("debugfs", &["-w", "-R", "feature -metadata_csum", &path])?;
        let file = fs::OpenOptions::new().write(true).open(&image.0);
        let file = file.map_err(|error| error.to_string())?;
        file.set_len(size).map_err(|error| error.to_string())?;
        forge(&file, &image.0);
        Ok::<_, String>(image)
    };
    let put = |file: &fs::File, at: u64, words: &[u32]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        std::os::unix::fs::FileExt::write_all_at(file, &bytes, at).expect("the image is ours");
    };
    let (blocks, per_group) = (1024 + 0x4, 1024 + 0x20);
    let many = forged("ext4.many", "1024", 4 << 30, &|file, _| {
        put(file, blocks, &[1 << 22]);
        put(file, per_group, &[8, 8]);
    })?;
    let giant = forged("ext4.giant", "4096", 8 << 40, &|file, _| {
        put(file, blocks, &[1 << 31]);
        put(file, per_group, &[1024, 1024]);
    })?;
    let journal = forged("ext4.tree", "4096", 64 << 20, &|file, path| {
        let said = tool("debugfs", &["-R", "imap <8>", &path.to_string_lossy()]).unwrap();
        // "located at block 37, offset 0x0700"
        let place = said.split("located at block ").nth(1).unwrap();
        let (block, offset) = place
            .lines()
            .next()
            .unwrap()
            .split_once(", offset 0x")
            .unwrap();
        let block: u64 = block.parse().unwrap();
        let offset = u64::from_str_radix(offset, 16).unwrap();
        let (last, first, each) = ((64 << 8) - 1, 9_000, 7_000);
        // Magic and entries; most entries and level; generation.
        let root = [1 << 16 | 0xf30a, 1 << 16 | 4, 0, 0, last, 0];
        put(file, block * 4096 + offset + 0x28, &root);
        let extents = (0..340).flat_map(|n| [n * each, each, first]);
        let leaf: Vec<u32> = [340 << 16 | 0xf30a, 340, 0]
            .into_iter()
            .chain(extents)
            .collect();
        put(file, u64::from(last) * 4096, &leaf);
    })?;
    let drives = [&sound, &many, &giant, &journal].map(|image| raw(&image.0));
    let disks = drives.each_ref().map(|drive| (Kind::Virtio, &**drive));
    let words = ["lists", "/dev/vda", "/dev/vdb", "/dev/vdc", "/dev/vdd"];
    let outcome = run(&words, 2, &disks, |config| config.mem = "64M".into())?;
    checked(&sound, &outcome)
}

/// Requests to files that end by themselves: many at once to one in pieces; then on a disk that takes its time.
fn flights(kind: Kind, cpus: u32) -> Verdict {
    let [disk, _] = kind.names();
    let name = format!("flights.{cpus}{}", disk.replace('/', "."));
    let image = volume(&name, 64, "4096", seed)?;
    let drive = raw(&image.0);
    let outcome = run_on("flights", &["load", disk], cpus, &[(kind, &drive)], |_| {})?;
    checked(&image, &outcome)?;
    let blocks = tool(
        "debugfs",
        &["-R", "blocks /frag", &image.0.to_string_lossy()],
    )?;
    let blocks: Vec<u64> = blocks.split_whitespace().flat_map(str::parse).collect();
    let pieces = 1 + blocks.windows(2).filter(|w| w[1] != w[0] + 1).count();
    ensure(pieces > 100, "the file is in few pieces", &outcome)?;
    let slow = format!("{drive},throttling.iops-total=200");
    let outcome = run_on(
        "flights",
        &["slow", disk],
        cpus,
        &[(kind, &slow)],
        |config| {
            // QEMU would make one of requests that follow each other, and that one is quick.
            if let (Kind::Virtio, Some(device)) = (kind, config.qemu_args.last_mut()) {
                device.push_str(",request-merging=off");
            }
        },
    )?;
    checked(&image, &outcome)
}

fn flights_on_one_cpu() -> Verdict {
    flights(Kind::Virtio, 1)
}

fn flights_on_two_cpus() -> Verdict {
    flights(Kind::Virtio, 2)
}

fn flights_on_four_cpus() -> Verdict {
    flights(Kind::Virtio, 4)
}

fn nvme_flights_on_four_cpus() -> Verdict {
    flights(Kind::Nvme(",mdts=1"), 4)
}

/// A request stands between its landing and its end, and somebody cuts the file, punches it, unlinks it, writes it.
fn who_takes_blocks_away_waits_for_flights() -> Verdict {
    let image = volume("flights.race", 64, "4096", seed)?;
    let kernel = build::test_kernel()?;
    let disks = [(Kind::Virtio, &*raw(&image.0))];
    let outcome = run_on("flights", &["race", "/dev/vda"], 4, &disks, |config| {
        config.kernel = kernel;
    })?;
    checked(&image, &outcome)
}

/// A page is read in with no lock held, or made ready to be written. What is mapped there changes meanwhile, or the file.
fn the_mapping_changes(cpus: u32) -> Verdict {
    let image = volume(&format!("meanwhile.{cpus}"), 64, "4096", |_| Ok(()))?;
    let kernel = build::test_kernel()?;
    let disks = [(Kind::Virtio, &*raw(&image.0))];
    let outcome = run_on("meanwhile", &["/dev/vda"], cpus, &disks, |config| {
        config.kernel = kernel;
    })?;
    checked(&image, &outcome)
}

fn lock_5_the_mapping_changes_on_one_cpu() -> Verdict {
    the_mapping_changes(1)
}

fn lock_5_the_mapping_changes_on_two_cpus() -> Verdict {
    the_mapping_changes(2)
}

fn lock_5_the_mapping_changes_on_four_cpus() -> Verdict {
    the_mapping_changes(4)
}

/// A block of one file cannot be written, one of another not read: their users are told, of a write once each, and nobody else is.
fn bad_blocks_of_a_file_are_its_users_affair() -> Verdict {
    with_bad_blocks("ext4", &[("victim", "write"), ("unread", "read")])
}

/// One that can be neither read nor written, among requests in flight.
fn a_bad_block_of_a_file_is_an_error_of_its_flight() -> Verdict {
    with_bad_blocks("flights", &[("victim", "read"), ("victim", "write")])
}

fn with_bad_blocks(program: &str, bad: &[(&str, &str)]) -> Verdict {
    let image = volume(&format!("{program}.bad"), 64, "4096", |dir| {
        let mut files = bad.iter();
        files.try_for_each(|(file, _)| fs::write(dir.join(file), vec![7; MB as usize]))
    })?;
    let path = image.0.to_string_lossy();
    let rule = |(file, what): &(&str, &str)| {
        let blocks = tool("debugfs", &["-R", &format!("blocks /{file}"), &path])?;
        let mut blocks = blocks
            .split_whitespace()
            .filter_map(|w| w.parse::<u64>().ok());
        let sector = blocks.nth(100).ok_or("the file has no blocks")? * 8;
        Ok::<_, String>(format!(
            "[inject-error]\nevent = \"{what}_aio\"\niotype = \"{what}\"\nsector = \"{sector}\"\nerrno = \"5\"\nonce = \"off\"\n"
        ))
    };
    let all: String = bad.iter().map(rule).collect::<Result<_, _>>()?;
    let rules = Image(guest_dir().join(format!("{program}.bad.rules.img")));
    fs::write(&rules.0, all).map_err(|error| error.to_string())?;
    let file = format!(
        "driver=raw,file.driver=blkdebug,file.config={},file.image.driver=file,file.image.filename={path},\
         rerror=report,werror=report",
        rules.0.display(),
    );
    let disks = [(Kind::Virtio, &*file)];
    run_on(program, &["bad", "/dev/vda"], 2, &disks, |config| {
        if let Some(device) = config.qemu_args.last_mut() {
            device.push_str(",request-merging=off");
        }
    })?;
    // What could not be written is not what the guest saw: the image is sound, and that is all.
    tool("e2fsck", &["-fn", &path]).map(drop)
}
