//! Device strings.

use std::fmt;
use std::str::FromStr;

/// A device of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceId {
    /// The processor.
    Cpu,
    /// The N-th visible GPU in PCI bus order.
    Cuda(u32),
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// The name of a pool: 1 to 64 letters, digits, `-`, `_` and `.`, a letter first, not `cpu` or `cuda`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolName(Box<str>);

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PoolName {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let letters = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let valid = text.len() <= 64
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.bytes().all(letters)
            && !["cpu", "cuda"].contains(&text);
        let invalid = || InvalidSelector(text.chars().take(64).collect());
        valid.then(|| Self(text.into())).ok_or_else(invalid)
    }
}

/// What a user or a plugin asks for: `cpu`, `cuda`, `cuda:N` or a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// This device.
    Device(DeviceId),
    /// Any GPU, the processor where there is none.
    AnyGpu,
    /// Any GPU of a pool.
    Pool(PoolName),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => device.fmt(f),
            Self::AnyGpu => f.write_str("cuda"),
            Self::Pool(name) => name.fmt(f),
        }
    }
}

/// A string that is no device string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a device; a device is `cpu`, `cuda` (the host picks a GPU), `cuda:N` or a pool's name"
)]
pub struct InvalidSelector(String);

impl FromStr for Selector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let invalid = || InvalidSelector(text.chars().take(64).collect());
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Device(DeviceId::Cpu)),
            None if text == "cuda" => Ok(Self::AnyGpu),
            None => text.parse().map(Self::Pool),
            Some(("cuda", digits)) => {
                let ordinal: u32 = digits.parse().map_err(|_| invalid())?;
                // `+1` and `01` parse as numbers but are not how a device is written.
                if ordinal.to_string() != digits {
                    return Err(invalid());
                }
                Ok(Self::Device(DeviceId::Cuda(ordinal)))
            }
            Some(_) => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_forms_parse_and_print_alike() {
        for text in ["cpu", "cuda", "cuda:0", "cuda:15", "fast", "team-a.big_1"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_forms() {
        for text in [
            "",
            "9",
            "a b",
            "pool:fast",
            "cuda:",
            "cuda:abc",
            "cuda:-1",
            "cuda:+1",
            "cuda:01",
            "cuda:0:1",
            "cuda:4294967296",
            " cpu",
        ] {
            let error = text.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains("`cuda:N`"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = text.parse::<Selector>();
        }
    }
}
