//! `nuage ca`.

use std::path::Path;

use anyhow::{Context, bail};
use common::Config;

use crate::output::{Done, Output};

/// Prints the certificate of the local authority.
pub(crate) fn print(config: &Path, output: &Output) -> anyhow::Result<Done> {
    let config = Config::load(config)?;
    let path = config.state.join("keys").join("ca.pem");
    if !path.exists() {
        bail!(
            "there is no local authority yet: `nuage serve` makes it on its first start, in {}",
            path.display()
        );
    }
    let pem = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "can't read the local authority's certificate {}",
            path.display()
        )
    })?;
    output.print(&serde_json::json!({ "path": path, "pem": pem }), || {
        pem.clone()
    })?;
    Ok(Done::Well)
}
