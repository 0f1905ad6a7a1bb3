# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a master's answer to `show proc` says of a reload. The texts are from HAProxy 2.6.12."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from ansible_collections.moat.inference.plugins.module_utils import connector_reload as reload

HEAD = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n"
MASTER = "215             master          {} [failed: {}]   0d00h01m48s     2.6.12-1+deb12u4\n"
WORKER = "{}             worker          {}               0d00h00m04s     2.6.12-1+deb12u4\n"


def answer(reloads: int, failed: int, workers: list[int], old: list[int] | None = None) -> str:
    text = HEAD + MASTER.format(reloads, failed) + "# workers\n"
    text += "".join(WORKER.format(pid, 0) for pid in workers)
    if old:
        text += "# old workers\n" + "".join(WORKER.format(pid, 1) for pid in old)
    return text + "# programs\n\n"


def test_old_workers_are_told_from_current_ones() -> None:
    assert reload.parse(answer(1, 0, [780], [217])) == reload.State(1, 0, frozenset({780}))


def test_a_broken_answer_is_no_answer() -> None:
    assert reload.parse("") is None
    assert reload.parse(HEAD) is None


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
    before = reload.parse(answer(0, 0, [217]))
    assert before is not None
    assert reload.outcome(before, reload.parse(now) if now else None) is expected


def test_a_reload_after_one_that_failed_can_succeed() -> None:
    before = reload.parse(answer(1, 1, [217]))
    assert before is not None
    assert reload.outcome(before, reload.parse(answer(2, 0, [800], [217]))) is True
    assert reload.outcome(before, reload.parse(answer(2, 2, [217]))) is False


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
    ("after", "status"), [(answer(1, 0, [780], [217]), 0), (answer(1, 1, [217]), 1), (answer(0, 0, [217]), 1)]
)
def test_the_status_is_that_of_the_reload(tmp_path: Path, after: str, status: int) -> None:
    path = str(tmp_path / "m")
    master = Master(path, after)
    master.start()
    kept = signal.signal(signal.SIGUSR2, master.reload)
    try:
        assert reload.main([path, str(os.getpid()), "0.5"]) == status
    finally:
        signal.signal(signal.SIGUSR2, kept)
        master.listener.close()


def test_a_master_that_does_not_answer_gets_no_signal(tmp_path: Path) -> None:
    assert reload.main([str(tmp_path / "none"), "0"]) == 1
    assert reload.main([]) == 2
