//! Work on the pool of threads, in chunks.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

/// Elements of a chunk of work. Chunks depend on shapes alone, so that results do not depend on the
/// number of threads.
pub(crate) const CHUNK: usize = 1 << 14;

/// Runs a loop compiled for the widest vectors of this processor. The closure and what it calls have
/// to be inlined, or they are not compiled so. Results do not depend on the vectors, as nothing is
/// fused or reordered.
#[inline(always)]
pub(crate) fn vectorized(work: impl FnOnce()) {
    pulp::Arch::new().dispatch(work);
}

/// The threads of a kernel, and the wish of its run to end: once the run is cancelled, work that has
/// not begun is left out, and what the kernel gives is nothing to rely on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workers<'a> {
    many: bool,
    cancel: &'a AtomicBool,
}

impl<'a> Workers<'a> {
    /// The threads of the current pool, or the caller's alone.
    pub(crate) fn new(many: bool, cancel: &'a AtomicBool) -> Self {
        Self { many, cancel }
    }

    /// The caller's thread alone, for work within work.
    pub(crate) fn alone(self) -> Self {
        Self {
            many: false,
            ..self
        }
    }

    /// Whether the run is to end.
    pub(crate) fn cancelled(self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Calls `work` with the number of every chunk of `size` elements and the chunk.
    pub(crate) fn chunks<T: Send>(
        self,
        out: &mut [T],
        size: usize,
        work: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        let size = size.max(1);
        let work = |(i, chunk): (usize, &mut [T])| {
            if !self.cancelled() {
                work(i, chunk);
            }
        };
        if self.many && out.len() > size {
            out.par_chunks_mut(size).enumerate().for_each(work);
        } else {
            out.chunks_mut(size).enumerate().for_each(work);
        }
    }

    /// Calls `work` with every item.
    pub(crate) fn each<T: Send>(self, items: Vec<T>, work: impl Fn(T) + Sync + Send) {
        let work = |item| {
            if !self.cancelled() {
                work(item);
            }
        };
        if self.many && items.len() > 1 {
            items.into_par_iter().for_each(work);
        } else {
            items.into_iter().for_each(work);
        }
    }
}
