//! Tests inside the kernel.
//!
//! `ktest!(name, body)` puts a record into the section `.ktests`, whose bounds the linker script gives; process 1 of a
//! machine in `mode=test` runs those that `test=NAME,NAME` names, or all that are not `alone`, file by file, and prints a line before
//! and after each. A test fails by panicking, which ends the machine with the panic's report: the host sees which one
//! had begun. A test declared `alone` must end in a panic; it runs only when it is named.

use alloc::vec::Vec;

use crate::arch;
use crate::memory::cmdline;

/// One test; the linker collects them.
#[repr(C)]
#[derive(Debug)]
pub struct KTest {
    pub name: &'static str,
    /// Module and line.
    pub place: (&'static str, u32),
    pub run: fn(),
    /// Ends the machine, as it should.
    pub alone: bool,
}

/// Registers a test: `ktest!(name, body)`; `ktest!(name, alone, body)` for one that must panic.
#[macro_export]
macro_rules! ktest {
    ($name:ident, $body:expr) => {
        $crate::ktest!(@ $name, false, $body);
    };
    ($name:ident, alone, $body:expr) => {
        $crate::ktest!(@ $name, true, $body);
    };
    (@ $name:ident, $alone:expr, $body:expr) => {
        fn $name() {
            $body
        }
        const _: () = {
            #[used]
            #[unsafe(link_section = ".ktests")]
            static TEST: $crate::ktest::KTest = $crate::ktest::KTest {
                name: stringify!($name),
                place: (module_path!(), line!()),
                run: $name,
                alone: $alone,
            };
        };
    };
}

unsafe extern "C" {
    static __ktests_start: u8;
    static __ktests_end: u8;
}

fn all() -> &'static [KTest] {
    let (start, end) = (&raw const __ktests_start, &raw const __ktests_end);
    let (start, end) = (start.cast::<KTest>(), end.cast::<KTest>());
    // SAFETY: the linker script puts both around the records, which are all of this type.
    unsafe { core::slice::from_raw_parts(start, end.offset_from(start) as usize) }
}

/// Runs the tests that are wanted and ends the machine.
pub fn run() -> ! {
    let filter = cmdline("test").filter(|text| !text.is_empty());
    let wanted = |test: &&KTest| match filter {
        Some(names) => names.split(',').any(|name| name == test.name),
        None => !test.alone,
    };
    // The linker's order is another one in each checkout.
    let mut tests: Vec<&KTest> = all().iter().filter(wanted).collect();
    tests.sort_unstable_by_key(|test| test.place);
    for test in &tests {
        crate::klog!("ktest {} begin", test.name);
        (test.run)();
        crate::klog!(
            "ktest {} {}",
            test.name,
            if test.alone {
                "did not end the machine"
            } else {
                "ok"
            }
        );
    }
    if tests.is_empty() {
        crate::error!("no test is called {filter:?}");
        arch::power_off(arch::EXIT_TESTS_FAILED);
    }
    crate::task::init::finish(0)
}
