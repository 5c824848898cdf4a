//! A database and a user of its own for each site that asks, at a shared MariaDB.
//!
//! The server is reached as root through its Unix socket, by its own client programs: they speak every
//! version's dialect, and dumps need them anyway. A site reaches it at its network's gateway. Its
//! password is derived from one key of ours, so that nothing has to be kept for each site.

use std::{io, net::Ipv4Addr, path::Path, process::Stdio, sync::Arc, time::Duration};

use common::{
    containers::Database as Settings,
    durable::{self, Access},
};
use ring::{hmac, rand::SecureRandom};
use tokio::{io::AsyncWriteExt, process::Command};

/// The longest one statement of ours may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// The longest a whole database may take, out or in.
const DUMP_WITHIN: Duration = Duration::from_secs(3_600);

/// The shared server.
#[derive(Clone)]
pub(crate) struct Database {
    settings: Settings,
    key: Arc<hmac::Key>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Database {
    /// Reads the key passwords come from, or makes it.
    pub(crate) fn open(settings: &Settings, state: &Path) -> io::Result<Self> {
        let path = state.join("keys/database.key");
        let key = match std::fs::read(&path) {
            Ok(key) if key.len() == 32 => key,
            Ok(_) => {
                return Err(io::Error::other(format!(
                    "{} is not a key of 32 octets: restore it from a backup",
                    path.display()
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = vec![0; 32];
                ring::rand::SystemRandom::new()
                    .fill(&mut key)
                    .map_err(|_| io::Error::other("the system has no random numbers"))?;
                std::fs::create_dir_all(state.join("keys"))?;
                durable::replace(&path, &key, Access::Owner)?;
                key
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            settings: settings.clone(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key).into(),
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.settings.port
    }

    /// What a site's programs are told.
    pub(crate) fn environment(&self, site: &str, gateway: Ipv4Addr) -> Vec<(String, String)> {
        let (name, password, port) = (name(site), self.password(site), self.settings.port);
        [
            ("DB_HOST", gateway.to_string()),
            ("DB_PORT", port.to_string()),
            ("DB_NAME", name.clone()),
            ("DB_USER", name.clone()),
            ("DB_PASSWORD", password.clone()),
            (
                "DATABASE_URL",
                format!("mysql://{name}:{password}@{gateway}:{port}/{name}"),
            ),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// Makes sure the site's database and user are there; the user only from the site's address.
    pub(crate) async fn prepare(&self, site: &str, address: Ipv4Addr) -> io::Result<()> {
        let (name, password) = (name(site), self.password(site));
        let connections = self.settings.connections;
        // Users of earlier addresses go: the address may be another site's by now.
        let old = self
            .query(&format!(
                "SELECT Host FROM mysql.user WHERE User='{name}' AND Host<>'{address}'"
            ))
            .await?;
        let mut script = String::new();
        for host in old.lines().filter(|host| host.parse::<Ipv4Addr>().is_ok()) {
            script.push_str(&format!("DROP USER '{name}'@'{host}';\n"));
        }
        script.push_str(&format!(
            "CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4;\n\
             CREATE USER IF NOT EXISTS '{name}'@'{address}' IDENTIFIED BY '{password}';\n\
             ALTER USER '{name}'@'{address}' IDENTIFIED BY '{password}' WITH MAX_USER_CONNECTIONS {connections} MAX_STATEMENT_TIME 60;\n\
             GRANT ALL PRIVILEGES ON `{name}`.* TO '{name}'@'{address}';\n"
        ));
        self.query(&script).await.map(drop)
    }

    /// Removes the site's database and users.
    pub(crate) async fn discard(&self, site: &str) -> io::Result<()> {
        let name = name(site);
        let hosts = self
            .query(&format!("SELECT Host FROM mysql.user WHERE User='{name}'"))
            .await?;
        let mut script = format!("DROP DATABASE IF EXISTS `{name}`;\n");
        for host in hosts
            .lines()
            .filter(|host| host.parse::<Ipv4Addr>().is_ok())
        {
            script.push_str(&format!("DROP USER '{name}'@'{host}';\n"));
        }
        self.query(&script).await.map(drop)
    }

    /// Writes the site's database as SQL to a file, at one moment in time.
    pub(crate) async fn dump(&self, site: &str, to: &Path) -> io::Result<()> {
        // Beside it first: a dump that is there is not lost for one that fails.
        let beside = to.with_extension("new");
        let file = std::fs::File::create(&beside)?;
        let mut command = self.program("mariadb-dump");
        command
            .args([
                "--single-transaction",
                "--quick",
                "--routines",
                "--triggers",
                "--skip-dump-date",
            ])
            .arg(name(site))
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(Stdio::piped());
        let child = command.spawn().map_err(missing)?;
        let output = tokio::time::timeout(DUMP_WITHIN, child.wait_with_output())
            .await
            .map_err(late)??;
        finish("mariadb-dump", output)?;
        if ends_whole(&beside)? {
            std::fs::rename(&beside, to)
        } else {
            Err(io::Error::other("the database's dump is not whole"))
        }
    }

    /// Replaces the site's database by what a dump says.
    pub(crate) async fn restore(&self, site: &str, from: &Path) -> io::Result<()> {
        let name = name(site);
        self.query(&format!(
            "DROP DATABASE IF EXISTS `{name}`; CREATE DATABASE `{name}` CHARACTER SET utf8mb4;"
        ))
        .await?;
        // As the site's own user might: a dump is somebody's file, and must not speak for root.
        let user = format!("{name}'@'localhost");
        let password = self.password(site);
        self.query(&format!(
            "CREATE OR REPLACE USER '{user}' IDENTIFIED BY '{password}'; GRANT ALL PRIVILEGES ON `{name}`.* TO '{user}';"
        ))
        .await?;
        let mut command = self.program("mariadb");
        command
            // A line of the dump is a statement, never a command to the client, which runs as root.
            .arg("--binary-mode")
            .arg(format!("--user={name}"))
            .env("MYSQL_PWD", &password)
            .arg(&name)
            .stdin(std::fs::File::open(from)?)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let restored = match command.spawn() {
            Ok(child) => tokio::time::timeout(DUMP_WITHIN, child.wait_with_output())
                .await
                .unwrap_or_else(|elapsed| Err(late(elapsed))),
            Err(error) => Err(missing(error)),
        };
        let restored = restored.and_then(|output| finish("mariadb", output));
        self.query(&format!("DROP USER '{user}';")).await?;
        restored.map(drop)
    }

    fn password(&self, site: &str) -> String {
        let tag = hmac::sign(&self.key, site.as_bytes());
        tag.as_ref()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command
            .arg("--no-defaults")
            .arg(format!("--socket={}", self.settings.socket.display()))
            .kill_on_drop(true);
        command
    }

    async fn query(&self, script: &str) -> io::Result<String> {
        let mut command = self.program("mariadb");
        command
            .args(["--batch", "--skip-column-names"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let run = async {
            let mut child = command.spawn().map_err(missing)?;
            if let Some(mut input) = child.stdin.take() {
                input.write_all(script.as_bytes()).await?;
            }
            finish("mariadb", child.wait_with_output().await?)
        };
        tokio::time::timeout(DEADLINE, run).await.map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                "the database server does not answer",
            )
        })?
    }
}

fn late(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the database server does not answer",
    )
}

fn missing(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::NotFound {
        io::Error::new(
            error.kind(),
            "there is no mariadb: install it with `apt-get install mariadb-client`",
        )
    } else {
        error
    }
}

/// Whether a dump has its last line: a full disk leaves a shorter one.
fn ends_whole(dump: &Path) -> io::Result<bool> {
    use std::io::{Read, Seek, SeekFrom};
    const LAST: u64 = 200;
    let mut file = std::fs::File::open(dump)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).contains("-- Dump completed"))
}

fn finish(program: &str, output: std::process::Output) -> io::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}", said.trim())))
}

/// A database's name, which is its user's too: readable, unique, and of plain letters, so that it
/// needs no quoting anywhere.
fn name(site: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, site.as_bytes());
    let mark: String = digest.as_ref()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let plain: String = site
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .take(40)
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    format!("{plain}_{mark}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_unique() {
        assert!(name("alice.w.example").starts_with("alice_"));
        assert_ne!(name("alice.w.example"), name("alice.v.example"));
        assert_ne!(name("a-b.w.example"), name("a_b.w.example"));
        let odd = name(&format!("{}'`;.w.example", "x".repeat(60)));
        assert!(odd.len() <= 64 && odd.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    }

    #[test]
    fn passwords_come_from_the_key_alone() {
        let state = tempfile::tempdir().unwrap();
        let settings = Settings {
            socket: "/nowhere".into(),
            port: 3306,
            connections: 10,
        };
        let first = Database::open(&settings, state.path()).unwrap();
        let again = Database::open(&settings, state.path()).unwrap();
        let other = Database::open(&settings, tempfile::tempdir().unwrap().path()).unwrap();
        assert_eq!(first.password("a"), again.password("a"));
        assert_ne!(first.password("a"), first.password("b"));
        assert_ne!(first.password("a"), other.password("a"));
        let environment = first.environment("a.w.example", Ipv4Addr::new(10, 0, 0, 1));
        assert!(
            environment
                .iter()
                .any(|(key, value)| key == "DB_HOST" && value == "10.0.0.1")
        );
    }
}
