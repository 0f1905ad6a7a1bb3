"""The certificate module on real sets in a temporary directory; an openssl CA signs, and systemctl is recorded."""

from __future__ import annotations

import functools
import grp
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.module_utils import certificate_store
from ansible_collections.moat.inference.plugins.module_utils.certificate_store import CertificateError
from ansible_collections.moat.inference.plugins.module_utils.run import Result
from ansible_collections.moat.inference.plugins.modules import certificate

ITEM = {"name": "gateway", "common_name": "gpu1.x", "dns": ["gpu1.x"], "uris": ["spiffe://x/gateway/gpu1"]}
TOKEN = {"name": "gateway", "token": "eyJ-the-token"}


class Lab:
    """A host's directories, an authority, and what systemctl was told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.verbs: list[list[str]] = []
        self.served: list[bool] = []
        self.down = False
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=root"]
        self._openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2")
        self.root = (path / "ca.crt").read_text()

    def _openssl(self, *argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=self.path, check=True, capture_output=True)

    def sign(self, root: str, request: str, token: str, lifetime: int) -> str:
        assert Path(root).read_text() == self.root
        assert token == TOKEN["token"]
        if self.down:
            raise CertificateError("https://ca could not be asked")
        (self.path / "csr").write_text(request)
        ca = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-copy_extensions", "copy", "-days", "1"]
        self._openssl("x509", "-req", "-in", "csr", *ca, "-out", "crt")
        return (self.path / "crt").read_text()

    def run(self, argv: Sequence[str], ok: Sequence[int] = (0,)) -> Result:
        assert argv[0] == "systemctl"
        self.verbs.append(list(argv[1:]))
        return Result(tuple(argv), 0, "", "")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(tmp_path)
    store = functools.partial(certificate_store.Store, str(tmp_path / "tls"), owner=(os.getuid(), os.getgid()))
    monkeypatch.setattr(certificate_store, "Store", store)
    monkeypatch.setattr(certificate_store, "LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(certificate_store, "Authority", lambda _url: made)
    monkeypatch.setattr(certificate, "SETTINGS", str(tmp_path / "settings"))
    monkeypatch.setattr(certificate, "Runner", lambda _module: made)
    return made


@pytest.fixture
def call(lab: Lab, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(check: bool = False, items: Sequence[dict[str, Any]] = (ITEM,), **options: Any) -> dict[str, Any]:
        arguments = {
            "items": list(items),
            "ca_url": "https://10.140.0.10:9443",
            "root": lab.root,
            "bundle_group": grp.getgrgid(os.getgid()).gr_name,
            "_ansible_check_mode": check,
            "_ansible_diff": True,
            **options,
        }
        with patch_module_args(arguments), pytest.raises(SystemExit):
            certificate.main()
        return dict(json.loads(capsys.readouterr().out))

    return run


def test_check_mode_on_a_bare_host_tells_what_would_be_enrolled(lab: Lab, call: Callable[..., dict[str, Any]]) -> None:
    result = call(check=True, root="", bundle_group="no-such-group")
    assert result["changed"]
    assert result["enrol"] == [
        {"name": "gateway", "common_name": "gpu1.x", "sans": ["gpu1.x", "spiffe://x/gateway/gpu1"]}
    ]
    assert result["certificates"][0]["recreate_reason"] == "absent"
    assert "san: gpu1.x" in result["diff"][0]["after"]
    assert not (lab.path / "tls").exists()


def test_the_four_runs(lab: Lab, call: Callable[..., dict[str, Any]]) -> None:
    assert call(check=True)["changed"]
    asked = call()
    assert (asked["changed"], len(asked["enrol"])) == (False, 1)
    result = call(tokens=[TOKEN, {"name": "other", "token": "x"}])
    assert result["changed"]
    assert result["certificates"][0]["issued"]
    assert result["certificates"][0]["serial"]
    assert result["enrol"] == []
    assert TOKEN["token"] not in json.dumps(result)
    for check in (True, False):
        again = call(check=check)
        assert (again["changed"], again["enrol"], again["diff"]) == (False, [], [])
        assert again["certificates"][0]["recreate_reason"] == ""


def test_a_changed_name_asks_for_a_token_and_shows_the_difference(
    lab: Lab, call: Callable[..., dict[str, Any]]
) -> None:
    call(tokens=[TOKEN])
    item = {**ITEM, "dns": ["gpu1.x", "m.x"]}
    result = call(check=True, items=[item])
    assert result["certificates"][0]["recreate_reason"] == "sans"
    diff = result["diff"][0]
    assert set(diff["after"].splitlines()) - set(diff["before"].splitlines()) == {"san: m.x", "# issued anew: sans"}
    assert call(items=[item], tokens=[TOKEN])["certificates"][0]["issued"]
    assert not call(items=[item])["changed"]


def test_a_failure_is_for_its_item_alone_and_leaves_the_files(lab: Lab, call: Callable[..., dict[str, Any]]) -> None:
    call(tokens=[TOKEN])
    before = os.readlink(lab.path / "tls" / "gateway")
    lab.down = True
    result = call(items=[{**ITEM, "common_name": "other"}], tokens=[TOKEN])
    assert result["failed"]
    assert "gateway: https://ca could not be asked; the files that were there are untouched" in result["msg"]
    assert TOKEN["token"] not in json.dumps(result)
    assert os.readlink(lab.path / "tls" / "gateway") == before
    assert not call()["changed"]


def test_a_token_without_a_root_is_refused(lab: Lab, call: Callable[..., dict[str, Any]]) -> None:
    result = call(root="", tokens=[TOKEN])
    assert "no root certificate" in result["msg"]
    assert not lab.path.joinpath("tls", "gateway").exists()


def test_a_missing_group_is_named_and_nothing_is_put_in_place(lab: Lab, call: Callable[..., dict[str, Any]]) -> None:
    result = call(bundle_group="no-such-group", tokens=[TOKEN])
    assert "no-such-group" in result["msg"]
    assert not lab.path.joinpath("tls", "gateway").exists()


def test_modes_are_put_right_without_a_new_certificate(lab: Lab, call: Callable[..., dict[str, Any]]) -> None:
    call(tokens=[TOKEN])
    key = lab.path / "tls" / "gateway" / "key.pem"
    key.chmod(0o644)
    assert call(check=True)["changed"]
    assert key.stat().st_mode & 0o777 == 0o644
    result = call()
    assert (result["changed"], result["enrol"]) == (True, [])
    assert key.stat().st_mode & 0o777 == 0o600
    assert not call()["changed"]


def test_what_is_no_longer_listed_goes_with_its_timer(lab: Lab, call: Callable[..., dict[str, Any]]) -> None:
    call(tokens=[TOKEN])
    settings = lab.path / "settings" / "gateway.json"
    settings.parent.mkdir()
    settings.write_text("{}")
    lab.verbs.clear()
    result = call(check=True, items=[])
    assert (result["changed"], result["stale"], lab.verbs) == (True, ["gateway"], [])
    assert settings.exists()
    result = call(items=[])
    assert result["stale"] == ["gateway"]
    assert ["disable", "--now", "--", "moat-certificate@gateway.timer"] in lab.verbs
    assert not settings.exists()
    assert os.listdir(lab.path / "tls") == [".versions"]
    assert os.listdir(lab.path / "tls" / ".versions") == []
    assert not call(items=[])["changed"]


def test_something_else_in_the_place_is_not_touched(lab: Lab, call: Callable[..., dict[str, Any]]) -> None:
    own = lab.path / "tls" / "gateway"
    own.mkdir(parents=True)
    result = call(tokens=[TOKEN])
    assert "was not made by this role; move it away" in result["msg"]
    assert own.is_dir()
    assert not own.is_symlink()


def test_bad_input_is_refused_before_anything(lab: Lab, call: Callable[..., dict[str, Any]]) -> None:
    result = call(items=[{**ITEM, "lifetime": "2d"}], root="nonsense", ca_url="ftp://x")
    assert all(key in result["msg"] for key in ("items[0].lifetime", "root:", "ca_url"))


def test_settings_are_files_for_deploy(lab: Lab, call: Callable[..., dict[str, Any]]) -> None:
    files = call(check=True)["settings"]
    assert [file["path"] for file in files] == [str(lab.path / "settings" / "gateway.json")]
    assert json.loads(files[0]["content"])["common_name"] == "gpu1.x"
