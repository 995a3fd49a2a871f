//! By which validation accuracy the best epoch of a stage is selected. It is always one of
//! something that the stage trains, and it never uses the fine labels of a backbone's images:
//! backbones are trained on coarse labels alone.

use crate::objective::Objective;
use crate::plan::StagePlan;
use crate::run_config::Select;

/// What classifies the validation images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValidationMeasure {
    /// The backbone's linear head on coarse labels.
    CoarseHead,
    /// The coarse labels of the nearest training images: the backbone's coarse head is not trained.
    CoarseNeighbours,
    /// A probe's linear head on fine labels.
    FineHead,
}

impl ValidationMeasure {
    pub fn of_backbone(objective: &Objective) -> Self {
        if objective.cross_entropy > 0.0 { Self::CoarseHead } else { Self::CoarseNeighbours }
    }

    pub fn of(stage: &StagePlan) -> Self {
        match stage {
            StagePlan::Backbone(backbone) => Self::of_backbone(&backbone.objective),
            StagePlan::Transfer(_) => Self::FineHead,
        }
    }

    /// As in `events.jsonl` and `results.json`.
    pub fn label(self) -> &'static str {
        match self {
            Self::CoarseHead => "coarse_head",
            Self::CoarseNeighbours => "coarse_knn",
            Self::FineHead => "fine_head",
        }
    }

    /// What selected the weights of a stage, as in `results.json`.
    pub fn selected_by(self, select: Select) -> &'static str {
        match select {
            Select::Best => self.label(),
            Select::Last => "last_epoch",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    #[test]
    fn the_best_epoch_is_selected_by_something_that_is_trained() {
        let check = |overrides: &[&str], expected: [&str; 2]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
            let plan = Plan::from_preset("digits_supcon", &overrides).expect("valid");
            let selected =
                |stage| ValidationMeasure::of(stage).selected_by(plan.training(stage).select);
            assert_eq!(
                plan.stages().iter().map(selected).collect::<Vec<_>>(),
                expected,
                "{overrides:?}"
            );
        };
        check(&[], ["coarse_head", "fine_head"]);
        check(&["objective.cross_entropy=0"], ["coarse_knn", "fine_head"]);
        check(&["train.select=last"], ["last_epoch", "fine_head"]);
        check(&["transfer.select=last"], ["coarse_head", "last_epoch"]);
    }
}
