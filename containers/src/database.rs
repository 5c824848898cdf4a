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
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

/// The longest one statement of ours may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// The longest a whole database may take, out or in.
const DUMP_WITHIN: Duration = Duration::from_secs(3_600);

/// What the server says of a view or a routine that leads nowhere, its table dropped or its maker gone:
/// no column, no table, no function, an invalid view, no definer. Nothing is lost with it.
const LEADS_NOWHERE: [u16; 5] = [1054, 1146, 1305, 1356, 1449];
/// The most that is read of what a program complains of.
const MOST_SAID: u64 = 1 << 20;
/// Errors of the client itself, a lost connection among them: what comes after is not to be believed.
const CLIENT: std::ops::Range<u16> = 2000..3000;

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

    /// Makes sure the site's database and user are there. The user is one for every address: views,
    /// triggers and routines name the account that made them, and must outlive an address.
    pub(crate) async fn prepare(&self, site: &str) -> io::Result<()> {
        let (name, password) = (name(site), self.password(site));
        let connections = self.settings.connections;
        // Unless escaped, `_` stands for any letter in a grant, and would let a site make more databases.
        let pattern = name.replace('_', "\\_");
        let mut script = drop_users(&name, &self.hosts(&name, "%").await?);
        script.push_str(&format!(
            "CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4;\n\
             CREATE USER IF NOT EXISTS '{name}'@'%' IDENTIFIED BY '{password}';\n\
             ALTER USER '{name}'@'%' IDENTIFIED BY '{password}' WITH MAX_USER_CONNECTIONS {connections} MAX_STATEMENT_TIME 60;\n\
             GRANT ALL PRIVILEGES ON `{pattern}`.* TO '{name}'@'%';\n"
        ));
        self.query(&script).await.map(drop)
    }

    /// Whether the site's database is there.
    pub(crate) async fn exists(&self, site: &str) -> io::Result<bool> {
        let name = name(site);
        let found = self
            .query(&format!(
                "SELECT 1 FROM information_schema.schemata WHERE schema_name='{name}'"
            ))
            .await?;
        Ok(!found.is_empty())
    }

    /// Removes the site's database and users.
    pub(crate) async fn discard(&self, site: &str) -> io::Result<()> {
        let name = name(site);
        let users = drop_users(&name, &self.hosts(&name, "").await?);
        self.query(&format!("DROP DATABASE IF EXISTS `{name}`;\n{users}"))
            .await
            .map(drop)
    }

    /// From where users of this name may log in, one a line, but for one place.
    async fn hosts(&self, name: &str, but: &str) -> io::Result<String> {
        self.query(&format!(
            "SELECT Host FROM mysql.user WHERE User='{name}' AND Host<>'{but}'"
        ))
        .await
    }

    /// Writes the site's database as SQL to a file, at one moment in time. What is damaged is left out,
    /// and told; views and routines that lead nowhere are no damage.
    pub(crate) async fn dump(&self, site: &str, to: &Path) -> io::Result<Option<String>> {
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
                // One stale view must not keep all the rest from being saved.
                "--force",
            ])
            .arg(name(site))
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(Stdio::piped());
        let complaints = Complaints::of(command).await?;
        if complaints.cut_off() || !ends_whole(&beside)? {
            return Err(io::Error::other(format!(
                "the database's dump is not whole: mariadb-dump: {}",
                complaints.said.trim()
            )));
        }
        std::fs::rename(&beside, to)?;
        if !complaints.said.is_empty() {
            tracing::warn!(site, said = %complaints.said.trim(), "not everything of the database can be dumped");
        }
        Ok(complaints.damage())
    }

    /// Replaces the site's database by what a dump says.
    pub(crate) async fn restore(&self, site: &str, from: &Path) -> io::Result<()> {
        let name = name(site);
        self.run(
            self.own_client(site),
            &format!(
                "DROP DATABASE IF EXISTS `{name}`; CREATE DATABASE `{name}` CHARACTER SET utf8mb4;"
            ),
        )
        .await?;
        let mut command = self.own_client(site);
        command
            // As in the dump: a stale view is no reason to go without all that comes after it.
            .arg("--force")
            .arg(&name)
            .stdin(std::fs::File::open(from)?)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Complaints::of(command)
            .await?
            .damage()
            .map_or(Ok(()), |damage| Err(io::Error::other(damage)))
    }

    /// A client that acts as the site's own user: a dump is somebody's file, and must not speak for root.
    fn own_client(&self, site: &str) -> Command {
        let mut command = self.program("mariadb");
        command
            // A line of the dump is a statement, never a command to the client, which runs as root.
            .arg("--binary-mode")
            // The limit is for pages.
            .arg("--init-command=SET max_statement_time=0")
            .arg(format!("--user={}", name(site)))
            .env("MYSQL_PWD", self.password(site));
        command
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
        self.run(self.program("mariadb"), script).await
    }

    async fn run(&self, mut command: Command, script: &str) -> io::Result<String> {
        command
            .args(["--batch", "--skip-column-names"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let answer = async {
            let mut child = command.spawn().map_err(missing)?;
            if let Some(mut input) = child.stdin.take() {
                input.write_all(script.as_bytes()).await?;
            }
            finish("mariadb", child.wait_with_output().await?)
        };
        tokio::time::timeout(DEADLINE, answer).await.map_err(|_| {
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

/// What a program complained of while it went on.
struct Complaints {
    said: String,
    /// Of each error its number, where it has one, and its line.
    errors: Vec<(Option<u16>, String)>,
}

impl Complaints {
    /// Runs a program to its end.
    async fn of(mut command: Command) -> io::Result<Self> {
        let mut said = Vec::new();
        let run = async {
            let mut child = command.spawn().map_err(missing)?;
            if let Some(mut errors) = child.stderr.take() {
                // It repeats what failed, which may be all of somebody's file.
                (&mut errors).take(MOST_SAID).read_to_end(&mut said).await?;
                tokio::io::copy(&mut errors, &mut tokio::io::sink()).await?;
            }
            child.wait().await
        };
        let status = tokio::time::timeout(DUMP_WITHIN, run)
            .await
            .map_err(late)??;
        let whole = (said.len() as u64) < MOST_SAID;
        let said = String::from_utf8_lossy(&said).into_owned();
        let mut errors: Vec<(Option<u16>, String)> = said
            .lines()
            .filter(|line| line.starts_with("mariadb-dump: ") || line.starts_with("ERROR "))
            .map(|line| (number(line), line.to_owned()))
            .collect();
        if !whole || (errors.is_empty() && !status.success()) {
            errors.push((None, said.lines().last().unwrap_or_default().to_owned()));
        }
        Ok(Self { said, errors })
    }

    /// Whether the server was lost on the way.
    fn cut_off(&self) -> bool {
        self.errors
            .iter()
            .any(|(number, _)| number.is_some_and(|number| CLIENT.contains(&number)))
    }

    /// What is not whole; views and routines that lead nowhere may be left out.
    fn damage(&self) -> Option<String> {
        let lines: Vec<&str> = self
            .errors
            .iter()
            .filter(|(number, _)| !number.is_some_and(|number| LEADS_NOWHERE.contains(&number)))
            .map(|(_, line)| line.as_str())
            .collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

/// The number of an error: `… (1356)` and `… Got error: 1356: …` of mariadb-dump, `ERROR 1356 …` of
/// mariadb.
fn number(line: &str) -> Option<u16> {
    let (text, end) = if let Some(text) = line.strip_prefix("ERROR ") {
        (text, ' ')
    } else if let Some(text) = line.strip_prefix("mariadb-dump: Got error: ") {
        (text, ':')
    } else {
        (line.rsplit_once('(')?.1, ')')
    };
    text.split_once(end)?.0.parse().ok()
}

fn drop_users(name: &str, hosts: &str) -> String {
    hosts
        .lines()
        .map(|host| format!("DROP USER IF EXISTS '{name}'@'{host}';\n"))
        .collect()
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
    fn what_leads_nowhere_is_no_damage() {
        let numbers = [
            (
                "mariadb-dump: Couldn't execute 'SHOW FIELDS FROM `v`': View 'a.v' references invalid table(s) (1356)",
                Some(1356),
            ),
            (
                "mariadb-dump: Got error: 2013: \"Lost connection to server (during query)\" when using LOCK TABLES",
                Some(2013),
            ),
            (
                "ERROR 1146 (42S02) at line 161: Table 'a.u' doesn't exist",
                Some(1146),
            ),
            ("ERROR at line 3: Unknown command '\\!'.", None),
        ];
        for (line, number) in numbers {
            assert_eq!(super::number(line), number, "{line}");
        }
        let said = |numbers: &[Option<u16>]| Complaints {
            said: String::new(),
            errors: numbers
                .iter()
                .map(|number| (*number, "why".to_owned()))
                .collect(),
        };
        let stale = said(&[Some(1356), Some(1146)]);
        assert!(!stale.cut_off() && stale.damage().is_none());
        let crashed = said(&[Some(1356), Some(1194)]);
        assert!(!crashed.cut_off() && crashed.damage().as_deref() == Some("why"));
        let lost = said(&[Some(1356), Some(2013)]);
        assert!(lost.cut_off() && lost.damage().is_some());
        assert!(said(&[None]).damage().is_some());
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
