//! Static folders: a request's path to a file that never lies outside the folder, by whatever
//! symbolic link, and from the file to a response with ranges, conditions and precompressed forms.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;
use cap_std::{
    ambient_authority,
    fs::{Dir, MetadataExt, OpenOptions, OpenOptionsExt},
};
use http::{Method, header};
use percent_encoding::percent_decode_str;
use pingora::{Error, ErrorType, Result, http::ResponseHeader, proxy::Session};

use crate::{
    conditional::{self, Verdict},
    pages::Page,
    range::{self, Wanted},
};

/// Read and sent at a time.
const CHUNK_OCTETS: usize = 64 * 1024;
/// Opening a FIFO must not wait for its writer.
const O_NONBLOCK: i32 = 0o4000;
/// Precompressed siblings, the smallest first: file suffix and content coding.
const CODINGS: [(&str, &str); 3] = [("br", "br"), ("zst", "zstd"), ("gz", "gzip")];

/// Answers from `root`; a page comes back for the caller to show.
pub(crate) async fn serve(session: &mut Session, root: &Path) -> Result<Option<Page>> {
    let request = session.req_header();
    if !matches!(request.method, Method::GET | Method::HEAD) {
        return Ok(Some(Page::MethodNotAllowed));
    }
    let Some(wanted) = Requested::parse(request.uri.path()) else {
        return Ok(Some(Page::NoSuchFile));
    };
    let accepted = request
        .headers
        .get(header::ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    // Ranges speak of the plain file: a client that asks for one gets no other coding.
    let accepted = if request.headers.contains_key(header::RANGE) {
        String::new()
    } else {
        accepted.to_owned()
    };
    let root = root.to_owned();
    let found = blocking(move || open(&root, &wanted, &accepted)).await?;
    match found {
        Ok(Found::File(file)) => send(session, file).await,
        Ok(Found::FolderWithoutSlash) => add_slash(session).await.map(|()| None),
        Err(error) => {
            let missing = matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidFilename
            );
            // A path out of the folder is "permission denied" to cap-std, and no business of the asker.
            if !missing && error.kind() != io::ErrorKind::PermissionDenied {
                tracing::warn!(%error, "a static file could not be read");
                return Ok(Some(Page::Failed));
            }
            Ok(Some(Page::NoSuchFile))
        }
    }
}

/// A path below the folder.
#[derive(Debug, PartialEq, Eq)]
struct Requested {
    path: PathBuf,
    /// It ended in a slash: a folder is meant.
    folder: bool,
}

impl Requested {
    /// Decodes a URI path. Dot segments, NUL, and names that start with a dot (but for
    /// `.well-known`, RFC 8615) lead nowhere.
    fn parse(uri_path: &str) -> Option<Self> {
        let mut path = PathBuf::new();
        for segment in uri_path.split('/').filter(|segment| !segment.is_empty()) {
            let name: Vec<u8> = percent_decode_str(segment).collect();
            let hidden = name.starts_with(b".") && name != b".well-known";
            if hidden || name.contains(&0) || name.contains(&b'/') {
                return None;
            }
            path.push(OsString::from_vec(name));
        }
        Some(Self {
            path,
            folder: uri_path.ends_with('/') || uri_path.is_empty(),
        })
    }
}

enum Found {
    File(Opened),
    FolderWithoutSlash,
}

struct Opened {
    file: File,
    /// All of a small file, read in the same breath.
    content: Option<Bytes>,
    length: u64,
    modified: SystemTime,
    /// Strong, in quotes (RFC 9110 §8.8.3).
    tag: String,
    media_type: String,
    coding: Option<&'static str>,
    /// Another coding might have been chosen.
    varies: bool,
}

fn open(root: &Path, wanted: &Requested, accepted: &str) -> io::Result<Found> {
    let root = Dir::open_ambient_dir(root, ambient_authority())?;
    let mut path = if wanted.path.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        wanted.path.clone()
    };
    if wanted.folder {
        path.push("index.html");
    }
    let file = open_below(&root, &path)?;
    let meta = file.metadata()?;
    if meta.is_dir() && !wanted.folder {
        return Ok(Found::FolderWithoutSlash);
    }
    if !meta.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let media_type = media_type(&path);
    let siblings: Vec<(PathBuf, &str)> = CODINGS
        .iter()
        .filter_map(|(suffix, coding)| Some((sibling(&root, &path, suffix)?, *coding)))
        .collect();
    let varies = !siblings.is_empty();
    for (sibling, coding) in siblings
        .into_iter()
        .filter(|(_, coding)| accepts(accepted, coding))
    {
        // One that can't be read, or is of an earlier content, is passed over.
        let Ok(squeezed) = open_below(&root, &sibling) else {
            continue;
        };
        let squeezed_meta = squeezed.metadata()?;
        if squeezed_meta.modified()? >= meta.modified()? {
            return opened(
                squeezed.into_std(),
                &squeezed_meta,
                media_type,
                Some(coding),
                true,
            )
            .map(Found::File);
        }
    }
    opened(file.into_std(), &meta, media_type, None, varies).map(Found::File)
}

fn open_below(root: &Dir, path: &Path) -> io::Result<cap_std::fs::File> {
    root.open_with(path, OpenOptions::new().read(true).custom_flags(O_NONBLOCK))
}

fn sibling(root: &Dir, path: &Path, suffix: &str) -> Option<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    let sibling = PathBuf::from(name);
    root.metadata(&sibling)
        .is_ok_and(|meta| meta.is_file())
        .then_some(sibling)
}

fn opened(
    file: File,
    meta: &cap_std::fs::Metadata,
    media_type: String,
    coding: Option<&'static str>,
    varies: bool,
) -> io::Result<Opened> {
    let (seconds, nanoseconds) = (meta.mtime(), meta.mtime_nsec());
    let mut file = file;
    let small = meta.len() <= CHUNK_OCTETS as u64;
    let content = small.then(|| read(&mut file, 0..meta.len())).transpose()?;
    Ok(Opened {
        file,
        content,
        length: meta.len(),
        modified: meta.modified()?.into_std(),
        tag: format!(
            "\"{seconds:x}.{nanoseconds:x}-{:x}-{:x}\"",
            meta.len(),
            meta.ino()
        ),
        media_type,
        coding,
        varies,
    })
}

fn media_type(path: &Path) -> String {
    let guess = mime_guess::from_path(path).first_or_octet_stream();
    let essence = guess.essence_str();
    let text = guess.type_() == "text"
        || matches!(
            essence,
            "application/json" | "application/javascript" | "image/svg+xml"
        );
    if text {
        format!("{essence}; charset=utf-8")
    } else {
        essence.to_owned()
    }
}

/// Whether Accept-Encoding names a coding with any weight (RFC 9110 §12.5.3).
fn accepts(field: &str, coding: &str) -> bool {
    field.split(',').any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let named = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case(coding));
        let refused = parts
            .filter_map(|part| part.strip_prefix("q="))
            .any(|weight| weight.parse::<f32>().is_ok_and(|w| w <= 0.0));
        named && !refused
    })
}

async fn send(session: &mut Session, file: Opened) -> Result<Option<Page>> {
    let request = session.req_header();
    let head_only = request.method == Method::HEAD;
    match conditional::evaluate(&request.headers, &file.tag, file.modified) {
        Verdict::Proceed => {}
        Verdict::PreconditionFailed => return Ok(Some(Page::PreconditionFailed)),
        Verdict::NotModified => {
            let mut response = ResponseHeader::build(304, Some(6))?;
            validators(&mut response, &file)?;
            session
                .write_response_header(Box::new(response), true)
                .await?;
            return Ok(None);
        }
    }
    // Range is for GET (RFC 9110 §14.2).
    let field = request
        .headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    let applies =
        !head_only && conditional::range_applies(&request.headers, &file.tag, file.modified);
    let plan = match range::wanted(field.filter(|_| applies), file.length) {
        Wanted::Whole => Plan::whole(&file)?,
        Wanted::Parts(parts) => Plan::parts(&file, &parts)?,
        Wanted::Unsatisfiable => {
            let mut response = ResponseHeader::build(416, Some(4))?;
            response.insert_header(header::CONTENT_RANGE, format!("bytes */{}", file.length))?;
            response.insert_header(header::CONTENT_LENGTH, "0")?;
            session
                .write_response_header(Box::new(response), true)
                .await?;
            return Ok(None);
        }
    };
    let empty = head_only || plan.length == 0;
    session
        .write_response_header(Box::new(plan.response), empty)
        .await?;
    if !empty {
        stream(session, file.file, plan.pieces).await?;
    }
    Ok(None)
}

/// A response and what its body is made of.
struct Plan {
    response: ResponseHeader,
    length: u64,
    pieces: Vec<Piece>,
}

enum Piece {
    Octets(Bytes),
    Part(Range<u64>),
}

impl Plan {
    fn whole(file: &Opened) -> Result<Self> {
        let piece = file
            .content
            .clone()
            .map_or(Piece::Part(0..file.length), Piece::Octets);
        Self::new(200, file, file.media_type.clone(), file.length, vec![piece])
    }

    fn parts(file: &Opened, parts: &[Range<u64>]) -> Result<Self> {
        let content_range =
            |part: &Range<u64>| format!("bytes {}-{}/{}", part.start, part.end - 1, file.length);
        if let [part] = parts {
            let pieces = vec![Piece::Part(part.clone())];
            let mut plan = Self::new(
                206,
                file,
                file.media_type.clone(),
                part.end - part.start,
                pieces,
            )?;
            plan.response
                .insert_header(header::CONTENT_RANGE, content_range(part))?;
            return Ok(plan);
        }
        // The entity tag can't occur in the file's own octets more likely than any other text.
        let boundary: String = file
            .tag
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect();
        let mut pieces = Vec::with_capacity(parts.len() * 2 + 1);
        let mut length = 0;
        for part in parts {
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: {}\r\nContent-Range: {}\r\n\r\n",
                file.media_type,
                content_range(part)
            );
            length += head.len() as u64 + (part.end - part.start);
            pieces.push(Piece::Octets(head.into()));
            pieces.push(Piece::Part(part.clone()));
        }
        let tail = format!("\r\n--{boundary}--\r\n");
        length += tail.len() as u64;
        pieces.push(Piece::Octets(tail.into()));
        Self::new(
            206,
            file,
            format!("multipart/byteranges; boundary={boundary}"),
            length,
            pieces,
        )
    }

    fn new(
        status: u16,
        file: &Opened,
        media_type: String,
        length: u64,
        pieces: Vec<Piece>,
    ) -> Result<Self> {
        let mut response = ResponseHeader::build(status, Some(10))?;
        response.insert_header(header::CONTENT_TYPE, media_type)?;
        response.insert_header(header::CONTENT_LENGTH, length.to_string())?;
        response.insert_header(header::ACCEPT_RANGES, "bytes")?;
        response.insert_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
        if let Some(coding) = file.coding {
            response.insert_header(header::CONTENT_ENCODING, coding)?;
        }
        validators(&mut response, file)?;
        Ok(Self {
            response,
            length,
            pieces,
        })
    }
}

fn validators(response: &mut ResponseHeader, file: &Opened) -> Result<()> {
    response.insert_header(header::ETAG, file.tag.clone())?;
    response.insert_header(
        header::LAST_MODIFIED,
        httpdate::fmt_http_date(file.modified),
    )?;
    if file.varies {
        response.insert_header(header::VARY, "Accept-Encoding")?;
    }
    Ok(())
}

async fn stream(session: &mut Session, mut file: File, pieces: Vec<Piece>) -> Result<()> {
    let last = pieces.len().saturating_sub(1);
    for (index, piece) in pieces.into_iter().enumerate() {
        match piece {
            Piece::Octets(octets) => {
                session
                    .write_response_body(Some(octets), index == last)
                    .await?;
            }
            Piece::Part(mut part) => {
                while !part.is_empty() {
                    let chunk = part.start..part.end.min(part.start + CHUNK_OCTETS as u64);
                    part.start = chunk.end;
                    let (back, octets) = blocking(move || {
                        let octets = read(&mut file, chunk);
                        (file, octets)
                    })
                    .await?;
                    file = back;
                    // A file cut short while it is sent can't be mended: the length is promised.
                    let octets = octets.map_err(|error| {
                        Error::because(ErrorType::FileReadError, "reading a static file", error)
                    })?;
                    session
                        .write_response_body(Some(octets), index == last && part.is_empty())
                        .await?;
                }
            }
        }
    }
    Ok(())
}

fn read(file: &mut File, part: Range<u64>) -> io::Result<Bytes> {
    let length = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
    let mut octets = vec![0; length];
    file.seek(SeekFrom::Start(part.start))?;
    file.read_exact(&mut octets)?;
    Ok(octets.into())
}

async fn add_slash(session: &mut Session) -> Result<()> {
    let uri = &session.req_header().uri;
    // A path of one slash alone: two would be read as a host (RFC 3986 §4.2).
    let path = format!("/{}", uri.path().trim_start_matches('/'));
    let target = match uri.query() {
        Some(query) => format!("{path}/?{query}"),
        None => format!("{path}/"),
    };
    let mut response = ResponseHeader::build(308, Some(2))?;
    response.insert_header(header::LOCATION, target)?;
    response.insert_header(header::CONTENT_LENGTH, "0")?;
    session
        .write_response_header(Box::new(response), true)
        .await
}

/// Runs what may wait for a disk where it holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::because(ErrorType::InternalError, "a file task ended", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_names_below_the_folder_or_nowhere() {
        let path = |text| {
            Requested::parse(text).map(|wanted| (wanted.path.display().to_string(), wanted.folder))
        };
        assert_eq!(path("/"), Some((String::new(), true)));
        assert_eq!(path("/a%20b//c/"), Some(("a b/c".into(), true)));
        assert_eq!(path("/%C3%A9.txt"), Some(("é.txt".into(), false)));
        assert_eq!(
            path("/.well-known/x"),
            Some((".well-known/x".into(), false))
        );
        for bad in [
            "/../etc/passwd",
            "/a/../../b",
            "/%2e%2e/x",
            "/a%2fb",
            "/a%00",
            "/.git/config",
            "/..",
            "/%2E./x",
            "/.env",
        ] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn codings_are_accepted_by_name_and_weight() {
        assert!(accepts("gzip, deflate, br", "br"));
        assert!(accepts("BR;q=0.5", "br"));
        assert!(!accepts("br;q=0", "br"));
        assert!(!accepts("gzip", "br") && !accepts("", "br"));
    }

    #[test]
    fn no_link_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::create_dir(folder.path().join("site")).unwrap();
        common::durable::replace(&secret, b"s", common::durable::Access::Owner).unwrap();
        let site = folder.path().join("site");
        for (name, target) in [
            ("up", "../secret"),
            ("absolute", secret.to_str().unwrap()),
            ("folder", ".."),
        ] {
            std::os::unix::fs::symlink(target, site.join(name)).unwrap();
        }
        common::durable::replace(&site.join("in"), b"i", common::durable::Access::Owner).unwrap();
        std::os::unix::fs::symlink("in", site.join("inner")).unwrap();
        let read = |name: &str| open(&site, &Requested::parse(name).unwrap(), "");
        for name in ["/up", "/absolute", "/folder/secret"] {
            assert!(read(name).is_err(), "{name}");
        }
        assert!(matches!(read("/inner"), Ok(Found::File(_))));
    }
}
