//! The embedding map of a row: some of its test images, the same ones for every row of a run, in
//! two dimensions by PCA and by exact t-SNE. Rank 0 computes it, in float64 on the CPU, as a
//! function of the vectors and the seed; what is drawn of it is the coordinator's.

use crate::data::Data;
use crate::tensors::StateDict;
use crate::tsne::tsne;
use anyhow::{Context, Result};
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use thanos_c10d::ProcessGroup;
use thanos_configs::{SplitMix64, init_key, rank_slice, stage_key};

/// Dimensions of a map.
const AXES: i64 = 2;

/// Which test images are in a map: so many, drawn by the seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapSample {
    pub(crate) images: u64,
    pub(crate) seed: u64,
}

/// The map of unit rows of which this rank holds its slice, `directions` [own, d]; `None` on other
/// ranks than 0, and if `may_continue`, which is asked again and again, answers no.
///
/// # Errors
/// If a peer is lost.
pub(crate) fn embedding_map(
    data: &Data,
    group: &ProcessGroup,
    directions: &Tensor,
    MapSample { images, seed }: MapSample,
    may_continue: impl FnMut() -> bool,
) -> Result<Option<StateDict>> {
    let _no_graph = tch::no_grad_guard();
    let chosen = sample(data.test_ids.len(), images as usize, seed);
    let own = rank_slice(data.test_ids.len(), group.rank(), group.size());
    let vectors = rows_at(&chosen, directions, own.start); // [n, d]
    let vectors = summed(group, vectors)?;
    if group.rank() > 0 {
        return Ok(None);
    }
    let began = Instant::now();
    let vectors = vectors.to_device(Device::Cpu).to_kind(Kind::Float);
    let exact = vectors.to_kind(Kind::Double);
    let pca = pca(&exact)?;
    let Some(tsne) = tsne(&exact, &pca, seed, may_continue)? else { return Ok(None) };
    let (images, seconds) = (chosen.len(), began.elapsed().as_secs_f64());
    tracing::info!("embedding map of {images} images: {seconds:.2} s");
    let ids: Vec<i64> = chosen.iter().map(|&at| data.test_ids[at] as i64).collect();
    let labels = |of: &[i64]| {
        let labels: Vec<i64> = ids.iter().map(|&id| of[id as usize]).collect();
        Tensor::from_slice(&labels)
    };
    let named = [
        ("ids", Tensor::from_slice(&ids)),
        ("fine", labels(&data.test.fine)),
        ("coarse", labels(&data.test.coarse)),
        ("vectors", vectors),
        ("pca", pca),
        ("tsne", tsne),
    ];
    Ok(Some(named.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()))
}

/// Places of at most `images` of `len` images, in order: a function of the three numbers.
fn sample(len: usize, images: usize, seed: u64) -> Vec<usize> {
    let mut random = SplitMix64::new(init_key(seed, stage_key("embedding_map")));
    let mut places: Vec<usize> = (0..len).collect();
    let chosen = images.min(len);
    for at in 0..chosen {
        places.swap(at, at + random.below((len - at) as u64) as usize);
    }
    places.truncate(chosen);
    places.sort_unstable();
    places
}

/// Rows at these places of all images, of which those from `first` on are here, [own, d]; zeros for
/// places that are elsewhere: [n, d].
fn rows_at(places: &[usize], own: &Tensor, first: usize) -> Tensor {
    let range = first..first + own.size()[0] as usize;
    let here = places.iter().enumerate().filter(|(_, place)| range.contains(place));
    let (to, from): (Vec<i64>, Vec<i64>) =
        here.map(|(row, place)| (row as i64, (place - first) as i64)).unzip();
    let index = |rows: &[i64]| Tensor::from_slice(rows).to_device(own.device());
    let all = Tensor::zeros([places.len() as i64, own.size()[1]], (own.kind(), own.device()));
    all.index_copy(0, &index(&to), &own.index_select(0, &index(&from)))
}

/// The sum over the ranks, of which one has a row and the others zeros: it changes no bit.
fn summed(group: &ProcessGroup, mut rows: Tensor) -> Result<Tensor> {
    group.all_reduce(&mut rows)?;
    group.synchronize()?;
    Ok(rows)
}

/// Principal components of rows [n, d], [n, 2] float64: of each axis the largest coordinate is
/// positive. The eigenvectors are those of the smaller of the two products of the centred rows.
fn pca(rows: &Tensor) -> Result<Tensor> {
    let [n, d] = rows.size()[..] else { anyhow::bail!("rows of shape {:?}", rows.size()) };
    let centred = rows - rows.mean_dim(&[0_i64][..], true, None::<Kind>);
    let axes = AXES.min(n).min(d);
    let largest = |symmetric: &Tensor| -> Result<(Tensor, Tensor)> {
        let (values, vectors) =
            symmetric.f_linalg_eigh("L").context("eigenvectors of embeddings")?;
        let last = values.size()[0] - axes;
        // In ascending order.
        Ok((values.narrow(0, last, axes).flip([0]), vectors.narrow(1, last, axes).flip([1])))
    };
    let scores = if d <= n {
        let (_, vectors) = largest(&centred.tr().matmul(&centred))?;
        centred.matmul(&vectors)
    } else {
        let (values, vectors) = largest(&centred.matmul(&centred.tr()))?;
        vectors * values.clamp_min(0.0).sqrt()
    }; // [n, axes]
    let at = scores.abs().argmax(0, true); // [1, axes]
    let sign = scores.gather(0, &at, false).sign();
    let signed = &scores * sign.where_self(&sign.ne(0.0), &sign.ones_like());
    let missing = Tensor::zeros([n, AXES - axes], (Kind::Double, Device::Cpu));
    Ok(Tensor::cat(&[signed, missing], 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_in_order_without_repetition_and_follows_the_seed() {
        let places = sample(1000, 100, 7);
        assert_eq!(places.len(), 100);
        assert!(places.windows(2).all(|pair| pair[0] < pair[1]) && places[99] < 1000);
        assert_eq!(places, sample(1000, 100, 7));
        assert_ne!(places, sample(1000, 100, 8));
        assert_eq!(sample(3, 100, 7), [0, 1, 2]);
    }

    #[test]
    fn every_row_is_on_one_rank() {
        let rows = Tensor::arange(20, (Kind::Double, Device::Cpu)).reshape([10, 2]) + 1.0;
        let places = sample(10, 6, 0);
        let all = rows_at(&places, &rows, 0);
        assert_eq!(all.size(), [6, 2]);
        for size in [2, 3, 12] {
            let parts = (0..size).map(|rank| {
                let own = rank_slice(10, rank, size);
                rows_at(&places, &rows.narrow(0, own.start as i64, own.len() as i64), own.start)
            });
            assert_eq!(parts.reduce(|sum, part| sum + part).expect("ranks"), all, "{size} ranks");
        }
    }

    /// numpy: x = [[2, 0, 1], [0, 1, 3], [1, 5, 0], [4, 2, 2]]; x -= x.mean(0);
    /// u, s, _ = np.linalg.svd(x); u[:, :2] * s[:2], with the signs of `pca`.
    const ROWS: [f64; 12] = [2.0, 0.0, 1.0, 0.0, 1.0, 3.0, 1.0, 5.0, 0.0, 4.0, 2.0, 2.0];
    const REFERENCE: [f64; 8] = [
        -1.6475592423715868,
        0.2725088862151826,
        -1.3459331129974181,
        -2.004222386069779,
        3.405627252832389,
        -0.40203530628338385,
        -0.41213489746338305,
        2.133748806137981,
    ];

    #[test]
    fn principal_components_are_those_of_a_singular_value_decomposition() {
        let rows = Tensor::from_slice(&ROWS).reshape([4, 3]);
        let expected = Tensor::from_slice(&REFERENCE).reshape([4, 2]);
        let found = pca(&rows).expect("eigenvectors");
        assert!(found.allclose(&expected, 1e-12, 1e-12, false), "{found}");
        // More columns than rows: the other product.
        let wide = Tensor::cat(&[rows, Tensor::zeros([4, 3], (Kind::Double, Device::Cpu))], 1);
        let found = pca(&wide).expect("eigenvectors");
        assert!(found.allclose(&expected, 1e-10, 1e-10, false), "{found}");
    }

    #[test]
    fn rows_that_are_one_point_are_mapped_to_it() {
        let same = pca(&Tensor::ones([5, 3], (Kind::Double, Device::Cpu))).expect("eigenvectors");
        assert!(same.allclose(&Tensor::zeros_like(&same), 0.0, 1e-12, false), "{same}");
        let one = pca(&Tensor::ones([1, 3], (Kind::Double, Device::Cpu))).expect("eigenvectors");
        assert_eq!(one.size(), [1, 2]);
    }
}
