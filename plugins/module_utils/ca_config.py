# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From the inputs of an authority to step-ca's configuration file."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROVISIONER = "moat"
MINIMUM_SECONDS = 300
UNITS = {"h": 3600, "m": 60, "s": 1}
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
DOMAIN = re.compile(rf"{LABEL}(\.{LABEL})*")
# what a subject and an argument may hold without surprise
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}")


@dataclass(frozen=True)
class Settings:
    """What the operator, or the plan, says of the authority."""

    name: str
    trust_domain: str
    port: int
    dns_names: tuple[str, ...]
    allowed_names: tuple[str, ...]
    lifetime: str

    def addresses(self) -> list[str]:
        """Return the addresses to listen on, IPv4 first, for step-ca itself has one only."""
        found = [address for address in map(address_of, self.dns_names) if address is not None]
        return [str(address) for address in sorted(found, key=lambda address: address.version)]

    def listeners(self) -> list[str]:
        """Return address:port of each address, the one of step-ca first."""
        return [f"[{text}]:{self.port}" if ":" in text else f"{text}:{self.port}" for text in self.addresses()]


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return text as an address, or None for a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def seconds(duration: str) -> int | None:
    """Return the seconds of a duration such as 24h or 1h30m, None for anything else."""
    if not re.fullmatch(r"([0-9]+h)?([0-9]+m)?([0-9]+s)?", duration) or not duration:
        return None
    return sum(int(number) * UNITS[unit] for number, unit in re.findall(r"([0-9]+)([hms])", duration))


def within(name: str, domain: str) -> bool:
    """Whether a DNS name is the domain or lies below it."""
    return name == domain or name.endswith("." + domain)


def faults(settings: Settings) -> list[str]:
    """Return every fault of the inputs, each with the key and the remedy."""
    found = []
    if not NAME.fullmatch(settings.name):
        found.append(f"ca_name: {settings.name!r}: write 1 to 40 letters, digits, spaces, dots, dashes or underscores")
    if not DOMAIN.fullmatch(settings.trust_domain):
        found.append(f"ca_trust_domain: {settings.trust_domain!r} is no DNS name in small letters; write one")
    if not 1 <= settings.port <= 65535:
        found.append(f"ca_port: {settings.port} is no port; write 1 to 65535")
    lifetime = seconds(settings.lifetime)
    if lifetime is None or lifetime < MINIMUM_SECONDS:
        found.append(f"ca_lifetime: {settings.lifetime!r}: write a duration such as 24h, not less than 5m")
    names = [name for name in settings.dns_names if address_of(name) is None]
    if not names:
        found.append("ca_dns_names: there is no name for the authority's own certificate; add one")
    if not settings.addresses():
        found.append("ca_dns_names: there is no address to listen on; add the host's own")
    found += [
        f"ca_dns_names: {text!r} is no address of one host; write the host's own"
        for text in settings.addresses()
        if ipaddress.ip_address(text).is_unspecified or ipaddress.ip_address(text).is_multicast
    ]
    if not settings.allowed_names:
        found.append(
            "ca_allowed_names: the list is empty, and step-ca takes no list as every name; name what may be issued"
        )
    for key, values in (("ca_dns_names", names), ("ca_allowed_names", settings.allowed_names)):
        for value in values:
            if not DOMAIN.fullmatch(value) or address_of(value) is not None:
                found.append(f"{key}: {value!r} is no DNS name in small letters (wildcards are not allowed); write one")
            elif "." in value and not within(value, settings.trust_domain):
                found.append(f"{key}: {value!r} is not below {settings.trust_domain}; rename it or leave it out")
    return found


def build(settings: Settings, provisioner_key: Mapping[str, Any], directory: str) -> dict[str, Any]:
    """Return step-ca's configuration; it holds no secret."""
    pki = f"{directory}/pki"
    claims = {
        "minTLSCertDuration": "5m0s",
        "defaultTLSCertDuration": settings.lifetime,
        "maxTLSCertDuration": settings.lifetime,
        "disableRenewal": False,
        "allowRenewalAfterExpiry": False,
        "enableSSHCA": False,
    }
    dotted = sorted({name for name in settings.allowed_names if "." in name})
    plain = sorted({name for name in settings.allowed_names if "." not in name})
    allow = {"dns": dotted, "cn": plain, "uri": [settings.trust_domain]}
    names = [name for name in settings.dns_names if address_of(name) is None]
    return {
        "root": f"{pki}/root_ca.crt",
        "crt": f"{pki}/intermediate_ca.crt",
        "key": f"{pki}/intermediate_ca_key",
        "address": settings.listeners()[0],
        "dnsNames": [*names, *settings.addresses()],
        "commonName": names[0],
        "logger": {"format": "json"},
        "db": {"type": "badgerv2", "dataSource": f"{directory}/db"},
        "authority": {
            "claims": claims,
            "policy": {
                "x509": {"allow": {key: value for key, value in allow.items() if value}, "allowWildcardNames": False}
            },
            # the private half stays in a file of root's: what stands here is published at /provisioners
            "provisioners": [{"type": "JWK", "name": PROVISIONER, "key": dict(provisioner_key)}],
        },
        "tls": {
            "cipherSuites": [
                "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
                "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            ],
            "minVersion": 1.2,
            "maxVersion": 1.3,
            "renegotiation": False,
        },
    }


def render(config: Mapping[str, Any]) -> str:
    """Return the text of a configuration, always the same for the same inputs."""
    return json.dumps(config, indent=2) + "\n"


def settings_from(params: Mapping[str, Any]) -> Settings:
    """Return the settings of a module's parameters."""
    lists: dict[str, Sequence[str]] = {key: params[key] for key in ("dns_names", "allowed_names")}
    return Settings(
        params["name"],
        params["trust_domain"],
        params["port"],
        tuple(lists["dns_names"]),
        tuple(lists["allowed_names"]),
        params["lifetime"],
    )
