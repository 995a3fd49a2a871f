//! A backbone's loss: its terms, their weights as keys of the configuration, what one backbone
//! changes in them, and what the program needs of them. How a term is computed is the worker's.

use serde::{Deserialize, Serialize};

/// A term of a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossTerm {
    /// Of coarse labels for a backbone, of fine ones for a linear probe.
    CrossEntropy,
    Contrastive,
    Reconstruction,
}

impl LossTerm {
    /// In the order of the columns of `log.csv`.
    pub const ALL: [Self; 3] = [Self::CrossEntropy, Self::Contrastive, Self::Reconstruction];

    /// In steps and metrics, and as the key of its weight in `objective`.
    pub fn name(self) -> &'static str {
        match self {
            Self::CrossEntropy => "cross_entropy",
            Self::Contrastive => "contrastive",
            Self::Reconstruction => "reconstruction",
        }
    }

    pub(crate) fn weight(self, config: &ObjectiveConfig) -> f64 {
        match self {
            Self::CrossEntropy => config.cross_entropy,
            Self::Contrastive => config.contrastive,
            Self::Reconstruction => config.reconstruction,
        }
    }

    /// The weight that one backbone has of its own.
    pub(crate) fn own_weight(self, patch: &ObjectivePatch) -> Option<f64> {
        match self {
            Self::CrossEntropy => patch.cross_entropy,
            Self::Contrastive => patch.contrastive,
            Self::Reconstruction => patch.reconstruction,
        }
    }
}

/// A backbone's loss: weights of its terms, and the contrastive term's form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveConfig {
    /// Weight of the coarse cross-entropy; 0 disables it. Unit: a weight.
    pub cross_entropy: f64,
    /// Weight of the contrastive loss; 0 disables it. Unit: a weight.
    pub contrastive: f64,
    /// Weight of the autoencoder's mean squared error; 0 disables it. Unit: a weight.
    pub reconstruction: f64,
    /// Weight `a` of attraction within the contrastive loss. Unit: a weight.
    pub attract: f64,
    /// Weight `b` of class-conditional InfoNCE within the contrastive loss. Unit: a weight.
    pub spread: f64,
    /// Similarities are divided by it. Unit: none.
    pub temperature: f64,
    /// Similarity of two embeddings.
    pub similarity: Similarity,
    /// Positive logits are clamped at this value in the numerator; null: never. Unit: a similarity
    /// over the temperature.
    pub clamp_positive_logits: Option<f64>,
    /// Each positive competes with the other positives as well as with the negatives.
    pub positives_in_denominator: bool,
    /// Also take view 0 as anchors, and halve.
    pub both_directions: bool,
}

impl ObjectiveConfig {
    /// With what one backbone changes in it.
    pub(crate) fn patched(&self, patch: &ObjectivePatch) -> Self {
        Self {
            cross_entropy: patch.cross_entropy.unwrap_or(self.cross_entropy),
            contrastive: patch.contrastive.unwrap_or(self.contrastive),
            reconstruction: patch.reconstruction.unwrap_or(self.reconstruction),
            attract: patch.attract.unwrap_or(self.attract),
            spread: patch.spread.unwrap_or(self.spread),
            ..self.clone()
        }
    }
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self {
            cross_entropy: 1.0,
            contrastive: 1.0,
            reconstruction: 0.0,
            attract: 1.0,
            spread: 0.0,
            temperature: 0.5,
            similarity: Similarity::Cosine,
            clamp_positive_logits: None,
            positives_in_denominator: false,
            both_directions: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// Of normalised embeddings.
    Cosine,
    /// Dot product.
    Dot,
    /// The published code's: dot products, column j divided by |u_j| |w_j|.
    Reference,
}

/// What one backbone changes in `objective`; null: as there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ObjectivePatch {
    /// In the place of `objective.cross_entropy`. Unit: a weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_entropy: Option<f64>,
    /// In the place of `objective.contrastive`. Unit: a weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contrastive: Option<f64>,
    /// In the place of `objective.reconstruction`. Unit: a weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconstruction: Option<f64>,
    /// In the place of `objective.attract`. Unit: a weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attract: Option<f64>,
    /// In the place of `objective.spread`. Unit: a weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
}

/// A backbone's loss; a term that is `None` or 0 is not computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// Weight of the coarse cross-entropy.
    pub cross_entropy: f64,
    pub contrastive: Option<Contrastive>,
    /// Weight of the reconstruction's mean squared error.
    pub reconstruction: Option<f64>,
}

/// The contrastive term: the mean over anchors of (attract x attraction + spread x InfoNCE within
/// the class) / (attract + spread).
#[derive(Clone, Debug, PartialEq)]
pub struct Contrastive {
    /// Weight of the whole term in the backbone's loss.
    pub weight: f64,
    pub attract: f64,
    pub spread: f64,
    pub temperature: f64,
    pub similarity: Similarity,
    pub clamp_positive_logits: Option<f64>,
    pub positives_in_denominator: bool,
    pub both_directions: bool,
}

impl Objective {
    pub(crate) fn of(config: &ObjectiveConfig) -> Self {
        Self {
            cross_entropy: config.cross_entropy,
            contrastive: (config.contrastive > 0.0).then_some(Contrastive {
                weight: config.contrastive,
                attract: config.attract,
                spread: config.spread,
                temperature: config.temperature,
                similarity: config.similarity,
                clamp_positive_logits: config.clamp_positive_logits,
                positives_in_denominator: config.positives_in_denominator,
                both_directions: config.both_directions,
            }),
            reconstruction: (config.reconstruction > 0.0).then_some(config.reconstruction),
        }
    }

    /// The terms that are computed.
    pub(crate) fn terms(&self) -> Vec<LossTerm> {
        let is_computed = |term: &LossTerm| match term {
            LossTerm::CrossEntropy => self.cross_entropy > 0.0,
            LossTerm::Contrastive => self.contrastive.is_some(),
            LossTerm::Reconstruction => self.reconstruction.is_some(),
        };
        LossTerm::ALL.into_iter().filter(is_computed).collect()
    }
}
