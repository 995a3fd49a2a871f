//! The run's images as tensors: the two packs, the split, and the views that are asked for.

use crate::device_views::{plain_on_device, views_by_kernel, views_on_device};
use crate::pack::{Images, Pack};
use crate::tensors::upload;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::thread;
use tch::{Device, Kind, Tensor};
use thanos_c10d::{GpuMemory, gpu_memory};
use thanos_configs::{DataSet, Plan, Precision, Validation, rank_slice, view_key};
use thanos_fused::gpu::takes_views;
use thanos_views::{Augmentation, Scratch};

/// A pack's file on this machine.
pub(crate) struct LocalPack {
    pub(crate) split: String,
    pub(crate) path: PathBuf,
    pub(crate) fingerprint: String,
}

/// Everything a stage may know about images.
pub(crate) struct Data {
    pub(crate) train: Pack,
    pub(crate) test: Pack,
    /// What the packs say about themselves.
    pub(crate) facts: DataSet,
    /// Ids of the images in `train` that are trained on.
    pub(crate) train_ids: Vec<u64>,
    /// Ids of the images in `test` that are tested on.
    pub(crate) test_ids: Vec<u64>,
    /// Ids of those that select the best epoch, in the pack that `validation` names.
    validation_ids: Vec<u64>,
    validation: Validation,
    augmentation: Augmentation,
    seed: u64,
    device: Device,
    precision: Precision,
    threads: usize,
    /// The images of both packs, (training, test), where views are made on a GPU: in its memory, or
    /// on the host.
    for_gpu: Option<(Images, Images)>,
}

impl Data {
    /// Opens the packs that the coordinator named, and checks them against the plan's data set.
    /// `threads` is this worker's share of the cores.
    pub(crate) fn open(
        plan: &Plan,
        packs: &[LocalPack],
        device: Device,
        threads: usize,
    ) -> Result<Self> {
        let open = |split: &str| -> Result<Pack> {
            let found = packs.iter().find(|pack| pack.split == split);
            let found =
                found.with_context(|| format!("the coordinator named no pack for `{split}`"))?;
            let pack = Pack::open(&found.path, &found.fingerprint)?;
            let (found_shape, expected) = (shape(&pack.facts), shape(plan.data()));
            ensure!(
                found_shape == expected,
                "pack {}: its images are {found_shape:?} (side, channels), {} has {expected:?}",
                found.path.display(),
                plan.data().name
            );
            Ok(pack)
        };
        let (train, test) = (open("train")?, open("test")?);
        let facts = train.facts.clone();
        ensure!(facts == test.facts, "the packs of training and test images are of two data sets");
        let split = plan.split(&train.fine);
        let validation = plan.config().data.validation;
        let test_ids = plan.test_ids(test.len() as u64);
        let validation_ids = match validation {
            Validation::HeldOut => split.validation,
            Validation::Test => test_ids.clone(),
        };
        let (trained, validated, tested) =
            (split.train.len(), validation_ids.len(), test_ids.len());
        ensure!(
            trained > 0 && validated > 0 && tested > 0,
            "{trained} training, {validated} validation and {tested} test images: none of them may \
            be empty"
        );
        let augmentation =
            Augmentation::new(&plan.config().views, facts.side, &facts.mean, &facts.std);
        let precision = plan.config().model.precision;
        let for_gpu =
            device.is_cuda().then(|| images_for_gpu(&train, &test, device)).transpose()?;
        let seed = plan.config().seed;
        let train_ids = split.train;
        Ok(Self {
            train,
            test,
            facts,
            train_ids,
            test_ids,
            validation_ids,
            validation,
            augmentation,
            seed,
            device,
            precision,
            threads,
            for_gpu,
        })
    }

    /// The images on which the best epoch is selected: their pack, and their ids in it.
    pub(crate) fn validation(&self) -> (&Pack, &[u64]) {
        match self.validation {
            Validation::HeldOut => (&self.train, &self.validation_ids),
            Validation::Test => (&self.test, &self.validation_ids),
        }
    }

    /// Views of images of a pack in one epoch: [n, views, C, S, S].
    pub(crate) fn views(&self, pack: &Pack, ids: &[u64], epoch: u64, views: u64) -> Result<Tensor> {
        let leading = [ids.len() as i64, views as i64];
        if let Some(images) = self.images_for_gpu(pack) {
            let keys = self.maker(images).keys(ids, epoch, views);
            let (pixels, rows) = match images.resident() {
                Some(pixels) => (pixels, ids.iter().map(|&id| id as i64).collect()),
                None => (self.on_gpu(images, ids)?, (0..ids.len() as i64).collect::<Vec<_>>()),
            }; // [N, S, S, C]
            let rows: Vec<i64> =
                rows.into_iter().flat_map(|row| std::iter::repeat_n(row, views as usize)).collect();
            let made = match takes_views(&pixels) {
                true => views_by_kernel(&self.augmentation, &pixels, &rows, &keys)?,
                false => {
                    // [n * views, S, S, C]
                    let chosen = pixels.index_select(0, &upload(&rows, self.device));
                    views_on_device(&self.augmentation, &chosen, &keys)
                }
            };
            return Ok(made.reshape(self.shape(&leading)).to_kind(self.kind()));
        }
        let floats = self.on_threads(pack, ids, |maker, ids| maker.views(ids, epoch, views))?;
        Ok(self.tensor(&floats, &leading))
    }

    /// Images of a pack as evaluation sees them: [n, C, S, S].
    pub(crate) fn plain(&self, pack: &Pack, ids: &[u64]) -> Result<Tensor> {
        if let Some(images) = self.images_for_gpu(pack) {
            return Ok(plain_on_device(&self.augmentation, &self.on_gpu(images, ids)?)
                .to_kind(self.kind()));
        }
        let floats = self.on_threads(pack, ids, ViewMaker::plain)?;
        Ok(self.tensor(&floats, &[ids.len() as i64]))
    }

    /// Floats that all threads of this worker compute, each its part of so many, one after the
    /// other.
    fn on_threads<F>(&self, pack: &Pack, ids: &[u64], compute: F) -> Result<Vec<f32>>
    where
        F: Fn(&ViewMaker, &[u64]) -> Result<Vec<f32>> + Sync,
    {
        let (maker, threads) = (self.maker(pack.images()), self.threads);
        let parts: Vec<Result<Vec<f32>>> = thread::scope(|scope| {
            let compute = &compute;
            let of_part = |part| &ids[rank_slice(ids.len(), part, threads)];
            // Images of a tensor go to a thread by a handle of its own.
            let others = (1..threads).map(|part| {
                let maker = maker.clone();
                scope.spawn(move || compute(&maker, of_part(part)))
            });
            let others: Vec<_> = others.collect();
            let first = compute(&maker, of_part(0));
            let joined =
                others.into_iter().map(|part| part.join().expect("making views does not panic"));
            std::iter::once(first).chain(joined).collect()
        });
        Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    /// Labels of some samples, on the training device.
    pub(crate) fn labels(&self, of: &[i64], ids: &[u64]) -> Tensor {
        let chosen: Vec<i64> = ids.iter().map(|&id| of[id as usize]).collect();
        upload(&chosen, self.device)
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// What images and models are: float32 or float64.
    pub(crate) fn kind(&self) -> Kind {
        match self.precision {
            Precision::Float32 | Precision::Tf32 | Precision::Bfloat16 => Kind::Float,
            Precision::Float64 => Kind::Double,
        }
    }

    /// What matrix products multiply.
    pub(crate) fn product_kind(&self) -> Kind {
        if self.precision == Precision::Bfloat16 { Kind::BFloat16 } else { self.kind() }
    }

    /// The precision as the configuration names it.
    pub(crate) fn precision(&self) -> &'static str {
        match self.precision {
            Precision::Float32 => "float32",
            Precision::Tf32 => "tf32",
            Precision::Bfloat16 => "bfloat16",
            Precision::Float64 => "float64",
        }
    }

    /// Threads that may make views at once.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    pub(crate) fn makes_views_on_device(&self) -> bool {
        self.for_gpu.is_some()
    }

    /// Makes views of the training images on a thread of its own.
    pub(crate) fn view_maker(&self) -> ViewMaker {
        self.maker(self.train.images())
    }

    fn images_for_gpu(&self, pack: &Pack) -> Option<&Images> {
        let (train, test) = self.for_gpu.as_ref()?;
        Some(if std::ptr::eq(pack, &self.test) { test } else { train })
    }

    /// Some images in the GPU's memory, [n, S, S, C] u8. Those of the host go through pinned
    /// memory, so that the copy does not block this thread.
    fn on_gpu(&self, images: &Images, ids: &[u64]) -> Result<Tensor> {
        let chosen = images.chosen(ids)?;
        if chosen.device() == self.device {
            return Ok(chosen);
        }
        let pinned = chosen.f_pin_memory(self.device).context("pinned memory for a batch")?;
        Ok(pinned.f_to_device_(self.device, Kind::Uint8, true, false)?)
    }

    fn maker(&self, images: &Images) -> ViewMaker {
        ViewMaker {
            augmentation: self.augmentation.clone(),
            seed: self.seed,
            images: images.clone(),
        }
    }

    /// Floats of images as a tensor on the training device: [leading.., C, S, S].
    pub(crate) fn tensor(&self, floats: &[f32], leading: &[i64]) -> Tensor {
        Tensor::from_slice(floats)
            .reshape(self.shape(leading))
            .to_device(self.device)
            .to_kind(self.kind())
    }

    fn shape(&self, leading: &[i64]) -> Vec<i64> {
        let (c, s) = (self.facts.channels as i64, self.facts.side as i64);
        [leading, &[c, s, s]].concat()
    }
}

/// The images of both packs as a GPU reads them: in its memory, where they fit. Else they stay in
/// their files, whose pages are shared by the ranks of the machine, and every batch passes through
/// pinned memory.
fn images_for_gpu(train: &Pack, test: &Pack, device: Device) -> Result<(Images, Images)> {
    let bytes = train.images().bytes() + test.images().bytes();
    let memory = gpu_memory()?;
    if packs_fit(bytes, memory) {
        return Ok((train.images().on(device)?, test.images().on(device)?));
    }
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    tracing::info!(
        "the images take {:.1} GB and {:.1} GB of the GPU's memory are free: they stay in host \
        memory",
        gigabytes(bytes),
        gigabytes(memory.free)
    );
    Ok((train.images().clone(), test.images().clone()))
}

/// Whether images may take part of a GPU's memory: half of what is free is left for the model and
/// its activations.
fn packs_fit(bytes: u64, memory: GpuMemory) -> bool {
    bytes <= memory.free / 2
}

/// Side and channels of a data set's images.
fn shape(facts: &DataSet) -> (usize, usize) {
    (facts.side, facts.channels)
}

/// Makes views of one pack's images on the CPU; it can be sent to another thread.
#[derive(Clone)]
pub(crate) struct ViewMaker {
    augmentation: Augmentation,
    seed: u64,
    images: Images,
}

impl ViewMaker {
    /// The floats of views of images in one epoch: [n, views, C, S, S].
    pub(crate) fn views(&self, ids: &[u64], epoch: u64, views: u64) -> Result<Vec<f32>> {
        let pixels = self.images.pixels(ids)?;
        let size = self.augmentation.pixels();
        let mut floats = vec![0.0_f32; ids.len() * views as usize * size];
        let mut scratch = Scratch::default();
        for (at, (key, out)) in
            self.keys(ids, epoch, views).into_iter().zip(floats.chunks_exact_mut(size)).enumerate()
        {
            let image = at / views as usize;
            self.augmentation.view(
                &pixels[image * size..(image + 1) * size],
                key,
                &mut scratch,
                out,
            );
        }
        Ok(floats)
    }

    /// The floats of images as evaluation sees them: [n, C, S, S].
    fn plain(&self, ids: &[u64]) -> Result<Vec<f32>> {
        let pixels = self.images.pixels(ids)?;
        let size = self.augmentation.pixels();
        let mut floats = vec![0.0_f32; ids.len() * size];
        for (image, out) in pixels.chunks_exact(size).zip(floats.chunks_exact_mut(size)) {
            self.augmentation.plain(image, out);
        }
        Ok(floats)
    }

    /// Keys of the views of images in one epoch, an image's views next to each other.
    fn keys(&self, ids: &[u64], epoch: u64, views: u64) -> Vec<u64> {
        ids.iter()
            .flat_map(|&id| (0..views).map(move |view| view_key(self.seed, epoch, id, view)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_free_memory_is_left_for_the_model() {
        let memory = GpuMemory { free: 80, total: 100 };
        assert!(packs_fit(40, memory) && packs_fit(0, memory));
        assert!(!packs_fit(41, memory));
    }
}
