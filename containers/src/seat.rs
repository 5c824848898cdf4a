//! A container's place on its bridge, locked to it.

use std::{net::Ipv4Addr, path::Path};

use crate::walls::{WallsError, mac, run};

/// Seats a container that has just started: its bridge port talks to the host only and takes no
/// other MAC than its own, whose place in the bridge's table nobody can steal. Without a seat a
/// container with raw sockets could send frames under a neighbour's MAC and get its traffic. To be
/// done after every start, with the first process's id.
///
/// # Errors
/// When the container has no port on the bridge, or `bridge` is missing or refuses (kernels before
/// 5.18).
pub(crate) async fn seat(bridge: &str, pid: u32, address: Ipv4Addr) -> Result<(), WallsError> {
    let missing = || WallsError::NoPort {
        pid,
        bridge: bridge.to_owned(),
    };
    let port = port(bridge, pid).await.ok_or_else(missing)?;
    let batch = format!(
        "link set dev {port} isolated on\nfdb replace {} dev {port} master static sticky\n\
         link set dev {port} learning off locked on\n",
        mac(address)
    );
    run("bridge", &["-batch", "-"], &batch).await?;
    // What the port has taught the bridge so far is believed no longer; static entries stay.
    let flush = format!("/sys/class/net/{port}/brport/flush");
    tokio::fs::write(flush, "1")
        .await
        .map_err(|source| WallsError::Run {
            program: "bridge",
            source,
        })
}

/// The bridge port whose other end is the container's `eth0`.
async fn port(bridge: &str, pid: u32) -> Option<String> {
    let index = format!("/proc/{pid}/root/sys/class/net/eth0/iflink");
    let index = tokio::fs::read_to_string(index).await.ok()?;
    let mut ports = tokio::fs::read_dir(format!("/sys/class/net/{bridge}/brif"))
        .await
        .ok()?;
    while let Some(port) = ports.next_entry().await.ok()? {
        let own = Path::new("/sys/class/net")
            .join(port.file_name())
            .join("ifindex");
        // A port may go away while we look.
        if tokio::fs::read_to_string(own)
            .await
            .is_ok_and(|own| own == index)
        {
            return port.file_name().into_string().ok();
        }
    }
    None
}
