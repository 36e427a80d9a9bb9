//! What the processor does, from `/proc` (proc(5)).

use std::time::Duration;

/// What the processor does: percent over the last 100 ms, cores, frequency, load, memory.
pub async fn sample() -> serde_json::Value {
    let before = times();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let after = times();
    let percent = |(busy, total): (u64, u64), (busy_then, total_then): (u64, u64)| {
        let (busy, total) = (
            busy.saturating_sub(busy_then),
            total.saturating_sub(total_then),
        );
        (busy as f64 / total.max(1) as f64 * 1e3).round() / 1e1
    };
    let percents: Vec<f64> = after
        .iter()
        .zip(&before)
        .map(|(a, b)| percent(*a, *b))
        .collect();
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let information = file("/proc/cpuinfo");
    let values = |key: &str| -> Vec<String> {
        let lines = information.lines().filter(|line| line.starts_with(key));
        lines
            .filter_map(|line| Some(line.split_once(':')?.1.trim().to_owned()))
            .collect()
    };
    let mut cores: Vec<(String, String)> = values("physical id")
        .into_iter()
        .zip(values("core id"))
        .collect();
    cores.sort();
    cores.dedup();
    let load: Vec<f64> = file("/proc/loadavg")
        .split(' ')
        .take(3)
        .filter_map(|word| word.parse().ok())
        .collect();
    let memory = file("/proc/meminfo");
    let kibibytes = |key: &str| -> Option<f64> {
        let line = memory.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let used = kibibytes("MemTotal:").zip(kibibytes("MemAvailable:"));
    serde_json::json!({
        "percent": percents.first(),
        "per_cpu_percent": percents.get(1..),
        "cores": percents.len().saturating_sub(1),
        "physical_cores": Some(cores.len()).filter(|&count| count > 0),
        "freq_mhz": values("cpu MHz").first().and_then(|value| value.parse::<f64>().ok()),
        "load_avg": { "1": load.first(), "5": load.get(1), "15": load.get(2) },
        "memory_percent": used.map(|(total, free)| ((total - free) / total * 1e3).round() / 1e1),
    })
}

/// Busy and total time of all processors, then of each (`/proc/stat`).
fn times() -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with("cpu"));
    lines
        .map(|line| {
            let times: Vec<u64> = line
                .split_whitespace()
                .skip(1)
                .take(8)
                .filter_map(|time| time.parse().ok())
                .collect();
            let total: u64 = times.iter().sum();
            let idle: u64 = times.iter().skip(3).take(2).sum();
            (total - idle, total)
        })
        .collect()
}
