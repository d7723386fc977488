//! Pulling the plug. Killing QEMU loses nothing that its disk has taken, so the disk's writes and flushes are recorded
//! (`blklogwrites`), and images are made as a power cut could leave them: what was written before a flush is there, and of what was
//! written after it any part. On each the journal is replayed, by the code that the kernel mounts with; then
//! e2fsck finds nothing, and everything that `fsync` has promised is there. Some of them the kernel itself mounts, a few at a time.

use crate::disks::{Image, Kind, raw};
use crate::ext4::{run, tool, volume};
use crate::guest_dir;
use crate::machines::Verdict;
use rsext4::runtime::{Clock, MountServices, MountedServices, NoopObserver};
use rsext4::{
    BlockIo, DeviceCapabilities, DeviceGeometry, Ext4, Ext4Result, Ext4Timestamp, FileName,
    MountOptions, SectorId,
};
use std::cell::RefCell;
use std::fs;
use std::rc::Rc;

/// The file system's part of the disk, and where the numbers of kept promises are written.
const FILES: u64 = 32;
const DISK: u64 = 48 << 20;
const MARKER: u64 = 40 << 20;
/// How many promises are made.
const PROMISES: u64 = 60;

/// Power cuts that it has to stand while it unmounts.
const UNMOUNT: u64 = 60;

/// One in so many is mounted by the kernel; so many by one that boots.
const BOOTED: u64 = 12;
const DISKS: usize = 5;

/// One entry of the log (the format of Linux's dm-log-writes).
struct Entry {
    at: u64,
    flags: u64,
    data: Vec<u8>,
}

const FLUSH: u64 = 1;
const FUA: u64 = 2;

fn word(bytes: &[u8], at: usize) -> Result<u64, String> {
    let bytes = bytes.get(at..at + 8).ok_or("the log is cut off")?;
    Ok(u64::from_le_bytes(bytes.try_into().expect("eight")))
}

fn entries(log: &[u8]) -> Result<Vec<Entry>, String> {
    if word(log, 0)? != 0x6a_7366_7773_6872 {
        return Err("no log of writes".into());
    }
    let (count, sector) = (word(log, 16)?, word(log, 24)? & 0xffff_ffff);
    let mut at = sector as usize;
    let mut out = Vec::new();
    for _ in 0..count {
        let [first, sectors, flags] = [word(log, at)?, word(log, at + 8)?, word(log, at + 16)?];
        at += sector as usize;
        // Discards carry no data.
        let len = if flags & 4 != 0 {
            0
        } else {
            (sectors * sector) as usize
        };
        let data = log.get(at..at + len).ok_or("the log is cut off")?.to_vec();
        at += len;
        out.push(Entry {
            at: first * sector,
            flags,
            data,
        });
    }
    Ok(out)
}

/// Xorshift.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn apply(image: &mut [u8], entry: &Entry) {
    let at = entry.at as usize;
    image[at..at + entry.data.len()].copy_from_slice(&entry.data);
}

/// A disk in memory.
struct Ram(Rc<RefCell<Vec<u8>>>);

impl BlockIo for Ram {
    fn write(&mut self, buffer: &[u8], sector: SectorId, _: u32) -> Ext4Result<()> {
        let at = sector.as_usize()? * 512;
        self.0.borrow_mut()[at..at + buffer.len()].copy_from_slice(buffer);
        Ok(())
    }
    fn read(&mut self, buffer: &mut [u8], sector: SectorId, _: u32) -> Ext4Result<()> {
        let at = sector.as_usize()? * 512;
        buffer.copy_from_slice(&self.0.borrow()[at..at + buffer.len()]);
        Ok(())
    }
    fn geometry(&self) -> DeviceGeometry {
        DeviceGeometry::new(512, self.0.borrow().len() as u64 / 512)
    }
    fn capabilities(&self) -> DeviceCapabilities {
        DeviceCapabilities {
            flush: true,
            ..DeviceCapabilities::default()
        }
    }
    fn flush(&mut self) -> Ext4Result<()> {
        Ok(())
    }
}

struct Epoch;

impl Clock for Epoch {
    fn now(&self) -> Ext4Result<Ext4Timestamp> {
        Ok(Ext4Timestamp::new(1_000_000_000, 0))
    }
}

type Volume = Ext4<Ram, MountedServices<(), NoopObserver>>;

fn mount(bytes: &Rc<RefCell<Vec<u8>>>) -> Result<Volume, String> {
    let services = MountServices::new(Epoch, (), NoopObserver);
    Volume::mount(Ram(bytes.clone()), services, MountOptions::read_write())
        .map_err(|error| format!("not mounted: {error}"))
}

fn content(volume: &mut Volume, name: &str) -> Result<Option<Vec<u8>>, String> {
    let root = volume.root_inode();
    let file = FileName::new(name.as_bytes()).map_err(|error| error.to_string())?;
    let found = volume.lookup_child(root, file);
    let Some(info) = found.map_err(|error| format!("{name}: {error}"))? else {
        return Ok(None);
    };
    let mut bytes = vec![0; info.size as usize];
    let n = volume.read_inode(info.number, 0, &mut bytes);
    bytes.truncate(n.map_err(|error| format!("{name}: {error}"))?);
    Ok(Some(bytes))
}

/// What promise `i` wrote, as `guest/c/ext4.c` has it.
fn promised(i: u64, len: u64) -> Vec<u8> {
    let word = |at: u64| {
        (at / 8 + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_le_bytes()
    };
    (0..len)
        .step_by(8)
        .flat_map(|at| word((i << 24) + at))
        .collect()
}

/// Whether everything that was promised up to `kept` is there.
fn keeps(volume: &mut Volume, kept: u64) -> Result<(), String> {
    for slot in 0..8 {
        let Some(last) = (1..=kept).rev().find(|i| i % 8 == slot) else {
            continue;
        };
        let name = format!("slot{slot}");
        let bytes = content(volume, &name)?.ok_or(format!("{name} of {last} is missing"))?;
        // The next one may be there already.
        let is = |i: u64| bytes == promised(i, 104 + i * 7919 % 30000 / 8 * 8);
        if !is(last) && !is(last + 8) {
            return Err(format!(
                "{name} is not that of {last}: {} bytes",
                bytes.len()
            ));
        }
    }
    let book = content(volume, "book")?.unwrap_or_default();
    let all: Vec<u8> = (1..=kept).flat_map(|i| promised(i, 64)).collect();
    book.starts_with(&all).then_some(()).ok_or(format!(
        "the book has {} bytes of {}",
        book.len(),
        all.len()
    ))
}

/// A power cut before entry `cut`: what is on the disk, and the last promise.
fn pull(base: &[u8], log: &[Entry], cut: usize, dice: &mut Dice) -> Result<(Vec<u8>, u64), String> {
    let mut image = base.to_vec();
    let flushed = log[..cut]
        .iter()
        .rposition(|e| e.flags & FLUSH != 0)
        .map_or(0, |n| n + 1);
    log[..flushed]
        .iter()
        .for_each(|entry| apply(&mut image, entry));
    // Most of the rest, little of it, or a half: writes have overtaken those that are missing. Of two to one place the later one
    // wins, as in a disk's cache.
    let odds = [1, 2, 4][dice.below(3) as usize];
    let mut rest: Vec<&Entry> = log[flushed..cut].iter().collect();
    rest.retain(|entry| entry.flags & FUA != 0 || dice.below(5) < odds);
    rest.iter().for_each(|entry| apply(&mut image, entry));
    let marker = |entry: &&Entry| entry.at == MARKER && !entry.data.is_empty();
    let kept = log[..cut].iter().rev().find(marker);
    let kept = kept.map_or(Ok(0), |entry| word(&entry.data, 0))?;

    image.truncate((FILES << 20) as usize);
    Ok((image, kept))
}

/// The host mounts it.
fn replays(image: Vec<u8>, kept: u64, scratch: &Image) -> Verdict {
    let bytes = Rc::new(RefCell::new(image));
    let mut volume = mount(&bytes)?;
    keeps(&mut volume, kept)?;
    volume
        .unmount()
        .map_err(|error| format!("not unmounted: {error}"))?;
    drop(volume);
    fs::write(&scratch.0, &*bytes.borrow()).map_err(|error| error.to_string())?;
    tool("e2fsck", &["-fn", &scratch.0.to_string_lossy()]).map(drop)
}

/// The kernel mounts them.
fn boots(pulled: &[(Image, u64)]) -> Verdict {
    let mut words = vec!["pulled".to_string()];
    for (n, (_, kept)) in (b'a'..).zip(pulled) {
        words.extend([format!("/dev/vd{}", char::from(n)), kept.to_string()]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let drives: Vec<String> = pulled.iter().map(|(image, _)| raw(&image.0)).collect();
    let disks: Vec<_> = drives
        .iter()
        .map(|drive| (Kind::Virtio, drive.as_str()))
        .collect();
    run(&words, 2, &disks, |_| {})?;
    for (image, _) in pulled {
        tool("e2fsck", &["-fn", &image.0.to_string_lossy()])?;
    }
    Ok(())
}

/// The plug is pulled at each flush and in between; `PLUGS` says how often.
pub fn what_fsync_promised_survives_a_power_cut() -> Verdict {
    let image = volume("ext4.plug", FILES, "4096", |_| Ok(()))?;
    let file = fs::OpenOptions::new().write(true).open(&image.0);
    file.and_then(|file| file.set_len(DISK))
        .map_err(|error| error.to_string())?;
    let base = fs::read(&image.0).map_err(|error| error.to_string())?;
    let log = Image(guest_dir().join("ext4.plug.log.img"));
    fs::write(&log.0, b"").map_err(|error| error.to_string())?;
    let drive = format!(
        "driver=blklogwrites,file.driver=raw,file.file.driver=file,file.file.filename={},log.driver=file,log.filename={}",
        image.0.display(),
        log.0.display()
    );
    let words = ["plug", "/dev/vda", &PROMISES.to_string()];
    run(&words, 2, &[(Kind::Virtio, &drive)], |_| {})?;
    let log = entries(&fs::read(&log.0).map_err(|error| error.to_string())?)?;
    let plugs = std::env::var("PLUGS").ok().and_then(|n| n.parse().ok());
    let plugs: u64 = plugs.unwrap_or(40);
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let scratch = Image(guest_dir().join("ext4.pulled.img"));
    let mut booted = vec![];
    for n in 0..plugs + UNMOUNT {
        // The last writes are those of the unmounting, which has an order of its own.
        let cut = match n.checked_sub(plugs) {
            Some(n) => log.len().saturating_sub(n as usize / 2),
            None => dice.below(log.len() as u64 + 1) as usize,
        };
        let (image, kept) = pull(&base, &log, cut, &mut dice)?;
        if n % BOOTED == 0 {
            let file = Image(guest_dir().join(format!("ext4.pulled.{n}.img")));
            fs::write(&file.0, &image).map_err(|error| error.to_string())?;
            booted.push((file, kept));
        }
        replays(image, kept, &scratch)
            .map_err(|why| format!("power cut {n}, before write {cut} of {}: {why}", log.len()))?;
        let last = n + 1 == plugs + UNMOUNT;
        if booted.len() == DISKS || last && !booted.is_empty() {
            boots(&booted).map_err(|why| format!("power cuts up to {n}: {why}"))?;
            booted.clear();
        }
    }
    Ok(())
}
