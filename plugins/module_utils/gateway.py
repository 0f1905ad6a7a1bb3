# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turn the gateway's inputs into HAProxy's configuration and map files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.gateway_inputs import (
    HEADROOM,
    READY,
    GatewayError,
    canonical,
    connections_per_address,
    connections_per_identity,
    faults,
    normalised,
)

DIRECTORY = "/etc/moat/gateway"
HAPROXY = "/usr/sbin/haproxy"
# what HAProxy answers by itself
ERRORS: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "The request is malformed."),
    408: ("invalid_request_error", "The request did not arrive in time."),
    413: ("invalid_request_error", "The head of the request is too large."),
    500: ("server_error", "The gateway failed."),
    502: ("server_error", "The model server broke off."),
    503: ("server_error", "The model server is not ready."),
    504: ("server_error", "The model server did not answer in time."),
}
# What a client might claim about itself. Names with other characters than letters, digits and hyphens are dropped before.
SPOOFABLE_PREFIXES = (
    "x-client-",
    "x-forwarded-",
    "x-moat-",
    "x-ssl-",
    "x-original-",
    "x-envoy-",
    "x-auth-",
    "x-remote-",
)
SPOOFABLE = (
    "forwarded",
    "x-real-ip",
    "x-request-id",
    "via",
    "authorization",
    "proxy-authorization",
    "cookie",
    "upgrade",
    "connection",
)

TEXT, NUMBER = "text", "number"
# The access log: never a query, a body or a header of the client.
LOG_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("time", TEXT, "%[date,utime(%Y-%m-%dT%H:%M:%SZ)]"),
    ("request", TEXT, "%ID"),
    ("rule", TEXT, "%[var(txn.rule,deny-malformed)]"),
    ("client", TEXT, "%[var(txn.client)]"),
    ("common_name", TEXT, "%[var(txn.cn),bytes(0,64),json(utf8s)]"),
    ("uris", TEXT, "%[var(sess.uris),bytes(0,256),json(utf8s)]"),
    ("serial", TEXT, "%[ssl_c_serial,hex]"),
    ("source", TEXT, "%ci"),
    ("source_port", NUMBER, "%cp"),
    ("tls", TEXT, "%sslv"),
    ("cipher", TEXT, "%sslc"),
    ("model", TEXT, "%[var(txn.model)]"),
    ("method", TEXT, "%[var(txn.method),bytes(0,32),json(utf8s)]"),
    ("path", TEXT, "%[var(txn.path),bytes(0,256),json(utf8s)]"),
    ("status", NUMBER, "%ST"),
    ("bytes_received", NUMBER, "%U"),
    ("bytes_sent", NUMBER, "%B"),
    ("head_ms", NUMBER, "%TR"),
    ("connect_ms", NUMBER, "%Tc"),
    ("response_ms", NUMBER, "%Tr"),
    ("total_ms", NUMBER, "%Ta"),
    ("termination", TEXT, "%ts"),
)
# connections that never became a request: refused in the TLS handshake, or no HTTP
ERROR_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("time", TEXT, "%[date,utime(%Y-%m-%dT%H:%M:%SZ)]"),
    ("rule", TEXT, "deny-connection"),
    ("source", TEXT, "%ci"),
    ("source_port", NUMBER, "%cp"),
    ("error", TEXT, "%[fc_err_str,json(utf8s)]"),
    ("tls_error", TEXT, "%[ssl_fc_err_str,json(utf8s)]"),
)


def limits_of(client: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Return window (ms), requests in that window, concurrent requests, seconds to wait after a refusal.

    HAProxy counts in a sliding window: burst requests in burst / requests_per_second seconds are both limits at once.
    """
    rate, burst = client["limits"]["requests_per_second"], client["limits"]["burst"]
    burst = max(burst, -(-rate // 1000))  # HAProxy's shortest window is a millisecond
    window = -(-burst * 1000 // rate)
    return window, burst, client["limits"]["concurrent"], -(-window // 1000)


def maps(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the map files by name."""
    models, clients, endpoints = settings["models"], settings["clients"], settings["endpoints"]
    files = {
        "clients.map": ("identity in the certificate -> client", [(c["name"], c["name"]) for c in clients]),
        "addresses.map": (
            "client and source address",
            [(f"{c['name']}@{canonical(a)}", "yes") for c in clients for a in c["addresses"]],
        ),
        "grants.map": ("client and model", [(f"{c['name']}@{m}", "yes") for c in clients for m in c["models"]]),
        "limits.map": (
            "client -> window in ms / requests in it / requests at once / seconds to wait",
            [(c["name"], "/".join(map(str, limits_of(c)))) for c in clients],
        ),
        "connections.map": (
            "client -> connections from one address",
            [(c["name"], str(connections_per_identity(c))) for c in clients],
        ),
        "models.map": ("first segment of the path -> model", [(m["prefix"][1:], m["name"]) for m in models]),
        "paths.map": (
            "path -> what the model server is asked for",
            [(f"{m['prefix']}/{READY}", READY) for m in models]
            + [(m["prefix"] + e["path"], e["path"]) for m in models for e in endpoints],
        ),
        "requests.map": (
            "method and what is asked for",
            [(f"GET@{READY}", "yes")] + [(f"{m}@{e['path']}", "yes") for e in endpoints for m in e["methods"]],
        ),
        "methods.map": (
            "what is asked for -> its methods",
            [(READY, "GET")] + [(e["path"], ",".join(e["methods"])) for e in endpoints],
        ),
    }
    return {
        name: "\n".join([f"# Managed by moat.inference: {title}", *(f"{key} {value}" for key, value in pairs), ""])
        for name, (title, pairs) in files.items()
    }


def _json_format(fields: Sequence[tuple[str, str, str]]) -> str:
    parts = (f'"{name}":{value}' if kind == NUMBER else f'"{name}":"{value}"' for name, kind, value in fields)
    return "'{" + ",".join(parts) + "}'"


def _error_body(kind: str, message: str, code: str) -> str:
    return "'{}'".format(json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}))


def _listen(address: str, port: int) -> str:
    host = canonical(address)
    return f"ipv6@[{host}]:{port}" if ":" in host else f"ipv4@{host}:{port}"


def _lookup(name: str, function: str = "map_str") -> str:
    return f"{function}({DIRECTORY}/{name}.map)"


def configuration(settings: Mapping[str, Any]) -> str:
    """Return haproxy.cfg for inputs without faults."""
    lines = ["# Managed by moat.inference."]
    for section in (
        _global(settings),
        _defaults(settings),
        _frontend(settings),
        _metrics(settings["metrics"]),
        *(_model(model) for model in settings["models"]),
        *_tables(settings["clients"]),
    ):
        if section:
            lines += ["", section[0], *(f"    {line}" for line in section[1:])]
    return "\n".join([*lines, ""])


def _global(settings: Mapping[str, Any]) -> list[str]:
    return [
        "global",
        f"maxconn {settings['connections']}",
        f"nbthread {settings['threads']}",
        f"hard-stop-after {settings['drain_timeout']}s",
        "stats socket /run/moat-gateway/admin.sock mode 600 level admin expose-fd listeners",
        f"lua-load-per-thread {DIRECTORY}/gateway.lua",
        "ssl-default-bind-ciphersuites TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256",
        "# a resumed session would skip the check of the certificate",
        "tune.ssl.cachesize 0",
    ]


def _defaults(settings: Mapping[str, Any]) -> list[str]:
    errors = [
        f"http-error status {status} content-type application/json"
        + (" hdr Retry-After 5" if status == 503 else "")
        + f" string {_error_body(kind, message, 'gateway')}"
        for status, (kind, message) in ERRORS.items()
    ]
    return [
        "defaults",
        "mode http",
        "option dontlognull",
        "# each event of a stream goes out at once",
        "option http-no-delay",
        "# who hangs up frees the GPU",
        "option abortonclose",
        "# a reload refuses nobody who is about to send: old connections close with their next answer",
        "option idle-close-on-response",
        "option http-restrict-req-hdr-names delete",
        "option disable-h2-upgrade",
        "retries 2",
        "timeout connect 5s",
        "timeout http-request 10s",
        "timeout http-keep-alive 10s",
        "# time in which the client says or takes nothing although it should; waiting for an answer is not counted",
        "timeout client 60s",
        f"timeout server {settings['timeout']}s",
        *errors,
    ]


def _frontend(settings: Mapping[str, Any]) -> list[str]:
    tls = f"/etc/moat/tls/{settings['certificate']}"
    # transparent: without CAP_NET_ADMIN this is IP_FREEBIND, so the link may come, go and come back under the listener
    options = (
        f"transparent ssl crt {tls}/bundle.pem ca-file {tls}/root.pem verify required"
        " ssl-min-ver TLSv1.3 no-tls-tickets alpn http/1.1"
    )
    windows = sorted({limits_of(client)[0] for client in settings["clients"]})
    return [
        "frontend gateway",
        *(f"bind {_listen(address, settings['port'])} {options}" for address in settings["addresses"]),
        "# lines of JSON and nothing else; what HAProxy says of itself goes to standard error",
        "log stdout len 4096 format raw local0 info",
        f"log-format {_json_format(LOG_FIELDS)}",
        f"error-log-format {_json_format(ERROR_FIELDS)}",
        "unique-id-format %[uuid()]",
        "http-after-response set-header X-Request-Id %[unique-id]",
        "tcp-request connection track-sc1 src table connections",
        f"tcp-request connection reject if {{ sc_conn_cur(1) gt {connections_per_address(settings['clients'])} }}",
        "# an identity leaves the others at its address their share, whatever its requests wait for",
        "tcp-request session set-var(sess.source) src",
        "tcp-request session set-var(sess.caller) ssl_c_s_dn(cn),concat(@,sess.source)",
        f"tcp-request session set-var(sess.most) ssl_c_s_dn(cn),map_str_int({DIRECTORY}/connections.map,{HEADROOM})",
        "tcp-request session track-sc2 var(sess.caller) table callers",
        "tcp-request session reject if { sc_conn_cur(2),sub(sess.most) gt 0 }",
        "# what the log and the rules below speak of",
        "http-request set-var(txn.method) method",
        "http-request set-var(txn.path) path",
        "http-request set-var(txn.source) src",
        "http-request set-var(txn.cn) ssl_c_s_dn(cn)",
        "http-request set-var(sess.uris) ssl_c_der,hex,lua.moat_uris if !{ var(sess.uris) -m found }",
        f"http-request set-var(txn.client) var(txn.cn),{_lookup('clients')}",
        f"http-request set-var(txn.model) path,field(2,/),{_lookup('models')}",
        f"http-request set-var(txn.asked) path,{_lookup('paths')}",
        "http-request set-var(txn.now) date,utime(%y%m%d%H%M%S)",
        "# identity: one common name, known to the last byte, of a certificate that has not expired since the handshake",
        *_refusal(
            "deny-identity",
            "if !{ var(txn.client) -m found } || !{ var(txn.cn),strcmp(txn.client) eq 0 } || { ssl_c_s_dn(cn,2) -m found }"
            " || !{ ssl_c_notafter,field(1,Z),sub(txn.now) ge 0 }",
        ),
        "# address",
        *_refusal("deny-address", f"unless {{ var(txn.client),concat(@,txn.source),{_lookup('addresses')} -m found }}"),
        "# model and path: exact, so that no spelling of a path is ever interpreted",
        *_refusal("deny-path", "if !{ url -m beg / } || !{ var(txn.model) -m found }"),
        *_refusal("deny-model", f"unless {{ var(txn.client),concat(@,txn.model),{_lookup('grants')} -m found }}"),
        *_refusal("deny-path", "unless { var(txn.asked) -m found }"),
        f"http-request set-var(txn.methods) var(txn.asked),{_lookup('methods')}",
        *_refusal("deny-method", f"unless {{ method,concat(@,txn.asked),{_lookup('requests')} -m found }}"),
        "http-request set-var(txn.rule) str(in-gateway)",
        *_ready(),
        "# limits",
        f"http-request set-var(txn.limits) var(txn.client),{_lookup('limits')}",
        "http-request set-var(txn.burst) var(txn.limits),field(2,/),add(0)",
        "http-request set-var(txn.concurrent) var(txn.limits),field(3,/),add(0)",
        "http-request set-var(txn.wait) var(txn.limits),field(4,/)",
        *(
            f"http-request track-sc0 var(txn.client) table limits-{window}"
            f" if {{ var(txn.limits),field(1,/) -m str {window} }}"
            for window in windows
        ),
        *_refusal("deny-concurrent", "if { sc_conn_cur(0),sub(txn.concurrent) gt 0 }"),
        *_refusal("deny-rate", "if { sc_gpc0_rate(0),sub(txn.burst) ge 0 }"),
        "# a refused request costs nothing of the rate",
        "http-request sc-inc-gpc0(0)",
        "# what goes to the model server: no word of the client about itself, no query",
        *(f"http-request del-header {prefix} -m beg" for prefix in SPOOFABLE_PREFIXES),
        *(f"http-request del-header {name}" for name in SPOOFABLE),
        "http-request set-uri %[var(txn.asked)]",
        "http-request set-header Host localhost",
        "http-request set-header X-Moat-Client %[var(txn.client)]",
        "http-request set-header X-Request-Id %[unique-id]",
        "use_backend model-%[var(txn.model)]",
    ]


def _refusal(rule: str, condition: str) -> list[str]:
    """The lines that refuse a request; the first that applies ends it.

    A Lua service answers: it reads the body first. HAProxy's own answer would reset a connection that is still sending.
    """
    return [
        f"http-request set-var(txn.rule) str({rule}) {condition}",
        f"http-request use-service lua.moat_refuse if {{ var(txn.rule) -m str {rule} }}",
    ]


def _ready() -> list[str]:
    asked = f"{{ var(txn.asked) -m str {READY} }}"
    kind, message = ERRORS[503]
    return [
        "# readiness: answered here, counted by no limit, logged when it fails",
        # a process that is being replaced counts no servers any more; its connections close with this answer
        "acl up str(model-),concat(,txn.model),nbsrv ge 1",
        "acl up stopping",
        f"http-request set-log-level silent if {asked} up",
        f"http-request return status 200 content-type application/json string '{{\"ready\": true}}' if {asked} up",
        "http-request return status 503 content-type application/json hdr Retry-After 5"
        f" string {_error_body(kind, message, 'gateway')} if {asked}",
        "http-request use-service lua.moat_refuse if !up",
    ]


def _metrics(metrics: Mapping[str, Any]) -> list[str]:
    if metrics["port"] is None:
        return []
    return [
        "frontend metrics",
        *(f"bind {_listen(address, metrics['port'])} transparent" for address in metrics["addresses"]),
        "maxconn 32",
        "timeout client 10s",
        f"tcp-request connection reject unless {{ src {' '.join(metrics['peers'])} }}",
        "http-request use-service prometheus-exporter if METH_GET { path /metrics }",
        "http-request return status 404",
    ]


def _model(model: Mapping[str, Any]) -> list[str]:
    return [
        f"backend model-{model['name']}",
        "# the engine closes idle connections after seconds; a request must never meet that",
        "option http-server-close",
        "option httpchk",
        "http-check send meth GET uri /health ver HTTP/1.1 hdr Host localhost",
        "http-check expect status 200",
        "timeout check 5s",
        f"server engine unix@{model['socket']} check inter 2s fall 2 rise 1",
    ]


def _tables(clients: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Tables of what each identity uses; one for each window, for a window belongs to a table."""
    count: dict[int, int] = {}
    for client in clients:
        window = limits_of(client)[0]
        count[window] = count.get(window, 0) + 1
    tables = [
        ["backend connections", "stick-table type ipv6 size 64k expire 60s store conn_cur"],
        ["backend callers", "stick-table type string len 128 size 64k expire 60s store conn_cur"],
    ]
    for window, entries in sorted(count.items()):
        expire = max(60000, 2 * window)
        tables.append(
            [
                f"backend limits-{window}",
                f"stick-table type string len 64 size {entries + 16} expire {expire}ms"
                f" store conn_cur,gpc0,gpc0_rate({window}ms)",
            ]
        )
    return tables


def files(settings: Mapping[str, Any], lua: str, group: str) -> list[dict[str, Any]]:
    """Return all files as M(moat.inference.deploy) takes them, what is validated last; raise GatewayError."""
    settings = normalised(settings)
    found = faults(settings)
    if found:
        raise GatewayError("; ".join(found))
    contents = {**maps(settings), "gateway.lua": lua, "haproxy.cfg": configuration(settings)}
    return [
        {
            "path": f"{DIRECTORY}/{name}",
            "content": content,
            "mode": "0640",
            "group": group,
            "validate": [HAPROXY, "-c", "-f", "%s"] if name == "haproxy.cfg" else [],
        }
        for name, content in contents.items()
    ]
