//! Which GPU is which `cuda:N`: decided when a GPU is first seen, and kept as long as the host runs,
//! whatever NVML lists later.

use crate::gpu::{Failure, Gpu, Reading};

/// A GPU, as it last answered.
struct Seat {
    /// NVML's number of it when it last answered.
    nvml_index: u32,
    known: Gpu,
}

impl Seat {
    /// What was told of it, and NVML's number of its GPU. A GPU that fails tells no instances.
    fn told<'a>(&self, readings: &'a [(u32, Reading)]) -> Option<(u32, &'a Gpu)> {
        let known = &self.known;
        readings.iter().find_map(|(nvml_index, reading)| {
            let (gpu, instances) = (&reading.gpu, &reading.instances);
            let unknown = if known.is_instance() {
                let parent = gpu.uuid.is_none() || gpu.uuid == known.facts.mig_parent_uuid;
                parent && gpu.failure.is_some()
            } else {
                gpu.uuid.is_none() || known.uuid.is_none()
            };
            let same = |one: &&Gpu| one.uuid.is_some() && one.uuid == known.uuid;
            let by_uuid = std::iter::once(gpu).chain(instances).find(same);
            let by_number = || (unknown && *nvml_index == self.nvml_index).then_some(gpu);
            Some((*nvml_index, by_uuid.or_else(by_number)?))
        })
    }
}

/// All GPUs that were read, with their instances, in the order of the bus.
fn by_bus(mut readings: Vec<(u32, Reading)>) -> Vec<Gpu> {
    readings.sort_by_key(|(_, reading)| reading.position);
    let gpus = readings.into_iter().flat_map(|(nvml_index, reading)| {
        let all = std::iter::once(reading.gpu).chain(reading.instances);
        all.map(move |mut gpu| {
            gpu.facts.nvml_index = Some(nvml_index);
            gpu
        })
    });
    gpus.collect()
}

/// The visible GPUs, in the order of `cuda:N`.
#[derive(Default)]
pub(crate) struct Roster {
    seats: Vec<Seat>,
}

impl Roster {
    /// Whether no GPU has been seen yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Gives GPUs their places, in the order of the bus: those that `filter` keeps.
    pub(crate) fn seat(
        &mut self,
        readings: Vec<(u32, Reading)>,
        filter: impl FnOnce(Vec<Gpu>) -> Vec<Gpu>,
    ) {
        self.seats.clear();
        for gpu in filter(by_bus(readings)) {
            self.add(gpu);
        }
    }

    /// Gives places to GPUs that have none and answer, behind all others: those, and whether one of them
    /// is no instance of another.
    pub(crate) fn seat_more(&mut self, readings: &[(u32, Reading)]) -> (Vec<Gpu>, bool) {
        let seated = |gpu: &Gpu| {
            let mut seats = self.seats.iter();
            seats.any(|seat| seat.known.uuid == gpu.uuid)
        };
        let known = |gpu: &Gpu| gpu.uuid.is_some() && gpu.failure.is_none();
        let new = |reading: &Reading| {
            let mut all = std::iter::once(&reading.gpu).chain(&reading.instances);
            all.any(|gpu| known(gpu) && !seated(gpu))
        };
        let new = readings.iter().filter(|(_, reading)| new(reading));
        let mut gpus = by_bus(new.cloned().collect());
        gpus.retain(|gpu| known(gpu) && !seated(gpu));
        let whole = gpus.iter().any(|gpu| !gpu.is_instance());
        let gpus = gpus.into_iter().map(|gpu| self.add(gpu));
        (gpus.collect(), whole)
    }

    /// Gives a GPU the next place.
    fn add(&mut self, gpu: Gpu) -> Gpu {
        let index = u32::try_from(self.seats.len()).unwrap_or(u32::MAX);
        let known = Gpu { index, ..gpu };
        self.seats.push(Seat {
            nvml_index: known.facts.nvml_index.unwrap_or(index),
            known: known.clone(),
        });
        known
    }

    /// N of `cuda:N` of the GPU that had this number of NVML's when it last answered, and of its
    /// instances.
    pub(crate) fn indices(&self, nvml_index: u32) -> Vec<u32> {
        let of = |seat: &&Seat| seat.nvml_index == nvml_index;
        let of = self.seats.iter().filter(of);
        of.map(|seat| seat.known.index).collect()
    }

    /// The visible GPUs by what NVML lists now. One that does not answer, or is not listed any more,
    /// keeps its place and its identity.
    pub(crate) fn gpus(&mut self, readings: &[(u32, Reading)]) -> Vec<Gpu> {
        let mut gpus = Vec::new();
        for seat in &mut self.seats {
            let Some((nvml_index, gpu)) = seat.told(readings) else {
                let reason = "NVML does not list it any more".to_owned();
                gpus.push(seat.known.silenced(Failure::Lost, reason));
                continue;
            };
            gpus.push(match (gpu.failure, &gpu.error) {
                (Some(failure), Some(reason)) => seat.known.silenced(failure, reason.clone()),
                _ => {
                    seat.nvml_index = nvml_index;
                    seat.known = Gpu {
                        index: seat.known.index,
                        ..gpu.clone()
                    };
                    seat.known.clone()
                }
            });
        }
        gpus
    }

    /// The visible GPUs as they last answered.
    pub(crate) fn known(&self) -> Vec<Gpu> {
        self.seats.iter().map(|seat| seat.known.clone()).collect()
    }

    /// The visible GPUs where NVML tells nothing, for a reason.
    pub(crate) fn silenced(&self, reason: &str) -> Vec<Gpu> {
        let seats = self.seats.iter();
        seats
            .map(|seat| seat.known.silenced(Failure::Unknown, reason.to_owned()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(uuid: &str, bus: u32) -> Reading {
        Reading {
            gpu: Gpu {
                uuid: Some(uuid.to_owned()),
                memory_used_bytes: Some(7),
                ..Gpu::default()
            },
            instances: Vec::new(),
            position: (0, bus, 0),
        }
    }

    fn split(uuid: &str, bus: u32, instances: &[&str]) -> Reading {
        let instance = |own: &&str| {
            let mut gpu = answers(own, bus).gpu;
            gpu.facts.mig_parent_uuid = Some(uuid.to_owned());
            gpu
        };
        Reading {
            instances: instances.iter().map(instance).collect(),
            ..answers(uuid, bus)
        }
    }

    fn fails() -> Reading {
        Reading::failed(7, Failure::Lost, "lost".to_owned())
    }

    fn seated() -> Roster {
        let mut roster = Roster::default();
        roster.seat(vec![(0, answers("b", 9)), (1, answers("a", 3))], |gpus| {
            gpus
        });
        roster
    }

    fn shown(gpus: &[Gpu]) -> Vec<(u32, Option<&str>, bool)> {
        gpus.iter()
            .map(|gpu| (gpu.index, gpu.uuid.as_deref(), gpu.error.is_some()))
            .collect()
    }

    #[test]
    fn a_gpu_that_fails_keeps_its_place_and_its_identity_and_the_others_theirs() {
        let mut roster = seated();
        let gpus = roster.gpus(&[(0, answers("b", 9)), (1, fails())]);
        assert_eq!(shown(&gpus), [(0, Some("a"), true), (1, Some("b"), false)]);
        assert_eq!(
            (gpus[0].memory_used_bytes, gpus[1].memory_used_bytes),
            (None, Some(7))
        );
        assert_eq!((roster.indices(1), roster.indices(0)), (vec![0], vec![1]));
        let gpus = roster.silenced("no driver");
        assert_eq!(shown(&gpus), [(0, Some("a"), true), (1, Some("b"), true)]);
    }

    #[test]
    fn a_gpu_is_the_same_whatever_number_nvml_gives_it_later() {
        let mut roster = seated();
        let gpus = roster.gpus(&[(0, answers("a", 3)), (1, answers("b", 9))]);
        assert_eq!(shown(&gpus), [(0, Some("a"), false), (1, Some("b"), false)]);
        assert_eq!((roster.indices(0), roster.indices(1)), (vec![0], vec![1]));
        // One that has gone from the list is lost; one that is new there takes nobody's place.
        let gpus = roster.gpus(&[(0, answers("b", 9)), (1, answers("c", 12))]);
        assert_eq!(shown(&gpus), [(0, Some("a"), true), (1, Some("b"), false)]);
        assert_eq!(gpus[0].failure, Some(Failure::Lost));
    }

    #[test]
    fn a_gpu_that_was_silent_at_the_start_gets_its_identity_when_it_answers() {
        let mut roster = Roster::default();
        roster.seat(vec![(0, fails()), (1, answers("a", 3))], |gpus| gpus);
        let gpus = roster.gpus(&[(0, answers("b", 1)), (1, answers("a", 3))]);
        assert_eq!(shown(&gpus), [(0, Some("a"), false), (1, Some("b"), false)]);
    }

    #[test]
    fn what_appears_later_gets_the_next_place_wherever_it_is_on_the_bus() {
        let mut roster = seated();
        let same = [(0, answers("b", 9)), (1, answers("a", 3))];
        assert!(roster.seat_more(&same).0.is_empty());
        let more = [
            (0, answers("c", 1)),
            (1, answers("b", 9)),
            (2, fails()),
            (3, split("a", 3, &["a1"])),
        ];
        roster.gpus(&more);
        let (added, whole) = roster.seat_more(&more);
        assert_eq!(
            shown(&added),
            [(2, Some("c"), false), (3, Some("a1"), false)]
        );
        assert!(whole);
        assert_eq!(
            (roster.indices(0), roster.indices(3)),
            (vec![2], vec![0, 3])
        );
        assert!(roster.seat_more(&more).0.is_empty());
        // One that is gone leaves its place empty, and takes it again.
        let gpus = roster.gpus(&same);
        let failing: Vec<bool> = gpus.iter().map(|gpu| gpu.error.is_some()).collect();
        assert_eq!(failing, [false, false, true, true]);
        let other = [(0, answers("b", 9)), (1, split("a", 3, &["a2"]))];
        roster.gpus(&other);
        let (added, whole) = roster.seat_more(&other);
        assert_eq!(
            (shown(&added), whole),
            (vec![(4, Some("a2"), false)], false)
        );
        let gpus = roster.gpus(&more);
        assert_eq!(shown(&gpus)[2], (2, Some("c"), false));
    }

    #[test]
    fn instances_have_places_after_their_gpu_and_fail_with_it() {
        let mut roster = Roster::default();
        let both = [(0, answers("b", 9)), (1, split("a", 3, &["a1", "a2"]))];
        roster.seat(both.to_vec(), |gpus| gpus);
        let all = |failing: [bool; 4]| {
            let uuids = ["a", "a1", "a2", "b"].map(Some);
            [0, 1, 2, 3].map(|at| (at as u32, uuids[at], failing[at]))
        };
        assert_eq!(shown(&roster.gpus(&both)), all([false; 4]));
        assert_eq!(
            (roster.indices(1), roster.indices(0)),
            (vec![0, 1, 2], vec![3])
        );
        let gpus = roster.gpus(&[both[0].clone(), (1, fails())]);
        assert_eq!(shown(&gpus), all([true, true, true, false]));
        assert_eq!(gpus[1].facts.mig_parent_uuid.as_deref(), Some("a"));
        // One that is taken apart is gone, its GPU and the other are not.
        let gpus = roster.gpus(&[both[0].clone(), (1, split("a", 3, &["a2"]))]);
        assert_eq!(shown(&gpus), all([false, true, false, false]));
    }
}
