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

/// What a user or a plugin asks for: `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Selector {
    /// This device.
    Device(DeviceId),
    /// Any GPU, the processor where there is none.
    AnyGpu,
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => device.fmt(f),
            Self::AnyGpu => f.write_str("cuda"),
        }
    }
}

/// A string that is no device string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a device; a device is `cpu`, `cuda` (the host picks a GPU) or `cuda:N`")]
pub struct InvalidSelector(String);

impl FromStr for Selector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let invalid = || InvalidSelector(text.chars().take(64).collect());
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Device(DeviceId::Cpu)),
            None if text == "cuda" => Ok(Self::AnyGpu),
            Some(("cuda", digits)) => {
                let ordinal: u32 = digits.parse().map_err(|_| invalid())?;
                // `+1` and `01` parse as numbers but are not how a device is written.
                if ordinal.to_string() != digits {
                    return Err(invalid());
                }
                Ok(Self::Device(DeviceId::Cuda(ordinal)))
            }
            _ => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_three_forms_parse_and_print_alike() {
        for text in ["cpu", "cuda", "cuda:0", "cuda:15"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_forms() {
        for text in [
            "",
            "CPU",
            "cuda:",
            "cuda:abc",
            "cuda:-1",
            "cuda:+1",
            "cuda:01",
            "gpu",
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
