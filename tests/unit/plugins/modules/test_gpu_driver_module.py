"""The gpu_driver module on a made-up host: what it asks apt and dpkg, in which order, and what it leaves when one of them fails.

apt and dpkg are a double that keeps a package database; with real ones the same is shown by tests/faults/test_gpu_driver.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.module_utils import files, gpu_facts, openpgp
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_apt as apt
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_host as hands
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_plan as plan
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result
from ansible_collections.moat.inference.plugins.modules import gpu_driver
from ansible_collections.moat.inference.tests.unit.plugins.module_utils import gpu_driver_samples as samples
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.test_openpgp import (
    CURVE,
    CURVE_FINGERPRINT,
    RSA_FINGERPRINT,
)

VERSION, OLDER = samples.VERSION, "580.173.02"
URL = "http://mirror.internal/nvidia/"
MIRROR = {"kind": "mirror", "url": URL, "key": CURVE.decode(), "fingerprint": CURVE_FINGERPRINT}
NAMES = (*samples.NAMES, "libnvidia-ml1")
OPTIONS = {"source": MIRROR, "toolkit": {"enabled": False}}


class Machine:
    """A host's packages, and the programs that change them."""

    def __init__(self) -> None:
        self.facts = samples.host()
        self.versions = {name: [VERSION, OLDER] for name in NAMES}
        self.ran: list[list[str]] = []
        self.fails: dict[str, str] = {}
        self.builds = True
        self.loads = True

    def collect(self, _root: Any) -> dict[str, Any]:
        return dict(json.loads(json.dumps(self.facts)))

    def words(self, *first: str) -> list[str]:
        return [" ".join(argv) for argv in self.ran if argv[: len(first)] == list(first)]

    def run(self, argv: Sequence[str], ok: Sequence[int] = (0,), **_options: Any) -> Result:
        self.ran.append(list(argv))
        for word, said in self.fails.items():
            if word in argv:
                result = Result(tuple(argv), 100, "", said)
                if 100 in ok:
                    return result
                raise CommandError(result)
        return Result(tuple(argv), 0, self.answer(list(argv)), "")

    def answer(self, argv: list[str]) -> str:
        if argv[:2] == ["apt-cache", "madison"]:
            rows = [
                f"{name} | {version}-1 | {URL} Packages" for name in argv[3:] for version in self.versions.get(name, ())
            ]
            return "\n".join(rows)
        if "install" in argv:
            asked = dict(word.split("=") for word in argv[argv.index("install") + 1 :] if "=" in word)
            version = next(iter(asked.values()), "")
            whole = {"libnvidia-ml1": version, **asked}
            if "-s" in argv:
                return "\n".join(
                    f"Inst {name} [{self.facts['packages'][name]['version']}] ({new} x)"
                    if name in self.facts["packages"]
                    else f"Inst {name} ({new} x)"
                    for name, new in whole.items()
                    if self.facts["packages"].get(name, {}).get("version") != new
                )
            if "--download-only" not in argv:
                self.install(whole)
        if argv[:2] == ["apt-mark", "hold"]:
            for name in argv[3:]:
                self.facts["packages"][name]["held"] = True
        if argv[0] == "dkms" and self.builds:
            self.build(VERSION)
        if argv[0] == "modprobe" and self.loads:
            self.facts["driver"]["module"] = {"loaded": True, "version": VERSION, "flavour": "open"}
        return ""

    def install(self, whole: dict[str, str]) -> None:
        for name, version in whole.items():
            self.facts["packages"][name] = samples.package(version, held=False)
        if self.builds:
            self.build(plan.upstream(whole["libcuda1"]))

    def build(self, version: str) -> None:
        kernels = self.facts["kernel"]["headers"]
        self.facts["dkms"] = [
            {"module": "nvidia", "version": version, "kernel": kernel, "state": "installed"} for kernel in kernels
        ]


class ProgramRoot:
    """Stands for gpu_root.Root: its programs are the machine's."""

    def __init__(self, _path: str, runner: Any) -> None:
        self.runner = runner

    def run(self, argv: Sequence[str], limit: int = 0) -> Result:
        result: Result = self.runner.run(argv, ok=range(256))
        return result

    def exists(self, path: str) -> bool:
        return path.endswith("build/make.log")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    for name in ("keyrings", "sources.list.d", "preferences.d", "apt.conf.d", "modprobe.d"):
        (tmp_path / "etc" / name).mkdir(parents=True)
    etc = f"{tmp_path}/etc"
    monkeypatch.setattr(apt, "ETC", etc)
    monkeypatch.setattr(apt, "LISTS", f"{tmp_path}/lists")
    for key, value in (
        ("KEYRINGS", f"{etc}/keyrings"),
        ("SOURCES", f"{etc}/sources.list.d"),
        ("PREFERENCES", f"{etc}/preferences.d/moat-gpu"),
        ("UPGRADES", f"{etc}/apt.conf.d/52moat-gpu"),
        ("MODPROBE", f"{etc}/modprobe.d/moat-gpu.conf"),
        ("STATE_DIRECTORY", f"{tmp_path}/var/moat"),
        ("MARKER", f"{tmp_path}/var/moat/gpu-driver.json"),
        ("LOCAL", f"{tmp_path}/var/moat/gpu-repository"),
    ):
        monkeypatch.setattr(plan, key, value)
    monkeypatch.setattr(hands, "TEMPORARY", str(tmp_path))
    monkeypatch.setattr(gpu_facts, "collect", made.collect)
    monkeypatch.setattr(hands, "Root", ProgramRoot)
    monkeypatch.setattr(gpu_driver, "Runner", lambda _module: made)
    # whoever runs the tests owns the files
    monkeypatch.setattr(files, "owner_id", lambda _name: -1)
    monkeypatch.setattr(files, "group_id", lambda _name: -1)
    monkeypatch.setattr(files, "_owner_name", lambda _uid: "root")
    monkeypatch.setattr(files, "_group_name", lambda _gid: "root")
    return made


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], machine: Machine, tmp_path: Path) -> Any:
    def run(check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {**OPTIONS, **options, "_ansible_check_mode": check}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            gpu_driver.main()
        assert [path.name for path in tmp_path.glob("moat-gpu-*")] == []
        return dict(json.loads(capsys.readouterr().out))

    return run


def listing(path: Path) -> dict[str, Any]:
    return {str(item): (item.read_bytes() if item.is_file() else None) for item in sorted(path.rglob("*"))}


def changing(machine: Machine) -> list[str]:
    """The commands that touch the host itself."""
    return [
        " ".join(argv)
        for argv in machine.ran
        if argv[0] in ("apt-mark", "update-initramfs", "dpkg", "modprobe", "dkms")
        or (argv[0] == "apt-get" and argv[-1] != "update" and "-s" not in argv and "--download-only" not in argv)
    ]


def marker() -> dict[str, Any]:
    return plan.parse_marker(files.read_state(plan.MARKER).content)


def test_a_bare_host_gets_all_of_it_and_a_second_run_changes_nothing(call: Any, machine: Machine) -> None:
    result = call()
    assert result["changed"] and result["state"] == "installed", result
    assert result["packages"] == dict.fromkeys(sorted(NAMES), f"{VERSION}-1")
    assert all(entry["held"] for entry in machine.facts["packages"].values())
    (transaction,) = [word for word in changing(machine) if " install " in word]
    assert all(f" {name}={VERSION}-1" in transaction for name in NAMES)
    assert marker()["phase"] == "complete"
    assert files.read_state(f"{plan.KEYRINGS}/moat-gpu.gpg").content == openpgp.dearmour(CURVE)
    assert machine.words("update-initramfs") == ["update-initramfs -u -k all"]
    machine.ran.clear()
    again = call()
    assert not again["changed"] and again["state"] == "installed" and again["reason"] == "all is as it shall be"
    assert machine.ran == []


def test_the_packages_are_fetched_and_checked_before_anything_is_touched(call: Any, machine: Machine) -> None:
    call()
    words = [" ".join(argv) for argv in machine.ran]
    fetched = next(index for index, word in enumerate(words) if "--download-only" in word)
    touched = next(index for index, word in enumerate(words) if word in changing(machine))
    assert fetched < touched and not [word for word in changing(machine) if words.index(word) < fetched]


def test_the_check_changes_nothing_and_says_what_there_is_to_do(call: Any, machine: Machine, tmp_path: Path) -> None:
    before = listing(tmp_path)
    looked = call(phase="check")
    assert not looked["changed"] and looked["state"] == "absent" and "libcuda1 is not installed" in looked["pending"]
    checked = call(check=True)
    assert checked["changed"] and checked["packages"] == looked["packages"]
    shown = json.dumps(checked["diff"])
    assert f"libcuda1 {VERSION}-1" in shown and "blacklist nouveau" in shown and "BEGIN PGP" not in shown
    assert listing(tmp_path) == before and changing(machine) == []


def test_an_upgrade_and_a_downgrade_name_every_package(call: Any, machine: Machine) -> None:
    for version in (OLDER, VERSION, OLDER):
        machine.ran.clear()
        machine.facts["driver"]["module"] = {"loaded": True, "version": version, "flavour": "open"}
        result = call(version=version)
        assert result["state"] == "installed"
        (transaction,) = [word for word in changing(machine) if " install " in word]
        assert all(f" {name}={version}-1" in transaction for name in NAMES)
        assert f"Pin: version {version}-*" in (files.read_state(plan.PREFERENCES).content or b"").decode()


def test_a_change_under_a_loaded_module_asks_for_a_reboot(call: Any, machine: Machine) -> None:
    call()
    result = call(version=OLDER)
    assert result["state"] == "reboot_required"
    assert result["reboot"] == {"needed": True, "why": [f"the module {VERSION} is loaded, {OLDER} is installed"]}
    assert not call(version=OLDER)["changed"]


def test_a_module_that_cannot_be_loaded_asks_for_a_reboot(call: Any, machine: Machine) -> None:
    machine.loads = False
    result = call()
    assert result["state"] == "reboot_required" and result["reboot"]["why"] == ["no module of the driver is loaded"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda made: made.versions.pop("libcuda1"), "libcuda1 580.178.04 is not to be had"),
        (lambda made: made.fails.update({"update": "E: not signed"}), f"moat-gpu ({URL}) cannot be had: E: not signed"),
        (lambda made: made.fails.update({"-s": "E: unmet"}), "apt cannot do it in one transaction: E: unmet"),
        (
            lambda made: made.fails.update({"--download-only": "E: Hash Sum mismatch"}),
            "as they were signed: E: Hash Sum",
        ),
        (lambda made: made.facts["users"].append({"pid": 7, "name": "vllm"}), "processes use a GPU: vllm (7)"),
        (lambda made: made.facts.update(machine="aarch64"), "aarch64 is not supported"),
    ],
)
def test_a_refusal_leaves_the_host_as_it_was(
    call: Any, machine: Machine, tmp_path: Path, spoil: Any, words: str
) -> None:
    before = listing(tmp_path)
    spoil(machine)
    result = call()
    assert result["failed"] and not result["changed"] and words in result["msg"], result["msg"]
    assert result["faults"] and listing(tmp_path) == before and changing(machine) == []


@pytest.mark.parametrize("word", ["-s", "--download-only"])
def test_lists_of_the_distribution_that_are_old_are_fetched_anew(
    call: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    machine.fails[word] = "E: dkms 404 Not Found"
    real = apt.Apt.refresh

    def refresh(self: apt.Apt) -> None:
        machine.fails.clear()
        real(self)

    monkeypatch.setattr(apt.Apt, "refresh", refresh)
    assert call()["state"] == "installed"
    # of the private state first, and then of the host
    assert machine.words(*apt.UPDATE)[-1] == " ".join(apt.UPDATE)


def test_all_faults_of_host_and_repository_come_in_one_message(call: Any, machine: Machine) -> None:
    machine.facts["users"] = [{"pid": 7, "name": "vllm"}]
    machine.versions.pop("libcuda1")
    result = call()
    assert [item["key"] for item in result["faults"]] == ["busy", "packages"]
    assert "[busy]" in result["msg"] and "[packages]" in result["msg"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"fingerprint": RSA_FINGERPRINT},
            f"is not the one of {RSA_FINGERPRINT}: its fingerprint is {CURVE_FINGERPRINT}",
        ),
        ({"key": "/no/such/key"}, "cannot be read"),
    ],
)
def test_a_key_that_is_not_the_named_one_is_refused(
    call: Any, machine: Machine, values: dict[str, str], words: str
) -> None:
    result = call(source={**MIRROR, **values})
    assert result["failed"] and words in result["msg"] and changing(machine) == []
    assert [argv for argv in machine.ran if argv[0].startswith("apt")] == []


def test_a_key_at_an_address_comes_by_apts_own_way(
    call: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(_self: Any, url: str, path: str) -> str:
        asked.append(url)
        Path(path).write_bytes(CURVE)
        return ""

    monkeypatch.setattr(apt.Apt, "download", download)
    result = call(source={"kind": "vendor", "fingerprint": CURVE_FINGERPRINT})
    assert result["changed"] and asked == [
        "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/3bf863cc.pub"
    ]
    monkeypatch.setattr(apt.Apt, "download", lambda _self, _url, _path: "E: 404")
    files.write(f"{plan.KEYRINGS}/moat-gpu.gpg", files.FileState("file", b"spoiled", 0o644))
    assert "E: 404" in call(source={"kind": "vendor", "fingerprint": CURVE_FINGERPRINT})["msg"]


def test_lists_that_cannot_be_had_after_all_take_everything_back(
    call: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(tmp_path / "etc")
    real = apt.Apt.update
    monkeypatch.setattr(apt.Apt, "update", lambda self, sources: real(self, sources) if self.archives else "E: gone")
    result = call()
    assert result["failed"] and "E: gone" in result["msg"] and "the files are as they were" in result["msg"]
    assert listing(tmp_path / "etc") == before and marker() == {}
    assert not [word for word in changing(machine) if " install " in word]


def test_a_failed_transaction_is_told_and_the_next_run_finishes(
    call: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = machine.install

    def half(whole: dict[str, str]) -> None:
        real(whole)
        machine.facts["packages"]["nvidia-kernel-open-dkms"]["state"] = "half-configured"
        raise CommandError(Result(("apt-get",), 100, "", "E: Sub-process /usr/bin/dpkg returned an error code (1)"))

    monkeypatch.setattr(machine, "install", half)
    result = call()
    assert result["failed"] and result["state"] == "incomplete" and "the next run goes on" in result["msg"]
    assert marker()["phase"] == "failed" and "returned an error code" in marker()["reason"]
    looked = call(phase="check")
    assert looked["state"] == "incomplete" and "nvidia-kernel-open-dkms is half-configured" in looked["pending"]
    monkeypatch.setattr(machine, "install", real)
    machine.ran.clear()
    result = call()
    assert result["state"] == "installed" and marker()["phase"] == "complete"
    assert any(word.startswith("dpkg ") and word.endswith("--configure -a") for word in changing(machine))


def test_a_module_that_is_not_built_is_told_with_its_log_and_built_by_the_next_run(call: Any, machine: Machine) -> None:
    machine.builds = False
    result = call()
    assert result["failed"] and result["state"] == "incomplete"
    assert f"DKMS has no module {VERSION} for the kernel {samples.RUNNING}" in result["msg"]
    assert f"/var/lib/dkms/nvidia/{VERSION}/build/make.log" in result["msg"]
    assert marker()["phase"] == "incomplete"
    machine.builds = True
    assert call()["state"] == "installed" and machine.words("dkms", "autoinstall")


def test_a_new_kernel_without_its_module_is_built_for_alone(call: Any, machine: Machine) -> None:
    call()
    machine.ran.clear()
    machine.facts["kernel"]["installed"].append("6.1.0-45-amd64")
    machine.facts["kernel"]["headers"].append("6.1.0-45-amd64")
    machine.facts["users"] = [{"pid": 7, "name": "vllm"}]
    result = call()
    assert result["changed"] and result["state"] == "installed", result
    assert [word for word in changing(machine) if not word.startswith("modprobe")] == [
        "dkms autoinstall -k 6.1.0-45-amd64"
    ]


def test_another_source_takes_the_files_of_the_first_one_away(call: Any, machine: Machine) -> None:
    call()
    assert files.read_state(f"{plan.SOURCES}/moat-gpu.sources").kind == "file"
    result = call(source={"kind": "distribution"}, packages=list(samples.NAMES))
    assert result["changed"]
    assert files.read_state(f"{plan.SOURCES}/moat-gpu.sources").kind == "absent"
    assert files.read_state(f"{plan.KEYRINGS}/moat-gpu.gpg").kind == "absent"


def test_a_local_repository_is_refused_with_another_sum(call: Any, machine: Machine, tmp_path: Path) -> None:
    package = tmp_path / "repo.deb"
    package.write_bytes(b"not what was named")
    result = call(source={"kind": "local", "file": str(package), "sha256": "0" * 64})
    assert result["failed"] and f"{package} has the SHA-256 " in result["msg"] and changing(machine) == []
    missing = call(source={"kind": "local", "file": "/no/such.deb", "sha256": "0" * 64})
    assert "/no/such.deb cannot be read" in missing["msg"]


def test_a_host_without_a_gpu_is_passed_by_or_refused(call: Any, machine: Machine) -> None:
    machine.facts["devices"] = []
    result = call()
    assert result["state"] == "skipped" and not result["changed"] and machine.ran == []
    result = call(required=True)
    assert result["failed"] and result["faults"][0]["key"] == "device"


def test_another_vendors_gpu_beside_one_of_nvidias_is_a_warning(call: Any, machine: Machine) -> None:
    machine.facts["devices"].append({**samples.GPU, "slot": "0000:03:00.0", "vendor": "amd"})
    result = call(phase="check")
    assert not result.get("failed") and "AMD GPU 0000:03:00.0" in json.dumps(result["warnings"])


def test_bad_options_come_in_one_message_and_nothing_is_asked(call: Any, machine: Machine) -> None:
    result = call(version="latest", settings=[{"gpu": "x", "mig": []}])
    assert "version: latest" in result["msg"] and "settings[0].gpu: x" in result["msg"] and machine.ran == []
