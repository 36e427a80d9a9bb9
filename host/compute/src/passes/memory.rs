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

/// Offsets in bytes for buffers given in the order of their first steps, and the arena's size.
///
/// First fit: each buffer takes the lowest gap among those alive with it.
pub(crate) fn place(buffers: &[Lifetime]) -> (Vec<u64>, u64) {
    let mut offsets = Vec::with_capacity(buffers.len());
    let mut arena = 0;
    // Offset → (end, last step) of the buffers that are alive.
    let mut alive: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
    for buffer in buffers {
        alive.retain(|_, &mut (_, last)| last >= buffer.first);
        let size = buffer.bytes.next_multiple_of(ALIGNMENT).max(ALIGNMENT);
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
            let (offsets, arena) = place(&buffers);
            for (i, a) in buffers.iter().enumerate() {
                prop_assert!(offsets[i] % ALIGNMENT == 0 && offsets[i] + a.bytes <= arena);
                for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                    let together = b.first <= a.last;
                    let overlap = offsets[i] < offsets[j] + b.bytes && offsets[j] < offsets[i] + a.bytes;
                    prop_assert!(!(together && overlap), "{a:?} {b:?}");
                }
            }
        }
    }
}
