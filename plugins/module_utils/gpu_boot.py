# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Secure Boot and its keys, and what the kernel and its processes say of the GPUs since boot."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils.gpu_root import NOT_FOUND, Root, failure
from ansible_collections.moat.inference.plugins.module_utils.gpu_smi import slot
from ansible_collections.moat.inference.plugins.module_utils.run import Result

# UEFI specification 3.3, "Globally Defined Variables"; efivarfs puts four bytes of attributes before the value
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
ATTRIBUTES = 4
# where dkms(8) has its certificate: as its configuration says, else Ubuntu's, else its own
FRAMEWORK = "/etc/dkms/framework.conf"
CERTIFICATE = re.compile(r"^\s*mok_certificate\s*=\s*[\"']?([^\"'\s#]+)", re.MULTILINE)
KEYS = ("/var/lib/shim-signed/mok/MOK.der", "/var/lib/dkms/mok.pub")
# `NVRM: Xid (PCI:0000:3b:00): 79, pid=..., GPU has fallen off the bus.`; older: without PCI: (NVIDIA, "Xid Errors")
XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9A-Fa-f:.]+)\): ([0-9]{1,9})(?:,\s*(.*))?")
STAMP = re.compile(r"\[\s*([0-9]{1,12}\.[0-9]{1,9})\]")
# the first second of a boot; a log whose first line is later has lost what came before
BEGINNING = 5.0
DEVICE_NODE = re.compile(r"/dev/nvidia[a-z0-9-]*(?:/.*)?")
BLOCKS = re.compile("[0-9]{1,18}")
PLACES = ("/", "/boot", "/usr", "/var")


def secure_boot(root: Root) -> dict[str, Any]:
    """Return whether Secure Boot is on, the certificate by which DKMS signs modules, and whether it is enrolled (mokutil(1))."""
    enabled = _secure_boot_enabled(root)
    key = mok_key(root)
    enrolled = None
    if key is not None:
        result = root.run(["mokutil", "--test-key", key])
        enrolled = parse_test_key(result.stdout + result.stderr)
        if enrolled is None:
            root.tell("the machine owner keys", failure(result))
    return {"enabled": enabled, "mok_enrolled": enrolled, "mok_key": key}


def _secure_boot_enabled(root: Root) -> bool | None:
    content = root.content(SECURE_BOOT)
    if content is not None and len(content) > ATTRIBUTES:
        return content[ATTRIBUTES] == 1
    if not root.exists("/sys/firmware/efi"):
        # a container hides the whole directory; a machine that booted by BIOS or a device tree has others in it
        if root.names("/sys/firmware"):
            return False
        root.tell("Secure Boot", "/sys/firmware is not to be seen")
        return None
    result = root.run(["mokutil", "--sb-state"])
    text = (result.stdout + result.stderr).lower()
    if "secureboot enabled" in text:
        return True
    if "secureboot disabled" in text or "doesn't support secure boot" in text:
        return False
    root.tell("Secure Boot", f"{SECURE_BOOT} is not to be read, and mokutil says: {failure(result)}")
    return None


def mok_key(root: Root) -> str | None:
    """Return the certificate by which DKMS signs modules, or None where there is none yet."""
    texts = [root.text(FRAMEWORK) or ""]
    for name in root.names(FRAMEWORK + ".d"):
        if name.endswith(".conf"):
            texts.append(root.text(f"{FRAMEWORK}.d/{name}") or "")
    # the last setting counts, as in the shell that reads them
    said = [path for text in texts for path in CERTIFICATE.findall(text)]
    return next((path for path in [*said[::-1], *KEYS] if path.startswith("/") and root.exists(path)), None)


def parse_test_key(text: str) -> bool | None:
    """Return whether `mokutil --test-key` says that a key is enrolled; its status does not tell that from an error."""
    lowered = text.lower()
    if "is not enrolled" in lowered or "enrollment request" in lowered:
        return False
    return True if "already enrolled" in lowered or "is enrolled" in lowered else None


def xids(root: Root) -> list[dict[str, Any]]:
    """Return the GPU errors since boot, one entry a GPU and number, by dmesg(1) or, where it lacks some, journalctl(1)."""
    result = root.run(["dmesg"], limit=30)
    found = parse_xids(result.stdout)
    if result.rc == 0 and reaches_boot(result.stdout):
        return found
    journal = root.run(["journalctl", "-k", "-b", "-o", "short-monotonic", "--no-pager", "-q"], limit=60)
    if journal.rc == 0 and journal.stdout.strip():
        return parse_xids(journal.stdout)
    why = "it has lost its beginning" if result.stdout.strip() and result.rc == 0 else _why(result)
    root.tell("Xid errors", f"the kernel's log: {why}; the journal: {_why(journal)}")
    return found


def _why(result: Result) -> str:
    if result.rc == NOT_FOUND:
        return f"there is no {result.argv[0]}"
    return failure(result) if result.rc else "it is empty"


def reaches_boot(text: str) -> bool:
    """Whether a kernel log with time stamps begins at the boot."""
    first = STAMP.search(text)
    return first is not None and float(first.group(1)) < BEGINNING


def parse_xids(text: str) -> list[dict[str, Any]]:
    """Return slot, xid, count, first and last (seconds since boot, or None) and the last one's text of a kernel log."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in text.splitlines():
        match = XID.search(line)
        if match is None:
            continue
        address, code, message = match.groups()
        stamp = STAMP.search(line)
        moment = float(stamp.group(1)) if stamp else None
        key = (slot(address) or address, int(code))
        entry = found.setdefault(key, {"slot": key[0], "xid": key[1], "count": 0, "first": moment})
        entry.update(count=entry["count"] + 1, last=moment, text=(message or "").strip()[:300])
    return [found[key] for key in sorted(found)]


def users(root: Root, gpus: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return pid and name of the processes that have an NVIDIA device open, by /proc/<pid>/fd and nvidia-smi."""
    found: dict[int, str] = {}
    hidden = 0
    for name in root.names("/proc"):
        if not name.isdecimal():
            continue
        opened, seen = _opened(root, name)
        hidden += 0 if seen else 1
        if opened:
            found[int(name)] = root.text(f"/proc/{name}/comm") or ""
    if hidden:
        root.tell("open devices", f"{hidden} processes of other users cannot be looked at without root")
    for process in (process for gpu in gpus for process in gpu["processes"]):
        if process["pid"] is not None:
            found[process["pid"]] = found.get(process["pid"]) or os.path.basename(process["name"] or "")
    return [{"pid": pid, "name": found[pid]} for pid in sorted(found)]


def _opened(root: Root, pid: str) -> tuple[bool, bool]:
    """Whether a process has an NVIDIA device open, and whether that could be seen."""
    directory = root.place(f"/proc/{pid}/fd")
    try:
        names = os.listdir(directory)
    except PermissionError:
        return False, False
    except OSError:
        return False, True
    targets = (root.link(f"/proc/{pid}/fd/{name}") or "" for name in names)
    return any(DEVICE_NODE.fullmatch(target) for target in targets), True


def disk_free_mib(root: Root) -> dict[str, int | None]:
    """Return the MiB that are free for others than root below each place, by df(1)."""
    free: dict[str, int | None] = dict.fromkeys(PLACES)
    there = [place for place in PLACES if root.is_dir(place)]
    result = root.run(["df", "-P", "-k", "--", *there], limit=30)
    mounts = parse_df(result.stdout)
    if not mounts:
        root.tell("disk space", failure(result))
    for place in there:
        over = [mount for mount in mounts if place == mount or place.startswith(mount.rstrip("/") + "/")]
        if over:
            free[place] = mounts[max(over, key=len)]
    return free


def parse_df(text: str) -> dict[str, int]:
    """Return mount point -> free MiB of `df -P -k`."""
    found = {}
    for line in text.splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6 and BLOCKS.fullmatch(fields[3]):
            found[fields[5]] = int(fields[3]) // 1024
    return found


def reboot_required(root: Root, driver: dict[str, Any]) -> bool:
    """Whether only a reboot brings the driver to what is on disk, or the distribution asks for one on the driver's account."""
    module, on_disk, nouveau = driver["module"], driver["on_disk"], driver["nouveau"]
    if module and on_disk and module["version"] and module["version"] != on_disk["version"]:
        return True
    if nouveau["loaded"] and nouveau["blacklisted"]:
        return True
    # the first is /run's list of packages, which Debian's and Ubuntu's maintainer scripts write
    asked = (root.text("/run/reboot-required.pkgs") or "") + (root.text("/run/reboot-required") or "")
    return "nvidia" in asked
