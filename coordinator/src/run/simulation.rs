//! A seeded simulation of whole runs in time: steps, checkpoints and evaluations have durations
//! from milliseconds to a minute, rank 0 saves in the background, workers die, are stopped, hang
//! and receive SIGTERM at any moment, the coordinator pauses and is restarted, also with a stop
//! pending. Whatever happens, the rules keep what `world.rs` asserts: no healthy worker is
//! terminated, no state in memory is dropped while no checkpoint has it, every step is recorded
//! once and in order; and a run that nothing disturbs any more ends well. In some worlds one step
//! fails on every rank, once or each time that it is made: the latter ends the run with its cause,
//! after two uninterrupted generations at the latest. A failure prints the seed that replays it.

mod world;

use super::Verdict;
use world::{REPEATED, World};

const SEEDS: u64 = 10_000;

/// Runs a world until it ends.
fn simulate(seed: u64) -> Verdict {
    let mut world = World::new(seed);
    while world.verdict.is_none() {
        world.advance();
    }
    world.assert_ended_well();
    world.verdict.clone().expect("just seen")
}

/// `SIMULATION_SEED=N` replays one.
#[test]
fn ten_thousand_runs_keep_the_rules() {
    let one = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    let (mut done, mut stopped, mut failed, mut repeated) = (0, 0, 0, 0);
    for seed in seeds {
        let verdict =
            std::panic::catch_unwind(|| simulate(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
        match verdict {
            Verdict::Done => done += 1,
            Verdict::Stopped { .. } => stopped += 1,
            Verdict::Failed { message, .. } if message.contains(REPEATED) => repeated += 1,
            Verdict::Failed { .. } => failed += 1,
        }
    }
    // All kinds of ends occur, or the simulation shows nothing.
    let enough = done > SEEDS / 20
        && stopped > SEEDS / 20
        && failed > SEEDS / 1000
        && repeated > SEEDS / 100;
    assert!(
        enough || one.is_some(),
        "{done} done, {stopped} stopped, {failed} failed, {repeated} with a failure that repeated"
    );
}
