# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import base64
import io
import subprocess
import tarfile

import pytest
from ansible_collections.moat.inference.plugins.module_utils import ca_archive, ca_pki
from ansible_collections.moat.inference.plugins.module_utils.run import Result

NEEDED = [f"pki/{name}" for name in ca_pki.SERVICE_FILES + ca_pki.PROVISIONER_FILES]


class Real:
    """Runs commands for real."""

    def run(self, argv, stdin=None, ok=(0,), env=None, cwd=None):
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode in ok, done.stderr
        return Result(tuple(argv), done.returncode, done.stdout, done.stderr)


def archive(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = 4 if info.isfile() else 0
            tar.addfile(info, io.BytesIO(b"data") if info.isfile() else None)
    return buffer.getvalue()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def authority(tmp_path):
    source = tmp_path / "source"
    for name in [*NEEDED, "config/ca.json", "db/000000.vlog"]:
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (source / "backup.cms").write_text("an older backup")
    return source


def test_what_is_packed_comes_back_closed(authority, tmp_path):
    target = tmp_path / "target"
    ca_archive.extract(ca_archive.load(ca_archive.pack(str(authority))), str(target))
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == {*NEEDED, "config/ca.json", "db/000000.vlog"}
    for path in target.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
        assert path.is_dir() or path.read_text() == str(path.relative_to(target))


@pytest.mark.parametrize(
    ("member", "word"),
    [
        ("/etc/passwd", "outside"),
        ("pki/../../etc/passwd", "outside"),
        ("etc/passwd", "outside"),
        ("pki//x", "outside"),
        (special("pki/link", tarfile.SYMTYPE, "/etc/passwd"), "neither"),
        (special("db/hard", tarfile.LNKTYPE, "/etc/passwd"), "neither"),
        (special("db/device", tarfile.CHRTYPE), "neither"),
    ],
)
def test_a_member_that_does_not_belong_writes_nothing(tmp_path, member, word):
    target = tmp_path / "target"
    with pytest.raises(ValueError, match=word):
        ca_archive.extract(archive(*NEEDED, member), str(target))
    assert not target.exists()


def test_an_archive_that_lacks_a_key_is_none(tmp_path):
    with pytest.raises(ValueError, match="lacks pki/intermediate_ca_key"):
        ca_archive.extract(
            archive(*[name for name in NEEDED if "intermediate_ca_key" not in name]), str(tmp_path / "t")
        )


@pytest.mark.parametrize(
    "text",
    ["", "bm8gYXJjaGl2ZQ==", base64.b64encode(archive(*NEEDED)[:60]).decode()],
    ids=["nothing", "text", "cut"],  # an archive has the time in it
)
def test_what_is_no_archive_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="no backup"):
        ca_archive.extract(ca_archive.load(text), str(tmp_path / "t"))


def test_what_is_no_base64_is_refused():
    with pytest.raises(ValueError, match="base64"):
        ca_archive.load("§§§")


@pytest.mark.parametrize("algorithm", [["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], ["rsa:2048"]])
def test_only_the_recipient_opens_it(tmp_path, algorithm):
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    make = ["openssl", "req", "-x509", "-nodes", "-subj", "/CN=o", "-newkey", *algorithm]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    text = "-----BEGIN EC PRIVATE KEY-----\nsecret\n"
    assert ca_archive.recipient_fault(Real(), certificate.read_text()) == ""
    message = tmp_path / "m.cms"
    message.write_text("Words before.\n\n" + ca_archive.encrypt(Real(), certificate.read_text(), text))
    assert "secret" not in message.read_text()
    command = ["openssl", "cms", "-decrypt", "-inform", "PEM", "-in", message, "-recip", certificate, "-inkey", key]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == text
    assert "private key" in ca_archive.recipient_fault(Real(), certificate.read_text() + key.read_text())


@pytest.mark.parametrize(
    "text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_no_recipient(text):
    assert ca_archive.recipient_fault(Real(), text)
