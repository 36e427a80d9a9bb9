//! Xids: NVIDIA's numbers of the errors that its driver reports, and what follows from each
//! (NVIDIA's Xid catalogue, by way of gpud's copy of October 2025, and the operator's word).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

/// The highest number that an operator may name; the catalogue goes to some hundreds.
const HIGHEST: u64 = 65_535;

/// What is to be done, by the names of NVIDIA's catalogue where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Ignore,
    /// What other Xids say.
    FollowOthers,
    /// The program that did it is started anew.
    RestartApp,
    /// The GPU is reset.
    ResetGpu,
    /// The virtual machine is started anew.
    RestartVm,
    /// The machine is started anew: the GPU is off the bus.
    RestartMachine,
    /// Memory errors that were not corrected are looked at.
    MemoryError,
    /// NVLink is looked at.
    LinkError,
    /// What NVML says would recover the GPU has changed.
    RecoveryChanged,
    /// The catalogue does not have it.
    Unknown,
}

impl Action {
    /// Those that an operator may choose.
    const CHOICES: [Self; 7] = [
        Self::Ignore,
        Self::RestartApp,
        Self::ResetGpu,
        Self::RestartVm,
        Self::RestartMachine,
        Self::MemoryError,
        Self::LinkError,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Ignore => "IGNORE",
            Self::FollowOthers => "WORKFLOW_XID_45",
            Self::RestartApp => "RESTART_APP",
            Self::ResetGpu => "RESET_GPU",
            Self::RestartVm => "RESTART_VM",
            Self::RestartMachine => "RESTART_BM",
            Self::MemoryError => "WORKFLOW_XID_48",
            Self::LinkError => "WORKFLOW_NVLINK_ERR",
            Self::RecoveryChanged => "RECOVERY_ACTION_CHANGED",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// That of an Xid by the catalogue.
    fn of(code: u64) -> Self {
        match code {
            8 | 11 | 13 | 25 | 31 | 32 | 39..=41 | 68..=71 | 80 | 94 => Self::RestartApp,
            37 | 38 | 43 | 44 | 63 | 66 | 67 | 92 | 93 | 106 | 108 | 121 | 141 | 152 | 153
            | 157 | 160 | 161 => Self::Ignore,
            45 => Self::FollowOthers,
            46 | 62 | 64 | 95 | 109 | 119 | 120 | 140 | 143 | 155 | 156 | 158 => Self::ResetGpu,
            48 => Self::MemoryError,
            74 | 144..=150 => Self::LinkError,
            79 => Self::RestartMachine,
            151 => Self::RestartVm,
            154 => Self::RecoveryChanged,
            _ => Self::Unknown,
        }
    }

    /// What it means, for people.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Ignore => "nothing is to be done",
            Self::FollowOthers => "it follows other errors",
            Self::RestartApp => "a fault of the program that ran there",
            Self::ResetGpu => "the GPU must be reset",
            Self::RestartVm => "the virtual machine must be restarted",
            Self::RestartMachine => "the GPU fell off the bus; the machine must be restarted",
            Self::MemoryError => "memory errors that could not be corrected",
            Self::LinkError => "an error of NVLink",
            Self::RecoveryChanged => "what would recover the GPU has changed",
            Self::Unknown => "not in NVIDIA's catalogue",
        }
    }
}

impl Serialize for Action {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Why an operator's word on an Xid cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidXid {
    /// `health.xid`.
    #[error("`{0}` is no Xid: it is a number from 1 to {HIGHEST}")]
    Number(String),
    /// `health.xid`.
    #[error("Xid {code}: `{action}` is no action; the actions are {choices}", choices = choices())]
    Action {
        /// The Xid.
        code: u64,
        /// What was to be done.
        action: String,
    },
}

fn choices() -> String {
    Action::CHOICES.map(Action::name).join(", ")
}

/// What is done at each Xid: what the operator says, else what NVIDIA's catalogue does. As JSON an object
/// of the operator's, such as `{"109": "RESTART_APP"}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct XidTable(BTreeMap<u64, Action>);

impl XidTable {
    /// What is done at an Xid.
    pub fn action(&self, code: u64) -> Action {
        self.0.get(&code).copied().unwrap_or(Action::of(code))
    }

    /// Sets what is done at an Xid by their names; none for what the catalogue says.
    pub fn set(&mut self, number: &str, action: Option<&str>) -> Result<(), InvalidXid> {
        let code = number.parse().ok();
        let code = code.filter(|code| (1..=HIGHEST).contains(code));
        let code: u64 = code.ok_or_else(|| InvalidXid::Number(number.to_owned()))?;
        let Some(action) = action else {
            self.0.remove(&code);
            return Ok(());
        };
        let mut choices = Action::CHOICES.into_iter();
        let chosen = choices.find(|choice| choice.name() == action);
        let chosen = chosen.ok_or_else(|| InvalidXid::Action {
            code,
            action: action.to_owned(),
        })?;
        self.0.insert(code, chosen);
        Ok(())
    }
}

impl TryFrom<BTreeMap<String, String>> for XidTable {
    type Error = InvalidXid;

    fn try_from(entries: BTreeMap<String, String>) -> Result<Self, InvalidXid> {
        let mut table = Self::default();
        for (number, action) in &entries {
            table.set(number, Some(action))?;
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_word_on_an_xid_wins_over_the_catalogues() {
        let mut table = XidTable::default();
        assert_eq!(table.action(109), Action::ResetGpu);
        table.set("109", Some("RESTART_APP")).unwrap();
        table.set("4242", Some("IGNORE")).unwrap();
        let actions = [109, 4242, 4243, 79].map(|code| table.action(code).name());
        assert_eq!(actions, ["RESTART_APP", "IGNORE", "UNKNOWN", "RESTART_BM"]);
        table.set("109", None).unwrap();
        assert_eq!(table.action(109), Action::ResetGpu);
    }

    #[test]
    fn what_is_no_xid_or_no_action_is_refused_with_what_there_is() {
        let mut table = XidTable::default();
        for number in ["0", "-1", "65536", "13.0", "x", ""] {
            let error = table.set(number, Some("IGNORE")).unwrap_err();
            assert_eq!(error, InvalidXid::Number(number.to_owned()));
        }
        for action in ["RESTART", "ignore", "UNKNOWN", ""] {
            let error = table.set("109", Some(action)).unwrap_err().to_string();
            assert!(
                error.contains("the actions are IGNORE, RESTART_APP, RESET_GPU"),
                "{error}"
            );
            assert!(error.starts_with("Xid 109: "), "{error}");
        }
        assert_eq!(table, XidTable::default());
    }
}
