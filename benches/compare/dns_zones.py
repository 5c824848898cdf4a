"""What is served: one zone of many sites and the reverse zone of their address, signed or not."""

import re
import subprocess

from bench import NUAGE, Failure

ORIGIN = "w.example"
REVERSE = "10.2.0.192.in-addr.arpa"
ADDRESS = "192.0.2.10"


def site(number):
    return f"site-{number:06}"


def write(folder, names, signed):
    """The zone as Nuage reads it. The reverse zone is derived."""
    (folder / "zones").mkdir()
    dnssec = "[dnssec]\nenabled = true\n" if signed else ""
    sites = "".join(f"[sites.{site(n)}]\n" for n in range(names))
    (folder / f"zones/{ORIGIN}.toml").write_text(f'origin = "{ORIGIN}"\nnameservers = ["ns1.{ORIGIN}"]\n{dnssec}{sites}')


def run(folder, *command):
    """A command's output; one that fails ends the measurement with what it said."""
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if said.returncode:
        raise Failure(f"{' '.join(map(str, command))}: {said.stdout}{said.stderr}")
    return said.stdout


def export(folder, config):
    """The zones as master files, the very records that Nuage serves: for its peers to load."""
    for origin in (ORIGIN, REVERSE):
        (folder / origin).write_text(run(folder, NUAGE, "zone", "export", origin, "-c", config))


def transfer(folder, port):
    """The signed zones as Nuage transfers them (RFC 5936), so that all serve the same signatures.

    False if it transfers none, or one without the records that prove absence.
    """
    for origin in (ORIGIN, REVERSE):
        zone = run(folder, "sh", "-c", f"dig @127.0.0.1 -p {port} +onesoa +noall +answer +time=30 {origin} AXFR || true")
        if not all(re.search(rf"\s{kind}\s", zone) for kind in ("SOA", "RRSIG", "NSEC")):
            return False
        (folder / origin).write_text(zone)
    return True


def sign(folder):
    """Signs the exported zones: one P-256 key for everything (RFC 6605) and NSEC, as Nuage does."""
    for origin in (ORIGIN, REVERSE):
        run(folder, "dnssec-keygen", "-q", "-a", "ECDSAP256SHA256", "-f", "KSK", origin)
        run(folder, "dnssec-signzone", "-q", "-S", "-z", "-o", origin, "-f", f"{origin}.signed", origin)
        (folder / f"{origin}.signed").replace(folder / origin)
