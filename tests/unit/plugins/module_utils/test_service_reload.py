# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a service shows of a reload. The answers to `show proc` are from HAProxy 2.6.12."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.moat.inference.plugins.module_utils import service_reload

HEAD = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n"
MASTER = "215             master          {} [failed: {}]   0d00h01m48s     2.6.12-1+deb12u4\n"
WORKER = "{}             worker          {}               0d00h00m04s     2.6.12-1+deb12u4\n"


def answer(reloads: int, failed: int, workers: list[int], old: Sequence[int] = ()) -> str:
    text = HEAD + MASTER.format(reloads, failed) + "# workers\n"
    text += "".join(WORKER.format(pid, 0) for pid in workers)
    if old:
        text += "# old workers\n" + "".join(WORKER.format(pid, 1) for pid in old)
    return text + "# programs\n\n"


def test_old_workers_are_told_from_current_ones() -> None:
    assert service_reload.parse(answer(1, 0, [780], [217])) == service_reload.State(1, 0, frozenset({780}))


def test_a_broken_answer_is_no_answer() -> None:
    assert service_reload.parse("") is None
    assert service_reload.parse(HEAD) is None


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (None, None),
        (answer(0, 0, [217]), None),
        (answer(1, 0, []), None),
        (answer(1, 0, [780], [217]), True),
        (answer(1, 1, [], [217]), False),
        (answer(1, 1, [217]), False),
    ],
)
def test_the_outcome_is_known_once_others_serve_or_the_reload_failed(now: str | None, expected: bool | None) -> None:
    before = service_reload.parse(answer(0, 0, [217]))
    assert before is not None
    assert service_reload.took_over(before, service_reload.parse(now) if now else None) is expected


def test_a_reload_after_one_that_failed_can_succeed() -> None:
    before = service_reload.parse(answer(1, 1, [217]))
    assert before is not None
    assert service_reload.took_over(before, service_reload.parse(answer(2, 0, [800], [217]))) is True
    assert service_reload.took_over(before, service_reload.parse(answer(2, 2, [217]))) is False


class Master(threading.Thread):
    """A master on a real socket that is reloaded by a real signal to this process."""

    def __init__(self, path: str, after: str) -> None:
        super().__init__(daemon=True)
        self.current, self.after = answer(0, 0, [217]), after
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()

    def reload(self, _number: int, _frame: object) -> None:
        self.current = self.after

    def run(self) -> None:
        while True:
            try:
                connection, _address = self.listener.accept()
            except OSError:
                return
            with connection:
                if connection.makefile().read() == "show proc\n":
                    connection.sendall(self.current.encode())


@pytest.mark.parametrize(
    ("after", "status", "words"),
    [
        (answer(1, 0, [780], [217]), 0, ""),
        (answer(1, 1, [217]), 1, "was refused"),
        (answer(0, 0, [217]), 1, "was not in use after"),
    ],
)
def test_the_status_is_that_of_the_reload(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: str,
    status: int,
    words: str,
) -> None:
    service = dataclasses.replace(service_reload.SERVICES["haproxy"], patience=0.5)
    monkeypatch.setitem(service_reload.SERVICES, "haproxy", service)
    path = str(tmp_path / "m")
    master = Master(path, after)
    master.start()
    kept = signal.signal(signal.SIGUSR2, master.reload)
    try:
        assert service_reload.main(["haproxy", path, str(os.getpid())]) == status
    finally:
        signal.signal(signal.SIGUSR2, kept)
        master.listener.close()
    assert words in capsys.readouterr().err


def test_a_master_that_does_not_answer_gets_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail("signalled"))
    assert service_reload.main(["haproxy", str(tmp_path / "none"), "1"]) == 1
    assert service_reload.main(["nginx", str(tmp_path / "none"), "1"]) == 2
    assert service_reload.main([]) == 2


class Authority:
    """An authority that serves one certificate after another, and a clock that only sleep moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *certificates: str) -> None:
        self.certificates, self.sent, self.now = list(certificates), [], 0.0
        self.service = dataclasses.replace(service_reload.SERVICES["step-ca"], look=self.look)
        monkeypatch.setattr(os, "kill", lambda pid, number: self.sent.append((pid, number)))
        monkeypatch.setattr(service_reload.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(service_reload.time, "sleep", self.sleep)

    def look(self, _listener: str) -> str:
        return self.certificates.pop(0) if len(self.certificates) > 1 else self.certificates[0]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def reload(self) -> str:
        return service_reload.reload(self.service, "10.0.0.1:9443", 7)


def test_a_reload_is_over_when_another_certificate_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(monkeypatch, "old", "old", "", "new")
    assert authority.reload() == "" and authority.sent == [(7, signal.SIGHUP)]


@pytest.mark.parametrize("after", ["old", ""])
def test_a_reload_that_is_not_taken_fails_in_time(monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    authority = Authority(monkeypatch, "old", after)
    assert "was not in use after 15 s" in authority.reload()
    assert authority.now <= authority.service.patience + 1


def test_an_authority_that_comes_back_with_the_reload_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Authority(monkeypatch, "", "", "new").reload() == ""


def test_nobody_there_is_no_certificate(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert service_reload.served(f"127.0.0.1:{unused.getsockname()[1]}") == ""


@pytest.mark.parametrize(
    ("listener", "pair"), [("10.0.0.1:9443", ("10.0.0.1", 9443)), ("[fd00::1]:443", ("fd00::1", 443))]
)
def test_listeners(listener: str, pair: tuple[str, int]) -> None:
    assert service_reload.split(listener) == pair
