//! The command line.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// The cloud for a school's web sites: DNS and HTTPS for every site named in a zone file.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "\
Examples:
  nuage serve --config config/demo.toml      answer DNS and HTTP as the files say
  nuage site add alice --static /srv/alice   name a site; a running server follows at once
  nuage check                                say what is wrong in the files, and where

Exit codes: 0 done, 1 something is wrong (it says what), 2 the command line is not understood."
)]
pub(crate) struct Args {
    /// The configuration file.
    #[arg(
        long,
        short,
        global = true,
        value_name = "FILE",
        env = "NUAGE_CONFIG",
        default_value = "/etc/nuage/nuage.toml"
    )]
    pub(crate) config: PathBuf,

    /// How to print what was found or done.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs: one JSON value.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer DNS and HTTP until told to stop.
    ///
    /// Zone files are followed as they change. SIGHUP reads nuage.toml again; SIGTERM lets requests
    /// under way finish, for at most drain_seconds of the limits.
    #[command(after_help = "\
Roles, for two processes under two users (see docs/deploy.md):
  edge      what the internet reaches: DNS and HTTP. No root, no engine, writes only [paths] edge
  control   what may act: runs, wakes and puts to sleep containers, at a Unix socket
  all       both in one process")]
    Serve {
        /// Which part to be.
        #[arg(long, default_value = "all")]
        role: Role,
    },
    /// Show how much memory there is, what takes it, and how many more sites may wake.
    Capacity,
    /// Remove every container, network, disk mount and firewall rule of this installation.
    ///
    /// Files, databases, certificates and leases stay in the state folder. Stop `nuage serve` first.
    Uninstall,
    /// Say everything that is wrong in nuage.toml and the zone files.
    ///
    /// Each line is file:line:column: what is wrong and what would be right. Exit code 0 when there
    /// is no error; warnings alone do not count.
    Check,
    /// Name, change, list and remove sites.
    #[command(subcommand)]
    Site(Box<SiteCommand>),
    /// List, show and export DNS zones.
    #[command(subcommand)]
    Zone(ZoneCommand),
    /// Find out why a name or a zone can't be found from outside, and say what to do.
    ///
    /// Asks what every resolver asks: the parent zone's servers for the delegation, each name server
    /// for the zone, a resolver for the name and for the names of our addresses. Changes nothing. It
    /// takes 30 seconds at most. Exit code 0 when there is no error; warnings alone do not count.
    #[command(after_help = "\
Examples:
  nuage doctor sites.school.example                 a zone: its delegation and its name servers
  nuage doctor alice                                the same, and whether alice resolves
  nuage doctor www.alice.example                    a foreign domain of a site
  nuage doctor 10.2.0.192.in-addr.arpa              a reverse zone; 192.0.2.10 means the same
  nuage doctor alice --resolver 9.9.9.9             as others see it

What the findings are about:
  resolver      the one that is asked; all others are found through it
  parent        the zone above ours must name our name servers, in NS records
  glue          it must hold the addresses of those of them whose names lie inside our zone
  DS            it holds one only if our zone is signed, else validating resolvers refuse our names
  name server   each must answer for the zone with authority, over UDP and TCP, with the same serial
  name          the name must lead to the addresses of [address] in nuage.toml
  reverse       these addresses must lead back to a name

Ask from outside your network too: a firewall or a resolver that knows more than others hides faults.")]
    Doctor {
        /// A site's name, alias or domain, the origin of a zone, or one of our addresses.
        #[arg(value_name = "NAME|ORIGIN")]
        name: String,
        /// The resolver to ask; by default the first of /etc/resolv.conf.
        #[arg(long, value_name = "ADDR[:PORT]", value_parser = resolver)]
        resolver: Option<SocketAddr>,
    },
    /// Print the certificate of the local authority, for browsers and systems to trust.
    Ca,
    /// Print the completions of a shell.
    #[command(after_help = "Example: nuage completions bash > /etc/bash_completion.d/nuage")]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Which part of Nuage a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Edge and control.
    All,
    /// DNS and HTTP.
    Edge,
    /// Containers.
    Control,
}

/// What to do with sites.
#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    /// Name a site.
    ///
    /// The zone file is edited as a person would: comments and order stay. It is checked first, and
    /// left alone when something would be wrong.
    #[command(after_help = "\
Examples:
  nuage site add alice                                     a container of her own
  nuage site add docs --static /srv/docs --alias manual    files
  nuage site add api --upstream http://127.0.0.1:9001      another server
  nuage site add old --redirect https://www.school.example/old/")]
    Add {
        #[command(flatten)]
        site: Named,
        #[command(flatten)]
        change: Change,
    },
    /// List all sites with their URLs.
    List {
        /// Only those of this zone.
        #[arg(long, value_name = "ORIGIN")]
        zone: Option<String>,
    },
    /// Show everything about a site.
    Show {
        #[command(flatten)]
        site: Named,
    },
    /// Change a site. What is not named stays; --owner "" and the like remove a value.
    Set {
        #[command(flatten)]
        site: Named,
        #[command(flatten)]
        change: Change,
        /// Make it a container, whatever it was.
        #[arg(long, conflicts_with = "backend")]
        container: bool,
    },
    /// Wake a site's container and wait until it answers.
    Wake {
        #[command(flatten)]
        site: Named,
    },
    /// Put a site's container to sleep now.
    Sleep {
        #[command(flatten)]
        site: Named,
    },
    /// Stop and start a site's container; also after it has been left alone for crashing.
    Restart {
        #[command(flatten)]
        site: Named,
    },
    /// Print what a site's container printed.
    Logs {
        #[command(flatten)]
        site: Named,
        /// Only the last lines.
        #[arg(long, short = 'n', value_name = "NUMBER")]
        lines: Option<u32>,
        /// Go on as more is printed.
        #[arg(long, short)]
        follow: bool,
    },
    /// Run a command inside a site's container, in its folder and as its user.
    #[command(after_help = "\
Examples:
  nuage site exec alice -- php -v
  nuage site exec alice -- sh                    a shell, when you are at a terminal
  nuage site exec alice -- tar xf - < site.tar   what comes in goes to the command")]
    Exec {
        #[command(flatten)]
        site: Named,
        /// The command and its arguments, after --.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Show what container sites are doing and the memory they take.
    Stats {
        /// Only this one.
        name: Option<String>,
        /// Its zone; needed where there are several.
        #[arg(long, value_name = "ORIGIN")]
        zone: Option<String>,
    },
    /// Write a site's files and database to one tar.zst file.
    ///
    /// The site stands still while it is read, so that the backup is of one moment; requests wait.
    #[command(after_help = "\
Examples:
  nuage site backup alice -o alice.tar.zst
  nuage site backup alice | ssh backups 'cat > alice.tar.zst'")]
    Backup {
        #[command(flatten)]
        site: Named,
        /// Where to; standard output by default.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Replace a site's files and database by those of a backup; what was there goes to the bin.
    #[command(after_help = "\
Examples:
  nuage site restore alice alice.tar.zst
  nuage site restore alice --bin                 what was last removed or replaced, kept for 30 days")]
    Restore {
        #[command(flatten)]
        site: Named,
        /// The backup; - is standard input.
        #[arg(required_unless_present = "bin", value_name = "FILE")]
        file: Option<PathBuf>,
        /// Take what is in the bin instead.
        #[arg(long, conflicts_with = "file")]
        bin: bool,
    },
    /// Remove a site. Its files stay in the bin for 30 days.
    Remove {
        #[command(flatten)]
        site: Named,
        /// Show what would change and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which site.
#[derive(Debug, ClapArgs)]
pub(crate) struct Named {
    /// The site's name, such as alice, or its full name, such as alice.sites.school.example.
    pub(crate) name: String,
    /// Its zone; needed where there are several.
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) zone: Option<String>,
}

/// What to say of a site.
#[derive(Debug, ClapArgs)]
pub(crate) struct Change {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    /// Another name in the same zone; may be repeated. On `set`, these replace all aliases.
    #[arg(long = "alias", value_name = "NAME")]
    pub(crate) aliases: Vec<String>,
    /// A foreign host name that also leads here; may be repeated. On `set`, these replace all.
    #[arg(long = "domain", value_name = "HOST")]
    pub(crate) domains: Vec<String>,
    /// The image of its container, such as nuage-php:8.4.
    #[arg(long, conflicts_with_all = ["upstream", "folder", "redirect"])]
    pub(crate) image: Option<String>,
    /// Give its container a database of its own.
    #[arg(long, conflicts_with_all = ["upstream", "folder", "redirect"])]
    pub(crate) database: bool,
    /// The group of tenants it belongs to.
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Who may change it.
    #[arg(long)]
    pub(crate) owner: Option<String>,
    /// What plain HTTP does.
    #[arg(long, value_name = "POLICY", value_parser = ["redirect", "both"])]
    pub(crate) https: Option<String>,
    /// Show what would change and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Where requests go: one of these, or a container.
#[derive(Debug, ClapArgs)]
#[group(id = "backend", multiple = false)]
pub(crate) struct BackendArgs {
    /// Forward to a server: http://host:port, h2c://host:port, https://host or unix:/path.
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: Option<String>,
    /// Serve the files of a folder.
    #[arg(long = "static", value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
    /// Redirect to a URL; one that ends in a slash takes the rest of the path.
    #[arg(long, value_name = "URL")]
    pub(crate) redirect: Option<String>,
}

/// What to do with zones.
#[derive(Debug, Subcommand)]
pub(crate) enum ZoneCommand {
    /// List all zones, forward and reverse.
    List,
    /// Show a zone and what its parent must delegate.
    Show {
        /// The zone's origin.
        origin: String,
    },
    /// Print a zone as a master file (RFC 1035): the very records that are served, but that a signed
    /// zone gets signatures and a serial of its own. For secondaries there is zone transfer.
    Export {
        /// The zone's origin.
        origin: String,
    },
    /// Print the DS records that a signed zone's parent must hold, as lines of a master file.
    #[command(after_help = "\
Examples:
  nuage zone ds sites.school.example               what to give to the parent
  nuage zone ds sites.school.example --published   the parent has it: go on")]
    Ds {
        /// The zone's origin.
        origin: String,
        /// Say that every server of the parent holds these DS records, and no other ones of ours.
        ///
        /// A rollover of the KSK waits for this. Look first: dig ORIGIN DS at each server of the parent.
        #[arg(long)]
        published: bool,
    },
    /// Show a signed zone's keys, and what happens to them next.
    Keys {
        /// The zone's origin.
        origin: String,
    },
    /// Replace a key of a signed zone now: nothing breaks, but it takes hours, or days (see `zone keys`).
    Roll {
        /// The zone's origin.
        origin: String,
        /// Which key.
        role: KeyRole,
    },
}

/// What a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyRole {
    /// All records but the keys themselves; it also goes by itself, every 30 days by default.
    Zsk,
    /// The keys; the parent's DS record must follow.
    Ksk,
}

/// A resolver's address, its port 53 unless named.
fn resolver(text: &str) -> Result<SocketAddr, String> {
    let bare = text
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>()
        .map(|address| SocketAddr::new(address, 53));
    bare.or_else(|_| text.parse()).map_err(|_| {
        "write an address, such as 9.9.9.9, 2620:fe::fe, 127.0.0.1:5353 or [::1]:5353".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_resolver_is_an_address_with_or_without_a_port() {
        for (text, want) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("127.0.0.1:5353", "127.0.0.1:5353"),
            ("::1", "[::1]:53"),
            ("[::1]", "[::1]:53"),
            ("[::1]:5353", "[::1]:5353"),
        ] {
            assert_eq!(resolver(text), Ok(want.parse().unwrap()));
        }
        assert!(resolver("dns.example").is_err());
    }
}
