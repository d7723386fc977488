//! Whole address spaces against a model: page → rights and bytes; not one frame lost in the end.

mod common;

use common::World;
use mm::sim::{Config, rng};

fn run(seed: u64, steps: u32, inject: u64, config: Config) {
    let mut w = World::new(Config { seed, ..config });
    w.inject = inject;
    for _ in 0..steps {
        w.step();
    }
    if std::env::var("PINFOLD_STATS").is_ok() {
        println!("{:?}", w.ops_done);
    }
    w.finish();
}

fn seeds(n: u64, base: u64) -> Vec<u64> {
    match std::env::var("PINFOLD_SEED") {
        Ok(_) => vec![rng::seed(0)],
        Err(_) => (base..base + n).collect(),
    }
}

#[test]
fn processes_see_what_the_model_says() {
    for seed in seeds(24, 0x1000) {
        run(
            seed,
            400,
            0,
            Config {
                frames: 16384,
                cpus: 3,
                pcid: seed % 3 != 0,
                movable: if seed % 2 == 0 { 8192 } else { 0 },
                ..Config::default()
            },
        );
    }
}

#[test]
fn an_allocation_that_fails_halfway_changes_nothing() {
    for seed in seeds(24, 0x2000) {
        run(
            seed,
            400,
            3,
            Config {
                frames: 16384,
                cpus: 2,
                ..Config::default()
            },
        );
    }
}
