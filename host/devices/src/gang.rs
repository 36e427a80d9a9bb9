//! Which GPUs a task on several gets: a pure function of those on which it fits.
//!
//! The worst link within the set counts first, then that all are of one model, then the policy's
//! scores; among equals the lowest ordinals win. Sets are grown from each GPU in turn, so that the best
//! is found where links form groups, as buses and switches do.

use crate::gpu::Peer;

/// A GPU on which the task fits.
#[derive(Debug, Clone)]
pub(crate) struct Member<'a, S> {
    /// Its place in the ledger.
    pub(crate) place: usize,
    /// Lower is better.
    pub(crate) score: S,
    /// The product name.
    pub(crate) model: &'a str,
    /// Its pools.
    pub(crate) pools: &'a [usize],
}

/// How many levels [`link`] tells apart among GPUs that read each other's memory, and among others.
const LEVELS: u8 = 7;

/// How far two GPUs are apart: those that read each other's memory are closer than all others, then
/// what they are both below counts; what is not known is the farthest.
pub(crate) fn link(peer: Option<&Peer>) -> u8 {
    let Some(peer) = peer else {
        return 2 * LEVELS;
    };
    let level = match peer.level {
        Some("internal") => 0,
        Some("single_switch") => 1,
        Some("multiple_switches") => 2,
        Some("host_bridge") => 3,
        Some("numa_node") => 4,
        Some("system") => 5,
        _ => 6,
    };
    let reads = peer.p2p == Some("ok");
    level + if reads { 0 } else { LEVELS }
}

/// The places of `wanted` GPUs, in order; none where there is no such set. `link` tells how far two
/// members, by their numbers, are apart, `room` how many more tasks a pool takes.
pub(crate) fn choose<S: Ord + Copy>(
    wanted: usize,
    members: &[Member<'_, S>],
    link: impl Fn(usize, usize) -> u8,
    room: impl Fn(usize) -> u32,
) -> Option<Vec<usize>> {
    let count = members.len();
    if count < wanted {
        return None;
    }
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|&member| (members[member].score, members[member].place));
    let mut links = vec![0; count * count];
    for first in 0..count {
        for second in 0..count {
            // Both are asked: what one does not tell the other may.
            links[first * count + second] = link(first, second).min(link(second, first));
        }
    }
    let pair = |first: usize, second: usize| links[first * count + second];
    let mut worst: Vec<u8> = order
        .iter()
        .flat_map(|&first| order.iter().map(move |&second| (first, second)))
        .filter(|(first, second)| first != second)
        .map(|(first, second)| pair(first, second))
        .collect();
    worst.sort_unstable();
    worst.dedup();
    let grow = |seed: usize, alike: bool, worst: u8| {
        let mut set = vec![seed];
        for &next in &order {
            let full = |pool: &usize| {
                let own = set.iter().filter(|&&own| members[own].pools.contains(pool));
                own.count() >= room(*pool) as usize
            };
            let fits = set.len() < wanted
                && set
                    .iter()
                    .all(|&own| own != next && pair(own, next) <= worst)
                && (!alike || members[next].model == members[seed].model)
                && !members[next].pools.iter().any(full);
            if fits {
                set.push(next);
            }
        }
        (set.len() == wanted).then_some(set)
    };
    let rank = |set: &Vec<usize>| {
        let mixed = set
            .iter()
            .any(|&own| members[own].model != members[set[0]].model);
        let mut scores: Vec<_> = set
            .iter()
            .map(|&own| (members[own].score, members[own].place))
            .collect();
        scores.sort_unstable();
        (mixed, scores)
    };
    let best = worst.into_iter().find_map(|worst| {
        let seeds = order.iter().flat_map(|&seed| [(seed, true), (seed, false)]);
        seeds
            .filter_map(|(seed, alike)| grow(seed, alike, worst))
            .min_by_key(rank)
    })?;
    let mut places: Vec<usize> = best.iter().map(|&member| members[member].place).collect();
    places.sort_unstable();
    Some(places)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(place: usize, score: u64) -> Member<'static, (u64, u64)> {
        Member {
            place,
            score: (score, 0),
            model: "A100",
            pools: &[],
        }
    }

    fn free(_pool: usize) -> u32 {
        u32::MAX
    }

    #[test]
    fn gpus_of_one_switch_go_together_though_others_score_better() {
        let members: Vec<_> = [0, 9, 0, 9]
            .into_iter()
            .zip(0..)
            .map(|(score, place)| member(place, score))
            .collect();
        // Odd ones are below one switch, even ones below another.
        let link = |a: usize, b: usize| if a % 2 == b % 2 && a % 2 == 1 { 1 } else { 5 };
        assert_eq!(choose(2, &members, link, free), Some(vec![1, 3]));
        assert_eq!(choose(3, &members, link, free), Some(vec![0, 1, 2]));
        assert_eq!(choose(4, &members, link, free), Some(vec![0, 1, 2, 3]));
        assert_eq!(choose(5, &members, link, free), None);
    }

    #[test]
    fn where_links_are_equal_one_model_counts_before_scores_and_the_lowest_ordinals_win() {
        let mut members: Vec<_> = (0..5).map(|place| member(place, 0)).collect();
        (members[0].model, members[2].model) = ("T4", "T4");
        (members[1].score, members[3].score) = ((7, 0), (7, 0));
        assert_eq!(choose(3, &members, |_, _| 3, free), Some(vec![1, 3, 4]));
        assert_eq!(choose(2, &members, |_, _| 3, free), Some(vec![0, 2]));
        assert_eq!(choose(4, &members, |_, _| 3, free), Some(vec![0, 1, 2, 4]));
    }

    #[test]
    fn no_pool_is_given_more_than_it_takes() {
        let mut members: Vec<_> = (0..4).map(|place| member(place, 0)).collect();
        // Whoever begins with the first cannot have the two others of the pools.
        (members[0].pools, members[1].pools, members[2].pools) = (&[0, 1], &[0], &[1]);
        let room = |_pool: usize| 1;
        assert_eq!(choose(3, &members, |_, _| 0, room), Some(vec![1, 2, 3]));
        assert_eq!(choose(4, &members, |_, _| 0, room), None);
    }

    #[test]
    fn peers_that_read_each_other_are_closer_than_all_others() {
        let peer = |level, p2p| Peer {
            uuid: String::new(),
            level,
            p2p,
        };
        let order = [
            Some(peer(Some("single_switch"), Some("ok"))),
            Some(peer(Some("system"), Some("ok"))),
            Some(peer(Some("internal"), Some("disabled"))),
            Some(peer(Some("host_bridge"), None)),
            Some(peer(None, None)),
            None,
        ];
        let links = order.map(|peer| link(peer.as_ref()));
        assert!(links.is_sorted() && links[4] < links[5], "{links:?}");
    }

    proptest! {
        /// The set is of the size wanted, without a GPU twice, and where links form groups no set has a
        /// better worst link.
        #[test]
        fn no_set_is_better_linked(groups in prop::collection::vec((0usize..4, 0u64..3), 2..9), wanted in 2usize..6) {
            let members: Vec<_> = groups.iter().zip(0..).map(|(&(_, score), place)| member(place, score)).collect();
            let link = |a: usize, b: usize| if groups[a].0 == groups[b].0 { 1 } else { 4 };
            let Some(set) = choose(wanted, &members, link, free) else {
                prop_assert!(members.len() < wanted);
                return Ok(());
            };
            prop_assert_eq!(set.len(), wanted);
            prop_assert!(set.is_sorted_by(|a, b| a < b));
            let worst = |set: &[usize]| set.iter().flat_map(|&a| set.iter().map(move |&b| link(a, b))).max();
            let largest = (0..4).map(|group| groups.iter().filter(|(own, _)| *own == group).count()).max();
            if largest >= Some(wanted) {
                prop_assert_eq!(worst(&set), Some(1));
            }
        }
    }
}
