//! Things that are kept ready, so many of them, those that were used last.

use std::collections::HashMap;
use std::hash::Hash;

/// At most `most` values by key.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    most: usize,
    /// When each was used, and what it is.
    values: HashMap<K, (u64, V)>,
    uses: u64,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            values: HashMap::new(),
            uses: 0,
        }
    }

    /// Takes a value out.
    pub(super) fn take(&mut self, key: &K) -> Option<V> {
        self.values.remove(key).map(|(_, value)| value)
    }

    /// Puts a value in, and drops the one that was used longest ago where there are too many.
    pub(super) fn put(&mut self, key: K, value: V) {
        self.uses += 1;
        self.values.insert(key, (self.uses, value));
        if self.values.len() > self.most {
            let oldest = self.values.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.values.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut recent = Recent::new(2);
        recent.put(1, "one");
        recent.put(2, "two");
        let one = recent.take(&1).unwrap();
        recent.put(1, one);
        recent.put(3, "three");
        assert_eq!(
            [1, 2, 3].map(|key| recent.take(&key)),
            [Some("one"), None, Some("three")]
        );
    }
}
