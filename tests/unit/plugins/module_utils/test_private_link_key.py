from __future__ import annotations

import base64
import threading
from pathlib import Path

import pytest
from ansible_collections.moat.inference.plugins.module_utils import files
from ansible_collections.moat.inference.plugins.module_utils import private_link_key as keys

KEY = base64.b64encode(b"k" * 32).decode("ascii")
OTHER = base64.b64encode(b"o" * 32).decode("ascii")


def test_the_public_half_is_kept_and_read(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "link keys"
    assert keys.public_key_of(str(directory), "gpu1") == ""
    keys.keep_public_key(str(directory), "gpu1", KEY)
    assert (directory / "gpu1.pub").read_text() == KEY + "\n"
    assert (directory / "gpu1.pub").stat().st_mode & 0o777 == 0o644
    assert keys.public_key_of(str(directory), "gpu1") == KEY
    keys.keep_public_key(str(directory), "gpu1", OTHER)
    assert keys.public_key_of(str(directory), "gpu1") == OTHER


def test_hosts_keep_theirs_at_the_same_moment(tmp_path: Path) -> None:
    directory = str(tmp_path / "a" / "b")
    faults: list[Exception] = []

    def keep(number: int) -> None:
        try:
            keys.keep_public_key(directory, f"host{number % 8}", KEY)
        except OSError as error:
            faults.append(error)

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        f"host{number}.pub" for number in range(8)
    ]


@pytest.mark.parametrize("host", ["", "..", "../x", "a/b", ".hidden", "a\nb", "-x"])
def test_a_name_never_leaves_the_directory(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValueError, match="makes no file name"):
        keys.keep_public_key(str(tmp_path), host, KEY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "hello\n", KEY[:-2], KEY + KEY, "\xff" * 44])
def test_a_file_without_a_key_is_named_with_its_remedy(tmp_path: Path, content: str) -> None:
    (tmp_path / "gpu1.pub").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"gpu1\.pub holds no WireGuard key; converge gpu1"):
        keys.public_key_of(str(tmp_path), "gpu1")


def test_a_copied_key_is_found(tmp_path: Path) -> None:
    assert keys.owners(str(tmp_path / "none"), KEY, besides="gpu1") == []
    for host, key in (("gpu1", KEY), ("gpu2", KEY), ("app1", OTHER)):
        keys.keep_public_key(str(tmp_path), host, key)
    (tmp_path / "notes.txt").write_text(KEY)
    assert keys.owners(str(tmp_path), KEY, besides="gpu1") == ["gpu2"]
    assert keys.owners(str(tmp_path), OTHER, besides="app1") == []


def test_a_private_key_file(tmp_path: Path) -> None:
    path = tmp_path / "moat0.key"
    assert keys.read_key(files.read_state(str(path)), str(path)) == ""
    path.write_text(KEY + "\n")
    assert keys.read_key(files.read_state(str(path)), str(path)) == KEY
    path.write_text("")
    with pytest.raises(ValueError, match="remove it to have a new key made"):
        keys.read_key(files.read_state(str(path)), str(path))


def test_paths() -> None:
    assert keys.key_path("moat0") == "/etc/wireguard/moat0.key"
    assert keys.configuration_path("moat0") == "/etc/wireguard/moat0.conf"
