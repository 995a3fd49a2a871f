//! The contrastive loss and its gradient over tiles: memory O(rows x d), never anchors x
//! candidates.
//!
//! Legend: b anchors of this call, B candidates, d width; s [r, c] the logits of a tile; P the
//! candidates of an anchor's class, its own other view among them; N the others; z and q
//! log-sum-exp over N and over P.

use tch::{Device, Kind, Tensor};

/// Size of a tile of logits. The loss holds about ten temporaries of this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Most anchors.
    pub rows: i64,
    /// Most candidates.
    pub columns: i64,
}

impl Tile {
    /// As many anchors as candidates.
    pub const fn square(side: i64) -> Self {
        Self { rows: side, columns: side }
    }

    /// For `b` anchors: on a CPU tiles that stay in its caches, 4 MiB each; on a GPU, where each
    /// tile costs about 68 kernel launches, 64 MiB.
    pub fn for_anchors(b: i64, kind: Kind, device: Device) -> Self {
        let bytes = if device.is_cuda() { 64 << 20 } else { 4 << 20 };
        let elements = bytes / kind.elt_size_in_bytes() as i64;
        let rows = b.clamp(1, MAX_ROWS);
        Self { rows, columns: elements / rows }
    }
}

/// Anchors of a tile: more rows save nothing, as each tile of columns is one matrix product.
const MAX_ROWS: i64 = 1024;

/// The loss's form: the mean over anchors of (a attraction + b spread) / (a + b).
///
/// Attraction is the mean over p in P of log(e^s_p + Z) - s_p, Z the sum of e^s over N; spread is
/// class-conditional InfoNCE, q - s of the own other view (arXiv 2204.07596).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossForm {
    /// Weight `a` of attraction and weight `b` of class-conditional InfoNCE.
    pub attract: f64,
    pub spread: f64,
    /// Positive logits count at most this in the numerator.
    pub clamp_positive_logits: Option<f64>,
    pub positives_in_denominator: bool,
}

impl LossForm {
    /// Weights of the two terms in the loss: (a, b) / (a + b), or (a, 0) without InfoNCE.
    fn weights(&self) -> (f64, f64) {
        if self.spread == 0.0 {
            return (self.attract, 0.0);
        }
        let sum = self.attract + self.spread;
        (self.attract / sum, self.spread / sum)
    }
}

/// What is contrasted with what; logits are `anchors` x `candidates` transposed.
#[derive(Clone, Copy)]
pub struct Contrast<'a> {
    /// [b, d]
    pub anchors: &'a Tensor,
    /// [B, d]
    pub candidates: &'a Tensor,
    /// [B], i64; anchor i has the label of candidate `own + i`.
    pub labels: &'a Tensor,
    /// The candidate that is anchor 0's other view; anchor i's is `own + i`.
    pub own: i64,
}

/// The sum over the anchors of the call, divided by `anchors_in_all`: (value, gradient of the
/// anchors [b, d], gradient of the candidates [B, d]). The value is a float64 scalar.
///
/// # Panics
/// If shapes do not fit: anchors [b, d], candidates [B, d], labels [B] with own + b <= B.
pub fn contrast(
    rows: Contrast<'_>,
    form: &LossForm,
    anchors_in_all: i64,
    tile: Tile,
) -> (Tensor, Tensor, Tensor) {
    let (b, d) = rows.anchors.size2().expect("anchors are [b, d]");
    let (candidates, width) = rows.candidates.size2().expect("candidates are [B, d]");
    assert!(
        width == d
            && rows.labels.size() == [candidates]
            && rows.own >= 0
            && rows.own + b <= candidates,
        "anchors [{b}, {d}] from {} on do not fit candidates [{candidates}, {width}] and labels \
        {:?}",
        rows.own,
        rows.labels.size(),
    );
    let _no_graph = tch::no_grad_guard();
    let mut value = Tensor::zeros([], (Kind::Double, rows.anchors.device()));
    let anchors_gradient = rows.anchors.zeros_like();
    let mut candidates_gradient = rows.candidates.zeros_like();
    for from in (0..b).step_by(tile.rows as usize) {
        let block = Block::new(&rows, from, tile.rows.min(b - from), tile.columns);
        let sums = block.sums(form);
        value += block.value(&sums, form, anchors_in_all);
        block.gradient(
            &sums,
            form,
            1.0 / anchors_in_all as f64,
            (&mut anchors_gradient.narrow(0, from, block.len), &mut candidates_gradient),
        );
    }
    (value, anchors_gradient, candidates_gradient)
}

/// A block of anchors against all candidates, tile by tile.
struct Block {
    /// [r, d]
    anchors: Tensor,
    /// [r, 1]
    labels: Tensor,
    /// Candidates' own tiles: (first column, rows [c, d], labels [1, c]).
    tiles: Vec<(i64, Tensor, Tensor)>,
    /// First row of `own_rows` among the candidates.
    own: i64,
    /// The other views of the anchors, [r, d].
    own_rows: Tensor,
    len: i64,
    /// Logits and positives of the only tile, if there is just one.
    only: Option<(Tensor, Tensor)>,
}

/// What a row must know of its whole row of logits, each [r, 1].
struct RowSums {
    z: Tensor,
    q: Tensor,
    positives: Tensor,
    /// Sum over P of the clamped logits.
    clamped: Tensor,
    /// Sum over P of log(e^s + Z), and of sigmoid(s - z); attraction without positives in the
    /// denominator.
    logs: Tensor,
    sigmoids: Tensor,
    /// Logit of the own other view.
    own: Tensor,
}

impl Block {
    fn new(rows: &Contrast<'_>, from: i64, len: i64, columns: i64) -> Self {
        let candidates = rows.candidates.size()[0];
        let tiles: Vec<_> = (0..candidates)
            .step_by(columns as usize)
            .map(|first| {
                let c = columns.min(candidates - first);
                (
                    first,
                    rows.candidates.narrow(0, first, c),
                    rows.labels.narrow(0, first, c).unsqueeze(0),
                )
            })
            .collect();
        let own = rows.own + from;
        let mut block = Self {
            anchors: rows.anchors.narrow(0, from, len),
            labels: rows.labels.narrow(0, own, len).unsqueeze(1),
            tiles,
            own,
            own_rows: rows.candidates.narrow(0, own, len),
            len,
            only: None,
        };
        if block.tiles.len() == 1 {
            block.only = Some(block.logits(0));
        }
        block
    }

    /// (s [r, c], whether j is in P_i [r, c]) of a tile; recomputed at each pass unless there is
    /// only one.
    fn logits(&self, tile: usize) -> (Tensor, Tensor) {
        if let Some((s, positive)) = &self.only {
            return (s.shallow_clone(), positive.shallow_clone());
        }
        let (_, candidates, labels) = &self.tiles[tile];
        (self.anchors.matmul(&candidates.tr()), self.labels.eq_tensor(labels))
    }

    /// Passes 1 and 2.
    fn sums(&self, form: &LossForm) -> RowSums {
        let like = (self.anchors.kind(), self.anchors.device());
        let zeros = || Tensor::zeros([self.len, 1], like);
        let nothing = || Tensor::full([self.len, 1], f64::NEG_INFINITY, like);
        let own = row_sum(&(&self.anchors * &self.own_rows));
        let mut sums = RowSums {
            z: nothing(),
            q: nothing(),
            positives: zeros(),
            clamped: zeros(),
            logs: zeros(),
            sigmoids: zeros(),
            own,
        };
        for tile in 0..self.tiles.len() {
            let (s, positive) = self.logits(tile);
            let negatives = s.masked_fill(&positive, f64::NEG_INFINITY);
            let positives = s.masked_fill(&positive.logical_not(), f64::NEG_INFINITY);
            sums.z = sums.z.logaddexp(&negatives.logsumexp(&[1_i64][..], true));
            sums.q = sums.q.logaddexp(&positives.logsumexp(&[1_i64][..], true));
            sums.positives += row_sum(&positive.to_kind(like.0));
            let counted =
                form.clamp_positive_logits.map_or(s.shallow_clone(), |most| s.clamp_max(most));
            sums.clamped += row_sum(&keep(&counted, &positive));
        }
        if form.attract > 0.0 && !form.positives_in_denominator {
            for tile in 0..self.tiles.len() {
                let (s, positive) = self.logits(tile);
                sums.logs += row_sum(&keep(&s.logaddexp(&sums.z), &positive));
                sums.sigmoids += row_sum(&keep(&(s - &sums.z).sigmoid(), &positive));
            }
        }
        sums
    }

    /// The block's part of the loss, float64.
    fn value(&self, sums: &RowSums, form: &LossForm, anchors_in_all: i64) -> Tensor {
        let (attract, spread) = form.weights();
        let mut value = Tensor::zeros([], (Kind::Double, self.anchors.device()));
        if attract > 0.0 {
            let denominator = match form.positives_in_denominator {
                true => sums.q.logaddexp(&sums.z),
                false => &sums.logs / &sums.positives,
            };
            value += (denominator - &sums.clamped / &sums.positives).sum(Kind::Double) * attract;
        }
        if spread > 0.0 {
            value += (&sums.q - &sums.own).sum(Kind::Double) * spread;
        }
        value / anchors_in_all
    }

    /// Pass 3: adds G K to the anchors' gradient [r, d] and G^T U to the candidates' [B, d].
    fn gradient(
        &self,
        sums: &RowSums,
        form: &LossForm,
        scale: f64,
        into: (&mut Tensor, &mut Tensor),
    ) {
        let (attract, spread) = form.weights();
        let (anchors_gradient, candidates_gradient) = into;
        for (tile, (first, candidates, _)) in self.tiles.iter().enumerate() {
            let (s, positive) = self.logits(tile);
            let mut g = s.zeros_like();
            if attract > 0.0 {
                g += attraction(&s, &positive, sums, form) * (attract * scale);
            }
            if spread > 0.0 {
                g += keep(&(&s - &sums.q).exp(), &positive) * (spread * scale);
            }
            _ = anchors_gradient.addmm_(&g, candidates);
            _ = candidates_gradient
                .narrow(0, *first, candidates.size()[0])
                .addmm_(&g.tr(), &self.anchors);
        }
        if spread > 0.0 {
            *anchors_gradient -= &self.own_rows * (spread * scale);
            let mut own = candidates_gradient.narrow(0, self.own, self.len);
            own -= &self.anchors * (spread * scale);
        }
    }
}

/// dL/ds of the mean attraction of each row, [r, c], in closed form. All positives of a row meet
/// its negatives in one scalar, r = 1 - mean of sigmoid(s - z) over P.
fn attraction(s: &Tensor, positive: &Tensor, sums: &RowSums, form: &LossForm) -> Tensor {
    let share = sums.positives.reciprocal(); // [r, 1]
    // The published gradient mask of the clamp is inclusive.
    let pulled = form
        .clamp_positive_logits
        .map_or(positive.shallow_clone(), |most| positive.logical_and(&s.le(most)));
    let pull = pulled.to_kind(s.kind()) * &share;
    if form.positives_in_denominator {
        return (s - sums.q.logaddexp(&sums.z)).exp() - pull;
    }
    let push = &share * keep(&(s - &sums.z).sigmoid(), positive);
    let r = 1.0 - &sums.sigmoids * &share;
    let negative = (s - &sums.z).exp() * r;
    // Where there is no negative, z is -inf and its exponential infinite: select, do not multiply.
    push.where_self(positive, &negative) - pull
}

fn keep(values: &Tensor, mask: &Tensor) -> Tensor {
    values.masked_fill(&mask.logical_not(), 0.0)
}

fn row_sum(values: &Tensor) -> Tensor {
    values.sum_dim_intlist(&[1_i64][..], true, None::<Kind>)
}
