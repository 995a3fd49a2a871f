//! The phases of a rank: what its heartbeats report, and what the time of a step is divided into.
//! On the wire a phase is its label, as it is on status pages and in metrics.

/// The stage that a worker reports before it begins the first one.
pub const BEFORE_STAGES: &str = "start";

/// What a rank is doing, in the order in which a stage and its steps go through it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RankPhase {
    /// Before the first generation.
    Start,
    /// The ranks of a generation meet.
    Rendezvous,
    /// Their group is connected.
    Connect,
    /// A stage is set up.
    SetUp,
    /// A step waits for its images.
    Data,
    Forward,
    /// The part of the forward pass in which ranks exchange candidates.
    Gather,
    Backward,
    /// The forward and the backward pass where they are one CUDA graph.
    Compute,
    /// A step is recorded as a CUDA graph.
    Record,
    Reduce,
    Update,
    /// The state of all ranks is compared.
    Compare,
    Evaluate,
    /// The metrics of a finished stage are computed.
    Measure,
    Save,
    /// A label that this version does not know. It is passed on, and no rule applies to it.
    Other(String),
}

impl RankPhase {
    /// Those that this version knows, in order.
    pub const KNOWN: [Self; 16] = [
        Self::Start,
        Self::Rendezvous,
        Self::Connect,
        Self::SetUp,
        Self::Data,
        Self::Forward,
        Self::Gather,
        Self::Backward,
        Self::Compute,
        Self::Record,
        Self::Reduce,
        Self::Update,
        Self::Compare,
        Self::Evaluate,
        Self::Measure,
        Self::Save,
    ];

    /// As the wire, pages and metrics have it.
    pub fn label(&self) -> &str {
        match self {
            Self::Other(label) => label,
            known => known.known_label().unwrap_or_default(),
        }
    }

    /// The label of a phase that this version knows.
    pub fn known_label(&self) -> Option<&'static str> {
        Some(match self {
            Self::Start => "start",
            Self::Rendezvous => "rendezvous",
            Self::Connect => "connect",
            Self::SetUp => "set up",
            Self::Data => "data",
            Self::Forward => "forward",
            Self::Gather => "gather",
            Self::Backward => "backward",
            Self::Compute => "compute",
            Self::Record => "record",
            Self::Reduce => "reduce",
            Self::Update => "update",
            Self::Compare => "compare",
            Self::Evaluate => "evaluate",
            Self::Measure => "measure",
            Self::Save => "save",
            Self::Other(_) => return None,
        })
    }

    /// Whether its time is part of the duration of a step.
    pub(crate) fn is_part_of_step(&self) -> bool {
        match self {
            Self::Data
            | Self::Forward
            | Self::Gather
            | Self::Backward
            | Self::Compute
            | Self::Reduce
            | Self::Update => true,
            Self::Start
            | Self::Rendezvous
            | Self::Connect
            | Self::SetUp
            | Self::Record
            | Self::Compare
            | Self::Evaluate
            | Self::Measure
            | Self::Save
            | Self::Other(_) => false,
        }
    }
}

impl From<&str> for RankPhase {
    fn from(label: &str) -> Self {
        let known = Self::KNOWN.into_iter().find(|phase| phase.known_label() == Some(label));
        known.unwrap_or_else(|| Self::Other(label.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_is_read_back_as_its_phase() {
        for phase in RankPhase::KNOWN {
            assert_eq!(RankPhase::from(phase.label()), phase);
        }
        let other = RankPhase::from("waiting");
        assert_eq!(
            (&other, other.label(), other.known_label()),
            (&RankPhase::Other("waiting".into()), "waiting", None)
        );
    }
}
