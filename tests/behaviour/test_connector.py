"""The connector as the local users of an application host see it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

At = Callable[[str], Any]
# a user of every host that is in no plan
STRANGER = "nobody"


@dataclass(frozen=True)
class Local:
    """A client of a connector, on one of its hosts."""

    host: str
    client: dict[str, Any]

    @property
    def user(self) -> str:
        return str(self.client["users"][0])

    @property
    def model(self) -> str:
        return str(self.client["models"][0]["name"])

    @property
    def base(self) -> str:
        return str(self.client["models"][0]["prefix"]) + "/v1"

    def curl(self, path: str, more: str = "", user: str = "", loopback: str = "") -> str:
        """A shell command that prints the answer and, on a line of their own, curl's status and that of HTTP."""
        via = f"--unix-socket {self.client['socket']}" if not loopback else ""
        where = f"{loopback}:{self.client['port']}" if loopback else "connector"
        return (
            f"sudo -u {user or self.user} curl -s -m 20 --path-as-is {via} {more} "
            f"-w '\\n%{{exitcode}} %{{http_code}}\\n' 'http://{where}{path}'"
        )

    def completion(self, **more: Any) -> str:
        message = {"role": "user", "content": "hello"}
        body = {"model": self.model, "messages": [message], "max_tokens": 4, **more}
        return f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'"


def locals_of(plan: Any) -> list[Local]:
    return [Local(name, client) for name in sorted(plan.hosts) for client in plan.host(name).get("connector", ())]


@pytest.fixture(scope="module")
def local(plan: Any) -> Local:
    """Some client."""
    return locals_of(plan)[0]


@pytest.fixture(scope="module")
def with_port(plan: Any) -> Local:
    """A client that has a loopback port too."""
    return next(item for item in locals_of(plan) if item.client["port"])


def ask(at: At, host: str, commands: list[str]) -> list[tuple[str, str, str]]:
    """Run commands made by Local.curl in one go: for each the body, curl's exit status and the status of HTTP."""
    result = at(host).run("\necho ---\n".join(commands))
    answers = []
    for text in result.stdout.split("\n---\n"):
        body, _, statuses = text.strip("\n").rpartition("\n")
        exitcode, http = statuses.split()
        answers.append((body, exitcode, http))
    return answers


def test_a_named_user_gets_a_completion_and_nobody_else_a_connection(at: At, local: Local) -> None:
    path = f"{local.base}/chat/completions"
    answer, stranger = ask(
        at,
        local.host,
        [local.curl(path, local.completion()), local.curl(path, local.completion(), user=STRANGER)],
    )
    assert answer[1:] == ("0", "200"), answer
    assert json.loads(answer[0])["usage"]["completion_tokens"] >= 1
    assert stranger == ("", "7", "000")


def test_a_stream_arrives_as_events(at: At, local: Local) -> None:
    [(body, exitcode, http)] = ask(
        at, local.host, [local.curl(f"{local.base}/chat/completions", "-N " + local.completion(stream=True))]
    )
    assert (exitcode, http) == ("0", "200"), body
    events = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    assert len(events) >= 3 and events[-1] == "[DONE]"
    assert all(json.loads(event)["object"] == "chat.completion.chunk" for event in events[:-1])


def test_the_loopback_port_is_for_the_named_users_only(at: At, with_port: Local) -> None:
    path = f"{with_port.base}/models"
    answers = ask(
        at,
        with_port.host,
        [
            with_port.curl(path, "--connect-timeout 2", user, address)
            for address in ("127.0.0.1", "[::1]")
            for user in (with_port.user, STRANGER)
        ],
    )
    assert [http for _body, _exitcode, http in answers] == ["200", "000", "200", "000"], answers
    assert with_port.model in answers[0][0]


def test_the_port_listens_on_loopback_alone(at: At, with_port: Local) -> None:
    listening = at(with_port.host).run(f"ss -Hltn sport = :{with_port.client['port']}").stdout.split("\n")
    assert sorted(line.split()[3].rpartition(":")[0] for line in listening if line) == ["127.0.0.1", "[::1]"]


def test_a_model_that_is_not_granted_looks_like_one_that_is_not_there(at: At, plan: Any, local: Local) -> None:
    granted = {model["name"] for model in local.client["models"]}
    gateways = [plan.host(name)["gateway"] for name in plan.hosts if "gateway" in plan.host(name)]
    other = next(model for gateway in gateways for model in gateway["models"] if model["name"] not in granted)
    control, foreign, unknown, root = ask(
        at,
        local.host,
        [local.curl(path) for path in (f"{local.base}/models", f"{other['prefix']}/v1/models", "/none/v1/models", "/")],
    )
    assert control[2] == "200", control
    assert foreign == unknown == root
    assert unknown[2] == "404"
    error = json.loads(unknown[0])["error"]
    assert error["code"] == "model_not_found" and local.model not in unknown[0]


def test_a_path_is_not_interpreted(at: At, local: Local) -> None:
    prefix = local.client["models"][0]["prefix"]
    tricks = [f"{prefix}/../v1/models", f"{prefix}/%2e%2e/v1/models", f"/{prefix}/v1/models", f"{prefix}/v1;x/models"]
    control, *answers = ask(at, local.host, [local.curl(path) for path in (f"{local.base}/models", *tricks)])
    assert control[2] == "200", control
    assert [(json.loads(body)["error"]["code"], http) for body, _exitcode, http in answers] == [("bad_path", "400")] * 4


def test_the_log_has_a_line_for_a_request_and_nothing_of_its_content(at: At, local: Local) -> None:
    canary = f"canary{uuid.uuid4().hex}"
    host = at(local.host)
    more = f"-H 'X-Note: {canary}' -A {canary} {local.completion(user=canary)}"
    script = (
        f"{local.curl(f'{local.base}/chat/completions?{canary}', more)}\n"
        f"{local.curl(f'{local.base}/{canary}')}\n"
        "sleep 0.3; journalctl -u moat-connector -o cat -n 50 | grep '^{'"
    )
    lines = host.run(script).stdout.splitlines()
    entries = [json.loads(line) for line in lines if line.startswith('{"time"')][-2:]
    assert [(item["client"], item["model"], item["method"]) for item in entries] == [
        (local.client["name"], local.model, "POST"),
        (local.client["name"], local.model, "GET"),
    ]
    assert entries[0]["host"] in [backend["name"] for backend in local.client["models"][0]["backends"]]
    assert canary not in "".join(line for line in lines if line.startswith('{"time"'))
    # the request itself did arrive: the gateway refused the path that does not exist
    assert entries[1]["status"] == 404 and entries[1]["request"] != "-"
    assert host.run(f"journalctl -b -o cat | grep -v COMMAND= | grep -c {canary}").stdout.strip() == "0"


def test_every_backend_is_up(at: At, local: Local) -> None:
    wanted = {
        (f"{local.client['name']}.{model['name']}", backend["name"])
        for model in local.client["models"]
        for backend in model["backends"]
    }
    # one check that failed under load shows as UP 1/2 until the next one
    for _try in range(5):
        shown = at(local.host).run("echo show stat | nc -NU /run/moat-connector/admin.sock | cut -d, -f1,2,18").stdout
        rows = [line.split(",") for line in shown.splitlines() if line.count(",") == 2]
        up = {(backend, server) for backend, server, state in rows if state == "UP"}
        if wanted <= up:
            break
        time.sleep(2)
    assert wanted <= up, shown


def test_the_workers_have_no_privilege_and_the_control_sockets_are_closed(at: At, local: Local) -> None:
    host = at(local.host)
    shown = host.run(
        "pid=$(echo show info | nc -NU /run/moat-connector/admin.sock | sed -n 's/^Pid: //p')\n"
        "ps -o user= -p $pid; grep -E 'CapEff|NoNewPrivs' /proc/$pid/status\n"
        f"for name in admin master; do sudo -u {local.user} nc -U /run/moat-connector/$name.sock </dev/null; echo $?; done"
    ).stdout.split()
    assert shown == ["haproxy", "CapEff:", "0000000000000000", "NoNewPrivs:", "1", "1", "1"]


def test_a_reload_ends_no_stream(at: At, local: Local) -> None:
    more = "-N " + local.completion(stream=True, max_tokens=8)
    host = at(local.host)
    result = host.run(
        f"({local.curl(f'{local.base}/chat/completions', more)}) > /run/moat-test-stream & systemctl reload moat-connector;"
        f" echo reload $?; wait; tail -n 1 /run/moat-test-stream; grep -c 'DONE' /run/moat-test-stream;"
        f" rm /run/moat-test-stream; {local.curl(f'{local.base}/models')} | tail -n 1"
    )
    assert result.stdout.split() == ["reload", "0", "0", "200", "1", "0", "200"], result.stdout


@pytest.fixture
def resolvers(plan: Any) -> list[str]:
    """The hosts that serve the names that connectors look up."""
    found = [name for name in plan.hosts if "private_dns" in plan.host(name)]
    assert found, "the intent declares no dns, so nothing is looked up"
    return found


def looked_up(at: At, local: Local) -> tuple[int, dict[str, tuple[str, str]]]:
    """Valid answers so far, and name and address that each server of the client's first model has."""
    script = (
        "for word in 'resolvers moat' 'servers state'; do echo show $word | nc -NU /run/moat-connector/admin.sock; done"
    )
    lines = [line.split() for line in at(local.host).run(script).stdout.splitlines()]
    valid = sum(int(words[1]) for words in lines if words[:1] == ["valid:"])
    backend = f"{local.client['name']}.{local.model}"
    return valid, {words[3]: (words[17], words[4]) for words in lines if len(words) > 17 and words[1] == backend}


def restart(at: At, local: Local, verb: str = "reload") -> str:
    """Reload or restart the connector, then what a request gets."""
    return str(
        at(local.host).run(f"systemctl {verb} moat-connector; {local.curl(f'{local.base}/models')} | tail -n 1").stdout
    ).strip()


@contextmanager
def changed(at: At, hosts: list[str], change: str, back: str) -> Iterator[None]:
    """Something else on the hosts, for as long as it is looked at."""
    try:
        for host in hosts:
            at(host).check_output(change)
        yield
    finally:
        for host in hosts:
            at(host).check_output(back)


def test_a_gateway_is_found_by_its_name(at: At, local: Local, resolvers: list[str]) -> None:
    assert restart(at, local) == "0 200"
    time.sleep(1)
    valid, servers = looked_up(at, local)
    assert valid > 0
    for backend in local.client["models"][0]["backends"]:
        assert servers[backend["name"]] == (backend["server_name"], backend["addresses"][0])


def test_no_request_waits_for_a_dead_resolver(at: At, local: Local, resolvers: list[str]) -> None:
    service = "moat-private-dns"
    with changed(at, resolvers, f"systemctl stop {service}", f"systemctl start {service}"):
        assert restart(at, local, "restart") == "0 200"
        assert restart(at, local) == "0 200"
        assert looked_up(at, local)[0] == 0  # it is dead indeed
    assert restart(at, local) == "0 200"


def test_a_name_that_leads_elsewhere_takes_no_host_out(at: At, plan: Any, resolvers: list[str]) -> None:
    """The name of a model's only gateway leads to another gateway."""
    local, backend, elsewhere = next(
        (item, backends[0], other)
        for item in locals_of(plan)
        for backends in [item.client["models"][0]["backends"]]
        for other in [next(iter(others(plan, backends[0]["name"])), "")]
        if len(backends) == 1 and other
    )
    config, name = "/etc/moat/private-dns/unbound.conf", backend["server_name"]
    lie = f"cp -p {config} {config}.test && sed -i 's/\\({name}\\. .* A \\)[0-9.]*/\\1{elsewhere}/' {config}"
    again = "systemctl restart moat-private-dns"
    try:
        with changed(at, resolvers, f"{lie} && {again}", f"mv {config}.test {config} && {again}"):
            assert restart(at, local) == "0 200"
            time.sleep(6)  # until its checks have found out
            assert looked_up(at, local)[1][backend["name"]] == (name, elsewhere)  # it did follow the name
            path = f"{local.base}/models"
            [answer] = ask(at, local.host, [local.curl(path)])
            assert answer[1:] == ("0", "200"), answer
            lines = at(local.host).run("sleep 0.3; journalctl -u moat-connector -o cat -n 20 | grep '^{'").stdout
            assert json.loads(lines.splitlines()[-1])["host"].startswith(f"{backend['name']}:")
    finally:
        restart(at, local)


def others(plan: Any, gateway: str) -> Iterator[str]:
    """IPv4 addresses of the other gateways."""
    for name in sorted(plan.hosts):
        if name != gateway and "gateway" in plan.host(name):
            yield next(address for address in plan.host(name)["gateway"]["addresses"] if ":" not in address)
