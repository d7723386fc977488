//! `cargo test`: every test of the two outer rings. See the crate `tests`.

fn main() -> std::process::ExitCode {
    tests::runner::main()
}
