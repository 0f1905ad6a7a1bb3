# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One WireGuard interface on its host, read and changed through wg(8), ip(8) and systemctl(1)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from ansible_collections.moat.inference.plugins.module_utils import deploy, private_link
from ansible_collections.moat.inference.plugins.module_utils.pending import Pending
from ansible_collections.moat.inference.plugins.module_utils.run import Runner
from ansible_collections.moat.inference.plugins.module_utils.steps import Steps

NAME = "private_link"
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
        self.pending, self.steps = Pending(runner, NAME), Steps(runner)

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

    def run(self, argv: Sequence[str]) -> None:
        self._runner.run(argv)

    def systemctl(self, verb: str) -> None:
        self._runner.run(["systemctl", verb, "--", self.unit])

    def start(self) -> None:
        """Restart the unit; what it said last is part of the failure."""
        result = self._runner.run(["systemctl", "restart", "--", self.unit], ok=ANY)
        if result.rc != 0:
            words = ["journalctl", "-u", self.unit, "-n", "15", "--no-pager", "-o", "cat"]
            journal = self._runner.run(words, ok=ANY).stdout
            raise RuntimeError(f"{self.unit} does not start: {journal.strip() or result.stderr.strip()}")

    def delete(self) -> None:
        self._runner.run(["ip", "link", "delete", "dev", self.interface])

    def shown(self, live: private_link.Link) -> str:
        """Return what wg has of the interface, secrets included, once that is known to be whole."""
        text: str = self._runner.run(["wg", "showconf", self.interface]).stdout
        parsed = private_link.parse_configuration(text)
        keys = {key for _name, key in parsed.peers}
        if bool(parsed.private_key) != bool(live.public_key) or keys != set(live.by_key()):
            raise RuntimeError(f"wg does not say all of {self.interface}, so a change of it could not be taken back")
        return text

    def strip(self, text: str, private_key: str, keys: set[str]) -> str:
        """Return what wg-quick makes of a configuration for wg, once that is known to be whole."""
        # in memory, and root alone can read it; what a killed run left of it goes first
        directory = f"{RUN}/moat-link-{self.interface}"
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory, 0o700)
        try:
            path = os.path.join(directory, f"{self.interface}.conf")
            private_file(path, text)
            result = self._runner.run(["wg-quick", "strip", path], ok=ANY)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        faults = [] if result.rc == 0 else [f"wg-quick strip: {result.stderr.strip()}"]
        faults = faults or private_link.stripped_faults(result.stdout, private_key, keys)
        if faults:
            raise RuntimeError(f"the configuration for {self.interface} was not applied: {'; '.join(faults)}")
        return result.stdout

    def starts(self, text: str) -> bool:
        """Whether wg-quick can read a configuration of whatever origin."""
        parsed = private_link.parse_configuration(text)
        try:
            self.strip(text, parsed.private_key, {key for _name, key in parsed.peers})
        except RuntimeError:
            return False
        return True


def private_file(path: str, text: str) -> None:
    """Write text to a new file that only root can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
