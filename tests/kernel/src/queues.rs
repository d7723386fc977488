//! Devices that lie: what virtio's and NVMe's queues make of completions that nobody earned. The test is the device.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicUsize, Ordering};

use kernel::SysResult;
use kernel::arch::{X86, time};
use kernel::dev::block::{self, Bounce, Disk, Family, Known, Memory, Reached, Way, depart};
use kernel::dev::flight::{self, Finish, Job, Landing, Request};
use kernel::dev::iommu::Dma;
use kernel::dev::pci::Registers;
use kernel::dev::slots::{Control, Parts, Reset, Ring, SLOTS, Slots, let_go};
use kernel::dev::{Line, nvme, virtio};
use kernel::fs::attr::{Kind, makedev};
use kernel::fs::{File, IoBuf, Path, devfs};
use kernel::ktest;
use kernel::sync::Once;
use kernel::task;
use mm::{Errno, Hw, Pfn};

struct Obedient;

impl Reset for Obedient {
    fn reset(&self) -> bool {
        true
    }
}

/// How often a device was told to forget, and whether it does.
#[derive(Default)]
struct Counted {
    resets: AtomicUsize,
    obeys: AtomicBool,
}

impl Reset for &'static Counted {
    fn reset(&self) -> bool {
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.obeys.load(Ordering::SeqCst)
    }
}

/// The device's end of a queue.
trait Device: Sync + Sized + 'static {
    type Ring: Ring;
    fn new() -> Self;
    fn queue(&self) -> &Slots<Self::Ring>;
    fn command(&self) -> <Self::Ring as Ring>::Command<'static>;
    /// How many commands it has been given, and what the ring calls the `n`th of them.
    fn given(&self) -> usize;
    fn name(&self, n: usize) -> u32;
    /// Says that it is done with what is called so.
    fn says(&self, name: u32, fine: bool);
    /// Names of slots that exist and of some that do not.
    fn names(&self) -> Vec<u32> {
        (0..SLOTS as u32 + 2).chain([0xff, 0x100, 0xffff]).collect()
    }
}

/// A word of memory that both sides use.
fn word(pa: u64) -> &'static AtomicU16 {
    let at = X86.frame_ptr(Pfn(pa >> 12)) as u64 + pa % 4096;
    // SAFETY: a queue's memory stays, and is accessed as atomics and by the device, which we are.
    unsafe { &*(at as *const AtomicU16) }
}

fn long(pa: u64) -> u64 {
    (0..4).fold(0, |long, n| {
        long | u64::from(word(pa + 2 * n).load(Ordering::Acquire)) << (16 * n)
    })
}

struct Virtio(Slots<virtio::Ring>);

const ENTRIES: u16 = 64;

impl Virtio {
    fn with(control: &'static Control) -> Self {
        let judge = |status| if status == 0 { Ok(()) } else { Err(Errno::EIO) };
        let bell = Registers::pretended().unwrap();
        let ring = virtio::Ring::new(Dma::DIRECT, 0, ENTRIES, (bell, 0), judge).unwrap();
        Virtio(Slots::new(control, ring, virtio::Ends::default()))
    }

    fn at(&self, offset: u64) -> &'static AtomicU16 {
        word(self.0.ring().page + offset)
    }

    fn used(&self) -> u16 {
        self.at(virtio::USED + 2).load(Ordering::Acquire)
    }
}

impl Parts<virtio::Ring> for Virtio {
    fn part<'a>(
        &self,
        _sector: u64,
        memory: Reached<'a>,
        _skip: u64,
    ) -> Result<(virtio::Command<'a>, u64), Errno> {
        let len = memory.bytes();
        let command = virtio::Command {
            header: [0, 0],
            memory: Some(memory),
        };
        Ok((command, len))
    }
}

impl Device for Virtio {
    type Ring = virtio::Ring;

    fn new() -> Self {
        Virtio::with(Control::new("a liar", Obedient))
    }

    fn queue(&self) -> &Slots<virtio::Ring> {
        &self.0
    }

    fn command(&self) -> virtio::Command<'static> {
        virtio::Command {
            header: [4, 0],
            memory: None,
        }
    }

    fn given(&self) -> usize {
        self.at(virtio::AVAIL + 2).load(Ordering::Acquire) as usize
    }

    fn name(&self, n: usize) -> u32 {
        let entry = n as u64 % u64::from(ENTRIES);
        u32::from(
            self.at(virtio::AVAIL + 4 + 2 * entry)
                .load(Ordering::Acquire),
        )
    }

    fn says(&self, name: u32, fine: bool) {
        if name < SLOTS as u32 {
            // The last descriptor of the slot's table is its status.
            let entry = self.0.ring().page + 16 * u64::from(name);
            let (table, len) = (long(entry), long(entry + 8) as u32);
            if len >= 32 {
                let status = long(table + u64::from(len) - 16);
                let at = X86.frame_ptr(Pfn(status >> 12)) as u64 + status % 4096;
                // SAFETY: as `word`.
                unsafe { &*(at as *const AtomicU8) }.store(u8::from(!fine), Ordering::Relaxed);
            }
        }
        let used = self.used();
        let at = virtio::USED + 4 + 8 * u64::from(used % ENTRIES);
        // And that it has written more than there is.
        for (n, half) in [name as u16, (name >> 16) as u16, 0xffff, 0xffff]
            .into_iter()
            .enumerate()
        {
            self.at(at + 2 * n as u64).store(half, Ordering::Relaxed);
        }
        self.at(virtio::USED + 2)
            .store(used.wrapping_add(1), Ordering::Release);
    }

    fn names(&self) -> Vec<u32> {
        let slots = 0..SLOTS as u32 + 2;
        slots.chain([0x1_0000, 0xffff, u32::MAX]).collect()
    }
}

struct Nvme(Slots<nvme::Ring>, AtomicUsize);

const DEPTH: usize = nvme::DEPTH as usize;

impl Parts<nvme::Ring> for Nvme {
    fn part<'a>(
        &self,
        _sector: u64,
        memory: Reached<'a>,
        _skip: u64,
    ) -> Result<(nvme::Order<'a>, u64), Errno> {
        Ok((self.command(), memory.bytes()))
    }
}

impl Device for Nvme {
    type Ring = nvme::Ring;

    fn new() -> Self {
        let bells = [(); 2].map(|()| Registers::pretended().unwrap());
        let ring = nvme::Ring::new(Dma::DIRECT, bells).unwrap();
        let control = Control::new("a liar", Obedient);
        Nvme(
            Slots::new(control, ring, nvme::Ends::default()),
            AtomicUsize::new(0),
        )
    }

    fn queue(&self) -> &Slots<nvme::Ring> {
        &self.0
    }

    fn command(&self) -> nvme::Order<'static> {
        nvme::Command::default().into()
    }

    fn given(&self) -> usize {
        self.0.ring().bells[0].read32(0) as usize
    }

    fn name(&self, n: usize) -> u32 {
        (long(self.0.ring().commands + 64 * (n % DEPTH) as u64) >> 16) as u16 as u32
    }

    fn says(&self, name: u32, fine: bool) {
        let n = self.1.fetch_add(1, Ordering::Relaxed);
        let at = self.0.ring().completions + 16 * (n % DEPTH) as u64;
        let phase = u16::from((n / DEPTH).is_multiple_of(2));
        word(at + 12).store(name as u16, Ordering::Relaxed);
        let status = phase | if fine { 0 } else { 2 };
        word(at + 14).store(status, Ordering::Release);
    }
}

/// What a thread asked for, and was told.
struct Asker<D: 'static> {
    device: &'static D,
    told: Once<Result<u32, Errno>>,
}

fn ask<D: Device>(asker: usize) {
    // SAFETY: `asked` leaked it.
    let asker = unsafe { &*(asker as *const Asker<D>) };
    let told = asker.device.queue().request(asker.device.command());
    asker.told.call_once(|| told);
}

fn asked<D: Device>(device: &'static D) -> &'static Asker<D> {
    let asker: &'static Asker<D> = Box::leak(Box::new(Asker {
        device,
        told: Once::new(),
    }));
    task::spawn_kernel_thread("asker", ask::<D>, core::ptr::from_ref(asker) as usize).unwrap();
    asker
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = time::now_ns() + 60_000_000_000;
    while !holds() {
        assert!(time::now_ns() < deadline, "{what}");
        task::yield_now();
    }
}

/// The name of the next command that it is given.
fn next<D: Device>(device: &D, n: &mut usize, ring: usize) -> u32 {
    let name_at = *n;
    *n += 1;
    until("a command is put", || {
        device.given() % ring != name_at % ring
    });
    device.name(name_at)
}

/// How a job ended, and how often.
#[derive(Default)]
struct Ended(AtomicUsize, AtomicUsize);

struct Tell(Arc<Ended>);

impl Finish for Tell {
    fn finish(&self, result: SysResult) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        self.0.1.store(result.unwrap_or(0), Ordering::Relaxed);
    }
}

fn lies<D: Device + Parts<<D as Device>::Ring>>(ring: usize) {
    let device: &'static D = Box::leak(Box::new(D::new()));
    let queue = device.queue();
    let mut n = 0;
    assert!(!queue.is_confused());
    // Nothing has been asked for: all are lies.
    for name in device.names() {
        device.says(name, false);
        queue.interrupt();
    }
    assert!(queue.is_confused());
    // Of one that is in flight, the truth among lies is taken, and taken once.
    let asker = asked(device);
    let name = next(device, &mut n, ring);
    for lie in device.names().into_iter().filter(|&lie| lie != name) {
        device.says(lie, false);
        queue.interrupt();
    }
    device.says(name, true);
    device.says(name, true);
    while !asker.told.is_completed() {
        queue.interrupt();
        task::yield_now();
    }
    assert!(asker.told.get().is_some_and(Result::is_ok));
    device.says(name, false);
    queue.interrupt();
    // All slots are still there, each once.
    let askers: Vec<_> = (0..SLOTS + 1).map(|_| asked(device)).collect();
    let names: Vec<u32> = (0..SLOTS).map(|_| next(device, &mut n, ring)).collect();
    let slots: BTreeSet<u32> = names.iter().map(|name| name & 0xff).collect();
    assert_eq!(slots.len(), SLOTS, "a slot is two threads'");
    assert_eq!(device.given() % ring, n % ring, "more than there are slots");
    for name in &names {
        device.says(*name, true);
        device.says(*name, true);
        queue.interrupt();
    }
    let last = next(device, &mut n, ring);
    device.says(last, true);
    until("all are told", || {
        queue.interrupt();
        askers.iter().all(|asker| asker.told.is_completed())
    });
    assert!(
        askers
            .iter()
            .all(|a| a.told.get().is_some_and(Result::is_ok))
    );
    // Requests that end by themselves: once each, whatever is said.
    let landing: &'static Landing = Box::leak(Box::default());
    for fine in [true, false] {
        let ended = Arc::new(Ended::default());
        let job: Arc<Job> = Arc::new(Job::new(Tell(ended.clone())));
        let bounce = Bounce::new().unwrap();
        queue.begin(
            Dma::DIRECT,
            device,
            Request::of_bounce(landing, &job, 0, (bounce, Way::Fill), 4096).unwrap(),
        );
        job.begun();
        let name = next(device, &mut n, ring);
        for _ in 0..3 {
            device.says(name, fine);
            queue.interrupt();
        }
        landing.end_all();
        assert_eq!(ended.0.load(Ordering::Relaxed), 1, "it ends once");
        let moved = if fine { 4096 } else { 0 };
        assert_eq!(ended.1.load(Ordering::Relaxed), moved);
        assert_eq!(Arc::strong_count(&job), 1, "the request is gone");
    }
}

ktest!(virtio_completions_are_not_believed, lies::<Virtio>(1 << 16));

ktest!(nvme_completions_are_not_believed, lies::<Nvme>(DEPTH));

// An index that says more than there can be; then the truth.
ktest!(a_used_index_that_jumps_is_not_followed, {
    let device: &'static Virtio = Box::leak(Box::new(Virtio::new()));
    let asker = asked(device);
    let name = next(device, &mut 0, 1 << 16);
    let index = device.at(virtio::USED + 2);
    // What lies in the ring would be believed.
    for _ in 0..ENTRIES {
        device.says(name, false);
    }
    for jump in [SLOTS as u16 + 1, ENTRIES, 0x8000, 0xffff] {
        index.store(jump, Ordering::Release);
        device.0.interrupt();
        assert!(device.0.is_confused() && !asker.told.is_completed());
    }
    index.store(0, Ordering::Release);
    device.says(name, true);
    until("it is told", || {
        device.0.interrupt();
        asker.told.is_completed()
    });
    assert_eq!(asker.told.get(), Some(&Ok(0)));
});

// The device answers an earlier command of the slot once more: the one that has it now does not hear it.
ktest!(an_old_nvme_completion_is_known, {
    let device: &'static Nvme = Box::leak(Box::new(Nvme::new()));
    let mut n = 0;
    let first = asked(device);
    let old = next(device, &mut n, DEPTH);
    device.says(old, true);
    until("the first is told", || {
        device.0.interrupt();
        first.told.is_completed()
    });
    let second = asked(device);
    let new = next(device, &mut n, DEPTH);
    assert_eq!(old & 0xff, new & 0xff, "the same slot");
    device.says(old, false);
    device.0.interrupt();
    assert!(device.0.is_confused());
    device.says(new, true);
    until("the second is told", || {
        device.0.interrupt();
        second.told.is_completed()
    });
    assert_eq!(second.told.get(), Some(&Ok(0)));
});

/// A device that is to go, and whether it may.
struct Leaver {
    control: &'static Control,
    device: Virtio,
    gone: Once<bool>,
}

fn leave(leaver: usize) {
    // SAFETY: `a_device_goes_when_it_has_nothing_left` leaked it.
    let leaver = unsafe { &*(leaver as *const Leaver) };
    let gone = let_go(leaver.control, &[leaver.device.queue()]);
    leaver.gone.call_once(|| gone);
}

// What it has been given ends first, however long that takes; it gets nothing more; then it forgets.
ktest!(a_device_goes_when_it_has_nothing_left, {
    let counted: &'static Counted = Box::leak(Box::default());
    counted.obeys.store(true, Ordering::SeqCst);
    let control = Control::new("a leaver", counted);
    let leaver: &'static Leaver = Box::leak(Box::new(Leaver {
        control,
        device: Virtio::with(control),
        gone: Once::new(),
    }));
    let (device, mut n) = (&leaver.device, 0);
    let asker = asked(device);
    let first = next(device, &mut n, 1 << 16);
    let landing: &'static Landing = Box::leak(Box::default());
    let ended = Arc::new(Ended::default());
    let job: Arc<Job> = Arc::new(Job::new(Tell(ended.clone())));
    let begin = |device: &'static Virtio| {
        let bounce = (Bounce::new().unwrap(), Way::Fill);
        let request = Request::of_bounce(landing, &job, 0, bounce, 4096).unwrap();
        device.queue().begin(Dma::DIRECT, device, request);
    };
    begin(device);
    let second = next(device, &mut n, 1 << 16);
    task::spawn_kernel_thread("leaver", leave, core::ptr::from_ref(leaver) as usize).unwrap();
    // It is refused what is new, from some time on, by either way.
    until("it is refused", || {
        let late = asked(device);
        until("an answer", || {
            if device.given() != n {
                device.says(next(device, &mut n, 1 << 16), true);
                device.0.interrupt();
            }
            late.told.is_completed()
        });
        late.told.get() == Some(&Err(Errno::EIO))
    });
    begin(device);
    landing.end_all();
    assert_eq!(Arc::strong_count(&job), 2, "one is in flight");
    for name in [first, second] {
        assert!(!leaver.gone.is_completed(), "it has something");
        assert_eq!(counted.resets.load(Ordering::SeqCst), 0);
        device.says(name, true);
        device.0.interrupt();
    }
    until("it has gone", || leaver.gone.is_completed());
    assert_eq!(leaver.gone.get(), Some(&true));
    assert_eq!(counted.resets.load(Ordering::SeqCst), 1);
    until("who asked is told", || asker.told.is_completed());
    assert_eq!(asker.told.get(), Some(&Ok(0)));
    job.begun();
    landing.end_all();
    assert_eq!(ended.0.load(Ordering::Relaxed), 1);
    assert_eq!(Arc::strong_count(&job), 1, "the requests are gone");
});

/// One that nobody hears, and that nobody waits for.
fn mute(control: &'static Control) -> Virtio {
    Virtio(Virtio::with(control).0.with_patience(1000))
}

// One that neither answers nor forgets keeps the memory that it was given, whoever lets go of it, and may not go. Nobody waits for it.
ktest!(a_device_that_forgets_nothing_may_not_go, {
    for way in [Way::Fill, Way::Drain] {
        let counted: &'static Counted = Box::leak(Box::default());
        let control = Control::new("a rock", counted);
        let device = mute(control);
        let mut bounce = Bounce::new().unwrap();
        let memory = Memory::of_bounce(&mut bounce, way, 4096);
        let memory = memory.map(Dma::DIRECT).unwrap();
        let kept = Pfn(memory.pieces().next().unwrap().pa >> 12);
        assert_eq!(device.0.transfer(&device, 0, &memory), Err(Errno::EIO));
        assert_eq!(counted.resets.load(Ordering::SeqCst), 1);
        drop(memory);
        drop(bounce);
        assert!(X86.desc(kept).ref_count() > 0, "somebody may get it");
        // The next is refused at once.
        assert_eq!(device.0.request(device.command()), Err(Errno::EIO));
        assert_eq!(counted.resets.load(Ordering::SeqCst), 1);
        assert!(!let_go(control, &[device.queue()]));
        counted.obeys.store(true, Ordering::SeqCst);
        assert!(let_go(control, &[device.queue()]));
        assert_eq!(device.0.request(device.command()), Err(Errno::EIO));
    }
});

// The same of a request that ends by itself: so this one does, too, and once.
ktest!(a_request_that_a_device_keeps_is_over, {
    let counted: &'static Counted = Box::leak(Box::default());
    let device: &'static Virtio = Box::leak(Box::new(mute(Control::new("a rock", counted))));
    let landing: &'static Landing = Box::leak(Box::default());
    let ended = Arc::new(Ended::default());
    let job: Arc<Job> = Arc::new(Job::new(Tell(ended.clone())));
    let bounce = (Bounce::new().unwrap(), Way::Fill);
    let request = Request::of_bounce(landing, &job, 0, bounce, 4096).unwrap();
    device.queue().begin(Dma::DIRECT, device, request);
    job.begun();
    let name = next(device, &mut 0, 1 << 16);
    // Of its table, the second is the memory.
    let kept = long(long(device.0.ring().page + 16 * u64::from(name)) + 16);
    until("it is given up", || {
        device.0.give_up();
        landing.end_all();
        ended.0.load(Ordering::Relaxed) > 0
    });
    assert_eq!(ended.1.load(Ordering::Relaxed), 0, "it has failed");
    assert_eq!(Arc::strong_count(&job), 1, "the request is gone");
    let frame = X86.desc(Pfn(kept >> 12));
    assert!(frame.ref_count() > 0, "somebody may get it");
    // The device may say so in the end.
    device.says(name, true);
    device.0.interrupt();
    device.0.give_up();
    landing.end_all();
    assert_eq!(ended.0.load(Ordering::Relaxed), 1, "it ends once");
    assert!(!device.0.is_confused() && frame.ref_count() > 0);
});

// Nobody lets go of what a device may reach but by the end of the request.
ktest!(a_request_that_is_dropped_keeps_its_memory, {
    let landing: &'static Landing = Box::leak(Box::default());
    let job: Arc<Job> = Arc::new(Job::new(Tell(Arc::default())));
    let bounce = (Bounce::new().unwrap(), Way::Fill);
    let mut request = Request::of_bounce(landing, &job, 0, bounce, 4096).unwrap();
    request.lend(Dma::DIRECT).unwrap();
    let kept = Pfn(request.reached().pieces().next().unwrap().pa >> 12);
    drop(request);
    assert!(X86.desc(kept).ref_count() > 0, "somebody may get it");
});

/// A disk that answers when it is let off; before, it may have a queue that nobody hears.
struct Rock {
    name: &'static str,
    control: &'static Control,
    queue: Option<Virtio>,
    asked: AtomicUsize,
    off: AtomicBool,
    call: task::WaitQueue,
}

impl Rock {
    /// As a disk that there is, what is known of it, and its node.
    fn add(
        name: &'static str,
        control: &'static Control,
        queue: Option<Virtio>,
    ) -> (&'static Rock, Known, impl Fn() -> Path) {
        let rock: &'static Rock = Box::leak(Box::new(Rock {
            name,
            control,
            queue,
            asked: AtomicUsize::new(0),
            off: AtomicBool::new(false),
            call: task::WaitQueue::new(),
        }));
        block::add(rock, Family::Extended);
        let known = (0..).map_while(block::disk).last().unwrap();
        let number = makedev(known.major, known.minor);
        let name = name.as_bytes();
        let node = devfs::root().unwrap().make(name, |dir| {
            dir.create(name, Kind::Block.bits() | 0o600, number)
        });
        let node = node.unwrap();
        let path = move || Path::unnamed(node.inode().clone(), name, false);
        (rock, known, path)
    }

    fn let_off(&self, off: bool) {
        self.off.store(off, Ordering::SeqCst);
        self.call.wake_all();
    }
}

impl Disk for Rock {
    fn name(&self) -> &str {
        self.name
    }

    fn sectors(&self) -> u64 {
        64
    }

    fn block(&self) -> u32 {
        512
    }

    fn read_only(&self) -> bool {
        false
    }

    fn transfer(&self, sector: u64, memory: &Memory<'_>) -> Result<(), Errno> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let waits = || !self.off.load(Ordering::SeqCst);
        if waits()
            && let Some(device) = &self.queue
        {
            let memory = memory.map(Dma::DIRECT)?;
            return device.queue().transfer(device, sector, &memory);
        }
        let _ = self
            .call
            .wait_while(task::Sleep::Uninterruptible, None, waits);
        Ok(())
    }

    fn begin(&'static self, request: Box<Request>) {
        flight::done(request);
    }

    fn give_up(&self) {}

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn discard(&self, _sector: u64, _sectors: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn control(&self) -> &'static Control {
        self.control
    }
}

/// Who uses it, and what came of that.
struct User {
    file: Arc<File>,
    writes: bool,
    told: Once<Result<(), Errno>>,
}

fn use_it(user: usize) {
    // SAFETY: `who_waits_for_a_rock_keeps_nobody` leaked it.
    let user = unsafe { &*(user as *const User) };
    let result = match user.writes {
        true => user.file.write_at(&mut IoBuf::kernel(b"x"), 0).map(drop),
        false => user.file.fsync(),
    };
    user.told.call_once(|| result);
}

// Who waits for a device that keeps its memory holds locks of its disk's cache; who takes it out is told at once that it may not go.
ktest!(who_waits_for_a_rock_keeps_nobody, {
    let counted: &'static Counted = Box::leak(Box::default());
    let control = Control::new("a rock", counted);
    let (rock, known, path) = Rock::add("rock", control, None);
    let file = File::open(path(), 2).unwrap();
    let uses = |writes| -> &'static User {
        let user = Box::leak(Box::new(User {
            file: file.clone(),
            writes,
            told: Once::new(),
        }));
        let asked = rock.asked.load(Ordering::SeqCst);
        task::spawn_kernel_thread("user", use_it, core::ptr::from_ref(user) as usize).unwrap();
        until("it is asked", || rock.asked.load(Ordering::SeqCst) > asked);
        user
    };
    // A page is read in to be written to a part: no other writer's copy is dropped meanwhile.
    let writer = uses(true);
    assert!(!depart(control, || false));
    rock.let_off(true);
    until("it is written", || writer.told.is_completed());
    assert_eq!(writer.told.get(), Some(&Ok(())));
    // The page is written back: nobody changes the size meanwhile.
    rock.let_off(false);
    let syncer = uses(false);
    let leaves = || let_go::<virtio::Ring>(control, &[]);
    assert!(!leaves());
    assert!(!depart(control, leaves));
    rock.let_off(true);
    until("it is synced", || syncer.told.is_completed());
    assert_eq!(syncer.told.get(), Some(&Ok(())));
    counted.obeys.store(true, Ordering::SeqCst);
    assert!(depart(control, leaves));
    assert!(block::known(known.major, known.minor).is_none());
    let late = file.write_at(&mut IoBuf::kernel(b"x"), 0);
    assert_eq!(late, Err(Errno::ENOSPC));
    assert_eq!(File::open(path(), 2).err(), Some(Errno::ENXIO));
});

// Who takes a disk out that falls silent just then is told; and he writes to no other disk, which may be slow.
ktest!(a_disk_that_falls_silent_when_it_leaves_keeps_nobody, {
    let counted: &'static Counted = Box::leak(Box::default());
    let control = Control::new("a mute", counted);
    let (rock, _, path) = Rock::add("mute", control, Some(mute(control)));
    let (slow, _, slow_path) = Rock::add("slow", Control::new("a slow one", Obedient), None);
    let write = |rock: &Rock, path| {
        let file = File::open(path, 2).unwrap();
        // The first has the page read in.
        for off in [true, false] {
            rock.let_off(off);
            assert_eq!(file.write_at(&mut IoBuf::kernel(b"x"), 0), Ok(1));
        }
        file
    };
    let other = write(slow, slow_path());
    let file = write(rock, path());
    let queue = rock.queue.as_ref().unwrap().queue();
    assert!(!depart(control, || let_go(control, &[queue])));
    assert!(control.is_lost());
    assert_eq!(file.fsync(), Err(Errno::EIO));
    slow.let_off(true);
    assert_eq!(other.fsync(), Ok(()));
    counted.obeys.store(true, Ordering::SeqCst);
    assert!(depart(control, || let_go(control, &[queue])));
});
