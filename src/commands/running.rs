//! What is asked of running sites: `nuage site wake`, `logs`, `exec`, `backup` and the like. Each is a
//! request to control.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, bail};
use bytes::{Buf, Bytes, BytesMut};
use bytesize::ByteSize;
use common::observed::{Change, Live};
use containers::{Capacity, frame};
use futures_util::{Stream, StreamExt, stream};
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use rustix::termios::{self, OptionalActions, Termios};
use tokio::{io::AsyncReadExt, runtime};

use crate::{
    control::{self, Client, nothing},
    output::{Done, Output, table},
};

/// Read at once from a file or a terminal.
const PIECE: usize = 64 << 10;

/// Runs one request to its end.
pub(crate) fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    let done = runtime.block_on(future);
    // A read of standard input that never ends must not keep the command from ending.
    runtime.shutdown_background();
    Ok(done)
}

/// One site at a running control.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) client: Client,
    /// The full name.
    pub(crate) name: String,
}

impl Site {
    fn path(&self, what: &str) -> String {
        control::site(&self.name, what)
    }

    pub(crate) fn wake(&self, what: &str, output: &Output) -> anyhow::Result<Done> {
        let started = Instant::now();
        let live: Live = block_on(self.client.ask(Method::POST, &self.path(what), nothing()))??;
        output.print(&live, || {
            format!(
                "{} is {} ({:.0?})\n",
                self.name,
                live.state.word(),
                started.elapsed()
            )
        })?;
        Ok(Done::Well)
    }

    pub(crate) fn sleep(&self, output: &Output) -> anyhow::Result<Done> {
        block_on(self.client.act(&self.path("sleep"), nothing()))??;
        output.print(
            &serde_json::json!({ "site": self.name, "state": "asleep" }),
            || format!("{} is asleep\n", self.name),
        )?;
        Ok(Done::Well)
    }

    pub(crate) fn logs(&self, lines: Option<u32>, follow: bool) -> anyhow::Result<Done> {
        let mut path = format!("{}?follow={follow}", self.path("logs"));
        if let Some(lines) = lines {
            path.push_str(&format!("&lines={lines}"));
        }
        block_on(async {
            let answer = self.client.open(Method::GET, &path, nothing()).await?;
            copy(answer.into_body(), io::stdout()).await
        })??;
        Ok(Done::Well)
    }

    pub(crate) fn exec(&self, command: &[String]) -> anyhow::Result<Done> {
        let terminal = Terminal::open();
        let mut path = format!(
            "{}?command={}",
            self.path("exec"),
            quoted(&serde_json::to_string(command)?)
        );
        if let Some(terminal) = &terminal {
            path.push_str(&format!(
                "&height={}&width={}",
                terminal.height, terminal.width
            ));
        }
        let code = block_on(async {
            let body = StreamBody::new(standard_input().map(|piece| piece.map(Frame::data)));
            let answer = self
                .client
                .open(Method::POST, &path, BodyExt::boxed(body))
                .await?;
            frames(answer.into_body()).await
        });
        drop(terminal);
        match code?? {
            0 => Ok(Done::Well),
            code => Ok(Done::Code(u8::try_from(code).unwrap_or(1))),
        }
    }

    pub(crate) fn backup(&self, to: Option<&Path>, output: &Output) -> anyhow::Result<Done> {
        let Some(path) = to else {
            if io::stdout().is_terminal() {
                bail!("a backup is no text for a terminal: name a file with --output, or redirect");
            }
            block_on(self.back_up_into(io::stdout()))??;
            return Ok(Done::Well);
        };
        // Beside it first: half a backup must never pass for one.
        let beside = path.with_extension("partial");
        fs::remove_file(&beside).unwrap_or_default();
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            // It holds the site's passwords and its database.
            .mode(0o600)
            .open(&beside)
            .with_context(|| format!("can't write {}", beside.display()))?;
        let written = block_on(self.back_up_into(&file)).and_then(|bytes| bytes);
        let bytes = match written.and_then(|bytes| Ok(file.sync_all().map(|()| bytes)?)) {
            Ok(bytes) => bytes,
            Err(error) => {
                fs::remove_file(&beside).unwrap_or_default();
                return Err(error);
            }
        };
        fs::rename(&beside, path).with_context(|| format!("can't write {}", path.display()))?;
        let value = serde_json::json!({ "site": self.name, "file": path, "bytes": bytes });
        output.print(&value, || {
            format!(
                "{} is in {} ({})\n",
                self.name,
                path.display(),
                ByteSize::b(bytes).display().iec()
            )
        })?;
        Ok(Done::Well)
    }

    async fn back_up_into(&self, to: impl Write) -> anyhow::Result<u64> {
        let answer = self
            .client
            .open(Method::GET, &self.path("backup"), nothing())
            .await?;
        copy(answer.into_body(), to).await
    }

    pub(crate) fn restore(&self, file: Option<&Path>, output: &Output) -> anyhow::Result<Done> {
        let path = self.path("restore");
        let from: Box<dyn tokio::io::AsyncRead + Send + Sync + Unpin> = match file {
            None => {
                block_on(self.client.act(&format!("{path}?bin=true"), nothing()))??;
                return self.restored("the bin", output);
            }
            Some(file) if file == Path::new("-") => Box::new(tokio::io::stdin()),
            Some(file) => {
                let open = fs::File::open(file)
                    .with_context(|| format!("can't read {}", file.display()))?;
                Box::new(tokio::fs::File::from_std(open))
            }
        };
        let body = StreamBody::new(pieces(from).map(|piece| piece.map(Frame::data)));
        block_on(self.client.act(&path, BodyExt::boxed(body)))??;
        let from = file.map_or_else(String::new, |file| file.display().to_string());
        self.restored(&from, output)
    }

    fn restored(&self, from: &str, output: &Output) -> anyhow::Result<Done> {
        let value = serde_json::json!({ "site": self.name, "from": from });
        output.print(&value, || {
            format!(
                "{} is restored from {from}; what was there is in the bin for 30 days\n",
                self.name
            )
        })?;
        Ok(Done::Well)
    }
}

/// What all sites are doing, or one of them.
pub(crate) fn stats(client: &Client, only: Option<&str>, output: &Output) -> anyhow::Result<Done> {
    let (capacity, observed) = block_on(async {
        let capacity: Capacity = client.ask(Method::GET, "/v1/capacity", nothing()).await?;
        Ok::<_, anyhow::Error>((capacity, observed(client).await?))
    })??;
    let memory: BTreeMap<Arc<str>, u64> = capacity.sites.into_iter().collect();
    let sites: Vec<(Arc<str>, Live)> = observed
        .into_iter()
        .filter(|(site, _)| only.is_none_or(|only| only == &**site))
        .collect();
    let values: Vec<serde_json::Value> = sites
        .iter()
        .map(|(site, live)| {
            serde_json::json!({
                "site": site, "state": live.state, "address": live.address,
                "memory_bytes": memory.get(site), "disk_full": live.full, "trouble": live.trouble,
            })
        })
        .collect();
    output.print(&values, || {
        if sites.is_empty() {
            return match only {
                Some(site) => format!("{site} is archived: nobody has looked at it yet\n"),
                None => "no site has been woken yet\n".to_owned(),
            };
        }
        let mut rows = vec![
            ["SITE", "STATE", "MEMORY", "ADDRESS", "TROUBLE"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(sites.iter().map(|(site, live)| {
            let full = if live.full { "its disk is full" } else { "" };
            let trouble = live.trouble.as_deref().unwrap_or(full);
            let first = if only.is_some() {
                trouble
            } else {
                trouble.lines().next().unwrap_or_default()
            };
            vec![
                site.to_string(),
                live.state.word().to_owned(),
                memory.get(site).map_or_else(
                    || "-".to_owned(),
                    |bytes| ByteSize::b(*bytes).display().iec().to_string(),
                ),
                live.address
                    .map_or_else(|| "-".to_owned(), |address| address.to_string()),
                first.to_owned(),
            ]
        }));
        table("", &rows)
    })?;
    Ok(Done::Well)
}

/// Everything control knows of sites now.
async fn observed(client: &Client) -> anyhow::Result<BTreeMap<Arc<str>, Live>> {
    let answer = client.open(Method::GET, "/v1/observed", nothing()).await?;
    let mut body = answer.into_body();
    let mut text = BytesMut::new();
    let mut known = BTreeMap::new();
    let mut silences = 0;
    while let Some(piece) = body.frame().await {
        if let Ok(octets) = piece?.into_data() {
            text.extend_from_slice(&octets);
        }
        while let Some(end) = text.iter().position(|&octet| octet == b'\n') {
            match serde_json::from_slice(&text.split_to(end + 1))? {
                Change::Site(site, live) => drop(known.insert(site, live)),
                Change::Whole => return Ok(known),
                // Said before anything else: it has not heard of its engine yet.
                Change::Alive => {
                    silences += 1;
                    if silences > 2 {
                        bail!("control has no engine to ask: see the log of nuage serve");
                    }
                }
                Change::Gone(_) => {}
            }
        }
    }
    bail!("control ended before it had said everything")
}

/// Writes an answer as it comes; its octets.
async fn copy(mut body: Incoming, mut to: impl Write) -> anyhow::Result<u64> {
    let mut bytes = 0;
    while let Some(piece) = body.frame().await {
        let piece = piece.context("it ended before it was whole; see the log of nuage serve")?;
        if let Ok(octets) = piece.into_data() {
            to.write_all(&octets)?;
            to.flush()?;
            bytes += octets.len() as u64;
        }
    }
    Ok(bytes)
}

/// Prints the output of a command; its exit code.
async fn frames(mut body: Incoming) -> anyhow::Result<i64> {
    let mut text = BytesMut::new();
    while let Some(piece) = body.frame().await {
        if let Ok(octets) = piece.context("the command was cut off")?.into_data() {
            text.extend_from_slice(&octets);
        }
        while let Some((kind, octets)) = take_frame(&mut text) {
            match kind {
                frame::OUT => write_now(io::stdout(), &octets)?,
                frame::ERROR => write_now(io::stderr(), &octets)?,
                frame::EXIT => return Ok(String::from_utf8_lossy(&octets).parse()?),
                _ => bail!("{}", String::from_utf8_lossy(&octets)),
            }
        }
    }
    bail!("the command was cut off")
}

fn take_frame(text: &mut BytesMut) -> Option<(u8, Bytes)> {
    let length = text.get(1..frame::HEAD)?;
    let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
    if text.len() < frame::HEAD + length {
        return None;
    }
    let kind = text.first().copied()?;
    text.advance(frame::HEAD);
    Some((kind, text.split_to(length).freeze()))
}

fn write_now(mut to: impl Write, octets: &[u8]) -> io::Result<()> {
    to.write_all(octets)?;
    to.flush()
}

fn standard_input() -> impl Stream<Item = io::Result<Bytes>> + Send + Sync {
    pieces(Box::new(tokio::io::stdin()))
}

fn pieces(
    from: Box<dyn tokio::io::AsyncRead + Send + Sync + Unpin>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync {
    stream::unfold(from, async |mut from| {
        let mut piece = BytesMut::with_capacity(PIECE);
        match from.read_buf(&mut piece).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(piece.freeze()), from)),
            Err(error) => Some((Err(error), from)),
        }
    })
}

/// For a query: everything but letters and digits as `%XX` (RFC 3986 §2.1).
fn quoted(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

/// The user's terminal, which sends every key as it is pressed until this is dropped.
struct Terminal {
    before: Termios,
    height: u16,
    width: u16,
}

impl Terminal {
    /// `None` when input or output is none.
    fn open() -> Option<Self> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return None;
        }
        let before = termios::tcgetattr(io::stdin()).ok()?;
        let size = termios::tcgetwinsize(io::stdout()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self {
            before,
            height: size.ws_row,
            width: size.ws_col,
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_any_pieces() {
        let mut whole = BytesMut::new();
        whole.extend_from_slice(&frame::of(frame::OUT, b"hello"));
        whole.extend_from_slice(&frame::of(frame::EXIT, b"3"));
        let mut text = BytesMut::new();
        let mut found = Vec::new();
        for octet in whole {
            text.extend_from_slice(&[octet]);
            found.extend(take_frame(&mut text));
        }
        assert_eq!(
            found,
            [
                (frame::OUT, Bytes::from("hello")),
                (frame::EXIT, Bytes::from("3"))
            ]
        );
    }

    #[test]
    fn a_query_holds_any_command() {
        assert_eq!(quoted("[\"a b\"]"), "%5B%22a%20b%22%5D");
    }
}
