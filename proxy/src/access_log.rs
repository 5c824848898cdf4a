//! Access logs: one file of JSON lines for each site, written by a thread of its own behind a
//! bounded queue, set aside when large.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread::JoinHandle,
};

use common::{HostName, config};
use prometheus::IntCounter;
use serde::Serialize;

/// Lines waiting to be written; past it lines are lost, and counted, rather than requests slowed.
const QUEUE: usize = 4_096;
/// Files open at once.
const MOST_OPEN: usize = 128;

/// One request as its log line tells it.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    /// RFC 3339, UTC.
    pub(crate) time: String,
    pub(crate) site: HostName,
    pub(crate) client: String,
    pub(crate) method: String,
    pub(crate) scheme: &'static str,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) protocol: &'static str,
    pub(crate) status: u16,
    pub(crate) bytes: usize,
    pub(crate) seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) referer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_agent: Option<String>,
}

/// Where lines go; nowhere when the log is off.
#[derive(Debug)]
pub(crate) struct AccessLog {
    queue: Option<SyncSender<Line>>,
    writer: Option<JoinHandle<()>>,
    lost: IntCounter,
}

impl AccessLog {
    pub(crate) fn start(
        config: &config::AccessLog,
        registry: &prometheus::Registry,
    ) -> io::Result<Self> {
        let lost = IntCounter::new(
            "nuage_access_log_lines_lost_total",
            "Access log lines lost to a full queue.",
        )
        .map_err(io::Error::other)?;
        registry
            .register(Box::new(lost.clone()))
            .map_err(io::Error::other)?;
        if !config.enabled {
            return Ok(Self {
                queue: None,
                writer: None,
                lost,
            });
        }
        fs::create_dir_all(&config.folder)?;
        let (queue, lines) = sync_channel(QUEUE);
        let config = config.clone();
        let writer = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(&config, &lines))?;
        Ok(Self {
            queue: Some(queue),
            writer: Some(writer),
            lost,
        })
    }

    /// Whether anybody wants lines.
    pub(crate) fn enabled(&self) -> bool {
        self.queue.is_some()
    }

    pub(crate) fn line(&self, line: Line) {
        if let Some(queue) = &self.queue {
            match queue.try_send(line) {
                Ok(()) => {}
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.lost.inc(),
            }
        }
    }
}

impl Drop for AccessLog {
    /// Waits for the lines still queued.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the access log's writer had failed");
        }
    }
}

fn write(config: &config::AccessLog, lines: &Receiver<Line>) {
    let mut files: HashMap<HostName, Log> = HashMap::new();
    while let Ok(line) = lines.recv() {
        if !files.contains_key(&line.site) && files.len() >= MOST_OPEN {
            files.clear();
        }
        let path = config.folder.join(format!("{}.jsonl", line.site));
        if let Err(error) = append(&mut files, &path, &line, config) {
            tracing::warn!(path = %path.display(), %error, "access log line not written");
            files.remove(&line.site);
        }
    }
}

struct Log {
    file: File,
    bytes: u64,
}

fn append(
    files: &mut HashMap<HostName, Log>,
    path: &Path,
    line: &Line,
    config: &config::AccessLog,
) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let length = text.len() as u64;
    if let Some(log) = files.get(&line.site)
        && log.bytes + length > config.rotate_bytes
    {
        files.remove(&line.site);
        set_aside(path, config.keep)?;
    }
    let log = match files.entry(line.site.clone()) {
        std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
        std::collections::hash_map::Entry::Vacant(slot) => {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            let bytes = file.metadata()?.len();
            slot.insert(Log { file, bytes })
        }
    };
    log.file.write_all(&text)?;
    log.bytes += length;
    Ok(())
}

/// `x.jsonl` becomes `x.jsonl.1`, `.1` becomes `.2`, and the oldest goes.
fn set_aside(path: &Path, keep: usize) -> io::Result<()> {
    if keep == 0 {
        return fs::remove_file(path);
    }
    let numbered = |number: usize| -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        name.into()
    };
    for number in (1..keep).rev() {
        let from = numbered(number);
        if from.exists() {
            fs::rename(from, numbered(number + 1))?;
        }
    }
    fs::rename(path, numbered(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_past_its_size_is_set_aside_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let config = config::AccessLog {
            enabled: true,
            folder: folder.path().to_owned(),
            rotate_bytes: 450,
            keep: 2,
        };
        let site = HostName::parse("a.w.example").unwrap();
        let path = folder.path().join("a.w.example.jsonl");
        let mut files = HashMap::new();
        for number in 0..9_u16 {
            let line = Line {
                time: String::new(),
                site: site.clone(),
                client: "::1".into(),
                method: "GET".into(),
                scheme: "http",
                host: "a.w.example".into(),
                path: "/\"".into(),
                protocol: "HTTP/1.1",
                status: number,
                bytes: 1,
                seconds: 0.1,
                referer: None,
                user_agent: None,
            };
            append(&mut files, &path, &line, &config).unwrap();
        }
        let statuses = |name: &str| -> Vec<u64> {
            let text = fs::read_to_string(folder.path().join(name)).unwrap();
            text.lines()
                .map(|line| {
                    serde_json::from_str::<serde_json::Value>(line).unwrap()["status"]
                        .as_u64()
                        .unwrap()
                })
                .collect()
        };
        assert_eq!(statuses("a.w.example.jsonl"), [8]);
        assert_eq!(statuses("a.w.example.jsonl.1"), [6, 7]);
        assert_eq!(statuses("a.w.example.jsonl.2"), [4, 5]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
