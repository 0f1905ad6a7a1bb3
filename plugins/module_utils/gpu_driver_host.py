# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The gpu_driver module's hands on the host: what is there, what apt says, and the one transaction."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import deploy, files, gpu_facts, openpgp
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_apt as apt
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_faults as faults
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_inputs as inputs
from ansible_collections.moat.inference.plugins.module_utils import gpu_driver_plan as plan
from ansible_collections.moat.inference.plugins.module_utils.gpu_root import Root
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner
from ansible_collections.moat.inference.plugins.module_utils.steps import Steps

# not /tmp, which is often a small file system in memory
TEMPORARY = "/var/tmp"  # the directory that mkdtemp makes is this process's own
TERM_LOG = "/var/log/apt/term.log"
BLOCK = 1 << 20


class Refused(Exception):
    """Nothing was changed, or all was put back; found has the faults."""

    def __init__(self, text: str, found: Sequence[Mapping[str, str]] = ()) -> None:
        self.found = [dict(item) for item in found]
        super().__init__(text)


class Incomplete(Exception):
    """The driver is not whole; the next run goes on."""


class Work:
    """What a call has to do. host: what gpu_facts.collect says; left: why packages change; rest: what else does."""

    def __init__(self, runner: Runner, options: Mapping[str, Any]) -> None:
        self._runner, self.options = runner, options
        self.host = self._collect()
        self.kept = files.read_state(plan.MARKER)
        self.marker = plan.parse_marker(self.kept.content)
        self.wanted: inputs.Wanted | None = None
        self.found: list[dict[str, str]] = []
        self.left: list[str] = []
        self.rest: list[str] = []
        self.chosen: dict[str, str] = {}
        self.simulation = apt.Simulation()
        self.paths = deploy.Plan()
        self._keyrings: dict[str, bytes] = {}
        self._urls: dict[str, str] = {}
        self._base = ""
        self._stale = False  # the host's own package lists
        self._private: apt.Apt | None = None
        self.skipped = not faults.gpus(self.host) and not faults.find(self.host, options, False)

    def _collect(self) -> dict[str, Any]:
        return gpu_facts.collect(Root(self.options["root"], self._runner))

    @property
    def pending(self) -> list[str]:
        """Why anything has to change."""
        return [*self.left, *self.rest]

    def examine(self) -> None:
        """Say what has to change, and every reason why it must not; close has to follow."""
        if self.skipped:
            return
        if not faults.gpus(self.host) or not faults.supported(self.host):
            self.found = faults.find(self.host, self.options, True)
            return
        try:
            self.wanted = inputs.wanted(self.options, self.host)
        except ValueError as error:
            unknown = faults.fault("packages", str(error), "see the vendor's guide for their names")
            self.found = faults.in_order([*faults.find(self.host, self.options, True), unknown])
            return
        self.left = plan.left_to_do(self.host, self.wanted, self.marker)
        self.rest = [f"DKMS has no module for the kernel {kernel}" for kernel in plan.unbuilt(self.host, self.wanted)]
        found = faults.find(self.host, self.options, bool(self.left))
        whole = self._known_keyrings(self.wanted)
        if whole and not self.left:
            self._plan_paths(self.wanted)
        if not whole or self.left or self.paths.files:
            self._base = tempfile.mkdtemp(prefix="moat-gpu-", dir=TEMPORARY)
            os.chmod(self._base, 0o755)  # apt fetches as a user of its own
            self._private = apt.Apt(self._runner, os.path.join(self._base, "apt"))
            found += self._ask(self.wanted, self._private, self._base)
        self.rest += [f"{change.path} differs" for change in self.paths.files]
        self.found = faults.in_order(found)

    def close(self) -> None:
        """Take the private state away."""
        if self._base:
            shutil.rmtree(self._base, ignore_errors=True)

    def _known_keyrings(self, wanted: inputs.Wanted) -> bool:
        """Take the keys and the local repository that are on the host already; say whether that is all that is needed."""
        whole = True
        for repository in wanted.repositories:
            if repository.file:
                place = self._unpacked(repository)
                whole = whole and bool(place)
                self._urls[repository.name] = f"file:{place}"
            if not repository.fingerprint and not repository.file:
                continue
            kept = files.read_state(plan.keyring_path(repository)).content
            with suppress(openpgp.BadKey):
                known = openpgp.keys(kept or b"")
                if len(known) == 1 and known[0].fingerprint == (repository.fingerprint or known[0].fingerprint):
                    self._keyrings[repository.name] = known[0].data
            whole = whole and repository.name in self._keyrings
        return whole

    def _unpacked(self, repository: inputs.Repository, base: str = plan.LOCAL) -> str:
        """Where a local repository is unpacked; empty when it is not."""
        top = os.path.join(base, repository.sha256[:16], "var")
        names = sorted(os.listdir(top)) if os.path.isdir(top) else []
        return os.path.join(top, names[0]) if len(names) == 1 else ""

    def _ask(self, wanted: inputs.Wanted, private: apt.Apt, base: str) -> list[dict[str, str]]:
        """Ask apt with a state of its own, and return the faults of sources and packages."""
        found: list[dict[str, str]] = []
        urls = dict(self._urls)
        for repository in wanted.repositories:
            if repository.file and not self._urls.get(repository.name, "file:").partition(":")[2]:
                said = self._unpack(repository, os.path.join(base, "local"))
                place = "" if said else self._unpacked(repository, os.path.join(base, "local"))
                if said or not place:
                    text = said or f"{repository.file} has no repository in /var in it"
                    found.append(faults.fault("source", text, "fetch the vendor's local-repository package anew"))
                    continue
                urls[repository.name] = f"file:{place}"
            if repository.name not in self._keyrings and (repository.fingerprint or repository.file):
                found += self._key_faults(repository, private, base, urls.get(repository.name, ""))
        if found:
            return found
        self._plan_paths(wanted, self._final_urls(wanted, urls))
        texts = plan.file_texts(wanted, self._keyrings, urls)
        private.set_files(texts)
        private.hide([change.path for change in self.paths.files if change.after.kind == "absent"])
        sources = {plan.sources_path(item): urls.get(item.name, item.url) for item in wanted.repositories}
        failed = private.update(sources)
        if failed:
            where = ", ".join(f"{item.name} ({sources[plan.sources_path(item)]})" for item in wanted.repositories)
            where = where or "the host's own sources"
            remedy = "look whether the host reaches them (through its proxy for apt) and whether another entry names them with another key"
            return [faults.fault("source", f"the package lists of {where} cannot be had: {failed}", remedy)]
        found = self._offer(private, wanted, list(sources.values()))
        if found:
            # what comes along of the distribution may have moved on since the host last looked
            private.refresh()
            self._stale = True
            found = self._offer(private, wanted, list(sources.values()))
        return found

    def _offer(self, source: apt.Apt, wanted: inputs.Wanted, urls: Sequence[str]) -> list[dict[str, str]]:
        """Choose the packages and look what their transaction would do."""
        distribution = (self.host["distribution"]["id"], self.host["distribution"]["version"])
        fabric = inputs.fabric_packages(self.options, distribution)
        offered = source.offered(wanted.names)
        chosen = apt.choose(wanted, offered, urls)
        found = apt.missing_faults(wanted, chosen, offered, fabric)
        if found:
            return found
        # by name, or apt would sooner keep the held ones as they are
        behind = plan.stragglers(self.host, wanted, loose=True)
        others = source.offered(behind) if behind else {}
        chosen.update(apt.choose_siblings(wanted, others))
        gone = plan.superseded([name for name in behind if name not in chosen], self.host, wanted)
        chosen.update(dict.fromkeys(gone, ""))
        simulation = source.simulate(chosen)
        if not simulation.refusal:
            found += self._left_behind([*chosen, *simulation.changed, *simulation.removed])
        found += apt.simulation_faults(simulation, wanted)
        self.simulation, self.chosen = simulation, apt.requests(chosen, simulation, wanted)
        return found

    def _left_behind(self, handled: Sequence[str]) -> list[dict[str, str]]:
        """Name installed packages of the driver that would stay in another version."""
        found = []
        for name in plan.stragglers(self.host, self.wanted, handled) if self.wanted else []:
            there = self.host["packages"][name]["version"]
            text = f"{name} {there} is installed and not to be had in {self.options['version']}"
            found.append(faults.fault("packages", text, f"run apt-get purge {name}, or add it to the repository"))
        return found

    def _key_faults(self, repository: inputs.Repository, private: apt.Apt, base: str, url: str) -> list[dict[str, str]]:
        """Take the one key that the fingerprint names, and say why it cannot be trusted."""
        where = url or repository.url
        try:
            content = self._key_content(repository, private, base, url)
            if repository.fingerprint:
                self._keyrings[repository.name] = openpgp.select(content, repository.fingerprint)
            else:
                known = openpgp.keys(content)
                if len(known) != 1:
                    raise openpgp.BadKey(f"it has {len(known)} keys in it")
                self._keyrings[repository.name] = known[0].data
        except OSError as error:
            return [
                faults.fault(
                    "source", f"the key of {where} cannot be read: {error}", "give its text or its path on the host"
                )
            ]
        except openpgp.BadKey as error:
            text = f"the key of {where} is not the one of {repository.fingerprint or 'this package'}: {error}"
            return [faults.fault("source", text, "do not trust it; find out from its owner which fingerprint is right")]
        return []

    @staticmethod
    def _key_content(repository: inputs.Repository, private: apt.Apt, base: str, url: str) -> bytes:
        key = repository.key
        if openpgp.BEGIN.decode() in key:
            return key.encode()
        if not key:
            place = url.partition(":")[2]
            names = [name for name in sorted(os.listdir(place)) if name.endswith("keyring.gpg")]
            if len(names) != 1:
                raise FileNotFoundError(f"there is no key in {place}")
            key = os.path.join(place, names[0])
        if "://" in key:
            path = os.path.join(base, f"{repository.name}.key")
            failed = private.download(key, path)
            if failed:
                raise FileNotFoundError(f"{key}: {failed}")
            key = path
        with open(key, "rb") as handle:
            return handle.read(BLOCK)

    def _unpack(self, repository: inputs.Repository, base: str) -> str:
        """Unpack the vendor's local-repository package after its SHA-256 is known to be right; return why not, or ""."""
        digest = hashlib.sha256()
        try:
            with open(repository.file, "rb") as handle:
                for block in iter(lambda: handle.read(BLOCK), b""):
                    digest.update(block)
        except OSError as error:
            return f"{repository.file} cannot be read: {error.strerror}"
        if digest.hexdigest() != repository.sha256:
            return f"{repository.file} has the SHA-256 {digest.hexdigest()}, not {repository.sha256}"
        target = os.path.join(base, repository.sha256[:16])
        part = f"{target}.part"
        shutil.rmtree(part, ignore_errors=True)
        apt.make_directory(part)
        try:
            self._runner.run(["dpkg-deb", "-x", repository.file, part])
        except CommandError as error:
            shutil.rmtree(part, ignore_errors=True)
            return f"{repository.file} cannot be unpacked: {error}"
        shutil.rmtree(target, ignore_errors=True)
        os.rename(part, target)
        return ""

    def _final_urls(self, wanted: inputs.Wanted, urls: Mapping[str, str]) -> dict[str, str]:
        """Where the unpacked local repositories will be."""
        found = {}
        for repository in wanted.repositories:
            if repository.file:
                name = os.path.basename(urls[repository.name])
                found[repository.name] = f"file:{plan.LOCAL}/{repository.sha256[:16]}/var/{name}"
        return found

    def _plan_paths(self, wanted: inputs.Wanted, urls: Mapping[str, str] | None = None) -> None:
        """Compare the files with what they shall be; what an earlier source needed goes."""
        texts = plan.file_texts(wanted, self._keyrings, urls if urls is not None else self._urls)
        directories = [] if os.path.isdir(plan.KEYRINGS) else [plan.KEYRINGS]
        self.paths = deploy.Plan()
        for path in directories:
            after = files.FileState("directory", None, 0o755, "root", "root")
            self.paths.directories.append(deploy.Change(path, files.ABSENT, after))
        for path, content in texts.items():
            before, after = files.read_state(path), files.FileState("file", content, 0o644, "root", "root")
            if before != after:
                self.paths.files.append(deploy.Change(path, before, after))
        for name in ("moat-gpu", "moat-gpu-toolkit"):
            gone = inputs.Repository(name)
            for path in (plan.sources_path(gone), plan.keyring_path(gone)):
                before = files.read_state(path)
                if path not in texts and before.kind != "absent":
                    self.paths.files.append(deploy.Change(path, before, files.ABSENT))

    def state(self) -> str:
        """In which state the host is: skipped, absent, incomplete, reboot_required or installed."""
        if self.skipped or self.wanted is None:
            return "skipped" if self.skipped else "absent"
        if self.marker.get("phase") in ("begun", "failed", "incomplete") or plan.unfinished(self.host, self.marker):
            return "incomplete"
        if self.left:
            return "absent"
        if plan.incomplete(self.host, self.wanted):
            return "incomplete"
        return "reboot_required" if self.reboot() else "installed"

    def reboot(self) -> list[str]:
        """Why a reboot is needed; nothing while the driver is still to be installed."""
        if self.wanted is None or self.left:
            return []
        return plan.reboot_reasons(self.host, self.wanted, self.options["kernel_module"])

    def packages(self) -> dict[str, str]:
        """The packages of the transaction, or those that are installed already, with their versions."""
        if self.chosen or self.wanted is None:
            return {name: version for name, version in sorted(self.chosen.items()) if version}
        seen = self.host["packages"]
        return {name: seen[name]["version"] for name in self.wanted.names if name in seen}

    def diff(self) -> list[dict[str, str]]:
        """Ansible's diff list: packages, then files; a key is shown by its path alone."""
        entries = []
        names = [*self.simulation.changed, *self.simulation.removed]
        if names:
            before = [f"{name} {old}\n" for name, (old, _new) in sorted(self.simulation.changed.items()) if old]
            before += [f"{name}\n" for name in sorted(self.simulation.removed)]
            after = [f"{name} {new}\n" for name, (_old, new) in sorted(self.simulation.changed.items())]
            head = {"before_header": "packages", "after_header": "packages"}
            entries.append({**head, "before": "".join(sorted(before)), "after": "".join(after)})
        for change in self.paths.files:
            secret = change.path.startswith(plan.KEYRINGS)
            entries.append(files.diff_entry(change.path, change.before, change.after, secret))
        return entries

    def apply(self) -> None:
        """Bring the host there. Raises Refused when nothing was changed, Incomplete when the next run has to go on."""
        wanted = self.wanted
        if wanted is None:
            raise Refused("there is nothing that could be installed")
        self._fetch()
        apt.make_directory(plan.STATE_DIRECTORY)
        again = self.marker.get("phase") not in (None, "complete")
        self._mark("begun")
        host = apt.Apt(self._runner)
        if plan.unfinished(self.host, self.marker):
            # what it cannot finish, the transaction may: packages of another version take the place of broken ones
            host.configure()
        blacklist = again or any(change.path == plan.MODPROBE for change in self.paths.files)
        self._prepare(host, wanted)
        failed = host.install(self.chosen, self._private.archives if self._private else "") if self.left else ""
        if failed:
            self._mark("failed", failed)
            raise Incomplete(
                f"apt did not complete the transaction for {wanted.version}: {failed} The host boots without a driver at worst; its log is"
                f" {TERM_LOG}. Mend the cause, and the next run goes on."
            )
        if self.left:
            self.host = self._collect()
            there = {name for name, version in self.chosen.items() if version}
            host.hold(sorted({*there, *plan.siblings(self.host, wanted)}))
        said = self._finish(wanted, blacklist)
        if said:
            self._mark("incomplete", "; ".join(said))
            raise Incomplete(f"{'; '.join(said)}. Mend the cause, and the next run goes on.")
        self._mark("complete")
        self.marker = {"phase": "complete"}
        self.left = plan.left_to_do(self.host, wanted, self.marker)

    def _fetch(self) -> None:
        """Download the packages into the private state, where their sums are checked before anything is touched."""
        said = self._private.fetch(self.chosen) if self._private and self.left else ""
        if said and self._private and not self._stale:
            self._private.refresh()
            self._stale = True
            said = self._private.fetch(self.chosen)
        if said:
            remedy = "do not trust the repository until its owner says why, or look whether the host reaches it"
            found = [faults.fault("packages", f"the packages cannot be had as they were signed: {said}", remedy)]
            raise Refused(f"Nothing was changed. {faults.sentences(found)}", found)

    def _prepare(self, host: apt.Apt, wanted: inputs.Wanted) -> None:
        """Have the files and the lists; put all back when they cannot be had."""
        steps = Steps(self._runner)
        try:
            for repository in wanted.repositories:
                if repository.file and not self._unpacked(repository):
                    steps.later(shutil.rmtree, os.path.join(plan.LOCAL, repository.sha256[:16]))
                    said = self._unpack(repository, plan.LOCAL)
                    if said:
                        raise Refused(said)
            steps.paths(self.paths)
            if self.left or any(change.path.startswith(plan.SOURCES) for change in self.paths.files):
                final = {name: url for name, url in self._urls.items() if url.startswith("file:/")}
                said = host.update(
                    {plan.sources_path(item): final.get(item.name, item.url) for item in wanted.repositories}
                )
                if said:
                    raise Refused(f"the package lists cannot be had: {said}")
                if self._stale:
                    host.refresh()
            if self.left:
                urls = [self._urls.get(item.name, item.url) for item in wanted.repositories]
                found = self._offer(host, wanted, urls)
                if found:
                    raise Refused(faults.sentences(found), found)
        except (Refused, OSError, CommandError, KeyError) as error:
            left = steps.undo()
            self._unmark()
            outcome = (
                f"Not all could be put back: {'; '.join(left)}."
                if left
                else "No package was touched, and the files are as they were."
            )
            found = error.found if isinstance(error, Refused) else []
            raise Refused(f"{error} {outcome}", found) from error

    def _finish(self, wanted: inputs.Wanted, blacklist: bool) -> list[str]:
        """Build what is not built, have the blacklist in the initramfs, and return what is not right."""
        said = []
        self.host = self._collect()
        root = Root(self.options["root"], self._runner)
        for kernel in plan.unbuilt(self.host, wanted):
            root.run(["dkms", "autoinstall", "-k", kernel])
        if blacklist:
            result = self._runner.run(["update-initramfs", "-u", "-k", "all"], ok=range(256))
            if result.rc not in (0, 127):
                said.append(f"the initramfs could not be made: {apt.reason(result)}")
        self.host = self._collect()
        if not self.host["driver"]["module"] and not self.host["driver"]["nouveau"]["loaded"]:
            # where it cannot be loaded, a reboot is asked for
            root.run(["modprobe", "nvidia"])
            self.host = self._collect()
        kernels = plan.unbuilt(self.host, wanted)
        said += plan.incomplete(self.host, wanted)
        if kernels:
            logs = [path for path in plan.build_logs(self.host, wanted, kernels) if root.exists(path)]
            said.append(f"the log of the build is {logs[-1]}" if logs else f"the log is {TERM_LOG}")
        missing = [why for why in plan.left_to_do(self.host, wanted, {}) if why not in said]
        return said + missing

    def _mark(self, phase: str, why: str = "") -> None:
        content = plan.marker_text(self.options["version"], phase, self.packages(), why)
        files.write(plan.MARKER, files.FileState("file", content, 0o644, "root", "root"))

    def _unmark(self) -> None:
        if self.kept.kind == "file":
            files.write(plan.MARKER, self.kept)
        else:
            with suppress(FileNotFoundError):
                os.unlink(plan.MARKER)
