//! The proxy: whom a request is for, and what answers it.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Backend, Config, HostName, HttpsPolicy, Published, Site, config::Limits, observed::State,
    site::Upstream,
};
use http::{HeaderValue, Method, StatusCode, Version, header};
use pingora::{
    Error, ErrorSource, ErrorType, Result,
    http::{RequestHeader, ResponseHeader},
    modules::http::HttpModules,
    proxy::{FailToProxy, ProxyHttp, Session},
    upstreams::peer::HttpPeer,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::timeout;
use url::Url;

use crate::{
    Sites,
    access_log::{AccessLog, Line},
    certificates::Certificates,
    connection::{Connection, client, finish_unread_body},
    doh::{self, NameServer},
    files, host,
    metrics::Metrics,
    pages::{Page, Rendered},
    upstream::{self, MOST_ATTEMPTS, Resolver},
    visits::{Visit, Visitor},
    waking::{self, PATIENCE_OF_PEOPLE, PATIENCE_OF_PROGRAMS, Refusal},
};

/// The least rate of a request body, on average.
const LEAST_OCTETS_PER_SECOND: u64 = 512;

/// How long a WebSocket may be silent, at either end: past it, one of them is gone for good.
const SILENCE: Duration = Duration::from_secs(3_600);

/// Before a container that refused a connection is tried again, once, twice, three times this long.
const AFTER_A_REFUSAL: Duration = Duration::from_millis(100);

/// Everything a request needs, shared by all of them.
pub(crate) struct Edge {
    published: Arc<Published>,
    metrics: Arc<Metrics>,
    log: AccessLog,
    resolver: Resolver,
    limits: Limits,
    https_port: u16,
    sites: Sites,
    name_server: Arc<dyn NameServer>,
    /// Names this process in Via, to recognise a request that comes round (RFC 9110 §7.6.3).
    via: String,
}

/// What is known of one request.
pub(crate) struct Context {
    started: Instant,
    host: Option<String>,
    /// The site by its full name.
    site: Option<(HostName, Arc<Site>)>,
    body_octets: u64,
    /// Connections to the upstream that failed, and addresses still untried.
    attempt: usize,
    untried: usize,
    /// The site's container, found awake.
    container: Option<(SocketAddr, u64)>,
    /// Keeps it awake.
    visit: Option<Visit>,
    disk_full: bool,
}

/// What answers a request.
enum Answer {
    Page(Page),
    Redirect { status: u16, location: String },
    Dns,
    Files(Arc<Site>),
    Upstream,
    Container,
}

impl Edge {
    pub(crate) fn new(
        config: &Config,
        published: Arc<Published>,
        metrics: Arc<Metrics>,
        log: AccessLog,
        sites: Sites,
        name_server: Arc<dyn NameServer>,
    ) -> Self {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            published,
            metrics,
            log,
            resolver: Resolver::default(),
            limits: config.limits.clone(),
            sites,
            name_server,
            https_port: config.https_port(),
            via: format!("nuage-{:x}-{:x}", std::process::id(), since.subsec_nanos()),
        }
    }

    /// Finds the site and what it answers with.
    fn answer(&self, session: &Session, context: &mut Context) -> Answer {
        let request = session.req_header();
        let Some(host) = host::of(request) else {
            return Answer::Page(Page::BadRequest);
        };
        if request.method == Method::TRACE {
            return Answer::Page(Page::MethodNotAllowed);
        }
        let host = &*context.host.insert(host);
        let registry = self.published.load();
        let connection = Connection::of(session);
        if let Connection::Secure(name) = &connection {
            // A connection opened for one certificate's names is not for another's (RFC 9110 §15.5.20).
            let for_name = name.and_then(|name| Certificates::identity(&registry, name));
            let for_host = Certificates::identity(&registry, host);
            if for_host.is_none() || for_name != for_host {
                return Answer::Page(Page::WrongConnection);
            }
        }
        let Some(route) = registry.route(host) else {
            return match connection {
                Connection::Secure(_) if doh::is_for(&registry, host, request.uri.path()) => {
                    Answer::Dns
                }
                Connection::Secure(_) => Answer::Page(Page::WrongConnection),
                Connection::Plain => Answer::Page(Page::NoSuchSite),
            };
        };
        context.site = Some((
            route.zone.origin.child(&route.site.name),
            Arc::clone(route.site),
        ));
        if matches!(connection, Connection::Plain) && route.https() == HttpsPolicy::Redirect {
            return Answer::Redirect {
                status: 308,
                location: self.https_location(host, request),
            };
        }
        match &route.site.backend {
            Backend::Static(_) => Answer::Files(Arc::clone(route.site)),
            Backend::Redirect(target) => Answer::Redirect {
                status: 307,
                location: redirect_location(target, request),
            },
            _ if self.came_round(request) => Answer::Page(Page::Loop),
            _ if self.too_large(request) => Answer::Page(Page::TooLarge),
            Backend::Upstream(_) => Answer::Upstream,
            Backend::Container(_) => Answer::Container,
        }
    }

    /// Finds the site's container awake, or waits until it is, as long as whoever asks would.
    async fn awake(&self, session: &Session, context: &mut Context) -> Result<(), Page> {
        let Some((name, _)) = &context.site else {
            return Err(Page::Failed);
        };
        let live = self.published.load().observed.get(name.as_str()).cloned();
        context.disk_full = live.as_ref().is_some_and(|live| live.full);
        let request = session.req_header();
        let state = live.as_ref().map_or(State::Archived, |live| live.state);
        let visitor = if waking::is_robot(&request.headers) {
            Visitor::Robot
        } else {
            Visitor::Anyone
        };
        if state != State::Awake && visitor == Visitor::Robot {
            return Err(Page::Asleep);
        }
        context.visit = Some(self.sites.visits.begin(name.as_str(), visitor));
        // Looked at again once the visit is counted: what goes to sleep from here on is noticed by
        // whoever follows the observed state.
        let live = self.published.load().observed.get(name.as_str()).cloned();
        if let Some(live) = live.filter(|live| live.state == State::Awake)
            && let Some(address) = live.address
        {
            context.container = Some((address, live.generation));
            return Ok(());
        }
        if visitor == Visitor::Robot {
            context.visit = None;
            return Err(Page::Asleep);
        }
        let patience = if waking::is_person(request) {
            PATIENCE_OF_PEOPLE
        } else {
            PATIENCE_OF_PROGRAMS
        };
        self.wake(context, patience).await
    }

    async fn wake(&self, context: &mut Context, patience: Duration) -> Result<(), Page> {
        let (Some(waker), Some((name, _))) = (&self.sites.waker, &context.site) else {
            return Err(Page::NotRunning);
        };
        match timeout(patience, waker.wake(name.as_str().into())).await {
            Err(_) => Err(Page::Waking),
            Ok(Ok(live)) => {
                let address = live.address.ok_or(Page::NotRunning)?;
                context.container = Some((address, live.generation));
                Ok(())
            }
            Ok(Err(Refusal::NoControl)) => Err(Page::NotRunning),
            Ok(Err(Refusal::Full)) => Err(Page::Crowded),
            Ok(Err(Refusal::Failing)) => Err(Page::Failing),
        }
    }

    fn https_location(&self, host: &str, request: &RequestHeader) -> String {
        let path = path_and_query(request);
        match self.https_port {
            443 => format!("https://{host}{path}"),
            port => format!("https://{host}:{port}{path}"),
        }
    }

    fn came_round(&self, request: &RequestHeader) -> bool {
        request
            .headers
            .get_all(header::VIA)
            .iter()
            .any(|via| via.to_str().is_ok_and(|via| via.contains(&self.via)))
    }

    fn too_large(&self, request: &RequestHeader) -> bool {
        let length = request
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        length.is_some_and(|length: u64| length > self.limits.body_bytes)
    }

    async fn show(&self, session: &mut Session, page: Page, context: &Context) -> Result<()> {
        let rendered = page.for_client(&session.req_header().headers, context.host.as_deref());
        let mut response = rendered.header()?;
        if page == Page::MethodNotAllowed {
            response.insert_header(header::ALLOW, "GET, HEAD")?;
        }
        let head_only = session.req_header().method == Method::HEAD;
        finish_unread_body(session);
        session
            .write_response_header(Box::new(response), head_only)
            .await?;
        if !head_only {
            session
                .write_response_body(Some(rendered.body), true)
                .await?;
        }
        Ok(())
    }

    /// Tells an upstream whom it serves; what a client says of itself is overwritten.
    fn forward(&self, session: &Session, request: &mut RequestHeader, host: &str) -> Result<()> {
        for name in [
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-forwarded-server",
            "x-real-ip",
        ] {
            request.remove_header(name);
        }
        // CGI maps `_` and `-` to one name: what is spelled with `_` could pass for ours.
        let odd: Vec<_> = request
            .headers
            .keys()
            .filter(|name| name.as_str().contains('_'))
            .cloned()
            .collect();
        for name in odd {
            request.remove_header(&name);
        }
        let scheme = Connection::of(session).scheme();
        if let Some(client) = client(session).map(|address| address.ip()) {
            // IPv6 addresses are in brackets and quotes (RFC 7239 §6).
            let node = if client.is_ipv6() {
                format!("\"[{client}]\"")
            } else {
                client.to_string()
            };
            request.insert_header(
                "forwarded",
                format!("for={node};host=\"{host}\";proto={scheme}"),
            )?;
            request.insert_header("x-forwarded-for", client.to_string())?;
            request.insert_header("x-real-ip", client.to_string())?;
        }
        request.insert_header("x-forwarded-proto", scheme)?;
        request.insert_header("x-forwarded-host", host)?;
        let version = if request.version == Version::HTTP_2 {
            "2"
        } else {
            "1.1"
        };
        request.append_header(header::VIA, format!("{version} {}", self.via))?;
        Ok(())
    }
}

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context {
            started: Instant::now(),
            host: None,
            site: None,
            body_octets: 0,
            attempt: 0,
            untried: 0,
            container: None,
            visit: None,
            disk_full: false,
        }
    }

    // Compression and the like cost on every request; sites bring what they need.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        session.set_read_timeout(Some(self.limits.stall));
        session.set_write_timeout(Some(self.limits.stall));
        match self.answer(session, context) {
            Answer::Upstream => return Ok(false),
            Answer::Container => match self.awake(session, context).await {
                Ok(()) => return Ok(false),
                Err(page) => self.show(session, page, context).await?,
            },
            Answer::Page(page) => self.show(session, page, context).await?,
            Answer::Redirect { status, location } => redirect(session, status, &location).await?,
            Answer::Dns => doh::serve(session, &*self.name_server, self.limits.stall).await?,
            Answer::Files(site) => {
                let Backend::Static(folder) = &site.backend else {
                    return Error::e_explain(
                        ErrorType::InternalError,
                        "files of a site without a folder",
                    );
                };
                finish_unread_body(session);
                if let Some(page) = files::serve(session, folder).await? {
                    self.show(session, page, context).await?;
                }
            }
        }
        Ok(true)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        context: &mut Context,
    ) -> Result<()> {
        // What was upgraded (WebSockets) is a conversation, not a body.
        if session.was_upgraded() {
            return Ok(());
        }
        context.body_octets += body.as_ref().map_or(0, |body| body.len() as u64);
        if context.body_octets > self.limits.body_bytes {
            return Err(
                Error::explain(ErrorType::HTTPStatus(413), "request body over the limit")
                    .into_down(),
            );
        }
        // Dripping octets resets no clock: past the stall limit a body must keep a least rate.
        let late = context.started.elapsed().saturating_sub(self.limits.stall);
        let owed = late.as_secs().saturating_mul(LEAST_OCTETS_PER_SECOND);
        if context.body_octets < owed {
            return Err(
                Error::explain(ErrorType::HTTPStatus(408), "request body too slow").into_down(),
            );
        }
        Ok(())
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        context: &mut Context,
    ) -> Result<Box<HttpPeer>> {
        if context.is_container() {
            if context.container.is_none() {
                // It went to sleep, or ended, just as the request came; control may hear of that
                // a moment later than we do.
                let pause = u32::try_from(context.attempt).unwrap_or(u32::MAX);
                tokio::time::sleep(AFTER_A_REFUSAL.saturating_mul(pause)).await;
                let woken = self.wake(context, PATIENCE_OF_PROGRAMS).await;
                woken.map_err(|_| {
                    Error::explain(ErrorType::ConnectError, "the site does not wake").into_up()
                })?;
            }
            if let (Some((address, generation)), Some((name, _))) =
                (context.container, &context.site)
            {
                let peer = upstream::container(address, name.as_str(), generation, &self.limits);
                return Ok(Box::new(patient(peer, session)));
            }
        }
        let Some((name, upstream)) = context.upstream() else {
            return Error::e_explain(ErrorType::InternalError, "no upstream to go to");
        };
        let peer = self
            .resolver
            .peer(upstream, name.as_str(), &self.limits, context.attempt)
            .await;
        let (peer, others) = peer.map_err(|error| {
            Error::because(ErrorType::ConnectError, "finding the upstream", error).into_up()
        })?;
        context.untried = others.saturating_sub(context.attempt);
        Ok(Box::new(patient(peer, session)))
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        // Nothing was sent: the next address of the name may be tried whatever the method.
        context.attempt += 1;
        let again = context.is_container() && context.attempt < MOST_ATTEMPTS;
        if again {
            context.container = None;
        }
        error.set_retry(again || context.untried > 0);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        context: &mut Context,
    ) -> Result<()> {
        let host = context.host.clone().unwrap_or_default();
        self.forward(session, request, &host)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        // A site that can't write fails in ways its visitors can't read.
        if context.disk_full && response.status.as_u16() == 500 {
            return Err(Error::explain(
                ErrorType::HTTPStatus(507),
                "the site's disk is full",
            ));
        }
        if response.status == StatusCode::SWITCHING_PROTOCOLS && opens_websocket(session) {
            session.set_read_timeout(Some(SILENCE));
        }
        Ok(())
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut Context,
    ) -> FailToProxy {
        let page = match (error.etype(), error.esource()) {
            (ErrorType::HTTPStatus(413), _) => Some(Page::TooLarge),
            (ErrorType::HTTPStatus(408), _) => Some(Page::TooSlow),
            (ErrorType::HTTPStatus(507), _) => Some(Page::DiskFull),
            (
                ErrorType::ReadTimedout | ErrorType::WriteTimedout | ErrorType::ConnectTimedout,
                ErrorSource::Upstream,
            ) => Some(Page::UpstreamSlow),
            (_, ErrorSource::Upstream) => Some(Page::UpstreamDown),
            (ErrorType::ReadTimedout, ErrorSource::Downstream) => Some(Page::TooSlow),
            (
                ErrorType::WriteError
                | ErrorType::ReadError
                | ErrorType::ConnectionClosed
                | ErrorType::WriteTimedout,
                ErrorSource::Downstream,
            ) => None,
            (_, ErrorSource::Downstream) => Some(Page::BadRequest),
            _ => Some(Page::Failed),
        };
        let mut code = 0;
        if let Some(page) = page.filter(|_| session.response_written().is_none()) {
            code = page.status();
            session.set_keepalive(None);
            if let Err(error) = self.show(session, page, context).await {
                tracing::debug!(%error, "error page not sent");
            }
        }
        FailToProxy {
            error_code: code,
            can_reuse_downstream: false,
        }
    }

    fn suppress_error_log(&self, _session: &Session, _context: &Context, _error: &Error) -> bool {
        // A site's own trouble is in its metrics and its access log.
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Context) {
        let took = context.started.elapsed();
        let request = session.req_header();
        // 499: the client left before an answer, as nginx counts it.
        let status = session
            .response_written()
            .map_or(499, |response| response.status.as_u16());
        let site = context.site.as_ref().map(|(name, _)| name);
        self.metrics.request(site, &request.method, status, took);
        if let Some(error) = error {
            tracing::debug!(%error, host = context.host.as_deref().unwrap_or_default(), "request failed");
        }
        if let (true, Some(site)) = (self.log.enabled(), site) {
            let field = |name| {
                request
                    .headers
                    .get(name)
                    .and_then(|value| value.to_str().ok())
                    .map(str::to_owned)
            };
            self.log.line(Line {
                time: OffsetDateTime::now_utc()
                    .format(&Rfc3339)
                    .unwrap_or_default(),
                site: site.clone(),
                client: client(session)
                    .map(|client| client.ip().to_string())
                    .unwrap_or_default(),
                method: request.method.to_string(),
                scheme: Connection::of(session).scheme(),
                host: context.host.clone().unwrap_or_default(),
                path: path_and_query(request),
                protocol: if request.version == Version::HTTP_2 {
                    "HTTP/2"
                } else {
                    "HTTP/1.1"
                },
                status,
                bytes: session.body_bytes_sent(),
                seconds: took.as_secs_f64(),
                referer: field(header::REFERER),
                user_agent: field(header::USER_AGENT),
            });
        }
    }
}

impl Context {
    fn is_container(&self) -> bool {
        self.site
            .as_ref()
            .is_some_and(|(_, site)| matches!(site.backend, Backend::Container(_)))
    }

    fn upstream(&self) -> Option<(&HostName, &Upstream)> {
        let (name, site) = self.site.as_ref()?;
        match &site.backend {
            Backend::Upstream(upstream) => Some((name, upstream)),
            _ => None,
        }
    }
}

impl Rendered {
    fn header(&self) -> Result<ResponseHeader> {
        let mut response = ResponseHeader::build(self.status, Some(8))?;
        response.insert_header(header::CONTENT_TYPE, self.media_type)?;
        response.insert_header(header::CONTENT_LENGTH, self.body.len().to_string())?;
        response.insert_header(header::CONTENT_LANGUAGE, self.language)?;
        response.insert_header(header::CACHE_CONTROL, "no-store")?;
        response.insert_header(header::VARY, "Accept, Accept-Language")?;
        if let Some(seconds) = self.retry_after {
            response.insert_header(header::RETRY_AFTER, seconds)?;
        }
        Ok(response)
    }
}

async fn redirect(session: &mut Session, status: u16, location: &str) -> Result<()> {
    finish_unread_body(session);
    let mut response = ResponseHeader::build(status, Some(3))?;
    let location = HeaderValue::from_str(location).map_err(|error| {
        Error::because(ErrorType::InvalidHTTPHeader, "a redirect's target", error)
    })?;
    response.insert_header(header::LOCATION, location)?;
    response.insert_header(header::CONTENT_LENGTH, "0")?;
    session
        .write_response_header(Box::new(response), true)
        .await
}

/// A target that ends in a slash takes the rest of the path and the query; any other is the place.
fn redirect_location(target: &Url, request: &RequestHeader) -> String {
    let target = target.as_str();
    if target.ends_with('/') {
        format!(
            "{target}{}",
            path_and_query(request).trim_start_matches('/')
        )
    } else {
        target.to_owned()
    }
}

/// Waits as long as a WebSocket may be silent, where one is to be opened. Pingora takes one limit for all
/// it reads of an upstream: the answer to the opening has as long.
fn patient(mut peer: HttpPeer, session: &Session) -> HttpPeer {
    if opens_websocket(session) {
        peer.options.read_timeout = Some(SILENCE);
    }
    peer
}

/// Whether a request opens a WebSocket (RFC 6455 §4.2.1).
fn opens_websocket(session: &Session) -> bool {
    let upgrade = session.req_header().headers.get(header::UPGRADE);
    session.is_upgrade_req()
        && upgrade.is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn path_and_query(request: &RequestHeader) -> String {
    request
        .uri
        .path_and_query()
        .map_or_else(|| "/".to_owned(), ToString::to_string)
}
