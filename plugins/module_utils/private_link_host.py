# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One WireGuard interface on its host, read and changed through wg(8), ip(8) and systemctl(1)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ansible_collections.moat.inference.plugins.module_utils import deploy, private_link
from ansible_collections.moat.inference.plugins.module_utils.run import Runner

PROPERTIES = "ActiveState,UnitFileState,NeedDaemonReload,LoadState"
RUNNING = ("active", "reloading")
ANY = range(256)
RUN = "/run"


class Host:
    """Reads and changes the interface."""

    def __init__(self, runner: Runner, interface: str) -> None:
        self._runner = runner
        self.interface = interface
        self.unit = f"wg-quick@{interface}.service"
        # in /run, for a reboot restarts the unit anyway
        self.pending = f"{RUN}/moat-link-{interface}.restart"

    def live(self, names: dict[str, str]) -> private_link.Link | None:
        """Return the interface as it runs; names is public key -> name."""
        shown = self._runner.run(["ip", "-d", "-j", "address", "show", "dev", self.interface], ok=(0, 1, 127))
        if shown.rc != 0:
            return None
        dump = self._runner.run(["wg", "show", self.interface, "dump"], ok=ANY)
        if dump.rc != 0:
            raise RuntimeError(
                f"interface {self.interface} is there and is no WireGuard interface: {dump.stderr.strip()}; "
                "remove it or choose another name"
            )
        routes = [
            self._runner.run(["ip", "-j", family, "route", "show", "dev", self.interface], ok=ANY).stdout
            for family in ("-4", "-6")
        ]
        link = private_link.parse_dump(dump.stdout, self.interface, names)
        return private_link.with_network(link, shown.stdout, *routes)

    def unit_state(self) -> deploy.UnitState:
        result = self._runner.run(["systemctl", "show", "-p", PROPERTIES, "--", self.unit], ok=(0, 1, 127))
        return deploy.parse_show(result.stdout, [self.unit])[self.unit]

    def systemctl(self, *words: str) -> None:
        self._runner.run(["systemctl", *words])

    def start(self) -> None:
        """Restart the unit; what it said last is part of the failure."""
        result = self._runner.run(["systemctl", "restart", "--", self.unit], ok=ANY)
        if result.rc != 0:
            words = ["journalctl", "-u", self.unit, "-n", "15", "--no-pager", "-o", "cat"]
            journal = self._runner.run(words, ok=ANY).stdout
            raise RuntimeError(f"{self.unit} does not start: {journal.strip() or result.stderr.strip()}")

    def delete(self) -> None:
        self._runner.run(["ip", "link", "delete", "dev", self.interface])

    def forget_pending(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.pending)

    @contextmanager
    def _private_directory(self) -> Iterator[str]:
        """A directory in memory that only root can read; what a killed run left of it goes first."""
        path = f"{RUN}/moat-link-{self.interface}"
        shutil.rmtree(path, ignore_errors=True)
        os.mkdir(path, 0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def strip(self, text: str, private_key: str, keys: set[str]) -> str:
        """Return what wg-quick makes of a configuration for wg, once that is known to be whole."""
        with self._private_directory() as directory:
            path = os.path.join(directory, f"{self.interface}.conf")
            private_file(path, text)
            result = self._runner.run(["wg-quick", "strip", path], ok=ANY)
        faults = [] if result.rc == 0 else [f"wg-quick strip: {result.stderr.strip()}"]
        faults = faults or private_link.stripped_faults(result.stdout, private_key, keys)
        if faults:
            raise RuntimeError(f"the configuration for {self.interface} was not applied: {'; '.join(faults)}")
        return result.stdout

    def sync(self, stripped: str) -> None:
        """Have wg apply a checked configuration; wg reads all of it before it changes anything."""
        with self._private_directory() as directory:
            path = os.path.join(directory, "checked")
            private_file(path, stripped)
            self._runner.run(["wg", "syncconf", self.interface, path])

    def apply(self, delta: private_link.Delta, stripped: str, mtu: int) -> None:
        """Bring the running interface along. Routes go last, so what was meant for a removed peer is refused, not sent elsewhere."""
        device = ["dev", self.interface]
        if delta.sync:
            self.sync(stripped)
        for key in delta.clear:
            # an empty file takes the preshared key away (wg(8))
            self._runner.run(
                ["wg", "set", self.interface, "peer", key, "persistent-keepalive", "off", "preshared-key", "/dev/null"]
            )
        for address in delta.addresses_added:
            self._runner.run(["ip", "address", "add", address, *device])
        if delta.link:
            self._runner.run(["ip", "link", "set", *device, "mtu", str(mtu), "up"])
        for route in delta.routes_added:
            self._runner.run(["ip", "route", "add", route, *device])
        for route in delta.routes_removed:
            self._runner.run(["ip", "route", "delete", route, *device])
        for address in delta.addresses_removed:
            self._runner.run(["ip", "address", "delete", address, *device])


def private_file(path: str, text: str) -> None:
    """Write text to a new file that only root can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
