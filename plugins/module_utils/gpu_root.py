# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A host's files and programs below one directory, so that a captured or made-up host is read by the very code that reads a real one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from ansible.module_utils.common.process import get_bin_path
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result, Runner

PROGRAM_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ESRCH)
# what Linux itself follows, path_resolution(7)
LINKS = 40
# no file that is read here comes near to it
LARGEST = 16 * 1024 * 1024
# sysctl files want room in the kernel for as much as is asked for
CHUNK = 65536
NOT_FOUND = 127
# what timeout(1) ends with when the time is up
OVERDUE = (124, 137)


class Root:
    """A host below path.

    Paths are the host's own, such as /etc/os-release; links in them are followed inside the root, as chroot(2) would. What
    is there and could not be read is gathered in unread, as {"what", "why"}. No method raises OSError or CommandError.
    """

    def __init__(self, path: str, runner: Runner) -> None:
        self.path = os.path.normpath(path)
        self.unread: list[dict[str, str]] = []
        self._runner = runner

    def tell(self, what: str, why: str) -> None:
        """Remember once that what could not be read, and why."""
        entry = {"what": what, "why": why}
        if entry not in self.unread:
            self.unread.append(entry)

    def real(self, path: str, last: bool = True) -> str:
        """Return the host's path without links; the last part's own link is followed only if last. A loop stays as it is."""
        done, left, links = "/", [part for part in path.split("/") if part not in ("", ".")], 0
        while left:
            part = left.pop(0)
            if part == "..":
                done = os.path.dirname(done)
                continue
            following = os.path.join(done, part)
            target = self._readlink(following) if left or last else None
            if target is None or links == LINKS:
                done = following
                continue
            links += 1
            if target.startswith("/"):
                done = "/"
            left[:0] = [item for item in target.split("/") if item not in ("", ".")]
        return done

    def place(self, path: str, last: bool = True) -> str:
        """Return where the host's path is on this machine."""
        if self.path == "/":
            return path
        return self._joined(self.real(path, last))

    def text(self, path: str) -> str | None:
        """Return the text of a regular file, without trailing white space, or None when it is absent or cannot be read."""
        content = self.content(path)
        return None if content is None else content.decode("utf-8", "replace").rstrip("\0 \t\r\n")

    def content(self, path: str) -> bytes | None:
        """Return the bytes of a regular file, or None when it is absent or cannot be read."""
        try:
            # a pipe without a writer would never open
            descriptor = os.open(self.place(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb", buffering=0) as handle:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    self.tell(path, "it is not a regular file")
                    return None
                content = b""
                while len(content) < LARGEST and (more := handle.read(CHUNK)):
                    content += more
                return content
        except OSError as error:
            self._failed(path, error)
        return None

    def names(self, path: str) -> list[str]:
        """Return the names in a directory in order; none when it is absent or cannot be read."""
        try:
            return sorted(os.listdir(self.place(path)))
        except OSError as error:
            self._failed(path, error)
        return []

    def link(self, path: str) -> str | None:
        """Return what a link says, as readlink(2) does, or None when it is not a link."""
        return self._readlink(self.real(path, last=False))

    def exists(self, path: str) -> bool:
        """Whether the path, with its links followed inside the root, is there."""
        return os.path.lexists(self.place(path)) if self.path != "/" else os.path.exists(path)

    def is_dir(self, path: str) -> bool:
        """Whether the path, with its links followed inside the root, is a directory."""
        return os.path.isdir(self.place(path))

    def program(self, name: str) -> str | None:
        """Return where the program is on this machine, or None.

        Below / it is found on the system's path. Elsewhere it is the one in the root, whose last link is not resolved, for a
        program such as modinfo goes by the name it is called by; one whose link leads out of the root counts as absent.
        """
        if self.path == "/":
            try:
                return str(get_bin_path(name))
            except ValueError:
                return None
        inside = os.path.join(os.path.realpath(self.path), "")
        for directory in PROGRAM_DIRECTORIES:
            found = self.place(os.path.join(directory, name), last=False)
            if os.access(found, os.X_OK) and os.path.isfile(found) and os.path.realpath(found).startswith(inside):
                return found
        return None

    def run(self, argv: Sequence[str], limit: int = 0) -> Result:
        """Run the host's program argv[0] and return its Result, whatever its status.

        The status is 127 when the host has no such program, and 124 or 137 when it took longer than limit seconds (timeout(1),
        where the host has it; 0 is no limit).
        """
        found = self.program(argv[0])
        if found is None:
            return Result(tuple(argv), NOT_FOUND, "", f"{argv[0]} is not there")
        command = [found, *argv[1:]]
        timer = self.program("timeout") if limit else None
        if timer:
            command = [timer, "--kill-after=5", str(limit), *command]
        try:
            result = self._runner.run(command, ok=range(-64, 256))
        except CommandError as error:
            result = error.result
        return Result(tuple(argv), result.rc, result.stdout, result.stderr)

    def _joined(self, path: str) -> str:
        return self.path if path == "/" else os.path.join(self.path, path.lstrip("/"))

    def _readlink(self, path: str) -> str | None:
        try:
            return os.readlink(self._joined(path))
        except OSError:
            return None

    def _failed(self, path: str, error: OSError) -> None:
        if error.errno not in ABSENT:
            self.tell(path, os.strerror(error.errno or errno.EIO))


def failure(result: Result) -> str:
    """Return in one line why a program did not answer."""
    if result.rc in OVERDUE:
        return f"{os.path.basename(result.argv[0])} did not answer in time"
    lines = [line.strip() for line in (result.stderr + "\n" + result.stdout).splitlines() if line.strip()]
    return lines[0][:300] if lines else f"status {result.rc}"
