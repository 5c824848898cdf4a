//! `nuage ca`.

use std::path::Path;

use anyhow::bail;
use common::Config;
use proxy::authority::LocalAuthority;

use crate::output::{Done, Output};

/// Prints the certificate of the local authority.
pub(crate) fn print(config: &Path, output: &Output) -> anyhow::Result<Done> {
    let config_file = config;
    let config = Config::load(config_file).map_err(|problems| {
        anyhow::anyhow!(
            problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        )
    })?;
    let path = config.state.join("keys").join("ca.pem");
    if !path.exists() {
        bail!(
            "there is no local authority yet: `nuage serve` makes it on its first start, in {}",
            path.display()
        );
    }
    let pem = LocalAuthority::open(&config.state)?.pem().to_owned();
    output.print(&serde_json::json!({ "path": path, "pem": pem }), || {
        pem.clone()
    })?;
    Ok(Done::Well)
}
