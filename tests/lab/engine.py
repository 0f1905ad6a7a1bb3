"""vLLM for the gpu hosts: installed once, hash-locked, into a tree that they share read-only."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tests.lab import podman
from tests.lab.shell import CACHE, ROOT, LabError, Step, capture, lock, privileged, remove_tree, write

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
"$1/bin/pip" install --no-cache-dir --progress-bar off --no-compile --no-deps --require-hashes \\
  --only-binary=:all: -r /lock
echo "compiling to byte code"
"$1/bin/python" -m compileall -q -j 0 "$1/lib" >/dev/null 2>&1 || true
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
    with lock(CACHE / "engine.lock"):
        if not present():
            _install(image, folder())
    return folder()


def _install(image: str, target: Path) -> None:
    """Make the tree under another name, so that a killed run never leaves half of one under this name."""
    partial = CACHE / "engine.tmp"
    capture(podman.podman("rm", "--force", "--ignore", "--time", "0", BUILDER))
    remove_tree(partial)
    partial.mkdir(parents=True)
    options, mounts = podman.environment_for_packages()
    places = [(LOCK, "/lock", "true"), (partial, HOME, "false")]
    mounts += [f"--mount=type=bind,src={here},dst={there},ro={ro}" for here, there, ro in places]
    with Step("engine from the Python package index (about 2.5 GB to fetch)") as step:
        run = ["run", "--rm", "--name", BUILDER, "--network", "host", *options, *mounts, image]
        step.run(podman.podman(*run, "sh", "-c", SCRIPT, "sh", TREE))
    capture(privileged(["sh", "-c", 'chmod -R go-w "$1" && sync -f "$1"', "sh", str(partial)]))
    write(partial / "complete", "\n")
    remove_tree(target)
    capture(privileged(["mv", "-T", str(partial), str(target)]))
