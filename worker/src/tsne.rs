//! Exact t-SNE (van der Maaten and Hinton, JMLR 9, 2008) of rows in float64, on one thread and in
//! one order of sums: its bits depend on nothing but the rows and the seed. It begins at the
//! principal components, which keep the large distances (Kobak and Berens, Nature Communications
//! 10, 2019).

use anyhow::{Result, bail};
use tch::{Kind, Tensor};
use thanos_configs::{SplitMix64, init_key, stage_key};

/// Neighbours that a row takes into account, about; at most a third of the others.
const PERPLEXITY: f64 = 30.0;
/// Bisections of a row's precision, and the deviation of its entropy that is accepted.
const MAX_BISECTIONS: usize = 64;
const ENTROPY_TOLERANCE: f64 = 1e-6;
/// Attraction is stronger in the first iterations, in which clusters form.
const EXAGGERATION: f64 = 12.0;
const EXAGGERATED_ITERATIONS: usize = 250;
const ITERATIONS: usize = 750;
/// Of the two parts. A step's length follows the number of rows (Belkina et al., Nature
/// Communications 10, 2019), for a gradient with its factor of 4.
const MOMENTUM: [f64; 2] = [0.5, 0.8];
const MIN_LEARNING_RATE: f64 = 50.0;
const MIN_GAIN: f64 = 0.01;
/// Deviation of the first axis at the start, and of the noise by which equal rows part.
const START_DEVIATION: f64 = 1e-4;
const START_NOISE: f64 = 1e-6;
/// Sums that are taken next to each other, and added in one order.
const LANES: usize = 4;

/// The map of rows [n, d] float64 that begins at `start` [n, 2]: [n, 2]. `may_continue` is asked
/// before every iteration; `None`: it answered no.
pub(crate) fn tsne(
    rows: &Tensor,
    start: &Tensor,
    seed: u64,
    mut may_continue: impl FnMut() -> bool,
) -> Result<Option<Tensor>> {
    let n = rows.size()[0] as usize;
    let (distances, start) = (squared_distances(rows)?, floats(start)?);
    let Some(affinities) = affinities(&distances, n, &mut may_continue) else { return Ok(None) };
    let mut layout = Layout::at(&start, seed);
    for iteration in 0..ITERATIONS {
        if !may_continue() {
            return Ok(None);
        }
        let early = iteration < EXAGGERATED_ITERATIONS;
        let exaggeration = if early { EXAGGERATION } else { 1.0 };
        layout.step(&affinities, exaggeration, MOMENTUM[usize::from(!early)]);
    }
    let pairs: Vec<f64> = layout.x.iter().zip(&layout.y).flat_map(|(x, y)| [*x, *y]).collect();
    Ok(Some(Tensor::from_slice(&pairs).reshape([n as i64, 2])))
}

/// [n * n], row by row.
fn squared_distances(rows: &Tensor) -> Result<Vec<f64>> {
    if rows.kind() != Kind::Double {
        bail!("t-SNE of {:?}, expected float64", rows.kind());
    }
    let squares = rows.square().sum_dim_intlist(&[1_i64][..], true, Kind::Double); // [n, 1]
    let distances = &squares + squares.tr() - rows.matmul(&rows.tr()) * 2.0;
    floats(&distances.clamp_min(0.0))
}

fn floats(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(tensor.contiguous().reshape(-1))?)
}

/// Symmetric affinities of all pairs, [n * n] with a sum of 1: of each row a Gaussian of its own
/// width, by which its neighbours have the perplexity.
fn affinities(
    distances: &[f64],
    n: usize,
    may_continue: &mut impl FnMut() -> bool,
) -> Option<Vec<f64>> {
    let entropy = PERPLEXITY.min((n.saturating_sub(1)) as f64 / 3.0).max(1.0).ln();
    let mut of_rows = vec![0.0; n * n];
    for (at, (row, own)) in distances.chunks(n).zip(of_rows.chunks_mut(n)).enumerate() {
        if !may_continue() {
            return None;
        }
        conditional(row, at, entropy, own);
    }
    let total = 2.0 * n as f64;
    let mut symmetric = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..i {
            let affinity = (of_rows[i * n + j] + of_rows[j * n + i]) / total;
            (symmetric[i * n + j], symmetric[j * n + i]) = (affinity, affinity);
        }
    }
    Some(symmetric)
}

/// Affinities of one row to all others with this entropy, [n].
fn conditional(distances: &[f64], own: usize, entropy: f64, affinities: &mut [f64]) {
    let others = || distances.iter().enumerate().filter(move |(at, _)| *at != own);
    // A constant distance changes no affinity, and the nearest one must not round to 0.
    let nearest = others().map(|(_, distance)| *distance).fold(f64::INFINITY, f64::min);
    let (mut low, mut high, mut precision) = (0.0, f64::INFINITY, 1.0);
    for _ in 0..MAX_BISECTIONS {
        let (mut sum, mut weighted) = (0.0, 0.0);
        for (at, distance) in others() {
            let excess = distance - nearest;
            let affinity = (-excess * precision).exp();
            affinities[at] = affinity;
            sum += affinity;
            weighted += excess * affinity;
        }
        let found = sum.ln() + precision * weighted / sum;
        affinities.iter_mut().for_each(|affinity| *affinity /= sum);
        if (found - entropy).abs() < ENTROPY_TOLERANCE {
            break;
        }
        if found > entropy {
            low = precision;
            precision = if high.is_finite() { f64::midpoint(low, high) } else { precision * 2.0 };
        } else {
            high = precision;
            precision = f64::midpoint(low, high);
        }
    }
}

/// Where the rows are, and how they move.
struct Layout {
    x: Vec<f64>,
    y: Vec<f64>,
    /// Of both axes, one after the other.
    velocity: Vec<f64>,
    gains: Vec<f64>,
    /// Of the two axes, before the normalisation of the affinities in the map is known.
    forces: Vec<Forces>,
}

/// Sums over all other rows, for one of them.
#[derive(Clone, Copy, Debug, Default)]
struct Forces {
    attraction: [f64; 2],
    repulsion: [f64; 2],
    /// Affinities in the map, its own among them, which is 1.
    sum: f64,
}

impl Layout {
    fn at(start: &[f64], seed: u64) -> Self {
        let n = start.len() / 2;
        let mut random = SplitMix64::new(init_key(seed, stage_key("tsne")));
        let deviation = (start.iter().step_by(2).map(|x| x * x).sum::<f64>() / n as f64).sqrt();
        let scale = if deviation > 0.0 { START_DEVIATION / deviation } else { 0.0 };
        let mut axis = |axis: usize| -> Vec<f64> {
            let places = start.iter().skip(axis).step_by(2);
            places.map(|place| place * scale + random.uniform(-START_NOISE, START_NOISE)).collect()
        };
        let (x, y) = (axis(0), axis(1));
        let forces = vec![Forces::default(); n];
        Self { x, y, velocity: vec![0.0; 2 * n], gains: vec![1.0; 2 * n], forces }
    }

    /// One step of gradient descent on the Kullback-Leibler divergence.
    fn step(&mut self, affinities: &[f64], exaggeration: f64, momentum: f64) {
        let n = self.x.len();
        for (at, row) in affinities.chunks(n).enumerate() {
            self.forces[at] = forces((&self.x, &self.y), at, row);
        }
        // Every row has counted itself.
        let total = self.forces.iter().map(|forces| forces.sum - 1.0).sum::<f64>().max(1e-300);
        let rate = MIN_LEARNING_RATE.max(n as f64 / EXAGGERATION / 4.0);
        for (axis, places) in [&mut self.x, &mut self.y].into_iter().enumerate() {
            for (at, place) in places.iter_mut().enumerate() {
                let Forces { attraction, repulsion, .. } = self.forces[at];
                let gradient = 4.0 * (exaggeration * attraction[axis] - repulsion[axis] / total);
                let velocity = &mut self.velocity[axis * n + at];
                let gain = &mut self.gains[axis * n + at];
                // A gain grows while a row moves on in its direction.
                let grows = (gradient > 0.0) != (*velocity > 0.0);
                *gain = if grows { *gain + 0.2 } else { *gain * 0.8 }.max(MIN_GAIN);
                *velocity = momentum * *velocity - rate * *gain * gradient;
                *place += *velocity;
            }
            let mean = places.iter().sum::<f64>() / n as f64;
            places.iter_mut().for_each(|place| *place -= mean);
        }
    }
}

/// What the other rows do to row `at`, whose affinities are `row`: in lanes, which a processor
/// computes at once, and which are added in one order.
fn forces((xs, ys): (&[f64], &[f64]), at: usize, row: &[f64]) -> Forces {
    let (x, y) = (xs[at], ys[at]);
    let mut lanes = [[0.0_f64; LANES]; 5];
    let add = |lanes: &mut [[f64; LANES]; 5], lane: usize, (px, py): (f64, f64), p: f64| {
        let (dx, dy) = (x - px, y - py);
        let q = 1.0 / (1.0 + dx * dx + dy * dy);
        let (attracts, repels) = (p * q, q * q);
        lanes[0][lane] += attracts * dx;
        lanes[1][lane] += attracts * dy;
        lanes[2][lane] += repels * dx;
        lanes[3][lane] += repels * dy;
        lanes[4][lane] += q;
    };
    let (x_chunks, x_rest) = xs.as_chunks::<LANES>();
    let (y_chunks, y_rest) = ys.as_chunks::<LANES>();
    let (p_chunks, p_rest) = row.as_chunks::<LANES>();
    for ((px, py), p) in x_chunks.iter().zip(y_chunks).zip(p_chunks) {
        for (lane, ((px, py), p)) in px.iter().zip(py).zip(p).enumerate() {
            add(&mut lanes, lane, (*px, *py), *p);
        }
    }
    for (lane, ((px, py), p)) in x_rest.iter().zip(y_rest).zip(p_rest).enumerate() {
        add(&mut lanes, lane, (*px, *py), *p);
    }
    let [ax, ay, rx, ry, sum] = lanes.map(|lane| lane.iter().sum());
    Forces { attraction: [ax, ay], repulsion: [rx, ry], sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows about centres that are far apart, `each` about each, and their labels.
    fn clusters(centres: i64, each: i64) -> (Tensor, Vec<usize>) {
        tch::manual_seed(3);
        let kind = (Kind::Double, tch::Device::Cpu);
        let centre = Tensor::eye(centres, kind).repeat_interleave_self_int(each, 0, None) * 10.0;
        let rows = &centre + Tensor::randn(centre.size(), kind) * 0.5;
        (rows, (0..centres * each).map(|row| (row / each) as usize).collect())
    }

    fn start(n: i64) -> Tensor {
        tch::manual_seed(4);
        Tensor::randn([n, 2], (Kind::Double, tch::Device::Cpu))
    }

    fn map(rows: &Tensor, seed: u64) -> Vec<f64> {
        let mapped = tsne(rows, &start(rows.size()[0]), seed, || true).expect("float64");
        floats(&mapped.expect("not stopped")).expect("float64")
    }

    #[test]
    fn clusters_that_are_apart_are_mapped_apart() {
        let (rows, labels) = clusters(5, 40);
        let mapped = map(&rows, 0);
        let nearest = |at: usize| {
            let distance = |other: usize| {
                let axis = |axis: usize| mapped[2 * at + axis] - mapped[2 * other + axis];
                axis(0).hypot(axis(1))
            };
            let others = (0..labels.len()).filter(|other| *other != at);
            others.min_by(|a, b| distance(*a).total_cmp(&distance(*b))).expect("others")
        };
        let right = (0..labels.len()).filter(|at| labels[nearest(*at)] == labels[*at]).count();
        assert_eq!(right, labels.len(), "every nearest neighbour is of the same cluster");
    }

    #[test]
    fn a_map_is_a_function_of_rows_and_seed() {
        let (rows, _) = clusters(3, 11);
        assert_eq!(map(&rows, 1), map(&rows, 1));
        assert_ne!(map(&rows, 1), map(&rows, 2));
        assert!(map(&rows, 1).iter().all(|place| place.is_finite()));
    }

    #[test]
    fn equal_rows_few_rows_and_a_stop_are_no_problem() {
        let kind = (Kind::Double, tch::Device::Cpu);
        for n in [1, 2, 3, 7] {
            assert!(
                map(&Tensor::ones([n, 4], kind), 0).iter().all(|place| place.is_finite()),
                "{n}"
            );
        }
        let (rows, _) = clusters(3, 11);
        let mut asked = 0;
        let stopped = tsne(&rows, &start(33), 0, || {
            asked += 1;
            asked < 100
        });
        assert!(stopped.expect("float64").is_none() && asked == 100);
    }

    #[test]
    fn affinities_have_the_perplexity() {
        let (rows, _) = clusters(4, 50);
        let distances = squared_distances(&rows).expect("float64");
        let mut of_row = vec![0.0; 200];
        conditional(&distances[..200], 0, PERPLEXITY.ln(), &mut of_row);
        let entropy: f64 = of_row.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        assert!((entropy.exp() - PERPLEXITY).abs() < 1e-3, "{}", entropy.exp());
        let all = affinities(&distances, 200, &mut || true).expect("not stopped");
        assert!((all.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
}
