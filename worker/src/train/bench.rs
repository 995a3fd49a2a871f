//! The first updates of a stage, one by one, for a benchmark: each is what training does, and what
//! is due after some of them (evaluations, checkpoints) is not.

use super::{StageContext, StageSpec, Trainer};
use crate::batch_loader::BatchLoader;
use crate::error::Result;
use crate::stage::Stage;
use std::collections::BTreeMap;
use std::time::Duration;
use thanos_proto::RankPhase;

/// One update, which runs when it is called; its result is the rank's time by phase until the
/// update is committed, in seconds.
pub(crate) type Update<'a> = dyn FnMut() -> Result<BTreeMap<RankPhase, f64>> + 'a;

/// Hands the first `total` updates of a stage to `each`, with their numbers. `false`: a stop was
/// requested, and all ranks end after the same update.
///
/// # Errors
/// What `each` returns, and what training would end with.
pub(crate) fn updates(
    stage: &mut dyn Stage,
    spec: &StageSpec<'_>,
    context: &StageContext<'_>,
    total: u64,
    mut each: impl FnMut(u64, &mut Update<'_>) -> Result<()>,
) -> Result<bool> {
    let mut trainer = Trainer::new(stage, spec, context)?;
    let mut feed = BatchLoader::new(context.data, &spec.schedule, 0..total, trainer.stage.views())?;
    for step in 0..total {
        let mut stop = false;
        let mut update = || {
            // What was done since the last update is no part of this one.
            _ = context.session.take_phase_seconds(BTreeMap::new(), Duration::ZERO);
            trainer.phase(RankPhase::Data);
            let batch =
                feed.next()?.expect("the feed has as many batches as updates were asked for");
            stop = trainer.update(&batch, total, &mut feed)?.stop;
            Ok(trainer.recent.last().map(|done| done.phase_seconds.clone()).unwrap_or_default())
        };
        each(step, &mut update)?;
        if stop {
            return Ok(false);
        }
    }
    Ok(true)
}
