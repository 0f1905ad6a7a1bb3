# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a certificate shall be, what one is, and why it must be issued anew. Pure; also installed on hosts, for the renewal."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FILES = ("key.pem", "cert.pem", "bundle.pem", "root.pem")
SHORTEST, LONGEST = 300, 86400
# step-ca dates a certificate back by a minute
BACKDATE_LEEWAY = 120
RENEW_FROM, RENEW_TO, OVERDUE = 1 / 2, 2 / 3, 5 / 6

LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
NAME = re.compile(LABEL)
COMMON_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z){LABEL}(?:\.{LABEL})*")
URI = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9.-]+(?:/[A-Za-z0-9._~-]+)*")
UNIT = re.compile(r"[A-Za-z0-9:_.@-]+\.service")
ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")
CA_URL = re.compile(r"https://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?/?")
DURATION = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")
BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
NAME_TYPE = re.compile(r"(DNS|URI|IP Address|email|othername|DirName|Registered ID):")


@dataclass(frozen=True)
class Request:
    """What a workload asks the authority for, and who uses it."""

    name: str
    common_name: str
    dns: tuple[str, ...]
    uris: tuple[str, ...]
    lifetime: int
    reload_unit: str = ""
    probe: str = ""

    @property
    def sans(self) -> list[str]:
        return [*self.dns, *self.uris]


@dataclass(frozen=True)
class Certificate:
    """What a certificate says of itself."""

    serial: int
    common_name: str
    sans: frozenset[str]
    not_before: int
    not_after: int
    public_key: str

    @property
    def lifetime(self) -> int:
        return self.not_after - self.not_before

    def at(self, fraction: float) -> int:
        """Return the time when this part of the lifetime has passed."""
        return self.not_before + int(self.lifetime * fraction)

    @property
    def due(self) -> int:
        """Return when to renew: between 1/2 and 2/3 of the lifetime, spread by serial so that a fleet does not renew at once."""
        spread = int(hashlib.sha256(str(self.serial).encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
        return self.at(RENEW_FROM + (RENEW_TO - RENEW_FROM) * spread)


@dataclass(frozen=True)
class Found:
    """The files of a certificate as they are on the host."""

    files: Mapping[str, str] = field(default_factory=dict)
    certificate: Certificate | None = None
    key: str = ""  # public half of key.pem
    trusted: bool = False  # cert.pem leads to root.pem


def parse_duration(text: str) -> int:
    """Return the seconds of a duration such as 24h, 90m or 1h30m; raise ValueError for anything else."""
    match = DURATION.fullmatch(text)
    if not text or not match:
        raise ValueError(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def _faults_of(where: str, item: Mapping[str, Any], pause: int) -> list[str]:
    faults = []

    def check(key: str, pattern: re.Pattern[str], value: str, remedy: str) -> None:
        if not pattern.fullmatch(value):
            faults.append(f"{where}.{key}: {value!r} is refused; give {remedy}")

    check("name", NAME, item["name"], "a DNS label in lower case, such as gateway")
    check("common_name", COMMON_NAME, item["common_name"], "at most 64 letters, digits, dots and hyphens")
    for position, name in enumerate(item["dns"]):
        check(f"dns[{position}]", DNS_NAME, name, "a DNS name in lower case without a wildcard")
    for position, uri in enumerate(item["uris"]):
        check(f"uris[{position}]", URI, uri, "a URI such as spiffe://inference.internal/client/portal")
    if not item["dns"] and not item["uris"]:
        faults.append(f"{where}: neither dns nor uris; give at least one name")
    for key in ("dns", "uris"):
        if len(set(item[key])) != len(item[key]):
            faults.append(f"{where}.{key}: a name is listed twice; list it once")
    if item.get("reload_unit"):
        check("reload_unit", UNIT, item["reload_unit"], "the full name of a service, such as moat-gateway.service")
    if item.get("probe"):
        check("probe", ADDRESS, item["probe"], "address:port, an IPv6 address in brackets")
    try:
        lifetime = parse_duration(item["lifetime"])
    except ValueError:
        lifetime = -1
    if not SHORTEST <= lifetime <= LONGEST:
        faults.append(f"{where}.lifetime: {item['lifetime']!r} is refused; give 5m to 24h, such as 24h or 90m")
    elif pause * 6 > lifetime:
        faults.append(
            f"{where}.lifetime: {item['lifetime']} leaves a failed renewal fewer than two further tries; make renew_interval "
            f"plus renew_jitter at most {lifetime // 6} seconds (they are {pause}) or the lifetime longer"
        )
    return faults


def request_faults(items: Sequence[Mapping[str, Any]], ca_url: str, interval: int, jitter: int) -> list[str]:
    """Return everything that is wrong with the input, each with its key and a remedy."""
    faults = []
    if (items or ca_url) and not CA_URL.fullmatch(ca_url):
        faults.append(f"ca_url: {ca_url!r} is refused; give https://address:port")
    for key, value, least in (("renew_interval", interval, 1), ("renew_jitter", jitter, 0)):
        if value < least:
            faults.append(f"{key}: {value} is refused; give at least {least} seconds")
    for position, item in enumerate(items):
        faults += _faults_of(f"items[{position}]", item, max(interval, 0) + max(jitter, 0))
    names = [item["name"] for item in items]
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"items: the name {name!r} is given more than once; give each item a name of its own")
    return faults


def request_of(item: Mapping[str, Any]) -> Request:
    """Return the request of an item without faults."""
    return Request(
        item["name"],
        item["common_name"],
        tuple(item["dns"]),
        tuple(item["uris"]),
        parse_duration(item["lifetime"]),
        item.get("reload_unit") or "",
        item.get("probe") or "",
    )


def render_settings(item: Mapping[str, Any], ca_url: str, group: str, new_key: bool) -> str:
    """Return what the renewal program on the host is given."""
    settings = {key: item[key] for key in ("name", "common_name", "dns", "uris", "lifetime")}
    settings.update({key: item.get(key) or "" for key in ("reload_unit", "probe")})
    settings.update(ca_url=ca_url, bundle_group=group, new_key=new_key)
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def blocks(pem: str) -> list[str]:
    """Return the certificates of a PEM text, each ending in a newline, whatever stands between them."""
    return [block.replace("\r", "") + "\n" for block in BLOCK.findall(pem)]


def fingerprints(pem: str) -> list[str]:
    """Return the SHA-256 of each certificate; raise ValueError for a block that is none."""
    return [hashlib.sha256(ssl.PEM_cert_to_DER_cert(block)).hexdigest() for block in blocks(pem)]


def parse_certificate(text: str) -> Certificate:
    """Parse `openssl x509 -noout -serial -subject -nameopt RFC2253 -dates -ext subjectAltName -pubkey`; raise ValueError."""
    fields: dict[str, str] = {}
    lines = text.splitlines()
    names = ""
    for number, line in enumerate(lines):
        key, mark, value = line.partition("=")
        if mark and key in ("serial", "subject", "notBefore", "notAfter"):
            fields[key] = value.strip()
        elif line.startswith("X509v3 Subject Alternative Name:") and number + 1 < len(lines):
            names = lines[number + 1].strip()
    key_start, key_end = text.find("-----BEGIN PUBLIC KEY-----"), text.find("-----END PUBLIC KEY-----")
    missing = {"serial", "notBefore", "notAfter"} - set(fields)
    if missing or key_start < 0 or key_end < key_start:
        raise ValueError("not what openssl x509 prints of a certificate")
    common = re.search(r"(?:^|,)CN=((?:[^,\\+]|\\.)*)", fields.get("subject", ""))
    return Certificate(
        int(fields["serial"], 16),
        common.group(1) if common else "",
        frozenset(parse_names(names)),
        int(ssl.cert_time_to_seconds(fields["notBefore"])),
        int(ssl.cert_time_to_seconds(fields["notAfter"])),
        text[key_start : key_end + len("-----END PUBLIC KEY-----")],
    )


def parse_names(text: str) -> list[str]:
    """Parse the subject alternative names as openssl prints them; types other than DNS and URI keep their type in front."""
    names = []
    for part in text.split(", ") if text else []:
        match = NAME_TYPE.match(part)
        plain = match and match.group(1) in ("DNS", "URI")
        names.append(part[match.end() :] if match and plain else part)
    return names


def faults_on_disk(found: Found, root: str, now: int) -> list[str]:
    """Return why the files cannot serve any longer, whatever was asked for. An empty root stands for the one on the host."""
    present = [name for name in FILES if name in found.files]
    if not present:
        return ["absent"]
    if len(present) < len(FILES):
        return ["incomplete"]
    if found.certificate is None or not found.key:
        return ["unreadable"]
    reasons = []
    if found.key != found.certificate.public_key:
        reasons.append("key_mismatch")
    if found.files["bundle.pem"] != bundle(found.files["cert.pem"], found.files["key.pem"]):
        reasons.append("bundle_mismatch")
    if root and sorted(fingerprints(root)) != sorted(fingerprints(found.files["root.pem"])):
        reasons.append("root")
    elif not found.trusted:
        reasons.append("chain")
    if now >= found.certificate.not_after:
        reasons.append("expired")
    return reasons


def drift(request: Request, certificate: Certificate) -> list[str]:
    """Return in what a certificate differs from the request."""
    reasons = []
    if certificate.common_name != request.common_name:
        reasons.append("common_name")
    if certificate.sans != frozenset(request.sans):
        reasons.append("sans")
    if abs(certificate.lifetime - request.lifetime) > BACKDATE_LEEWAY:
        reasons.append("lifetime")
    return reasons


def recreate_reasons(request: Request, found: Found, root: str, now: int) -> list[str]:
    """Return every reason for the play to enrol anew; empty when the files are good."""
    reasons = faults_on_disk(found, root, now)
    if found.certificate is not None:
        reasons += drift(request, found.certificate)
        # the timer renews until 2/3; so late it has failed for long, and a token may still help
        if "expired" not in reasons and now >= found.certificate.at(OVERDUE):
            reasons.append("overdue")
    return reasons


def bundle(chain: str, key: str) -> str:
    """Return what HAProxy reads: the chain, then the key."""
    return chain.rstrip("\n") + "\n" + key.rstrip("\n") + "\n"


def request_config(request: Request) -> str:
    """Return the configuration of `openssl req` for the request; its names hold no character that has a meaning there."""
    names = [f"DNS.{number} = {name}" for number, name in enumerate(request.dns, 1)]
    names += [f"URI.{number} = {uri}" for number, uri in enumerate(request.uris, 1)]
    head = ["[req]", "prompt = no", "distinguished_name = subject", "req_extensions = extensions"]
    subject = ["[subject]", f"CN = {request.common_name}"]
    return "\n".join([*head, *subject, "[extensions]", "subjectAltName = @names", "[names]", *names, ""])


def describe(request: Request) -> str:
    """Return the request in lines for a diff."""
    lines = [f"common_name: {request.common_name}", *(f"san: {name}" for name in sorted(request.sans))]
    return "\n".join([*lines, f"lifetime: {request.lifetime} s", ""])


def describe_certificate(certificate: Certificate | None, lifetime: int) -> str:
    """Return a certificate in the lines of describe; a lifetime within the leeway reads as the one asked for."""
    if certificate is None:
        return ""
    shown = lifetime if abs(certificate.lifetime - lifetime) <= BACKDATE_LEEWAY else certificate.lifetime
    lines = [f"common_name: {certificate.common_name}", *(f"san: {name}" for name in sorted(certificate.sans))]
    return "\n".join([*lines, f"lifetime: {shown} s", ""])
