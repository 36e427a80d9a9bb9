//! Finding the server that a command talks to.

use clap::Args;

use super::folders;
use crate::address;
use crate::client::{Client, Server};

#[derive(Args)]
pub(super) struct Arguments {
    /// The server's address, such as http://127.0.0.1:8000 [default: the server that runs on the state
    /// folder].
    #[arg(long, global = true, value_name = "URL")]
    server: Option<Server>,
}

/// A client of the server that is named, else of the state folder's; none where none runs.
pub(super) fn find(
    arguments: &Arguments,
    folders: &folders::Arguments,
) -> anyhow::Result<Option<Client>> {
    let server = match &arguments.server {
        Some(server) => Some(server.clone()),
        None => address::find(&folders.state()?)?.map(Server::from),
    };
    Ok(server.map(Client::new))
}

/// The same. Errors: where none runs.
pub(super) fn need(arguments: &Arguments, folders: &folders::Arguments) -> anyhow::Result<Client> {
    match find(arguments, folders)? {
        Some(client) => Ok(client),
        None => anyhow::bail!(
            "no server runs on the state folder {}; start one with `hangar serve`, or name one with \
             --server or its folder with --state",
            folders.state()?.display()
        ),
    }
}
