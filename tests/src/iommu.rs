//! Machines with an IOMMU: what works without one works, and what a device was not given it does not reach.

use crate::disks::{EDU, Image, Kind, NVME, disks, edu_says_ok, raw, requests};
use crate::machines::{Verdict, ensure, exec, find, says_ok};
use crate::{diff, ktests};
use launcher::{Config, Outcome};

/// What is between the devices and memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bus {
    Plain,
    /// An IOMMU, and every device is behind it; its options.
    Guarded(&'static str),
}

pub(crate) const GUARDED: Bus = Bus::Guarded("");

impl Bus {
    /// Puts it into a machine that has its devices.
    pub(crate) fn add(self, config: &mut Config) {
        let Bus::Guarded(options) = self else {
            return;
        };
        for word in &mut config.qemu_args {
            if word.starts_with("virtio-") {
                word.push_str(",iommu_platform=on,disable-legacy=on");
            }
        }
        // Before the devices that it has.
        let unit = format!("intel-iommu{options}");
        let words = ["-machine", "q35", "-device", &unit].map(String::from);
        config.qemu_args.splice(0..0, words);
    }

    /// Tells the images of its tests from those of others.
    pub(crate) fn tag(self) -> &'static str {
        match self {
            Bus::Plain => "",
            Bus::Guarded(_) => ".iommu",
        }
    }

    /// It was used, and has refused nothing.
    pub(crate) fn check(self, outcome: &Outcome) -> Verdict {
        let log = &outcome.log;
        let used = log.contains("iommu: 0xfed90000 is on") && !log.contains("goes past it");
        let fine = match self {
            Bus::Plain => !log.contains("iommu: "),
            Bus::Guarded(_) => used && !log.contains(" may not "),
        };
        ensure(fine, "the IOMMU is not as it should", outcome)
    }
}

pub fn disks_behind_an_iommu_on_one_cpu() -> Verdict {
    disks(Kind::Virtio, 1, Bus::Guarded(",aw-bits=48,caching-mode=on"))
}

pub fn disks_behind_an_iommu_on_two_cpus() -> Verdict {
    disks(Kind::Virtio, 2, GUARDED)
}

pub fn disks_behind_an_iommu_on_four_cpus() -> Verdict {
    disks(Kind::Virtio, 4, GUARDED)
}

pub fn nvme_disks_behind_an_iommu_on_one_cpu() -> Verdict {
    disks(Kind::Nvme(",mdts=1"), 1, GUARDED)
}

pub fn nvme_disks_behind_an_iommu_on_four_cpus() -> Verdict {
    disks(NVME, 4, GUARDED)
}

pub fn requests_behind_an_iommu() -> Verdict {
    requests("aio", Kind::Virtio, 4, GUARDED)?;
    requests("aio", NVME, 2, GUARDED)
}

/// By way of rings, also of buffers that are registered.
pub fn rings_behind_an_iommu() -> Verdict {
    requests("uring", Kind::Virtio, 4, GUARDED)
}

pub fn edu_behind_an_iommu() -> Verdict {
    edu_says_ok(&[], "", GUARDED)
}

/// A test inside the kernel that takes all memory.
fn without_memory(name: &str) -> Verdict {
    let image = Image::new(name)?;
    let ran = ktests::machine_with(1, &format!("test={name}"), |config| {
        config.mem = "128M".into();
        config.qemu_args = Kind::Virtio.disk("d", &raw(&image.0));
        GUARDED.add(config);
    })?;
    let log = ran.log();
    let ok = format!("ktest {name} ok");
    match log.contains("iommu: 0xfed90000 is on") && log.contains(&ok) {
        true => Ok(()),
        false => Err(diff::tail(log, 40)),
    }
}

/// The kernel's own transfers are not refused because there is no memory for a table.
pub fn a_disk_is_written_without_memory() -> Verdict {
    without_memory("a_disk_is_written_without_memory")
}

/// Nor does a function that gets no tables keep some.
pub fn a_domain_that_is_not_made_leaves_nothing() -> Verdict {
    without_memory("a_domain_that_is_not_made_leaves_nothing")
}

/// A device that was told to reach memory that is not its own.
fn stray(args: &[&str], cpus: u32, bus: Bus) -> Result<Outcome, String> {
    let outcome = exec(find("stray"), args, |config| {
        config.smp = cpus;
        config.qemu_args = EDU.map(String::from).to_vec();
        bus.add(config);
    })?;
    says_ok(&outcome)?;
    Ok(outcome)
}

/// It is refused, and the log says so.
fn refused(cpus: u32, options: &'static str) -> Verdict {
    let outcome = stray(&[], cpus, Bus::Guarded(options))?;
    for told in ["00:01.0 may not write 0x", "00:01.0 may not read 0x"] {
        ensure(outcome.log.contains(told), "nobody said so", &outcome)?;
    }
    Ok(())
}

pub fn a_stray_transfer_is_refused_on_one_cpu() -> Verdict {
    refused(1, ",aw-bits=48,caching-mode=on")
}

pub fn a_stray_transfer_is_refused_on_two_cpus() -> Verdict {
    refused(2, "")
}

pub fn a_stray_transfer_is_refused_on_four_cpus() -> Verdict {
    refused(4, "")
}

/// And without an IOMMU it is not, so the program above sees something.
pub fn a_stray_transfer_arrives_without_an_iommu() -> Verdict {
    stray(&["reaches"], 2, Bus::Plain)?;
    Ok(())
}

/// A disk that goes past the IOMMU is said to.
pub fn a_disk_past_the_iommu_is_told_of() -> Verdict {
    let outcome = exec(find("status"), &["0"], |config| {
        GUARDED.add(config);
        let disk = ["-device", "virtio-blk-pci,drive=past,disable-legacy=on"];
        let drive = ["-drive", "if=none,id=past,driver=null-co,size=1M"];
        let words = [drive, disk].concat();
        config.qemu_args.extend(words.into_iter().map(String::from));
    })?;
    let told = outcome.log.contains("iommu: 00:01.0 goes past it");
    let there = outcome.log.contains("vda: 1 MiB");
    ensure(told && there, "not as it should", &outcome)
}
