//! The transforms of Winograd's form F(4×4, 3×3) (Lavin and Gray 2016), of vectors with a tile a
//! lane. The points are 0, ±3/4, ±3/2 and ∞, whose relative error is about 1e-6, half of that of the
//! usual 0, ±1, ±2, ∞.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over both axes of small squares, which have to be unrolled"
)]

use pulp::Simd;

/// A transform of a line of N vectors to M.
pub(super) trait Line<S: Simd, const N: usize, const M: usize>: Copy {
    /// The transform along one axis.
    fn along(self, line: [S::f32s; N]) -> [S::f32s; M];

    /// The transform along both axes of a square. Loops, as closures would not be compiled for the
    /// widest vectors.
    #[inline(always)]
    fn both(self, simd: S, square: &[[S::f32s; N]; N]) -> [[S::f32s; M]; M] {
        let zero = simd.splat_f32s(0.0);
        let mut rows = [[zero; M]; N];
        for i in 0..N {
            rows[i] = self.along(square[i]);
        }
        let mut result = [[zero; M]; M];
        for j in 0..M {
            let mut column = [zero; N];
            for i in 0..N {
                column[i] = rows[i][j];
            }
            let column = self.along(column);
            for i in 0..M {
                result[i][j] = column[i];
            }
        }
        result
    }
}

/// The transforms' arithmetic.
#[derive(Clone, Copy)]
struct Arithmetic<S>(S);

impl<S: Simd> Arithmetic<S> {
    /// Σ factor·x.
    #[inline(always)]
    fn sum<const N: usize>(self, terms: [(f32, S::f32s); N]) -> S::f32s {
        let mut sum = self.0.splat_f32s(0.0);
        for (i, (factor, x)) in terms.into_iter().enumerate() {
            sum = if i == 0 && factor == 1.0 {
                x
            } else if i == 0 {
                self.0.mul_f32s(self.0.splat_f32s(factor), x)
            } else {
                self.0.mul_add_e_f32s(self.0.splat_f32s(factor), x, sum)
            };
        }
        sum
    }

    /// a + b and a − b.
    #[inline(always)]
    fn pair(self, a: S::f32s, b: S::f32s) -> (S::f32s, S::f32s) {
        (self.0.add_f32s(a, b), self.0.sub_f32s(a, b))
    }
}

/// Bᵀ, of a window.
#[derive(Clone, Copy)]
pub(super) struct Window<S>(pub(super) S);

impl<S: Simd> Line<S, 6, 6> for Window<S> {
    #[inline(always)]
    fn along(self, d: [S::f32s; 6]) -> [S::f32s; 6] {
        let this = Arithmetic(self.0);
        const FIRST: f32 = 81.0 / 64.0;
        const SECOND: f32 = 45.0 / 16.0;
        let even = this.sum([(1.0, d[4]), (-9.0 / 4.0, d[2])]);
        let odd = this.sum([(0.75, d[3]), (-27.0 / 16.0, d[1])]);
        let (a, b) = this.pair(even, odd);
        let even = this.sum([(1.0, d[4]), (-9.0 / 16.0, d[2])]);
        let odd = this.sum([(1.5, d[3]), (-27.0 / 32.0, d[1])]);
        let (c, e) = this.pair(even, odd);
        [
            this.sum([(1.0, d[4]), (FIRST, d[0]), (-SECOND, d[2])]),
            a,
            b,
            c,
            e,
            this.sum([(1.0, d[5]), (FIRST, d[1]), (-SECOND, d[3])]),
        ]
    }
}

/// Aᵀ, to a tile of results.
#[derive(Clone, Copy)]
pub(super) struct Results<S>(pub(super) S);

impl<S: Simd> Line<S, 6, 4> for Results<S> {
    #[inline(always)]
    fn along(self, m: [S::f32s; 6]) -> [S::f32s; 4] {
        let this = Arithmetic(self.0);
        let (s, d) = this.pair(m[1], m[2]);
        let (t, e) = this.pair(m[3], m[4]);
        [
            this.sum([(1.0, m[0]), (1.0, s), (1.0, t)]),
            this.sum([(0.75, d), (1.5, e)]),
            this.sum([(9.0 / 16.0, s), (9.0 / 4.0, t)]),
            this.sum([(1.0, m[5]), (27.0 / 64.0, d), (27.0 / 8.0, e)]),
        ]
    }
}

/// A, of a tile of the results' gradient.
#[derive(Clone, Copy)]
pub(super) struct Gradient<S>(pub(super) S);

impl<S: Simd> Line<S, 4, 6> for Gradient<S> {
    #[inline(always)]
    fn along(self, y: [S::f32s; 4]) -> [S::f32s; 6] {
        let this = Arithmetic(self.0);
        let even = this.sum([(1.0, y[0]), (9.0 / 16.0, y[2])]);
        let odd = this.sum([(0.75, y[1]), (27.0 / 64.0, y[3])]);
        let (a, b) = this.pair(even, odd);
        let even = this.sum([(1.0, y[0]), (9.0 / 4.0, y[2])]);
        let odd = this.sum([(1.5, y[1]), (27.0 / 8.0, y[3])]);
        let (c, d) = this.pair(even, odd);
        [y[0], a, b, c, d, y[3]]
    }
}

/// G, of a window's weights.
#[derive(Clone, Copy)]
pub(super) struct Weights<S>(pub(super) S);

impl<S: Simd> Line<S, 3, 6> for Weights<S> {
    #[inline(always)]
    fn along(self, g: [S::f32s; 3]) -> [S::f32s; 6] {
        let this = Arithmetic(self.0);
        const A: f32 = -128.0 / 243.0;
        const B: f32 = 32.0 / 243.0;
        let (a, b) = this.pair(
            this.sum([(A, g[0]), (A * 9.0 / 16.0, g[2])]),
            this.sum([(A * 0.75, g[1])]),
        );
        let (c, d) = this.pair(
            this.sum([(B, g[0]), (B * 9.0 / 4.0, g[2])]),
            this.sum([(B * 1.5, g[1])]),
        );
        [this.sum([(64.0 / 81.0, g[0])]), a, b, c, d, g[2]]
    }
}

/// Gᵀ, to the gradient of a window's weights.
#[derive(Clone, Copy)]
pub(super) struct WeightsGradient<S>(pub(super) S);

impl<S: Simd> Line<S, 6, 3> for WeightsGradient<S> {
    #[inline(always)]
    fn along(self, u: [S::f32s; 6]) -> [S::f32s; 3] {
        let this = Arithmetic(self.0);
        const A: f32 = -128.0 / 243.0;
        const B: f32 = 32.0 / 243.0;
        let (s, d) = this.pair(u[1], u[2]);
        let (t, e) = this.pair(u[3], u[4]);
        [
            this.sum([(64.0 / 81.0, u[0]), (A, s), (B, t)]),
            this.sum([(A * 0.75, d), (B * 1.5, e)]),
            this.sum([(1.0, u[5]), (A * 9.0 / 16.0, s), (B * 9.0 / 4.0, t)]),
        ]
    }
}
