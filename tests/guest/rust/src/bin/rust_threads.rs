//! Eight threads of Rust's std: scoped sharing, channels, condition variables, locks, thread-locals, a caught panic.
//! Run with `count N` it only counts primes below N with eight threads, for scripts.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const THREADS: usize = 8;

thread_local!(static LOCAL: Cell<u64> = const { Cell::new(1) });

fn is_prime(n: u64) -> bool {
    n > 1
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

fn primes_below(limit: u64) -> u64 {
    let next = AtomicU64::new(0);
    let found = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let start = next.fetch_add(100, Ordering::Relaxed);
                    if start >= limit {
                        return;
                    }
                    let count = (start..limit.min(start + 100))
                        .filter(|n| is_prime(*n))
                        .count();
                    found.fetch_add(count as u64, Ordering::Relaxed);
                }
            });
        }
    });
    found.into_inner()
}

fn channels() -> u64 {
    let (to_sum, numbers) = mpsc::sync_channel(4);
    let workers: Vec<_> = (0..THREADS as u64)
        .map(|k| {
            let to_sum = to_sum.clone();
            thread::spawn(move || (0..500).for_each(|i| to_sum.send(k * 1000 + i).unwrap()))
        })
        .collect();
    drop(to_sum);
    let sum = numbers.iter().sum();
    workers
        .into_iter()
        .for_each(|worker| worker.join().unwrap());
    sum
}

fn in_turn() -> Vec<usize> {
    let turn = Arc::new((Mutex::new((0, Vec::new())), Condvar::new()));
    let workers: Vec<_> = (0..THREADS)
        .map(|me| {
            let turn = Arc::clone(&turn);
            thread::spawn(move || {
                for round in 0..20 {
                    let (lock, changed) = &*turn;
                    let mut state = changed
                        .wait_while(lock.lock().unwrap(), |state| {
                            state.0 != round * THREADS + me
                        })
                        .unwrap();
                    state.0 += 1;
                    state.1.push(me);
                    changed.notify_all();
                }
            })
        })
        .collect();
    workers
        .into_iter()
        .for_each(|worker| worker.join().unwrap());
    turn.0.lock().unwrap().1.clone()
}

fn shared_map() -> usize {
    let map = RwLock::new(HashMap::new());
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        for k in 0..THREADS {
            let (map, start) = (&map, &start);
            scope.spawn(move || {
                start.wait();
                for i in 0..300 {
                    if (i + k) % 3 == 0 {
                        map.write().unwrap().insert(i, vec![i; 50]);
                    } else if let Some(row) = map.read().unwrap().get(&i) {
                        assert!(row.len() == 50 && row.iter().all(|v| *v == i));
                    }
                }
            });
        }
    });
    map.into_inner().unwrap().len()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, verb, limit] = &arguments[..]
        && verb == "count"
    {
        println!(
            "{} primes below {limit}",
            primes_below(limit.parse().unwrap())
        );
        return;
    }
    println!("primes {}", primes_below(20_000));
    println!("channels {}", channels());
    let order = in_turn();
    println!("in turn {} {:?}", order.len(), &order[..10]);
    println!("map {}", shared_map());

    let locals: u64 = (0..THREADS as u64)
        .map(|k| {
            thread::spawn(move || {
                LOCAL.set(LOCAL.get() + k);
                LOCAL.get()
            })
        })
        .map(|worker| worker.join().unwrap())
        .sum();
    println!("locals {locals}, here {}", LOCAL.get());

    std::panic::set_hook(Box::new(|_| {}));
    let caught = thread::spawn(|| panic!("on purpose")).join().is_err();
    println!("a panic in a thread is caught: {caught}");
    let unwound = std::panic::catch_unwind(|| Vec::<u8>::new()[3]).is_err();
    println!("unwinding: {unwound}");

    static ONCE: OnceLock<u64> = OnceLock::new();
    let once: Vec<u64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| *ONCE.get_or_init(|| 42)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    });
    println!("once {once:?}");

    let parked = thread::spawn(|| {
        thread::park();
        7
    });
    thread::sleep(Duration::from_millis(10));
    parked.thread().unpark();
    println!("parked {}", parked.join().unwrap());

    let since = Instant::now();
    thread::sleep(Duration::from_millis(20));
    assert!(since.elapsed() >= Duration::from_millis(20));
    assert!(thread::available_parallelism().unwrap().get() >= 1);
    let named = thread::Builder::new()
        .name("worker".into())
        .stack_size(256 << 10);
    println!(
        "name {:?}",
        named
            .spawn(|| thread::current().name().map(str::to_owned))
            .unwrap()
            .join()
            .unwrap()
    );
}
