from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gateway_reload


class Admin:
    """HAProxy's admin socket: answers `show info` with a process id that a test may change."""

    def __init__(self, path: Path) -> None:
        self.pid = "100"
        self.path = str(path)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(self.path)
        self._server.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _address = self._server.accept()
            except OSError:
                return
            with client:
                assert client.recv(100) == b"show info\n"
                client.sendall(f"Name: HAProxy\nPid: {self.pid}\nUptime_sec: 3\n".encode())

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    server = Admin(tmp_path / "admin.sock")
    yield server
    server.close()


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The status that the check of the configuration ends with."""
    status = [0]

    def run(argv: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, status[0], "unknown keyword" if status[0] else "")

    monkeypatch.setattr(gateway_reload.subprocess, "run", run)
    return status


def test_waits_for_the_new_process(admin: Admin, checked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (7, signal.SIGUSR2)
        threading.Timer(0.3, setattr, (admin, "pid", "101")).start()

    monkeypatch.setattr(os, "kill", kill)
    assert gateway_reload.reload(7, path=admin.path, patience=5) == ""


def test_says_when_the_old_process_stays(admin: Admin, checked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    assert "process 100 still serves" in gateway_reload.reload(7, path=admin.path, patience=0.3)


def test_signals_nobody_when_the_configuration_is_refused(
    admin: Admin, checked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked[0] = 1
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail("signalled"))
    assert "unknown keyword" in gateway_reload.reload(7, path=admin.path)


def test_no_socket_is_no_answer(tmp_path: Path) -> None:
    assert gateway_reload.ask(str(tmp_path / "none.sock"), "show info") == ""
    assert gateway_reload.worker("Name: HAProxy\n") == ""
