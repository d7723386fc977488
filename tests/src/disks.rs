//! Devices: images that a guest reads and writes and that are looked at afterwards; QEMU's teaching device.

use crate::console::Console;
use crate::iommu::Bus;
use crate::machines::{Verdict, ensure, exec, find, frames_are_back, says_ok};
use crate::monitor::{Gone, Monitor, meanwhile};
use crate::{build, guest_dir, runner};
use launcher::{Config, Outcome};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) const MB: usize = 1 << 20;
pub(crate) const SIZE: usize = 64 * MB;

/// Where a guest leaves its mark: ones.
pub(crate) const MARK_AT: u64 = 63 * MB as u64;

/// What `guest/c/direct.c` expects in the eight bytes at `at`.
pub(crate) fn pattern(at: usize) -> u64 {
    (at as u64 / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// An image that is gone when the test is over.
pub(crate) struct Image(pub(crate) PathBuf);

impl Image {
    pub(crate) fn new(name: &str) -> Result<Self, String> {
        let path = guest_dir().join(format!("{name}.img"));
        let image = Image(path);
        image.fill().map_err(|error| format!("{name}: {error}"))?;
        Ok(image)
    }

    fn fill(&self) -> std::io::Result<()> {
        let mut file = BufWriter::with_capacity(MB, File::create(&self.0)?);
        for at in (0..SIZE).step_by(8) {
            file.write_all(&pattern(at).to_le_bytes())?;
        }
        file.flush()
    }

    /// Whether the guest has left its mark: it has come so far, and waits for somebody to notice.
    pub(crate) fn is_marked(&self) -> Result<bool, String> {
        let mut mark = [0; 8];
        let read = File::open(&self.0).and_then(|file| file.read_exact_at(&mut mark, MARK_AT));
        read.map_err(|error| error.to_string())?;
        Ok(mark == [1; 8])
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What disks a machine has.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Virtio,
    /// One whose requests have 30 pieces of memory at most.
    Narrow,
    /// One without interrupt messages.
    Lines,
    /// With the device's other options.
    Nvme(&'static str),
}

impl Kind {
    /// QEMU's words for a disk with `options` of the drive.
    pub(crate) fn disk(self, id: &str, options: &str) -> Vec<String> {
        let device = match self {
            Kind::Virtio => format!("virtio-blk-pci,drive={id}"),
            Kind::Narrow => format!("virtio-blk-pci,queue-size=32,drive={id}"),
            Kind::Lines => format!("virtio-blk-pci,vectors=0,drive={id}"),
            Kind::Nvme(more) => format!("nvme,serial={id},drive={id}{more}"),
        };
        let drive = format!("if=none,id={id},{options}");
        let words = ["-drive", &drive, "-device", &device];
        words.map(String::from).to_vec()
    }

    /// The option of a device with one queue for all CPUs.
    fn one_queue(self) -> &'static str {
        match self {
            Kind::Virtio | Kind::Narrow | Kind::Lines => ",num-queues=1",
            Kind::Nvme(_) => ",max_ioqpairs=1",
        }
    }

    /// In the names of its images, where there may be two kinds at once.
    fn tag(self) -> &'static str {
        match self {
            Kind::Narrow => ".narrow",
            Kind::Lines => ".lines",
            Kind::Virtio | Kind::Nvme(_) => "",
        }
    }

    /// The first two in the guest.
    pub(crate) fn names(self) -> [&'static str; 2] {
        match self {
            Kind::Virtio | Kind::Narrow | Kind::Lines => ["/dev/vda", "/dev/vdb"],
            Kind::Nvme(_) => ["/dev/nvme0n1", "/dev/nvme1n1"],
        }
    }
}

pub(crate) const NVME: Kind = Kind::Nvme("");

pub(crate) fn raw(path: &Path) -> String {
    format!("format=raw,file={}", path.display())
}

/// A program reads and writes a disk, directly and not; what it did not write is as before, what it wrote is there.
pub(crate) fn disks(kind: Kind, cpus: u32, bus: Bus) -> Verdict {
    let [first, second] = kind.names();
    let name = first.replace('/', ".");
    let tag = format!("{}{}", bus.tag(), kind.tag());
    let image = Image::new(&format!("direct{name}.{cpus}{tag}"))?;
    // Requests that take their time: pages are pinned while other things happen.
    let slow = Image::new(&format!("slow{name}.{cpus}{tag}"))?;
    let kernel = runner::kernel_for(cpus)?;
    let outcome = exec(find("direct"), &[first, second], |config| {
        config.kernel = kernel;
        config.smp = cpus;
        config.cmdline = "leakcheck".into();
        config.timeout = Some(Duration::from_secs(120));
        let throttled = format!("{},readonly=on,throttling.iops-total=25", raw(&slow.0));
        config.qemu_args = kind.disk("fast", &format!("{},discard=unmap", raw(&image.0)));
        config.qemu_args.extend(kind.disk("slow", &throttled));
        bus.add(config);
    })?;
    says_ok(&outcome)?;
    bus.check(&outcome)?;
    frames_are_back(&outcome, 0)?;
    let bytes = fs::read(&image.0).map_err(|error| error.to_string())?;
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
    let text = b"written in the middle of a block\0";
    let at = 48 * MB + 1000;
    ensure(
        &bytes[at..at + text.len()] == text,
        "the disk has not what was written",
        &outcome,
    )?;
    let rest = [
        0..32 * MB,
        40 * MB..48 * MB,
        49 * MB..60 * MB,
        61 * MB..SIZE,
    ];
    let changed = rest
        .into_iter()
        .flatten()
        .step_by(8)
        .find(|&at| word(at) != pattern(at));
    if let Some(at) = changed {
        return Err(format!("{at:#x} was changed: {:#x}", word(at)));
    }
    let discarded = (60 * MB..61 * MB).step_by(8).find(|&at| word(at) != 0);
    if let Some(at) = discarded {
        return Err(format!("{at:#x} was not discarded"));
    }
    // Each written block says where it belongs, and is of one generation.
    for block in (32 * MB..40 * MB).step_by(4096) {
        let written = word(block) == block as u64;
        for at in (block..block + 4096).step_by(16) {
            let (one, two) = (word(at), word(at + 8));
            let zero = block < 32 * MB + 8192 && one == 0 && two == 0;
            let good = match written {
                true => one == at as u64 && two == word(block + 8),
                false => zero || one == pattern(at) && two == pattern(at + 8),
            };
            if !good {
                return Err(format!("{at:#x} holds {one:#x} {two:#x}"));
            }
        }
    }
    Ok(())
}

pub fn disks_on_one_cpu() -> Verdict {
    disks(Kind::Virtio, 1, Bus::Plain)
}

pub fn disks_on_two_cpus() -> Verdict {
    disks(Kind::Virtio, 2, Bus::Plain)
}

pub fn disks_on_four_cpus() -> Verdict {
    disks(Kind::Virtio, 4, Bus::Plain)
}

pub fn disks_with_small_queues() -> Verdict {
    disks(Kind::Narrow, 2, Bus::Plain)
}

/// Two devices, on a line of the old machine, or each on its own.
pub fn disks_with_interrupt_lines() -> Verdict {
    disks(Kind::Lines, 4, Bus::Plain)
}

/// A command of this one moves 8 KiB at most.
pub fn nvme_disks_on_one_cpu() -> Verdict {
    disks(Kind::Nvme(",mdts=1"), 1, Bus::Plain)
}

pub fn nvme_disks_on_two_cpus() -> Verdict {
    disks(NVME, 2, Bus::Plain)
}

pub fn nvme_disks_on_four_cpus() -> Verdict {
    disks(NVME, 4, Bus::Plain)
}

/// What the device and its driver have agreed on, as the device says it.
pub fn a_disk_uses_what_it_can_do() -> Verdict {
    build::kernel()?;
    let socket = Gone::named("features.sock");
    let mut qemu = Monitor::words(&socket.0).to_vec();
    let drive = ["-drive", "if=none,id=d,driver=null-co,size=1M"];
    let device = ["-device", "virtio-blk-pci,id=disk,drive=d"];
    qemu.extend([drive, device].concat().into_iter().map(String::from));
    let words = qemu.iter().flat_map(|word| ["--qemu-arg", word]);
    let mut console = Console::start_with(&words.collect::<Vec<_>>())?;
    console.expect("# ")?;
    let status = Monitor::of(&socket.0)?.says(
        r#"{"execute":"human-monitor-command","arguments":{"command-line":"info virtio-status /machine/peripheral/disk/virtio-backend"}}"#,
    )?;
    let agreed = status.split_once("Guest features").map(|(_, rest)| rest);
    let agreed = agreed.and_then(|rest| Some(rest.split_once("Host features")?.0));
    let agreed = agreed.ok_or_else(|| format!("the device says {status}"))?;
    for feature in [
        "RING_F_INDIRECT_DESC",
        "RING_F_EVENT_IDX",
        "BLK_F_MQ",
        "BLK_F_FLUSH",
        "BLK_F_DISCARD",
        "BLK_F_SEG_MAX",
    ] {
        if !agreed.contains(feature) {
            return Err(format!("{feature} is not among {agreed}"));
        }
    }
    console.type_in("poweroff\r")?;
    console.end()
}

/// A device is given up.
pub(crate) fn is_stopped(outcome: &Outcome) -> Verdict {
    let told = outcome
        .log
        .contains("a device that does not answer is stopped");
    ensure(told, "nobody said so", outcome)
}

/// Requests that are not answered in time fail, and so does that disk from then on; nothing stays pinned.
fn lost(program: &str, kind: Kind) -> Verdict {
    let [first, second] = kind.names();
    let image = Image::new(&format!("lost.{program}{}", first.replace('/', ".")))?;
    let outcome = exec(find(program), &["lost", first, second], |config| {
        config.smp = 2;
        config.cmdline = "leakcheck disk_timeout=5".into();
        // 256 KiB take more than four minutes, but for what goes at once.
        let lost = format!("{},readonly=on,throttling.bps-total=1000", raw(&image.0));
        config.qemu_args = kind.disk("lost", &lost);
        let other = format!("{},readonly=on", raw(&image.0));
        config.qemu_args.extend(kind.disk("other", &other));
    })?;
    says_ok(&outcome)?;
    is_stopped(&outcome)?;
    frames_are_back(&outcome, 0)
}

pub fn a_disk_that_does_not_answer_is_given_up() -> Verdict {
    lost("direct", Kind::Virtio)
}

pub fn an_nvme_disk_that_does_not_answer_is_given_up() -> Verdict {
    lost("direct", NVME)
}

/// The same of asynchronous requests.
pub fn requests_that_are_not_answered_are_given_up() -> Verdict {
    lost("aio", Kind::Virtio)
}

pub fn a_ring_hears_of_what_is_not_answered() -> Verdict {
    lost("uring", Kind::Virtio)
}

pub fn nvme_requests_that_are_not_answered_are_given_up() -> Verdict {
    lost("aio", NVME)
}

/// Lets a disk move so many bytes a second (0: all), and some at once, if the guest has left its mark on another.
fn let_go_on(disk: &str, bytes: u32, other: &Image, socket: &Gone) -> Result<bool, String> {
    let marked = other.is_marked()?;
    if marked {
        let none = ["bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"];
        let limits: String = none.map(|limit| format!(r#","{limit}":0"#)).concat();
        let arguments = format!(r#"{{"device":"{disk}","bps":{bytes}{limits}}}"#);
        let command = format!(r#"{{"execute":"block_set_io_throttle","arguments":{arguments}}}"#);
        Monitor::of(&socket.0)?.says(&command)?;
    }
    Ok(marked)
}

/// A disk that stops answering, with its queue full and more to come: all ends, and another disk does not notice.
fn silent(kind: Kind) -> Verdict {
    let [first, second] = kind.names();
    let name = first.replace('/', ".");
    let silent = Image::new(&format!("silent{name}"))?;
    let other = Image::new(&format!("silent.other{name}"))?;
    let socket = Gone::named(&format!("silent{name}.sock"));
    let (outcome, gone_on) = meanwhile(
        // Then one request of those that wait is over, and the next four minutes later.
        || let_go_on("silent", 1000, &other, &socket),
        || {
            exec(find("aio"), &["silent", first, second], |config| {
                config.smp = 2;
                config.cmdline = "disk_timeout=20".into();
                config.timeout = Some(Duration::from_secs(90));
                // A page goes at once, and what follows it not while the disk is waited for.
                let throttled = format!("{},throttling.bps-total=100", raw(&silent.0));
                config.qemu_args = kind.disk("silent", &throttled);
                if let Some(device) = config.qemu_args.last_mut() {
                    device.push_str(kind.one_queue());
                }
                config.qemu_args.extend(kind.disk("other", &raw(&other.0)));
                config.qemu_args.extend(Monitor::words(&socket.0));
            })
        },
    );
    let outcome = outcome?;
    says_ok(&outcome)?;
    is_stopped(&outcome)?;
    ensure(gone_on.is_ok(), "the disk does not go on", &outcome)
}

pub fn a_disk_falls_silent_while_all_wait_for_it() -> Verdict {
    silent(Kind::Virtio)
}

pub fn an_nvme_disk_falls_silent_while_all_wait_for_it() -> Verdict {
    silent(NVME)
}

/// A machine with little memory and two disks. The second gives what is read first, and the rest when the guest has left a mark on
/// the first.
fn held_back(program: &str, what: &str) -> Result<Outcome, String> {
    let fast = Image::new(&format!("{program}.{what}"))?;
    let slow = Image::new(&format!("{program}.{what}.slow"))?;
    let socket = Gone::named(&format!("{program}.{what}.sock"));
    let (outcome, gone_on) = meanwhile(
        || let_go_on("slow", 0, &fast, &socket),
        || {
            exec(find(program), &[what, "/dev/vda", "/dev/vdb"], |config| {
                config.smp = 2;
                config.mem = "96M".into();
                config.cmdline = "disk_timeout=600".into();
                // 64 KiB take eleven minutes, but for what goes at once.
                let throttled = format!("{},readonly=on,throttling.bps-total=100", raw(&slow.0));
                config.qemu_args = Kind::Virtio.disk("fast", &raw(&fast.0));
                let slow = Kind::Virtio.disk("slow", &throttled);
                config.qemu_args.extend(slow);
                config.qemu_args.extend(Monitor::words(&socket.0));
            })
        },
    );
    let outcome = outcome?;
    ensure(gone_on.is_ok(), "the disk does not go on", &outcome)?;
    Ok(outcome)
}

/// Requests that end only after somebody else's page fault gather until memory is short, and not longer.
pub fn requests_that_gather_leave_memory() -> Verdict {
    let outcome = held_back("aio", "gather")?;
    says_ok(&outcome)
}

/// Who must die so that there is memory waits for who needs it.
pub fn memory_runs_out_under_a_lock() -> Verdict {
    let outcome = held_back("oom", "blocked")?;
    let expected = b"holder: exit 0\nvictim: killed 1 by 9\nwritten: 1024\n";
    let fine = outcome.status == 0 && outcome.stdout == expected;
    let told = outcome.log.contains("a victim does not leave");
    ensure(fine && told, "not as it should", &outcome)
}

/// Asynchronous requests: 32 in flight, while their process forks, ends or runs another program.
pub(crate) fn requests(program: &str, kind: Kind, cpus: u32, bus: Bus) -> Verdict {
    let [first, second] = kind.names();
    let tag = format!("{}{}", first.replace('/', "."), bus.tag());
    let image = Image::new(&format!("{program}{tag}.{cpus}"))?;
    let slow = Image::new(&format!("{program}.slow{tag}.{cpus}"))?;
    let kernel = runner::kernel_for(cpus)?;
    let outcome = exec(find(program), &["disk", first, second], |config| {
        config.kernel = kernel;
        config.smp = cpus;
        config.cmdline = "leakcheck".into();
        config.timeout = Some(Duration::from_secs(120));
        let throttled = format!("{},readonly=on,throttling.iops-total=100", raw(&slow.0));
        config.qemu_args = kind.disk("fast", &raw(&image.0));
        config.qemu_args.extend(kind.disk("slow", &throttled));
        // QEMU would make one of requests that follow each other, and that one is quick.
        if let (Kind::Virtio, Some(device)) = (kind, config.qemu_args.last_mut()) {
            device.push_str(",request-merging=off");
        }
        bus.add(config);
    })?;
    says_ok(&outcome)?;
    bus.check(&outcome)?;
    frames_are_back(&outcome, 0)?;
    // Four threads wrote 64 KiB each, 40 times: address and generation.
    let bytes = fs::read(&image.0).map_err(|error| error.to_string())?;
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
    let wanted = |at: usize| match (32 * MB..36 * MB).contains(&at) && at % MB < 65536 {
        true if at.is_multiple_of(16) => at as u64,
        true => 40,
        false => pattern(at),
    };
    match (0..SIZE).step_by(8).find(|&at| word(at) != wanted(at)) {
        Some(at) => Err(format!("{at:#x} holds {:#x}", word(at))),
        None => Ok(()),
    }
}

pub fn requests_on_one_cpu() -> Verdict {
    requests("aio", Kind::Virtio, 1, Bus::Plain)
}

pub fn requests_on_two_cpus() -> Verdict {
    requests("aio", Kind::Virtio, 2, Bus::Plain)
}

pub fn requests_on_four_cpus() -> Verdict {
    requests("aio", Kind::Virtio, 4, Bus::Plain)
}

/// The same by way of rings.
pub fn rings_on_one_cpu() -> Verdict {
    requests("uring", Kind::Virtio, 1, Bus::Plain)
}

pub fn rings_on_two_cpus() -> Verdict {
    requests("uring", Kind::Virtio, 2, Bus::Plain)
}

pub fn rings_on_four_cpus() -> Verdict {
    requests("uring", Kind::Virtio, 4, Bus::Plain)
}

/// Each request of more than two pages is several commands.
pub fn nvme_requests_on_one_cpu() -> Verdict {
    requests("aio", Kind::Nvme(",mdts=1"), 1, Bus::Plain)
}

pub fn nvme_requests_on_two_cpus() -> Verdict {
    requests("aio", NVME, 2, Bus::Plain)
}

pub fn nvme_requests_on_four_cpus() -> Verdict {
    requests("aio", NVME, 4, Bus::Plain)
}

/// 64 MiB from disk to disk, and no byte of them by way of the CPU.
fn copied(kind: Kind) -> Verdict {
    let [first, second] = kind.names();
    let name = first.replace('/', ".");
    let (from, to) = (
        Image::new(&format!("from{name}"))?,
        Image::new(&format!("to{name}"))?,
    );
    fs::write(&to.0, vec![0; SIZE]).map_err(|error| error.to_string())?;
    let outcome = exec(find("direct"), &["copy", first, second], |config| {
        config.smp = 2;
        config.qemu_args = kind.disk("from", &format!("{},readonly=on", raw(&from.0)));
        config.qemu_args.extend(kind.disk("to", &raw(&to.0)));
    })?;
    says_ok(&outcome)?;
    let [from, to] = [from, to].map(|image| fs::read(&image.0).unwrap_or_default());
    ensure(
        from.len() == SIZE && from == to,
        "the disks differ",
        &outcome,
    )
}

pub fn a_disk_is_copied_to_another() -> Verdict {
    copied(Kind::Virtio)
}

pub fn an_nvme_disk_is_copied_to_another() -> Verdict {
    copied(NVME)
}

/// A sector that cannot be read or written: an error for who asked for it, and nothing else.
pub fn a_bad_block_is_an_error() -> Verdict {
    with_a_bad_block("direct", Kind::Virtio)
}

pub fn a_bad_block_of_an_nvme_disk_is_an_error() -> Verdict {
    with_a_bad_block("direct", NVME)
}

/// In the page cache: SIGBUS for who touches it, EFAULT for the kernel on somebody's behalf.
pub fn a_bad_block_cannot_be_mapped() -> Verdict {
    with_a_bad_block("cached", Kind::Virtio)
}

/// Among asynchronous requests.
pub fn a_bad_block_is_an_error_of_its_request() -> Verdict {
    with_a_bad_block("aio", Kind::Virtio)
}

pub fn a_bad_block_is_an_error_in_a_ring() -> Verdict {
    with_a_bad_block("uring", Kind::Virtio)
}

pub fn a_bad_block_is_an_error_of_its_nvme_request() -> Verdict {
    with_a_bad_block("aio", NVME)
}

fn with_a_bad_block(program: &str, kind: Kind) -> Verdict {
    let [first, _] = kind.names();
    let name = format!("{program}{}", first.replace('/', "."));
    let image = Image::new(&format!("bad.{name}"))?;
    let rules = Image(guest_dir().join(format!("bad.{name}.rules.img")));
    let rule = |event| {
        format!(
            "[inject-error]\nevent = \"{event}\"\nsector = \"2048\"\nerrno = \"5\"\nonce = \"off\"\n"
        )
    };
    fs::write(&rules.0, rule("read_aio") + &rule("write_aio")).map_err(|e| e.to_string())?;
    let outcome = exec(find(program), &["bad", first], |config| {
        config.smp = 2;
        let file = format!(
            "driver=raw,file.driver=blkdebug,file.config={},file.image.driver=file,file.image.filename={},\
             rerror=report,werror=report",
            rules.0.display(),
            image.0.display()
        );
        config.qemu_args = kind.disk("bad", &file);
        // QEMU makes one of requests that follow each other, and then they fail together.
        if let (Kind::Virtio, Some(device)) = (kind, config.qemu_args.last_mut()) {
            device.push_str(",request-merging=off");
        }
    })?;
    says_ok(&outcome)
}

/// A disk is read through its page cache, by calls and by mappings, while it is written.
fn cached(cpus: u32, words: &[&str], memory: Option<&str>) -> Verdict {
    let image = Image::new(&format!("cached.{cpus}.{}", words.len()))?;
    let kernel = runner::kernel_for(cpus)?;
    let outcome = exec(find("cached"), words, |config| {
        config.kernel = kernel;
        config.smp = cpus;
        config.cmdline = "leakcheck".into();
        if let Some(memory) = memory {
            config.mem = memory.into();
        }
        config.qemu_args = Kind::Virtio.disk("cached", &raw(&image.0));
    })?;
    says_ok(&outcome)?;
    frames_are_back(&outcome, 0)
}

pub fn a_disk_is_mapped_on_one_cpu() -> Verdict {
    cached(1, &["/dev/vda"], None)
}

pub fn a_disk_is_mapped_on_two_cpus() -> Verdict {
    cached(2, &["/dev/vda"], None)
}

pub fn a_disk_is_mapped_on_four_cpus() -> Verdict {
    cached(4, &["/dev/vda"], None)
}

/// What has been read makes room for what is read next, and for everything else.
pub fn a_disk_larger_than_memory() -> Verdict {
    cached(2, &["small", "/dev/vda"], Some("64M"))
}

/// A page is stored to between its cleaning and its writing.
pub fn a_store_after_the_cleaning_is_written() -> Verdict {
    let image = Image::new("cached.stale")?;
    let kernel = build::test_kernel()?;
    let outcome = exec(find("cached"), &["stale", "/dev/vda"], |config| {
        config.kernel = kernel;
        config.smp = 4;
        config.qemu_args = Kind::Virtio.disk("cached", &raw(&image.0));
    })?;
    says_ok(&outcome)
}

/// QEMU's words for the teaching device; its addresses have as many bits as there are.
pub(crate) const EDU: [&str; 2] = ["-device", "edu,dma_mask=0xffffffffffffffff"];

fn edu(kernel: PathBuf, args: &[&str], words: &str, bus: Bus) -> Result<Outcome, String> {
    exec(find("edu"), args, |config| {
        config.kernel = kernel;
        config.smp = 4;
        config.cmdline = words.into();
        config.qemu_args = EDU.map(String::from).to_vec();
        bus.add(config);
    })
}

/// A device copies into a page whose process forks and writes it meanwhile; and for as long as it is registered.
pub fn edu_copies_while_its_process_forks() -> Verdict {
    edu_says_ok(&[], "", Bus::Plain)
}

/// A device that never ends is given up: for one transfer, and for one of a buffer that is registered.
pub fn an_edu_that_does_not_answer_keeps_its_memory() -> Verdict {
    edu_says_ok(&["stuck"], "disk_timeout=1", Bus::Plain)?;
    edu_says_ok(&["stuck_buffer"], "disk_timeout=1", Bus::Plain)
}

pub(crate) fn edu_says_ok(args: &[&str], words: &str, bus: Bus) -> Verdict {
    let outcome = edu(build::kernel()?, args, words, bus)?;
    says_ok(&outcome)
}

/// The same sees BUG-5.
pub fn edu_is_seen_when_bug_5_is_planted() -> Verdict {
    let outcome = edu(build::test_kernel()?, &[], "bug=5", Bus::Plain)?;
    let seen = outcome.status == 1 && outcome.stdout.starts_with(b"FAILED ");
    ensure(seen, "planted and not seen", &outcome)
}

fn devmem(args: &[&str], change: impl FnOnce(&mut Config)) -> Verdict {
    let outcome = exec(find("devmem"), args, |config| {
        config.cmdline = "leakcheck".into();
        config.qemu_args = EDU.map(String::from).to_vec();
        change(config);
    })?;
    says_ok(&outcome)?;
    frames_are_back(&outcome, 0)
}

/// /dev/mem shows devices and no RAM; also where RAM lies behind them.
pub fn dev_mem_shows_devices() -> Verdict {
    devmem(&[], |_| {})?;
    devmem(&[], |config| config.mem = "5G".into())
}

/// It shows RAM, too, where it may.
pub fn dev_mem_shows_ram_if_it_may() -> Verdict {
    devmem(&["ram"], |config| config.cmdline += " devmem=ram")
}

/// Every way to a page of what nobody can take hold of; how often the log has told of an entry that nobody made.
fn bare(words: &[&str]) -> Result<(Outcome, usize), String> {
    let kernel = build::test_kernel()?;
    let mut words = words.to_vec();
    if words != ["one"] {
        words.push("/dev/vda");
    }
    let outcome = exec(find("bare"), &words, |config| {
        config.kernel = kernel;
        config.smp = 2;
        config.cmdline = "leakcheck".into();
        config.qemu_args = EDU.map(String::from).to_vec();
        if words[0] == "high" {
            config.mem = "4G".into(); // the last of them above 4 GiB
        }
        let zeroes = "driver=null-co,size=1M,read-zeroes=on";
        config.qemu_args.extend(Kind::Virtio.disk("zeroes", zeroes));
    })?;
    says_ok(&outcome)?;
    frames_are_back(&outcome, 0)?;
    let told = outcome.log.matches("bad page table entry").count();
    Ok((outcome, told))
}

/// Pages of a device's registers are nobody's, and nothing is wrong with that.
pub fn registers_are_held_by_nobody() -> Verdict {
    let (outcome, told) = bare(&["window"])?;
    ensure(told == 0, "the log complains", &outcome)
}

/// PFN-8: an entry that nobody made is told of, its process goes on, and the others have not noticed.
pub fn an_entry_that_nobody_made_is_told_of() -> Verdict {
    let (outcome, told) = bare(&["one"])?;
    let line = "bad page table entry 0x000000ff00000007 of 0x100000001000, in a mapping at 0x100000000000 with flags";
    let once = told == 1 && outcome.log.contains(line) && outcome.log.contains("(1 so far");
    ensure(once, "not one report", &outcome)?;
    for (frames, entry) in [
        ("bad", "0x000000ff00000"),
        ("low", "0x00000000000a0"),
        ("high", "0x00000000d0000"),
    ] {
        let (outcome, told) = bare(&[frames])?;
        let of_it = outcome
            .log
            .contains(&format!("bad page table entry {entry}207 of"));
        ensure(told > 10 && of_it, "nobody complains", &outcome)?;
    }
    Ok(())
}
