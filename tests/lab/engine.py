"""vLLM for the gpu hosts: installed once, hash-locked, into a tree that they share read-only."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tests.lab import podman
from tests.lab.shell import CACHE, ROOT, LabError, Step, capture, privileged, remove_tree, write

VERSION = "0.32.0"
LOCK = Path(
    os.environ.get("MOAT_LAB_ENGINE_LOCK") or ROOT / "roles" / "model_server" / "files" / f"vllm-{VERSION}-cpu.lock"
)
HOME = "/opt/moat/engine"
TREE = f"{HOME}/vllm-{VERSION}"
BUILDER = f"{podman.PREFIX}build"
# Hosts without a way out cannot ask an index, so dependencies come from the lock alone.
SCRIPT = """set -eu
python3 -m venv "$1"
"$1/bin/pip" install --no-cache-dir --progress-bar off --no-compile --no-deps --require-hashes -r /lock
echo "compiling to byte code"
"$1/bin/python" -m compileall -q -j 0 "$1/lib" || true
"$1/bin/python" -c 'import torch, vllm; print("vllm", vllm.__version__, "torch", torch.__version__)'
"""


def folder() -> Path:
    """What the hosts have at /opt/moat/engine; the lock decides which one."""
    return CACHE / f"engine-{hashlib.sha256(LOCK.read_bytes() + SCRIPT.encode()).hexdigest()[:16]}"


def present() -> bool:
    return LOCK.is_file() and (folder() / "complete").is_file()


def ensure(image: str) -> Path:
    """Install the engine unless the cache has it; a virtual environment cannot move, so it is made where it is read."""
    if not LOCK.is_file():
        raise LabError(f"{LOCK} is missing: it says which engine to install.")
    if present():
        return folder()
    target, partial = folder(), CACHE / f"engine-{os.getpid()}.tmp"
    partial.mkdir(parents=True)
    options, mounts = podman.environment_for_packages()
    capture(podman.podman("rm", "--force", "--ignore", "--time", "0", BUILDER))
    with Step("engine from the Python package index (about 3 GB to fetch)") as step:
        mounts += [f"--mount=type=bind,src={LOCK},dst=/lock,ro=true", f"--mount=type=bind,src={partial},dst={HOME}"]
        run = ["run", "--rm", "--name", BUILDER, "--network", "host", *options, *mounts, image]
        step.run(podman.podman(*run, "sh", "-c", SCRIPT, "sh", TREE))
    capture(privileged(["sh", "-c", 'chmod -R go-w "$1" && sync -f "$1"', "sh", str(partial)]))
    remove_tree(target)
    write(partial / "complete", "\n")
    capture(privileged(["mv", "-T", str(partial), str(target)]))
    return target
