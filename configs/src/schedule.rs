//! The learning rate of an epoch. The reference steps its scheduler once an epoch, and so do we.

use crate::run_config::{Schedule, TrainConfig};

/// The learning rate of `epoch` (from 0): constant, or `lr (1 + cos(pi epoch / period)) / 2`, which
/// rises again after its period as `torch.optim.lr_scheduler.CosineAnnealingLR` does.
pub fn learning_rate(train: &TrainConfig, epoch: u64) -> f64 {
    match train.schedule {
        Schedule::Constant => train.learning_rate,
        Schedule::Cosine => {
            let period = train.cosine_period.unwrap_or(train.epochs).max(1);
            let phase = std::f64::consts::PI * epoch as f64 / period as f64;
            train.learning_rate * (1.0 + phase.cos()) / 2.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cosine_falls_over_its_period_and_rises_after_it() {
        let check = |period: Option<u64>, epoch: u64, expected: f64| {
            let train = TrainConfig {
                learning_rate: 1.0,
                epochs: 400,
                cosine_period: period,
                ..TrainConfig::default()
            };
            assert!((learning_rate(&train, epoch) - expected).abs() < 1e-12, "{period:?} {epoch}");
        };
        check(Some(100), 0, 1.0);
        check(Some(100), 50, 0.5);
        check(Some(100), 100, 0.0);
        check(Some(100), 200, 1.0);
        check(None, 200, 0.5);
    }
}
