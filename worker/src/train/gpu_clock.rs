//! How long the phases of a step take on a GPU. The host only launches kernels there: what it
//! measures between two phases is how long that took. On the CPU the session's own measurements are
//! right, and this does nothing.

use crate::error::Result;
use std::collections::BTreeMap;
use tch::Device;
use thanos_c10d::DeviceEvent;
use thanos_proto::RankPhase;

/// Points on the GPU's stream where the phases of the step in flight began.
pub(super) struct GpuClock {
    is_gpu: bool,
    marks: Vec<(RankPhase, DeviceEvent)>,
    /// Begin and end of the last update, which the host does not wait for: read in the step after
    /// it.
    update: Option<(DeviceEvent, DeviceEvent)>,
}

impl GpuClock {
    pub(super) fn new(device: Device) -> Self {
        Self { is_gpu: device.is_cuda(), marks: Vec::new(), update: None }
    }

    /// Reached when everything that was launched so far is done; `None` on the CPU, where it is
    /// done.
    pub(super) fn event(&self) -> Result<Option<DeviceEvent>> {
        Ok(self.is_gpu.then(DeviceEvent::record).transpose()?)
    }

    /// A step begins.
    pub(super) fn reset(&mut self) {
        self.marks.clear();
    }

    /// A phase of the step begins.
    pub(super) fn mark(&mut self, phase: RankPhase) -> Result<()> {
        if self.is_gpu {
            self.marks.push((phase, DeviceEvent::record()?));
        }
        Ok(())
    }

    /// The update begins, the sums having been read: seconds of the phases before it, and of the
    /// update before this one. Empty on the CPU.
    pub(super) fn begin_update(&mut self) -> Result<BTreeMap<RankPhase, f64>> {
        let mut seconds = BTreeMap::new();
        self.mark(RankPhase::Update)?;
        let Some((_, last)) = self.marks.last() else { return Ok(seconds) };
        last.wait()?;
        for pair in self.marks.windows(2) {
            let [(phase, begin), (_, end)] = pair else { continue };
            seconds.insert(phase.clone(), begin.until(end)?.as_secs_f64());
        }
        if let Some((begin, end)) = self.update.take() {
            seconds.insert(RankPhase::Update, begin.until(&end)?.as_secs_f64());
        }
        Ok(seconds)
    }

    /// The update is launched. It has changed the state, so nothing may fail between it and its
    /// commit: without an event its time is not known.
    pub(super) fn end_update(&mut self) {
        let begin = self.marks.pop().map(|(_, begin)| begin);
        self.update = begin.and_then(|begin| Some((begin, DeviceEvent::record().ok()?)));
    }
}
