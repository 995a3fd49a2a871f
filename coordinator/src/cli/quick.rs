//! `launch --quick`: a first look at an experiment before its hours of training. Every stage is
//! walked through on a few images: views, losses, updates, evaluation, checkpoints, probes and the
//! table.

use crate::exit::{EXIT_USAGE, Fatal};

/// What a quick run changes in an experiment, below what was typed. Three steps of eight images
/// pass the end of an epoch of sixteen.
const QUICK: [&str; 6] = [
    "data.max_images=16",
    "train.max_steps=3",
    "train.batch_size=8",
    "transfer.max_steps=3",
    "transfer.batch_size=8",
    "checkpoint.every_steps=2",
];

/// The overrides of a run: those of a quick one first, so that what was typed takes precedence.
pub(super) fn overrides(quick: bool, typed: &[String]) -> Vec<String> {
    let quick = QUICK.iter().filter(|_| quick).map(|over| (*over).to_owned());
    quick.chain(typed.iter().cloned()).collect()
}

/// The name of a run in the names of directories.
pub(super) fn name(quick: bool, name: &str) -> String {
    if quick { format!("{name}-quick") } else { name.into() }
}

/// # Errors
/// 64 if a quick run is to be resumed: `again` is a coordinator that is restarted after a crash.
pub(super) fn check(quick: bool, resume: bool, again: bool) -> Result<(), Fatal> {
    if !quick || !resume || again {
        return Ok(());
    }
    let message = "--quick starts a new run of less than a minute: omit --resume, or resume the \
        run without --quick";
    Err(Fatal::new(EXIT_USAGE, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use thanos_configs::{Plan, preset_names};

    /// Every preset has a quick run: three steps a stage, on no more than sixteen images of a kind.
    #[test]
    fn every_preset_is_short() {
        for preset in preset_names() {
            let plan = Plan::from_preset(&preset, &overrides(true, &[])).expect(&preset);
            for stage in plan.stages() {
                assert_eq!(plan.total_steps(stage, 16), 3, "{preset}");
            }
            let split = plan.split(&[0; 1000]);
            assert_eq!(
                (split.train.len(), split.validation.len(), plan.test_ids(1000).len()),
                (16, 16, 16),
                "{preset}"
            );
        }
    }

    #[test]
    fn what_was_typed_takes_precedence() {
        let typed = ["train.max_steps=5".to_owned()];
        let plan = Plan::from_preset("digits_cae", &overrides(true, &typed)).expect("valid");
        assert_eq!((plan.config().train.max_steps, plan.config().train.batch_size), (Some(5), 8));
        assert_eq!(overrides(false, &typed), typed);
        assert_eq!((name(true, "x"), name(false, "x")), ("x-quick".into(), "x".into()));
    }

    #[test]
    fn a_quick_run_is_not_resumed() {
        assert!(check(true, true, false).is_err_and(|fatal| fatal.exit_code == EXIT_USAGE));
        for (quick, resume, again) in
            [(true, false, false), (false, true, false), (true, true, true)]
        {
            assert!(check(quick, resume, again).is_ok());
        }
    }
}
