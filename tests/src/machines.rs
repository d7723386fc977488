//! Tests that need a machine to themselves.

use crate::build;
use crate::catalogue::{ALONE, PROGRAMS, Program};
use crate::console::Console;
use crate::debuggers::{a_core_file_has_a_backtrace, gdbserver_debugs, strace_follows_a_family};
use crate::disks::{
    a_bad_block_cannot_be_mapped, a_bad_block_is_an_error, a_bad_block_is_an_error_in_a_ring,
    a_bad_block_is_an_error_of_its_nvme_request, a_bad_block_is_an_error_of_its_request,
    a_bad_block_of_an_nvme_disk_is_an_error, a_disk_falls_silent_while_all_wait_for_it,
    a_disk_is_copied_to_another, a_disk_is_mapped_on_four_cpus, a_disk_is_mapped_on_one_cpu,
    a_disk_is_mapped_on_two_cpus, a_disk_larger_than_memory,
    a_disk_that_does_not_answer_is_given_up, a_disk_uses_what_it_can_do,
    a_ring_hears_of_what_is_not_answered, a_store_after_the_cleaning_is_written,
    an_edu_that_does_not_answer_keeps_its_memory, an_entry_that_nobody_made_is_told_of,
    an_nvme_disk_falls_silent_while_all_wait_for_it, an_nvme_disk_is_copied_to_another,
    an_nvme_disk_that_does_not_answer_is_given_up, dev_mem_shows_devices,
    dev_mem_shows_ram_if_it_may, disks_on_four_cpus, disks_on_one_cpu, disks_on_two_cpus,
    disks_with_interrupt_lines, disks_with_small_queues, edu_copies_while_its_process_forks,
    edu_is_seen_when_bug_5_is_planted, memory_runs_out_under_a_lock, nvme_disks_on_four_cpus,
    nvme_disks_on_one_cpu, nvme_disks_on_two_cpus, nvme_requests_on_four_cpus,
    nvme_requests_on_one_cpu, nvme_requests_on_two_cpus,
    nvme_requests_that_are_not_answered_are_given_up, registers_are_held_by_nobody,
    requests_on_four_cpus, requests_on_one_cpu, requests_on_two_cpus,
    requests_that_are_not_answered_are_given_up, requests_that_gather_leave_memory,
    rings_on_four_cpus, rings_on_one_cpu, rings_on_two_cpus,
};
use crate::iommu::{
    a_disk_is_written_without_memory, a_disk_past_the_iommu_is_told_of,
    a_domain_that_is_not_made_leaves_nothing, a_stray_transfer_arrives_without_an_iommu,
    a_stray_transfer_is_refused_on_four_cpus, a_stray_transfer_is_refused_on_one_cpu,
    a_stray_transfer_is_refused_on_two_cpus, disks_behind_an_iommu_on_four_cpus,
    disks_behind_an_iommu_on_one_cpu, disks_behind_an_iommu_on_two_cpus, edu_behind_an_iommu,
    nvme_disks_behind_an_iommu_on_four_cpus, nvme_disks_behind_an_iommu_on_one_cpu,
    requests_behind_an_iommu, rings_behind_an_iommu,
};
use crate::screen::a_picture_is_on_the_screen;
use crate::unplug::{
    a_disk_is_taken_out_before_the_first_program, a_disk_is_taken_out_on_four_cpus,
    a_disk_is_taken_out_on_one_cpu, a_disk_is_taken_out_on_two_cpus,
    a_disk_is_taken_out_while_it_is_mounted, a_mounted_disk_is_taken_out,
    a_silent_disk_is_taken_out, an_edu_is_taken_out, an_nvme_disk_is_taken_out,
    disks_are_taken_out_behind_an_iommu,
};
use crate::{batch, diff, host, ktests, runner};
use launcher::{Config, Mode, Outcome};
use std::time::{Duration, Instant};

pub type Verdict = Result<(), String>;

/// One test.
#[derive(Debug)]
pub struct Test {
    pub name: &'static str,
    pub run: fn() -> Verdict,
}

/// The tests of a room, by what they are called in it.
macro_rules! tests {
    ($room:literal: $($name:ident),* $(,)?) => {
        /// All of them.
        pub const TESTS: &[Test] = &[$(Test { name: concat!($room, "::", stringify!($name)), run: $name }),*];
    };
}
pub(crate) use tests;

tests!["machine":
    memory_runs_out,
    memory_runs_out_in_a_shared_space,
    small_things_leave_memory,
    rings_leave_memory,
    memory_runs_out_under_a_lock,
    a_long_storm_on_one_cpu,
    a_long_storm_on_two_cpus,
    a_long_storm_on_four_cpus,
    exit_statuses_arrive,
    output_is_untouched,
    time_limit_strikes,
    a_shell_on_the_console,
    the_escape_key_ends_the_machine,
    eight_cpus,
    small_and_large_memory,
    an_old_cpu,
    another_chipset,
    strace_follows_a_family,
    gdbserver_debugs,
    a_core_file_has_a_backtrace,
    a_bad_block_cannot_be_mapped,
    a_disk_is_mapped_on_one_cpu,
    a_disk_is_mapped_on_two_cpus,
    a_disk_is_mapped_on_four_cpus,
    a_disk_larger_than_memory,
    a_store_after_the_cleaning_is_written,
    a_disk_uses_what_it_can_do,
    disks_on_one_cpu,
    disks_on_two_cpus,
    disks_on_four_cpus,
    a_bad_block_is_an_error,
    a_disk_is_copied_to_another,
    a_disk_that_does_not_answer_is_given_up,
    nvme_disks_on_one_cpu,
    nvme_disks_on_two_cpus,
    nvme_disks_on_four_cpus,
    a_bad_block_of_an_nvme_disk_is_an_error,
    an_nvme_disk_is_copied_to_another,
    an_nvme_disk_that_does_not_answer_is_given_up,
    a_bad_block_is_an_error_of_its_request,
    requests_on_one_cpu,
    requests_on_two_cpus,
    requests_on_four_cpus,
    requests_that_are_not_answered_are_given_up,
    requests_that_gather_leave_memory,
    rings_on_one_cpu,
    rings_on_two_cpus,
    rings_on_four_cpus,
    a_bad_block_is_an_error_in_a_ring,
    a_ring_hears_of_what_is_not_answered,
    a_disk_falls_silent_while_all_wait_for_it,
    disks_with_interrupt_lines,
    disks_with_small_queues,
    nvme_requests_that_are_not_answered_are_given_up,
    an_nvme_disk_falls_silent_while_all_wait_for_it,
    nvme_requests_on_one_cpu,
    nvme_requests_on_two_cpus,
    nvme_requests_on_four_cpus,
    a_bad_block_is_an_error_of_its_nvme_request,
    edu_copies_while_its_process_forks,
    edu_is_seen_when_bug_5_is_planted,
    an_edu_that_does_not_answer_keeps_its_memory,
    dev_mem_shows_devices,
    dev_mem_shows_ram_if_it_may,
    registers_are_held_by_nobody,
    an_entry_that_nobody_made_is_told_of,
    a_picture_is_on_the_screen,
    a_disk_is_taken_out_on_one_cpu,
    a_disk_is_taken_out_on_two_cpus,
    a_disk_is_taken_out_on_four_cpus,
    an_nvme_disk_is_taken_out,
    disks_are_taken_out_behind_an_iommu,
    an_edu_is_taken_out,
    a_disk_is_taken_out_while_it_is_mounted,
    a_mounted_disk_is_taken_out,
    a_silent_disk_is_taken_out,
    a_disk_is_taken_out_before_the_first_program,
    disks_behind_an_iommu_on_one_cpu,
    disks_behind_an_iommu_on_two_cpus,
    disks_behind_an_iommu_on_four_cpus,
    nvme_disks_behind_an_iommu_on_one_cpu,
    nvme_disks_behind_an_iommu_on_four_cpus,
    requests_behind_an_iommu,
    edu_behind_an_iommu,
    a_stray_transfer_is_refused_on_one_cpu,
    a_stray_transfer_is_refused_on_two_cpus,
    a_stray_transfer_is_refused_on_four_cpus,
    a_stray_transfer_arrives_without_an_iommu,
    a_disk_past_the_iommu_is_told_of,
    rings_behind_an_iommu,
    a_disk_is_written_without_memory,
    a_domain_that_is_not_made_leaves_nothing,
    stack_overflow_is_reported,
    boot_stack_overflow_is_reported,
    large_stack_overflow_is_reported,
    panic_in_a_large_stack_is_reported,
    double_fault_has_its_own_stack,
    panic_names_the_culprit,
    panic_in_a_report_ends_it,
    lock_order_violation_is_seen,
    a_class_taken_twice_is_seen,
    sleep_under_a_spin_lock_is_seen,
    sleep_under_an_irq_lock_is_seen,
    user_copy_under_a_spin_lock_is_seen,
    shootdown_with_interrupts_off_is_seen,
    stray_user_access_is_reported,
    secret_memory_is_out_of_reach,
];

pub(crate) fn find(name: &str) -> &'static Program {
    ALONE
        .iter()
        .chain(PROGRAMS)
        .find(|program| program.name == name)
        .expect("a name from the catalogue")
}

/// Runs a program alone, as `make exec` does.
pub(crate) fn exec(
    program: &Program,
    args: &[&str],
    change: impl FnOnce(&mut Config),
) -> Result<Outcome, String> {
    let mut config = Config::new(build::kernel()?, Mode::Exec);
    config.argv = program.guest_command();
    config.argv.extend(args.iter().map(|arg| arg.to_string()));
    config.files = batch::files([program].into_iter());
    config.timeout = Some(Duration::from_secs(120));
    change(&mut config);
    launcher::run(&config).map_err(|error| error.to_string())
}

fn shown(outcome: &Outcome) -> String {
    format!(
        "status {}{}\nconsole:\n{}\nkernel log:\n{}",
        outcome.status,
        outcome
            .message
            .as_ref()
            .map(|m| format!(" ({m})"))
            .unwrap_or_default(),
        diff::tail(&String::from_utf8_lossy(&outcome.stdout), 40),
        diff::tail(&outcome.log, 40)
    )
}

pub(crate) fn ensure(holds: bool, what: &str, outcome: &Outcome) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(format!("{what}\n{}", shown(outcome)))
    }
}

/// A program that checks itself has found nothing.
pub(crate) fn says_ok(outcome: &Outcome) -> Verdict {
    let fine = outcome.status == 0 && outcome.stdout == b"ok\n";
    ensure(fine, "not as it should", outcome)
}

/// As many frames are free in the end as there were, but for `more` and those that the kernel may keep.
pub(crate) fn frames_are_back(outcome: &Outcome, more: i64) -> Verdict {
    let (start, end) = frames(&outcome.log).ok_or("nobody counted frames")?;
    let kept = start.saturating_sub(end) as i64 - more;
    ensure(kept <= runner::KEPT, "frames are missing", outcome)
}

fn memory_runs_out() -> Verdict {
    let outcome = exec(find("oom"), &[], |config| config.mem = "192M".into())?;
    let hogs = "hog: killed 1 by 9\nmodest: exit 5\n".repeat(3);
    let expected = format!("{hogs}both hogs killed: 2\n64 MiB again\n");
    ensure(
        outcome.status == 0 && outcome.stdout == expected.as_bytes(),
        "not as it should",
        &outcome,
    )?;
    ensure(
        outcome.log.to_lowercase().contains("out of memory"),
        "the log does not mention it",
        &outcome,
    )
}

/// The victim's space is another process's, too.
fn memory_runs_out_in_a_shared_space() -> Verdict {
    let outcome = exec(find("oom"), &["shared"], |config| {
        config.mem = "128M".into();
    })?;
    let fine = outcome.stdout == b"both: killed 1 by 9\n64 MiB again\n";
    ensure(fine && outcome.status == 0, "not as it should", &outcome)
}

/// What a program makes the kernel keep for it, as small as it may be, is refused while memory is short.
fn small_things_leave_memory() -> Verdict {
    let outcome = exec(find("oom"), &["queued"], |config| {
        config.mem = "96M".into();
    })?;
    let said = |locks: &str, timer: &str| {
        format!(
            "fcntl(lockable, F_SETLK, &one) = {locks}\nflock(lockable, LOCK_SH) = {locks}\n\
             timer_create(CLOCK_MONOTONIC, 0, &t) = {timer}\n"
        )
    };
    let (good, short) = (said("0", "0"), said("errno 37", "EAGAIN"));
    let refused =
        "refused: EAGAIN\nsyscall(SYS_pidfd_send_signal, pidfd, SIGRTMIN, &info, 0) = EAGAIN\n";
    let expected = format!("{good}{refused}{short}{good}");
    let fine = outcome.stdout == expected.as_bytes();
    ensure(fine && outcome.status == 0, "not as it should", &outcome)
}

/// The same of what waits in rings.
fn rings_leave_memory() -> Verdict {
    let outcome = exec(find("uring"), &["gather"], |config| {
        config.mem = "96M".into();
    })?;
    says_ok(&outcome)
}

/// Threads that fault, unmap and fork against each other: what they see is right all the way (the program checks), and
/// in the end not one frame is missing.
fn long_storm(cpus: u32) -> Verdict {
    let kernel = runner::kernel_for(cpus)?;
    let outcome = exec(find("storm"), &["2000"], |config| {
        config.kernel = kernel;
        config.smp = cpus;
        config.cmdline = "leakcheck".into();
        config.timeout = Some(Duration::from_secs(240));
    })?;
    ensure(
        outcome.status == 0 && outcome.stdout == b"storm of 11 threads, 2000 rounds: ok\n",
        "not as it should",
        &outcome,
    )?;
    let frames = frames(&outcome.log).ok_or_else(|| shown(&outcome))?;
    ensure(frames.0 == frames.1, "frames are missing", &outcome)
}

/// Free frames before the first program and after the last, if the kernel was asked to count (`leakcheck`).
fn frames(log: &str) -> Option<(u64, u64)> {
    let (_, counts) = log.split_once("frames: start ")?;
    let mut words = counts.split_whitespace();
    let start = words.next()?.parse().ok()?;
    (words.next()? == "end").then_some((start, words.next()?.parse().ok()?))
}

fn a_long_storm_on_one_cpu() -> Verdict {
    long_storm(1)
}

fn a_long_storm_on_two_cpus() -> Verdict {
    long_storm(2)
}

fn a_long_storm_on_four_cpus() -> Verdict {
    long_storm(4)
}

fn exit_statuses_arrive() -> Verdict {
    let status = find("status");
    for (argument, expected) in [
        ("0", 0),
        ("7", 7),
        ("255", 255),
        ("signal 9", 137),
        ("signal 11", 139),
        ("signal 6", 134),
    ] {
        let words: Vec<&str> = argument.split(' ').collect();
        let outcome = exec(status, &words, |_| {})?;
        ensure(
            outcome.status == expected,
            &format!("{argument} should give {expected}"),
            &outcome,
        )?;
    }
    let outcome = exec(status, &[], |config| {
        config.argv[0] = "/no/such/program".into()
    })?;
    ensure(
        outcome.status != 0 && outcome.status != 124,
        "a missing program",
        &outcome,
    )
}

fn output_is_untouched() -> Verdict {
    let outcome = exec(find("status"), &["bytes"], |_| {})?;
    // All bytes, LF and CR as they are, both streams on the console, no tty.
    let mut expected: Vec<u8> = (0..=255).collect();
    expected.extend(b"a\nb\r\nno tty\nstdin ends\nto stderr\n");
    ensure(
        outcome.status == 0 && outcome.stdout == expected,
        "bytes changed on the way",
        &outcome,
    )
}

fn time_limit_strikes() -> Verdict {
    let started = Instant::now();
    let outcome = exec(find("status"), &["forever"], |config| {
        config.timeout = Some(Duration::from_secs(6))
    })?;
    ensure(outcome.status == 124, "no time limit", &outcome)?;
    ensure(
        started.elapsed() < Duration::from_secs(15),
        "too late",
        &outcome,
    )
}

fn a_shell_on_the_console() -> Verdict {
    let mut console = Console::start()?;
    console.expect("# ")?;
    console.types("echo $((6 * 7)) answers\r", "\n42 answers\r\n")?;
    console.expect("# ")?;
    // The shell's line editing: mistyped letters are taken back.
    console.types("echo edxx\x7f\x7fited\r", "\nedited\r\n")?;
    console.expect("# ")?;
    // The terminal's own; ^D ends the input. The shell loses what is typed before it has changed the mode.
    console.types("echo ready; cat | cat\r", "\nready\r\n")?;
    console.types("typed lime\x7f\x7fne\r", "\ntyped line\r\n")?;
    console.types("\x04", "# ")?;
    // ^C ends the program, not the shell.
    console.types("echo started; sleep 1000\r", "\nstarted\r\n")?;
    console.types("\x03", "# ")?;
    console.types("echo status $?\r", "\nstatus 130\r\n")?;
    console.expect("# ")?;
    console.types(
        "ps | grep -c '[s]leep 1000'; tty\r",
        "\n0\r\n/dev/console\r\n",
    )?;
    console.expect("# ")?;
    console.type_in("poweroff\r")?;
    console.end()
}

fn the_escape_key_ends_the_machine() -> Verdict {
    let mut console = Console::start()?;
    console.expect("# ")?;
    console.type_in("\x01x")?;
    console.end()
}

/// A program of the catalogue succeeds in a machine of another shape.
fn runs(name: &str, change: impl FnOnce(&mut Config)) -> Verdict {
    let outcome = exec(find(name), &[], change)?;
    ensure(outcome.status == 0, "failed", &outcome)
}

fn eight_cpus() -> Verdict {
    let outcome = exec(find("status"), &["cpus"], |config| config.smp = 8)?;
    ensure(
        outcome.status == 0 && outcome.stdout == b"8 cpus\n",
        "eight CPUs",
        &outcome,
    )?;
    runs("threads", |config| config.smp = 8)
}

fn small_and_large_memory() -> Verdict {
    runs("cow", |config| config.mem = "64M".into())?;
    runs("cow", |config| config.mem = "5G".into())
}

fn an_old_cpu() -> Verdict {
    runs("cow", |config| config.cpu = Some("qemu64".into()))?;
    runs("avx", |config| config.cpu = Some("Nehalem".into()))?;
    let outcome = exec(find("pkeys"), &[], |config| {
        config.cpu = Some("Nehalem".into());
    })?;
    ensure(
        outcome.status == host::LACKING
            && String::from_utf8_lossy(&outcome.stdout)
                .ends_with("alloc(0, 0) = EINVAL\nrelease(0) = EINVAL\n"),
        "there are no protection keys here",
        &outcome,
    )
}

fn another_chipset() -> Verdict {
    runs("cow", |config| {
        config.qemu_args = vec!["-machine".into(), "q35".into()]
    })
}

/// Runs one in-kernel test that must end in a panic, whose report must hold all of `texts`.
fn panics(name: &str, texts: &[&str]) -> Verdict {
    report(name, texts).map(drop)
}

/// What the log says of a panic.
fn report(name: &str, texts: &[&str]) -> Result<String, String> {
    let ran = ktests::machine(2, &format!("test={name}"))?;
    let log = ran.log();
    if ran.status() != 125 {
        return Err(format!(
            "status {}, not 125\n{}",
            ran.status(),
            diff::tail(log, 40)
        ));
    }
    for text in texts {
        if !log.contains(text) {
            return Err(format!(
                "the report does not say {text:?}:\n{}",
                diff::tail(log, 60)
            ));
        }
    }
    Ok(log.to_string())
}

fn stack_overflow_is_reported() -> Verdict {
    panics(
        "overflow_a_kernel_stack",
        &[
            "kernel stack overflow",
            "cpu ",
            "rip ",
            "backtrace:",
            "recurse",
            "times more",
            "init_main",
        ],
    )
}

fn large_stack_overflow_is_reported() -> Verdict {
    let log = report(
        "overflow_a_large_stack",
        &["backtrace:", "recurse", "times more"],
    )?;
    let bottom = log
        .split_once("bottom: ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .ok_or("it does not say which stack it is")?;
    let text = format!("kernel stack overflow: the stack from {bottom} ran into its guard");
    match log.contains(&text) {
        true => Ok(()),
        false => Err(format!(
            "the report does not say {text:?}:\n{}",
            diff::tail(&log, 60)
        )),
    }
}

/// Where smaller stacks have their guard.
fn panic_in_a_large_stack_is_reported() -> Verdict {
    panics(
        "panic_in_a_large_stack",
        &[
            "kernel panic: far below",
            "backtrace:",
            "give_up_down_there",
            "far_below_the_top",
        ],
    )
}

fn boot_stack_overflow_is_reported() -> Verdict {
    panics(
        "overflow_the_boot_stack",
        &[
            "kernel stack overflow",
            "cpu ",
            "rip ",
            "recurse",
            "overflow_the_boot_stack",
        ],
    )
}

fn double_fault_has_its_own_stack() -> Verdict {
    panics(
        "fault_with_a_broken_stack",
        &["kernel panic: double fault", "rip ", "rsp "],
    )
}

fn panic_names_the_culprit() -> Verdict {
    panics(
        "panic_on_purpose",
        &[
            "kernel panic: on purpose",
            "cpu ",
            "thread 1 of process 1 (init)",
            "rip ",
            "cr3 ",
            "backtrace:",
            "panic_on_purpose",
        ],
    )
}

fn panic_in_a_report_ends_it() -> Verdict {
    panics(
        "panic_while_panicking",
        &["kernel panic: outer ", "the report failed"],
    )
}

fn lock_order_violation_is_seen() -> Verdict {
    panics(
        "take_locks_in_the_wrong_order",
        &[
            "kernel panic: lockdep: Table is taken while Zone is held",
            "deaths.rs",
        ],
    )
}

fn a_class_taken_twice_is_seen() -> Verdict {
    panics(
        "take_one_class_twice",
        &["kernel panic: lockdep: Zone is taken while Zone is held"],
    )
}

fn sleep_under_a_spin_lock_is_seen() -> Verdict {
    panics(
        "sleep_with_a_spin_lock",
        &["kernel panic: lockdep:", "sleeps", "Zone taken at"],
    )
}

fn sleep_under_an_irq_lock_is_seen() -> Verdict {
    panics(
        "sleep_with_an_irq_lock",
        &["kernel panic: lockdep:", "sleeps"],
    )
}

fn user_copy_under_a_spin_lock_is_seen() -> Verdict {
    panics(
        "copy_from_user_with_a_spin_lock",
        &["kernel panic: lockdep:", "user memory", "Zone taken at"],
    )
}

fn shootdown_with_interrupts_off_is_seen() -> Verdict {
    panics(
        "await_acknowledgements_with_interrupts_off",
        &["kernel panic: lockdep:", "interrupts off"],
    )
}

fn stray_user_access_is_reported() -> Verdict {
    panics(
        "touch_user_memory_outside_of_uaccess",
        &[
            "kernel panic: page fault",
            "cr2 0x5000",
            "rip ",
            "backtrace:",
        ],
    )
}

fn secret_memory_is_out_of_reach() -> Verdict {
    panics(
        "touch_secret_memory",
        &["kernel panic: page fault", "cr2 0xffff888", "backtrace:"],
    )
}
