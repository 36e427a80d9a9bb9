//! Xids: NVIDIA's numbers of the errors that its driver reports, and what follows from each
//! (NVIDIA's Xid catalogue, by way of gpud's copy of October 2025).

use serde::Serialize;

/// What NVIDIA's catalogue says is to be done, by its names where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Nothing.
    #[serde(rename = "IGNORE")]
    Ignore,
    /// What other Xids say.
    #[serde(rename = "WORKFLOW_XID_45")]
    FollowOthers,
    /// The program that did it is started anew.
    #[serde(rename = "RESTART_APP")]
    RestartApp,
    /// The GPU is reset.
    #[serde(rename = "RESET_GPU")]
    ResetGpu,
    /// The virtual machine is started anew.
    #[serde(rename = "RESTART_VM")]
    RestartVm,
    /// The machine is started anew: the GPU is off the bus.
    #[serde(rename = "RESTART_BM")]
    RestartMachine,
    /// Memory errors that were not corrected are looked at.
    #[serde(rename = "WORKFLOW_XID_48")]
    MemoryError,
    /// NVLink is looked at.
    #[serde(rename = "WORKFLOW_NVLINK_ERR")]
    LinkError,
    /// What NVML says would recover the GPU has changed.
    #[serde(rename = "RECOVERY_ACTION_CHANGED")]
    RecoveryChanged,
    /// The catalogue does not have it.
    #[serde(rename = "UNKNOWN")]
    Unknown,
}

impl Action {
    /// That of an Xid.
    pub fn of(code: u64) -> Self {
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
