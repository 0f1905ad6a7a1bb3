# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Have a service take a new certificate, and see that it serves it. Standard library; also installed on hosts."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from ansible_collections.moat.inference.plugins.module_utils import certificate
    from ansible_collections.moat.inference.plugins.module_utils.certificate_store import (
        CertificateError,
        Store,
    )
else:  # on a host this file lies beside the others
    import certificate
    from certificate_store import CertificateError, Store

RUNNING = ("active", "reloading", "activating", "refreshing")
PATIENCE, UNASKED_PATIENCE = 20.0, 3.0
SERIAL = re.compile(r"^Serial: *([0-9A-Fa-f]+)$", re.MULTILINE)


def command(*argv: str) -> str:
    """Run a command and return its output; raise CertificateError when it fails."""
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False, timeout=90)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise CertificateError(f"{' '.join(argv)}: {error}") from error
    if done.returncode != 0:
        raise CertificateError(f"{' '.join(argv)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def ask_haproxy(path: str, line: str) -> str:
    """Return what HAProxy answers on its statistics socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(3)
        client.connect(path)
        client.sendall(line.encode("ascii") + b"\n")
        parts: list[bytes] = []
        while True:
            part = client.recv(65536)
            if not part:
                return b"".join(parts).decode("utf-8", "replace")
            parts.append(part)


def parse_listing(text: str, directory: str) -> list[str]:
    """Return the files below directory that `show ssl cert` lists; a leading * marks an uncommitted change."""
    names = [line.strip().lstrip("*") for line in text.splitlines() if not line.startswith("#")]
    return [name for name in names if name.startswith(directory.rstrip("/") + "/")]


def parse_serial(text: str) -> int | None:
    """Return the serial number that `show ssl cert FILE` shows."""
    match = SERIAL.search(text)
    return int(match.group(1), 16) if match else None


def parse_listeners(text: str, unit: str) -> list[tuple[str, int]]:
    """Return where a unit listens, from `ss -Hltn --cgroup`; a wildcard is asked over loopback."""
    listeners = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 6 or not words[-1].startswith("cgroup:") or unit not in words[-1].split("/"):
            continue
        address, _colon, port = words[3].rpartition(":")
        address = address.split("%")[0].strip("[]")
        listeners.append(({"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(address, address), int(port)))
    return listeners


def parse_address(text: str) -> tuple[str, int]:
    """Split address:port; an IPv6 address stands in brackets."""
    address, _colon, port = text.rpartition(":")
    return address.strip("[]"), int(port)


class Service:
    """The user of one certificate."""

    def __init__(self, request: certificate.Request, store: Store, say: Callable[[str], None]) -> None:
        self.request = request
        self.store = store
        self._say = say
        self.directory = store.path(request.name)
        self.socket = f"/run/{request.reload_unit[: -len('.service')]}/admin.sock"

    def running(self) -> bool:
        if not self.request.reload_unit:
            return False
        state = command("systemctl", "show", "-p", "ActiveState", "--value", "--", self.request.reload_unit)
        return state.strip() in RUNNING

    def served(self) -> bool | None:
        """Say whether the service has the certificate that is on disk; None when nobody can be asked."""
        found = self.store.read(self.request.name)
        if found.certificate is None:
            raise CertificateError("the certificate went away while it was checked")
        answers = [self._in_haproxy(found.certificate.serial)]
        leaf = ssl.PEM_cert_to_DER_cert(certificate.blocks(found.files["cert.pem"])[0])
        if self.request.probe:
            answers.append(self._presented(parse_address(self.request.probe)) == leaf)
        known = [answer for answer in answers if answer is not None]
        if known:
            return all(known)
        listening = command("ss", "-Hltn", "--cgroup")
        presented = [self._presented(address) for address in parse_listeners(listening, self.request.reload_unit)]
        presented = [der for der in presented if der is not None]
        return leaf in presented if presented else None

    def _in_haproxy(self, serial: int) -> bool | None:
        if not os.path.exists(self.socket):
            return None
        files = parse_listing(ask_haproxy(self.socket, "show ssl cert"), self.directory)
        # a service that was not told of this certificate yet reads it with its next configuration
        if not files:
            return None
        return all(parse_serial(ask_haproxy(self.socket, f"show ssl cert {file}")) == serial for file in files)

    def unused(self) -> bool:
        """Whether HAProxy has loaded nothing of this certificate: one that is new comes with the next configuration."""
        if self.request.probe or not os.path.exists(self.socket):
            return False
        answer = ask_haproxy(self.socket, "show ssl cert")
        return answer.startswith("# filename") and not parse_listing(answer, self.directory)

    def _presented(self, address: tuple[str, int]) -> bytes | None:
        """Return the certificate that a TLS listener presents; it is compared, so it need not be trusted here."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(os.path.join(self.directory, "cert.pem"), os.path.join(self.directory, "key.pem"))
        try:
            with socket.create_connection(address, timeout=3) as plain:
                name = self.request.dns[0] if self.request.dns else None
                with context.wrap_socket(plain, server_hostname=name) as secure:
                    return secure.getpeercert(binary_form=True)
        except OSError:
            return None

    def settle(self, renewed: bool) -> None:
        """Reload the service unless it has the certificate already, and raise CertificateError when it does not take it."""
        unit = self.request.reload_unit
        if not self.running():
            if unit:
                self._say(f"{unit} is not running; it reads the certificate when it starts")
            return
        try:
            if self.unused():
                self._say(f"{unit} has not been configured to use it yet")
                return
            present = self.served()
        except OSError:
            present = False
        if present or (present is None and not renewed):
            return
        command("systemctl", "try-reload-or-restart", "--", unit)
        # what could not be asked before may open its socket or port with the reload
        last = time.monotonic() + (UNASKED_PATIENCE if present is None else PATIENCE)
        while True:
            try:
                answer = self.served()
                reason = "still serves another certificate"
            except OSError as error:
                answer, reason = False, f"does not answer on {self.socket}: {error}"
            if answer:
                self._say(f"{unit} was reloaded and serves the new certificate")
                return
            if time.monotonic() >= last:
                break
            time.sleep(0.25)
        if answer is None:
            self._say(f"{unit} was reloaded; it has no socket that could be asked what it serves")
            return
        raise CertificateError(f"{unit} was reloaded but {reason}; see journalctl -u {unit}")
