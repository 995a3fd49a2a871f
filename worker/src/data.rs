//! The run's images as tensors: the two packs, the split, and the views that a stage asks for.

use crate::pack::Pack;
use crate::views::Augmentation;
use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};
use thanos_configs::{DataSet, Plan, Precision, Split, split_train_validation, view_key};
use thanos_proto::PackRef;

/// Everything a stage may know about images.
pub(crate) struct Data {
    pub train: Pack,
    pub test: Pack,
    /// The training pack cut in two; entries are ids in `train`.
    pub split: Split,
    pub facts: DataSet,
    augmentation: Augmentation,
    seed: u64,
    device: Device,
    kind: Kind,
}

impl Data {
    /// Opens the packs that the coordinator named, and checks them against the plan's data set.
    pub(crate) fn open(plan: &Plan, packs: &[PackRef], device: Device) -> Result<Self> {
        let open = |split: &str| -> Result<Pack> {
            let found = packs.iter().find(|pack| pack.split == split);
            let found = found.ok_or_else(|| anyhow::anyhow!("the coordinator named no pack for `{split}`"))?;
            let pack = Pack::open(found.path.as_ref(), &found.fingerprint)?;
            let facts = plan.data();
            let expected = [facts.side, facts.side, facts.channels];
            ensure!(
                pack.shape == expected,
                "pack {}: images are {:?} (height, width, channels), {} has {expected:?}",
                found.path,
                pack.shape,
                facts.name
            );
            Ok(pack)
        };
        let (train, test) = (open("train")?, open("test")?);
        let split = split_train_validation(train.len() as u64, plan.config().data.validation_fraction);
        ensure!(
            !split.train.is_empty() && !split.validation.is_empty() && !test.is_empty(),
            "{} training, {} validation and {} test images: none of them may be empty",
            split.train.len(),
            split.validation.len(),
            test.len()
        );
        let augmentation = Augmentation::new(&plan.config().views, plan.data());
        let kind = match plan.config().model.precision {
            Precision::Float32 => Kind::Float,
            Precision::Float64 => Kind::Double,
        };
        Ok(Self {
            train,
            test,
            split,
            facts: plan.data().clone(),
            augmentation,
            seed: plan.config().seed,
            device,
            kind,
        })
    }

    /// Views of images of a pack in one epoch: [n, views, C, S, S].
    pub(crate) fn views(&self, pack: &Pack, ids: &[u64], epoch: u64, views: u64) -> Result<Tensor> {
        let pixels = pack.images(ids)?;
        let size = self.augmentation.pixels();
        let mut floats = vec![0.0_f32; ids.len() * views as usize * size];
        let keys = ids.iter().enumerate().flat_map(|(row, &id)| (0..views).map(move |view| (row, id, view)));
        for ((row, id, view), out) in keys.zip(floats.chunks_exact_mut(size)) {
            let key = view_key(self.seed, epoch, id, view);
            self.augmentation.view(&pixels[row * size..(row + 1) * size], key, out);
        }
        Ok(self.tensor(&floats, &[ids.len() as i64, views as i64]))
    }

    /// Images of a pack as evaluation sees them: [n, C, S, S].
    pub(crate) fn plain(&self, pack: &Pack, ids: &[u64]) -> Result<Tensor> {
        let pixels = pack.images(ids)?;
        let size = self.augmentation.pixels();
        let mut floats = vec![0.0_f32; ids.len() * size];
        for (image, out) in pixels.chunks_exact(size).zip(floats.chunks_exact_mut(size)) {
            self.augmentation.plain(image, out);
        }
        Ok(self.tensor(&floats, &[ids.len() as i64]))
    }

    /// Labels of some samples, on the training device.
    pub(crate) fn labels(&self, of: &[i64], ids: &[u64]) -> Tensor {
        let chosen: Vec<i64> = ids.iter().map(|&id| of[id as usize]).collect();
        Tensor::from_slice(&chosen).to_device(self.device)
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// What images and models are: float32 or float64.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    fn tensor(&self, floats: &[f32], leading: &[i64]) -> Tensor {
        let (c, s) = (self.facts.channels as i64, self.facts.side as i64);
        let shape = [leading, &[c, s, s]].concat();
        Tensor::from_slice(floats).reshape(&shape).to_device(self.device).to_kind(self.kind)
    }
}
