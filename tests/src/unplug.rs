//! Devices that are taken out of a machine that runs: from a slot of a PCI Express port, by QEMU's monitor, when the guest lets go of them.

use crate::disks::{EDU, Image, Kind, MARK_AT, MB, NVME, SIZE, is_stopped, pattern, raw};
use crate::ext4::{tool, volume};
use crate::iommu::{Bus, GUARDED};
use crate::machines::{Verdict, exec, find, frames_are_back, says_ok};
use crate::monitor::{Gone, Monitor, meanwhile};
use crate::runner;
use launcher::Outcome;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// The button is pressed before the machine begins.
const EARLY: &str = "early";
/// While somebody mounts the disk.
const MOUNTING: &str = "mounting";

/// A machine that has a slot, and whose slots are the ports' own business instead of ACPI's.
const SLOT: [&str; 6] = [
    "-machine",
    "q35",
    "-global",
    "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
    "-device",
    "pcie-root-port,id=outer,chassis=1,slot=1",
];

/// Puts a device into the slot; its name is `out`.
fn in_slot(mut words: Vec<String>) -> Vec<String> {
    if let Some(device) = words.last_mut() {
        device.push_str(",bus=outer,id=out");
    }
    words
}

/// Takes the device out if the guest has left its mark.
fn take_out(image: &Image, socket: &Gone) -> Result<bool, String> {
    let marked = image.is_marked()?;
    if marked {
        Monitor::of(&socket.0)?.takes_out("out")?;
        say_so(image)?;
    }
    Ok(marked)
}

/// Takes the device out of a machine that has not begun, and lets it begin, if there is one.
fn take_out_first(image: &Image, socket: &Gone) -> Result<bool, String> {
    let Ok(mut monitor) = Monitor::of(&socket.0) else {
        return Ok(false);
    };
    monitor.says(r#"{"execute":"device_del","arguments":{"id":"out"}}"#)?;
    monitor.says(r#"{"execute":"cont"}"#)?;
    monitor.has_lost("out")?;
    say_so(image)?;
    Ok(true)
}

/// A mark for the guest, behind its own.
fn say_so(image: &Image) -> Verdict {
    let file = File::options().write(true).open(&image.0);
    let mark = file.and_then(|file| file.write_all_at(b"out\0", MARK_AT + 4096));
    mark.map_err(|error| error.to_string())
}

/// A device is taken out while it is at work.
fn taken_out(
    what: &[&str],
    device: Vec<String>,
    name: &str,
    cpus: u32,
    bus: Bus,
) -> Result<Outcome, String> {
    let image = Image::new(&format!("unplug.other{name}"))?;
    let socket = Gone::named(&format!("unplug{name}.sock"));
    let kernel = runner::kernel_for(cpus)?;
    let mut words = what.to_vec();
    words.insert(1, "/dev/vda");
    let act = || match what[0] {
        EARLY => take_out_first(&image, &socket),
        _ => take_out(&image, &socket),
    };
    let (outcome, out) = meanwhile(act, || {
        // Buses are looked at in order: what is in the slot comes last.
        exec(find("unplug"), &words, |config| {
            config.kernel = kernel;
            config.smp = cpus;
            config.cmdline = "leakcheck disk_timeout=5".into();
            config.timeout = Some(Duration::from_secs(60));
            config.qemu_args = SLOT.map(String::from).to_vec();
            config.qemu_args.extend(in_slot(device));
            config.qemu_args.extend(Monitor::words(&socket.0));
            if what[0] == EARLY {
                config.qemu_args.push("-S".into());
            }
            config
                .qemu_args
                .extend(Kind::Virtio.disk("other", &raw(&image.0)));
            bus.add(config);
        })
    });
    let outcome = outcome?;
    says_ok(&outcome)?;
    out?;
    bus.check(&outcome)?;
    let mounts = ["ext4", MOUNTING].contains(&what[0]);
    let stacks = if mounts { 160 } else { 0 }; // of the mount and its thread
    frames_are_back(&outcome, stacks)?;
    Ok(outcome)
}

/// A disk with requests in flight. What was written to its cache is on it.
fn disk(kind: Kind, cpus: u32, bus: Bus) -> Verdict {
    let what = match kind {
        Kind::Nvme(_) => "/dev/nvme0n1",
        _ => "/dev/vdb",
    };
    let name = format!("{}.{cpus}{}", what.replace('/', "."), bus.tag());
    let image = Image::new(&format!("unplug{name}"))?;
    let slow = format!("{},throttling.iops-total=50", raw(&image.0));
    taken_out(&[what], kind.disk("slow", &slow), &name, cpus, bus)?;
    let mut wanted: Vec<u8> = (0..SIZE)
        .step_by(8)
        .flat_map(|at| pattern(at).to_le_bytes())
        .collect();
    for (at, text) in [(39, &b"written\0"[..]), (40, b"stored\0")] {
        wanted[at * MB..][..text.len()].copy_from_slice(text);
    }
    let there = fs::read(&image.0).map_err(|error| error.to_string())?;
    match there == wanted {
        true => Ok(()),
        false => Err("the disk has not what was written".into()),
    }
}

pub fn a_disk_is_taken_out_on_one_cpu() -> Verdict {
    disk(Kind::Virtio, 1, Bus::Plain)
}

pub fn a_disk_is_taken_out_on_two_cpus() -> Verdict {
    disk(Kind::Virtio, 2, Bus::Plain)
}

pub fn a_disk_is_taken_out_on_four_cpus() -> Verdict {
    disk(Kind::Virtio, 4, Bus::Plain)
}

pub fn an_nvme_disk_is_taken_out() -> Verdict {
    disk(NVME, 1, Bus::Plain)?;
    disk(NVME, 4, Bus::Plain)
}

pub fn disks_are_taken_out_behind_an_iommu() -> Verdict {
    disk(Kind::Virtio, 2, GUARDED)?;
    disk(NVME, 4, GUARDED)
}

/// A transfer that has begun ends first.
pub fn an_edu_is_taken_out() -> Verdict {
    let edu = EDU.map(String::from).to_vec();
    taken_out(&["edu"], edu, ".edu", 2, Bus::Plain).map(drop)
}

/// What nobody has synced is there.
fn mounted(more: &[&str]) -> Verdict {
    let name = format!("unplug.ext4.{}", more.len());
    let image = volume(&name, 64, "4096", |_| Ok(()))?;
    let disk = Kind::Virtio.disk("ext4", &raw(&image.0));
    let words = [&["ext4", "/dev/vdb"], more].concat();
    taken_out(&words, disk, &name, 4, Bus::Plain)?;
    let path = image.0.to_string_lossy();
    if !more.is_empty() {
        // It fails if it has done something.
        let _ = tool("e2fsck", &["-p", &path]);
    }
    tool("e2fsck", &["-fn", &path])?;
    let file = tool("debugfs", &["-R", "cat /dir/file", &path])?;
    let mut wanted = vec![0; 64 * 4096];
    wanted[..7].copy_from_slice(b"written");
    wanted[63 * 4096..][..6].copy_from_slice(b"stored");
    match file.as_bytes().starts_with(&wanted) {
        true => Ok(()),
        false => Err("the file is not what was written".into()),
    }
}

/// The host's e2fsck finds nothing to do; but the journal and the file, if somebody had one without a name, as after a pulled plug.
pub fn a_mounted_disk_is_taken_out() -> Verdict {
    mounted(&[])?;
    mounted(&["nameless"])
}

/// Who takes the disk out waits for who is mounting it, and unmounts it.
pub fn a_disk_is_taken_out_while_it_is_mounted() -> Verdict {
    let image = volume("unplug.mounting", 64, "4096", |_| Ok(()))?;
    let disk = Kind::Virtio.disk("mounting", &raw(&image.0));
    taken_out(&[MOUNTING, "/dev/vdb"], disk, ".mounting", 2, Bus::Plain)?;
    tool("e2fsck", &["-fn", &image.0.to_string_lossy()]).map(drop)
}

/// A button that is pressed before anybody hears it: the device goes when the machine has started.
pub fn a_disk_is_taken_out_before_the_first_program() -> Verdict {
    for cpus in [1, 4] {
        let image = Image::new("unplug.early")?;
        let disk = Kind::Virtio.disk("early", &raw(&image.0));
        taken_out(&[EARLY, "/dev/vdb"], disk, ".early", cpus, Bus::Plain)?;
    }
    Ok(())
}

/// One that does not answer is stopped first.
pub fn a_silent_disk_is_taken_out() -> Verdict {
    let image = Image::new("unplug.silent")?;
    let silent = format!("{},readonly=on,throttling.bps-total=1000", raw(&image.0));
    let disk = Kind::Virtio.disk("silent", &silent);
    let outcome = taken_out(&["silent", "/dev/vdb"], disk, ".silent", 2, Bus::Plain)?;
    is_stopped(&outcome)
}
