//! `hangar devices`: how a server that runs gives its devices away.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use devices::Selector;
use serde_json::{Map, Value, json};

use super::{folders, server, table};
use crate::client::Client;
use crate::output;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    server: server::Arguments,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Keeps new tasks away from a device; those that run go on.
    Drain {
        /// `cpu` or `cuda:N`.
        device: Selector,
    },
    /// Lets tasks in again.
    Enable {
        /// `cpu` or `cuda:N`.
        device: Selector,
    },
    /// Shows how many tasks run at once on devices and in pools, or changes it.
    Limits {
        /// `cpu`, `cuda` (every GPU), `cuda:N` or a pool [default: all are shown].
        device: Option<Selector>,
        /// Trainings at once, from now on.
        #[arg(long, value_name = "COUNT", requires = "device")]
        training: Option<u32>,
        /// Inferences at once, from now on.
        #[arg(long, value_name = "COUNT", requires = "device")]
        inference: Option<u32>,
    },
}

const CONFIG: &str = "/api/v2/resources/config";

pub(super) fn devices(
    folders: &folders::Arguments,
    arguments: &Arguments,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let client = server::need(&arguments.server, folders)?;
    super::runtime()?.block_on(async {
        match &arguments.action {
            Action::Drain { device } => set_draining(&client, device, "drain", json).await?,
            Action::Enable { device } => set_draining(&client, device, "enable", json).await?,
            Action::Limits {
                device,
                training,
                inference,
            } => {
                let mut change = Map::new();
                for (kind, limit) in [("training", training), ("inference", inference)] {
                    if let Some(limit) = limit {
                        change.insert(kind.to_owned(), json!(limit));
                    }
                }
                let config = match device.as_ref().filter(|_| !change.is_empty()) {
                    None => client.get(CONFIG).await?,
                    Some(device) => {
                        let change = json!({ "max_concurrent": { device.to_string(): change } });
                        client.post(CONFIG, &change).await?["current_config"].take()
                    }
                };
                let shown = shown(&config, device.as_ref())?;
                output::data(if json {
                    serde_json::to_string_pretty(&shown)?
                } else {
                    limits(&shown)
                })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn set_draining(
    client: &Client,
    device: &Selector,
    action: &str,
    json: bool,
) -> anyhow::Result<()> {
    let path = format!("/api/v2/devices/{device}/{action}");
    let answer = client.post(&path, &Value::Null).await?;
    if json {
        output::data(serde_json::to_string_pretty(&answer)?)?;
        return Ok(());
    }
    let message = answer["message"].as_str().unwrap_or_default();
    let tasks = match answer["active_tasks"].as_u64() {
        Some(1) => "; 1 task runs there".to_owned(),
        Some(tasks) if tasks > 1 => format!("; {tasks} tasks run there"),
        _ => String::new(),
    };
    output::data(format_args!("{message}{tasks}"))?;
    Ok(())
}

/// The limits of a server's settings, by device and pool: of all, or of what a device string names.
/// Errors: where it names nothing.
fn shown(config: &Value, wanted: Option<&Selector>) -> anyhow::Result<Map<String, Value>> {
    let drained = config["drained"].as_array();
    let devices = config["max_concurrent"].as_object().into_iter().flatten();
    let devices = devices.map(|(device, limits)| {
        let drained = drained.is_some_and(|drained| drained.iter().any(|name| name == device));
        let mut limits = limits.clone();
        limits["drained"] = drained.into();
        (device.clone(), limits)
    });
    let pools = config["pools"].as_object().into_iter().flatten();
    let pools = pools.map(|(name, pool)| {
        let mut limits = pool["limits"].clone();
        limits["members"] = pool["members"].clone();
        (name.clone(), limits)
    });
    let all: Map<String, Value> = devices.chain(pools).collect();
    let Some(wanted) = wanted else {
        return Ok(all);
    };
    let named = |name: &String| match wanted {
        Selector::AnyGpu => name.starts_with("cuda:"),
        Selector::Device(_) | Selector::Pool(_) => *name == wanted.to_string(),
    };
    let names: Vec<String> = all.keys().cloned().collect();
    let shown: Map<String, Value> = all.into_iter().filter(|(name, _)| named(name)).collect();
    if shown.is_empty() {
        anyhow::bail!(
            "there is no device `{wanted}`; there are: {}",
            names.join(", ")
        );
    }
    Ok(shown)
}

/// Limits as a table; `–` is none.
fn limits(shown: &Map<String, Value>) -> String {
    let mut table = table::new(&["device", "training", "inference", ""]);
    for (name, limits) in shown {
        let limit = |kind: &str| {
            limits[kind]
                .as_u64()
                .map_or("–".to_owned(), |n| n.to_string())
        };
        let members = limits["members"].as_array().map(|members| {
            let members: Vec<&str> = members.iter().filter_map(Value::as_str).collect();
            format!("together: {}", members.join(", "))
        });
        let drained = (limits["drained"] == true).then(|| "drained".to_owned());
        let note = members.or(drained).unwrap_or_default();
        table.add_row([name.clone(), limit("training"), limit("inference"), note]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_what_is_named() {
        let config = json!({
            "max_concurrent": {
                "cpu": { "training": 2, "inference": 4 },
                "cuda:0": { "training": 1, "inference": 3 },
                "cuda:1": { "training": 0, "inference": 9 },
            },
            "drained": ["cuda:1"],
            "pools": { "fast": { "limits": { "training": 5, "inference": null }, "members": ["cuda:0"] } },
        });
        let names = |text: &str| -> Vec<String> {
            let shown = shown(&config, Some(&text.parse().unwrap())).unwrap();
            shown.keys().cloned().collect()
        };
        assert_eq!(names("cuda"), ["cuda:0", "cuda:1"]);
        assert_eq!(names("fast"), ["fast"]);
        assert_eq!(names("cpu"), ["cpu"]);
        let unknown = shown(&config, Some(&"cuda:7".parse().unwrap())).unwrap_err();
        let there = "there are: cpu, cuda:0, cuda:1, fast";
        assert!(unknown.to_string().contains(there), "{unknown}");
        let table = limits(&shown(&config, None).unwrap());
        let row = |name: &str| -> String {
            let line = table.lines().find(|line| line.contains(name)).unwrap();
            line.chars().filter(|c| !" │┆".contains(*c)).collect()
        };
        assert_eq!(row("cuda:1"), "cuda:109drained");
        assert_eq!(row("fast"), "fast5–together:cuda:0");
    }
}
