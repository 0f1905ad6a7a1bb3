"""Run programs, show progress, write files that are whole or absent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / ".lab"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moat-lab"


class LabError(Exception):
    """Something a person has to read: printed without a traceback."""


def privileged(argv: Sequence[str]) -> list[str]:
    """The command as root; -E would drop nothing we need, env passes what matters explicitly."""
    return list(argv) if os.geteuid() == 0 else ["sudo", "-n", *argv]


def capture(argv: Sequence[str], *, check: bool = True, data: bytes | None = None, timeout: float | None = None) -> str:
    """Run quietly and return what it printed."""
    done = subprocess.run(
        argv,
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        check=False,
        timeout=timeout,
    )
    if check and done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise LabError(f"{' '.join(map(str, argv[:6]))} … failed with {done.returncode}:\n{said[-2000:]}")
    return done.stdout.decode(errors="replace")


def succeeds(argv: Sequence[str], *, timeout: float | None = None) -> bool:
    """True when the command exits with 0."""
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        return (
            subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                timeout=timeout,
            ).returncode
            == 0
        )
    return False


def say(text: str) -> None:
    print(text, flush=True)


class Step:
    """One long step: a line that ticks on a terminal, a line now and then elsewhere, the whole output in a log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.log = LAB / "log" / f"{name.split()[0]}.log"
        self.started = time.monotonic()
        self.done = threading.Event()
        self.last = ""
        self.tty = sys.stdout.isatty()

    def __enter__(self) -> Step:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("", encoding="utf-8")
        say(f"-- {self.name}")
        self.ticker = threading.Thread(target=self._tick, daemon=True)
        self.ticker.start()
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self.done.set()
        self.ticker.join()
        verdict = "done" if kind is None else "FAILED"
        say(f"{chr(13) + chr(27) + '[K' if self.tty else ''}   {self.name}: {verdict}, {self.seconds:.0f} s")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def _tick(self) -> None:
        while not self.done.wait(1 if self.tty else 20):
            text = f"   {self.seconds:4.0f} s  {self.last}"
            if self.tty:
                width = shutil.get_terminal_size().columns - 1
                sys.stdout.write(f"\r\033[K{text[:width]}")
                sys.stdout.flush()
            else:
                say(text[:150])

    def run(self, argv: Sequence[str], *, env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
        """Run one command of the step; its output goes to the log, its last line to the ticker."""
        with (
            self.log.open("ab") as log,
            subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=cwd
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                log.flush()
                self.last = line.decode(errors="replace").strip() or self.last
        if process.returncode:
            tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise LabError(f"{self.name}: {argv[0]} failed with {process.returncode}; the log is {self.log}\n{tail}")


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write beside, then rename: a killed run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)


def remove_tree(path: Path) -> None:
    """Remove what may belong to root."""
    if path.exists() or path.is_symlink():
        capture(privileged(["rm", "-rf", "--", str(path)]))


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """One run at a time. The kernel drops the lock of a killed run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
