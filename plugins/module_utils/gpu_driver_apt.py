# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What apt offers and what it would do: asked with an apt state of its own, so that the host's is as it was (apt.conf(5), apt-get(8))."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_plan as plan
from ansible_collections.moat.inference.plugins.module_utils.gpu_driver_faults import fault
from ansible_collections.moat.inference.plugins.module_utils.gpu_driver_inputs import TOOLKIT_PACKAGE, Wanted
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Result, Runner

# services are restarted by the boot or by the role, never by what watches for outdated libraries
ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_MODE": "l",
    "UCF_FORCE_CONFFOLD": "1",
    "APT_LISTCHANGES_FRONTEND": "none",
}
# a new list that cannot be had is an error, not a warning beside the old one
UPDATE = ("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "-o", "DPkg::Lock::Timeout=300", "update")
INSTALL = (
    *("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"),
    *("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"),
    *("--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages", "install"),
)
# programs of the host that run with apt and would see a state that is not the host's
HOOKS = (
    "APT::Update::Pre-Invoke",
    "APT::Update::Post-Invoke",
    "APT::Update::Post-Invoke-Success",
    "DPkg::Pre-Invoke",
    "DPkg::Post-Invoke",
    "DPkg::Pre-Install-Pkgs",
)
HELPER = "/usr/lib/apt/apt-helper"
INST = re.compile(r"^Inst (?P<name>\S+)(?: \[(?P<old>[^\]]*)\])? \((?P<new>\S+) ", re.MULTILINE)
REMOVED = re.compile(r"^(?:Remv|Purg) (?P<name>\S+)", re.MULTILINE)
ETC, LISTS = "/etc/apt", "/var/lib/apt/lists"


@dataclass(frozen=True)
class Simulation:
    """What a transaction would do. changed: name -> (version before or "", version after); refusal: apt's words when it cannot be."""

    changed: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    refusal: str = ""


def parse_simulation(text: str) -> Simulation:
    """Read `apt-get -s install`."""
    changed = {match["name"].partition(":")[0]: (match["old"] or "", match["new"]) for match in INST.finditer(text)}
    return Simulation(changed, tuple(match["name"].partition(":")[0] for match in REMOVED.finditer(text)))


def parse_madison(text: str) -> dict[str, list[tuple[str, str]]]:
    """Read `apt-cache madison`: name -> versions, newest first, each with the address it comes from."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == 3 and not parts[2].endswith("Sources"):
            found.setdefault(parts[0], []).append((parts[1], parts[2].split(" ")[0]))
    return found


def reason(result: Result) -> str:
    """Return apt's own words on a failure, in one line; its errors first, and at most a thousand characters."""
    lines = [line.strip() for line in (result.stderr + "\n" + result.stdout).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("E:", "Err:"))]
    unmet = [
        line
        for line in lines
        if re.search(r"Depends:|Conflicts:|Breaks:|but it is not|but .* is to be installed", line)
    ]
    return " ".join(dict.fromkeys([*unmet, *told] or lines[-5:]))[:1000] or f"status {result.rc}"


def choose(wanted: Wanted, offered: Mapping[str, Sequence[tuple[str, str]]], urls: Sequence[str]) -> dict[str, str]:
    """Return the package versions to install; a name that is not offered as it is wanted is left out.

    Where several packages have the upstream version, one from an address in urls is taken, then the newest.
    """
    found = {}
    prefixes = tuple(url.rstrip("/") for url in urls if url)
    for name in wanted.names:
        right = wanted.toolkit if name == TOOLKIT_PACKAGE else wanted.version
        fitting = [entry for entry in offered.get(name, ()) if name in wanted.any or plan.upstream(entry[0]) == right]
        ours = [entry for entry in fitting if prefixes and entry[1].startswith(prefixes)]
        if fitting:
            found[name] = (ours or fitting)[0][0]
    return found


def choose_siblings(wanted: Wanted, offered: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, str]:
    """Return the versions of further packages of the driver that are offered as it is wanted."""
    found = {}
    for name, entries in offered.items():
        fitting = [version for version, _url in entries if plan.upstream(version) == wanted.version]
        if fitting:
            found[name] = fitting[0]
    return found


def missing_faults(
    wanted: Wanted, chosen: Mapping[str, str], offered: Mapping[str, Sequence[tuple[str, str]]], fabric: Sequence[str]
) -> list[dict[str, str]]:
    """Name every package that is not to be had in the right version."""
    found = []
    for name in wanted.names:
        if name in chosen:
            continue
        right = wanted.toolkit if name == TOOLKIT_PACKAGE else wanted.version
        versions = list(dict.fromkeys(entry[0] for entry in offered.get(name, ())))
        seen = f"there are {', '.join(versions[:8])}" if versions else "there is no package of that name"
        key = "fabric_manager" if name in fabric else "packages"
        remedy = "choose a version that all packages have, or add it to the repository"
        if name == TOOLKIT_PACKAGE:
            remedy = "set toolkit.version or toolkit.source, or toolkit.enabled to false"
        what = f"{name} {right}" if name not in wanted.any else name
        found.append(fault(key, f"{what} is not to be had: {seen}", remedy))
    return found


def simulation_faults(simulation: Simulation, wanted: Wanted) -> list[dict[str, str]]:
    """Name what must not happen: apt refuses, or packages that are not the driver's would go or change."""
    if simulation.refusal:
        text = f"apt cannot do it in one transaction: {simulation.refusal}"
        return [fault("packages", text, "have all packages of one version in the repository, and mend what apt names")]
    found = []
    gone = [name for name in simulation.removed if not plan.is_ours(name)]
    if gone:
        text = f"the change would remove {', '.join(gone)}"
        found.append(fault("packages", text, "find out with apt-get -s why they cannot stay"))
    kernels = [name for name in simulation.changed if name.startswith(("linux-image-", "linux-modules-"))]
    kernels = [name for name in kernels if not plan.is_ours(name) and not simulation.changed[name][0]]
    if kernels:
        text = f"the change would bring another kernel: {', '.join(kernels)}"
        found.append(fault("packages", text, "install and boot that kernel first, or choose packages that need none"))
    changed = [
        f"{name} {old} to {new}"
        for name, (old, new) in simulation.changed.items()
        if old and old != new and not plan.is_ours(name)
    ]
    if changed:
        text = f"the change would take other packages along: {', '.join(changed)}"
        found.append(fault("packages", text, "bring these to that version first, on their own"))
    mixed = [
        f"{name} {new}"
        for name, (_old, new) in simulation.changed.items()
        if plan.is_family(name)
        and name not in wanted.any
        and not plan.LOOSE.fullmatch(name)
        and plan.DRIVER_VERSION.fullmatch(plan.upstream(new))
        and plan.upstream(new) != wanted.version
    ]
    if mixed:
        text = f"packages of another version would come along: {', '.join(mixed)}"
        found.append(fault("packages", text, f"have them in the version {wanted.version} in the repository"))
    return found


def requests(chosen: Mapping[str, str], simulation: Simulation, wanted: Wanted) -> dict[str, str]:
    """Return every package of the one transaction with its exact version: those by name, and what comes along of the driver."""
    along = {
        name: new
        for name, (_old, new) in simulation.changed.items()
        if plan.is_family(name) and name not in wanted.any and plan.upstream(new) == wanted.version
    }
    return {**along, **chosen}


class Apt:
    """apt with the host's own state, or with a private one.

    private: a directory that is not there yet, in which the private state is made. It has the host's configuration without its hooks, its sources and
    lists by link, and what set_files adds.
    """

    def __init__(self, runner: Runner, private: str = "") -> None:
        self._runner, self._private = runner, private
        self._environment = dict(ENVIRONMENT)
        if private:
            self._make()

    def _make(self) -> None:
        base = self._private
        for name in ("conf", "sources", "preferences", "keyrings", "lists/partial", "cache/archives/partial"):
            make_directory(os.path.join(base, name))
        _link_all(f"{ETC}/apt.conf.d", os.path.join(base, "conf"), "")
        _link_all(f"{ETC}/sources.list.d", os.path.join(base, "sources"), (".list", ".sources"))
        _link_all(f"{ETC}/preferences.d", os.path.join(base, "preferences"), "")
        if os.path.exists(f"{ETC}/apt.conf"):
            os.symlink(f"{ETC}/apt.conf", os.path.join(base, "conf", "zzy-apt.conf"))
        cleared = "".join(f"#clear {name};\n" for name in HOOKS)
        _write(os.path.join(base, "conf", "zzz-moat-private"), cleared.encode())
        _write(
            os.path.join(base, "apt.conf"),
            f'Dir::Etc::main "/dev/null";\nDir::Etc::parts "{base}/conf";\n'
            f'Dir::Etc::sourceparts "{base}/sources";\nDir::Etc::preferencesparts "{base}/preferences";\n'
            f'Dir::State::lists "{base}/lists";\nDir::Cache "{base}/cache";\n'
            'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\nDebug::NoLocking "true";\n'.encode(),
        )
        self._environment["APT_CONFIG"] = os.path.join(base, "apt.conf")

    def set_files(self, texts: Mapping[str, bytes]) -> None:
        """Have the files of plan.file_texts in the private state, under the names that they have on the host."""
        for path, content in texts.items():
            target = self._place(path)
            if not target:
                continue
            if os.path.lexists(target):
                os.unlink(target)
            if path.startswith(plan.SOURCES):
                for keyring in texts:
                    if keyring.startswith(plan.KEYRINGS):
                        content = content.replace(keyring.encode(), self._place(keyring).encode())
            _write(target, content)

    def hide(self, paths: Sequence[str]) -> None:
        """Leave files of the host out of the private state."""
        for path in paths:
            target = self._place(path)
            if target and os.path.islink(target):
                os.unlink(target)

    def _place(self, path: str) -> str:
        """Where a file of the host is in the private state; empty for one that has no place there."""
        moved = {plan.KEYRINGS: "keyrings", plan.SOURCES: "sources", f"{ETC}/preferences.d": "preferences"}
        directory, name = os.path.split(path)
        return os.path.join(self._private, moved[directory], name) if directory in moved else ""

    def update(self, sources: Mapping[str, str]) -> str:
        """Fetch the package lists of the named files, each with its address; return why that failed, or "".

        All lists are fetched where the host has none yet. Sources that have nothing to do with the driver may be out of order.
        """
        if not any(name.endswith(("Release", "_Packages", ".lz4")) for name in _names(LISTS)):
            return self._failure(UPDATE)
        if self._private:
            own = tuple(list_prefix(url) for url in sources.values())
            _link_all(LISTS, os.path.join(self._private, "lists"), "", own)
        for path in sources:
            one = self._place(path) if self._private else path
            argv = [*UPDATE[:-1], "-o", f"Dir::Etc::sourcelist={one}", "-o", "Dir::Etc::sourceparts=/dev/null"]
            failed = self._failure([*argv, "-o", "APT::Get::List-Cleanup=false", "update"])
            if failed:
                return failed
        return ""

    def refresh(self) -> None:
        """Fetch the lists of all sources, as far as they can be had."""
        self._run(UPDATE)

    def _failure(self, argv: Sequence[str]) -> str:
        result = self._run(argv)
        return "" if result.rc == 0 else reason(result)

    def offered(self, names: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Return the versions of packages that there are."""
        return parse_madison(self._run(["apt-cache", "madison", "--", *names]).stdout)

    def simulate(self, chosen: Mapping[str, str]) -> Simulation:
        """Return what installing exactly these would do; one without a version is removed."""
        result = self._run([*INSTALL[:-1], "-s", "install", *_versions(chosen)])
        return parse_simulation(result.stdout) if result.rc == 0 else Simulation(refusal=reason(result))

    def fetch(self, chosen: Mapping[str, str]) -> str:
        """Download exactly these and what they need, and check their sums; return why that failed, or ""."""
        return self._failure([*INSTALL[:-1], "--download-only", "install", *_versions(chosen)])

    def install(self, chosen: Mapping[str, str], archives: str = "") -> str:
        """Install exactly these in one transaction; return why that failed, or "". archives: a directory that has them already."""
        there = ["-o", f"Dir::Cache::archives={archives}"] if archives else []
        return self._failure([*INSTALL[:-1], *there, "install", *_versions(chosen)])

    @property
    def archives(self) -> str:
        """Where a private state keeps what it has downloaded."""
        return os.path.join(self._private, "cache", "archives") if self._private else ""

    def hold(self, names: Sequence[str]) -> None:
        """Hold packages in their version (apt-mark(8))."""
        self._runner.run(["apt-mark", "hold", "--", *names], env=self._environment)

    def configure(self) -> str:
        """Have dpkg finish what was interrupted; return why it could not, or ""."""
        options = ["--force-confdef", "--force-confold"]
        return self._failure(["dpkg", *options, "--configure", "-a"])

    def download(self, url: str, path: str) -> str:
        """Fetch a file by apt's own means, so through apt's own proxy; return why that failed, or ""."""
        return self._failure([HELPER, "-q", "download-file", url, path])

    def _run(self, argv: Sequence[str]) -> Result:
        try:
            return self._runner.run(argv, env=self._environment)
        except CommandError as error:
            return error.result


def _versions(chosen: Mapping[str, str]) -> list[str]:
    """Arguments of apt-get install: a package in its version, or with a minus at its end one that has to go."""
    return [f"{name}={version}" if version else f"{name}-" for name, version in sorted(chosen.items())]


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def list_prefix(url: str) -> str:
    """Return how the names of the package lists of an address begin in apt's directory of them."""
    rest = url.partition(":")[2]
    rest = rest[2:] if rest.startswith("//") else rest
    return rest.rstrip("/").replace("_", "%5f").replace("/", "_") or "/"


def _link_all(source: str, target: str, endings: Any, without: tuple[str, ...] = ()) -> None:
    """Link every file of a directory into another, but those whose names begin as one of without says."""
    for name in _names(source):
        path = os.path.join(source, name)
        if name.endswith(endings) and os.path.isfile(path) and name != "lock" and not name.startswith(without):
            os.symlink(path, os.path.join(target, name))


def _write(path: str, content: bytes) -> None:
    """Write a file that apt's own user can read, whatever the umask."""
    with open(path, "wb") as handle:
        handle.write(content)
    os.chmod(path, 0o644)


def make_directory(path: str) -> None:
    """Make a directory and those above it, for apt's own user to enter, whatever the umask."""
    if not os.path.isdir(path):
        make_directory(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)
