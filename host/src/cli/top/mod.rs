//! `hangar top`: the GPUs and tasks of a server that runs, live in the terminal.

mod draw;
mod view;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use self::view::View;
use super::{folders, server};
use crate::client::Client;
use crate::output;

/// The time between two looks at the server.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a key, a signal or a new look may go unnoticed.
const TICK: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    server: server::Arguments,
}

pub(super) fn top(
    folders: &folders::Arguments,
    arguments: &Arguments,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let client = server::need(&arguments.server, folders)?;
    let runtime = super::runtime()?;
    let first = runtime.block_on(view::look(&client))?;
    if json {
        output::data(serde_json::to_string_pretty(&first)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !std::io::stdout().is_terminal() {
        anyhow::bail!("`hangar top` needs a terminal; `hangar gpus --watch` does not");
    }
    let (sender, mut looks) = watch::channel(View::read(&first)?);
    let ended = Arc::new(AtomicBool::new(false));
    runtime.spawn(keep_looking(client, sender));
    let mut terminal = ratatui::try_init()?;
    let (quits, mut quit) = oneshot::channel();
    let noticed = Arc::clone(&ended);
    std::thread::spawn(move || {
        let shown = show(&mut terminal, &mut looks, &noticed);
        // This shows the cursor again.
        drop(terminal);
        quits.send(shown)
    });
    let shown = runtime.block_on(async {
        tokio::select! {
            shown = &mut quit => shown,
            () = signalled() => {
                ended.store(true, Ordering::Relaxed);
                // Reading keys never returns where the terminal is gone.
                tokio::time::timeout(PERIOD, quit).await.unwrap_or(Ok(Ok(())))
            }
        }
    });
    ratatui::try_restore()?;
    shown??;
    Ok(ExitCode::SUCCESS)
}

/// Looks at the server again and again. While it does not answer, what it told last stays, and why.
async fn keep_looking(client: Client, looks: watch::Sender<View>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let look = view::look(&client).await;
        match look.and_then(|document| View::read(&document)) {
            Ok(view) => drop(looks.send_replace(view)),
            Err(error) => looks.send_modify(|view| view.problem = Some(format!("{error:#}"))),
        }
    }
}

/// Waits until somebody wants this to end, who shall get the terminal back as it was.
async fn signalled() {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}

/// Draws what there is to see until somebody quits.
fn show(
    terminal: &mut DefaultTerminal,
    looks: &mut watch::Receiver<View>,
    ended: &AtomicBool,
) -> std::io::Result<()> {
    let mut stale = true;
    while !ended.load(Ordering::Relaxed) {
        if stale || looks.has_changed().unwrap_or(false) {
            let view = looks.borrow_and_update().clone();
            terminal.draw(|frame| draw::draw(frame, &view))?;
        }
        stale = false;
        if event::poll(TICK)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    let control = key.modifiers.contains(KeyModifiers::CONTROL);
                    match key.code {
                        KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                        KeyCode::Char('c') if control => return Ok(()),
                        _ => {}
                    }
                }
                Event::Resize(..) => stale = true,
                _ => {}
            }
        }
    }
    Ok(())
}
