# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read, compare and atomically replace files."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from contextlib import suppress
from dataclasses import dataclass

CANDIDATE_PREFIX = ".moat-new."


@dataclass(frozen=True)
class FileState:
    """A path as it is on disk, or as it shall be.

    content is None for a directory and for a missing path; of a symbolic link it is the target.
    """

    kind: str  # file, directory, link, other, absent
    content: bytes | None = None
    mode: int | None = None
    owner: str | None = None
    group: str | None = None


ABSENT = FileState("absent")


def _owner_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def owner_id(name: str) -> int:
    """The number of a user; an owner that has lost its name is written as a number."""
    return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid


def group_id(name: str) -> int:
    """The number of a group."""
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid


def read_state(path: str) -> FileState:
    """Return the state of path without following a final symbolic link."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    attributes = (
        stat.S_IMODE(info.st_mode),
        _owner_name(info.st_uid),
        _group_name(info.st_gid),
    )
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as handle:
            return FileState("file", handle.read(), *attributes)
    if stat.S_ISLNK(info.st_mode):
        return FileState("link", os.fsencode(os.readlink(path)), None, *attributes[1:])
    return FileState("directory" if stat.S_ISDIR(info.st_mode) else "other", None, *attributes)


def _set_attributes(descriptor: int, state: FileState) -> None:
    uid = owner_id(state.owner) if state.owner is not None else -1
    gid = group_id(state.group) if state.group is not None else -1
    # chown(2) clears the set-user-ID and set-group-ID bits, so the mode comes after it
    os.fchown(descriptor, uid, gid)
    if state.mode is not None:
        os.fchmod(descriptor, state.mode)


def set_attributes(path: str, state: FileState) -> None:
    """Give path the mode, owner and group of state; raise KeyError for an unknown user or group.

    A symbolic link is refused: in a directory of another user it could lead anywhere.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _set_attributes(descriptor, state)
    finally:
        os.close(descriptor)


def sync_directory(path: str) -> None:
    """Flush a directory entry to disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def candidate_path(path: str) -> str:
    """Where the candidate of path is staged: always the same place, so a killed run leaves one file at most.

    Hidden, and with the ending of path: programs that read a whole directory pass it by, checkers know its kind.
    """
    directory, name = os.path.split(path)
    return os.path.join(directory, CANDIDATE_PREFIX + name)


def stage(path: str, state: FileState) -> str:
    """Write state beside path under a temporary name and return that name. The candidate is never wider than its mode."""
    candidate = candidate_path(path)
    with suppress(FileNotFoundError):
        os.unlink(candidate)
    descriptor = os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(state.content or b"")
            handle.flush()
            _set_attributes(handle.fileno(), state)
            os.fsync(handle.fileno())
    except BaseException:
        os.unlink(candidate)
        raise
    return candidate


def commit(candidate: str, path: str) -> None:
    """Put a staged candidate in the place of path in one step."""
    os.replace(candidate, path)
    sync_directory(os.path.dirname(path))


def write(path: str, state: FileState) -> None:
    """Replace path atomically by state."""
    commit(stage(path, state), path)


def write_link(path: str, target: bytes) -> None:
    """Have a symbolic link at path, which must not be there."""
    os.symlink(os.fsdecode(target), path)
    sync_directory(os.path.dirname(path))


def diff_entry(path: str, before: FileState, after: FileState, sensitive: bool = False) -> dict[str, str]:
    """Return one entry of Ansible's diff list, attributes first, content after; a sensitive content is never shown."""

    def text(state: FileState) -> str:
        if state.kind == "absent":
            return ""
        mode = "" if state.mode is None else f"{state.mode:04o}"
        head = "# {} {} {}:{}\n".format(state.kind, mode, state.owner or "", state.group or "")
        if state.content is None:
            return head
        if sensitive:
            return head + "(content not shown)\n"
        return head + state.content.decode("utf-8", "replace")

    shown_before, shown_after = text(before), text(after)
    if sensitive and before.content != after.content and before.kind == after.kind == "file":
        shown_after += "(content changed)\n"
    return {
        "before_header": path + ("" if before.kind != "absent" else " (absent)"),
        "after_header": path + ("" if after.kind != "absent" else " (absent)"),
        "before": shown_before,
        "after": shown_after,
    }
