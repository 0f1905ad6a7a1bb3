# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import base64
import hashlib
import json
import os
import pwd
from dataclasses import replace

import pytest
from ansible_collections.moat.inference.plugins.module_utils import ca_pki, files
from ansible_collections.moat.inference.plugins.module_utils.ca_pki import State
from ansible_collections.moat.inference.plugins.module_utils.run import Result

DOMAIN = "inference.internal"


def pem(der: bytes) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(der).decode()}-----END CERTIFICATE-----\n"


ROOT, OTHER = pem(b"the root"), pem(b"another root")
PRESENT = State(present=True, settings={"trust_domain": DOMAIN}, root_certificate=ROOT, used=True)


class Recorder:
    """Stands for step and openssl: writes the files that they would write, and keeps what it was asked."""

    def __init__(self) -> None:
        self.argv: list[list[str]] = []

    def run(self, argv, stdin=None, ok=(0,), env=None, cwd=None):
        self.argv.append(list(argv))
        if "create" in argv:
            names = argv[argv.index("--") + 1 :]
            for path in names[-2:]:
                with open(path, "w", encoding="utf-8") as handle:
                    handle.write(ROOT if path.endswith(".crt") else '{"kty": "EC"}')
        return Result(tuple(argv), 0, "", "")


@pytest.fixture
def me():
    return pwd.getpwuid(os.getuid()).pw_name, "root" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "set_attributes", lambda path, state: None)
    recorder = Recorder()
    ca_pki.make(recorder, "step", str(tmp_path), "Site", DOMAIN, ("root", "root"))
    return tmp_path, recorder


def test_fingerprint_is_of_the_der():
    assert ca_pki.fingerprint(ROOT) == hashlib.sha256(b"the root").hexdigest()


@pytest.mark.parametrize("text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----"])
def test_what_is_no_certificate_has_no_fingerprint(text):
    with pytest.raises(ValueError):
        ca_pki.fingerprint(text)


def test_a_bare_host_gets_keys():
    plan = ca_pki.plan(State(present=False), DOMAIN, "", False)
    assert plan.create and not plan.faults


def test_a_bare_host_is_refused_where_a_root_is_known():
    plan = ca_pki.plan(State(present=False), DOMAIN, ROOT, False)
    assert "ca_restore" in plan.faults[0] and "ca_replace_root" in plan.faults[0]
    assert not ca_pki.plan(State(present=False), DOMAIN, ROOT, True).faults


def test_a_database_without_keys_is_no_bare_host():
    plan = ca_pki.plan(State(present=False, used=True), DOMAIN, "", True)
    assert "ca_restore" in plan.faults[0]


def test_present_keys_are_left_alone():
    plan = ca_pki.plan(PRESENT, DOMAIN, ROOT, False)
    assert not plan.create and not plan.finish_removal and not plan.faults


def test_incomplete_keys_are_never_made_anew():
    plan = ca_pki.plan(replace(PRESENT, missing=("intermediate_ca_key",)), DOMAIN, "", True)
    assert "intermediate_ca_key" in plan.faults[0] and not plan.create


def test_another_trust_domain_is_refused():
    assert "ca_trust_domain" in ca_pki.plan(PRESENT, "other.internal", "", False).faults[0]


def test_another_known_root_is_refused():
    assert "ca_state_dir" in ca_pki.plan(PRESENT, DOMAIN, OTHER, False).faults[0]
    assert not ca_pki.plan(PRESENT, DOMAIN, OTHER, True).faults


def test_a_removal_that_was_killed_is_finished():
    marker = {"fingerprint": ca_pki.fingerprint(ROOT)}
    assert ca_pki.plan(replace(PRESENT, root_key=True, marker=marker), DOMAIN, "", False).finish_removal
    assert not ca_pki.plan(replace(PRESENT, marker=marker), DOMAIN, "", False).finish_removal


def test_the_marker_of_another_root_removes_nothing():
    marker = {"fingerprint": ca_pki.fingerprint(OTHER)}
    assert not ca_pki.plan(replace(PRESENT, root_key=True, marker=marker), DOMAIN, "", False).finish_removal
    assert not ca_pki.plan(replace(PRESENT, root_key=True), DOMAIN, "", False).finish_removal


def test_templates_constrain():
    root = json.loads(ca_pki.root_template().replace("{{ toJson .Subject }}", '"s"'))
    assert root["basicConstraints"] == {"isCA": True, "maxPathLen": 1}
    template = json.loads(ca_pki.intermediate_template(DOMAIN).replace("{{ toJson .Subject }}", '"s"'))
    assert template["basicConstraints"] == {"isCA": True, "maxPathLen": 0}
    assert template["nameConstraints"] == {
        "critical": True,
        "permittedDNSDomains": [DOMAIN],
        "permittedURIDomains": [DOMAIN],
    }


def test_no_password_is_an_argument(made):
    directory, recorder = made
    for name in ("root/password", "intermediate_password", "provisioner/password"):
        secret = (directory / "pki" / name).read_text().strip()
        assert len(secret) >= 40
        assert not [word for argv in recorder.argv for word in argv if secret in word]


def test_keys_appear_at_once_and_whole(made):
    directory, _recorder = made
    state = ca_pki.inspect(str(directory))
    assert state.present and not state.missing and state.root_key and state.settings["trust_domain"] == DOMAIN
    assert sorted(path.name for path in directory.iterdir()) == ["pki"]
    assert not list((directory / "pki").glob("*.tpl"))
    for path in (directory / "pki").rglob("*password"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_killed_run_left_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "set_attributes", lambda path, state: None)
    (tmp_path / ".new" / "root").mkdir(parents=True)
    (tmp_path / ".new" / "root" / "password").write_text("half")
    assert not ca_pki.inspect(str(tmp_path)).present
    ca_pki.make(Recorder(), "step", str(tmp_path), "Site", DOMAIN, ("root", "root"))
    assert (tmp_path / "pki" / "root" / "password").read_text() != "half"


def test_what_lacks_is_named(made):
    directory, _recorder = made
    (directory / "pki" / "provisioner" / "password").unlink()
    assert ca_pki.inspect(str(directory)).missing == ("provisioner/password",)


def test_removal_takes_key_and_password_and_can_be_repeated(made):
    directory, _recorder = made
    (directory / "pki" / "root" / "password").unlink()
    for _time in range(2):
        ca_pki.remove_root_key(str(directory / "pki"))
        assert not list((directory / "pki" / "root").iterdir())
    assert not ca_pki.inspect(str(directory)).root_key


def test_shred_overwrites_before_it_removes(tmp_path):
    path, link = tmp_path / "key", tmp_path / "link"
    path.write_bytes(b"secret" * 10)
    os.link(path, link)
    ca_pki.shred(str(path))
    assert not path.exists() and b"secret" not in link.read_bytes() and link.stat().st_size == 60


def test_a_private_key_is_not_taken_for_the_public_one(made):
    directory, _recorder = made
    (directory / "pki" / "provisioner" / "public.json").write_text('{"kty": "EC", "d": "secret"}')
    with pytest.raises(ValueError, match="private"):
        ca_pki.public_key(str(directory / "pki"))


def test_drift_of_mode_is_seen(tmp_path, me):
    path = tmp_path / "key"
    path.write_text("x")
    path.chmod(0o644)
    state = ca_pki.attributes_of(str(path))
    wanted = [(str(path), files.FileState("file", None, 0o600, state.owner, state.group))]
    ((seen, before, after),) = ca_pki.drifted(wanted)
    assert (seen, before.mode, after.mode) == (str(path), 0o644, 0o600)
    path.chmod(0o600)
    assert ca_pki.drifted(wanted) == []


def test_a_database_file_that_goes_meanwhile_is_no_fault(tmp_path):
    assert ca_pki.drifted([(str(tmp_path / "000001.sst"), files.FileState("file", None, None, "a", "b"))]) == []


def test_what_the_service_does_not_need_is_roots(made):
    directory, _recorder = made
    owners = {
        os.path.relpath(path, directory / "pki"): (state.owner, state.mode)
        for path, state in ca_pki.attributes(str(directory / "pki"), ("moat-ca", "moat-ca"))
    }
    assert owners["intermediate_password"] == ("moat-ca", 0o600)
    for name in (*ca_pki.PROVISIONER_FILES, *ca_pki.ROOT_FILES):
        assert owners[name] == ("root", 0o600)
    assert owners["root"] == owners["provisioner"] == ("root", 0o700)
