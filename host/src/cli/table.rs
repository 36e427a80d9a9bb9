//! Tables for people.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use devices::{DeviceId, Limits};
use serde_json::Value;

use super::view::{self, Device};
use crate::machine::{Machine, memory_bytes};

/// An empty table with these columns.
pub(super) fn new(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(columns.to_vec());
    table
}

/// The columns of a device, and whether a narrow terminal shows them.
const COLUMNS: [(&str, bool); 11] = [
    ("device", true),
    ("name", true),
    ("cc", false),
    ("MiB used", true),
    ("%", true),
    ("°C", true),
    ("W", true),
    ("train", true),
    ("infer", true),
    ("pools", false),
    ("state", true),
];

/// The devices: memory in MiB, percent of the time in which kernels run, temperature in °C, power in W,
/// tasks; what there is at the moment of how much at most. Where that is wider than the terminal, the
/// least of it is left out, and the state wraps.
fn devices(devices: &[Device], width: Option<u16>) -> String {
    let mut wide = new(&COLUMNS.map(|(title, _)| title));
    wide.add_rows(devices.iter().map(row));
    let wide = wide.to_string();
    let columns = |line: &str| line.chars().count();
    let Some(width) = width.filter(|&width| wide.lines().any(|line| columns(line) > width.into()))
    else {
        return wide;
    };
    let shown = |cells: Vec<String>| -> Vec<String> {
        let cells = cells.into_iter().zip(COLUMNS);
        let shown = cells
            .filter(|(_, (_, narrow))| *narrow)
            .map(|(cell, _)| cell);
        shown.collect()
    };
    let mut narrow = Table::new();
    narrow
        .load_style(presets::NOTHING)
        .set_header(shown(COLUMNS.map(|(title, _)| title.into()).into()));
    for device in devices {
        let mut cells = row(device);
        cells[1] = cells[1].trim_start_matches("NVIDIA ").to_owned();
        narrow.add_row(shown(cells));
    }
    narrow
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width);
    let last = narrow.column_count().saturating_sub(1);
    for (place, column) in narrow.column_iter_mut().enumerate() {
        column.set_padding((0, if place < last { 2 } else { 0 }));
        if place < last {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    narrow.to_string()
}

fn row(device: &Device) -> Vec<String> {
    let text = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    let of = |now: Option<String>, most: Option<String>| match (now, most) {
        (None, None) => text(None),
        (now, most) => format!("{}/{}", text(now), text(most)),
    };
    let mib = |bytes: Option<u64>| bytes.map(|bytes| (bytes >> 20).to_string());
    let watts = |watts: Option<f64>| watts.map(|watts| format!("{watts:.0}"));
    let number = |number: Option<u32>| text(number.map(|number| number.to_string()));
    let tasks = |kind: fn(Limits) -> u32| {
        let count = |limits: Option<Limits>| limits.map(|limits| kind(limits).to_string());
        of(count(device.current_tasks), count(device.limits))
    };
    let pools = device.pools.as_ref().filter(|pools| !pools.is_empty());
    vec![
        device.device.clone(),
        device.name.clone(),
        text(device.compute_capability.clone()),
        of(
            mib(device.memory_used_bytes),
            mib(device.memory_total_bytes),
        ),
        number(device.utilization_gpu_percent),
        number(device.temperature_gpu_c),
        of(
            watts(device.power_draw_watts),
            watts(device.power_limit_enforced_watts),
        ),
        tasks(|count| count.training),
        tasks(|count| count.inference),
        text(pools.map(|pools| pools.join(", "))),
        device.state(),
    ]
}

/// What is known of the GPUs in a document, or why there are none.
pub(super) fn gpus(document: &Value, width: Option<u16>) -> anyhow::Result<String> {
    let gpus = view::gpus(document)?;
    if gpus.is_empty() {
        return Ok(format!("No GPU: {}", none(document)));
    }
    Ok(format!("{}{}", devices(&gpus, width), versions(document)))
}

/// The devices of a host that starts, the processor among them, and why one takes no task.
pub(super) fn start(machine: &Machine) -> anyhow::Result<String> {
    let usage = machine.allocator.usage();
    let processor = usage.iter().find(|usage| usage.device == DeviceId::Cpu);
    let processor = processor.map(|usage| Device::processor(usage, memory_bytes()));
    let document = view::of_machine(machine)?;
    let gpus = view::gpus(&document)?;
    let reason = match gpus.len() {
        0 => format!("\nNo GPU: {}", none(&document)),
        _ => versions(&document),
    };
    let shown: Vec<Device> = processor.into_iter().chain(gpus).collect();
    Ok(format!("{}{reason}", devices(&shown, None)))
}

/// Why a document has no GPU.
fn none(document: &Value) -> &str {
    document["nvml_error"].as_str().unwrap_or("NVML shows none")
}

/// The versions of the driver, on lines of their own.
fn versions(document: &Value) -> String {
    let version = |what: &str, member: &str| {
        let version = document[member].as_str();
        version
            .map(|version| format!("\n{what} {version}"))
            .unwrap_or_default()
    };
    version("driver", "driver_version") + &version("CUDA up to", "cuda_version")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document() -> Value {
        let gpu = json!({
            "device": "cuda:0", "name": "Tesla T4", "compute_capability": "7.5",
            "memory_total_bytes": 15360u64 << 20, "memory_used_bytes": 1000u64 << 20,
            "utilization_gpu_percent": 40, "temperature_gpu_c": 33, "power_draw_watts": 33.51,
            "power_limit_enforced_watts": 70.0,
            "current_tasks": { "training": 1, "inference": 0 },
            "limits": { "training": 2, "inference": 3 },
            "pools": ["small", "old"], "health": "healthy", "schedulable": true, "reason": null,
        });
        let mut lost = json!({ "device": "cuda:1", "name": "Tesla T4", "health": "lost" });
        lost["schedulable"] = false.into();
        lost["reason"] = "it fell off the bus".into();
        json!({ "gpus": [gpu, lost], "driver_version": "580.105.08", "cuda_version": "13.0" })
    }

    #[test]
    fn gpus_are_a_table_and_what_is_not_known_is_a_dash() {
        let text = gpus(&document(), None).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let cells = |line: &str| -> Vec<String> {
            line.split(['│', '┆'])
                .map(|cell| cell.trim().to_owned())
                .collect()
        };
        assert_eq!(
            cells(lines[3])[1..12].join("|"),
            "cuda:0|Tesla T4|7.5|1000/15360|40|33|34/70|1/2|0/3|small, old|ready"
        );
        assert_eq!(
            cells(lines[4])[1..12].join("|"),
            "cuda:1|Tesla T4|–|–|–|–|–|–|–|–|lost: it fell off the bus"
        );
        assert!(
            text.ends_with("\ndriver 580.105.08\nCUDA up to 13.0"),
            "{text}"
        );
        let none = gpus(&json!({ "gpus": [], "nvml_error": "no driver" }), None);
        assert_eq!(none.unwrap(), "No GPU: no driver");
        assert!(gpus(&json!({ "gpus": [{}] }), None).is_err());
    }

    #[test]
    fn a_narrow_terminal_shows_less_and_wraps_the_state() {
        let text = gpus(&document(), Some(80)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines.iter().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            words(lines[0]),
            "device name MiB used % °C W train infer state"
        );
        assert_eq!(
            words(lines[1]),
            "cuda:0 Tesla T4 1000/15360 40 33 34/70 1/2 0/3 ready"
        );
        assert!(text.contains("lost: it fell off"), "{text}");
        assert_eq!(
            gpus(&document(), Some(200)).unwrap(),
            gpus(&document(), None).unwrap()
        );
        // One that is narrower still wraps as it can.
        assert!(!gpus(&document(), Some(1)).unwrap().is_empty());
    }
}
