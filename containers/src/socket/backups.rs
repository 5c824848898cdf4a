//! Backup and restore of a site over the control socket.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    body::{Body, Bytes},
    extract::{Path as InPath, Query, State},
};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::{Refused, Socket, received};
use crate::{backup, database::Database, plan::Level, tenant::Refusal, work::Making};

/// Without progress from whoever reads or sends a backup: the site stands still meanwhile.
const STALL: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
pub(super) struct Restore {
    /// From the bin, not from what is sent.
    #[serde(default)]
    bin: bool,
}

pub(super) async fn write(
    State(socket): State<Socket>,
    InPath(site): InPath<Arc<str>>,
) -> Result<Body, Refused> {
    let (held, making) = socket.hold(&site, Level::Dozing).await?;
    socket.make_ready(&making, false).await?;
    let dump = socket.dump(&site, &making).await?;
    let files = socket.work.folders.files(&site);
    let (sender, mut pieces) = mpsc::channel(backup::PIECES);
    let errors = sender.clone();
    tokio::task::spawn_blocking(move || {
        let written = backup::write(&files, dump.as_deref(), backup::Pieces::new(sender));
        if let Some(dump) = dump {
            std::fs::remove_file(dump).unwrap_or_default();
        }
        if let Err(error) = written {
            // A stream that ends without its error would pass for whole.
            drop(errors.blocking_send(Err(error)));
        }
    });
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _held = held;
        while let Some(piece) = pieces.recv().await {
            // A reader that stands still must not keep the site standing still.
            if !matches!(timeout(STALL, sender.send(piece)).await, Ok(Ok(()))) {
                return;
            }
        }
    });
    Ok(Body::from_stream(received(receiver)))
}

pub(super) async fn restore(
    State(socket): State<Socket>,
    InPath(site): InPath<Arc<str>>,
    Query(restore): Query<Restore>,
    body: Body,
) -> Result<(), Refused> {
    // In a task of its own: who asked may leave, half a restore must not stay.
    let restored = tokio::spawn(async move {
        // Ended, not frozen: its files are about to be others.
        let (_held, making) = socket.hold(&site, Level::Asleep).await?;
        // The folder is there, its disk mounted and its database made, though nobody may have visited yet.
        socket.make_ready(&making, true).await?;
        // What is there goes to the bin whole, its database too.
        socket.dump(&site, &making).await?;
        if restore.bin {
            socket.recover(&site, &making).await
        } else {
            socket.unpack(&site, &making, body).await
        }
    });
    restored
        .await
        .unwrap_or_else(|error| Err(Refused::Io(io::Error::other(error))))
}

impl Socket {
    async fn make_ready(&self, making: &Making, at_rest: bool) -> Result<(), Refused> {
        self.work
            .ready_files(making, at_rest)
            .await
            .map_err(|error| Refused::Site(Refusal::Failing(error.to_string())))
    }

    fn database(&self, making: &Making) -> Option<&Database> {
        self.work.database.as_ref().filter(|_| making.database)
    }

    /// Where a site's database is put beside its files.
    fn dump_file(&self, site: &str) -> Result<PathBuf, Refused> {
        let work = self.work.folders.work(site).map_err(Refused::Io)?;
        Ok(work.join(backup::DUMP))
    }

    /// Dumps the site's database, if it has one.
    async fn dump(&self, site: &str, making: &Making) -> Result<Option<PathBuf>, Refused> {
        let Some(database) = self.database(making) else {
            return Ok(None);
        };
        let dump = self.dump_file(site)?;
        database.dump(site, &dump).await.map_err(Refused::Io)?;
        Ok(Some(dump))
    }

    /// Takes what the bin has last of a site.
    async fn recover(&self, site: &Arc<str>, making: &Making) -> Result<(), Refused> {
        let (folders, name) = (self.work.folders.clone(), Arc::clone(site));
        blocking(move || folders.recover(&name, SystemTime::now())).await?;
        self.settle(site, making).await?;
        // The site may be another tenant by now than the one whose files these were.
        let (files, uid) = (self.work.folders.files(site), making.spec.uid);
        blocking(move || backup::give(&files, uid)).await
    }

    /// Takes what is sent.
    async fn unpack(&self, site: &Arc<str>, making: &Making, body: Body) -> Result<(), Refused> {
        let (feeding, receiver) = feed(body);
        let (folders, name) = (self.work.folders.clone(), Arc::clone(site));
        let (uid, quota) = (making.spec.uid, making.quota);
        let unpacked = blocking(move || {
            let arriving = backup::Arriving {
                receiver,
                piece: Bytes::new(),
            };
            let unpacked = backup::unpack(&folders.work(&name)?, uid, quota, arriving)?;
            backup::replace(&folders, &name, uid, quota, &unpacked)
        })
        .await;
        feeding.abort();
        if unpacked.is_err() {
            // The dump of what is still in place.
            self.clear(site)?;
        }
        unpacked?;
        self.settle(site, making).await
    }

    /// Reads the dump that came with the files into the database.
    async fn settle(&self, site: &str, making: &Making) -> Result<(), Refused> {
        self.make_ready(making, true).await?;
        let dump = self.dump_file(site)?;
        if let Some(database) = self.database(making).filter(|_| dump.exists()) {
            database.restore(site, &dump).await.map_err(Refused::Io)?;
        }
        // What is in it is in the database now, or was for none.
        self.clear(site)
    }

    fn clear(&self, site: &str) -> Result<(), Refused> {
        let work = self.work.folders.work(site).map_err(Refused::Io)?;
        std::fs::remove_dir_all(work).map_err(Refused::Io)
    }
}

/// Pieces of a body, for a reader that blocks.
fn feed(body: Body) -> (JoinHandle<()>, mpsc::Receiver<io::Result<Bytes>>) {
    let (sender, receiver) = mpsc::channel(backup::PIECES);
    let feeding = tokio::spawn(async move {
        let mut body = body.into_data_stream();
        loop {
            let piece = match timeout(STALL, body.next()).await {
                Ok(None) => return,
                Ok(Some(piece)) => piece.map_err(io::Error::other),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the backup stopped coming",
                )),
            };
            let failed = piece.is_err();
            if sender.send(piece).await.is_err() || failed {
                return;
            }
        }
    });
    (feeding, receiver)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(Refused::Io)
}
