//! Work on the pool of threads, in chunks.

/// Elements of a chunk of work. Chunks depend on shapes alone, so that results do not depend on the
/// number of threads.
pub(crate) const CHUNK: usize = 1 << 14;

/// Runs a loop compiled for the widest vectors of this processor. What the loop calls has to be
/// inlined; results do not depend on the vectors, as nothing is fused or reordered.
#[inline(always)]
pub(crate) fn vectorized(work: impl FnOnce()) {
    pulp::Arch::new().dispatch(work);
}

/// Calls `work` with the number of every chunk of `size` elements and the chunk, side by side where
/// `parallel`.
pub(crate) fn chunks<T: Send>(
    parallel: bool,
    out: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    use rayon::prelude::*;
    let size = size.max(1);
    if parallel && out.len() > size {
        out.par_chunks_mut(size)
            .enumerate()
            .for_each(|(i, chunk)| work(i, chunk));
    } else {
        out.chunks_mut(size)
            .enumerate()
            .for_each(|(i, chunk)| work(i, chunk));
    }
}
