//! The options of a loss in either dialect, as the comparison that they ask for. An unknown option
//! is refused, as a case that is half understood checks nothing.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use tch::Tensor;
use thanos_configs::ObjectiveConfig;
use thanos_worker::Comparison;
use thanos_worker::loss::{LossForm, Similarity, Tile, unlabelled_apart};

/// What a case of a loss computes.
pub(crate) struct LossOptions {
    pub(crate) comparison: Comparison,
    /// SimCLR: every point is a class of its own.
    ignore_labels: bool,
}

impl LossOptions {
    /// From the names of the published code, which has a `temp`, or from ours.
    pub(crate) fn parse(options: &Value) -> Result<Self> {
        let described = || format!("options {options}");
        if options.get("temp").is_some() {
            return Ok(serde_json::from_value::<Published>(options.clone())
                .with_context(described)?
                .into());
        }
        Ok(serde_json::from_value::<ObjectiveConfig>(options.clone())
            .with_context(described)?
            .into())
    }

    /// Labels as the loss takes them, unlabelled points apart.
    pub(crate) fn labels(&self, labels: &Tensor) -> Tensor {
        let labels = if self.ignore_labels { labels.full_like(-1) } else { labels.shallow_clone() };
        unlabelled_apart(&labels, 0)
    }
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PublishedType {
    SupCon,
    LSpread,
    LRepel,
    SimClr,
}

/// The published code's options and defaults (unagi/tasks/loss_fns/contrastive_loss.py,
/// `ContrastiveLoss`).
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Published {
    r#type: PublishedType,
    temp: f64,
    lc_norm: bool,
    clip_pos: f64,
    pos_in_denom: bool,
    a_lc: f64,
    a_spread: f64,
}

impl Default for Published {
    fn default() -> Self {
        Self {
            r#type: PublishedType::LSpread,
            temp: 0.5,
            lc_norm: false,
            clip_pos: 1.0,
            pos_in_denom: false,
            a_lc: 1.0,
            a_spread: 1.0,
        }
    }
}

impl From<Published> for LossOptions {
    fn from(options: Published) -> Self {
        let (attract, spread) = match options.r#type {
            PublishedType::LSpread => (options.a_lc, options.a_spread),
            PublishedType::SupCon => (options.a_lc, 0.0),
            PublishedType::LRepel => (0.0, 1.0),
            PublishedType::SimClr => (1.0, 0.0),
        };
        let form = LossForm {
            attract,
            spread,
            // It clamps at 1.0 if it is given 1.0, and otherwise not at all.
            clamp_positive_logits: (options.clip_pos == 1.0).then_some(1.0),
            positives_in_denominator: options.pos_in_denom,
        };
        let similarity = if options.lc_norm { Similarity::Reference } else { Similarity::Dot };
        let comparison = Comparison {
            form,
            similarity,
            temperature: options.temp,
            both_directions: false,
            tile: Tile::square(1024),
        };
        Self { comparison, ignore_labels: options.r#type == PublishedType::SimClr }
    }
}

impl From<ObjectiveConfig> for LossOptions {
    fn from(options: ObjectiveConfig) -> Self {
        let comparison = Comparison {
            form: LossForm {
                attract: options.attract,
                spread: options.spread,
                clamp_positive_logits: options.clamp_positive_logits,
                positives_in_denominator: options.positives_in_denominator,
            },
            similarity: match options.similarity {
                thanos_configs::Similarity::Cosine => Similarity::Cosine,
                thanos_configs::Similarity::Dot => Similarity::Dot,
                thanos_configs::Similarity::Reference => Similarity::Reference,
            },
            temperature: options.temperature,
            both_directions: options.both_directions,
            tile: Tile::square(1024),
        };
        Self { comparison, ignore_labels: false }
    }
}
