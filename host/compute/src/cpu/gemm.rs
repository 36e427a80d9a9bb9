//! Matrix products: operands packed in blocks that fit the caches, multiplied by `tile`. The order in
//! which an element's terms are added depends on the shapes and the vectors alone.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::thread::LocalKey;

use super::chunks::{Workers, vectorized};
use super::tile::{self, Packed, Rows};

/// Terms of a product that are added before its result is written, at most: a strip of so many rows
/// stays in the first cache.
const DEPTH: usize = 256;
/// Elements of the left operand that are packed at a time: with the right operand's strips they stay
/// in the third cache.
const PACKED: usize = 1 << 20;
/// Rows of the left operand that are packed at a time, at most; for each such group of rows the right
/// operand is packed again.
const ROWS: usize = 2048;
/// Rows that are multiplied by a block of strips before the next: both stay in the second cache.
const BLOCK_ROWS: usize = 144;
/// Columns of a thread's block, at least and at most.
const BLOCK_COLUMNS: (usize, usize) = (96, 256);
/// Blocks that a product is divided into where its sizes allow it.
const BLOCKS: usize = 16;
/// Multiplications of a product that is not worth dividing.
const SMALL: usize = 1 << 17;
/// Rows or columns of a result up to which operands are not packed.
const SKINNY: usize = 16;
/// Elements of an operand that is read once, of a thread's part.
const PART: usize = 1 << 15;
/// Elements of the left operand that a thread packs at a time.
const PIECE: usize = 1 << 16;

/// A row-major matrix of `rows` × `columns`, or the transpose of one.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// The first `rows` × `columns` elements of `data`.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self {
            data: &data[..rows * columns],
            rows,
            columns,
            row_stride: columns,
            column_stride: 1,
        }
    }

    /// The transpose.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    pub(super) fn transposed_if(self, transpose: bool) -> Self {
        if transpose { self.transposed() } else { self }
    }

    /// Whether neighbours in a row are neighbours in memory.
    fn contiguous(self) -> bool {
        self.column_stride == 1
    }
}

/// A block of a row-major result, of which no two threads have elements in common.
struct Block<'a> {
    /// The result's first element.
    out: *mut f32,
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: a block is the only one with access to its elements, so that it may be another thread's.
unsafe impl Send for Block<'_> {}

impl Block<'_> {
    /// Some of the block's rows, counted from its first.
    fn part(&mut self, rows: Range<usize>) -> Block<'_> {
        assert!(rows.end <= self.rows.len());
        Block {
            out: self.out,
            width: self.width,
            rows: self.rows.start + rows.start..self.rows.start + rows.end,
            columns: self.columns.clone(),
            life: PhantomData,
        }
    }

    /// Calls `finish` with every row: the number of its first element in the result, and the elements.
    fn finish(&mut self, finish: impl Fn(usize, &mut [f32])) {
        for i in 0..self.rows.len() {
            let first = (self.rows.start + i) * self.width + self.columns.start;
            finish(first, self.row(i));
        }
    }
}

impl Rows for Block<'_> {
    #[inline(always)]
    fn row(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.rows.len());
        let first = (self.rows.start + index) * self.width + self.columns.start;
        // SAFETY: `blocks` gives ranges within the result, which is borrowed mutably for the blocks'
        // life, and no element to two blocks; a part of a block borrows it; the row borrows the block.
        unsafe { std::slice::from_raw_parts_mut(self.out.add(first), self.columns.len()) }
    }
}

/// Divides a result of `width` columns into blocks of at most so many rows and columns.
fn blocks(out: &mut [f32], width: usize, (rows, columns): (usize, usize)) -> Vec<Block<'_>> {
    let height = out.len() / width;
    let first = out.as_mut_ptr();
    let of = |row: usize| {
        let down = row..height.min(row + rows);
        (0..width).step_by(columns).map(move |column| Block {
            out: first,
            width,
            rows: down.clone(),
            columns: column..width.min(column + columns),
            life: PhantomData,
        })
    };
    (0..height).step_by(rows).flat_map(of).collect()
}

/// out = a·b, or out + a·b where `accumulate`; out is row-major.
pub(crate) fn gemm(
    workers: Workers<'_>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    accumulate: bool,
) {
    gemm_with(workers, a, b, out, accumulate, |_, _| {});
}

/// The same, and `finish` is called once with every piece of a row that is done, while it is in cache:
/// the number of its first element in the result, and the piece.
pub(crate) fn gemm_with(
    workers: Workers<'_>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    accumulate: bool,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(b.rows == k && out.len() >= m * n);
    let out = &mut out[..m * n];
    if out.is_empty() {
        return;
    }
    let workers = if m * n * k <= SMALL {
        workers.alone()
    } else {
        workers
    };
    if m.min(n) <= SKINNY && a.contiguous() && b.transposed().contiguous() {
        skinny(workers, a, b, out, accumulate, finish);
    } else {
        packed(workers, a, b, out, accumulate, finish);
    }
}

/// A product of few rows or columns: each element is an inner product of rows as they lie in memory,
/// so that the larger operand is read once.
fn skinny(
    workers: Workers<'_>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    accumulate: bool,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    let part = (PART / k.max(1)).max(SKINNY);
    let size = if m <= n { (m, part) } else { (part, n) };
    workers.each(blocks(out, n, size), |mut block| {
        let (rows, columns) = (block.rows.clone(), block.columns.clone());
        let mut sums = vec![0.0; rows.len() * columns.len()];
        tile::inner(
            (&a.data[rows.start * k..rows.end * k], k),
            (&b.data[columns.start * k..columns.end * k], k),
            (rows.len(), k, columns.len()),
            (&mut sums, columns.len()),
            false,
        );
        for (i, sums) in sums.chunks_exact(columns.len()).enumerate() {
            let row = block.row(i);
            if accumulate {
                row.iter_mut().zip(sums).for_each(|(y, &sum)| *y += sum);
            } else {
                row.copy_from_slice(sums);
            }
        }
        block.finish(&finish);
    });
}

fn packed(
    workers: Workers<'_>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    accumulate: bool,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    let (panel, strip) = tile::shape();
    // Groups of rows and pieces of terms of about the same size.
    let most_rows = m.div_ceil(m.div_ceil(ROWS)).next_multiple_of(panel);
    let steps = k.div_ceil(DEPTH).max(1);
    let step_depth = k.div_ceil(steps).next_multiple_of(8).max(8);
    let most_depth = (PACKED / most_rows / step_depth).max(1) * step_depth;
    let column_part = n
        .div_ceil(BLOCKS)
        .clamp(BLOCK_COLUMNS.0, BLOCK_COLUMNS.1)
        .next_multiple_of(strip);
    let block_rows = BLOCK_ROWS / panel * panel;
    let mut panels = take_room(&PANELS, most_rows * most_depth.min(k));
    for (row, out) in (0..m).step_by(most_rows).zip(out.chunks_mut(most_rows * n)) {
        let rows = out.len() / n;
        let parts = (BLOCKS / 2).div_ceil(n.div_ceil(column_part));
        let row_part = rows.div_ceil(parts).next_multiple_of(panel);
        for from in (0..k).step_by(most_depth) {
            let depth = most_depth.min(k - from);
            let a = Source::new(a, row, from);
            let used = &mut panels[..rows.next_multiple_of(panel) * depth];
            let size = (PIECE / (panel * depth)).max(1) * panel;
            workers.chunks(used, size * depth, |i, panels| {
                let first = i * size;
                a.part(first)
                    .pack(panel, (size.min(rows - first), depth), panels);
            });
            let panels = &*used;
            workers.each(blocks(out, n, (row_part, column_part)), |mut block| {
                let columns = block.columns.len();
                let wide = columns.next_multiple_of(strip);
                let mut strips = take_room(&STRIPS, wide * step_depth.min(depth));
                for step in (0..depth).step_by(step_depth) {
                    let terms = step_depth.min(depth - step);
                    let b = Source::new(b.transposed(), block.columns.start, from + step);
                    b.pack(strip, (columns, terms), &mut strips);
                    let strips = Packed {
                        data: &strips[..],
                        stride: strip * terms,
                    };
                    let (start, count) = (block.rows.start, block.rows.len());
                    for first in (0..count).step_by(block_rows) {
                        if workers.cancelled() {
                            break;
                        }
                        let last = count.min(first + block_rows);
                        let mut part = block.part(first..last);
                        let panels = Packed {
                            data: &panels[(start + first) * depth + step * panel..],
                            stride: panel * depth,
                        };
                        let size = (last - first, terms, columns);
                        let more = accumulate || from + step > 0;
                        tile::outer(panels, strips, size, &mut part, more);
                        if from + step + terms == k {
                            part.finish(|first, piece| finish(row * n + first, piece));
                        }
                    }
                }
                STRIPS.set(strips);
            });
        }
    }
    PANELS.set(panels);
}

thread_local! {
    /// Memory for packed operands, kept for the next product.
    static PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static STRIPS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Memory of at least so many elements, whatever is in it.
fn take_room(kept: &'static LocalKey<Cell<Vec<f32>>>, count: usize) -> Vec<f32> {
    let mut room = kept.take();
    if room.len() < count {
        room = vec![0.0; count];
    }
    room
}

/// Lines of an operand, each of a row of the left or a column of the right one, from a first line and
/// term on.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    data: &'a [f32],
    /// Elements from a line to the next.
    line: usize,
    /// Elements from a term to the next.
    term: usize,
}

impl<'a> Source<'a> {
    /// A matrix's rows from one of them and a column on.
    pub(super) fn new(matrix: Matrix<'a>, row: usize, column: usize) -> Self {
        Self {
            data: &matrix.data[row * matrix.row_stride + column * matrix.column_stride..],
            line: matrix.row_stride,
            term: matrix.column_stride,
        }
    }

    /// The lines from one of them on.
    fn part(self, line: usize) -> Self {
        Self {
            data: &self.data[line * self.line..],
            ..self
        }
    }

    /// Writes `lines` × `terms` values as groups `[lines / group, terms, group]`; missing lines are
    /// zeros.
    pub(super) fn pack(self, group: usize, size: (usize, usize), out: &mut [f32]) {
        self.pack_within(group, size, (size.1, 0), out);
    }

    /// The same within groups of `all` terms, from their term `at` on.
    pub(super) fn pack_within(
        self,
        group: usize,
        size: (usize, usize),
        (all, at): (usize, usize),
        out: &mut [f32],
    ) {
        vectorized(
            #[inline(always)]
            || match group {
                4 => self.groups::<4>(size, (all, at), out),
                6 => self.groups::<6>(size, (all, at), out),
                8 => self.groups::<8>(size, (all, at), out),
                14 => self.groups::<14>(size, (all, at), out),
                16 => self.groups::<16>(size, (all, at), out),
                _ => self.groups::<32>(size, (all, at), out),
            },
        );
    }

    #[inline(always)]
    fn groups<const N: usize>(
        self,
        (lines, terms): (usize, usize),
        (all, at): (usize, usize),
        out: &mut [f32],
    ) {
        let (out, _) = out.as_chunks_mut::<N>();
        let beside = self.line == 1;
        if beside {
            self.copy(lines / N, terms, (all, at), out);
        }
        let groups = out.chunks_exact_mut(all).take(lines.div_ceil(N));
        for (number, out) in groups.enumerate().skip(if beside { lines / N } else { 0 }) {
            let out = &mut out[at..at + terms];
            let from = self.part(number * N);
            match lines - number * N {
                rest if rest < N => {
                    for (k, out) in out.iter_mut().enumerate() {
                        *out = [0.0; N];
                        for (i, y) in out[..rest].iter_mut().enumerate() {
                            *y = from.data[i * from.line + k * from.term];
                        }
                    }
                }
                _ if from.term == 1 => from.transpose(out),
                _ => {
                    for (k, out) in out.iter_mut().enumerate() {
                        *out = std::array::from_fn(|i| from.data[i * from.line + k * from.term]);
                    }
                }
            }
        }
    }

    /// Writes groups whose lines are neighbours: eight terms of all groups before the next, so that
    /// what lies side by side is read while it is in the first cache.
    #[inline(always)]
    fn copy<const N: usize>(
        self,
        groups: usize,
        terms: usize,
        (all, at): (usize, usize),
        out: &mut [[f32; N]],
    ) {
        for first in (0..terms).step_by(8) {
            let last = terms.min(first + 8);
            for (number, out) in out.chunks_exact_mut(all).take(groups).enumerate() {
                for (k, out) in (first..last).zip(&mut out[at + first..at + last]) {
                    let lines = &self.data[number * N + k * self.term..];
                    if let Some(lines) = lines.first_chunk::<N>() {
                        *out = *lines;
                    }
                }
            }
        }
    }

    /// Writes N lines whose terms are neighbours: blocks of eight terms of up to eight lines, so that
    /// no more lines are read side by side than a set of the first cache holds.
    #[inline(always)]
    fn transpose<const N: usize>(self, out: &mut [[f32; N]]) {
        let lines: [&[f32]; N] = std::array::from_fn(|i| &self.data[i * self.line..][..out.len()]);
        let (eights, rest) = out.as_chunks_mut::<8>();
        let done = eights.len() * 8;
        for first in (0..N).step_by(8) {
            let lines = &lines[first..N.min(first + 8)];
            for (number, out) in eights.iter_mut().enumerate() {
                let mut block = [[0.0; 8]; 8];
                for (block, line) in block.iter_mut().zip(lines) {
                    if let Some(eight) = line[number * 8..].first_chunk::<8>() {
                        *block = *eight;
                    }
                }
                let turned = turn(block);
                for (out, turned) in out.iter_mut().zip(&turned) {
                    let out = &mut out[first..N.min(first + 8)];
                    match out.as_chunks_mut::<8>() {
                        ([out], _) => *out = *turned,
                        (_, out) => out.iter_mut().zip(turned).for_each(|(y, &x)| *y = x),
                    }
                }
            }
        }
        for (k, out) in rest.iter_mut().enumerate() {
            *out = std::array::from_fn(|i| lines[i][done + k]);
        }
    }
}

/// The transpose of a block.
#[inline(always)]
fn turn(block: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
    #[cfg(target_arch = "x86_64")]
    if pulp::x86::V3::try_new().is_some() {
        // SAFETY: the processor has what V3 stands for, AVX among it.
        return unsafe { turn_in_registers(block) };
    }
    std::array::from_fn(|k| std::array::from_fn(|i| block[i][k]))
}

/// The same: pairs of rows, then of pairs, then of halves, change places. Without closures, into
/// which the instructions would not be inlined.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
#[inline]
fn turn_in_registers(block: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
    use std::arch::x86_64::{
        __m256, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };
    let [a, b, c, d, e, f, g, h]: [__m256; 8] = bytemuck::cast(block);
    let (ab, ba) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let (cd, dc) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    let (ef, fe) = (_mm256_unpacklo_ps(e, f), _mm256_unpackhi_ps(e, f));
    let (gh, hg) = (_mm256_unpacklo_ps(g, h), _mm256_unpackhi_ps(g, h));
    let upper = [
        _mm256_shuffle_ps::<0b0100_0100>(ab, cd),
        _mm256_shuffle_ps::<0b1110_1110>(ab, cd),
        _mm256_shuffle_ps::<0b0100_0100>(ba, dc),
        _mm256_shuffle_ps::<0b1110_1110>(ba, dc),
    ];
    let lower = [
        _mm256_shuffle_ps::<0b0100_0100>(ef, gh),
        _mm256_shuffle_ps::<0b1110_1110>(ef, gh),
        _mm256_shuffle_ps::<0b0100_0100>(fe, hg),
        _mm256_shuffle_ps::<0b1110_1110>(fe, hg),
    ];
    bytemuck::cast([
        _mm256_permute2f128_ps::<0x20>(upper[0], lower[0]),
        _mm256_permute2f128_ps::<0x20>(upper[1], lower[1]),
        _mm256_permute2f128_ps::<0x20>(upper[2], lower[2]),
        _mm256_permute2f128_ps::<0x20>(upper[3], lower[3]),
        _mm256_permute2f128_ps::<0x31>(upper[0], lower[0]),
        _mm256_permute2f128_ps::<0x31>(upper[1], lower[1]),
        _mm256_permute2f128_ps::<0x31>(upper[2], lower[2]),
        _mm256_permute2f128_ps::<0x31>(upper[3], lower[3]),
    ])
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let number = |i| crate::random::unit(seed.wrapping_mul(1 << 40).wrapping_add(i)) as f32;
        (0..count as u64).map(|i| number(i) - 0.5).collect()
    }

    fn matrix(data: &[f32], (rows, columns): (usize, usize), transposed: bool) -> Matrix<'_> {
        if transposed {
            Matrix::new(data, columns, rows).transposed()
        } else {
            Matrix::new(data, rows, columns)
        }
    }

    fn on_threads(many: bool, work: impl FnOnce(Workers<'_>) + Send) {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(3)
            .build()
            .unwrap();
        pool.install(|| work(Workers::new(many, &NEVER)));
    }

    fn check(
        (m, k, n): (usize, usize, usize),
        (ta, tb): (bool, bool),
        accumulate: bool,
    ) -> Result<(), TestCaseError> {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let (a, b) = (matrix(&a, (m, k), ta), matrix(&b, (k, n), tb));
        let start = if accumulate { 3.0 } else { f32::NAN };
        let mut results = Vec::new();
        for many in [false, true] {
            let mut out = vec![start; m * n];
            let pieces = Mutex::new(vec![0u32; m * n]);
            on_threads(many, |workers| {
                gemm_with(workers, a, b, &mut out, accumulate, |first, piece| {
                    assert!(first / n == (first + piece.len() - 1) / n);
                    piece.iter_mut().for_each(|y| *y += 1.0);
                    let mut pieces = pieces.lock().unwrap();
                    pieces[first..][..piece.len()]
                        .iter_mut()
                        .for_each(|p| *p += 1);
                });
            });
            prop_assert!(pieces.into_inner().unwrap().iter().all(|&p| p == 1));
            results.push(out);
        }
        prop_assert_eq!(&results[0], &results[1]);
        let offset = if accumulate { 4.0 } else { 1.0 };
        let at = |x: Matrix<'_>, i, j| f64::from(x.data[i * x.row_stride + j * x.column_stride]);
        // All elements of small results, some of large ones.
        for i in (0..m).step_by(m.div_ceil(20)) {
            for j in (0..n).step_by(n.div_ceil(20)) {
                let exact: f64 = (0..k).map(|l| at(a, i, l) * at(b, l, j)).sum();
                let got = f64::from(results[0][i * n + j]);
                prop_assert!((got - offset - exact).abs() < 1e-6 * (k as f64 + 10.0));
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn products_of_any_size_and_order_are_right_on_any_number_of_threads(
            m in 1usize..300, k in 1usize..600, n in 1usize..300,
            ta: bool, tb: bool, accumulate: bool,
        ) {
            check((m, k, n), (ta, tb), accumulate)?;
        }

        #[test]
        fn skinny_products_are_right(
            few in 1usize..20, k in 1usize..900, many in 1usize..500, tall: bool, accumulate: bool,
        ) {
            let (m, n) = if tall { (many, few) } else { (few, many) };
            check((m, k, n), (false, true), accumulate)?;
            check((m, k, n), (true, false), accumulate)?;
        }
    }

    #[test]
    fn operands_that_are_packed_in_several_pieces_give_the_product() {
        for (m, k, n) in [
            (1100, 70, 300),
            (5, 3000, 700),
            (1030, 1300, 33),
            (700, 2100, 17),
        ] {
            for transposes in [(false, false), (false, true), (true, false), (true, true)] {
                check((m, k, n), transposes, false).unwrap();
            }
        }
    }

    #[test]
    fn a_product_ends_soon_after_it_is_cancelled() {
        let (a, b) = (numbers(4096 * 64, 1), numbers(64 * 4096, 2));
        let (a, b) = (Matrix::new(&a, 4096, 64), Matrix::new(&b, 64, 4096));
        let cancel = AtomicBool::new(false);
        let mut out = vec![0.0; 4096 * 4096];
        let pieces = Mutex::new(0);
        gemm_with(
            Workers::new(false, &cancel),
            a,
            b,
            &mut out,
            false,
            |_, _| {
                *pieces.lock().unwrap() += 1;
                cancel.store(true, std::sync::atomic::Ordering::Relaxed);
            },
        );
        // What a part of a block has left after the first piece.
        let all = 4096 * 16;
        assert!((1..=all / 64).contains(&pieces.into_inner().unwrap()));
    }
}
