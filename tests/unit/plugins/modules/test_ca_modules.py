# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import base64
import json
import platform
from pathlib import Path

import pytest
from ansible_collections.moat.inference.plugins.module_utils import ca_archive, ca_pki, files
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result
from ansible_collections.moat.inference.plugins.modules import ca_backup, ca_programs, ca_restore, ca_root_key
from ansible_collections.moat.inference.plugins.modules import ca_pki as ca_pki_module

ROOT = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n".format(base64.b64encode(b"root").decode())


class Systemd:
    def __init__(self, active=True, broken=()):
        self.active, self.broken, self.asked = active, broken, []

    def run(self, argv, stdin=None, ok=(0,), env=None, cwd=None):
        self.asked.append(argv[1])
        rc = int(not self.active) if argv[1] == "is-active" else int(argv[1] in self.broken)
        result = Result(tuple(argv), rc, "", "")
        if rc not in ok:
            raise CommandError(result)
        return result


def test_the_authority_is_read_while_it_is_stopped(monkeypatch):
    systemd = Systemd()
    monkeypatch.setattr(ca_archive, "pack", lambda directory: systemd.asked.append("pack") or "archive")
    assert ca_backup.read_stopped(systemd, "/d", "moat-ca.service") == "archive"
    assert systemd.asked == ["is-active", "stop", "pack", "start"]


def test_an_authority_that_did_not_run_is_not_started(monkeypatch):
    systemd = Systemd(active=False)
    monkeypatch.setattr(ca_archive, "pack", lambda directory: "archive")
    ca_backup.read_stopped(systemd, "/d", "moat-ca.service")
    assert systemd.asked == ["is-active"]


def test_the_authority_runs_again_when_it_cannot_be_read(monkeypatch):
    systemd = Systemd()

    def full(directory):
        raise OSError("no space")

    monkeypatch.setattr(ca_archive, "pack", full)
    with pytest.raises(OSError):
        ca_backup.read_stopped(systemd, "/d", "moat-ca.service")
    assert systemd.asked[-1] == "start"


@pytest.mark.parametrize(
    ("certificate", "running", "word"),
    [
        (ROOT, True, "runs"),
        ("", True, "runs"),
        (ROOT, False, ""),
        ("", False, ""),
        (ROOT.replace("cm9vdA", "b3RoZQ"), False, "another root"),
    ],
)
def test_what_a_restore_may_replace(certificate, running, word):
    state = ca_pki.State(present=bool(certificate), root_certificate=certificate)
    said = ca_restore.refusal(state, ca_pki.fingerprint(ROOT), running)
    assert word in said and bool(said) is bool(word)
    assert not said or "moat_ca_replace" in said


def test_a_restore_replaces_every_part_and_leaves_nothing_old(tmp_path):
    for part in ("pki", "db", "config"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "old").write_text("old")
    new = tmp_path / ".restore.x" / "new"
    for part in ("pki", "db"):
        (new / part).mkdir(parents=True)
        (new / part / "new").write_text("new")
    ca_restore.put_in_place(str(tmp_path), str(new))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"pki/new", "db/new"} and not (tmp_path / ".old").exists()


def test_a_restore_that_was_killed_can_be_repeated(tmp_path):
    (tmp_path / ".old" / "pki").mkdir(parents=True)
    (tmp_path / "db").mkdir()
    new = tmp_path / "new"
    (new / "pki").mkdir(parents=True)
    ca_restore.put_in_place(str(tmp_path), str(new))
    assert (tmp_path / "pki").is_dir() and not (tmp_path / "db").exists()


def test_a_staged_program_of_another_version_is_named():
    params = {"staged": "/opt/moat/staged", "version": "0.30.2", "checksums": {}}
    (fault,) = ca_programs.faults(params, True, {"step-ca": "0.29.0", "step": "0.30.2"})
    assert "/opt/moat/staged/step-ca" in fault and "0.29.0" in fault


def test_a_machine_without_releases_is_named(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    (fault,) = ca_programs.faults({"staged": "/s", "version": "0.30.2", "checksums": {}}, False, {})
    assert "riscv64" in fault and "/s" in fault


def test_no_user_is_no_owner():
    assert ca_pki_module.owner_of({"user": "nobody-has-this-name"}) is None
    assert ca_pki_module.owner_of({"user": "root"}) == ("root", "root")


@pytest.fixture
def pki(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "set_attributes", lambda path, state: None)
    monkeypatch.setattr(files, "write", lambda path, state: Path(path).write_bytes(state.content))
    (tmp_path / "root").mkdir()
    for name in ca_pki.ROOT_FILES:
        (tmp_path / name).write_text("secret")
    return tmp_path


STATE = ca_pki.State(present=True, root_key=True, settings={"name": "Site"}, root_certificate=ROOT)


def test_the_export_of_ca_root_key_tells_whose_it_is_and_nothing_more(pki, monkeypatch):
    class Openssl:
        def run(self, argv, stdin=None, ok=(0,), env=None, cwd=None):
            assert argv[-2:] == ["-passin", f"file:{pki}/root/password"]
            return Result(tuple(argv), 0, "THE KEY", "")

    encrypted = {}
    monkeypatch.setattr(ca_archive, "recipient_fault", lambda runner, recipient: "")
    monkeypatch.setattr(ca_archive, "encrypt", lambda runner, recipient, text: encrypted.update(text=text) or "MESSAGE")
    text = ca_root_key.export(Openssl(), STATE, str(pki), "recipient")
    assert encrypted["text"] == ROOT + "THE KEY" and "THE KEY" not in text
    assert ca_pki.fingerprint(ROOT) in text and text.endswith("MESSAGE")


def test_ca_root_key_refuses_a_recipient_that_is_none(pki, monkeypatch):
    monkeypatch.setattr(ca_archive, "recipient_fault", lambda runner, recipient: "it is no certificate")
    with pytest.raises(ValueError, match="ca_root_export_recipient: it is no certificate"):
        ca_root_key.export(None, STATE, str(pki), "x")


def test_ca_root_key_writes_its_marker_before_it_removes_anything(pki, monkeypatch):
    seen = []
    monkeypatch.setattr(ca_pki, "remove_root_key", lambda path: seen.append((pki / ca_pki.MARKER).exists()))
    ca_root_key.remove(STATE, str(pki), "abc")
    assert seen == [True]
    marker = json.loads((pki / ca_pki.MARKER).read_text())
    assert marker == {"fingerprint": ca_pki.fingerprint(ROOT), "export_sha256": "abc"}
