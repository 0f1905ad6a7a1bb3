# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The connector's HAProxy configuration from its clients and settings, and everything that is wrong with these."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

RUNTIME = "/run/moat-connector"
ADMIN_SOCKET = f"{RUNTIME}/admin.sock"
MASTER_SOCKET = f"{RUNTIME}/master.sock"
CERTIFICATES = "/etc/moat/tls"
GROUP_PREFIX = "moat-c-"
GROUP_LENGTH = 32  # groupadd(8)
# HAProxy binds to <path>.<pid>.tmp and renames it; sun_path has 108 bytes (unix(7))
SOCKET_LENGTH = 90

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")
SOCKET = re.compile(re.escape(RUNTIME) + r"/[A-Za-z0-9_][A-Za-z0-9_.-]*")

DNS = "moat"
# seconds between two questions for a name, half of what an answer of the role private_dns is good for
DNS_INTERVAL = 30
# Without an answer a server keeps its address, for its checks say whether it serves. More than 24.8 days HAProxy does not take.
DNS_HOLD = "24d"
PREFERRED_NETWORKS = 5  # SRV_MAX_PREF_NET

# What only the gateway may say of a caller, and what an application may send by mistake.
STRIPPED_PREFIXES = ("x-client-", "x-forwarded-", "x-ssl-", "x-moat-")
STRIPPED = ("forwarded", "x-real-ip", "authorization", "proxy-authorization", "cookie")

ERRORS = (
    (400, "invalid_request_error", "bad_request", "The request is malformed."),
    (408, "invalid_request_error", "request_timeout", "The request did not arrive in time."),
    (500, "server_error", "connector_error", "The connector failed."),
    (502, "server_error", "bad_gateway", "The host that served the request failed before it answered."),
    (
        503,
        "service_unavailable",
        "model_unavailable",
        "No host that serves this model can be reached. Try again later.",
    ),
    (504, "server_error", "gateway_timeout", "The model did not answer in time."),
)
BAD_PATH = (
    "invalid_request_error",
    "bad_path",
    "The path must be written plainly: nothing encoded, no empty or dot segment.",
)
NOT_FOUND = ("invalid_request_error", "model_not_found", "There is no such model here.")

ACCESS_LOG = (
    '{"time":"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]","client":"CLIENT","model":"%[var(txn.model),json(utf8s)]",'
    '"request":"%[var(txn.request),json(utf8s)]","method":"%[capture.req.method,json(utf8s)]","status":%ST,'
    '"host":"%s","retries":"%rc","end":"%ts",'
    '"bytes_in":%U,"bytes_out":%B,"ms":{"request":%TR,"queue":%Tw,"connect":%Tc,"response":%Tr,"total":%Ta}}'
)


def group_name(client: str) -> str:
    """The system group whose members may use the connector of a client; a long one ends in a hash of the whole."""
    name = GROUP_PREFIX + client
    if len(name) <= GROUP_LENGTH:
        return name
    return f"{name[: GROUP_LENGTH - 9].rstrip('-')}-{hashlib.sha256(client.encode()).hexdigest()[:8]}"


def complete(client: Mapping[str, Any]) -> dict[str, Any]:
    """A client with what follows from its name where nothing else is said."""
    name = client["name"]
    port = client.get("port")
    models = [{**model, "prefix": model.get("prefix") or f"/{model['name']}"} for model in client["models"]]
    return {
        **client,
        "port": None if port in (None, "") else int(port),
        "socket": client.get("socket") or f"{RUNTIME}/{name}.sock",
        "certificate": client.get("certificate") or f"connector-{name}",
        "models": models,
    }


def plan(clients: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the role deploys; without a client, nothing is left to deploy. Expects input without faults."""
    whole = [complete(client) for client in clients]
    return {
        "config": config(whole, settings) if whole else "",
        "groups": [
            {"name": group_name(client["name"]), "users": sorted(set(client["users"])), "socket": client["socket"]}
            for client in whole
        ],
        "sockets": [ADMIN_SOCKET, MASTER_SOCKET] if whole else [],
    }


def needs(clients: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What the host must have already: users of the applications, and certificates."""
    whole = [complete(client) for client in clients]
    certificates = sorted({client["certificate"] for client in whole})
    return {
        "users": sorted({user for client in whole for user in client["users"]}),
        "files": [f"{CERTIFICATES}/{name}/{file}" for name in certificates for file in ("bundle.pem", "root.pem")],
    }


def config(clients: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """The whole haproxy.cfg of complete clients."""
    blocks = [_global(len(clients), settings), _defaults(settings)]
    if settings["resolvers"]:
        blocks.append(_resolvers(settings["resolvers"]))
    for client in clients:
        blocks.append(_frontend(client, settings))
        blocks += [_backend(client, model, settings) for model in client["models"]]
    return "\n".join("\n".join(block) + "\n" for block in blocks)


def _global(clients: int, settings: Mapping[str, Any]) -> list[str]:
    return [
        "# Managed by moat.inference.",
        ".if version_before(2.6)",
        '.alert "HAProxy 2.6 or later is needed"',
        ".endif",
        "",
        "global",
        "    user haproxy",
        "    group haproxy",
        f"    nbthread {settings['threads']}",
        f"    maxconn {settings['max_connections'] * clients}",
        f"    hard-stop-after {settings['drain_timeout']}s",
        "    log stdout format raw daemon",
        f"    stats socket {ADMIN_SOCKET} user root group root mode 600 level admin expose-fd listeners",
        "    # a request is replayed on another host only when it fits in one buffer",
        f"    tune.bufsize {settings['replay_size']}",
        "    ssl-default-server-options ssl-min-ver TLSv1.3",
        # from 3.3 on it would otherwise ask for no IPv6 address where the host has no default route
        *([".if version_atleast(3.2)", "    dns-accept-family ipv4,ipv6", ".endif"] if settings["resolvers"] else []),
    ]


def _resolvers(addresses: Sequence[str]) -> list[str]:
    return [
        f"resolvers {DNS}",
        *(f"    nameserver resolver{index} {_endpoint(address, 53)}" for index, address in enumerate(addresses)),
        f"    timeout resolve {DNS_INTERVAL}s",
        "    timeout retry 1s",
        *(f"    hold {status} {DNS_HOLD}" for status in ("timeout", "refused", "nx", "other")),
    ]


def _defaults(settings: Mapping[str, Any]) -> list[str]:
    response = settings["response_timeout"]
    lines = [
        "defaults",
        "    mode http",
        "    log global",
        "    option dontlognull",
        "    # each event of a stream leaves at once",
        "    option http-no-delay",
        "    # an abandoned request stops burning GPU time",
        "    option abortonclose",
        "    # a connection a request: none ever waits on an idle connection to a host that has died",
        "    option http-server-close",
        "    http-reuse never",
        "    # keep-alive connections survive a reload until their next answer",
        "    option idle-close-on-response",
        "    timeout http-request 30s",
        "    timeout http-keep-alive 60s",
        f"    timeout connect {settings['connect_timeout']}s",
        "    timeout queue 5s",
        f"    timeout check {settings['connect_timeout']}s",
        f"    timeout client {response}s",
        f"    timeout server {response}s",
        f"    timeout tunnel {response}s",
        "    timeout client-fin 10s",
        "    timeout server-fin 10s",
        "    # streams from a host that has died end; those from one that is being drained go on",
        "    option srvtcpka",
        "    srvtcpka-idle 6s",
        "    srvtcpka-intvl 3s",
        "    srvtcpka-cnt 3",
    ]
    for status, kind, code, message in ERRORS:
        header = " hdr Retry-After 5" if status == 503 else ""
        lines.append(
            f"    http-error status {status} content-type application/json"
            f" string '{_error(kind, code, message)}'{header}"
        )
    return lines


def _error(kind: str, code: str, message: str) -> str:
    """An error in the shape of the OpenAI API. It goes between single quotes, where HAProxy changes nothing."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _answer(status: int, kind: str, code: str, message: str) -> str:
    return f"http-request return status {status} content-type application/json string '{_error(kind, code, message)}'"


def _frontend(client: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    lines = [
        f"frontend {client['name']}",
        f"    bind unix@{client['socket']} user root group {group_name(client['name'])} mode 660",
    ]
    if client["port"]:
        lines += [f"    bind {_endpoint(address, client['port'])}" for address in settings["loopback"]]
    lines.append(f"    maxconn {settings['max_connections']}")
    if settings["access_log"]:
        lines.append(f"    log-format '{ACCESS_LOG.replace('CLIENT', client['name'])}'")
    else:
        lines.append("    no log")
    lines += [
        "    # one way to write a path: origin form, nothing encoded, no empty or dot segment",
        f"    {_answer(400, *BAD_PATH)} unless {{ url_beg / }}",
        f"    {_answer(400, *BAD_PATH)} if {{ path_sub % // /. ; \\\\ }}",
    ]
    for model in client["models"]:
        lines.append(f"    http-request set-var(txn.model) str({model['name']}) if {{ path_beg {model['prefix']}/ }}")
    lines.append(f"    {_answer(404, *NOT_FOUND)} unless {{ var(txn.model) -m found }}")
    lines += [f"    http-request del-header {name} -m beg" for name in STRIPPED_PREFIXES]
    lines += [f"    http-request del-header {name}" for name in STRIPPED]
    for model in client["models"]:
        lines.append(f"    use_backend {client['name']}.{model['name']} if {{ var(txn.model) -m str {model['name']} }}")
    return lines


def _backend(client: Mapping[str, Any], model: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    folder = f"{CERTIFICATES}/{client['certificate']}"
    interval = settings["health_interval"]
    lines = [
        f"backend {client['name']}.{model['name']}",
        "    balance leastconn",
        "    option allbackups",
        "    retries 3",
        "    option redispatch 1",
        "    # the id that the gateway gave the request, to find it in the gateway's log",
        "    http-response set-var(txn.request) res.hdr(x-request-id)",
        f"    retry-on {'conn-failure empty-response 503' if settings['replay'] else 'conn-failure'}",
    ]
    if settings["replay"]:
        lines.append("    option http-buffer-request")
    lines += [
        "    option httpchk",
        f"    http-check send meth GET uri {model['prefix']}/ready ver HTTP/1.1 hdr Host connector",
        "    http-check expect status 200",
        f"    default-server ssl verify required ca-file {folder}/root.pem crt {folder}/bundle.pem"
        f" ssl-min-ver TLSv1.3 no-ssl-reuse check observe layer4",
    ]
    # with SNI, HAProxy tries no other host after a certificate with a wrong name (src/backend.c, back_handle_st_cer)
    lines += [".if version_atleast(3.3)", "    default-server no-sni-auto no-check-sni-auto", ".endif"]
    for backend in model["backends"]:
        lines += [f"    server {server}" for server in _servers(backend, interval, bool(settings["resolvers"]))]
    return lines


def _servers(backend: Mapping[str, Any], interval: int, named: bool) -> Iterator[str]:
    """The servers of one host, the preferred one first; the others are for when no host's first one answers.

    By name, the planned addresses are the others: a name that leads elsewhere takes no host out of service.
    """
    name, addresses, port = backend["name"], backend["addresses"], backend["port"]
    verify = f"verifyhost {backend['server_name']}"
    first = f"tcp-ut 15s inter {interval}s fastinter 500ms fall 2 rise 1 error-limit 2 on-error sudden-death"
    other = f"tcp-ut 15s inter {interval * 5}s fall 1 rise 1 error-limit 1 on-error mark-down backup"
    if named:
        family = "ipv6" if ":" in addresses[0] else "ipv4"
        networks = ",".join(str(ipaddress.ip_network(address)) for address in addresses[:PREFERRED_NETWORKS])
        lookup = f"resolvers {DNS} init-addr {addresses[0]} resolve-prefer {family} resolve-net {networks}"
        # tcp-ut counts only where the line itself tells the family (src/cfgparse-tcp.c, srv_parse_tcp_ut); a lookup may change it
        yield f"{name} {family}@{backend['server_name']}:{port} {verify} {lookup} {first}"
    else:
        yield f"{name} {_endpoint(addresses[0], port)} {verify} {first}"
    for position, address in enumerate(addresses):
        if position or named:
            yield f"{name}:{position} {_endpoint(address, port)} {verify} {other}"


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def faults(clients: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with the input, each with its key and the remedy."""
    found = list(_setting_faults(settings))
    whole = []
    for index, client in enumerate(clients):
        where = f"connector_clients[{index}]"
        if not LABEL.fullmatch(client["name"]):
            found.append(
                f"{where}.name: {client['name']!r} is no DNS label; use lower-case letters, digits and hyphens"
            )
            continue
        where = f"{where} ({client['name']})"
        client = complete(client)
        whole.append((where, client))
        found += _client_faults(where, client)
    found += _repeated("name", ((where, client["name"]) for where, client in whole))
    found += _repeated("socket", ((where, client["socket"]) for where, client in whole))
    found += _repeated("port", ((where, client["port"]) for where, client in whole if client["port"]))
    return found


def _setting_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, least in (
        ("connect_timeout", 1),
        ("response_timeout", 1),
        ("health_interval", 1),
        ("drain_timeout", 1),
        ("max_connections", 1),
        ("threads", 1),
        ("replay_size", 16384),
    ):
        if settings[key] < least:
            yield f"connector_{key}: {settings[key]} is too little; write {least} or more"
    if not settings["loopback"]:
        yield "connector_loopback: it is empty; write 127.0.0.1, ::1 or both"
    for address in settings["loopback"]:
        if not _is_address(address) or not ipaddress.ip_address(address).is_loopback:
            yield f"connector_loopback: {address!r} is no loopback address; write 127.0.0.1, ::1 or both"
    for address in settings["resolvers"]:
        if not _is_address(address):
            yield f"connector_resolvers: {address!r} is no IP address; write those of the DNS servers"


def _client_faults(where: str, client: Mapping[str, Any]) -> Iterator[str]:
    if not client["users"]:
        yield f"{where}.users: it is empty; name the local users that may use the connector"
    for user in client["users"]:
        if not USER.fullmatch(user):
            yield f"{where}.users: {user!r} is no user name; name a local user"
    if client["port"] is not None and not 1 <= client["port"] <= 65535:
        yield f"{where}.port: {client['port']} is no port; write 1 to 65535, or leave it out for the socket alone"
    if not SOCKET.fullmatch(client["socket"]) or len(client["socket"]) > SOCKET_LENGTH:
        yield f"{where}.socket: {client['socket']!r} is no file in {RUNTIME} of at most {SOCKET_LENGTH} characters"
    if client["socket"] in (ADMIN_SOCKET, MASTER_SOCKET):
        yield f"{where}.socket: {client['socket']} is the connector's own; rename the client or give it another socket"
    if not HOST.fullmatch(client["certificate"]):
        yield f"{where}.certificate: {client['certificate']!r} is no name of a certificate in {CERTIFICATES}"
    if not client["models"]:
        yield f"{where}.models: it is empty; name a model or remove the client"
    for index, model in enumerate(client["models"]):
        yield from _model_faults(f"{where}.models[{index}]", model)
    yield from _repeated("models name", ((where, model["name"]) for model in client["models"]))
    yield from _repeated("models prefix", ((where, model["prefix"]) for model in client["models"]))


def _model_faults(where: str, model: Mapping[str, Any]) -> Iterator[str]:
    if not LABEL.fullmatch(model["name"]):
        yield f"{where}.name: {model['name']!r} is no DNS label; use lower-case letters, digits and hyphens"
    if not (model["prefix"].startswith("/") and LABEL.fullmatch(model["prefix"][1:])):
        yield f"{where}.prefix: {model['prefix']!r} is no single path segment; write /{model['name']}"
    if not model["backends"]:
        yield f"{where}.backends: it is empty; name a host that serves the model"
    for index, backend in enumerate(model["backends"]):
        here = f"{where}.backends[{index}]"
        if not HOST.fullmatch(backend["name"]):
            yield f"{here}.name: {backend['name']!r} is no host name"
        if not HOST.fullmatch(backend["server_name"]) or backend["server_name"].startswith("_"):
            yield f"{here}.server_name: {backend['server_name']!r} is no DNS name"
        if not 1 <= backend["port"] <= 65535:
            yield f"{here}.port: {backend['port']} is no port; write 1 to 65535"
        if not backend["addresses"]:
            yield f"{here}.addresses: it is empty; write the addresses of the gateway, the preferred one first"
        for address in backend["addresses"]:
            if not _is_address(address):
                yield f"{here}.addresses: {address!r} is no IP address; names are not looked up"
    yield from _repeated("backends name", ((where, backend["name"]) for backend in model["backends"]))


def _is_address(text: str) -> bool:
    try:
        return "%" not in text and bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _repeated(key: str, values: Iterable[tuple[str, Any]]) -> Iterator[str]:
    first: dict[Any, str] = {}
    for where, value in values:
        if value in first:
            yield f"{where}.{key.replace(' ', '.')}: {value} is in {first[value]} already; each needs its own"
        first.setdefault(value, where)


def host_faults(clients: Sequence[Mapping[str, Any]], host: Mapping[str, Any], check_mode: bool) -> list[str]:
    """What the host lacks that the role does not make: users, and, unless in check mode, certificates."""
    found = []
    for index, client in enumerate(clients):
        where = f"connector_clients[{index}] ({client['name']})"
        for user in client["users"]:
            if user in host["missing_users"]:
                found.append(f"{where}.users: the host has no user {user!r}; create it or take it off the list")
        certificate = complete(client)["certificate"]
        lacks = [path for path in host["missing_files"] if path.startswith(f"{CERTIFICATES}/{certificate}/")]
        if lacks and not check_mode:
            found.append(
                f"{where}.certificate: {' and '.join(lacks)} missing; apply the role certificate with an item"
                f" named {certificate!r} first"
            )
    return found
