"""What a service is asked about the certificate that it serves, and what follows from the answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.moat.inference.plugins.module_utils import certificate, certificate_served, certificate_store
from ansible_collections.moat.inference.plugins.module_utils.certificate_served import Service
from ansible_collections.moat.inference.plugins.module_utils.certificate_store import CertificateError

LISTING = "# filename\n/etc/moat/tls/gateway/bundle.pem\n*/etc/moat/tls/gateway/next.pem\n/etc/moat/tls/gateway-2/bundle.pem\n"
# as HAProxy 2.6 answers
SHOWN = """Filename: /etc/moat/tls/gateway/bundle.pem
Status: Used
Serial: 0CC0A1772993F19F49F5ADAD115C2D68
notBefore: Nov 24 10:26:00 2026 GMT
Subject: /CN=gpu1.gateway.inference.internal
"""
LISTENERS = """LISTEN 0      4096   100.120.0.11:8443 0.0.0.0:* cgroup:/machine/abc/system.slice/moat-gateway.service
LISTEN 0      4096   [fd00:200::1]%moat0:8443 [::]:* cgroup:/system.slice/moat-gateway.service
LISTEN 0      128      0.0.0.0:22   0.0.0.0:* cgroup:/system.slice/ssh.service
LISTEN 0      4096           *:7443       *:* cgroup:/system.slice/moat-gateway.service
LISTEN 0      4096        [::]:7444    [::]:* cgroup:/system.slice/moat-gateway.service
LISTEN 0      4096        [::]:7445    [::]:* cgroup:/system.slice/not-moat-gateway.service
LISTEN 0      4096        [::]:7446    [::]:*
"""
REQUEST = certificate.Request("gateway", "gpu1", ("gpu1.x",), (), 86400, "moat-gateway.service")
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def test_the_listing_tells_this_certificate_from_others() -> None:
    assert certificate_served.parse_listing(LISTING, "/etc/moat/tls/gateway") == [
        "/etc/moat/tls/gateway/bundle.pem",
        "/etc/moat/tls/gateway/next.pem",
    ]
    assert certificate_served.parse_listing("Unknown command\n", "/etc/moat/tls/gateway") == []


def test_the_serial_is_read() -> None:
    assert certificate_served.parse_serial(SHOWN) == 0xCC0A1772993F19F49F5ADAD115C2D68
    assert certificate_served.parse_serial("Can't find the certificate!\n") is None


def test_listeners_of_the_unit_alone_are_found() -> None:
    assert certificate_served.parse_listeners(LISTENERS, "moat-gateway.service") == [
        ("100.120.0.11", 8443),
        ("fd00:200::1", 8443),
        ("127.0.0.1", 7443),
        ("::1", 7444),
    ]


def test_addresses() -> None:
    assert certificate_served.parse_address("[fd00::1]:8443") == ("fd00::1", 8443)
    assert certificate_served.parse_address("10.0.0.1:8443") == ("10.0.0.1", 8443)


class Statistics:
    """A Unix socket that answers like HAProxy's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.serial = 1
        self.listed = True
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _address = self._listener.accept()
            with client:
                if client.recv(1000).decode().startswith("show ssl cert /"):
                    client.sendall(f"Serial: {self.serial:02X}\n".encode())
                else:
                    client.sendall(
                        f"{self.path.parent}/tls/gateway/bundle.pem\n".encode() if self.listed else b"# filename\n"
                    )


@pytest.fixture
def statistics(tmp_path: Path) -> Statistics:
    return Statistics(tmp_path / "admin.sock")


@pytest.fixture
def build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Service, list[str], list[str]]]]:
    """A service whose certificate on disk has the serial 2; commands are recorded, reload may do something."""

    def make(
        active: str = "active", on_reload: Callable[[], None] = lambda: None, request: certificate.Request = REQUEST
    ) -> tuple[Service, list[str], list[str]]:
        said: list[str] = []
        commands: list[str] = []

        def command(*argv: str) -> str:
            if argv[1] == "show":
                return active + "\n"
            if argv[0] == "ss":
                return LISTENERS.replace("moat-gateway", "other")
            commands.append(" ".join(argv))
            on_reload()
            return ""

        store = certificate_store.Store(str(tmp_path / "tls"))
        found = certificate.Found({"cert.pem": PEM}, certificate.Certificate(2, "", frozenset(), 0, 1, ""), "", True)
        monkeypatch.setattr(store, "read", lambda _name: found)
        monkeypatch.setattr(certificate_served, "command", command)
        monkeypatch.setattr(certificate_served, "PATIENCE", 0.6)
        service = Service(request, store, said.append)
        service.socket = str(tmp_path / "admin.sock")
        return service, said, commands

    yield make


RELOAD = ["systemctl try-reload-or-restart -- moat-gateway.service"]


def test_a_reload_that_brings_the_certificate_is_good(
    build: Callable[..., tuple[Service, list[str], list[str]]], statistics: Statistics
) -> None:
    service, said, commands = build(on_reload=lambda: setattr(statistics, "serial", 2))
    service.settle(renewed=True)
    assert commands == RELOAD
    assert said == ["moat-gateway.service was reloaded and serves the new certificate"]


def test_a_reload_that_does_not_is_an_error(
    build: Callable[..., tuple[Service, list[str], list[str]]], statistics: Statistics
) -> None:
    service, _said, commands = build()
    with pytest.raises(CertificateError, match="was reloaded but still serves another certificate"):
        service.settle(renewed=True)
    assert commands == RELOAD


def test_an_old_certificate_is_seen_without_a_renewal(
    build: Callable[..., tuple[Service, list[str], list[str]]], statistics: Statistics
) -> None:
    service, _said, commands = build(on_reload=lambda: setattr(statistics, "serial", 2))
    service.settle(renewed=False)
    assert commands == RELOAD


def test_the_right_certificate_needs_no_reload(
    build: Callable[..., tuple[Service, list[str], list[str]]], statistics: Statistics
) -> None:
    statistics.serial = 2
    for renewed in (True, False):
        service, _said, commands = build()
        service.settle(renewed)
        assert commands == []


def test_a_service_that_is_not_running_is_left_alone(
    build: Callable[..., tuple[Service, list[str], list[str]]],
) -> None:
    for state in ("inactive", "failed", ""):
        service, said, commands = build(active=state)
        service.settle(renewed=True)
        assert commands == []
        assert "is not running" in said[0]


def test_one_that_cannot_be_asked_is_reloaded_after_a_renewal_only(
    build: Callable[..., tuple[Service, list[str], list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_served, "UNASKED_PATIENCE", 0)
    service, said, commands = build()
    service.settle(renewed=False)
    assert commands == []
    service.settle(renewed=True)
    assert commands == RELOAD
    assert "no socket that could be asked" in said[0]


def test_one_that_does_not_use_it_yet_is_left_alone(
    build: Callable[..., tuple[Service, list[str], list[str]]], statistics: Statistics
) -> None:
    statistics.listed = False
    service, said, commands = build()
    service.settle(renewed=True)
    assert commands == []
    assert said == ["moat-gateway.service has not been configured to use it yet"]


def test_a_dead_socket_is_an_error(build: Callable[..., tuple[Service, list[str], list[str]]], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "admin.sock"))
    service, _said, commands = build()
    with pytest.raises(CertificateError, match="does not answer"):
        service.settle(renewed=False)
    assert commands == RELOAD


def test_without_a_unit_nothing_is_done(build: Callable[..., tuple[Service, list[str], list[str]]]) -> None:
    service, said, commands = build(request=certificate.Request("x", "x", ("x",), (), 86400))
    service.settle(renewed=True)
    assert (said, commands) == ([], [])


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(CertificateError, match="ls /nonexistent failed"):
        certificate_served.command("ls", "/nonexistent")
    with pytest.raises(CertificateError, match="no-such-program"):
        certificate_served.command("no-such-program")
