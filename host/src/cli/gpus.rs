//! `hangar gpus`: the GPUs, once or again and again.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::termios::tcgetwinsize;
use serde_json::Value;

use super::{folders, server, table, view};
use crate::client::Client;
use crate::machine::{Machine, PERIOD};
use crate::output;
use crate::settings::Settings;
use crate::worker::probe::Depth;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    server: server::Arguments,
    /// Shows them every so many seconds, until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = period)]
    watch: Option<Duration>,
}

/// A time between two tables: 0.1 s to a day.
fn period(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok();
    let seconds = seconds.filter(|seconds| (0.1..=86_400.0).contains(seconds));
    let told = || "a number of seconds from 0.1 to 86400".to_owned();
    seconds.map(Duration::from_secs_f64).ok_or_else(told)
}

/// Who tells of the GPUs.
enum Source {
    Server(Client),
    Machine(Box<Machine>),
}

impl Source {
    /// The server that is named or runs on the state folder, else the machine.
    fn find(arguments: &server::Arguments, folders: &folders::Arguments) -> anyhow::Result<Self> {
        if let Some(client) = server::find(arguments, folders)? {
            return Ok(Self::Server(client));
        }
        let machine = Machine::look(Settings::read(&folders.state()?)?, PERIOD, |_| Depth::Check)?;
        machine.probed();
        Ok(Self::Machine(Box::new(machine)))
    }

    async fn look(&self) -> anyhow::Result<Value> {
        Ok(match self {
            Self::Server(client) => view::of_server(client).await?,
            Self::Machine(machine) => view::of_machine(machine)?,
        })
    }
}

pub(super) fn gpus(
    folders: &folders::Arguments,
    arguments: &Arguments,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let source = Source::find(&arguments.server, folders)?;
    super::runtime()?.block_on(async {
        let Some(period) = arguments.watch else {
            let document = source.look().await?;
            output::data(if json {
                serde_json::to_string_pretty(&document)?
            } else {
                table::gpus(&document, width())?
            })?;
            return Ok(ExitCode::SUCCESS);
        };
        let mut turn = tokio::time::interval(period);
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        loop {
            tokio::select! {
                _ = turn.tick() => {}
                interrupted = &mut interrupted => {
                    interrupted?;
                    return Ok(ExitCode::SUCCESS);
                }
            }
            let document = source.look().await?;
            if json {
                output::data(serde_json::to_string(&document)?)?;
            } else {
                draw(&table::gpus(&document, width())?)?;
            }
        }
    })
}

/// Shows a table in place of the one before on a terminal, after it elsewhere.
fn draw(table: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        // ECMA-48: the cursor home, and all that is there erased.
        write!(out, "\x1b[H\x1b[2J")?;
    }
    writeln!(out, "{table}")?;
    out.flush()
}

/// The terminal's columns; none where there is no terminal.
fn width() -> Option<u16> {
    let size = tcgetwinsize(std::io::stdout()).ok()?;
    Some(size.ws_col).filter(|&columns| columns > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_a_number_of_seconds() {
        assert_eq!(period("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "nan", "inf", "1e9", "soon", ""] {
            assert!(period(text).is_err(), "{text}");
        }
    }
}
