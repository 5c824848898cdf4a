//! Backup and restore of a site over the control socket.

use std::{
    io,
    path::{Path, PathBuf},
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
use crate::{
    backup, database::Database, files::Folders, plan::Level, tenant::Refusal, work::Making,
};

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
    let dump = socket.whole_dump(&site, &making).await?;
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
        let from = if restore.bin {
            socket.latest(&site)?
        } else {
            socket.unpack(&site, &making, body).await?
        };
        let swapped = socket.swap(&site, &making, &from).await;
        // What could not be put in its place stays in the bin, if it came from there.
        if swapped.is_ok() || !restore.bin {
            blocking(move || backup::remove(&from))
                .await
                .map_err(Refused::Io)?;
        }
        swapped
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

    /// Dumps the site's database, if it has one, to where `discard` finds it; what is damaged is left out
    /// and told.
    async fn dump(
        &self,
        site: &str,
        making: &Making,
    ) -> io::Result<Option<(PathBuf, Option<String>)>> {
        let Some(database) = self.database(making) else {
            return Ok(None);
        };
        let dump = self.work.folders.work(site)?.join(backup::DUMP);
        let damage = database.dump(site, &dump).await?;
        Ok(Some((dump, damage)))
    }

    /// A backup that lacks something must not pass for one.
    async fn whole_dump(&self, site: &str, making: &Making) -> Result<Option<PathBuf>, Refused> {
        match self.dump(site, making).await.map_err(Refused::Io)? {
            None => Ok(None),
            Some((dump, None)) => Ok(Some(dump)),
            Some((dump, Some(damage))) => {
                std::fs::remove_file(dump).unwrap_or_default();
                Err(Refused::Io(io::Error::other(damage)))
            }
        }
    }

    /// What the bin has last of a site.
    fn latest(&self, site: &str) -> Result<PathBuf, Refused> {
        self.work.folders.discarded(site).pop().ok_or_else(|| {
            Refused::Io(io::Error::new(
                io::ErrorKind::NotFound,
                "the bin holds nothing of this site",
            ))
        })
    }

    /// Unpacks what is sent beside the site.
    async fn unpack(&self, site: &str, making: &Making, body: Body) -> Result<PathBuf, Refused> {
        // No site has such a name.
        let folder = self.work.folders.work(&format!("{site}@restore"));
        let (folder, quota) = (folder.map_err(Refused::Io)?, making.quota);
        let (feeding, receiver) = feed(body);
        let to = folder.clone();
        let unpacked = blocking(move || {
            let arriving = backup::Arriving {
                receiver,
                piece: Bytes::new(),
            };
            backup::unpack(&to, quota, arriving)
        })
        .await;
        feeding.abort();
        unpacked.map(|()| folder).map_err(Refused::Io)
    }

    /// Puts what is in a folder in the site's place, and what is there into the bin: all of it, or
    /// nothing.
    async fn swap(&self, site: &Arc<str>, making: &Making, from: &Path) -> Result<(), Refused> {
        // As far as it can be: a damaged database is a reason to restore one.
        self.dump(site, making).await.map_err(Refused::Io)?;
        let (folders, name) = (self.work.folders.clone(), Arc::clone(site));
        let before = blocking(move || {
            let before = folders.discard(&name, SystemTime::now())?;
            if let Some(place) = &before {
                // Told at the next start, if this process doesn't live to see the end.
                Folders::note_restore(place, true)?;
            }
            Ok(before)
        })
        .await
        .map_err(Refused::Io)?;
        let Err(error) = self.put(site, making, from).await else {
            if let Some(place) = before {
                blocking(move || Folders::note_restore(&place, false))
                    .await
                    .map_err(Refused::Io)?;
            }
            return Ok(());
        };
        let why = match self.put_off(site, making, from, before).await {
            Ok(()) => error.to_string(),
            Err(also) => format!(
                "{error}; nor could what was there be put back ({also}): it is in the bin, `nuage site restore {site} --bin`"
            ),
        };
        Err(Refused::Io(io::Error::other(why)))
    }

    /// Undoes `put`, and puts what was there before in its place again.
    async fn put_off(
        &self,
        site: &Arc<str>,
        making: &Making,
        from: &Path,
        before: Option<PathBuf>,
    ) -> io::Result<()> {
        let (folders, name, from) = (self.work.folders.clone(), Arc::clone(site), from.to_owned());
        blocking(move || folders.put_aside(&name, &from)).await?;
        if let Some(before) = before {
            self.put(site, making, &before).await?;
            blocking(move || backup::remove(&before)).await?;
        }
        Ok(())
    }

    /// Puts files and database in the place of a site that has no files.
    async fn put(&self, site: &Arc<str>, making: &Making, from: &Path) -> io::Result<()> {
        let (folders, name, place) = (self.work.folders.clone(), Arc::clone(site), from.to_owned());
        blocking(move || folders.put_back(&name, &place)).await?;
        self.work
            .ready_files(making, true)
            .await
            .map_err(io::Error::other)?;
        let dump = from.join(backup::DUMP);
        if let Some(database) = self.database(making).filter(|_| dump.exists()) {
            database.restore(site, &dump).await?;
        }
        // They may have been another tenant's, or of another machine.
        let (files, uid) = (self.work.folders.files(site), making.spec.uid);
        blocking(move || backup::give(&files, uid)).await
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
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}
