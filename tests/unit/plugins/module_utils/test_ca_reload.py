# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import signal
import subprocess

import pytest
from ansible_collections.moat.inference.plugins.module_utils import ca_check, ca_reload


class World:
    """An authority that serves one certificate after another, and a clock that only sleep moves."""

    def __init__(self, *served):
        self.served, self.sent, self.now = list(served), [], 0.0

    def look(self):
        return self.served.pop(0) if len(self.served) > 1 else self.served[0]

    def send(self, pid, number):
        self.sent.append((pid, number))

    def sleep(self, seconds):
        self.now += seconds

    def reload(self):
        return ca_reload.reload(7, self.look, self.send, lambda: self.now, self.sleep)


def test_a_reload_is_over_when_another_certificate_is_served():
    world = World("old", "old", "", "new")
    assert world.reload() == 0 and world.sent == [(7, signal.SIGHUP)]


def test_a_reload_that_is_not_taken_fails_in_time():
    world = World("old")
    assert world.reload() == 1 and world.now <= ca_reload.PATIENCE + 1


def test_an_authority_that_stops_answering_fails():
    assert World("old", "").reload() == 1


@pytest.mark.parametrize(
    ("listener", "pair"), [("10.0.0.1:9443", ("10.0.0.1", 9443)), ("[fd00::1]:443", ("fd00::1", 443))]
)
def test_listeners(listener, pair):
    assert ca_reload.split(listener) == pair


def test_the_check_loads_the_candidate_without_the_database_and_shows_no_token(tmp_path, monkeypatch, capfdbinary):
    seen = {}

    def run(argv, **options):
        with open(argv[argv.index("--ca-config") + 1], encoding="utf-8") as handle:
            seen.update(config=json.load(handle), stdout=options["stdout"], argv=argv)
        return subprocess.CompletedProcess(argv, 1, None, b"cannot parse\n")

    monkeypatch.setattr(subprocess, "run", run)
    candidate = tmp_path / "ca.json"
    candidate.write_text(json.dumps({"dnsNames": ["ca1.ca.inference.internal"], "db": {"type": "badgerv2"}}))
    assert ca_check.main(str(candidate), "/d") == 1
    assert "db" not in seen["config"] and seen["stdout"] == subprocess.DEVNULL
    assert seen["argv"][-2:] == ["--", "ca1.ca.inference.internal"]
    assert not [word for word in seen["argv"] if "password" in word and not word.startswith(("-", "/"))]
