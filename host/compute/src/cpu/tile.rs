//! Matrix products by tiles that stay in registers, for the widest vectors of this processor. The
//! order in which an element's terms are added depends on the depth alone, or, for `inner`, on the
//! depth and the vectors.

use pulp::{Arch, Simd, WithSimd};

/// The rows of a result, wherever they lie.
pub(crate) trait Rows {
    /// A row's elements.
    fn row(&mut self, index: usize) -> &mut [f32];
}

/// Rows one after the other, `stride` elements from one to the next.
pub(crate) struct Dense<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
}

impl Rows for Dense<'_> {
    #[inline(always)]
    fn row(&mut self, index: usize) -> &mut [f32] {
        &mut self.data[index * self.stride..]
    }
}

impl Rows for [&mut [f32]] {
    #[inline(always)]
    fn row(&mut self, index: usize) -> &mut [f32] {
        &mut *self[index]
    }
}

/// A function for each tile's size: M rows by V vectors, with their halves for what is left at the
/// ends.
trait Kernel {
    type Output;
    fn run<S: Simd, const M: usize, const V: usize, const HALF_M: usize, const HALF_V: usize>(
        self,
        simd: S,
    ) -> Self::Output;
}

/// Chooses the tile's size by the width and number of the processor's vector registers.
struct BySize<K>(K);

impl<K: Kernel> WithSimd for BySize<K> {
    type Output = K::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> K::Output {
        match S::F32_LANES {
            16 => self.0.run::<S, 14, 2, 7, 1>(simd),
            8 => self.0.run::<S, 6, 2, 3, 1>(simd),
            4 => self.0.run::<S, 6, 4, 3, 2>(simd),
            _ => self.0.run::<S, 4, 8, 2, 4>(simd),
        }
    }
}

struct Shape;

impl Kernel for Shape {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<S: Simd, const M: usize, const V: usize, const HALF_M: usize, const HALF_V: usize>(
        self,
        _: S,
    ) -> (usize, usize) {
        (M, V * S::F32_LANES)
    }
}

/// Rows of a panel and columns of a strip, which `outer` takes.
pub(crate) fn shape() -> (usize, usize) {
    Arch::new().dispatch(BySize(Shape))
}

/// Elements of a vector.
pub(crate) fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;

        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    Arch::new().dispatch(Lanes)
}

/// The vector at an index.
#[inline(always)]
pub(crate) fn load<S: Simd>(data: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&data[at..at + S::F32_LANES]).0[0]
}

/// Writes the vector at an index.
#[inline(always)]
pub(crate) fn store<S: Simd>(data: &mut [f32], at: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut data[at..at + S::F32_LANES]).0[0] = value;
}

/// Writes `rows` × `depth` values as panels `[rows / panel, depth, panel]`; missing rows are zeros.
#[inline(always)]
pub(crate) fn pack(
    panel: usize,
    (rows, depth): (usize, usize),
    value: impl Fn(usize, usize) -> f32,
    out: &mut [f32],
) {
    for (number, out) in out
        .chunks_exact_mut(panel * depth)
        .take(rows.div_ceil(panel))
        .enumerate()
    {
        let first = number * panel;
        let count = panel.min(rows - first);
        for (k, out) in out.chunks_exact_mut(panel).enumerate() {
            for (i, out) in out[..count].iter_mut().enumerate() {
                *out = value(first + i, k);
            }
            out[count..].fill(0.0);
        }
    }
}

/// A packed operand: its panels or strips start `stride` elements from one another.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

/// out = a·b, or out + a·b where `accumulate`: a in panels `[depth, panel]`, b in strips
/// `[depth, strip]` of `shape`'s sizes, out of `rows` rows of `columns` elements.
pub(crate) fn outer<R: Rows + ?Sized>(
    a: Packed<'_>,
    b: Packed<'_>,
    (rows, depth, columns): (usize, usize, usize),
    out: &mut R,
    accumulate: bool,
) {
    Arch::new().dispatch(BySize(Outer {
        a,
        b,
        size: (rows, depth, columns),
        out,
        accumulate,
    }));
}

struct Outer<'a, R: ?Sized> {
    a: Packed<'a>,
    b: Packed<'a>,
    size: (usize, usize, usize),
    out: &'a mut R,
    accumulate: bool,
}

impl<R: Rows + ?Sized> Kernel for Outer<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const M: usize, const V: usize, const HALF_M: usize, const HALF_V: usize>(
        self,
        simd: S,
    ) {
        let (rows, depth, columns) = self.size;
        let width = V * S::F32_LANES;
        for strip in 0..columns.div_ceil(width) {
            let column = strip * width;
            let end = columns.min(column + width);
            let b = &self.b.data[strip * self.b.stride..][..depth * width];
            let b = S::as_simd_f32s(b).0.as_chunks::<V>().0;
            for panel in 0..rows.div_ceil(M) {
                let a = &self.a.data[panel * self.a.stride..][..depth * M];
                let a = a.as_chunks::<M>().0;
                let row = panel * M;
                if self.accumulate {
                    // They are added to when the product is there.
                    (row..rows.min(row + M))
                        .for_each(|row| prefetch(&self.out.row(row)[column..end]));
                }
                let mut place = Place {
                    out: &mut *self.out,
                    rows: row..rows.min(row + M),
                    columns: column..end,
                    accumulate: self.accumulate,
                };
                match (rows - row <= HALF_M, end - column <= width / 2) {
                    (false, false) => place.write(simd, tile::<S, M, V, M, V>(simd, a, b)),
                    (false, true) => place.write(simd, tile::<S, M, V, M, HALF_V>(simd, a, b)),
                    (true, false) => place.write(simd, tile::<S, M, V, HALF_M, V>(simd, a, b)),
                    (true, true) => {
                        place.write(simd, tile::<S, M, V, HALF_M, HALF_V>(simd, a, b));
                    }
                }
            }
        }
    }
}

/// Asks for a row's elements, up to a strip of them, to be brought into the first cache.
#[inline(always)]
fn prefetch(row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(16) {
        // SAFETY: every x86-64 processor has the instruction, which reads nothing that the program sees.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                line.as_ptr().cast(),
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

/// The product of the first R rows of a panel with the first C vectors of a strip.
#[inline(always)]
fn tile<S: Simd, const M: usize, const V: usize, const R: usize, const C: usize>(
    simd: S,
    a: &[[f32; M]],
    b: &[[S::f32s; V]],
) -> [[S::f32s; C]; R] {
    let mut sums = [[simd.splat_f32s(0.0); C]; R];
    for (a, b) in a.iter().zip(b) {
        for (sums, &a) in sums.iter_mut().zip(a) {
            let a = simd.splat_f32s(a);
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_e_f32s(a, b, *sum);
            }
        }
    }
    sums
}

/// Where a tile's result goes.
struct Place<'a, R: ?Sized> {
    out: &'a mut R,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    accumulate: bool,
}

impl<R: Rows + ?Sized> Place<'_, R> {
    #[inline(always)]
    fn write<S: Simd, const N: usize, const C: usize>(&mut self, simd: S, sums: [[S::f32s; C]; N]) {
        for (row, sums) in self.rows.clone().zip(sums) {
            let row = &mut self.out.row(row)[self.columns.clone()];
            let (whole, rest) = S::as_mut_simd_f32s(row);
            let count = whole.len();
            for (y, &sum) in whole.iter_mut().zip(&sums) {
                *y = if self.accumulate {
                    simd.add_f32s(*y, sum)
                } else {
                    sum
                };
            }
            if let Some(&sum) = sums.get(count).filter(|_| !rest.is_empty()) {
                let sum = if self.accumulate {
                    simd.add_f32s(simd.partial_load_f32s(rest), sum)
                } else {
                    sum
                };
                simd.partial_store_f32s(rest, sum);
            }
        }
    }
}

/// out = a·bᵀ, or out + a·bᵀ where `accumulate`: a `[rows, depth]`, b `[columns, depth]` and out
/// `[rows, columns]`, each with the distance of its rows in elements; nothing is packed.
pub(crate) fn inner(
    a: (&[f32], usize),
    b: (&[f32], usize),
    (rows, depth, columns): (usize, usize, usize),
    out: (&mut [f32], usize),
    accumulate: bool,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    Arch::new().dispatch(Inner {
        a,
        b,
        size: (rows, depth, columns),
        out,
        accumulate,
    });
}

struct Inner<'a> {
    a: (&'a [f32], usize),
    b: (&'a [f32], usize),
    size: (usize, usize, usize),
    out: (&'a mut [f32], usize),
    accumulate: bool,
}

impl WithSimd for Inner<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 | 4 => self.run::<S, 6, 4>(simd),
            8 => self.run::<S, 4, 3>(simd),
            _ => self.run::<S, 4, 4>(simd),
        }
    }
}

impl Inner<'_> {
    #[inline(always)]
    fn run<S: Simd, const M: usize, const N: usize>(self, simd: S) {
        let (rows, depth, columns) = self.size;
        let (out, stride) = self.out;
        for row in (0..rows).step_by(M) {
            let a: [&[f32]; M] = std::array::from_fn(|i| {
                let row = (row + i).min(rows - 1);
                &self.a.0[row * self.a.1..][..depth]
            });
            for column in (0..columns).step_by(N) {
                let b: [&[f32]; N] = std::array::from_fn(|i| {
                    let column = (column + i).min(columns - 1);
                    &self.b.0[column * self.b.1..][..depth]
                });
                let sums = dots::<S, M, N>(simd, a, b);
                for (row, sums) in (row..rows).zip(sums) {
                    let out = &mut out[row * stride..][column..columns];
                    for (y, &sum) in out.iter_mut().zip(&sums) {
                        let sum = simd.reduce_sum_f32s(sum);
                        *y = if self.accumulate { *y + sum } else { sum };
                    }
                }
            }
        }
    }
}

/// Scalar products of M rows with N others, a sum a lane.
#[inline(always)]
fn dots<S: Simd, const M: usize, const N: usize>(
    simd: S,
    a: [&[f32]; M],
    b: [&[f32]; N],
) -> [[S::f32s; N]; M] {
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    let a = a.map(|a| S::as_simd_f32s(a));
    let b = b.map(|b| S::as_simd_f32s(b));
    let count = a[0].0.len();
    let mut add = |a: [S::f32s; M], b: [S::f32s; N]| {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_e_f32s(a, b, *sum);
            }
        }
    };
    let (whole_a, whole_b) = (a.map(|a| &a.0[..count]), b.map(|b| &b.0[..count]));
    for k in 0..count {
        add(whole_a.map(|a| a[k]), whole_b.map(|b| b[k]));
    }
    if !a[0].1.is_empty() {
        add(
            a.map(|a| simd.partial_load_f32s(a.1)),
            b.map(|b| simd.partial_load_f32s(b.1)),
        );
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Numbers between −1 and 1 that differ from one another.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
        (0..count).map(number).collect()
    }

    fn product(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
        let at = |i: usize| {
            let (row, column) = (i / n, i % n);
            let terms = (0..k).map(|l| f64::from(a[row * k + l]) * f64::from(b[column * k + l]));
            terms.sum()
        };
        (0..m * n).map(at).collect()
    }

    fn close(y: &[f32], expected: &[f64], offset: f64) {
        for (y, expected) in y.iter().zip(expected) {
            let error = (f64::from(*y) - offset - expected).abs();
            assert!(error < 1e-4, "{y} is not {expected} + {offset}");
        }
    }

    fn both<S: Simd>(simd: S, (m, k, n): (usize, usize, usize), accumulate: bool) {
        let (a, b) = (numbers(m * k, 1), numbers(n * k, 2));
        let expected = product(&a, &b, (m, k, n));
        let offset = if accumulate { 3.0 } else { 0.0 };
        let start = if accumulate { 3.0 } else { f32::NAN };
        let (panel, strip) = BySize(Shape).with_simd(simd);
        let mut packed_a = vec![f32::NAN; m.next_multiple_of(panel) * k];
        let mut packed_b = vec![f32::NAN; n.next_multiple_of(strip) * k];
        pack(panel, (m, k), |i, l| a[i * k + l], &mut packed_a);
        pack(strip, (n, k), |j, l| b[j * k + l], &mut packed_b);
        let mut out = vec![start; m * n];
        let packed = |data, width| Packed {
            data,
            stride: k * width,
        };
        BySize(Outer {
            a: packed(&packed_a, panel),
            b: packed(&packed_b, strip),
            size: (m, k, n),
            out: &mut Dense {
                data: &mut out,
                stride: n,
            },
            accumulate,
        })
        .with_simd(simd);
        close(&out, &expected, offset);
        out.fill(start);
        Inner {
            a: (&a, k),
            b: (&b, k),
            size: (m, k, n),
            out: (&mut out, n),
            accumulate,
        }
        .with_simd(simd);
        close(&out, &expected, offset);
    }

    struct Both((usize, usize, usize), bool);

    impl WithSimd for Both {
        type Output = ();

        fn with_simd<S: Simd>(self, simd: S) {
            both(simd, self.0, self.1);
        }
    }

    proptest! {
        #[test]
        fn tiles_give_the_product_on_every_width_of_vectors(
            m in 1usize..40, k in 1usize..40, n in 1usize..80, accumulate: bool,
        ) {
            both(pulp::Scalar, (m, k, n), accumulate);
            both(pulp::Scalar128b, (m, k, n), accumulate);
            both(pulp::Scalar256b, (m, k, n), accumulate);
            both(pulp::Scalar512b, (m, k, n), accumulate);
            Arch::new().dispatch(Both((m, k, n), accumulate));
        }
    }
}
