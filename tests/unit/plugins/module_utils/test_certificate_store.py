"""Sets of key and certificate on disk, made and judged by the real openssl. The authority is an openssl CA in a directory."""

from __future__ import annotations

import dataclasses
import grp
import json
import os
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ansible_collections.moat.inference.plugins.module_utils import certificate, certificate_renew, certificate_store
from ansible_collections.moat.inference.plugins.module_utils.certificate_store import Authority, CertificateError, Store

REQUEST = certificate.Request(
    "gateway", "gpu1.gateway.x", ("gpu1.gateway.x", "m.model.x"), ("spiffe://x/gateway/gpu1",), 86400
)


def run(directory: Path, *argv: str) -> None:
    subprocess.run(argv, cwd=directory, check=True, capture_output=True)


class Signer(Authority):
    """Signs with openssl as step-ca would, names as asked, or as the present certificate has them."""

    def __init__(self, directory: Path) -> None:
        super().__init__("https://127.0.0.1:1")
        self.directory = directory
        self.days = "1"
        self.calls: list[str] = []
        self.answer: str | None = None
        directory.mkdir()
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        run(
            directory,
            "openssl",
            "req",
            "-x509",
            *curve,
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
            "-subj",
            "/CN=root",
            "-days",
            "2",
        )
        self.root = (directory / "ca.crt").read_text()

    def _sign(self, request: str) -> str:
        if self.answer is not None:
            return self.answer
        (self.directory / "csr").write_text(request)
        ca = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-copy_extensions", "copy"]
        run(self.directory, "openssl", "x509", "-req", "-in", "csr", *ca, "-days", self.days, "-out", "crt")
        return (self.directory / "crt").read_text()

    def sign(self, root: str, request: str, token: str, lifetime: int) -> str:
        self.calls.append(f"sign {token}")
        return self._sign(request)

    def renew(self, directory: str, request: str | None) -> str:
        self.calls.append("rekey" if request else "renew")
        if request is None:
            present = ["-in", directory + "/cert.pem", "-signkey", directory + "/key.pem"]
            argv = ["openssl", "x509", "-x509toreq", "-copy_extensions", "copy", *present]
            return self._sign(subprocess.check_output(argv, text=True))
        return self._sign(request)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "tls"), grp.getgrgid(os.getgid()).gr_name, (os.getuid(), os.getgid()))


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "ca")


def enrol(store: Store, signer: Signer, request: certificate.Request = REQUEST) -> certificate.Certificate:
    return certificate_store.enrol(store, request, signer, signer.root, "token", int(time.time()))


def reasons(store: Store, signer: Signer, request: certificate.Request = REQUEST) -> list[str]:
    return certificate.recreate_reasons(request, store.read(request.name), signer.root, int(time.time()))


def test_an_enrolled_set_is_good_and_its_key_private(store: Store, signer: Signer) -> None:
    assert reasons(store, signer) == ["absent"]
    issued = enrol(store, signer)
    assert reasons(store, signer) == []
    assert store.wrong_attributes("gateway") == []
    assert issued.sans == frozenset(REQUEST.sans)
    directory = Path(store.path("gateway"))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {"key.pem": 0o600, "cert.pem": 0o644, "bundle.pem": 0o640, "root.pem": 0o644}
    text = subprocess.check_output(["openssl", "pkey", "-in", str(directory / "key.pem"), "-noout", "-text"], text=True)
    assert "prime256v1" in text
    assert store.names() == ["gateway"]


def test_a_wider_mode_is_seen_and_put_right(store: Store, signer: Signer) -> None:
    enrol(store, signer)
    os.chmod(store.path("gateway") + "/key.pem", 0o644)
    assert store.wrong_attributes("gateway") == ["key.pem"]
    store.set_attributes(store.path("gateway"), ["key.pem"])
    assert store.wrong_attributes("gateway") == []


def test_real_faults_are_named(store: Store, signer: Signer, tmp_path: Path) -> None:
    enrol(store, signer)
    directory = Path(store.path("gateway"))
    whole = {path.name: path.read_bytes() for path in directory.iterdir()}
    run(directory, "openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "key.pem")
    assert reasons(store, signer) == ["key_mismatch", "bundle_mismatch"]
    (directory / "key.pem").write_bytes(b"\xff\xfe not a key")
    assert reasons(store, signer) == ["unreadable"]
    (directory / "key.pem").write_bytes(whole["key.pem"])
    (directory / "cert.pem").write_bytes(b"")
    assert reasons(store, signer) == ["unreadable"]
    (directory / "cert.pem").unlink()
    assert reasons(store, signer) == ["incomplete"]
    (directory / "cert.pem").write_bytes(whole["cert.pem"])
    assert reasons(store, signer) == []
    other = Signer(tmp_path / "other")
    assert reasons(store, other) == ["root"]
    (directory / "root.pem").write_text(other.root)
    assert reasons(store, other) == ["chain"]


def test_the_set_before_stays_for_its_readers_and_no_older_one(store: Store, signer: Signer) -> None:
    seen = []
    for _number in range(4):
        enrol(store, signer)
        seen.append(os.path.basename(os.path.realpath(store.path("gateway"))))
    assert set(os.listdir(store.base + "/.versions")) == set(seen[-2:])


def test_a_refused_answer_leaves_the_set_and_no_litter(store: Store, signer: Signer, tmp_path: Path) -> None:
    enrol(store, signer)
    before = os.listdir(store.base + "/.versions")
    other = Signer(tmp_path / "other")
    for answer, fault in ((other.root, "key_mismatch"), ("nonsense", "unreadable")):
        signer.answer = answer
        with pytest.raises(CertificateError, match=fault):
            enrol(store, signer)
    signer.answer = None
    signer.days = "2"
    with pytest.raises(CertificateError, match="lifetime"):
        enrol(store, signer)
    assert os.listdir(store.base + "/.versions") == before
    assert reasons(store, signer) == []


def test_what_a_killed_run_left_goes_with_the_next_and_neighbours_stay(store: Store, signer: Signer) -> None:
    enrol(store, signer)
    neighbour = dataclasses.replace(REQUEST, name="gateway-2")
    enrol(store, signer, neighbour)
    os.mkdir(store.base + "/.versions/gateway.killed")
    os.symlink("gateway.killed", store.base + "/.versions/gateway.killed.link")
    enrol(store, signer)
    assert not [name for name in os.listdir(store.base + "/.versions") if "killed" in name]
    assert reasons(store, signer, neighbour) == []
    store.remove("gateway")
    assert store.names() == ["gateway-2"]
    assert reasons(store, signer, neighbour) == []
    assert all(name.startswith("gateway-2.") for name in os.listdir(store.base + "/.versions"))


def test_what_is_not_ours_is_told_apart(store: Store, signer: Signer) -> None:
    os.makedirs(store.path("gateway"))
    assert store.foreign("gateway")
    assert store.names() == []


@pytest.mark.parametrize(("new_key", "call"), [(True, "rekey"), (False, "renew")])
def test_a_renewal_keeps_names_and_perhaps_the_key(store: Store, signer: Signer, new_key: bool, call: str) -> None:
    before = enrol(store, signer)
    after = certificate_store.renew(store, REQUEST, signer, new_key, int(time.time()))
    assert signer.calls == ["sign token", call]
    assert after.serial != before.serial
    assert after.sans == before.sans
    assert (after.public_key == before.public_key) is not new_key
    assert reasons(store, signer) == []


def test_a_renewal_with_other_names_is_refused(store: Store, signer: Signer) -> None:
    before = enrol(store, signer)
    request = dataclasses.replace(REQUEST, dns=("other.x",))
    with pytest.raises(CertificateError, match="other names than before"):
        certificate_store.renew(store, request, signer, True, int(time.time()))
    assert store.read("gateway").certificate == before


def settings(**fields: Any) -> dict[str, Any]:
    item = {
        "name": "gateway",
        "common_name": REQUEST.common_name,
        "dns": list(REQUEST.dns),
        "uris": list(REQUEST.uris),
        "lifetime": "24h",
    }
    return {**json.loads(certificate.render_settings(item, "https://127.0.0.1:1", "root", True)), **fields}


def test_the_timer_renews_when_due_or_asked_and_not_before(
    store: Store, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = enrol(store, signer)
    monkeypatch.setattr(certificate_store, "Authority", lambda _url: signer)
    assert certificate_renew.run(settings(), store, False, first.due - 1) == []
    assert store.read("gateway").certificate == first
    assert certificate_renew.run(settings(), store, False, first.due) == []
    second = store.read("gateway").certificate
    assert second and second.serial != first.serial
    assert certificate_renew.run(settings(), store, True, int(time.time())) == []
    third = store.read("gateway").certificate
    assert third and third.serial != second.serial


def test_an_authority_that_is_down_is_an_error_and_changes_nothing(store: Store, signer: Signer) -> None:
    first = enrol(store, signer)
    faults = certificate_renew.run(settings(), store, True, int(time.time()))
    assert len(faults) == 1
    assert "https://127.0.0.1:1 could not be asked" in faults[0]
    assert store.read("gateway").certificate == first


def test_a_lost_or_expired_certificate_is_an_error(store: Store, signer: Signer) -> None:
    first = enrol(store, signer)
    with pytest.raises(CertificateError, match="expired"):
        certificate_renew.run(settings(), store, False, first.not_after)
    os.unlink(store.path("gateway") + "/cert.pem")
    with pytest.raises(CertificateError, match="incomplete"):
        certificate_renew.run(settings(), store, False, int(time.time()))
    os.unlink(store.path("gateway"))
    with pytest.raises(CertificateError, match="absent"):
        certificate_renew.run(settings(), store, False, int(time.time()))


class Answers(BaseHTTPRequestHandler):
    status, body = 201, b""
    asked: ClassVar[list[tuple[str, Any]]] = []

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, json.loads(content) if content else None))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def listener(store: Store, signer: Signer) -> Iterator[str]:
    """An HTTPS server whose certificate the signer issued."""
    server_request = dataclasses.replace(REQUEST, name="server", common_name="localhost", dns=("localhost",), uris=())
    enrol(store, signer, server_request)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(store.path("server") + "/cert.pem", store.path("server") + "/key.pem")
    server = HTTPServer(("127.0.0.1", 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    Answers.asked.clear()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_authority_is_asked_as_its_interface_says(
    store: Store, signer: Signer, listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = store.path("server") + "/root.pem"
    chain = signer.root + signer.root
    monkeypatch.setattr(Answers, "status", 201)
    monkeypatch.setattr(Answers, "body", json.dumps({"crt": "x", "certChain": [signer.root, signer.root]}).encode())
    assert Authority(listener).sign(root, "csr", "token", 3600) == chain
    assert Authority(listener).renew(store.path("server"), None) == chain
    assert Authority(listener).renew(store.path("server"), "csr") == chain
    assert Answers.asked == [
        ("/1.0/sign", {"csr": "csr", "ott": "token", "notAfter": "3600s"}),
        ("/1.0/renew", None),
        ("/1.0/rekey", {"csr": "csr"}),
    ]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (403, b'{"status": 403, "message": "not allowed"}', "refused to sign: 403 not allowed"),
        (500, b"<html>", "refused to sign: 500"),
        (201, b"{}", "sent no certificate"),
        (201, b"[]", "sent no certificate"),
        (200, b"{}", "refused to sign: 200"),
    ],
)
def test_a_refusal_says_why_without_the_token(
    store: Store, listener: str, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, message: str
) -> None:
    monkeypatch.setattr(Answers, "status", status)
    monkeypatch.setattr(Answers, "body", body)
    with pytest.raises(CertificateError) as caught:
        Authority(listener).sign(store.path("server") + "/root.pem", "csr", "secret-token", 3600)
    assert message in str(caught.value)
    assert "secret-token" not in str(caught.value)


def test_an_authority_of_another_root_gets_no_token(store: Store, listener: str, tmp_path: Path) -> None:
    other = Signer(tmp_path / "other")
    with pytest.raises(CertificateError, match="could not be asked"):
        Authority(listener).sign(str(other.directory / "ca.crt"), "csr", "token", 3600)
    assert Answers.asked == []
