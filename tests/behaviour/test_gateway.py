"""The gateway as its clients, and those who are none, see it."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

At = Callable[[str], Any]
REFUSED = "000"


@dataclass(frozen=True)
class Caller:
    """A client of a gateway, on a host of its own, with the certificate that is there."""

    host: str
    name: str
    source: str
    models: list[str]
    limits: dict[str, int]
    gateway: str
    plan: dict[str, Any]
    domain: str

    @property
    def target(self) -> str:
        return f"{self.gateway}.gateway.{self.domain}"

    def curl(self, path: str, more: str = "", certificate: str | None = None, address: str = "") -> str:
        """A shell command that prints the body of the answer, then its status on a line of its own."""
        tls = f"/etc/moat/tls/{certificate or 'connector-' + self.name}"
        where = address or next(item for item in self.plan["addresses"] if ":" not in item)
        host = f"[{where}]" if ":" in where else where
        return (
            f"curl -s -m 8 --path-as-is --cert {tls}/cert.pem --key {tls}/key.pem --cacert {tls}/root.pem "
            f"--resolve {self.target}:{self.plan['port']}:{host} -w '\\n%{{http_code}}\\n' {more} "
            f"'https://{self.target}:{self.plan['port']}{path}'"
        )


def caller_on(plan: Any, models: int) -> Caller:
    """The first client of a gateway that has at least so many models and refuses one to the client, if there are two."""
    for gateway in sorted(plan.hosts):
        own = plan.host(gateway).get("gateway")
        if own is None or len(own["models"]) < models:
            continue
        for client in own["clients"]:
            host = next(
                name
                for name in sorted(plan.hosts)
                if any(item["name"] == client["name"] for item in plan.host(name).get("connector", ()))
            )
            link = [item.partition("/")[0] for item in plan.host(host)["private_link"]["addresses"]]
            return Caller(
                host,
                client["name"],
                link[0],
                client["models"],
                client["limits"],
                gateway,
                own,
                plan.domain,
            )
    raise LookupError("no gateway of the plan has a client")


@pytest.fixture(scope="module")
def caller(plan: Any) -> Caller:
    return caller_on(plan, 2)


@pytest.fixture(scope="module")
def model(caller: Caller) -> dict[str, str]:
    """A model that the caller may use."""
    return next(item for item in caller.plan["models"] if item["name"] in caller.models)


def statuses(host: Any, commands: list[str]) -> list[str]:
    """Status of each request, in one run on the host; encoded, so that no shell in between reads the paths."""
    script = "\n".join(f"{command} -o /dev/null 2>/dev/null" for command in commands)
    return str(host.run(f"echo {b64encode(script.encode()).decode()} | base64 -d | bash").stdout).split()


def admin(command: str) -> str:
    """A shell command that asks HAProxy's admin socket."""
    lines = (
        "import socket",
        "s = socket.socket(socket.AF_UNIX)",
        "s.connect('/run/moat-gateway/admin.sock')",
        f"s.sendall(b'{command}\\n')",
        "print(s.makefile().read())",
    )
    return f'python3 -c "{"; ".join(lines)}"'


def log_of(host: Any, since: int) -> list[dict[str, Any]]:
    """The access log since then; a line that is no JSON fails the test."""
    lines = host.check_output(f"journalctl -u moat-gateway -o cat --since @{since}").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_the_named_client_is_served_on_every_address(at: At, caller: Caller, model: dict[str, str]) -> None:
    path = f"{model['prefix']}/v1/models"
    addresses = caller.plan["addresses"]
    assert any(":" in item for item in addresses) and any(":" not in item for item in addresses)
    assert statuses(at(caller.host), [caller.curl(path, address=item) for item in addresses]) == ["200"] * len(
        addresses
    )
    body, status = at(caller.host).run(caller.curl(path)).stdout.strip().rsplit("\n", 1)
    assert status == "200"
    assert [item["id"] for item in json.loads(body)["data"]] == [model["name"]]
    assert statuses(at(caller.host), [caller.curl(f"{model['prefix']}/ready")]) == ["200"]


def test_certificate_and_address_must_name_the_same_client(at: At, caller: Caller, model: dict[str, str]) -> None:
    path = f"{model['prefix']}/v1/models"
    gateway, host = at(caller.gateway), at(caller.host)
    # a certificate of the same root that names no client: the gateway's own
    own = gateway.run(caller.curl(path, certificate=caller.plan["certificate"])).stdout
    assert json.loads(own.rsplit("\n", 2)[0])["error"]["code"] == "deny-identity", own
    # the client's own key stays where it is; what is taken away for a moment is its address, then its name
    for name, key, value, rule in (
        ("addresses", f"{caller.name}@{caller.source}", "yes", "deny-address"),
        ("clients", caller.name, caller.name, "deny-identity"),
    ):
        file = f"/etc/moat/gateway/{name}.map"
        assert statuses(host, [caller.curl(path)]) == ["200"]
        try:
            gateway.check_output(admin(f"del map {file} {key}"))
            answer = host.run(caller.curl(path)).stdout
        finally:
            gateway.check_output(admin(f"add map {file} {key} {value}"))
        assert json.loads(answer.rsplit("\n", 2)[0])["error"]["code"] == rule, answer
    assert statuses(host, [caller.curl(path)]) == ["200"]


def test_without_a_certificate_of_the_site_there_is_no_answer(at: At, caller: Caller, model: dict[str, str]) -> None:
    path = f"{model['prefix']}/v1/models"
    served = caller.curl(path)
    none = served.replace("--cert ", "--header X-Was:").replace("--key ", "--header X-Was:")
    tls = f"/etc/moat/tls/connector-{caller.name}"
    script = (
        "d=$(mktemp -d); trap 'rm -rf $d' EXIT\n"
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 "
        f"-subj /CN={caller.name} -keyout $d/key.pem -out $d/cert.pem 2>/dev/null\n"
        + "\n".join(
            f"{command} -o /dev/null || true"
            for command in (
                none,
                served.replace(f"{tls}/cert.pem", "$d/cert.pem").replace(f"{tls}/key.pem", "$d/key.pem"),
                served + " --tls-max 1.2",
                served,
            )
        )
    )
    assert at(caller.host).run(script).stdout.split() == [REFUSED, REFUSED, REFUSED, "200"]


def test_only_declared_models_paths_and_methods(at: At, caller: Caller, model: dict[str, str]) -> None:
    own = model["prefix"]
    foreign = next(item["prefix"] for item in caller.plan["models"] if item["name"] not in caller.models)
    wanted = {
        f"{foreign}/v1/models": "403",
        f"{foreign}/ready": "403",
        f"{own}/../{foreign[1:]}/v1/models": "404",
        f"{own}/%2e%2e/{foreign[1:]}/v1/models": "404",
        f"/{own}/v1/models": "404",
        f"{own}//v1/models": "404",
        f"{own}/./v1/models": "404",
        f"{own}/v1%2fmodels": "404",
        f"{own}/v1/models/": "404",
        f"{own}/v1/%6dodels": "404",
        f"{own.upper()}/v1/models": "404",
        f"{own}/metrics": "404",
        f"{own}/health": "404",
        f"{own}/version": "404",
        f"{own}/tokenize": "404",
        f"{own}/v1/load_lora_adapter": "404",
        "/": "404",
    }
    assert statuses(at(caller.host), [caller.curl(path) for path in wanted]) == list(wanted.values())
    absolute = f"--request-target http://{caller.target}:{caller.plan['port']}{own}/v1/models"
    methods = {"-X DELETE": "405", "-X POST": "405", "-X TRACE": "405", absolute: "404", "": "200"}
    found = statuses(at(caller.host), [caller.curl(f"{own}/v1/models", more) for more in methods])
    assert found == list(methods.values())


def test_every_request_is_in_the_log_and_none_of_its_words(at: At, caller: Caller, model: dict[str, str]) -> None:
    gateway = at(caller.gateway)
    since = int(gateway.check_output("date +%s"))
    canary = f"canary{time.time_ns()}"
    path = f"{model['prefix']}/v1/models"
    answered = at(caller.host).run(
        caller.curl(
            f"{path}?q={canary}",
            f"-D - -o /dev/null -H 'X-Request-Id: {canary}' -H 'X-Moat-Client: {canary}' -A {canary}",
        )
    )
    request = next(
        line.split(": ")[1].strip()
        for line in answered.stdout.splitlines()
        if line.lower().startswith("x-request-id: ")
    )
    assert canary not in request
    hostile = f'/{canary[6:]}"}},{{\\'
    assert statuses(at(caller.host), [caller.curl(hostile, "-g")]) == ["404"]
    time.sleep(0.3)
    lines = log_of(gateway, since)
    line = next(item for item in lines if item.get("request") == request)
    assert (line["rule"], line["client"], line["source"]) == ("in-gateway", caller.name, caller.source)
    assert (line["model"], line["path"], line["status"], line["tls"]) == (model["name"], path, 200, "TLSv1.3")
    assert line["uris"] == f"spiffe://{caller.domain}/client/{caller.name}"
    assert next(item for item in lines if item.get("path") == hostile)["rule"] == "deny-path"
    assert gateway.run(f"journalctl -u moat-gateway --since @{since} | grep {canary}").rc == 1


def test_a_burst_is_limited_and_recovers(at: At, caller: Caller, model: dict[str, str]) -> None:
    rate, burst = caller.limits["requests_per_second"], caller.limits["burst"]
    window = burst / rate
    time.sleep(2 * window)
    # one connection, one process: curl's URL range sends the requests one after the other
    command = caller.curl(f"{model['prefix']}/v1/models?[1-{burst + 10}]", "-o /dev/null -D -")
    begin = time.monotonic()
    answers = at(caller.host).run(command).stdout
    took = time.monotonic() - begin
    codes = [line.split()[1] for line in answers.splitlines() if line.startswith("HTTP/")]
    assert len(codes) == burst + 10 and set(codes) == {"200", "429"}
    assert burst <= codes.count("200") <= burst + rate * took + 1
    assert f"retry-after: {-(-burst // rate)}" in answers.lower()
    ready = caller.curl(f"{model['prefix']}/ready?[1-{burst}]", "-o /dev/null")
    assert set(at(caller.host).run(ready).stdout.split()) == {"200"}, "readiness is not counted"
    time.sleep(window + 0.5)
    assert statuses(at(caller.host), [caller.curl(f"{model['prefix']}/v1/models")]) == ["200"]


def test_running_requests_are_limited_not_connections(at: At, caller: Caller, model: dict[str, str]) -> None:
    tls = f"/etc/moat/tls/connector-{caller.name}"
    address = next(item for item in caller.plan["addresses"] if ":" not in item)
    # a request whose body never comes runs as long as its connection; an idle connection runs nothing
    script = f"""
import socket, ssl, time
context = ssl.create_default_context(cafile="{tls}/root.pem")
context.load_cert_chain("{tls}/cert.pem", "{tls}/key.pem")
def connect():
    raw = socket.create_connection(("{address}", {caller.plan["port"]}), timeout=8)
    return context.wrap_socket(raw, server_hostname="{caller.target}")
def ask(connection, head):
    connection.sendall((head + "\\r\\nHost: x\\r\\n\\r\\n").encode())
def status(connection):
    return connection.recv(4096).split()[1].decode()
ready, models = "GET {model["prefix"]}/ready HTTP/1.1", "GET {model["prefix"]}/v1/models HTTP/1.1"
idle = [connect() for _ in range(8)]
for one in idle:
    ask(one, ready)
    print(status(one))
running = [connect() for _ in range({caller.limits["concurrent"]})]
for one in running:
    ask(one, "POST {model["prefix"]}/v1/completions HTTP/1.1\\r\\nContent-Length: 9")
time.sleep(0.3)
more = connect()
ask(more, models)
print(status(more))
for one in running:
    one.close()
time.sleep(0.5)
last = connect()
ask(last, models)
print(status(last))
"""
    time.sleep(caller.limits["burst"] / caller.limits["requests_per_second"])
    out = at(caller.host).run(f"echo {b64encode(script.encode()).decode()} | base64 -d | python3 -").stdout.split()
    assert out == ["200"] * 8 + ["429", "200"]


def test_metrics_are_for_administration_alone(at: At, caller: Caller) -> None:
    metrics = caller.plan["metrics"]
    gateway = at(caller.gateway)
    for address in metrics["addresses"]:
        shown = f"[{address}]" if ":" in address else address
        # the listener is there, and closes on the gateway's own address, which is no network of administration
        assert gateway.run(f"ss -Hltn 'sport = :{metrics['port']}' | grep -F '{shown}:{metrics['port']}'").rc == 0
        assert gateway.run(f"curl -s -m 3 'http://{shown}:{metrics['port']}/metrics'").stdout == ""
    assert (
        "haproxy_"
        not in at(caller.host).run(f"curl -s -m 3 http://{metrics['addresses'][0]}:{metrics['port']}/metrics").stdout
    )
    # positive control: HAProxy has them to give
    assert f"model-{caller.models[0]},engine" in gateway.check_output(admin("show stat"))


def test_it_listens_there_and_nowhere_else_and_can_do_little(at: At, caller: Caller) -> None:
    gateway = at(caller.gateway)
    main = gateway.check_output("systemctl show -p MainPID --value moat-gateway")
    status = gateway.check_output(f"cat /proc/{main}/status")
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status and "Uid:\t0" not in status
    listeners = gateway.check_output("ss -Hltnp | grep haproxy | awk '{print $4}'").split()
    metrics = caller.plan["metrics"]
    wanted = [(item, caller.plan["port"]) for item in caller.plan["addresses"]]
    wanted += [(item, metrics["port"]) for item in metrics["addresses"]]
    assert sorted(listeners) == sorted(f"[{a}]:{p}" if ":" in a else f"{a}:{p}" for a, p in wanted)


def test_a_reload_loses_no_request(at: At, caller: Caller, model: dict[str, str]) -> None:
    request = caller.curl(f"{model['prefix']}/ready", "-o /dev/null")
    gateway = at(caller.gateway)
    with ThreadPoolExecutor(1) as pool:
        row = pool.submit(at(caller.host).run, f"for i in $(seq 60); do {request}; sleep 0.05; done")
        reloads = 0
        while not row.done() and reloads < 5:
            assert gateway.run("systemctl reload moat-gateway").rc == 0
            reloads += 1
    codes = row.result().stdout.split()
    assert reloads > 1 and len(codes) == 60 and set(codes) == {"200"}
