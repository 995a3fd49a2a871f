//! The weights of a linear probe as they are used. A probe on cached features is trained on
//! standardised ones, and its state has their mean and deviation beside the linear layer. What is
//! saved for use takes plain features: the standardisation is folded into weight and bias, since W
//! ((x - m) / s) + b = (W / s) x + (b - (W / s) m).

use crate::tensors::StateDict;
use tch::{Device, Kind};

/// Linear d -> classes, in the state and in files.
pub(crate) const WEIGHT: &str = "cls.weight";
pub(crate) const BIAS: &str = "cls.bias";
/// Mean and standard deviation of the features trained on, [1, d] each, in the state of a probe on
/// cached features.
pub(crate) const MEAN: &str = "features.mean";
pub(crate) const DEVIATION: &str = "features.deviation";

/// A probe's state with the standardisation folded in, computed in float64 on the CPU; `None`: it
/// has none, so that the state can be used as it is.
pub(crate) fn folded(state: &StateDict) -> Option<StateDict> {
    let [weight, bias, mean, deviation] =
        [WEIGHT, BIAS, MEAN, DEVIATION].map(|name| state.get(name));
    let (weight, bias, mean, deviation) = (weight?, bias?, mean?, deviation?);
    let kind = weight.kind();
    let [w, b, m, s] = [weight, bias, mean, deviation]
        .map(|x| x.detach().to_device(Device::Cpu).to_kind(Kind::Double));
    let w = w / s; // [classes, d]
    let b = b - (&w * m).sum_dim_intlist(&[1_i64][..], false, None::<Kind>); // [classes]
    let plain = |name: &str| name != MEAN && name != DEVIATION;
    let mut used: StateDict = state
        .iter()
        .filter(|(name, _)| plain(name))
        .map(|(name, x)| (name.clone(), x.shallow_clone()))
        .collect();
    used.insert(WEIGHT.into(), w.to_kind(kind));
    used.insert(BIAS.into(), b.to_kind(kind));
    Some(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    #[test]
    fn folded_weights_take_plain_features() {
        tch::manual_seed(1);
        let like = (Kind::Double, Device::Cpu);
        let features = Tensor::randn([50, 7], like) * 3.0 + 5.0;
        let (mean, deviation) = (
            features.mean_dim(&[0_i64][..], true, None::<Kind>),
            features.std_dim(&[0_i64][..], false, true),
        );
        let (weight, bias) = (Tensor::randn([4, 7], like), Tensor::randn([4], like));
        let logits = ((&features - &mean) / &deviation).linear(&weight, Some(&bias));
        let names = [WEIGHT, BIAS, MEAN, DEVIATION].map(String::from);
        let state: StateDict = names.into_iter().zip([weight, bias, mean, deviation]).collect();
        let used = folded(&state).expect("it has a standardisation");
        assert_eq!(used.keys().collect::<Vec<_>>(), [BIAS, WEIGHT]);
        let plain = features.linear(&used[WEIGHT], Some(&used[BIAS]));
        let error = (&plain - &logits).abs().max().double_value(&[]);
        assert!(error < 1e-12, "{error}");
        let unfolded = features.linear(&state[WEIGHT], Some(&state[BIAS]));
        assert!(
            (unfolded - logits).abs().max().double_value(&[]) > 1.0,
            "the standardisation is not trivial"
        );
        assert!(folded(&used).is_none(), "there is nothing left to fold");
    }
}
