//! GPUs as real ones are.

/// A GPU as `nvidia-smi -q -x` showed it, idle, on real machines.
#[derive(Debug)]
pub struct Profile {
    /// The name in scenario files.
    pub key: &'static str,
    /// The product name.
    pub name: &'static str,
    /// Major and minor.
    pub compute_capability: (i32, i32),
    /// Memory in MiB: all of it, the driver's reserve, and what is taken when idle.
    pub memory_mib: (u64, u64, u64),
    /// °C.
    pub temperature: u32,
    /// W.
    pub power: f64,
    /// W.
    pub power_limit: f64,
    /// PCI device and vendor.
    pub pci_device: u32,
    /// What it tells besides.
    pub more: More,
}

/// What a GPU tells besides; none where it does not.
#[derive(Debug)]
pub struct More {
    /// `nvmlBrandType_t`.
    pub brand: u32,
    /// `nvmlDeviceArchitecture_t`.
    pub architecture: u32,
    /// CUDA cores (data sheets).
    pub cores: u32,
    /// °C: shutdown, slowdown, highest at work.
    pub thresholds: Option<[u32; 3]>,
    /// °C: the margin now, at shutdown, at slowdown.
    pub margins: Option<[i32; 3]>,
    /// °C of the memory.
    pub memory_temperature: Option<u32>,
    /// Percent.
    pub fan: Option<u32>,
    /// W: by default, least, most.
    pub power_limits: [u32; 3],
    /// MHz now: graphics, SM, memory.
    pub clocks: [u32; 3],
    /// MHz at most.
    pub clocks_max: [u32; 3],
    /// Generation now and at most, lanes now and at most.
    pub pcie: [u32; 4],
    /// MiB.
    pub bar1_mib: u64,
    /// N of `P0` to `P15`.
    pub performance_state: u32,
    /// Whether the driver stays loaded.
    pub persistence: bool,
    /// Whether memory errors are corrected; none where it cannot.
    pub ecc: Option<bool>,
    /// Whether it is split; none where it cannot be.
    pub mig: Option<bool>,
    /// Whether the board tells its number.
    pub serial: bool,
    /// `nvmlClocksThrottleReasons`.
    pub throttle: u64,
}

/// The captures (the V100's figures, core counts and the clocks of L40S and B200 that captures lack are from data sheets): of an RTX 3090 from telegraf's test data, of the others from NVIDIA's
/// k8s-test-infra (Apache-2.0).
pub const PROFILES: &[Profile] = &[
    Profile {
        key: "rtx3090",
        name: "NVIDIA GeForce RTX 3090",
        compute_capability: (8, 6),
        memory_mib: (24576, 450, 7),
        temperature: 32,
        power: 35.06,
        power_limit: 350.0,
        pci_device: 0x2204_10DE,
        more: More {
            brand: 5,
            architecture: 7,
            cores: 10496,
            thresholds: Some([98, 95, 93]),
            margins: None,
            memory_temperature: None,
            fan: Some(0),
            power_limits: [350, 100, 480],
            clocks: [210, 210, 405],
            clocks_max: [2100, 2100, 9751],
            pcie: [1, 4, 16, 16],
            bar1_mib: 256,
            performance_state: 8,
            persistence: true,
            ecc: None,
            mig: None,
            serial: false,
            throttle: 4,
        },
    },
    Profile {
        key: "t4",
        name: "Tesla T4",
        compute_capability: (7, 5),
        memory_mib: (15360, 448, 0),
        temperature: 33,
        power: 33.51,
        power_limit: 70.0,
        pci_device: 0x1EB8_10DE,
        more: More {
            brand: 14,
            architecture: 6,
            cores: 2560,
            thresholds: Some([96, 93, 85]),
            margins: None,
            memory_temperature: None,
            fan: None,
            power_limits: [70, 60, 70],
            clocks: [1590, 1590, 5000],
            clocks_max: [1590, 1590, 5001],
            pcie: [3, 3, 8, 16],
            bar1_mib: 256,
            performance_state: 0,
            persistence: true,
            ecc: Some(true),
            mig: None,
            serial: true,
            throttle: 1,
        },
    },
    Profile {
        key: "v100",
        name: "Tesla V100-SXM2-16GB",
        compute_capability: (7, 0),
        memory_mib: (16384, 230, 0),
        temperature: 35,
        power: 41.0,
        power_limit: 300.0,
        pci_device: 0x1DB1_10DE,
        more: More {
            brand: 14,
            architecture: 5,
            cores: 5120,
            thresholds: Some([90, 87, 83]),
            margins: None,
            memory_temperature: Some(35),
            fan: None,
            power_limits: [300, 150, 300],
            clocks: [135, 135, 877],
            clocks_max: [1530, 1530, 877],
            pcie: [3, 3, 16, 16],
            bar1_mib: 16384,
            performance_state: 0,
            persistence: true,
            ecc: Some(true),
            mig: None,
            serial: true,
            throttle: 1,
        },
    },
    Profile {
        key: "a100",
        name: "NVIDIA A100-SXM4-40GB",
        compute_capability: (8, 0),
        memory_mib: (40960, 518, 0),
        temperature: 33,
        power: 49.68,
        power_limit: 400.0,
        pci_device: 0x20B0_10DE,
        more: More {
            brand: 14,
            architecture: 7,
            cores: 6912,
            thresholds: Some([92, 89, 85]),
            margins: None,
            memory_temperature: Some(34),
            fan: None,
            power_limits: [400, 100, 400],
            clocks: [210, 210, 1215],
            clocks_max: [1410, 1410, 1215],
            pcie: [4, 4, 16, 16],
            bar1_mib: 65536,
            performance_state: 0,
            persistence: true,
            ecc: Some(true),
            mig: Some(false),
            serial: true,
            throttle: 1,
        },
    },
    Profile {
        key: "h100",
        name: "NVIDIA H100 80GB HBM3",
        compute_capability: (9, 0),
        memory_mib: (81559, 480, 0),
        temperature: 29,
        power: 68.57,
        power_limit: 700.0,
        pci_device: 0x2330_10DE,
        more: More {
            brand: 14,
            architecture: 9,
            cores: 16896,
            thresholds: Some([95, 89, 87]),
            margins: Some([58, -8, -2]),
            memory_temperature: Some(37),
            fan: None,
            power_limits: [700, 200, 700],
            clocks: [345, 345, 2619],
            clocks_max: [1980, 1980, 2619],
            pcie: [5, 5, 16, 16],
            bar1_mib: 131_072,
            performance_state: 0,
            persistence: true,
            ecc: Some(true),
            mig: Some(false),
            serial: true,
            throttle: 1,
        },
    },
    Profile {
        key: "l40s",
        name: "NVIDIA L40S",
        compute_capability: (8, 9),
        memory_mib: (46068, 609, 0),
        temperature: 29,
        power: 65.64,
        power_limit: 350.0,
        pci_device: 0x26B9_10DE,
        more: More {
            brand: 14,
            architecture: 8,
            cores: 18176,
            thresholds: None,
            margins: Some([59, -5, -2]),
            memory_temperature: None,
            fan: None,
            power_limits: [350, 100, 350],
            clocks: [2040, 2040, 9001],
            clocks_max: [2520, 2520, 9001],
            pcie: [4, 4, 8, 16],
            bar1_mib: 65536,
            performance_state: 0,
            persistence: true,
            ecc: Some(true),
            mig: None,
            serial: true,
            throttle: 1,
        },
    },
    Profile {
        key: "b200",
        name: "NVIDIA B200",
        compute_capability: (10, 0),
        memory_mib: (183_359, 728, 0),
        temperature: 39,
        power: 195.68,
        power_limit: 1000.0,
        pci_device: 0x2901_10DE,
        more: More {
            brand: 14,
            architecture: 10,
            cores: 18944,
            thresholds: None,
            margins: Some([49, -5, -3]),
            memory_temperature: Some(39),
            fan: None,
            power_limits: [1000, 200, 1000],
            clocks: [120, 120, 3996],
            clocks_max: [1965, 1965, 3996],
            pcie: [5, 5, 16, 16],
            bar1_mib: 262_144,
            performance_state: 0,
            persistence: false,
            ecc: Some(true),
            mig: Some(false),
            serial: true,
            throttle: 1,
        },
    },
];
