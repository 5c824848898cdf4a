//! `nuage uninstall`: takes away what Nuage has put into the engine and the kernel.

use std::{
    io::{self, IsTerminal},
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{anyhow, bail};
use common::Config;
use serde_json::json;

use super::running::block_on;
use crate::output::{Done, Output, count, write_all};

/// Removes containers, networks, mounts and firewall rules; files stay.
pub(crate) fn run(config: &Path, output: &Output) -> anyhow::Result<Done> {
    let config = Config::load(config)?;
    if UnixStream::connect(&config.containers.socket).is_ok() {
        bail!("nuage is running: stop it first, or it would make everything again");
    }
    let terminal = io::stderr().is_terminal();
    let progress = |gone: usize, all: usize| {
        if terminal {
            let end = if gone == all { "\r\x1b[K" } else { "" };
            // Who can't be told is still served.
            write_all(
                io::stderr(),
                &format!("\rremoving containers: {gone} of {all}{end}"),
            )
            .unwrap_or_default();
        }
    };
    let removed =
        block_on(containers::uninstall(&config, progress))?.map_err(|error| anyhow!(error))?;
    let value = json!({ "containers": removed.containers, "networks": removed.networks, "state": config.state });
    output.print(&value, || {
        format!(
            "removed {} and {}, the disk mounts and the firewall rules\nfiles, databases and keys stay in {}\n",
            count(removed.containers, "container"),
            count(removed.networks, "network"),
            config.state.display()
        )
    })?;
    Ok(Done::Well)
}
