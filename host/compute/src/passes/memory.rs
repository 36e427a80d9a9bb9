//! The memory plan: a place in one arena for every intermediate result.

use std::collections::BTreeMap;

/// Every buffer starts at a multiple of this many bytes.
pub(crate) const ALIGNMENT: u64 = 64;

/// A buffer and the steps during which it must stay as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime {
    /// Bytes at the largest batch.
    pub(crate) bytes: u64,
    /// The step that writes it.
    pub(crate) first: usize,
    /// The last step that reads it.
    pub(crate) last: usize,
}

impl Lifetime {
    fn size(&self) -> u64 {
        self.bytes.next_multiple_of(ALIGNMENT).max(ALIGNMENT)
    }

    fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// With more buffers than this, trying each against all others takes too long.
const MOST_BY_SIZE: usize = 8192;

/// Offsets in bytes for buffers given in the order of their first steps, and the arena's size: the
/// smaller of two plans.
pub(crate) fn place(buffers: &[Lifetime]) -> (Vec<u64>, u64) {
    let first_fit = by_time(buffers);
    if buffers.len() > MOST_BY_SIZE {
        return first_fit;
    }
    let best_fit = by_size(buffers);
    if best_fit.1 < first_fit.1 {
        best_fit
    } else {
        first_fit
    }
}

/// First fit: each buffer, in order of time, takes the lowest gap among those alive with it.
pub(crate) fn by_time(buffers: &[Lifetime]) -> (Vec<u64>, u64) {
    let mut offsets = Vec::with_capacity(buffers.len());
    let mut arena = 0;
    // Offset → (end, last step) of the buffers that are alive.
    let mut alive: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
    for buffer in buffers {
        alive.retain(|_, &mut (_, last)| last >= buffer.first);
        let size = buffer.size();
        let mut offset = 0;
        for (&start, &(end, _)) in &alive {
            if start >= offset + size {
                break;
            }
            offset = offset.max(end);
        }
        alive.insert(offset, (offset + size, buffer.last));
        arena = arena.max(offset + size);
        offsets.push(offset);
    }
    (offsets, arena)
}

/// Best fit: each buffer, the largest first, takes the smallest gap among those placed before that
/// are alive with it (greedy by size, Pisarchyk and Lee 2020).
fn by_size(buffers: &[Lifetime]) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].size()), i));
    let mut offsets = vec![0; buffers.len()];
    let mut arena = 0;
    // Offset and number of the buffers that are placed, the lowest first.
    let mut placed: Vec<(u64, usize)> = Vec::with_capacity(buffers.len());
    for i in order {
        let (buffer, size) = (&buffers[i], buffers[i].size());
        let (mut end, mut best) = (0, None);
        for &(start, other) in placed.iter().filter(|(_, j)| buffers[*j].meets(buffer)) {
            let gap = start.saturating_sub(end);
            if gap >= size && best.is_none_or(|(smallest, _)| gap < smallest) {
                best = Some((gap, end));
            }
            end = end.max(start + buffers[other].size());
        }
        let offset = best.map_or(end, |(_, offset)| offset);
        offsets[i] = offset;
        arena = arena.max(offset + size);
        let at = placed.partition_point(|&(start, _)| start < offset);
        placed.insert(at, (offset, i));
    }
    (offsets, arena)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_freed_place_is_used_again() {
        let chain: Vec<Lifetime> = (0..10)
            .map(|i| Lifetime {
                bytes: 1000,
                first: i,
                last: i + 1,
            })
            .collect();
        assert_eq!(place(&chain).1, 2 * 1024);
    }

    #[test]
    fn a_large_buffer_is_placed_before_what_would_be_in_its_way() {
        let buffer = |bytes, first, last| Lifetime { bytes, first, last };
        let buffers = [
            buffer(1024, 0, 1),
            buffer(1024, 1, 3),
            buffer(8192, 2, 3),
            buffer(8192, 4, 4),
        ];
        assert_eq!(by_time(&buffers).1, 10 * 1024);
        assert_eq!(place(&buffers).1, 9 * 1024);
    }

    proptest! {
        #[test]
        fn no_two_live_buffers_overlap(
            sizes in prop::collection::vec((0u64..10_000, 0usize..12), 1..60)
        ) {
            let buffers: Vec<Lifetime> = sizes
                .iter()
                .enumerate()
                .map(|(first, &(bytes, life))| Lifetime { bytes, first, last: first + life })
                .collect();
            for (offsets, arena) in [by_time(&buffers), by_size(&buffers)] {
                for (i, a) in buffers.iter().enumerate() {
                    prop_assert!(offsets[i] % ALIGNMENT == 0 && offsets[i] + a.bytes <= arena);
                    for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                        let overlap =
                            offsets[i] < offsets[j] + b.bytes && offsets[j] < offsets[i] + a.bytes;
                        prop_assert!(!(a.meets(b) && overlap), "{a:?} {b:?}");
                    }
                }
            }
        }
    }
}
