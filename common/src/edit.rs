//! Changing a zone file as a person would: comments and order stay, nothing else moves.

use toml_edit::{Array, DocumentMut, Item, Table, Value};

use crate::name::SiteName;

/// What can't be done to a zone file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The file has to be mended first.
    #[error("the zone file can't be edited while it is not TOML: {0}")]
    Broken(String),
    /// A site of that name is there.
    #[error("there is a site {0} already: change it with `nuage site set {0}`")]
    Exists(SiteName),
    /// No site of that name is there.
    #[error("there is no site {0} in this zone: see `nuage site list`")]
    Missing(SiteName),
    /// `sites` holds something else than tables.
    #[error("[sites] must hold one table for each site")]
    NotATable,
}

/// What to say of a site; `None` leaves a key as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SiteChange {
    /// The key of the backend and its value; `Some(None)` makes it a container.
    pub backend: Option<Option<(&'static str, String)>>,
    /// All aliases.
    pub aliases: Option<Vec<String>>,
    /// All foreign domains.
    pub domains: Option<Vec<String>>,
    /// The group.
    pub group: Option<String>,
    /// The owner.
    pub owner: Option<String>,
    /// `redirect` or `both`.
    pub https: Option<String>,
    /// The image of its container.
    pub image: Option<String>,
    /// Whether its container has a database; only ever `Some(true)` from the command line.
    pub database: Option<bool>,
}

/// The text with a new site at the end of the sites.
///
/// # Errors
/// The site exists, or the text is not TOML.
pub fn add(text: &str, name: &SiteName, change: &SiteChange) -> Result<String, EditError> {
    let mut document = document(text)?;
    let sites = sites(&mut document)?;
    if key_of(sites, name).is_some() {
        return Err(EditError::Exists(name.clone()));
    }
    // After the last site, before whatever follows.
    let last = sites
        .iter()
        .filter_map(|(_, item)| item.as_table()?.position())
        .max();
    let mut table = Table::new();
    table.set_position(last);
    table.decor_mut().set_prefix("\n");
    apply(&mut table, change);
    sites.insert(name.as_str(), Item::Table(table));
    Ok(document.to_string())
}

/// The text with some keys of a site changed.
///
/// # Errors
/// There is no such site, or the text is not TOML.
pub fn set(text: &str, name: &SiteName, change: &SiteChange) -> Result<String, EditError> {
    let mut document = document(text)?;
    let sites = sites(&mut document)?;
    let site = key_of(sites, name)
        .and_then(|key| sites.get_mut(&key))
        .ok_or_else(|| EditError::Missing(name.clone()))?;
    match site {
        Item::Table(table) => apply(table, change),
        Item::Value(Value::InlineTable(inline)) => {
            let mut table = std::mem::take(inline).into_table();
            apply(&mut table, change);
            *inline = table.into_inline_table();
        }
        _ => return Err(EditError::NotATable),
    }
    Ok(document.to_string())
}

/// The text without a site.
///
/// # Errors
/// There is no such site, or the text is not TOML.
pub fn remove(text: &str, name: &SiteName) -> Result<String, EditError> {
    let mut document = document(text)?;
    let sites = sites(&mut document)?;
    let key = key_of(sites, name).ok_or_else(|| EditError::Missing(name.clone()))?;
    sites.remove(&key);
    Ok(document.to_string())
}

fn document(text: &str) -> Result<DocumentMut, EditError> {
    text.parse()
        .map_err(|error: toml_edit::TomlError| EditError::Broken(error.to_string()))
}

fn sites(document: &mut DocumentMut) -> Result<&mut Table, EditError> {
    let sites = document.entry("sites").or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    sites.as_table_mut().ok_or(EditError::NotATable)
}

/// The key as it is written: `Alice` and `école` are sites too.
fn key_of(sites: &Table, name: &SiteName) -> Option<String> {
    let mut keys = sites.iter().map(|(key, _)| key);
    keys.find(|key| SiteName::parse(key).as_ref() == Ok(name))
        .map(str::to_owned)
}

fn apply(table: &mut Table, change: &SiteChange) {
    if let Some(backend) = &change.backend {
        if backend.is_some() {
            // What was said of a container is not true of anything else.
            for key in crate::container::KEYS {
                table.remove(key);
            }
        }
        for key in ["static", "upstream", "redirect"] {
            if backend.as_ref().is_none_or(|(kept, _)| *kept != key) {
                table.remove(key);
            }
        }
        if let Some((key, target)) = backend {
            put(table, key, target.as_str().into());
        }
    }
    if let Some(database) = change.database {
        put(table, "database", database.into());
    }
    let texts = [
        ("owner", &change.owner),
        ("group", &change.group),
        ("https", &change.https),
        ("image", &change.image),
    ];
    for (key, text) in texts {
        match text.as_deref() {
            None => {}
            Some("") => drop(table.remove(key)),
            Some(text) => put(table, key, text.into()),
        }
    }
    for (key, list) in [("aliases", &change.aliases), ("domains", &change.domains)] {
        match list {
            None => {}
            Some(list) if list.is_empty() => drop(table.remove(key)),
            Some(list) => put(
                table,
                key,
                list.iter().map(String::as_str).collect::<Array>().into(),
            ),
        }
    }
}

/// Sets a value; the comment behind the old one stays.
fn put(table: &mut Table, key: &str, mut new: Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *new.decor_mut() = old.decor().clone();
            *old = new;
        }
        None => {
            table.insert(key, Item::Value(new));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# The web sites\norigin = \"w.example\" # delegated in May\n\n[sites.alice]\nowner = \"alice\"   # asks rarely\n\n# The students' office\n[sites.bde]\n\n[[records]]\nname = \"@\"\ntype = \"MX\"\ndata = \"10 mx.example.\"\n";

    fn name(text: &str) -> SiteName {
        SiteName::parse(text).unwrap()
    }

    #[test]
    fn a_new_site_follows_the_last_one_and_nothing_else_moves() {
        let upstream = SiteChange {
            backend: Some(Some(("upstream", "http://127.0.0.1:1".into()))),
            ..SiteChange::default()
        };
        let text = add(FILE, &name("carol"), &upstream).unwrap();
        let added = "\n[sites.carol]\nupstream = \"http://127.0.0.1:1\"\n";
        let (before, after) = FILE.split_at(FILE.find("\n[[records]]").unwrap());
        assert_eq!(text, format!("{before}{added}{after}"));
        assert_eq!(
            add(&text, &name("carol"), &upstream),
            Err(EditError::Exists(name("carol")))
        );
    }

    #[test]
    fn a_change_keeps_comments() {
        let change = SiteChange {
            owner: Some("eve".into()),
            aliases: Some(vec!["al".into()]),
            ..SiteChange::default()
        };
        let text = set(FILE, &name("alice"), &change).unwrap();
        assert!(
            text.contains("# asks rarely") && text.contains("owner = \"eve\""),
            "{text}"
        );
        assert!(text.contains("aliases = [\"al\"]"), "{text}");
        let back = set(
            &text,
            &name("alice"),
            &SiteChange {
                aliases: Some(Vec::new()),
                ..SiteChange::default()
            },
        )
        .unwrap();
        assert!(!back.contains("aliases"));
        assert_eq!(
            set(FILE, &name("nobody"), &change),
            Err(EditError::Missing(name("nobody")))
        );
    }

    #[test]
    fn a_site_goes_and_the_others_stay() {
        let text = remove(FILE, &name("alice")).unwrap();
        assert!(
            !text.contains("alice")
                && text.contains("[sites.bde]")
                && text.contains("# The web sites"),
            "{text}"
        );
        assert_eq!(
            remove(&text, &name("alice")),
            Err(EditError::Missing(name("alice")))
        );
    }

    #[test]
    fn a_key_is_found_however_it_is_written() {
        let text = "origin = \"w.example\"\n[sites.Alice]\n[sites.\"école\"]\n";
        assert!(matches!(
            add(text, &name("alice"), &SiteChange::default()),
            Err(EditError::Exists(_))
        ));
        let text = remove(text, &name("alice")).unwrap();
        assert_eq!(
            remove(&text, &name("xn--cole-9oa")).unwrap(),
            "origin = \"w.example\"\n"
        );
    }

    #[test]
    fn the_first_site_of_a_zone_and_sites_written_inline() {
        let text = add(
            "origin = \"w.example\"\n",
            &name("alice"),
            &SiteChange::default(),
        )
        .unwrap();
        assert_eq!(text, "origin = \"w.example\"\n\n[sites.alice]\n");
        let inline = "origin = \"w.example\"\nsites.alice = { owner = \"a\" }\n";
        let change = SiteChange {
            group: Some("g".into()),
            ..SiteChange::default()
        };
        assert!(
            set(inline, &name("alice"), &change)
                .unwrap()
                .contains("group = \"g\"")
        );
    }
}
