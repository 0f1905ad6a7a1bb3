# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import io
import tarfile

import pytest
from ansible_collections.moat.inference.plugins.module_utils import ca_programs
from ansible_collections.moat.inference.plugins.module_utils.run import Result


class Answer:
    def __init__(self, stdout, rc=0):
        self.result = Result((), rc, stdout, "")

    def run(self, argv, stdin=None, ok=(0,), env=None, cwd=None):
        return self.result


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Smallstep CA/0.30.2 (linux/amd64)\nRelease Date: 2026-03-01\n", "0.30.2"),
        ("Smallstep CLI/0.30.2 (linux/arm64)\n", "0.30.2"),
        ("step version 1\n", ""),
        ("", ""),
    ],
)
def test_versions(text, version):
    assert ca_programs.parse_version(text) == version


def test_a_build_from_source_is_known_by_its_module(tmp_path):
    program = tmp_path / "step-ca"
    program.write_bytes(b"\0\0path\tx\nmod\tgithub.com/smallstep/certificates\tv0.30.2\th1:abc\n\0")
    unnamed = Answer("Smallstep CA/0000000-dev (linux/amd64)\n")
    assert ca_programs.version_of(unnamed, "step-ca", str(program)) == "0.30.2"
    # the other program's module proves nothing
    assert ca_programs.version_of(unnamed, "step", str(program)) == ""


def test_a_program_that_is_missing_or_does_not_run_has_no_version(tmp_path):
    assert ca_programs.version_of(Answer("Smallstep CA/0.30.2"), "step-ca", str(tmp_path / "none")) == ""
    (tmp_path / "step-ca").write_text("x")
    assert ca_programs.version_of(Answer("Smallstep CA/0.30.2", rc=126), "step-ca", str(tmp_path / "step-ca")) == ""


def test_addresses_are_the_makers():
    url = ca_programs.archive_url("https://github.com/smallstep/", "step", "0.30.2", "amd64")
    assert url == "https://github.com/smallstep/cli/releases/download/v0.30.2/step_linux_0.30.2_amd64.tar.gz"
    url = ca_programs.archive_url("https://github.com/smallstep", "step-ca", "0.30.2", "arm64")
    assert url.endswith("/certificates/releases/download/v0.30.2/step-ca_linux_0.30.2_arm64.tar.gz")


@pytest.mark.parametrize("checksum", [None, "", "latest", "A" * 64, "a" * 63])
def test_no_archive_without_its_checksum(checksum):
    given = {"step-ca_linux_0.30.2_amd64.tar.gz": "a" * 64}
    if checksum is not None:
        given["step_linux_0.30.2_amd64.tar.gz"] = checksum
    (fault,) = ca_programs.missing_checksums(given, "0.30.2", "amd64")
    assert "step_linux_0.30.2_amd64.tar.gz" in fault and "checksums.txt" in fault


def test_unpack_takes_the_program_and_nothing_else(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in (("step_0.30.2/README.md", b"no"), ("step_0.30.2/bin/step", b"yes")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    buffer.seek(0)
    ca_programs.unpack(buffer, "step", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"yes"
    buffer.seek(0)
    with pytest.raises(ValueError, match="no step-ca"):
        ca_programs.unpack(buffer, "step-ca", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_sha256_goes_back_to_the_beginning():
    handle = io.BytesIO(b"abc")
    assert ca_programs.sha256_of(handle) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert handle.read() == b"abc"
