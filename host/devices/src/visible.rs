//! `CUDA_VISIBLE_DEVICES`: which devices it names, as CUDA reads it.

/// What devices are named by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The number of the GPU in PCI bus order; of an instance that of its GPU.
    pub gpu: usize,
    /// Such as `GPU-5f2c…`, of an instance `MIG-…`; none where the device does not tell.
    pub uuid: Option<String>,
    /// The older name of an instance: `MIG-GPU-5f2c…/1/0`, the numbers of the GPU instance and of the
    /// compute instance.
    pub instance: Option<String>,
}

impl Identity {
    fn is_gpu(&self) -> bool {
        !self
            .uuid
            .as_ref()
            .is_some_and(|uuid| uuid.starts_with("MIG-"))
    }
}

/// The positions in `all` of what `visible` names, in the order in which it names them.
///
/// Entries are numbers of GPUs, UUIDs of GPUs or of instances, or their beginnings where only one
/// starts so. The first invalid entry ends the list; so does one of another kind than the first. A
/// device that is named twice makes all invalid (CUDA Programming Guide, "CUDA_VISIBLE_DEVICES", and
/// what PyTorch found of drivers). A GPU that is split stands for itself and its instances.
pub(crate) fn chosen(all: &[Identity], visible: &str) -> Vec<usize> {
    let entries: Vec<&str> = visible.split(',').map(str::trim).collect();
    let kind = Kind::of(entries.first().copied().unwrap_or_default());
    let mut named: Vec<usize> = Vec::new();
    for entry in entries {
        let found = match kind.filter(|_| Kind::of(entry) == kind) {
            Some(Kind::Number) => gpu(all, entry.parse().ok()),
            Some(Kind::Gpu) => gpu(
                all,
                only(all, entry, Identity::is_gpu).map(|at| all[at].gpu),
            ),
            Some(Kind::Instance) => only(all, entry, |one| !one.is_gpu()).into_iter().collect(),
            None => Vec::new(),
        };
        if found.is_empty() {
            break;
        }
        if found.iter().any(|at| named.contains(at)) {
            return Vec::new();
        }
        named.extend(found);
    }
    named
}

/// What an entry looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Gpu,
    Instance,
}

impl Kind {
    fn of(entry: &str) -> Option<Self> {
        match entry {
            _ if entry.starts_with("GPU-") => Some(Self::Gpu),
            _ if entry.starts_with("MIG-") => Some(Self::Instance),
            _ => entry.parse::<usize>().ok().map(|_| Self::Number),
        }
    }
}

/// A GPU and its instances.
fn gpu(all: &[Identity], number: Option<usize>) -> Vec<usize> {
    let of_it = |at: &usize| Some(all[*at].gpu) == number;
    (0..all.len()).filter(of_it).collect()
}

/// The only one of a kind whose UUID starts with `entry`, or that has it as its older name.
fn only(all: &[Identity], entry: &str, of_kind: impl Fn(&Identity) -> bool) -> Option<usize> {
    let starts = |one: &Identity| {
        one.uuid
            .as_ref()
            .is_some_and(|uuid| uuid.starts_with(entry))
    };
    let named = |one: &Identity| starts(one) || one.instance.as_deref() == Some(entry);
    let mut matching = (0..all.len()).filter(|&at| of_kind(&all[at]) && named(&all[at]));
    let first = matching.next()?;
    matching.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A GPU, one that is split in two, and two whose UUIDs begin alike.
    fn machine() -> Vec<Identity> {
        let known = [
            (0, "GPU-aa1", None),
            (1, "GPU-bb2", None),
            (1, "MIG-c01", Some("MIG-GPU-bb2/1/0")),
            (1, "MIG-c02", Some("MIG-GPU-bb2/2/0")),
            (2, "GPU-dd3", None),
            (3, "GPU-de4", None),
        ];
        let identity = |(gpu, uuid, instance): (usize, &str, Option<&str>)| Identity {
            gpu,
            uuid: Some(uuid.to_owned()),
            instance: instance.map(str::to_owned),
        };
        known.map(identity).into()
    }

    fn names(visible: &str) -> String {
        let all = machine();
        let named = chosen(&all, visible).into_iter();
        let named: Vec<&str> = named.filter_map(|at| all[at].uuid.as_deref()).collect();
        named.join(" ")
    }

    #[test]
    fn numbers_are_those_of_gpus_and_order() {
        assert_eq!(names("2,0"), "GPU-dd3 GPU-aa1");
        assert_eq!(names(" 3 , 0"), "GPU-de4 GPU-aa1");
        assert_eq!(names("1,0"), "GPU-bb2 MIG-c01 MIG-c02 GPU-aa1");
    }

    #[test]
    fn uuids_may_be_shortened_as_long_as_they_name_one() {
        assert_eq!(names("GPU-de4,GPU-aa"), "GPU-de4 GPU-aa1");
        assert_eq!(names("GPU-d"), "");
        assert_eq!(names("GPU-aa1,GPU-d,GPU-de4"), "GPU-aa1");
        assert_eq!(names("GPU-aa11"), "");
        assert_eq!(names("GPU-b"), "GPU-bb2 MIG-c01 MIG-c02");
    }

    #[test]
    fn instances_are_named_by_themselves() {
        assert_eq!(names("MIG-c02,MIG-c01"), "MIG-c02 MIG-c01");
        assert_eq!(names("MIG-c"), "");
        assert_eq!(names("MIG-GPU-bb2/2/0"), "MIG-c02");
        assert_eq!(names("MIG-GPU-bb2/2"), "");
    }

    #[test]
    fn the_first_invalid_entry_ends_the_list() {
        assert_eq!(names("0,7,2"), "GPU-aa1");
        assert_eq!(names("0,2,-1,3"), "GPU-aa1 GPU-dd3");
        assert_eq!(names("0,,2"), "GPU-aa1");
        assert_eq!(names("0,GPU-dd3"), "GPU-aa1");
        assert_eq!(names("GPU-dd3,0"), "GPU-dd3");
        for nothing in [
            "",
            "-1",
            "NoDevFiles",
            "all",
            "4",
            "99999999999999999999",
            "GPU-",
            "MIG-",
        ] {
            assert_eq!(names(nothing), "", "{nothing}");
        }
    }

    #[test]
    fn a_device_that_is_named_twice_makes_all_invalid() {
        for twice in ["0,2,0", "GPU-aa1,GPU-aa", "MIG-c01,MIG-GPU-bb2/1/0"] {
            assert_eq!(names(twice), "", "{twice}");
        }
        // What comes after an invalid entry is not read.
        assert_eq!(names("0,9,0"), "GPU-aa1");
    }

    #[test]
    fn a_gpu_that_does_not_tell_its_uuid_has_its_number() {
        let silent = Identity {
            gpu: 1,
            ..Identity::default()
        };
        let all = [&machine()[..1], &[silent]].concat();
        assert_eq!(chosen(&all, "1,0"), [1, 0]);
        assert_eq!(chosen(&all, "GPU-"), [0]);
    }

    proptest! {
        #[test]
        fn no_text_names_a_device_twice_or_panics(visible in "([0-4]|GPU-[abd]{0,2}[1-4]?|MIG-c?0?[12]?|,|.){0,12}") {
            let mut named = chosen(&machine(), &visible);
            let count = named.len();
            named.sort_unstable();
            named.dedup();
            prop_assert_eq!(named.len(), count);
        }
    }
}
