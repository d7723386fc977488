//! Lists every test, finds out which are wanted, prepares what those need, and reports each as a line of its own.
//!
//! The machines of the batches start at once, at most `AT_ONCE` at a time; a test of a batch waits for its batch.
//! So the order of the lines is the list's, while the machines run when there is room.

use crate::batch::{self, Fared};
use crate::build::{self, Result};
use crate::catalogue::{ALONE, Kind, PROGRAMS, Program};
use crate::{bugs, diff, ext4, host, ktests, machines};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread;

/// Numbers of CPUs that everything runs with. The release kernel on one and four, the test kernel (poison, lock-order
/// and overflow checks) on two: so both kernels see the whole suite, and both see several CPUs.
pub const CPUS: [u32; 3] = [1, 2, 4];
const CHECKED_ON: u32 = 2;

/// Machines at once.
const AT_ONCE: usize = 2;

/// Counts the machines that run.
pub struct Room(Mutex<usize>, Condvar);

/// Frames that the kernel may keep after a program: its heap grows and is seldom empty, and where pages have left the
/// direct map, that stays split.
pub(crate) const KEPT: i64 = 24;

/// A machine's place; dropping it gives it to the next.
pub struct Place(&'static Room);

impl Room {
    pub fn take() -> Place {
        static ROOM: Room = Room(Mutex::new(AT_ONCE), Condvar::new());
        let free = lock(&ROOM.0);
        let mut free = ROOM
            .1
            .wait_while(free, |free| *free == 0)
            .unwrap_or_else(|poison| poison.into_inner());
        *free -= 1;
        Place(&ROOM)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *lock(&self.0.0) += 1;
        self.0.1.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

type Batch = HashMap<&'static str, Result<Fared>>;

/// A value that somebody else is computing.
pub struct Coming<T>(Arc<OnceLock<T>>);

impl<T> Clone for Coming<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Send + Sync + 'static> Coming<T> {
    fn start(make: impl FnOnce() -> T + Send + 'static) -> Self {
        let cell = Arc::new(OnceLock::new());
        let theirs = cell.clone();
        thread::spawn(move || {
            // Should `make` panic, those who wait find nothing and say so.
            let _ = theirs.set(make());
        });
        Self(cell)
    }

    /// Waits for it.
    pub fn wait(&self) -> Option<&T> {
        while self.0.get().is_none() {
            if Arc::strong_count(&self.0) == 1 {
                return self.0.get();
            }
            thread::sleep(std::time::Duration::from_millis(20));
        }
        self.0.get()
    }
}

fn guest_name(program: &Program, smp: u32) -> String {
    format!("guest::{}::smp{smp}", program.name)
}

fn host_name(program: &Program) -> String {
    format!("host::{}", program.name)
}

/// libtest's rule.
fn wanted(arguments: &Arguments, name: &str) -> bool {
    let hit = |pattern: &String| {
        if arguments.exact {
            name == pattern
        } else {
            name.contains(pattern.as_str())
        }
    };
    !arguments.ignored
        && arguments.filter.as_ref().is_none_or(hit)
        && !arguments.skip.iter().any(hit)
}

/// Tests with a machine each.
fn own_machine() -> impl Iterator<Item = &'static machines::Test> {
    machines::TESTS.iter().chain(bugs::TESTS).chain(ext4::TESTS)
}

/// What is wanted.
struct Plan {
    host: Vec<Program>,
    guest: Vec<(u32, Vec<Program>)>,
    ktests: Vec<(u32, Vec<String>)>,
    machines: Vec<&'static machines::Test>,
}

impl Plan {
    fn new(arguments: &Arguments, known: &[String]) -> Self {
        let pick = |smp: u32| {
            let of = PROGRAMS
                .iter()
                .filter(|program| wanted(arguments, &guest_name(program, smp)));
            (smp, of.copied().collect::<Vec<_>>())
        };
        let tests = |smp: u32| {
            let of = known
                .iter()
                .filter(|name| wanted(arguments, &ktests::line_name(name, smp)));
            (smp, of.cloned().collect::<Vec<_>>())
        };
        Self {
            host: PROGRAMS
                .iter()
                .filter(|p| p.compare && wanted(arguments, &host_name(p)))
                .copied()
                .collect(),
            guest: CPUS.into_iter().map(pick).collect(),
            ktests: CPUS.into_iter().map(tests).collect(),
            machines: own_machine()
                .filter(|test| wanted(arguments, test.name))
                .collect(),
        }
    }

    fn needs_a_machine(&self) -> bool {
        self.guest.iter().any(|(_, programs)| !programs.is_empty())
            || self.ktests.iter().any(|(_, names)| !names.is_empty())
            || !self.machines.is_empty()
    }

    /// Builds everything that the plan needs; an error stops the run.
    fn build(&self) -> Result<()> {
        build::set_up()?;
        if self.needs_a_machine() {
            // One after the other: Cargo builds with all CPUs by itself.
            build::kernel()?;
            build::test_kernel()?;
        }
        let mut programs: Vec<Program> = self.host.clone();
        programs.extend(self.guest.iter().flat_map(|(_, programs)| programs));
        if self.needs_a_machine() {
            programs.extend(ALONE);
        }
        // A script runs a Rust program; machines run any.
        if programs.iter().any(|program| program.kind == Kind::Script) || !self.machines.is_empty()
        {
            programs.extend(PROGRAMS);
        }
        // Several programs may share one file.
        programs.sort_by_key(Program::host_path);
        programs.dedup_by_key(|program| program.host_path());
        let next = Mutex::new(programs.into_iter());
        let errors = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
                scope.spawn(|| {
                    while let Some(program) = { lock(&next).next() } {
                        if let Err(why) = build::program(&program) {
                            lock(&errors).push(why);
                        }
                    }
                });
            }
        });
        match lock(&errors).first() {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        }
    }
}

/// The kernel that the batch on `smp` CPUs runs.
pub fn kernel_for(smp: u32) -> Result<PathBuf> {
    if smp == CHECKED_ON {
        build::test_kernel()
    } else {
        build::kernel()
    }
}

/// The whole of `cargo test` for this package.
pub fn main() -> ExitCode {
    host::keep_descriptors();
    let mut arguments = Arguments::from_args();
    // Tests mostly wait; the machines have their own limit.
    arguments.test_threads.get_or_insert(16);
    let known = ktests::names();
    let plan = Plan::new(&arguments, &known);
    if !arguments.list
        && let Err(why) = plan.build()
    {
        eprintln!("{why}");
        return ExitCode::FAILURE;
    }
    let running = !arguments.list;
    let mut trials = Vec::new();
    for program in PROGRAMS.iter().filter(|program| program.compare) {
        trials.push(Trial::test(host_name(program), move || {
            on_the_host(program)
        }));
    }
    for (smp, names) in &plan.ktests {
        let (smp, names) = (*smp, names.clone());
        let start = move || {
            let _place = Room::take();
            ktests::run(smp, &names)
        };
        let any = !plan.ktests.iter().all(|(_, names)| names.is_empty());
        let batch = (running && any).then(|| Coming::start(start));
        for name in &known {
            let (batch, name) = (batch.clone(), name.clone());
            let line = ktests::line_name(&name, smp);
            trials.push(Trial::test(line, move || {
                ktests::verdict(batch.as_ref().and_then(Coming::wait), &name, smp)
            }));
        }
    }
    // The longest first.
    for (smp, programs) in plan.guest.iter().rev() {
        let (smp, programs) = (*smp, programs.clone());
        let batch = (running && !programs.is_empty()).then(|| {
            Coming::start(move || {
                let _place = Room::take();
                match kernel_for(smp) {
                    Ok(kernel) => batch::run(&kernel, smp, &programs),
                    Err(_) => Batch::new(),
                }
            })
        });
        for program in PROGRAMS {
            let batch = batch.clone();
            trials.push(Trial::test(guest_name(program, smp), move || {
                in_the_guest(program, smp, batch.as_ref().and_then(Coming::wait))
            }));
        }
    }
    for test in own_machine() {
        trials.push(Trial::test(test.name, move || {
            let _place = Room::take();
            (test.run)()
                .map_err(|why| Failed::from(format!("{why}\n\nalone: cargo test {}", test.name)))
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The oracle itself must be well: the program succeeds on Linux.
fn on_the_host(program: &Program) -> std::result::Result<(), Failed> {
    let said = host::said(program)?;
    if said.status != 0 && said.status != host::LACKING {
        let output = String::from_utf8_lossy(&said.output).into_owned();
        return Err(format!(
            "status {} on this Linux:\n{}",
            said.status,
            diff::tail(&output, 20)
        )
        .into());
    }
    Ok(())
}

fn in_the_guest(
    program: &Program,
    smp: u32,
    batch: Option<&Batch>,
) -> std::result::Result<(), Failed> {
    let fared = match batch.and_then(|batch| batch.get(program.name)) {
        Some(Ok(fared)) => fared,
        Some(Err(why)) => return Err(why.clone().into()),
        None => return Err("its machine was lost".into()),
    };
    let mut why = String::new();
    match (fared.status, &fared.machine) {
        (Some(0), _) => {}
        (Some(124), _) => why.push_str("time limit reached\n"),
        (Some(status), _) => why.push_str(&format!("status {status}\n")),
        (None, machine) => why.push_str(machine.as_deref().unwrap_or("no end")),
    }
    let said = match program.compare {
        true => Some(host::said(program)?),
        false => None,
    };
    if let Some(said) = said.filter(|said| said.status != host::LACKING) {
        if let Some(difference) = diff::first_difference(&said.output, &fared.output) {
            why.push_str(&difference);
        }
    } else if !why.is_empty() {
        why.push_str(&format!(
            "it said:\n{}\n",
            diff::tail(&String::from_utf8_lossy(&fared.output), 20)
        ));
    }
    let (pins, frames) = fared.left;
    if pins != 0 || frames > KEPT {
        why.push_str(&format!("it left {pins} pins and {frames} frames behind\n"));
    }
    if why.is_empty() {
        return Ok(());
    }
    let kernel = if smp == CHECKED_ON {
        " KERNEL=target/x86_64-unknown-none/checked/test-kernel"
    } else {
        ""
    };
    Err(format!(
        "{why}\nkernel log of its time:\n{}\n\nalone: {}{kernel}",
        diff::tail(&fared.log, 40),
        program.make_command(smp)
    )
    .into())
}
