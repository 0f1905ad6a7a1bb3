# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module's hands on a host that is a directory: systemd is recorded, every file is real."""

from __future__ import annotations

import getpass
import grp
import os

import pytest
from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils import egress_client as client
from ansible_collections.moat.inference.plugins.module_utils import egress_client_host as host
from ansible_collections.moat.inference.plugins.module_utils import egress_client_resolv as resolv
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result

OPTIONS = {
    "proxies": ["http://10.0.0.1:3128", "http://10.0.0.2:3128"],
    "no_proxy": ["localhost"],
    "resolvers": ["10.0.0.53"],
    "domain": "inference.internal",
    "units": ["backup.service"],
    "targets": ["apt", "pip", "environment"],
}
NONE = {**OPTIONS, "proxies": [], "resolvers": [], "units": []}
OWNER = {"owner": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}


class Systemd:
    """Stands for Runner: no unit is there but those given, all of them running since ever."""

    def __init__(self, running=(), fail=""):
        self.calls, self.running, self.fail = [], running, fail

    def run(self, argv, stdin=None, ok=(0,), env=None, cwd=None):
        self.calls.append(list(argv))
        text = ""
        if argv[1] == "show":
            states = ("active\nActiveEnterTimestampMonotonic=1\nLoadState=loaded", "inactive\nLoadState=not-found")
            text = (
                "\n\n".join(f"ActiveState={states[name not in self.running]}" for name in argv[argv.index("--") + 1 :])
                + "\n"
            )
        rc = int(bool(self.fail) and self.fail in " ".join(argv))
        result = Result(tuple(argv), rc, text, "it says no")
        if rc not in ok:
            raise CommandError(result)
        return result

    def acted(self):
        return [call[1:] for call in self.calls if call[1] != "show"]


@pytest.fixture
def etc(tmp_path, monkeypatch):
    for name in ("DIRECTORY", "ENVIRONMENT", "STATE", "HOSTS", "APT", "PIP", "DNF", "DOCKER_JSON", "PODMAN"):
        monkeypatch.setattr(client, name, str(tmp_path) + getattr(client, name))
    for name in ("RESOLV", "RESOLVED_DROPIN", "DHCLIENT_HOOKS"):
        monkeypatch.setattr(resolv, name, str(tmp_path) + getattr(resolv, name))
    monkeypatch.setattr(client, "dropin", lambda unit: f"{tmp_path}/etc/systemd/system/{unit}.d/moat-egress.conf")
    monkeypatch.setattr(
        client, "unit_of", lambda path: path.split("/")[-2][:-2] if path.endswith("/moat-egress.conf") else ""
    )
    monkeypatch.setattr(host, "present", lambda target: True)
    monkeypatch.setattr(host.shutil, "which", lambda *a, **k: None)
    monkeypatch.setattr(resolv, "ask", lambda address, domain, port=53: "")
    plain = host.files.FileState
    monkeypatch.setattr(
        host.files, "FileState",
        lambda kind, content=None, mode=None, owner=None, group=None: plain(kind, content, mode, owner and OWNER["owner"], group and OWNER["group"]),
    )  # fmt: skip
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (tmp_path / "etc/pip.conf").write_text("# mine\n[global]\ntimeout = 6\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/stub").write_text("nameserver 127.0.0.53\n")
    return tmp_path


def tree(root):
    found = {}
    for directory, _names, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            state = files.read_state(path)
            found[os.path.relpath(path, root)] = state.content if state.kind == "file" else (state.kind, state.content)
    return found


def work(options, systemd=None, check=False):
    return host.Work(systemd or Systemd(), options, check)


def test_it_comes_stays_and_goes(etc):
    os.symlink("../run/stub", etc / "etc/resolv.conf")
    # where the link leads is known by name
    os.rename(etc / "run", etc / "systemd")
    os.makedirs(etc / "systemd/resolve")
    (etc / "systemd/resolve/stub").write_text("nameserver 127.0.0.53\n")
    os.unlink(etc / "etc/resolv.conf")
    os.symlink("../systemd/resolve/stub", etc / "etc/resolv.conf")
    before = tree(etc)
    first = work(OPTIONS)
    assert first.changed and tree(etc) == before
    first.apply()
    after = tree(etc)
    assert b"nameserver 10.0.0.53" in after["etc/resolv.conf"]
    assert b"10.0.0.1 moat-egress-proxy\n10.0.0.2 moat-egress-proxy\n" in after["etc/hosts"]
    assert b"proxy = http://moat-egress-proxy:3128" in after["etc/pip.conf"]
    again = work(OPTIONS)
    assert not again.changed and not again.diff()
    work(NONE).apply()
    assert tree(etc) == before
    assert not work(NONE).changed


def test_a_killed_run_is_finished_by_the_next(etc, monkeypatch):
    (etc / "etc/resolv.conf").write_text("nameserver 9.9.9.9\n")
    before, real = tree(etc), files.write

    class Killed(BaseException):
        pass

    def dying(steps):
        written = []

        def write(path, state):
            if len(written) == steps:
                raise Killed
            written.append(path)
            real(path, state)

        return write

    for steps in range(1, 9):
        monkeypatch.setattr(host.files, "write", dying(steps))
        try:
            work(OPTIONS).apply()
        except Killed:
            monkeypatch.setattr(host.files, "write", real)
            work(OPTIONS).apply()
        monkeypatch.setattr(host.files, "write", real)
        assert not work(OPTIONS).changed
        work(NONE).apply()
        assert tree(etc) == before


def test_a_resolver_that_does_not_answer_is_refused_and_nothing_is_touched(etc, monkeypatch):
    monkeypatch.setattr(resolv, "ask", lambda address, domain, port=53: "gives no answer (time is over)")
    before = tree(etc)
    with pytest.raises(client.Refused, match=r"the resolver 10.0.0.53 gives no answer .* Nothing was touched"):
        work(OPTIONS)
    assert tree(etc) == before
    assert "10.0.0.53 gives no answer" in work(OPTIONS, check=True).warnings[0]
    own = work({**OPTIONS, "resolvers": ["127.0.0.1"]})
    assert own.unanswered == ["127.0.0.1"] and own.resolv


def test_a_resolver_in_force_is_not_asked_again(etc, monkeypatch):
    work(OPTIONS).apply()
    monkeypatch.setattr(resolv, "ask", lambda address, domain, port=53: "gives no answer")
    assert not work(OPTIONS).changed


def test_units_that_run_are_restarted_when_their_environment_changes(etc):
    systemd = Systemd(["backup.service", "docker.service", "systemd-resolved.service"])
    options = {**OPTIONS, "targets": [*OPTIONS["targets"], "docker"]}
    first = work(options, systemd)
    first.apply()
    assert [call for call in systemd.acted() if "restart" in call[0]] == [
        ["restart", "--", "systemd-resolved.service"],
        ["try-restart", "--", "backup.service"],
    ]
    assert "docker.service has its proxy as planned after its next restart" in first.warnings[0]
    assert work(NONE, systemd).actions == [("restart", "systemd-resolved.service"), ("try-restart", "backup.service")]


def test_a_unit_that_was_started_before_its_environment_is_still_restarted(etc):
    work(OPTIONS).apply()
    assert work(OPTIONS, Systemd(["backup.service"])).actions == [("try-restart", "backup.service")]


def test_a_unit_that_does_not_start_takes_everything_back(etc):
    systemd = Systemd(["backup.service"], fail="try-restart")
    before = tree(etc)
    with pytest.raises(RuntimeError, match="restored completely"):
        work(OPTIONS, systemd).apply()
    assert tree(etc) == before and not (etc / "etc/apt").exists()
    assert systemd.acted()[-1] == ["restart", "--", "backup.service"]


def test_another_writer_of_resolv_conf_is_refused(etc):
    with pytest.raises(client.Refused, match="dns=none"):
        work(OPTIONS, Systemd(["NetworkManager.service"]))
    assert work({**OPTIONS, "resolvers": []}, Systemd(["NetworkManager.service"])).changed


def test_what_is_there_as_something_else_is_refused(etc):
    os.makedirs(client.APT)
    with pytest.raises(client.Refused, match="move it away"):
        work(OPTIONS)


def test_the_record_that_cannot_be_read_is_refused(etc):
    os.makedirs(client.DIRECTORY)
    with open(client.STATE, "w", encoding="utf-8") as handle:
        handle.write("{ broken")
    with pytest.raises(client.Refused, match="cannot be read"):
        work(OPTIONS)


def test_the_diff_shows_the_link_and_not_the_record(etc):
    os.makedirs(etc / "systemd/resolve")
    (etc / "systemd/resolve/stub").write_text("")
    os.symlink("../systemd/resolve/stub", etc / "etc/resolv.conf")
    shown = {entry["before_header"].partition(" ")[0]: entry for entry in work(OPTIONS).diff()}
    assert "leads to ../systemd/resolve/stub" in shown[resolv.RESOLV]["before"]
    assert client.STATE not in shown
    assert deploy.Plan().changed is False
