# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every name and path that follows from the intent, in one place."""

from __future__ import annotations

import hashlib
import re

from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import (
    BITS,
    Address,
    Network,
    address_text,
)

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123, section 2.1
LABEL_REMEDY = "write a DNS label (RFC 1123): lower-case letters, digits and inner hyphens, at most 63 characters"
LINK_SEGMENT = "private-link"  # what the firewall calls the link, whose sources come from its interface only
CONNECTOR_SOCKETS = ("admin", "master")  # the connector's own, beside the clients'
RULE_ID_LENGTH = 48
COMMON_NAME_LENGTH = 64  # ub-common-name, RFC 5280, appendix A.1
DNS_NAME_LENGTH = 253
DNS_PORT = 53
DNS_PORTS = (DNS_PORT, 853)  # and DNS over TLS


def is_label(text: str) -> bool:
    return bool(LABEL.fullmatch(text))


def label_remedy(text: str) -> str:
    """A label near to what was written, when there is one."""
    candidate = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")
    return f"write a DNS label such as {candidate!r}" if is_label(candidate) else LABEL_REMEDY


def is_domain(text: str) -> bool:
    return len(text) <= DNS_NAME_LENGTH and all(is_label(label) for label in text.split("."))


def rule_id(prefix: str, name: str = "") -> str:
    """A rule id; a long one keeps its beginning and ends in a hash of the whole."""
    text = f"{prefix}-{name}" if name else prefix
    if len(text) <= RULE_ID_LENGTH:
        return text
    return f"{text[: RULE_ID_LENGTH - 13].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def gateway_name(host: str, domain: str) -> str:
    return f"{host}.gateway.{domain}"


def model_name(model: str, domain: str) -> str:
    return f"{model}.model.{domain}"


def client_name(client: str, domain: str) -> str:
    return f"{client}.client.{domain}"


def ca_name(host: str, domain: str) -> str:
    return f"{host}.ca.{domain}"


def gateway_uri(host: str, domain: str) -> str:
    return f"spiffe://{domain}/gateway/{host}"


def client_uri(client: str, domain: str) -> str:
    return f"spiffe://{domain}/client/{client}"


def egress_rule(index: int) -> str:
    """What the proxy's log calls an entry of the intent."""
    return f"egress-{index}"


def model_socket(model: str) -> str:
    return f"/run/moat-model/{model}/engine.sock"


def model_prefix(model: str) -> str:
    return f"/{model}"


def connector_socket(client: str) -> str:
    return f"/run/moat-connector/{client}.sock"


def connector_certificate(client: str) -> str:
    return f"connector-{client}"


def link_address(name: str, own: Address | None, network: Network) -> Address:
    """The private-link address of a host: from the host alone, so that no other host ever renumbers it."""
    by_name = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")
    low = own.value if own is not None and network.family == 4 else by_name
    value = network.first | (low & (network.last ^ network.first))
    return Address(network.family, value, address_text(network.family, value))


def is_edge_of(address: Address, network: Network) -> bool:
    """The network address (RFC 4291: subnet-router anycast for IPv6), or the IPv4 broadcast address."""
    if BITS[network.family] - network.prefix < 2:
        return False
    return address.value == network.first or (network.family == 4 and address.value == network.last)
