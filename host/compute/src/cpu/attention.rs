//! Attention by tiles. Scores are computed transposed, keys by queries, so that a strip of queries
//! lies in the lanes of vectors: their softmax needs no sum across lanes, and the weights are at
//! once the packed operand of the product with the values.

use super::chunks::{Workers, vectorized};
use super::gemm::{Matrix, Source};
use super::math::exp;
use super::tile::{self, Dense, Packed};
use crate::ops::attention::{Attention, Biases, Sizes};
use crate::walk::{Walk, broadcast};

/// Keys of a tile.
const KEYS: usize = 256;
/// Queries that one thread takes forward.
const PART: usize = 256;
/// Queries of a tile backward.
const QUERIES: usize = 128;

/// The operands of an attention, of all heads.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    /// The bias and its shape.
    pub(crate) bias: Option<(&'a [f32], &'a [usize])>,
    /// The leading axes.
    pub(crate) heads: &'a [usize],
    pub(crate) sizes: Sizes,
}

/// The operands of one head.
#[derive(Clone, Copy)]
struct Head<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// The bias's matrix and its strides.
    bias: Option<(&'a [f32], usize, usize)>,
    sizes: Sizes,
    causal: bool,
    scale: f32,
}

impl<'a> Operands<'a> {
    /// Every head, and the number of its bias's matrix.
    fn split(self, attributes: &Attention) -> Vec<(usize, Head<'a>)> {
        let s = self.sizes;
        let biases = self.bias.map(|(data, shape)| (data, Biases::new(shape)));
        let lead = biases.as_ref().map_or(&[][..], |(_, biases)| &biases.lead);
        let walk = Walk::new(self.heads, [&broadcast(lead, self.heads)]);
        let [stride] = walk.inner();
        let mut numbers = Vec::with_capacity(walk.len());
        walk.runs(0, walk.len(), |[at], length| {
            numbers.extend((0..length).map(|step| at + step * stride));
        });
        let head = |(i, number): (usize, usize)| {
            let bias = biases.as_ref().map(|(data, biases)| {
                let matrix = &data[number * biases.matrix..];
                (matrix, biases.row, biases.column)
            });
            let head = Head {
                q: &self.q[i * s.queries * s.features..][..s.queries * s.features],
                k: &self.k[i * s.keys * s.features..][..s.keys * s.features],
                v: &self.v[i * s.keys * s.values..][..s.keys * s.values],
                bias,
                sizes: s,
                causal: attributes.causal,
                scale: attributes.scale as f32,
            };
            (number, head)
        };
        numbers.into_iter().enumerate().map(head).collect()
    }
}

/// Calls a function for the processor's width of a strip of queries.
macro_rules! by_width {
    ($function:ident($($argument:expr),*)) => {
        match tile::shape() {
            (panel, 8) => $function::<8>(panel, $($argument),*),
            (panel, 16) => $function::<16>(panel, $($argument),*),
            (panel, _) => $function::<32>(panel, $($argument),*),
        }
    };
}

/// out `[heads, queries, values + 1]`: the results, and ln Σ exp of the scores.
pub(crate) fn attention(
    workers: Workers<'_>,
    attributes: &Attention,
    operands: Operands<'_>,
    out: &mut [f32],
) {
    let s = operands.sizes;
    let part = s
        .queries
        .div_ceil(s.queries.div_ceil(PART))
        .next_multiple_of(32);
    let mut parts = Vec::new();
    let heads = operands.split(attributes);
    for ((_, head), out) in heads
        .into_iter()
        .zip(out.chunks_mut(s.queries * (s.values + 1)))
    {
        let out = out.chunks_mut(part * (s.values + 1)).enumerate();
        parts.extend(out.map(|(i, out)| (head, i * part, out)));
    }
    workers.each(parts, |(head, first, out)| {
        by_width!(forward(workers, head, first, out))
    });
}

/// out: for every head the gradients of q, k and v.
pub(crate) fn gradient(
    workers: Workers<'_>,
    attributes: &Attention,
    operands: Operands<'_>,
    (y, dy): (&[f32], &[f32]),
    out: &mut [f32],
) {
    let s = operands.sizes;
    let (row, size) = (
        s.queries * (s.values + 1),
        s.queries * s.features + s.keys * (s.features + s.values),
    );
    let heads = operands.split(attributes).into_iter();
    let results = y.chunks_exact(row).zip(dy.chunks_exact(row));
    let items = heads.zip(results).zip(out.chunks_exact_mut(size));
    workers.each(items.collect(), |(((_, head), results), out)| {
        by_width!(backward(workers, head, results, out))
    });
}

/// out `[…, queries, keys]`: the gradients of the scores, added up over the heads of each matrix of
/// the bias.
pub(crate) fn bias_gradient(
    workers: Workers<'_>,
    attributes: &Attention,
    operands: Operands<'_>,
    (y, dy): (&[f32], &[f32]),
    out: &mut [f32],
) {
    let s = operands.sizes;
    let row = s.queries * (s.values + 1);
    let heads = operands.split(attributes);
    workers.chunks(out, s.queries * s.keys, |matrix, out| {
        out.fill(0.0);
        let results = y.chunks_exact(row).zip(dy.chunks_exact(row));
        for (&(number, head), results) in heads.iter().zip(results) {
            if number == matrix && !workers.cancelled() {
                by_width!(score_gradient(head, results, out));
            }
        }
    });
}

impl<'a> Head<'a> {
    /// How many of `count` keys from `start` on some of `width` queries from `first` on see.
    fn seen(&self, (first, width): (usize, usize), (start, count): (usize, usize)) -> usize {
        if self.causal {
            (first + width).saturating_sub(start).min(count)
        } else {
            count
        }
    }

    /// Strips of queries `[queries / W, features, W]`, scaled.
    fn pack_queries<const W: usize>(&self, first: usize, count: usize, out: &mut [f32]) {
        let source = Source::new(
            Matrix::new(self.q, self.sizes.queries, self.sizes.features),
            first,
            0,
        );
        source.pack(W, (count, self.sizes.features), out);
        let used = &mut out[..count.next_multiple_of(W) * self.sizes.features];
        used.iter_mut().for_each(|x| *x *= self.scale);
    }

    fn keys(&self) -> Matrix<'a> {
        Matrix::new(self.k, self.sizes.keys, self.sizes.features)
    }

    fn values(&self) -> Matrix<'a> {
        Matrix::new(self.v, self.sizes.keys, self.sizes.values)
    }

    /// Adds the bias to scores of keys from `start` on, and hides keys after their queries.
    fn adjust<const W: usize>(&self, first: usize, start: usize, scores: &mut [[f32; W]]) {
        if let Some((bias, row, column)) = self.bias {
            let count = W.min(self.sizes.queries - first);
            for (key, scores) in (start..).zip(&mut *scores) {
                let at = first * row + key * column;
                for (lane, score) in scores[..count].iter_mut().enumerate() {
                    *score += bias[at + lane * row];
                }
            }
        }
        if self.causal {
            for (key, scores) in (start..)
                .zip(scores)
                .skip((first + 1).saturating_sub(start))
            {
                for (lane, score) in scores.iter_mut().enumerate() {
                    if key > first + lane {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

fn packed(data: &[f32], stride: usize) -> Packed<'_> {
    Packed { data, stride }
}

/// Results of queries from `first` on.
fn forward<const W: usize>(
    panel: usize,
    workers: Workers<'_>,
    head: Head<'_>,
    first: usize,
    out: &mut [f32],
) {
    let s = head.sizes;
    let rows = out.len() / (s.values + 1);
    let strips = rows.div_ceil(W);
    let most = KEYS.min(s.keys);
    let mut queries = vec![0.0; strips * W * s.features];
    head.pack_queries::<W>(first, rows, &mut queries);
    let mut keys = vec![0.0; most.next_multiple_of(panel) * s.features];
    let mut values = vec![0.0; s.values.next_multiple_of(panel) * most];
    let mut scores = vec![0.0; most * W];
    let mut sums = vec![0.0; strips * s.values * W];
    let mut largest = vec![[f32::NEG_INFINITY; W]; strips];
    let mut totals = vec![[0.0; W]; strips];
    for start in (0..s.keys).step_by(KEYS) {
        let count = KEYS.min(s.keys - start);
        if head.seen((first, rows), (start, count)) == 0 || workers.cancelled() {
            break;
        }
        let of_keys = Source::new(head.keys(), start, 0);
        of_keys.pack(panel, (count, s.features), &mut keys);
        let of_values = Source::new(head.values().transposed(), 0, start);
        of_values.pack(panel, (s.values, count), &mut values);
        for strip in 0..strips {
            let query = first + strip * W;
            let seen = head.seen((query, W), (start, count));
            if seen == 0 {
                continue;
            }
            let scores = &mut scores[..seen * W];
            let of_queries = packed(&queries[strip * W * s.features..], W * s.features);
            let size = (seen, s.features, W);
            let data = Dense {
                data: &mut *scores,
                stride: W,
            };
            product(
                packed(&keys, panel * s.features),
                of_queries,
                size,
                data,
                false,
            );
            let scores = scores.as_chunks_mut::<W>().0;
            head.adjust(query, start, scores);
            let sums = &mut sums[strip * s.values * W..][..s.values * W];
            let state = (&mut largest[strip], &mut totals[strip]);
            weigh(scores, state, sums.as_chunks_mut::<W>().0);
            let weights = packed(scores.as_flattened(), W * seen);
            let data = Dense {
                data: sums,
                stride: W,
            };
            product(
                packed(&values, panel * count),
                weights,
                (s.values, seen, W),
                data,
                true,
            );
        }
    }
    for (i, out) in out.chunks_exact_mut(s.values + 1).enumerate() {
        let (strip, lane) = (i / W, i % W);
        let total = totals[strip][lane];
        let scale = 1.0 / total;
        let sums = sums[strip * s.values * W..].as_chunks::<W>().0;
        for (y, sums) in out[..s.values].iter_mut().zip(sums) {
            *y = sums[lane] * scale;
        }
        out[s.values] = largest[strip][lane] + total.ln();
    }
}

/// `tile::outer` with a dense result.
fn product(
    a: Packed<'_>,
    b: Packed<'_>,
    size: (usize, usize, usize),
    mut out: Dense<'_>,
    accumulate: bool,
) {
    tile::outer(a, b, size, &mut out, accumulate);
}

/// Makes scores weights, relative to the largest score of each query so far, and scales what was
/// summed before to that.
fn weigh<const W: usize>(
    scores: &mut [[f32; W]],
    (largest, totals): (&mut [f32; W], &mut [f32; W]),
    sums: &mut [[f32; W]],
) {
    vectorized(
        #[inline(always)]
        || {
            let mut most = *largest;
            for scores in &*scores {
                for (most, &score) in most.iter_mut().zip(scores) {
                    *most = if score > *most { score } else { *most };
                }
            }
            // Where all is hidden so far, weights are 0 and not exp(∞ − ∞).
            let shift = most.map(|most| if most == f32::NEG_INFINITY { 0.0 } else { most });
            let mut keep = [0.0; W];
            for ((keep, &before), &shift) in keep.iter_mut().zip(&*largest).zip(&shift) {
                *keep = exp(before - shift);
            }
            let mut added = [0.0; W];
            for scores in scores {
                for ((score, added), &shift) in scores.iter_mut().zip(&mut added).zip(&shift) {
                    *score = exp(*score - shift);
                    *added += *score;
                }
            }
            for ((total, &keep), &added) in totals.iter_mut().zip(&keep).zip(&added) {
                *total = *total * keep + added;
            }
            for sums in sums {
                sums.iter_mut()
                    .zip(&keep)
                    .for_each(|(sum, &keep)| *sum *= keep);
            }
            *largest = most;
        },
    );
}

/// What the gradients of a tile of queries need, packed.
struct Queries<const W: usize> {
    first: usize,
    count: usize,
    /// `[strips, features, W]`, scaled.
    q: Vec<f32>,
    /// `[strips, values, W]`.
    dy: Vec<f32>,
    /// Of each strip: ln Σ exp of the scores, and Σ dy·y.
    sums: Vec<([f32; W], [f32; W])>,
}

impl<const W: usize> Queries<W> {
    fn new(head: &Head<'_>, most: usize) -> Self {
        let strips = most.min(head.sizes.queries).div_ceil(W);
        Self {
            first: 0,
            count: 0,
            q: vec![0.0; strips * W * head.sizes.features],
            dy: vec![0.0; strips * W * head.sizes.values],
            sums: vec![([0.0; W], [0.0; W]); strips],
        }
    }

    fn load(&mut self, head: &Head<'_>, (y, dy): (&[f32], &[f32]), first: usize, count: usize) {
        let values = head.sizes.values;
        (self.first, self.count) = (first, count);
        head.pack_queries::<W>(first, count, &mut self.q);
        let of = Source::new(Matrix::new(dy, head.sizes.queries, values + 1), first, 0);
        of.pack(W, (count, values), &mut self.dy);
        // Queries that there are not have no weight.
        self.sums.fill(([f32::INFINITY; W], [0.0; W]));
        let rows = y.chunks_exact(values + 1).zip(dy.chunks_exact(values + 1));
        for (i, (y, dy)) in rows.skip(first).take(count).enumerate() {
            let (logs, products) = &mut self.sums[i / W];
            logs[i % W] = y[values];
            let terms = y[..values]
                .iter()
                .zip(dy)
                .map(|(&y, &dy)| f64::from(y) * f64::from(dy));
            products[i % W] = terms.sum::<f64>() as f32;
        }
    }

    fn strips(&self) -> usize {
        self.count.div_ceil(W)
    }

    /// Weights and the gradients of scores of a strip and `seen` keys from `start` on, both
    /// `[seen, W]`.
    fn scores(
        &self,
        head: &Head<'_>,
        (keys, values): (Packed<'_>, Packed<'_>),
        (strip, start, seen): (usize, usize, usize),
        (weights, gradients): (&mut [f32], &mut [f32]),
    ) {
        let s = head.sizes;
        let q = packed(&self.q[strip * W * s.features..], W * s.features);
        let data = Dense {
            data: &mut *weights,
            stride: W,
        };
        product(keys, q, (seen, s.features, W), data, false);
        let dy = packed(&self.dy[strip * W * s.values..], W * s.values);
        let data = Dense {
            data: &mut *gradients,
            stride: W,
        };
        product(values, dy, (seen, s.values, W), data, false);
        let weights = weights.as_chunks_mut::<W>().0;
        head.adjust(self.first + strip * W, start, weights);
        let (logs, products) = &self.sums[strip];
        vectorized(
            #[inline(always)]
            || {
                for (weights, gradients) in weights.iter_mut().zip(gradients.as_chunks_mut::<W>().0)
                {
                    let pairs = weights.iter_mut().zip(gradients.iter_mut());
                    for ((weight, gradient), (&log, &product)) in
                        pairs.zip(logs.iter().zip(products))
                    {
                        *weight = exp(*weight - log);
                        *gradient = *weight * (*gradient - product);
                    }
                }
            },
        );
    }
}

/// Writes strips `[strips, KEYS, W]` of keys as panels of keys `[keys / panel, strips·W, panel]`.
fn turn<const W: usize>(panel: usize, strips: usize, count: usize, from: &[f32], out: &mut [f32]) {
    for strip in 0..strips {
        let source = Source::new(Matrix::new(&from[strip * KEYS * W..], count, W), 0, 0);
        source.pack_within(panel, (count, W), (strips * W, strip * W), out);
    }
}

fn backward<const W: usize>(
    panel: usize,
    workers: Workers<'_>,
    head: Head<'_>,
    (y, dy): (&[f32], &[f32]),
    out: &mut [f32],
) {
    let s = head.sizes;
    let (dq, rest) = out.split_at_mut(s.queries * s.features);
    let (dk, dv) = rest.split_at_mut(s.keys * s.features);
    dq.fill(0.0);
    dk.fill(0.0);
    dv.fill(0.0);
    let most = KEYS.min(s.keys);
    let wide = QUERIES.min(s.queries.next_multiple_of(W));
    let room = |lines: usize, terms: usize| vec![0.0; lines.next_multiple_of(panel) * terms];
    let mut keys = room(most, s.features);
    let mut turned = room(s.features, most);
    let mut values = room(most, s.values);
    let mut panels = room(most, wide);
    let mut of_queries = vec![0.0; s.features.next_multiple_of(W) * wide];
    let mut of_results = vec![0.0; s.values.next_multiple_of(W) * wide];
    let mut weights = vec![0.0; wide / W * KEYS * W];
    let mut gradients = weights.clone();
    let mut sums = vec![0.0; s.features * W];
    let mut tile = Queries::<W>::new(&head, QUERIES);
    for start in (0..s.keys).step_by(KEYS) {
        let count = KEYS.min(s.keys - start);
        Source::new(head.keys(), start, 0).pack(panel, (count, s.features), &mut keys);
        let of = Source::new(head.keys().transposed(), 0, start);
        of.pack(panel, (s.features, count), &mut turned);
        Source::new(head.values(), start, 0).pack(panel, (count, s.values), &mut values);
        let (dk, dv) = (
            &mut dk[start * s.features..][..count * s.features],
            &mut dv[start * s.values..][..count * s.values],
        );
        for first in (0..s.queries).step_by(QUERIES) {
            let rows = QUERIES.min(s.queries - first);
            if head.seen((first, rows), (start, count)) == 0 {
                continue;
            }
            if workers.cancelled() {
                return;
            }
            tile.load(&head, (y, dy), first, rows);
            let (strips, terms) = (tile.strips(), tile.strips() * W);
            of_queries.fill(0.0);
            let of = Source::new(
                Matrix::new(head.q, s.queries, s.features).transposed(),
                0,
                first,
            );
            of.pack_within(W, (s.features, rows), (terms, 0), &mut of_queries);
            of_results.fill(0.0);
            let of = Source::new(
                Matrix::new(dy, s.queries, s.values + 1).transposed(),
                0,
                first,
            );
            of.pack_within(W, (s.values, rows), (terms, 0), &mut of_results);
            for strip in 0..strips {
                let query = first + strip * W;
                let seen = head.seen((query, W), (start, count));
                let weights = &mut weights[strip * KEYS * W..][..count * W];
                let gradients = &mut gradients[strip * KEYS * W..][..count * W];
                weights[seen * W..].fill(0.0);
                gradients[seen * W..].fill(0.0);
                if seen == 0 {
                    continue;
                }
                let operands = (
                    packed(&keys, panel * s.features),
                    packed(&values, panel * s.values),
                );
                let results = (&mut weights[..seen * W], &mut gradients[..seen * W]);
                tile.scores(&head, operands, (strip, start, seen), results);
                let size = (s.features, seen, W);
                let of_gradients = packed(&*gradients, seen * W);
                let data = Dense {
                    data: &mut sums,
                    stride: W,
                };
                product(
                    packed(&turned, panel * count),
                    of_gradients,
                    size,
                    data,
                    false,
                );
                let dq = dq[query * s.features..]
                    .chunks_exact_mut(s.features)
                    .take(W);
                for (lane, dq) in dq.enumerate() {
                    for (d, sums) in dq.iter_mut().zip(sums.as_chunks::<W>().0) {
                        *d += head.scale * sums[lane];
                    }
                }
            }
            turn::<W>(panel, strips, count, &weights, &mut panels);
            let (of, data) = (
                packed(&of_results, W * terms),
                Dense {
                    data: &mut *dv,
                    stride: s.values,
                },
            );
            product(
                packed(&panels, panel * terms),
                of,
                (count, terms, s.values),
                data,
                true,
            );
            turn::<W>(panel, strips, count, &gradients, &mut panels);
            let (of, data) = (
                packed(&of_queries, W * terms),
                Dense {
                    data: &mut *dk,
                    stride: s.features,
                },
            );
            product(
                packed(&panels, panel * terms),
                of,
                (count, terms, s.features),
                data,
                true,
            );
        }
        dk.iter_mut().for_each(|d| *d *= head.scale);
    }
}

/// Adds the gradients of a head's scores to out `[queries, keys]`.
fn score_gradient<const W: usize>(
    panel: usize,
    head: Head<'_>,
    results: (&[f32], &[f32]),
    out: &mut [f32],
) {
    let s = head.sizes;
    let most = KEYS.min(s.keys);
    let mut keys = vec![0.0; most.next_multiple_of(panel) * s.features];
    let mut values = vec![0.0; most.next_multiple_of(panel) * s.values];
    let (mut weights, mut gradients) = (vec![0.0; most * W], vec![0.0; most * W]);
    let mut tile = Queries::<W>::new(&head, W);
    for start in (0..s.keys).step_by(KEYS) {
        let count = KEYS.min(s.keys - start);
        Source::new(head.keys(), start, 0).pack(panel, (count, s.features), &mut keys);
        Source::new(head.values(), start, 0).pack(panel, (count, s.values), &mut values);
        for first in (0..s.queries).step_by(W) {
            let rows = W.min(s.queries - first);
            let seen = head.seen((first, rows), (start, count));
            if seen == 0 {
                continue;
            }
            tile.load(&head, results, first, rows);
            let operands = (
                packed(&keys, panel * s.features),
                packed(&values, panel * s.values),
            );
            let both = (&mut weights[..seen * W], &mut gradients[..seen * W]);
            tile.scores(&head, operands, (0, start, seen), both);
            let of_keys = gradients.as_chunks::<W>().0;
            for (query, out) in out
                .chunks_exact_mut(s.keys)
                .skip(first)
                .take(rows)
                .enumerate()
            {
                let out = out[start..start + seen].iter_mut();
                out.zip(of_keys).for_each(|(d, lanes)| *d += lanes[query]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let number = |i| crate::random::unit(seed.wrapping_mul(1 << 40).wrapping_add(i)) as f32;
        (0..count as u64).map(|i| 4.0 * number(i) - 2.0).collect()
    }

    /// The result of one head with ln Σ exp, and the gradients of q, k, v and the scores, by the
    /// definition in float64.
    fn definition(head: &Head<'_>, dy: &[f32]) -> (Vec<f64>, [Vec<f64>; 3], Vec<f64>) {
        let s = head.sizes;
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (q, k, v, dy) = (wide(head.q), wide(head.k), wide(head.v), wide(dy));
        let scale = f64::from(head.scale);
        let mut y = Vec::new();
        let mut d = [&q, &k, &v].map(|x| vec![0.0; x.len()]);
        let mut of_scores = vec![0.0; s.queries * s.keys];
        for query in 0..s.queries {
            let last = if head.causal {
                s.keys.min(query + 1)
            } else {
                s.keys
            };
            let score = |key: usize| {
                let pairs =
                    (0..s.features).map(|i| q[query * s.features + i] * k[key * s.features + i]);
                let bias = head
                    .bias
                    .map_or(0.0, |(b, row, column)| b[query * row + key * column]);
                scale * pairs.sum::<f64>() + f64::from(bias)
            };
            let scores: Vec<f64> = (0..last).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|x| (x - largest).exp()).sum();
            let weights: Vec<f64> = scores.iter().map(|x| (x - largest).exp() / sum).collect();
            let dy = &dy[query * (s.values + 1)..][..s.values];
            let v_of = |key: usize| &v[key * s.values..][..s.values];
            y.extend((0..s.values).map(|i| {
                (0..last)
                    .map(|key| weights[key] * v_of(key)[i])
                    .sum::<f64>()
            }));
            y.push(largest + sum.ln());
            let along: Vec<f64> = (0..last)
                .map(|key| v_of(key).iter().zip(dy).map(|(v, dy)| v * dy).sum())
                .collect();
            let mean: f64 = weights.iter().zip(&along).map(|(w, a)| w * a).sum();
            for key in 0..last {
                let slope = weights[key] * (along[key] - mean);
                of_scores[query * s.keys + key] = slope;
                for i in 0..s.features {
                    d[0][query * s.features + i] += scale * slope * k[key * s.features + i];
                    d[1][key * s.features + i] += scale * slope * q[query * s.features + i];
                }
                for i in 0..s.values {
                    d[2][key * s.values + i] += weights[key] * dy[i];
                }
            }
        }
        (y, d, of_scores)
    }

    /// `least` is the size of an element below which errors count as of one of that size.
    fn close(got: &[f32], expected: &[f64], least: f64) -> Result<(), TestCaseError> {
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        prop_assert_eq!(got.len(), expected.len());
        let pairs = got.iter().zip(expected);
        let difference = norm(&mut pairs.map(|(&a, &b)| f64::from(a) - b));
        let least = least * (expected.len() as f64).sqrt();
        let size = norm(&mut expected.iter().copied()).max(least);
        prop_assert!(difference / size <= 1e-5, "error {}", difference / size);
        Ok(())
    }

    fn check(
        s: Sizes,
        heads: [usize; 2],
        causal: bool,
        bias: Option<&[usize]>,
    ) -> Result<(), TestCaseError> {
        let count = heads[0] * heads[1];
        let row = s.queries * (s.values + 1);
        let (q, k, v) = (
            numbers(count * s.queries * s.features, 1),
            numbers(count * s.keys * s.features, 2),
            numbers(count * s.keys * s.values, 3),
        );
        let biases = bias.map(|shape| numbers(shape.iter().product(), 4));
        let operands = Operands {
            q: &q,
            k: &k,
            v: &v,
            bias: biases.as_deref().zip(bias),
            heads: &heads,
            sizes: s,
        };
        let attributes = Attention { causal, scale: 0.3 };
        let dy = numbers(count * row, 5);
        let size = s.queries * s.features + s.keys * (s.features + s.values);
        let matrices = bias.map_or(0, |shape| shape[..shape.len() - 2].iter().product());
        let run = |many: bool| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(3)
                .build()
                .unwrap();
            pool.install(|| {
                let workers = Workers::new(many, &NEVER);
                let mut y = vec![f32::NAN; count * row];
                attention(workers, &attributes, operands, &mut y);
                let mut d = vec![f32::NAN; count * size];
                gradient(workers, &attributes, operands, (&y, &dy), &mut d);
                let mut of_scores = vec![f32::NAN; matrices * s.queries * s.keys];
                if bias.is_some() {
                    bias_gradient(workers, &attributes, operands, (&y, &dy), &mut of_scores);
                }
                (y, d, of_scores)
            })
        };
        let (y, d, of_scores) = run(false);
        prop_assert_eq!(&(y.clone(), d.clone(), of_scores.clone()), &run(true));
        // Where a query sees a single key the slopes are 0, but for the rounding of terms of about 1 that cancel.
        let single = 0.05 * ((s.values * s.features) as f64).sqrt();
        let one = s.keys == 1 || (causal && s.queries == 1);
        let least = if one { single } else { 1e-3 };
        let mut sums = vec![0.0; of_scores.len()];
        for (i, (matrix, head)) in operands.split(&attributes).into_iter().enumerate() {
            let (expected, [dq, dk, dv], slopes) = definition(&head, &dy[i * row..][..row]);
            close(&y[i * row..][..row], &expected, 1e-3)?;
            let d = &d[i * size..][..size];
            let (first, second) = (dq.len(), dq.len() + dk.len());
            close(&d[..first], &dq, least)?;
            close(&d[first..second], &dk, least)?;
            close(&d[second..], &dv, 1e-3)?;
            if bias.is_some() {
                let sums = &mut sums[matrix * slopes.len()..][..slopes.len()];
                sums.iter_mut()
                    .zip(slopes)
                    .for_each(|(sum, slope)| *sum += slope);
            }
        }
        if bias.is_some() {
            close(&of_scores, &sums, least)?;
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn attention_of_any_size_is_right_on_any_number_of_threads(
            queries in 1usize..330, keys in 1usize..330, features in 1usize..40,
            values in 1usize..40, heads in [1usize..3, 1usize..3], causal: bool, bias in 0usize..5,
        ) {
            let s = Sizes { queries, keys, features, values };
            let shapes = [
                vec![heads[1], queries, keys],
                vec![heads[0], 1, 1, keys],
                vec![queries, 1],
                vec![heads[0], heads[1], queries, keys],
            ];
            check(s, heads, causal, shapes.get(bias).map(Vec::as_slice))?;
        }
    }

    #[test]
    fn keys_that_are_hidden_from_every_tile_but_the_last_count_there() {
        let s = Sizes {
            queries: 3,
            keys: 2 * KEYS + 5,
            features: 4,
            values: 2,
        };
        let (q, k) = (numbers(s.queries * 4, 1), numbers(s.keys * 4, 2));
        let v = numbers(s.keys * 2, 3);
        let mut bias = vec![f32::NEG_INFINITY; s.keys];
        bias[s.keys - 1] = 0.0;
        let operands = Operands {
            q: &q,
            k: &k,
            v: &v,
            bias: Some((&bias, &[s.keys])),
            heads: &[1],
            sizes: s,
        };
        let attributes = Attention {
            causal: false,
            scale: 1.0,
        };
        let mut y = vec![0.0; s.queries * 3];
        attention(Workers::new(false, &NEVER), &attributes, operands, &mut y);
        for y in y.chunks_exact(3) {
            assert_eq!(y[..2], v[v.len() - 2..]);
        }
    }
}
