//! Extra records of a zone: presentation format in, checked resource records out, and back into a
//! master file (RFC 1035 §5).

use std::{
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use data_encoding::BASE64;
use hickory_proto::{
    dnssec::rdata::DNSSECRData,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{
            SVCB, TXT,
            svcb::{SvcParamKey, SvcParamValue},
        },
    },
    serialize::{
        binary::{BinDecoder, BinEncodable, BinEncoder, NameEncoding, Restrict},
        txt::Parser,
    },
};

/// The types an extra record may have. SOA, apex NS and the DNSSEC types are Nuage's own work.
pub const TYPES: &[&str] = &[
    "A",
    "AAAA",
    "CAA",
    "CERT",
    "CNAME",
    "DS",
    "HINFO",
    "HTTPS",
    "MX",
    "NAPTR",
    "NS",
    "OPENPGPKEY",
    "PTR",
    "SMIMEA",
    "SRV",
    "SSHFP",
    "SVCB",
    "TLSA",
    "TXT",
];

/// Parses the owner of an extra record: `@`, a relative name, or an absolute one inside `origin`.
/// Underscores are allowed, and `*` as the first label (RFC 4592).
///
/// # Errors
/// What is wrong and what would be right.
pub fn parse_owner(text: &str, origin: &Name) -> Result<Name, String> {
    if text == "@" {
        return Ok(origin.clone());
    }
    let absolute = text.ends_with('.');
    let labels: Vec<&str> = text.trim_end_matches('.').split('.').collect();
    for (index, label) in labels.iter().enumerate() {
        let wildcard = index == 0 && *label == "*";
        let plain = !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !wildcard && !plain {
            return Err(format!(
                "\"{text}\" can't own a record: use letters, digits, hyphens and underscores, \"*\" as the first label, or \"@\" for the zone itself"
            ));
        }
    }
    let name = Name::from_ascii(text.to_ascii_lowercase())
        .and_then(|name| {
            if absolute {
                Ok(name)
            } else {
                name.append_domain(origin)
            }
        })
        .map_err(|error| format!("\"{text}\" is not a domain name: {error}"))?;
    if origin.zone_of(&name) {
        Ok(name)
    } else {
        Err(format!("\"{text}\" lies outside the zone {origin}"))
    }
}

/// Parses type and data of an extra record; names in the data that do not end in a dot are relative
/// to `origin`.
///
/// # Errors
/// What is wrong and what would be right.
pub fn parse_data(kind: &str, data: &str, origin: &Name) -> Result<RData, String> {
    let kind = kind.to_ascii_uppercase();
    if !TYPES.contains(&&*kind) {
        return Err(format!(
            "type \"{kind}\" can't be an extra record: use one of {}",
            TYPES.join(", ")
        ));
    }
    if data.chars().any(char::is_control) {
        return Err("`data` holds a control character: write it on one line".to_owned());
    }
    let refused = |error: String| format!("{kind} can't have the data \"{data}\": {error}");
    if kind == "TXT" {
        return texts(data).map(RData::TXT).map_err(refused);
    }
    if has_comment(data) {
        return Err(refused(
            "what follows a semicolon would be lost: put quotes around it, or leave it out"
                .to_owned(),
        ));
    }
    if has_high_escape(data) {
        return Err(refused(
            "\\DDD stands for 127 at most: write the character itself".to_owned(),
        ));
    }
    // One line of a master file: the owner comes first, so no directive can start it.
    let line = format!("@ 0 IN {kind} {data}\n");
    let (_, sets) = Parser::new(line, None, Some(origin.clone()))
        .parse()
        .map_err(|error| refused(error.to_string()))?;
    let mut records = sets
        .into_values()
        .flat_map(|set| set.records_without_rrsigs().cloned().collect::<Vec<_>>());
    match (records.next(), records.next()) {
        (Some(mut record), None) => {
            match &mut record.data {
                RData::SVCB(service) => settle(service, origin).map_err(refused)?,
                RData::HTTPS(service) => settle(&mut service.0, origin).map_err(refused)?,
                RData::DNSSEC(DNSSECRData::DS(ds)) => {
                    // RFC 4034 §5.1.4, RFC 4509 §2.1, RFC 6605 §2; of others nothing is known.
                    let right = match u8::from(ds.digest_type()) {
                        1 => ds.digest().len() == 20,
                        2 => ds.digest().len() == 32,
                        4 => ds.digest().len() == 48,
                        _ => !ds.digest().is_empty(),
                    };
                    if !right {
                        return Err(refused(
                            "the digest is not as long as its type says".to_owned(),
                        ));
                    }
                }
                _ => {}
            }
            // What can't be put on the wire, or not be read from it, must not wait for a query to fail.
            let octets = wire(&record.data).map_err(refused)?;
            if !reads_back(&octets, record.record_type()) {
                return Err(refused("resolvers could not read it".to_owned()));
            }
            Ok(record.data)
        }
        _ => Err(refused("it is empty".to_owned())),
    }
}

/// Puts a service as it is written into the form it travels in: the target absolute, the parameters in
/// order (RFC 9460 §2.1, §2.2), and whole in themselves, since clients ignore it otherwise (§2.4.3).
fn settle(service: &mut SVCB, origin: &Name) -> Result<(), String> {
    if !service.target_name.is_fqdn() {
        let target = std::mem::take(&mut service.target_name);
        service.target_name = target
            .append_domain(origin)
            .map_err(|error| error.to_string())?;
    }
    service.svc_params.sort_by_key(|(key, _)| *key);
    let keys: Vec<SvcParamKey> = service.svc_params.iter().map(|(key, _)| *key).collect();
    for (key, value) in &mut service.svc_params {
        match value {
            SvcParamValue::Mandatory(mandatory) => {
                mandatory.0.sort_unstable();
                let missing =
                    |key: &SvcParamKey| *key == SvcParamKey::Mandatory || !keys.contains(key);
                if let Some(missing) = mandatory.0.iter().find(|key| missing(key)) {
                    return Err(format!("{missing} is mandatory and not there"));
                }
                if mandatory.0.windows(2).any(|pair| pair[0] == pair[1]) {
                    return Err("mandatory names a key twice".to_owned());
                }
            }
            SvcParamValue::NoDefaultAlpn if !keys.contains(&SvcParamKey::Alpn) => {
                return Err("no-default-alpn needs alpn beside it".to_owned());
            }
            // A known key by its number: the octets would go out unchecked.
            SvcParamValue::Unknown(_) if u16::from(*key) <= SvcParamKey::Ipv6Hint.into() => {
                return Err(format!(
                    "write {} for {key}",
                    SvcParamKey::from(u16::from(*key))
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The record as a line of a master file. Types whose text form is not certain to be read back the
/// same take the generic form (RFC 3597 §5).
pub fn master_line(record: &Record) -> String {
    let kind = record.record_type();
    let data = match &record.data {
        RData::TXT(txt) => txt
            .txt_data
            .iter()
            .map(|text| quoted(text))
            .collect::<Vec<_>>()
            .join(" "),
        RData::NS(target) => name_text(&target.0),
        RData::CNAME(target) => name_text(&target.0),
        RData::PTR(target) => name_text(&target.0),
        RData::MX(mx) => format!("{} {}", mx.preference, name_text(&mx.exchange)),
        RData::SRV(srv) => format!(
            "{} {} {} {}",
            srv.priority,
            srv.weight,
            srv.port,
            name_text(&srv.target)
        ),
        RData::SOA(soa) => format!(
            "{} {} {} {} {} {} {}",
            name_text(&soa.mname),
            name_text(&soa.rname),
            soa.serial,
            soa.refresh,
            soa.retry,
            soa.expire,
            soa.minimum
        ),
        RData::DNSSEC(DNSSECRData::NSEC(nsec)) => {
            let types = nsec
                .type_bit_maps()
                .map(|kind| " ".to_owned() + &type_text(kind));
            name_text(nsec.next_domain_name()) + &types.collect::<String>()
        }
        RData::DNSSEC(DNSSECRData::RRSIG(signature)) => {
            let of = signature.input();
            format!(
                "{} {} {} {} {} {} {} {} {}",
                type_text(of.type_covered),
                u8::from(of.algorithm),
                of.num_labels,
                of.original_ttl,
                date(of.sig_expiration.get()),
                date(of.sig_inception.get()),
                of.key_tag,
                name_text(&of.signer_name),
                BASE64.encode(signature.sig())
            )
        }
        RData::A(_)
        | RData::AAAA(_)
        | RData::DNSSEC(DNSSECRData::DS(_) | DNSSECRData::DNSKEY(_)) => record.data.to_string(),
        other => {
            let bytes = wire(other).unwrap_or_default();
            let mut text = format!("\\# {} ", bytes.len());
            for byte in bytes {
                // Writing to a String can't fail.
                write!(text, "{byte:02x}").unwrap_or_default();
            }
            text
        }
    };
    let (name, ttl) = (name_text(&record.name), record.ttl);
    format!("{name}\t{ttl}\tIN\t{kind}\t{data}")
}

/// The whole record on the wire, nothing compressed; `None` for one that no message could hold.
pub(crate) fn octets(record: &Record) -> Option<Vec<u8>> {
    let mut octets = Vec::new();
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    record.emit(&mut encoder).ok()?;
    Some(octets)
}

fn wire(data: &RData) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_canonical_form(true);
    data.emit(&mut encoder).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// A type by its mnemonic, or by its number (RFC 3597 §5).
fn type_text(kind: RecordType) -> String {
    match kind {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        known => known.to_string(),
    }
}

/// Seconds since 1970 as signatures tell them: YYYYMMDDHHmmSS (RFC 4034 §3.2). They count modulo 2^32, to
/// the year 2106.
fn date(seconds: u32) -> String {
    let moment = UNIX_EPOCH + Duration::from_secs(seconds.into());
    let mut text = humantime::format_rfc3339_seconds(moment).to_string();
    text.retain(|c| c.is_ascii_digit());
    text
}

/// Whether octets are data of a type, and all of them.
fn reads_back(octets: &[u8], kind: RecordType) -> bool {
    let Ok(length) = u16::try_from(octets.len()) else {
        return false;
    };
    let mut decoder = BinDecoder::new(octets);
    RData::read(&mut decoder, kind, Restrict::new(length))
        .is_ok_and(|data| decoder.is_empty() && wire(&data).is_ok_and(|again| again == octets))
}

/// A name as other servers read it, unusual octets as `\DDD` (RFC 1035 §5.1). hickory-proto's own texts turn
/// A-labels into what they stand for, or write octal numbers.
fn name_text(name: &Name) -> String {
    let mut out = String::new();
    for label in name.iter() {
        for &byte in label {
            match byte {
                b'-'
                | b'_'
                | b'*'
                | b'/'
                | b'+'
                | b'='
                | b'0'..=b'9'
                | b'A'..=b'Z'
                | b'a'..=b'z' => {
                    out.push(char::from(byte));
                }
                b'!'..=b'~' => {
                    out.push('\\');
                    out.push(char::from(byte));
                }
                _ => write!(out, "\\{byte:03}").unwrap_or_default(),
            }
        }
        out.push('.');
    }
    if out.is_empty() {
        out.push('.');
    }
    out
}

/// Character strings (RFC 1035 §5.1), with or without quotes. hickory-proto would take `\DDD` for a
/// character, which may be several octets, and what follows a semicolon for a comment.
fn texts(data: &str) -> Result<TXT, String> {
    const UNQUOTED: &str = "a text with ; ( ) or quotes in it wants quotes around it";
    let mut texts: Vec<Vec<u8>> = Vec::new();
    let mut rest = data.trim_start_matches(' ');
    while !rest.is_empty() {
        let inside = rest.strip_prefix('"');
        rest = inside.unwrap_or(rest);
        let mut text = Vec::new();
        loop {
            let Some(character) = rest.chars().next() else {
                if inside.is_some() {
                    return Err("a quote is left open".to_owned());
                }
                break;
            };
            let after = &rest[character.len_utf8()..];
            match character {
                '"' if inside.is_some() => {
                    rest = after;
                    if !rest.is_empty() && !rest.starts_with(' ') {
                        return Err("a space is missing after a quote".to_owned());
                    }
                    break;
                }
                ' ' if inside.is_none() => break,
                '"' | ';' | '(' | ')' if inside.is_none() => return Err(UNQUOTED.to_owned()),
                '\\' => {
                    let (octets, after) = unescaped(after)?;
                    text.extend(octets);
                    rest = after;
                }
                _ => {
                    text.extend_from_slice(&rest.as_bytes()[..character.len_utf8()]);
                    rest = after;
                }
            }
        }
        if text.len() > 255 {
            return Err("a text has at most 255 octets: write several, \"…\" \"…\"".to_owned());
        }
        texts.push(text);
        rest = rest.trim_start_matches(' ');
    }
    if texts.is_empty() {
        return Err("it is empty".to_owned());
    }
    let octets: usize = texts.iter().map(|text| text.len() + 1).sum();
    if octets > usize::from(u16::MAX) {
        return Err("a record has at most 65,535 octets".to_owned());
    }
    Ok(TXT::from_bytes(texts.iter().map(Vec::as_slice).collect()))
}

/// What stands after a backslash: three digits for an octet, or a character for itself.
fn unescaped(text: &str) -> Result<(Vec<u8>, &str), String> {
    let Some(character) = text.chars().next() else {
        return Err("a backslash stands at the end".to_owned());
    };
    if !character.is_ascii_digit() {
        let (character, after) = text.split_at(character.len_utf8());
        return Ok((character.as_bytes().to_vec(), after));
    }
    text.split_at_checked(3)
        .filter(|(digits, _)| digits.bytes().all(|digit| digit.is_ascii_digit()))
        .and_then(|(digits, after)| Some((vec![digits.parse().ok()?], after)))
        .ok_or_else(|| "\\ wants three digits up to 255, or a character".to_owned())
}

/// Whether a comment begins in the data.
fn has_comment(data: &str) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    data.bytes().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b';' => return !quoted,
            _ => {}
        }
        false
    })
}

/// Whether there is a `\DDD` past ASCII.
fn has_high_escape(data: &str) -> bool {
    let mut rest = data.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        rest = rest.get(at + 1..).unwrap_or_default();
        let digits = rest.first_chunk::<3>();
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_digit));
        if digits.is_some_and(|digits| digits > b"127") {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

/// A character string in quotes, everything unusual as `\DDD` (RFC 1035 §5.1).
fn quoted(text: &[u8]) -> String {
    let mut out = String::from("\"");
    for &byte in text {
        match byte {
            b'"' | b'\\' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b' '..=b'~' => out.push(char::from(byte)),
            _ => write!(out, "\\{byte:03}").unwrap_or_default(),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        dnssec::{
            Algorithm,
            rdata::{NSEC, RRSIG, SigInput},
        },
        rr::SerialNumber,
    };

    use super::*;

    fn origin() -> Name {
        Name::from_ascii("web.example.").unwrap()
    }

    #[test]
    fn owners_are_inside_the_zone() {
        let owner = |text| parse_owner(text, &origin()).map(|name| name.to_string());
        assert_eq!(owner("@").unwrap(), "web.example.");
        assert_eq!(owner("_DMARC.Alice").unwrap(), "_dmarc.alice.web.example.");
        assert_eq!(owner("*.dev").unwrap(), "*.dev.web.example.");
        assert_eq!(owner("x.web.example.").unwrap(), "x.web.example.");
        for bad in [
            "",
            ".",
            "a..b",
            "x.other.example.",
            "a.*.b",
            "a b",
            "é",
            "a\u{0}",
        ] {
            assert!(owner(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn data_is_read_relative_to_the_origin() {
        let data = |kind, text| parse_data(kind, text, &origin()).map(|data| data.to_string());
        assert_eq!(data("mx", "10 mx").unwrap(), "10 mx.web.example.");
        assert_eq!(
            data("CNAME", "www.example.org.").unwrap(),
            "www.example.org."
        );
        for (kind, text) in [
            ("A", "192.0.2.300"),
            ("A", ""),
            ("A", "192.0.2.1 192.0.2.2\n@ 0 IN A 192.0.2.3"),
            ("SOA", "a b 1 2 3 4 5"),
            ("MX", "ten mx"),
            ("TYPE731", "\\# 0"),
            ("$INCLUDE", "/etc/passwd"),
            ("TXT", "\"open"),
            ("TXT", "p=none; q=1"),
            ("TXT", "\\256"),
            ("TXT", "\\"),
            ("TXT", "\"a\"b"),
            ("TXT", &"a".repeat(256)),
            ("TXT", " "),
            ("MX", "10 \\200"),
            ("DS", "12345 13 2 49FD"),
            ("CAA", "0 issue ca.example; accounturi=x"),
            ("CAA", "0 issue+ \"ca.example\""),
        ] {
            assert!(data(kind, text).is_err(), "{kind} {text:?}");
        }
    }

    #[test]
    fn services_are_written_in_any_order_and_travel_in_theirs() {
        let octets = |text| parse_data("HTTPS", text, &origin()).map(|data| wire(&data).unwrap());
        let sorted =
            octets("1 svc.web.example. alpn=\"h2,h3\" port=8443 ipv4hint=192.0.2.1").unwrap();
        assert_eq!(
            octets("1 svc ipv4hint=192.0.2.1 port=8443 alpn=h2,h3").unwrap(),
            sorted
        );
        assert_eq!(octets("0 .").unwrap(), [0, 0, 0]);
        assert_eq!(
            octets("1 . alpn=h2 no-default-alpn mandatory=no-default-alpn,alpn").unwrap()[..11],
            [0, 1, 0, 0, 0, 0, 4, 0, 1, 0, 2],
        );
        for bad in [
            "1 . port=1 port=2",
            "1 . no-default-alpn",
            "1 . mandatory=alpn port=1",
            "1 . mandatory=mandatory",
            "1 . mandatory=port,port port=1",
            "1 . key3=x",
            "1 . alpn",
            "1",
        ] {
            assert!(octets(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_written_as_they_travel() {
        let line = |owner: &str, kind: &str, data: &str| {
            let owner = parse_owner(owner, &origin()).unwrap();
            let data = parse_data(kind, data, &origin()).unwrap();
            master_line(&Record::from_rdata(owner, 60, data))
        };
        assert_eq!(
            line("xn--bcher-kva", "MX", "10 bücher"),
            "xn--bcher-kva.web.example.\t60\tIN\tMX\t10 xn--bcher-kva.web.example."
        );
        assert_eq!(
            line("@", "NS", "a\\.b.x."),
            "web.example.\t60\tIN\tNS\ta\\.b.x."
        );
        assert!(line("@", "MX", "0 .").ends_with("\t0 ."));
    }

    #[test]
    fn signatures_and_proofs_are_written_as_they_travel() {
        let line = |data| master_line(&Record::from_rdata(origin(), 30, RData::DNSSEC(data)));
        let next = Name::from_ascii("xn--bcher-kva.web.example.").unwrap();
        let types = [RecordType::A, RecordType::NSEC, RecordType::Unknown(65_280)];
        assert_eq!(
            line(DNSSECRData::NSEC(NSEC::new(next, types))),
            "web.example.\t30\tIN\tNSEC\txn--bcher-kva.web.example. A NSEC TYPE65280"
        );
        let input = SigInput {
            type_covered: RecordType::CDS,
            algorithm: Algorithm::ECDSAP256SHA256,
            num_labels: 2,
            original_ttl: 300,
            sig_expiration: SerialNumber::new(1_796_083_200),
            sig_inception: SerialNumber::new(951_782_399),
            key_tag: 12_345,
            signer_name: origin(),
        };
        assert_eq!(
            line(DNSSECRData::RRSIG(RRSIG::from_sig(
                input,
                b"signed".to_vec()
            ))),
            "web.example.\t30\tIN\tRRSIG\tCDS 13 2 300 20261201000000 20000228235959 12345 web.example. c2lnbmVk"
        );
    }

    #[test]
    fn text_comes_back_from_a_master_line_as_it_went_in() {
        for text in [
            "\"a b\" \"c;d\"",
            "\"say \\\"hi\\\"\"",
            "v=spf1",
            "\"\"",
            "é \\200\\000 \\\\",
        ] {
            let data = parse_data("TXT", text, &origin()).unwrap();
            let line = master_line(&Record::from_rdata(origin(), 60, data.clone()));
            let (_, written) = line.split_once("TXT\t").unwrap();
            assert_eq!(
                parse_data("TXT", written, &origin()).unwrap(),
                data,
                "{line}"
            );
        }
    }
}
