//! Many seeds, in `make test`; `make sim` runs as many as you like.

use godwit_sim::{run, run_all};

/// Seeds that are run each time.
const SEEDS: u64 = 20_000;

#[test]
fn no_seed_violates_an_invariant() {
    std::panic::set_hook(Box::new(|_| {}));
    let violations = run_all(1, SEEDS, None);
    println!("sim: {SEEDS} seeds, {} violations", violations.len());
    for violation in &violations {
        println!("seed {}: {}", violation.seed, violation.what);
    }
    assert!(violations.is_empty(), "again: make sim SEED={} SEEDS=1", violations[0].seed);
}

#[test]
fn a_seed_is_one_run() {
    for seed in 1..50 {
        let [mut one, mut other] = [Vec::new(), Vec::new()];
        let results = [run(seed, None, Some(&mut one)), run(seed, None, Some(&mut other))];
        assert_eq!(one, other, "seed {seed}");
        assert_eq!(results.map(|result| result.is_ok()), [true; 2]);
        assert!(!one.is_empty());
    }
}
