//! Docker Engine (API 1.41 and later) through its Unix socket, or TCP with TLS.
//!
//! Everything made here carries the label of this instance, and nothing without it is ever listed,
//! changed or removed.

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use async_trait::async_trait;
use bollard::{
    API_DEFAULT_VERSION, Docker,
    container::LogOutput,
    errors::Error,
    exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults},
    models::{
        ContainerCreateBody, ContainerSummaryStateEnum, EndpointIpamConfig, EndpointSettings,
        HostConfig, HostConfigLogConfig, Ipam, IpamConfig, Mount, MountType, NetworkCreateRequest,
        NetworkingConfig,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions,
        ListContainersOptionsBuilder, ListNetworksOptionsBuilder, LogsOptionsBuilder,
        RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
    },
};
use common::containers;
use futures_util::{StreamExt, stream::BoxStream};
use tokio::sync::OnceCell;

use crate::{
    engine::{Engine, EngineError, Event, EventKind, Found, Output, Running, Status},
    lease::NetworkLease,
    spec::Spec,
};

const INSTANCE: &str = "nuage.instance";
const SITE: &str = "nuage.site";
const DIGEST: &str = "nuage.spec";

/// The longest an engine may take for one thing. Starting takes seconds on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Log of one container, twice: what is older goes.
const LOG_SIZE: &str = "512k";

/// A Docker Engine.
pub(crate) struct DockerEngine {
    place: containers::Engine,
    instance: String,
    cgroup_parent: Option<String>,
    /// Connected when first needed, so that an engine may come later than we do.
    connected: OnceCell<Docker>,
}

impl DockerEngine {
    pub(crate) fn new(config: &containers::Containers, instance: &str) -> Self {
        Self {
            place: config.engine.clone(),
            instance: instance.to_owned(),
            cgroup_parent: config.cgroup_parent.clone(),
            connected: OnceCell::new(),
        }
    }

    fn address(&self) -> String {
        match &self.place {
            containers::Engine::Unix(path) => format!("unix://{}", path.display()),
            containers::Engine::Tcp(host, _) => format!("tcp://{host}"),
        }
    }

    async fn docker(&self) -> Result<&Docker, EngineError> {
        self.connected.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Docker, EngineError> {
        let seconds = DEADLINE.as_secs();
        let docker = match &self.place {
            containers::Engine::Unix(path) => {
                Docker::connect_with_unix(&path.to_string_lossy(), seconds, API_DEFAULT_VERSION)
            }
            containers::Engine::Tcp(host, tls) => Docker::connect_with_ssl(
                &format!("tcp://{host}"),
                &tls.join("key.pem"),
                &tls.join("cert.pem"),
                &tls.join("ca.pem"),
                seconds,
                API_DEFAULT_VERSION,
            ),
        };
        docker
            .map_err(|error| self.error(error))?
            .negotiate_version()
            .await
            .map_err(|error| self.error(error))
    }

    fn error(&self, error: Error) -> EngineError {
        match error {
            Error::DockerResponseServerError {
                status_code: 404,
                message,
            } => EngineError::Missing(message),
            Error::DockerResponseServerError { message, .. } => EngineError::Refused(message),
            Error::RequestTimeoutError => EngineError::Late(DEADLINE),
            other => EngineError::Unreachable(self.address(), other.to_string()),
        }
    }

    /// Takes "it is so already" for done.
    fn settled(&self, result: Result<(), Error>, already: &str) -> Result<(), EngineError> {
        match result {
            Err(Error::DockerResponseServerError {
                status_code: 304, ..
            }) => Ok(()),
            Err(Error::DockerResponseServerError { message, .. }) if message.contains(already) => {
                Ok(())
            }
            result => result.map_err(|error| self.error(error)),
        }
    }

    fn ours(&self) -> HashMap<&'static str, Vec<String>> {
        HashMap::from([("label", vec![format!("{INSTANCE}={}", self.instance)])])
    }

    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([(INSTANCE.to_owned(), self.instance.clone())])
    }

    fn container(&self, spec: &Spec) -> ContainerCreateBody {
        let strings = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
        let tmpfs = |size: &str| format!("rw,nosuid,nodev,size={size},mode=1777");
        let number = |value: u64| i64::try_from(value).ok();
        let memory = number(spec.memory_bytes);
        let mut labels = self.labels();
        labels.insert(SITE.to_owned(), spec.site.to_string());
        labels.insert(DIGEST.to_owned(), spec.digest());
        ContainerCreateBody {
            hostname: Some(spec.site.split('.').next().unwrap_or_default().to_owned()),
            image: Some(spec.image.clone()),
            user: Some(format!("{0}:{0}", spec.uid)),
            env: Some(
                spec.environment
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect(),
            ),
            // Whole: what the image would start is not to be given it as arguments.
            entrypoint: (!spec.command.is_empty()).then(|| spec.command.clone()),
            labels: Some(labels),
            host_config: Some(HostConfig {
                memory,
                // No swap beside it: a site that wants more ends, and only it.
                memory_swap: memory,
                nano_cpus: number(spec.cpu_millis * 1_000_000),
                pids_limit: number(spec.pids),
                cgroup_parent: self.cgroup_parent.clone(),
                cap_drop: strings(&["ALL"]),
                security_opt: strings(&["no-new-privileges"]),
                readonly_rootfs: Some(true),
                tmpfs: Some(HashMap::from([
                    ("/tmp".to_owned(), tmpfs("64m")),
                    ("/run".to_owned(), tmpfs("8m")),
                ])),
                mounts: Some(vec![
                    bind(&spec.files, "/var/www/html"),
                    bind(&spec.scratch, "/var/tmp"),
                ]),
                dns: Some(spec.resolvers.iter().map(ToString::to_string).collect()),
                log_config: Some(HostConfigLogConfig {
                    typ: Some("json-file".to_owned()),
                    config: Some(HashMap::from([
                        ("max-size".to_owned(), LOG_SIZE.to_owned()),
                        ("max-file".to_owned(), "2".to_owned()),
                    ])),
                }),
                network_mode: Some(spec.network.clone()),
                ..HostConfig::default()
            }),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some(HashMap::from([(
                    spec.network.clone(),
                    EndpointSettings {
                        ipam_config: Some(EndpointIpamConfig {
                            ipv4_address: Some(spec.ipv4.to_string()),
                            ipv6_address: spec.ipv6.map(|address| address.to_string()),
                            link_local_ips: None,
                        }),
                        // Heard from API 1.44 on. Engines before that make this one of the IPv4
                        // address by themselves; 28 and later would draw one by lot.
                        mac_address: spec.mac.clone(),
                        ..EndpointSettings::default()
                    },
                )])),
            }),
            ..ContainerCreateBody::default()
        }
    }
}

fn bind(from: &Path, to: &str) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(from.display().to_string()),
        target: Some(to.to_owned()),
        ..Mount::default()
    }
}

fn text(value: Option<String>) -> String {
    value.unwrap_or_default()
}

fn output(piece: LogOutput) -> Output {
    Output {
        error: matches!(piece, LogOutput::StdErr { .. }),
        bytes: piece.into_bytes(),
    }
}

#[async_trait]
impl Engine for DockerEngine {
    async fn containers(&self) -> Result<Vec<Found>, EngineError> {
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&self.ours())
            .build();
        let listed = self.docker().await?.list_containers(Some(options)).await;
        let listed = listed.map_err(|error| self.error(error))?;
        let found = listed.into_iter().filter_map(|container| {
            let mut labels = container.labels.unwrap_or_default();
            Some(Found {
                id: container.id?,
                site: labels.remove(SITE)?.into(),
                digest: labels.remove(DIGEST).unwrap_or_default(),
                status: match container.state? {
                    ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::RESTARTING => {
                        Status::Running
                    }
                    ContainerSummaryStateEnum::PAUSED => Status::Paused,
                    _ => Status::Stopped,
                },
            })
        });
        Ok(found.collect())
    }

    async fn networks(&self) -> Result<Vec<String>, EngineError> {
        let options = ListNetworksOptionsBuilder::default()
            .filters(&self.ours())
            .build();
        let listed = self.docker().await?.list_networks(Some(options)).await;
        let listed = listed.map_err(|error| self.error(error))?;
        Ok(listed
            .into_iter()
            .filter_map(|network| network.name)
            .collect())
    }

    async fn create_network(&self, network: &NetworkLease) -> Result<(), EngineError> {
        let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let (driver, options) = match &network.parent {
            // Private: on a VLAN of its own no site hears another either.
            Some(parent) => (
                "macvlan",
                vec![option("parent", parent), option("macvlan_mode", "private")],
            ),
            None => (
                "bridge",
                vec![
                    option("com.docker.network.bridge.name", &network.interface),
                    option("com.docker.network.bridge.enable_icc", "false"),
                    option(
                        "com.docker.network.bridge.enable_ip_masquerade",
                        if network.internet { "true" } else { "false" },
                    ),
                ],
            ),
        };
        let range = |subnet: String, gateway: String| IpamConfig {
            subnet: Some(subnet),
            gateway: Some(gateway),
            ..IpamConfig::default()
        };
        let mut ranges = vec![range(
            network.v4.to_string(),
            network.gateway4().to_string(),
        )];
        if let (Some(v6), Some(gateway)) = (network.v6, network.gateway6()) {
            ranges.push(range(v6.to_string(), gateway.to_string()));
        }
        let request = NetworkCreateRequest {
            name: network.name.clone(),
            driver: Some(driver.to_owned()),
            enable_ipv6: Some(network.v6.is_some()),
            ipam: Some(Ipam {
                config: Some(ranges),
                ..Ipam::default()
            }),
            options: Some(options.into_iter().collect()),
            labels: Some(self.labels()),
            ..NetworkCreateRequest::default()
        };
        let made = self.docker().await?.create_network(request).await;
        match self.settled(made.map(drop), "already exists") {
            Err(EngineError::Refused(message)) if message.contains("overlaps") => {
                Err(EngineError::Refused(format!(
                    "{} is in use by another network of this machine: give [containers] subnet4 and subnet6, or the group's subnets, other ranges",
                    network.v4
                )))
            }
            result => result,
        }
    }

    async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        let removed = self.docker().await?.remove_network(name).await;
        self.settled(removed, "not found")
    }

    async fn create(&self, spec: &Spec) -> Result<String, EngineError> {
        let name = format!("nuage-{}-{}", self.instance, spec.site);
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let docker = self.docker().await?;
        let made = docker
            .create_container(Some(options.clone()), self.container(spec))
            .await;
        let made = match made {
            // Left over from something that was interrupted; the name is ours alone.
            Err(Error::DockerResponseServerError {
                status_code: 409, ..
            }) => {
                self.remove(&name).await?;
                docker
                    .create_container(Some(options), self.container(spec))
                    .await
            }
            made => made,
        };
        made.map(|made| made.id).map_err(|error| {
            match self.error(error) {
                EngineError::Missing(_) => EngineError::Unfit(format!(
                    "there is no image {0} at the engine: build the standard one with images/php/build, or fetch it with `docker pull {0}`",
                    spec.image
                )),
                other => other,
            }
        })
    }

    async fn start(&self, id: &str) -> Result<(), EngineError> {
        match self.docker().await?.start_container(id, None).await {
            // Its command is not there, or can't be run.
            Err(Error::DockerResponseServerError {
                status_code: 400,
                message,
            }) => Err(EngineError::Unfit(message)),
            started => self.settled(started, "already started"),
        }
    }

    async fn pause(&self, id: &str) -> Result<(), EngineError> {
        let paused = self.docker().await?.pause_container(id).await;
        self.settled(paused, "is already paused")
    }

    async fn unpause(&self, id: &str) -> Result<(), EngineError> {
        let unpaused = self.docker().await?.unpause_container(id).await;
        self.settled(unpaused, "is not paused")
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), EngineError> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let stopped = self.docker().await?.stop_container(id, Some(options)).await;
        self.settled(stopped, "is not running")
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        let removed = self
            .docker()
            .await?
            .remove_container(id, Some(options))
            .await;
        match self.settled(removed, "is already in progress") {
            Err(EngineError::Missing(_)) => Ok(()),
            result => result,
        }
    }

    async fn pid(&self, id: &str) -> Result<Option<u32>, EngineError> {
        let inspected = self
            .docker()
            .await?
            .inspect_container(id, None::<InspectContainerOptions>)
            .await
            .map_err(|error| self.error(error))?;
        let pid = inspected.state.and_then(|state| state.pid);
        Ok(pid
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid > 0))
    }

    fn logs(
        &self,
        id: &str,
        lines: Option<u32>,
        follow: bool,
    ) -> BoxStream<'static, Result<Output, EngineError>> {
        let tail = lines.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .follow(follow)
            .tail(&tail)
            .build();
        let address = self.address();
        let Some(docker) = self.connected.get() else {
            return futures_util::stream::empty().boxed();
        };
        docker
            .logs(id, Some(options))
            .map(move |piece| {
                piece
                    .map(output)
                    .map_err(|error| EngineError::Unreachable(address.clone(), error.to_string()))
            })
            .boxed()
    }

    async fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        terminal: Option<(u16, u16)>,
    ) -> Result<Running, EngineError> {
        let docker = self.docker().await?;
        let options = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(terminal.is_some()),
            cmd: Some(command),
            working_dir: Some("/var/www/html".to_owned()),
            env: terminal.map(|_| vec!["TERM=xterm".to_owned()]),
            ..CreateExecOptions::default()
        };
        let made = docker.create_exec(id, options).await;
        let exec = made.map_err(|error| self.error(error))?.id;
        let options = StartExecOptions {
            tty: terminal.is_some(),
            ..StartExecOptions::default()
        };
        let started = docker.start_exec(&exec, Some(options)).await;
        if let Some((height, width)) = terminal {
            // A terminal of another size is no reason to refuse.
            docker
                .resize_exec(&exec, ResizeExecOptions { height, width })
                .await
                .unwrap_or_default();
        }
        match started.map_err(|error| self.error(error))? {
            StartExecResults::Attached { output: out, input } => {
                let address = self.address();
                Ok(Running {
                    id: exec,
                    output: out
                        .map(move |piece| {
                            piece.map(output).map_err(|error| {
                                EngineError::Unreachable(address.clone(), error.to_string())
                            })
                        })
                        .boxed(),
                    input,
                })
            }
            StartExecResults::Detached => {
                Err(EngineError::Refused("the command runs detached".to_owned()))
            }
        }
    }

    async fn exit_code(&self, exec: &str) -> Result<i64, EngineError> {
        let inspected = self.docker().await?.inspect_exec(exec).await;
        let inspected = inspected.map_err(|error| self.error(error))?;
        Ok(inspected.exit_code.unwrap_or(-1))
    }

    fn events(&self, since: u64) -> BoxStream<'static, Result<Event, EngineError>> {
        let mut filters = self.ours();
        filters.insert("type", vec!["container".to_owned()]);
        let options = EventsOptionsBuilder::default()
            .since(&since.to_string())
            .filters(&filters)
            .build();
        let address = self.address();
        let Some(docker) = self.connected.get() else {
            return futures_util::stream::empty().boxed();
        };
        docker
            .events(Some(options))
            .filter_map(move |message| {
                let event = match message {
                    Err(error) => Some(Err(EngineError::Unreachable(
                        address.clone(),
                        error.to_string(),
                    ))),
                    Ok(message) => {
                        let kind = match message.action.as_deref() {
                            Some("start") => Some(EventKind::Started),
                            Some("die") => Some(EventKind::Died),
                            Some("pause") => Some(EventKind::Paused),
                            Some("unpause") => Some(EventKind::Unpaused),
                            Some("destroy") => Some(EventKind::Removed),
                            _ => None,
                        };
                        let since_1970 = u64::try_from(message.time_nano.unwrap_or_default());
                        let at = UNIX_EPOCH + Duration::from_nanos(since_1970.unwrap_or_default());
                        let actor = message.actor.unwrap_or_default();
                        let site = actor.attributes.unwrap_or_default().remove(SITE);
                        kind.zip(site).map(|(kind, site)| {
                            Ok(Event {
                                id: text(actor.id),
                                site: Arc::from(site),
                                kind,
                                at,
                            })
                        })
                    }
                };
                std::future::ready(event)
            })
            .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_on_a_bridge_asks_for_the_mac_its_walls_know() {
        let config = "[address]\nipv4 = \"192.0.2.1\"\n";
        let config = common::Config::parse(Path::new("n.toml"), config).unwrap();
        let engine = DockerEngine::new(&config.containers, "3fa9");
        let spec = |mac| Spec {
            site: "a.w.example".into(),
            image: "php".to_owned(),
            command: vec![],
            port: 8080,
            environment: vec![],
            uid: 1,
            memory_bytes: 1,
            cpu_millis: 1,
            pids: 1,
            network: "net".to_owned(),
            ipv4: [10, 89, 0, 16].into(),
            ipv6: None,
            mac,
            resolvers: vec![],
            files: "/f".into(),
            scratch: "/s".into(),
        };
        let asked = |mac| {
            let body = serde_json::to_value(engine.container(&spec(mac))).unwrap();
            body["NetworkingConfig"]["EndpointsConfig"]["net"]["MacAddress"].clone()
        };
        let mac = crate::walls::mac([10, 89, 0, 16].into());
        assert_eq!(asked(Some(mac)), "02:42:0a:59:00:10");
        assert!(asked(None).is_null());
    }
}
