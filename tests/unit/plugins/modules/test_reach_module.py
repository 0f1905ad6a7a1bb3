"""The reach module against real listeners on loopback, TLS with and without client certificates included."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.modules import reach

OPENSSL = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]


def make_certificate(directory: Path, name: str) -> Path:
    made = directory / name
    made.mkdir()
    command = [*OPENSSL, "-subj", f"/CN={name}", "-keyout", str(made / "key.pem"), "-out", str(made / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    for name in ("gateway", "connector-portal", "connector-other"):
        make_certificate(directory, name)
    broken = directory / "connector-broken"
    broken.mkdir()
    (broken / "cert.pem").write_bytes((directory / "connector-portal" / "cert.pem").read_bytes())
    (broken / "key.pem").write_bytes((directory / "connector-other" / "key.pem").read_bytes())
    return directory


class Server(threading.Thread):
    """A gateway in small: it asks for the certificate of portal, and answers each request with one status."""

    def __init__(self, certificates: Path | None, status: str = "", family: int = socket.AF_INET) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family)
        self.address, self.port = self.listener.getsockname()[:2]
        self.status = status
        self.context = None
        if certificates is not None:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificates / "gateway" / "cert.pem", certificates / "gateway" / "key.pem")
            self.context.load_verify_locations(certificates / "connector-portal" / "cert.pem")
            self.context.verify_mode = ssl.CERT_REQUIRED
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _peer = self.listener.accept()
            except OSError:
                return
            try:
                self.serve(connection)
            except OSError:
                connection.close()

    def serve(self, connection: socket.socket) -> None:
        if self.context is None:
            connection.close()
            return
        with self.context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(4096)
            if self.status:
                secure.sendall(f"HTTP/1.1 {self.status} x\r\nContent-Length: 0\r\n\r\n".encode())


@pytest.fixture
def serve(certificates: Path) -> Iterator[Any]:
    servers: list[Server] = []

    def start(status: str = "", tls: bool = True, **more: Any) -> Server:
        servers.append(Server(certificates if tls else None, status, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.listener.close()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], certificates: Path) -> Any:
    def run(*cells: dict[str, Any], **options: Any) -> dict[str, Any]:
        arguments = {"cells": list(cells), "certificates": str(certificates), "timeout": 2, **options}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            reach.main()
        return dict(json.loads(capsys.readouterr().out))

    return run


def cell(name: str, server: Server, client: str = "", path: str | None = "/m/v1/models") -> dict[str, Any]:
    own = {"identity": "own", "client": client, "certificate": f"connector-{client}"} if client else {}
    return {"id": name, "address": server.address, "port": server.port, "path": path, **own}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_packet_tls_and_request_are_told_apart(call: Any, serve: Any) -> None:
    good, refusing, silent, plain = serve("200"), serve("403"), serve(""), serve(tls=False)
    found = call(
        cell("admitted", good, "portal"),
        cell("refused request", refusing, "portal"),
        cell("closed", silent, "portal"),
        cell("no certificate", good),
        cell("other certificate", good, "other"),
        cell("no such certificate", good, "missing"),
        cell("key that does not fit", good, "broken"),
        cell("connection", plain, path=None),
        cell("not TLS", plain, "portal"),
        {"id": "nobody listens", "address": "127.0.0.1", "port": free_port()},
    )["found"]
    assert found["admitted"] == "status 200"
    assert found["refused request"] == "status 403"
    assert found["closed"] == "tls closed without an answer"
    assert found["no certificate"].startswith("tls ")
    assert found["other certificate"].startswith("tls ")
    assert found["no such certificate"].startswith("not probed: certificate connector-missing")
    assert found["key that does not fit"].startswith("not probed: certificate connector-broken")
    assert found["connection"] == "open"
    assert found["not TLS"].startswith("tls ")
    assert found["nobody listens"] == "refused"


def test_silence_is_told_apart_by_how_far_the_probe_came(call: Any) -> None:
    # a full backlog takes no further connection, as if the packet were dropped
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        first = {"id": "handshake", "address": address[0], "port": address[1], "path": "/m"}
        assert call(first)["found"] == {"handshake": "no answer"}
        held = []
        for _number in range(4):
            held.append(socket.socket())
            held[-1].setblocking(False)
            held[-1].connect_ex(address)
        assert call({**first, "id": "packet", "path": None})["found"] == {"packet": "timeout"}
        for item in held:
            item.close()


def test_a_named_control_must_answer(call: Any, serve: Any) -> None:
    server = serve(tls=False)
    target = {"id": "x", "address": "127.0.0.1", "port": free_port()}
    result = call(target, control={"address": "127.0.0.1", "port": server.port})
    assert result["control"] is True and result["controls"] == {"4": f"127.0.0.1 port {server.port}", "6": ""}
    result = call(target, control={"address": "127.0.0.1", "port": free_port()})
    assert result["control"] is False and result["controls"] == {"4": "", "6": ""}


def test_each_family_needs_its_own_control(call: Any, serve: Any) -> None:
    server = serve(tls=False, family=socket.AF_INET6)
    target = {"id": "x", "address": "::1", "port": free_port()}
    named = {"address": "127.0.0.1", "address6": "::1", "port": server.port}
    assert call(target, control=named)["controls"] == {"4": "", "6": f"::1 port {server.port}"}


def test_without_a_named_control_an_admitted_cell_is_one(call: Any, serve: Any) -> None:
    server = serve(tls=False)
    result = call(cell("x", server, path=None), {"id": "y", "address": "127.0.0.1", "port": free_port()})
    assert result["controls"] == {"4": f"127.0.0.1 port {server.port}", "6": ""}


def test_who_reaches_nothing_reaches_itself(call: Any) -> None:
    result = call({"id": "x", "address": "127.0.0.1", "port": free_port()})
    assert result["controls"] == {"4": "itself", "6": ""}


def test_listening_sockets_of_this_host(call: Any, serve: Any) -> None:
    four, six = serve(tls=False), serve(tls=False, family=socket.AF_INET6)
    result = call()
    assert {f"127.0.0.1 {four.port}", f"::1 {six.port}"} <= set(result["listening"])
    assert f"127.0.0.1 {free_port()}" not in result["listening"]


def test_the_cells_of_a_plan_are_taken_as_they_are(call: Any) -> None:
    """Every key that the compiler writes is an option of the module."""
    keys = ("destination", "family", "protocol", "identity", "client", "certificate", "path", "expect", "rule")
    values: tuple[Any, ...] = ("gpu1", 4, "tcp", "none", None, None, None, "closed", "deny-input")
    made = {"id": "x", "address": "127.0.0.1", "port": free_port(), **dict(zip(keys, values))}
    assert call(made)["found"] == {"x": "refused"}


def test_tls_clients_are_made_once_and_before_any_clock_runs(
    call: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, good = serve(tls=False), serve("200")
    connect, client_context, done = reach.connect, reach.client_context, list[str]()

    async def connects(*arguments: Any) -> Any:
        done.append("connection")
        return await connect(*arguments)

    def makes(directory: str | None) -> ssl.SSLContext:
        done.append(Path(directory).name if directory else "none")
        return client_context(directory)

    monkeypatch.setattr(reach, "connect", connects)
    monkeypatch.setattr(reach, "client_context", makes)
    asked = [cell(f"{client} {number}", good, client) for client in ("portal", "") for number in range(3)]
    found = call(cell("plain", plain, path=None), *asked)["found"]
    assert found["plain"] == "open" and found["portal 2"] == "status 200"
    assert sorted(done[:2]) == ["connector-portal", "none"]
    assert done[2:] == ["connection"] * 7


@pytest.mark.parametrize("answers", [True, False])
def test_a_host_that_stands_still_is_no_silence_of_the_other_side(answers: bool) -> None:
    """The process gets no processor for longer than the timeout; meanwhile the answer came, or did not."""

    async def standing_still() -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()

        async def wait() -> str:
            said = await answer
            for _turn in range(3):  # a handshake takes some turns of the loop
                await asyncio.sleep(0)
            return said

        if answers:
            threading.Timer(0.05, loop.call_soon_threadsafe, (answer.set_result, "answer")).start()
        loop.call_soon(time.sleep, 0.4)
        return str(await reach.within(0.2, wait()))

    if answers:
        assert asyncio.run(standing_still()) == "answer"
    else:
        with pytest.raises(TimeoutError):
            asyncio.run(standing_still())
