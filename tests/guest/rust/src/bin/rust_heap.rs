//! Allocation in eight threads, with checks: what a global allocator does to `mmap`, `brk`, `mremap` and `madvise`.

use std::collections::BTreeMap;
use std::thread;

/// A small generator, so that every run does the same.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Grows, shrinks and drops vectors of all sizes; returns a checksum of everything seen.
fn churn(seed: u64) -> u64 {
    let mut dice = Dice(seed);
    let mut held: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut sum = 0u64;
    for step in 0..1500 {
        let key = dice.roll(40);
        match dice.roll(4) {
            0 => {
                let len = 1 << dice.roll(15);
                held.insert(key, (0..len).map(|i| i * key + step).collect());
            }
            1 => {
                if let Some(row) = held.get_mut(&key) {
                    let last = row.len() as u64;
                    row.extend((0..last / 2).map(|i| i ^ step));
                    row.shrink_to_fit();
                }
            }
            2 => drop(held.remove(&key)),
            _ => {
                if let Some(row) = held.get(&key) {
                    sum = sum
                        .wrapping_mul(31)
                        .wrapping_add(row.iter().fold(0, |a, v| a ^ v.rotate_left(7)));
                }
            }
        }
    }
    sum
}

fn main() {
    let alone: Vec<u64> = (1..=8).map(churn).collect();
    let workers: Vec<_> = (1..=8)
        .map(|seed| thread::spawn(move || churn(seed)))
        .collect();
    let together: Vec<u64> = workers
        .into_iter()
        .map(|worker| worker.join().unwrap())
        .collect();
    assert_eq!(alone, together);
    println!("{together:x?}");
    let big = vec![7u8; 100 << 20];
    println!(
        "{}",
        big.iter().step_by(4096).map(|b| *b as u64).sum::<u64>()
    );
    let zero = vec![0u64; 8 << 20];
    println!("{}", zero.iter().step_by(511).all(|word| *word == 0));
}
