//! The pages a person meets when a site itself can't answer: small, self-contained, in French and
//! English. Programs that ask for JSON get problem details (RFC 9457).

use bytes::Bytes;
use http::{
    HeaderMap,
    header::{ACCEPT, ACCEPT_LANGUAGE},
};

/// What a page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// 400.
    BadRequest,
    /// 404: no site has this name.
    NoSuchSite,
    /// 404: the site has no such file.
    NoSuchFile,
    /// 405.
    MethodNotAllowed,
    /// 408.
    TooSlow,
    /// 412.
    PreconditionFailed,
    /// 413.
    TooLarge,
    /// 421: this connection is for another site, or for none.
    WrongConnection,
    /// 431.
    HeadTooLarge,
    /// 500.
    Failed,
    /// 502: the site's own server does not answer.
    UpstreamDown,
    /// 503: the site's container is not running, and nothing runs it.
    NotRunning,
    /// 503: it is waking up; the page loads itself again.
    Waking,
    /// 503: it sleeps, and who asks is nobody to wake it for.
    Asleep,
    /// 503: it can't wake while so many others are awake.
    Crowded,
    /// 503: it fails.
    Failing,
    /// 507: its disk is full.
    DiskFull,
    /// 504: the site's own server answers too slowly.
    UpstreamSlow,
    /// 508: the request came back to us.
    Loop,
}

/// A page in one language and form.
#[derive(Clone, Debug)]
pub(crate) struct Rendered {
    pub(crate) status: u16,
    pub(crate) media_type: &'static str,
    pub(crate) language: &'static str,
    pub(crate) retry_after: Option<&'static str>,
    pub(crate) body: Bytes,
}

struct Words {
    title: &'static str,
    text: &'static str,
}

impl Page {
    /// For who sent these headers.
    pub(crate) fn for_client(self, headers: &HeaderMap, host: Option<&str>) -> Rendered {
        let field = |name| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        self.render(french(field(ACCEPT_LANGUAGE)), json(field(ACCEPT)), host)
    }

    fn render(self, french: bool, json: bool, host: Option<&str>) -> Rendered {
        let (status, english_words, french_words) = self.words();
        let (language, words) = if french {
            ("fr", french_words)
        } else {
            ("en", english_words)
        };
        let (media_type, body) = if json {
            let problem = serde_json::json!({ "type": "about:blank", "title": words.title, "status": status, "detail": words.text });
            ("application/problem+json", problem.to_string())
        } else {
            (
                "text/html; charset=utf-8",
                html(language, status, &words, host, self == Self::Waking),
            )
        };
        Rendered {
            status,
            media_type,
            language,
            retry_after: self.retry_after(),
            body: body.into(),
        }
    }

    pub(crate) fn status(self) -> u16 {
        self.words().0
    }

    fn retry_after(self) -> Option<&'static str> {
        match self {
            Self::Waking => Some("2"),
            Self::UpstreamDown | Self::NotRunning | Self::UpstreamSlow => Some("10"),
            Self::Crowded | Self::Failing => Some("30"),
            Self::Asleep => Some("120"),
            _ => None,
        }
    }

    /// Status, English, French.
    fn words(self) -> (u16, Words, Words) {
        let say = |title, text| Words { title, text };
        match self {
            Self::BadRequest => (
                400,
                say(
                    "This request makes no sense",
                    "Its host name or its form is not one that HTTP allows.",
                ),
                say(
                    "Cette requête n'a pas de sens",
                    "Son nom d'hôte ou sa forme n'est pas permis par HTTP.",
                ),
            ),
            Self::NoSuchSite => (
                404,
                say(
                    "No site has this name",
                    "Check the spelling. If the site is yours, ask your administrator whether it has been declared.",
                ),
                say(
                    "Aucun site ne porte ce nom",
                    "Vérifiez l'orthographe. Si ce site est le vôtre, demandez à votre administrateur s'il est déclaré.",
                ),
            ),
            Self::NoSuchFile => (
                404,
                say(
                    "This page does not exist",
                    "The site is here, but it has nothing at this address.",
                ),
                say(
                    "Cette page n'existe pas",
                    "Le site est bien là, mais il n'a rien à cette adresse.",
                ),
            ),
            Self::MethodNotAllowed => (
                405,
                say(
                    "This can only be read",
                    "The site serves files: it answers GET and HEAD.",
                ),
                say(
                    "Ceci peut seulement être lu",
                    "Le site sert des fichiers : il répond à GET et HEAD.",
                ),
            ),
            Self::TooSlow => (
                408,
                say(
                    "The request took too long",
                    "It did not arrive whole in time. Please try again.",
                ),
                say(
                    "La requête a pris trop de temps",
                    "Elle n'est pas arrivée entière à temps. Merci de réessayer.",
                ),
            ),
            Self::PreconditionFailed => (
                412,
                say(
                    "The file has changed",
                    "It is no longer the one your request speaks of.",
                ),
                say(
                    "Le fichier a changé",
                    "Ce n'est plus celui dont parle votre requête.",
                ),
            ),
            Self::TooLarge => (
                413,
                say(
                    "Too much at once",
                    "What was sent is larger than this server accepts.",
                ),
                say(
                    "Trop à la fois",
                    "Ce qui a été envoyé est plus grand que ce que ce serveur accepte.",
                ),
            ),
            Self::WrongConnection => (
                421,
                say(
                    "No site of this name here",
                    "This secure connection was opened for another name. Check the spelling and load the page again.",
                ),
                say(
                    "Pas de site de ce nom ici",
                    "Cette connexion sécurisée a été ouverte pour un autre nom. Vérifiez l'orthographe et rechargez la page.",
                ),
            ),
            Self::HeadTooLarge => (
                431,
                say(
                    "The request's headers are too large",
                    "Clearing this site's cookies usually helps.",
                ),
                say(
                    "Les en-têtes de la requête sont trop grands",
                    "Effacer les cookies de ce site suffit en général.",
                ),
            ),
            Self::Failed => (
                500,
                say(
                    "Something went wrong here",
                    "The fault is the server's. Please try again later.",
                ),
                say(
                    "Quelque chose s'est mal passé ici",
                    "La faute est au serveur. Merci de réessayer plus tard.",
                ),
            ),
            Self::UpstreamDown => (
                502,
                say(
                    "This site does not answer",
                    "Its own server is down or unreachable. Please try again in a moment.",
                ),
                say(
                    "Ce site ne répond pas",
                    "Son propre serveur est arrêté ou injoignable. Merci de réessayer dans un instant.",
                ),
            ),
            Self::NotRunning => (
                503,
                say(
                    "This site is not running",
                    "It is declared, but nothing runs it yet. Please try again in a moment.",
                ),
                say(
                    "Ce site n'est pas en marche",
                    "Il est déclaré, mais rien ne le fait encore tourner. Merci de réessayer dans un instant.",
                ),
            ),
            Self::Waking => (
                503,
                say(
                    "This site is waking up",
                    "It slept, as nobody was looking. It opens by itself in a moment.",
                ),
                say(
                    "Ce site se réveille",
                    "Il dormait, car personne ne regardait. Il s'ouvre tout seul dans un instant.",
                ),
            ),
            Self::Asleep => (
                503,
                say(
                    "This site is asleep",
                    "It wakes up for people, not for robots. Please come back later.",
                ),
                say(
                    "Ce site dort",
                    "Il se réveille pour les gens, pas pour les robots. Merci de revenir plus tard.",
                ),
            ),
            Self::Crowded => (
                503,
                say(
                    "Many sites are awake just now",
                    "This one has to wait until another goes to sleep. Please try again in a moment.",
                ),
                say(
                    "Beaucoup de sites sont éveillés en ce moment",
                    "Celui-ci attend qu'un autre s'endorme. Merci de réessayer dans un instant.",
                ),
            ),
            Self::Failing => (
                503,
                say(
                    "This site does not start",
                    "Something in it fails. If it is yours, its log says what: ask your administrator, or run `nuage site logs`.",
                ),
                say(
                    "Ce site ne démarre pas",
                    "Quelque chose y échoue. Si ce site est le vôtre, son journal dit quoi : demandez à votre administrateur, ou lancez `nuage site logs`.",
                ),
            ),
            Self::DiskFull => (
                507,
                say(
                    "This site's disk is full",
                    "It can't store anything more. If it is yours, remove some files or ask for more room.",
                ),
                say(
                    "Le disque de ce site est plein",
                    "Il ne peut plus rien enregistrer. Si ce site est le vôtre, supprimez des fichiers ou demandez plus de place.",
                ),
            ),
            Self::UpstreamSlow => (
                504,
                say(
                    "This site takes too long",
                    "Its own server did not answer in time. Please try again in a moment.",
                ),
                say(
                    "Ce site est trop lent",
                    "Son propre serveur n'a pas répondu à temps. Merci de réessayer dans un instant.",
                ),
            ),
            Self::Loop => (
                508,
                say(
                    "This site leads to itself",
                    "Its upstream sends the request back to this server.",
                ),
                say(
                    "Ce site mène à lui-même",
                    "Son serveur amont renvoie la requête à ce serveur-ci.",
                ),
            ),
        }
    }
}

/// Asks until the site answers by itself, then shows it; a form that was sent is not sent again.
const AGAIN: &str = r#"<script>
async function again() {
  try {
    const answer = await fetch(location.href, { method: "HEAD", cache: "no-store", headers: { accept: "application/json" } })
    if (answer.status !== 503) return location.reload()
  } catch {}
  setTimeout(again, 1000)
}
setTimeout(again, 500)
</script>
"#;

fn html(language: &str, status: u16, words: &Words, host: Option<&str>, again: bool) -> String {
    let Words { title, text } = words;
    // Only host names of LDH characters get here, so there is nothing to escape; what else might
    // come is left out rather than trusted.
    let host = host
        .filter(|host| {
            host.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        })
        .unwrap_or_default();
    // With a script the page stays in view until the site is there; without one it loads itself.
    let (head, motion, script) = if again {
        (
            "<noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript>\n",
            "svg { animation: drift 2s ease-in-out infinite alternate }\n@keyframes drift { to { transform: translateX(1rem) } }\n@media (prefers-reduced-motion: reduce) { svg { animation: none } }\n",
            AGAIN,
        )
    } else {
        ("", "", "")
    };
    format!(
        r#"<!doctype html>
<html lang="{language}">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
{head}<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1d2733; --soft: #5c6b7a; --sky: #eef4fa; --line: #3f7cc4 }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e8eef5; --soft: #9fb0c1; --sky: #131b24; --line: #6ea8ea }} }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--sky); color: var(--ink); font: 1.1rem/1.5 system-ui, sans-serif }}
main {{ max-width: 34rem; padding: 2rem; box-sizing: border-box; overflow-wrap: anywhere }}
svg {{ width: 4.5rem; stroke: var(--line); fill: none; stroke-width: 2.5; stroke-linejoin: round }}
h1 {{ font-size: 1.7rem; line-height: 1.2; margin: .6rem 0 }}
small {{ color: var(--soft) }}
{motion}</style>
<main>
<svg viewBox="0 0 48 30" aria-hidden="true"><path d="M13 27a9 9 0 0 1-1-17.9A13 13 0 0 1 36.6 12 7.6 7.6 0 0 1 36 27z"/></svg>
<h1>{title}</h1>
<p>{text}</p>
<small>{status}{separator}{host}</small>
</main>
{script}</html>
"#,
        separator = if host.is_empty() { "" } else { " · " },
    )
}

/// Whether French comes before English in Accept-Language (RFC 9110 §12.5.4).
fn french(field: &str) -> bool {
    let weight = |wanted: &str| {
        field
            .split(',')
            .filter_map(|item| {
                let mut parts = item.split(';').map(str::trim);
                let tag = parts.next()?.to_ascii_lowercase();
                let weight = parts
                    .find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok())
                    .unwrap_or(1.0);
                tag.split('-')
                    .next()
                    .is_some_and(|language| language == wanted)
                    .then_some(weight)
            })
            .fold(0.0, f32::max)
    };
    weight("fr") > weight("en")
}

/// Whether a program asks: JSON named, HTML not.
fn json(field: &str) -> bool {
    field.contains("json") && !field.contains("html")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn french_for_those_who_put_it_first() {
        for (field, want) in [
            ("", false),
            ("fr", true),
            ("fr-FR,fr;q=0.9,en;q=0.8", true),
            ("en-GB,en;q=0.9,fr;q=0.8", false),
            ("de,fr;q=0.5", true),
            ("frr", false),
            ("fr;q=0", false),
        ] {
            assert_eq!(french(field), want, "{field:?}");
        }
    }

    #[test]
    fn pages_are_whole_and_hold_nothing_of_the_request_but_a_plain_host() {
        let page = Page::NoSuchSite.render(true, false, Some("x.example"));
        let text = std::str::from_utf8(&page.body).unwrap();
        assert!(
            text.contains("Aucun site")
                && text.contains("404 · x.example")
                && text.contains("lang=\"fr\"")
        );
        let hostile = Page::NoSuchSite.render(false, false, Some("<script>"));
        assert!(
            !std::str::from_utf8(&hostile.body)
                .unwrap()
                .contains("script")
        );
        let json = Page::UpstreamDown.render(false, true, None);
        assert_eq!(json.media_type, "application/problem+json");
        let problem: serde_json::Value = serde_json::from_slice(&json.body).unwrap();
        assert_eq!(problem["status"], 502);
        assert_eq!(json.retry_after, Some("10"));
    }
}
