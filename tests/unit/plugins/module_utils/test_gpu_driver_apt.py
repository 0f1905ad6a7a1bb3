"""What apt's answers mean, on answers of apt 2.6 for a repository made for tests, and the private state that it is asked with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_apt as apt
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_inputs as inputs
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_plan as plan
from ansible_collections.moat.inference.plugins.module_utils.run import Result, Runner
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.gpu_driver_samples import (
    NAMES,
    VERSION,
    host,
    options,
)

WANTED = inputs.wanted(options(toolkit__enabled=False), host())
URL = "http://127.0.0.1:8580/vendor"
MADISON = """\
nvidia-driver-cuda | 580.182.01-1 | http://127.0.0.1:8580/vendor  Packages
nvidia-driver-cuda | 580.178.04-1 | http://127.0.0.1:8580/vendor  Packages
nvidia-driver-cuda | 580.173.02-1 | http://127.0.0.1:8580/vendor  Packages
  libcuda1 | 580.178.04-2 | http://deb.debian.org/debian bookworm/non-free amd64 Packages
  libcuda1 | 580.178.04-1 | http://127.0.0.1:8580/vendor  Packages
      dkms | 3.0.10-8 | http://deb.debian.org/debian bookworm/main Sources
"""
SIMULATED = """\
NOTE: This is only a simulation!
      apt-get needs root privileges for real execution.
Reading package lists...
The following packages will be REMOVED:
  nvidia-kernel-dkms
Remv nvidia-kernel-dkms [580.173.02-1]
Inst firmware-nvidia-gsp [580.173.02-1] (580.178.04-1 localhost [amd64]) []
Inst libcuda1:amd64 [580.173.02-1] (580.178.04-1 localhost [amd64])
Inst dkms (3.0.10-8 Debian:12.5/stable [all])
Conf libcuda1 (580.178.04-1 localhost [amd64])
Purg nvidia-old [1.0]
"""
UNMET = """\
The following packages have unmet dependencies:
 nvidia-driver-cuda : Depends: libnvidia-ml1 (= 580.178.04-1) but 580.173.02-1 is to be installed
"""


def offered(*names: str, version: str = f"{VERSION}-1") -> dict[str, list[tuple[str, str]]]:
    return {name: [(version, URL)] for name in names}


def test_versions_on_offer_are_read_and_sources_are_not() -> None:
    found = apt.parse_madison(MADISON)
    assert [version for version, _url in found["nvidia-driver-cuda"]] == [
        "580.182.01-1",
        "580.178.04-1",
        "580.173.02-1",
    ]
    assert found["libcuda1"][1] == ("580.178.04-1", URL) and "dkms" not in found


def test_the_exact_version_is_chosen_from_the_repository_that_was_named() -> None:
    found = apt.parse_madison(MADISON)
    assert apt.choose(WANTED, found, [f"{URL}/"])["libcuda1"] == "580.178.04-1"
    assert apt.choose(WANTED, found, [])["libcuda1"] == "580.178.04-2"
    assert apt.choose(WANTED, found, [URL])["nvidia-driver-cuda"] == "580.178.04-1"
    assert set(apt.choose(WANTED, found, [])) == {"nvidia-driver-cuda", "libcuda1"}


def test_the_toolkit_and_what_has_a_version_of_its_own_are_chosen_by_that() -> None:
    wanted = inputs.Wanted(VERSION, (), ("nvidia-persistenced",), "1.20.1")
    found = {
        "nvidia-persistenced": [("535.171.04-1", URL)],
        inputs.TOOLKIT_PACKAGE: [("1.21.0-1", URL), ("1.20.1-1", URL)],
    }
    assert apt.choose(wanted, found, []) == {"nvidia-persistenced": "535.171.04-1", inputs.TOOLKIT_PACKAGE: "1.20.1-1"}
    assert apt.choose_siblings(WANTED, {"libnvidia-ml1": [("580.182.01-1", URL), (f"{VERSION}-1", URL)], "x": []}) == {
        "libnvidia-ml1": f"{VERSION}-1"
    }


def test_each_missing_package_is_named_with_what_there_is() -> None:
    wanted = inputs.wanted(options(fabric_manager="always"), host())
    there = {**offered(*NAMES), "nvidia-fabricmanager": [("580.173.02-1", URL)]}
    faults = apt.missing_faults(
        wanted, apt.choose(wanted, there, []), there, ["nvidia-fabricmanager", "libnvidia-nscq"]
    )
    assert [(item["key"], item["fault"]) for item in faults] == [
        ("fabric_manager", f"nvidia-fabricmanager {VERSION} is not to be had: there are 580.173.02-1"),
        ("fabric_manager", f"libnvidia-nscq {VERSION} is not to be had: there is no package of that name"),
        ("packages", "nvidia-container-toolkit-base 1.20.1 is not to be had: there is no package of that name"),
    ]
    assert "toolkit.enabled to false" in faults[2]["remedy"]
    assert apt.missing_faults(WANTED, apt.choose(WANTED, there, []), there, []) == []


def test_a_simulation_is_read() -> None:
    found = apt.parse_simulation(SIMULATED)
    assert found.changed == {
        "firmware-nvidia-gsp": ("580.173.02-1", "580.178.04-1"),
        "libcuda1": ("580.173.02-1", "580.178.04-1"),
        "dkms": ("", "3.0.10-8"),
    }
    assert found.removed == ("nvidia-kernel-dkms", "nvidia-old") and found.refusal == ""
    assert apt.simulation_faults(found, WANTED) == []
    assert apt.requests({"nvidia-driver-cuda": "580.178.04-1"}, found, WANTED) == {
        "nvidia-driver-cuda": "580.178.04-1",
        "firmware-nvidia-gsp": "580.178.04-1",
        "libcuda1": "580.178.04-1",
    }


@pytest.mark.parametrize(
    ("simulation", "words"),
    [
        (apt.Simulation(refusal="held broken packages"), "cannot do it in one transaction: held broken packages"),
        (apt.Simulation(removed=("nvidia-cuda-toolkit", "gdm3", "libcuda1")), "would remove nvidia-cuda-toolkit, gdm3"),
        (apt.Simulation({"dkms": ("2.8-1", "3.0-1")}), "would take other packages along: dkms 2.8-1 to 3.0-1"),
        (
            apt.Simulation({"linux-image-6.1.0-50-amd64": ("", "6.1.170-1")}),
            "would bring another kernel: linux-image-6.1.0-50-amd64",
        ),
        (
            apt.Simulation({"libnvidia-ml1": ("", "580.182.01-1")}),
            "another version would come along: libnvidia-ml1 580.182",
        ),
    ],
)
def test_what_must_not_happen_is_named(simulation: apt.Simulation, words: str) -> None:
    (fault,) = apt.simulation_faults(simulation, WANTED)
    assert fault["key"] == "packages" and words in fault["fault"]


def test_what_may_happen_is_not() -> None:
    fine = apt.Simulation(
        {
            "dkms": ("", "3.0-1"),
            "gcc": ("12", "12"),
            "linux-headers-6.1.0-50-amd64": ("", "6.1.170-1"),
            "linux-modules-nvidia-580-open-generic": ("", f"{VERSION}-1"),
            "nvidia-settings": ("", "535.171.04-1"),
            "libcuda1": ("", f"{VERSION}-1"),
        },
        ("nvidia-kernel-dkms", "libnvidia-container1"),
    )
    assert apt.simulation_faults(fine, WANTED) == []


def test_apts_own_words_are_kept_short_and_the_errors_come_first() -> None:
    told = apt.reason(
        Result(
            ("apt-get",), 100, UNMET, "W: no matter\nE: Unable to correct problems, you have held broken packages.\n"
        )
    )
    assert told.startswith("nvidia-driver-cuda : Depends: libnvidia-ml1 (= 580.178.04-1)")
    assert told.endswith("held broken packages.") and "no matter" not in told
    assert apt.reason(Result(("x",), 127, "", "")) == "status 127"
    assert len(apt.reason(Result(("x",), 1, "", "E: " + "x" * 5000))) == 1000


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("http://127.0.0.1:8580/vendor/", "127.0.0.1:8580_vendor"),
        ("https://m/a_b", "m_a%5fb"),
        ("file:/var/x", "_var_x"),
        ("file:///var/x/", "_var_x"),
    ],
)
def test_the_names_of_package_lists(url: str, prefix: str) -> None:
    assert apt.list_prefix(url) == prefix


class Recorder:
    """Stands for the module and remembers commands with their environment."""

    def __init__(self, answers: dict[str, tuple[int, str, str]] | None = None) -> None:
        self.ran: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.answers = answers or {}

    def run_command(self, argv: Sequence[str], environ_update: Any = None, **_options: Any) -> tuple[int, str, str]:
        self.ran.append(list(argv))
        self.environments.append(dict(environ_update))
        for word, answer in self.answers.items():
            if word in argv:
                return answer
        return 0, "", ""


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's configuration of apt."""
    place = tmp_path / "etc"
    for path, text in (
        ("apt.conf.d/zz-moat-egress.conf", 'Acquire::http::Proxy "http://proxy:3128";\n'),
        ("apt.conf", 'APT::Update::Post-Invoke { "touch /ruin"; };\n'),
        ("sources.list.d/debian.sources", "Types: deb\n"),
        ("sources.list.d/moat-gpu.sources", "Types: deb\n"),
        ("sources.list.d/old.list.save", "deb x\n"),
        ("preferences.d/mine", "Package: x\n"),
    ):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    monkeypatch.setattr(apt, "ETC", str(place))
    monkeypatch.setattr(plan, "SOURCES", f"{place}/sources.list.d")
    monkeypatch.setattr(plan, "KEYRINGS", f"{place}/keyrings")
    return place


def test_the_private_state_has_the_hosts_proxy_and_none_of_its_hooks(etc: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    private = apt.Apt(Runner(recorder), str(tmp_path / "private"))
    conf = tmp_path / "private" / "conf"
    assert (conf / "zz-moat-egress.conf").read_text() == (etc / "apt.conf.d" / "zz-moat-egress.conf").read_text()
    names = sorted(os.listdir(conf))
    assert names[-1] == "zzz-moat-private" and names[-3:-1] == ["zz-moat-egress.conf", "zzy-apt.conf"]
    assert "#clear APT::Update::Post-Invoke;\n" in (conf / "zzz-moat-private").read_text()
    assert sorted(os.listdir(tmp_path / "private" / "sources")) == ["debian.sources", "moat-gpu.sources"]
    private.offered(["libcuda1"])
    assert recorder.environments[0]["APT_CONFIG"] == str(tmp_path / "private" / "apt.conf")
    text = (tmp_path / "private" / "apt.conf").read_text()
    for word in ("Dir::State::lists", "Dir::Cache", "Dir::Etc::parts", "Dir::Etc::sourceparts"):
        assert f'{word} "{tmp_path}/private' in text


def test_files_in_the_private_state_take_the_place_of_the_hosts_and_leave_those_alone(
    etc: Path, tmp_path: Path
) -> None:
    private = apt.Apt(Runner(Recorder()), str(tmp_path / "private"))
    keyring, sources = f"{etc}/keyrings/moat-gpu.gpg", f"{etc}/sources.list.d/moat-gpu.sources"
    private.set_files(
        {
            keyring: b"key",
            sources: f"Signed-By: {keyring}\n".encode(),
            f"{etc}/preferences.d/moat-gpu": b"Package: y\n",
            "/etc/modprobe.d/moat-gpu.conf": b"blacklist nouveau\n",
        }
    )
    inside = tmp_path / "private"
    assert (inside / "sources" / "moat-gpu.sources").read_text() == f"Signed-By: {inside}/keyrings/moat-gpu.gpg\n"
    assert (inside / "keyrings" / "moat-gpu.gpg").read_bytes() == b"key"
    assert sorted(os.listdir(inside / "preferences")) == ["mine", "moat-gpu"]
    assert (etc / "sources.list.d" / "moat-gpu.sources").read_text() == "Types: deb\n"
    assert not (etc / "keyrings").exists()
    private.hide([f"{etc}/sources.list.d/debian.sources", "/etc/passwd"])
    assert sorted(os.listdir(inside / "sources")) == ["moat-gpu.sources"]
    assert (etc / "sources.list.d" / "debian.sources").exists()


def test_lists_of_the_named_sources_alone_are_fetched_where_the_host_has_lists(
    etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    monkeypatch.setattr(apt, "LISTS", str(lists))
    recorder, sources = Recorder(), f"{etc}/sources.list.d/moat-gpu.sources"
    private = apt.Apt(Runner(recorder), str(tmp_path / "private"))
    assert private.update({sources: "http://m/x/"}) == ""
    assert not any("Dir::Etc::sourcelist" in word for word in recorder.ran[-1])
    for name in ("deb.debian.org_debian_InRelease", "m_x_InRelease", "m_x_Packages", "lock"):
        (lists / name).write_text("")
    assert private.update({sources: "http://m/x/"}) == ""
    assert f"Dir::Etc::sourcelist={tmp_path}/private/sources/moat-gpu.sources" in recorder.ran[-1]
    assert sorted(path.name for path in (tmp_path / "private" / "lists").iterdir() if path.is_symlink()) == [
        "deb.debian.org_debian_InRelease"
    ]
    host_apt = apt.Apt(Runner(recorder))
    assert host_apt.update({sources: "http://m/x/"}) == ""
    assert f"Dir::Etc::sourcelist={sources}" in recorder.ran[-1] and "APT::Get::List-Cleanup=false" in recorder.ran[-1]
    host_apt.refresh()
    assert recorder.ran[-1] == list(apt.UPDATE)


def test_apts_own_user_can_read_what_is_made_for_it(etc: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        private = apt.Apt(Runner(Recorder()), str(tmp_path / "private"))
        private.set_files({f"{etc}/keyrings/moat-gpu.gpg": b"key"})
    finally:
        os.umask(before)
    made = tmp_path / "private" / "keyrings"
    assert made.stat().st_mode & 0o777 == 0o755 and (made / "moat-gpu.gpg").stat().st_mode & 0o777 == 0o644


def test_one_transaction_names_every_version_and_what_has_to_go(etc: Path, tmp_path: Path) -> None:
    recorder = Recorder({"-s": (0, SIMULATED, "")})
    host_apt = apt.Apt(Runner(recorder))
    assert host_apt.install({"libcuda1": "580.178.04-1", "libnvidia-nscq-570": ""}, "/archives") == ""
    (argv,) = recorder.ran
    assert argv[-3:] == ["install", "libcuda1=580.178.04-1", "libnvidia-nscq-570-"]
    for word in ("--allow-downgrades", "--allow-change-held-packages", "--no-install-recommends"):
        assert word in argv
    assert "Dir::Cache::archives=/archives" in argv and "APT_CONFIG" not in recorder.environments[0]
    assert recorder.environments[0]["DEBIAN_FRONTEND"] == "noninteractive"
    assert host_apt.simulate({"libcuda1": "1"}).removed == ("nvidia-kernel-dkms", "nvidia-old")
    assert host_apt.archives == "" and apt.Apt(Runner(recorder), str(tmp_path / "p")).archives.endswith(
        "/cache/archives"
    )


def test_apt_that_fails_is_told_in_its_words() -> None:
    recorder = Recorder({"apt-get": (100, "", "E: Failed to fetch x  Hash Sum mismatch"), "dpkg": (1, "", "broken")})
    host_apt = apt.Apt(Runner(recorder))
    said = "E: Failed to fetch x  Hash Sum mismatch"
    assert host_apt.fetch({"a": "1"}) == host_apt.install({"a": "1"}) == said
    assert host_apt.update({"/x.sources": "http://x/"}) == said
    assert host_apt.simulate({"a": "1"}) == apt.Simulation(refusal=said)
    assert host_apt.configure() == "broken"
    host_apt.hold(["a"])
    assert recorder.ran[-1] == ["apt-mark", "hold", "--", "a"]
    assert any("--download-only" in argv for argv in recorder.ran)
    assert host_apt.download("http://x/key", "/tmp/key") == ""
    assert recorder.ran[-1][-3:] == ["download-file", "http://x/key", "/tmp/key"]
