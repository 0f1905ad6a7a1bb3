# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turn the egress proxy's inputs into Squid's configuration: who may go where by name, and a rule in the log for every decision."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any, Union

from ansible_collections.moat.inference.plugins.module_utils.egress_proxy_inputs import (
    EgressProxyError,
    faults,
    normalised,
)
from ansible_collections.moat.inference.plugins.module_utils.perimeter.special import SPECIAL, UNICAST

Network = Union[IPv4Network, IPv6Network]

CONFIGURATION = "/etc/moat/egress-proxy/squid.conf"
SQUID = "/usr/sbin/squid"
UNUSED_KEY = "/run/moat-egress-proxy/unused.pem"
# Squid refuses a port with ssl-bump without a certificate, although none of the rules ever uses it: the check makes one of its own.
CHECK = (
    "set -eu; d=$(mktemp -d); trap 'rm -rf \"$d\"' EXIT; "
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=unused "
    '-keyout "$d/unused.pem" -out "$d/unused.pem" 2>/dev/null; '
    f'sed "s,{UNUSED_KEY},$d/unused.pem," "$1" > "$d/squid.conf"; '
    f'{SQUID} -k parse -f "$d/squid.conf" >"$d/log" 2>&1 || '
    '{ grep -E "FATAL|ERROR|Bungled" "$d/log" >&2; echo "Squid refuses squid.conf: $2" >&2; exit 1; }'
)

MAPPED = ip_network("::ffff:0:0/96")

METHODS = ("GET", "HEAD", "POST", "PUT")
REFUSALS = ("source", "connections", "method", "protocol", "address", "name", "port", "destination", "tls", "sni")

TEXT, NUMBER = "text", "number"
# Never a path, a query or a header; what a client can choose is escaped as in a URL.
FIELDS: tuple[tuple[str, str, str], ...] = (
    ("time", TEXT, "%{%Y-%m-%dT%H:%M:%S}tg.%03tuZ"),
    ("rule", TEXT, "%{rule}note"),
    ("verdict", TEXT, "%{verdict}note"),
    ("source", TEXT, "%{source}note"),
    ("address", TEXT, "%>a"),
    ("source_port", NUMBER, "%>p"),
    ("method", TEXT, "%#rm"),
    ("host", TEXT, "%#>rd"),
    ("port", TEXT, "%>rP"),
    ("sni", TEXT, "%#ssl::>sni"),
    ("destination", TEXT, "%<a"),
    ("status", NUMBER, "%>Hs"),
    ("result", TEXT, "%Ss"),
    ("error", TEXT, "%err_code"),
    ("bytes_received", NUMBER, "%>st"),
    ("bytes_sent", NUMBER, "%<st"),
    ("duration_ms", NUMBER, "%tr"),
)


@dataclass(frozen=True)
class Way:
    """One name with its ports, and everybody who may use it."""

    rule: str
    host: str
    ports: tuple[int, ...]
    sources: tuple[str, ...]


def ways(sources: Sequence[Mapping[str, Any]]) -> list[Way]:
    """Return the ways of all sources; a name before a wildcard, so that the narrower rule decides."""
    found: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for source in sources:
        for item in source["allow"]:
            key = (item["rule"], item["host"].lower(), tuple(sorted(set(item["ports"]))))
            found.setdefault(key, []).extend(source["addresses"])
    result = [Way(*key, tuple(_addresses(values))) for key, values in found.items()]
    return sorted(result, key=lambda way: way.host.startswith("*."))


def _addresses(values: Iterable[str]) -> list[str]:
    found = {ip_address(value) for value in values}
    return [str(item) for item in sorted(found, key=lambda item: (item.version, int(item)))]


def beyond(to: Sequence[str], refused: Sequence[str]) -> list[str]:
    """Return the networks that no name may lead to: all but `to` (the public ones when it is empty), and `refused`.

    None of them holds the IPv4-mapped addresses: Squid keeps IPv4 addresses as such, and would take all of them for refused.
    """
    allowed: list[Network] = [ip_network(item) for item in to or UNICAST]
    taken: list[Network] = [ip_network(item) for item in ([] if to else SPECIAL)] + [ip_network(i) for i in refused]
    found: list[str] = []
    for root in (ip_network("0.0.0.0/0"), ip_network("::/0")):
        holes = [item for item in allowed if item.version == root.version]
        rest: list[Any] = _without(root, holes) + [item for item in taken if item.version == root.version]
        if root.version == 6:
            rest = [part for item in rest for part in _without(item, [MAPPED])]
        found += [str(item) for item in collapse_addresses(rest)]
    return found


def _without(root: Any, holes: Sequence[Any]) -> list[Any]:
    parts = [root]
    for hole in holes:
        kept: list[Any] = []
        for part in parts:
            if hole.subnet_of(part):
                kept += part.address_exclude(hole)
            elif not part.subnet_of(hole):
                kept.append(part)
        parts = kept
    return parts


def pattern(host: str) -> str:
    """Return the expression that matches the name, or the names below a wildcard, and nothing else."""
    if host.startswith("*."):
        return r"^[a-z0-9_.-]+\." + re.escape(host[2:]) + "$"
    return "^" + re.escape(host) + "$"


def _listen(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _format(name: str, rule: str = "", status: bool = True) -> str:
    given = {"rule": rule, "verdict": "deny"} if rule else {}
    fields = (field for field in FIELDS if status or field[0] != "status")
    parts = []
    for key, kind, value in fields:
        text = given.get(key, value)
        parts.append(f'"{key}":{text}' if kind == NUMBER else f'"{key}":"{text}"')
    return f"logformat {name} {{{','.join(parts)}}}"


def configuration(settings: Mapping[str, Any]) -> str:
    """Return squid.conf for inputs without faults."""
    lines = ["# Managed by moat.inference."]
    for title, section in (
        ("What it is", _service(settings)),
        ("Who asks", _sources(settings)),
        ("What may be asked", _requests(settings)),
        ("Where it may lead", _destinations(settings)),
        ("What is decided", _decision(settings)),
        ("TLS is passed on as it is, and only to the name that was asked for", _tls(settings)),
        ("What is logged", _log()),
    ):
        lines += ["", f"# {title}", *section]
    extra = settings["extra_config"].strip()
    if extra:
        lines += ["", "# egress_proxy_extra_config", extra]
    return "\n".join([*lines, ""])


def _service(settings: Mapping[str, Any]) -> list[str]:
    lines = [
        "# the process that coordinates workers keeps the listening sockets, so that a reload refuses no connection",
        f"workers {settings['workers']}",
        *(
            f"http_port {_listen(address, settings['port'])} ssl-bump tls-cert={UNUSED_KEY} generate-host-certificates=off"
            for address in _addresses(settings["addresses"])
        ),
        "pid_filename /run/moat-egress-proxy/squid.pid",
        "visible_hostname moat-egress-proxy",
        "cache_log /dev/null",
        "# three lines for every connection beyond the limit would be a burden of their own",
        "debug_options ALL,1 5,0",
        "coredump_dir none",
        "shutdown_lifetime 1 second",
        "pinger_enable off",
        "digest_generation off",
        "netdb_filename none",
        "icp_port 0",
        "htcp_port 0",
        "snmp_port 0",
        "cachemgr_passwd disable all",
        "global_internal_static off",
        "cache deny all",
        "cache_mem 0 MB",
        "memory_cache_shared off",
        "via off",
        "forwarded_for delete",
        "httpd_suppress_version_string on",
        "check_hostnames on",
        "# an address once resolved is used for at least a minute, and no connection is used for another request",
        f"dns_nameservers {' '.join(_addresses(settings['resolvers']))}",
        "hosts_file none",
        "negative_dns_ttl 60 seconds",
        "positive_dns_ttl 1 hour",
        "dns_timeout 5 seconds",
        "server_persistent_connections off",
        "# a refusal costs its source a connection, of which the packet filter lets each have so many a second",
        "persistent_connection_after_error off",
        "# their defaults look up the names of the clients",
        "url_rewrite_extras -",
        "store_id_extras -",
        "connect_timeout 15 seconds",
        "request_timeout 15 seconds",
        "request_start_timeout 15 seconds",
        "client_idle_pconn_timeout 30 seconds",
        f"client_ip_max_connections {settings['connections'] + 16}",
    ]
    if settings["upload_limit"]:
        lines.append(f"request_body_max_size {settings['upload_limit']}")
    for index, parent in enumerate(settings["parents"]):
        host = str(ip_address(parent["address"]))
        options = "no-query no-digest no-netdb-exchange no-tproxy"
        lines.append(f"cache_peer {host} parent {parent['port']} 0 {options} name=parent-{index}")
    return lines


def _sources(settings: Mapping[str, Any]) -> list[str]:
    lines = []
    for index, source in enumerate(settings["sources"]):
        lines += [
            f"acl source-{index} src {' '.join(_addresses(source['addresses']))}",
            f"acl is-source-{index} annotate_transaction source={source['name']}",
        ]
    return [*lines, "acl known note source", f"acl crowd maxconn {settings['connections']}"]


def _requests(settings: Mapping[str, Any]) -> list[str]:
    lines = [
        "acl CONNECT method CONNECT",
        f"acl methods method CONNECT {' '.join(METHODS)}",
        "acl plain proto HTTP",
        "# also what is left of an address in any other notation",
        r"acl literal dstdom_regex -n -i (^|\.)(0x[0-9a-f]*|[0-9]+)\.?$ : \[",
    ]
    for index, way in enumerate(ways(settings["sources"])):
        text = pattern(way.host)
        lines += [
            f"acl from-{index} src {' '.join(way.sources)}",
            f"acl name-{index} dstdom_regex -n -i {text}",
            f"acl ports-{index} port {' '.join(map(str, way.ports))}",
            f"acl sni-{index} ssl::server_name_regex --client-requested -i {text}",
            f"acl take-{index} annotate_transaction way={index} rule={way.rule}",
            f"acl way-{index} note way {index}",
        ]
    return lines


def _destinations(settings: Mapping[str, Any]) -> list[str]:
    networks = beyond(settings["to"], settings["refused"])
    return [f"acl beyond dst {' '.join(networks[i : i + 8])}" for i in range(0, len(networks), 8)]


def _refuse(reason: str, *conditions: str) -> list[str]:
    """Lines that refuse a request.

    Squid would answer a CONNECT that http_access denies inside of TLS, with a certificate of its own. So it is let through to
    miss_access, which denies it in plain HTTP.
    """
    return [
        " ".join(["http_access", "allow", "CONNECT", *conditions, f"refuse-{reason}"]),
        " ".join(["http_access", "deny", *conditions, f"refuse-{reason}"]),
    ]


def _decision(settings: Mapping[str, Any]) -> list[str]:
    every = ways(settings["sources"])
    lines = [f"acl refuse-{reason} annotate_transaction verdict=deny rule=deny-{reason}" for reason in REFUSALS]
    lines += [
        "acl allow annotate_transaction verdict=allow",
        "acl allowed note verdict allow",
        "acl listed note way",
        "acl name-is-listed annotate_transaction named=yes",
        "acl named note named",
        "configuration_includes_quoted_values on",
        'acl read-sni annotate_transaction sni="%ssl::>sni"',
        "configuration_includes_quoted_values off",
        "acl no-sni note sni -",
        "acl wait-for-hello annotate_transaction hello=awaited verdict=deny rule=deny-tls",
        "acl awaited note hello awaited",
        "# lines with !all decide nothing, they only take notes",
        *(f"http_access deny source-{i} is-source-{i} !all" for i in range(len(settings["sources"]))),
        *_refuse("source", "!known"),
        *_refuse("connections", "crowd"),
        *_refuse("method", "!methods"),
        *_refuse("protocol", "manager"),
        "http_access deny !CONNECT !plain refuse-protocol",
        *_refuse("address", "literal"),
    ]
    for index in range(len(every)):
        listed = f"http_access deny !listed from-{index} name-{index}"
        lines += [f"{listed} name-is-listed !all", f"{listed} ports-{index} take-{index} !all"]
    lines += [
        *_refuse("port", "!listed named"),
        *_refuse("name", "!listed"),
        "# only now is a name resolved",
        *_refuse("destination", "beyond"),
        "# a CONNECT is looked at twice: before its TLS begins, and with the name that TLS asks for",
        "http_access allow CONNECT read-sni no-sni wait-for-hello",
        "http_access allow allow",
        "http_access deny all",
        "miss_access allow allowed",
        "miss_access deny all",
    ]
    # looked at again right before the name is resolved for the connection, so that what was checked is what is used
    lines.append("never_direct allow all" if settings["parents"] else "never_direct allow beyond")
    return lines


def _tls(settings: Mapping[str, Any]) -> list[str]:
    return [
        "acl begin at_step SslBump1",
        "acl passed annotate_transaction passed=yes",
        "ssl_bump peek begin awaited",
        "ssl_bump splice begin",
        "ssl_bump terminate read-sni no-sni refuse-sni",
        *(f"ssl_bump splice way-{i} sni-{i} passed" for i in range(len(ways(settings["sources"])))),
        "ssl_bump terminate refuse-sni",
        "ssl_bump terminate all",
    ]


def _log() -> list[str]:
    return [
        _format("http"),
        _format("tunnel", status=False),
        _format("malformed", rule="deny-malformed"),
        _format("upload", rule="deny-upload"),
        "acl decided note rule",
        "acl goes-on note passed",
        "acl too-large http_status 413",
        "acl answered has response",
        "access_log syslog:daemon.info upload !decided answered too-large",
        "access_log syslog:daemon.info malformed !decided !answered",
        "access_log syslog:daemon.info malformed !decided answered !too-large",
        "access_log syslog:daemon.info tunnel decided CONNECT !goes-on",
        "access_log syslog:daemon.info http decided !CONNECT",
    ]


def files(settings: Mapping[str, Any], group: str = "proxy") -> list[dict[str, Any]]:
    """Return the files for the deploy module; raise EgressProxyError with all faults of the inputs."""
    settings = normalised(settings)
    found = faults(settings)
    if found:
        raise EgressProxyError("\n".join(["The egress proxy's inputs cannot be used:", *found]))
    hint = (
        "look at egress_proxy_extra_config" if settings["extra_config"].strip() else "report it as a fault of the role"
    )
    return [
        {
            "path": CONFIGURATION,
            "content": configuration(settings),
            "mode": "0640",
            "group": group,
            "validate": ["/bin/sh", "-c", CHECK, "check", "%s", hint],
        }
    ]
