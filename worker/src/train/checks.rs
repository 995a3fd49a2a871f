//! What is looked for in a step, and done about it by all ranks alike: non-finite numbers, before
//! the update, and ranks whose state is not that of the others, every so many steps.

use super::Trainer;
use super::computed::{Computed, Reduced};
use crate::divergence::diverged;
use crate::error::Result;
use crate::metrics;
use crate::tensors::copy_into;
use anyhow::anyhow;
use tch::Tensor;
use thanos_configs::{OnDivergence, OnNonFinite};
use thanos_proto::{RankPhase, WorkerEvent};

/// Updates in a row that may be skipped because of a non-finite value.
const MAX_SKIPPED: u32 = 10;

impl Trainer<'_> {
    /// What in this step is non-finite, and on which rank: the same on all ranks, before the
    /// update. Only where something is wrong do they look for the place.
    pub(super) fn non_finite(
        &self,
        computed: &Computed,
        reduced: &Reduced,
    ) -> Result<Option<String>> {
        metrics::gradient(reduced.norm);
        if reduced.norm.is_finite() && reduced.terms.iter().all(|value| value.is_finite()) {
            return Ok(None);
        }
        let terms = computed.terms.iter().map(|term| format!("the loss `{}`", term.term.name()));
        let gradients =
            self.optimizer.layout().iter().map(|name| format!("the gradient of `{name}`"));
        let names: Vec<String> = terms.chain(gradients).collect();
        let shares = Vec::<f64>::try_from(&computed.shares)?;
        let own_term = shares.iter().position(|share| !share.is_finite());
        // The ranks' sum is in the place of this rank's gradient, except for the only rank, whose
        // parameters may have that of another step: a recorded one does not set them.
        let gradient = match self.context.group.size() {
            1 => computed.gradient.shallow_clone(),
            _ => self.optimizer.flat_gradient(),
        };
        let own_gradient = self.optimizer.first_non_finite(&gradient);
        let own = own_term.or(own_gradient.map(|index| computed.terms.len() + index));
        let own = Tensor::from_slice(&[own.map_or(-1, |index| index as i64)])
            .to_device(reduced.gradient.device());
        let all = Vec::<i64>::try_from(self.context.group.all_gather(&own)?)?;
        let first = all
            .iter()
            .enumerate()
            .find_map(|(rank, &index)| Some((rank, usize::try_from(index).ok()?)));
        Ok(Some(match first {
            Some((rank, index)) => format!("{} is non-finite on rank {rank}", names[index]),
            None => "the sum of the ranks' gradients is non-finite".into(),
        }))
    }

    /// Skips an update, as if its batch had not been seen, or ends the run. In that case the state
    /// before the update, which is sound on all ranks, is saved first: a resume may choose another
    /// policy.
    pub(super) fn skip(&mut self, problem: &str, epoch: u64) -> Result<()> {
        let place = format!("at step {} of stage {}", self.step, self.spec.name);
        copy_into(&self.buffers, &self.buffers_before)?;
        let stop = self.spec.checks.on_non_finite == OnNonFinite::Stop;
        if (stop || self.skipped == MAX_SKIPPED) && self.step > 0 {
            self.save_for_all(epoch, None)?;
        }
        if stop {
            return Err(anyhow!(
                "{problem} {place} (`checks.on_non_finite: skip` skips such updates)"
            )
            .into());
        }
        if self.skipped == MAX_SKIPPED {
            return Err(anyhow!(
                "{problem} {place}, and {MAX_SKIPPED} updates before it were skipped"
            )
            .into());
        }
        tracing::warn!("{problem} {place}: the update is skipped");
        Ok(())
    }

    /// Every so many steps: whether all ranks hold the same, to the bit.
    pub(super) fn compare_ranks(&mut self) -> Result<()> {
        let checks = self.spec.checks;
        if !checks.compare_ranks_every.is_some_and(|every| self.step.is_multiple_of(every)) {
            return Ok(());
        }
        self.phase(RankPhase::Compare);
        let mut state = self.stage.state();
        state.extend(self.optimizer.state());
        let Some(diverged) = diverged(&state, self.context.group)? else { return Ok(()) };
        let problem = format!("{diverged} after step {} of stage {}", self.step, self.spec.name);
        if checks.on_divergence == OnDivergence::Stop {
            let advice = "`checks.on_divergence: repair` continues with the state of the majority";
            return Err(anyhow!("{problem} ({advice})").into());
        }
        tracing::warn!("{problem}: repaired with the state of the majority");
        let mut memory = self.memory();
        memory.take_over(self.context.group, diverged.trusted)?;
        self.recall(memory)?;
        match self.context.group.rank() {
            0 => self.context.session.send(WorkerEvent::Repaired { problem }),
            _ => Ok(()),
        }
    }
}
