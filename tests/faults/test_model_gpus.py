"""Each model sees its own GPUs and no other, starts after them, and refuses others.

There is no GPU here. Doubles: nvidia-smi and /proc/driver/nvidia below the role's root, whose texts have the driver's form; device nodes that
are /dev/null under the driver's names; the engine of CUDA. systemd, the role, the launcher and the unit are the real ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.backend import File
from tests.lab.podman import podman
from tests.lab.scratch import Ran, Scratch
from tests.lab.shell import capture

TWO_GPUS = Path(__file__).parents[1] / "unit" / "fixtures" / "two_gpus"
FIRST, SECOND = (f"GPU-{digit * 8}-2222-3333-4444-555555555555" for digit in "12")
SLICE = "MIG-77777777-2222-3333-4444-555555555555"
ROOT, ENGINE = "/opt/double", "/opt/moat/engine/vllm-0.32.0/bin/vllm"
COMMON = ["/dev/nvidia-uvm", "/dev/nvidiactl"]
NODES = [*COMMON, "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"]
SMI = f'#!/bin/sh\ncase "$*" in "-q -x") cat {ROOT}/q.xml;; -L) cat {ROOT}/list;; *) exit 2;; esac\n'
MAKE = "#!/bin/sh -e\nsleep 3\nmkdir -p /dev/nvidia-caps\nfor each in {}; do [ -e $each ] || mknod -m 666 $each c 1 3; done\n"
# what the role gpu_driver has on a real host: it makes the nodes ready, here late
UNIT = (
    "[Unit]\nDescription=Nodes of GPUs that are not there\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
    "ExecStart=/opt/double/nodes\n[Install]\nWantedBy=multi-user.target\n"
)
MODELS = [{"name": "a", "gpus": [SLICE]}, {"name": "b", "gpus": ["1"]}]


def information(uuid: str, minor: int) -> str:
    return f"Model: \t\t NVIDIA A\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n"


def files() -> list[File]:
    texts = {
        f"{ROOT}/q.xml": (TWO_GPUS / "q.xml").read_text(encoding="utf-8"),
        f"{ROOT}/list": (TWO_GPUS / "list").read_text(encoding="utf-8"),
        f"{ROOT}/proc/driver/nvidia/gpus/0000:3b:00.0/information": information(FIRST, 0),
        f"{ROOT}/proc/driver/nvidia/gpus/0000:81:00.0/information": information(SECOND, 1),
        f"{ROOT}/proc/driver/nvidia/capabilities/gpu0/mig/gi3/access": "DeviceFileMinor: 30\n",
        f"{ROOT}/proc/driver/nvidia/capabilities/gpu0/mig/gi3/ci0/access": "DeviceFileMinor: 31\n",
        "/etc/systemd/system/moat-gpu.service": UNIT,
        "/srv/models/a/model.safetensors": "weights of a",
        "/srv/models/b/model.safetensors": "weights of b",
    }
    programs = {
        f"{ROOT}/usr/bin/nvidia-smi": SMI,
        f"{ROOT}/nodes": MAKE.format(" ".join(NODES)),
        ENGINE: (Path(__file__).parent / "gpu_double" / "engine.py").read_text(encoding="utf-8"),
    }
    return [File(path, text.encode(), 0o644) for path, text in texts.items()] + [
        File(path, text.encode(), 0o755) for path, text in programs.items()
    ]


@pytest.fixture(scope="module")
def host() -> Iterator[Scratch]:
    scratch = Scratch("gpus", *files())
    try:
        scratch.said("systemctl enable --now moat-gpu.service 2>&1")
        yield scratch
    finally:
        scratch.remove()


def apply(host: Scratch, models: list[dict[str, Any]], *arguments: str, **inputs: Any) -> Ran:
    whole = [
        {"source": f"/srv/models/{model['name']}", "socket": f"/run/moat-model/{model['name']}/engine.sock", **model}
        for model in models
    ]
    return host.role(
        "model_server",
        *arguments,
        model_server_models=whole,
        model_server_engine_install=False,
        __model_server_root=ROOT,
        **inputs,
    )


def seen(host: Scratch, model: str) -> dict[str, Any]:
    """What the engine of a model tells of itself, from inside its sandbox."""
    found: dict[str, Any] = json.loads(
        host.said(f"curl -sf --unix-socket /run/moat-model/{model}/engine.sock http://x/")
    )
    return found


def wait(host: Scratch, script: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while host.on(script).code:
        assert time.monotonic() < deadline, script + host.on("journalctl -b --no-pager -n 40 -u 'moat-*'").out
        time.sleep(0.3)


def test_each_model_gets_its_own_gpus_and_no_other(host: Scratch) -> None:
    before = host.listing()
    checked = apply(host, MODELS, "--check")
    assert checked.rc == 0 and checked.count("changed") > 0, checked.out[-3000:]
    assert host.listing() == before
    apply(host, MODELS).good()
    assert seen(host, "a") == {
        "openable": sorted([*COMMON, "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31", "/dev/nvidia0"]),
        "visible": SLICE,
        "order": "PCI_BUS_ID",
    }
    assert seen(host, "b") == {"openable": sorted([*COMMON, "/dev/nvidia1"]), "visible": SECOND, "order": "PCI_BUS_ID"}
    # the control: outside the sandbox every node opens
    assert host.on("for each in $(find /dev -name 'nvidia*' -type c); do : < $each || exit 1; done").code == 0
    assert len(host.said("find /dev -name 'nvidia*' -type c").split()) == len(NODES)


def test_a_second_run_changes_nothing(host: Scratch) -> None:
    again = apply(host, MODELS).good()
    assert again.count("changed") == 0, again.out[-3000:]
    checked = apply(host, MODELS, "--check").good()
    assert checked.count("changed") == 0


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"name": "a", "gpus": ["1"]}, {"name": "b", "gpus": [SECOND]}], f"b and a would both have {SECOND}"),
        ([{"name": "a", "gpus": ["0"]}, {"name": "b", "gpus": ["1"]}], "0 is divided by MIG"),
        (
            [{"name": "a", "gpus": [SLICE]}, {"name": "b", "gpus": ["2"]}],
            "2 is no GPU that the driver of this host shows",
        ),
        ([{"name": "a", "gpus": [SLICE]}, {"name": "b"}], "[1].gpus: 0 is divided by MIG"),
    ],
)
def test_what_cannot_be_given_is_refused_before_anything_changes(
    host: Scratch, models: list[dict[str, Any]], said: str
) -> None:
    before = host.listing()
    refused = apply(host, models)
    assert refused.rc != 0 and said in refused.out, refused.out[-3000:]
    assert host.listing() == before
    assert seen(host, "a")["visible"] == SLICE and seen(host, "b")["visible"] == SECOND


def test_the_cpu_build_takes_no_gpus(host: Scratch) -> None:
    refused = apply(host, MODELS, model_server_engine_variant="cpu")
    assert refused.rc != 0 and "The CPU build takes no gpus" in refused.out


def test_models_that_both_share_get_one_gpu(host: Scratch) -> None:
    shared = [{"name": name, "gpus": ["1"], "shared": True} for name in "ab"]
    apply(host, shared).good()
    assert [seen(host, name)["openable"] for name in "ab"] == [sorted([*COMMON, "/dev/nvidia1"])] * 2
    apply(host, MODELS).good()


def test_a_gpu_that_moved_is_not_taken_for_another(host: Scratch) -> None:
    path = f"{ROOT}/proc/driver/nvidia/gpus/0000:81:00.0/information"
    host.put(File(path, information(SECOND, 0).encode()))
    host.said("systemctl restart moat-model@b.service")
    wait(host, "systemctl is-failed -q moat-model@b.service")
    assert host.said("systemctl show -p ExecMainStatus --value moat-model@b.service").strip() == "78"
    told = host.said("journalctl -b -o cat --no-pager -u moat-model@b.service")
    assert f"GPUs refused: GPU {SECOND} is /dev/nvidia0 now and not /dev/nvidia1; run the play" in told
    assert seen(host, "a")["visible"] == SLICE
    host.put(File(path, information(SECOND, 1).encode()))
    host.said("systemctl reset-failed moat-model@b.service; systemctl start moat-model@b.service")
    wait(host, "curl -sf --unix-socket /run/moat-model/b/engine.sock http://x/")


def test_models_start_after_their_gpus_at_boot(host: Scratch) -> None:
    capture(podman("restart", host.id))
    wait(host, "systemctl is-active -q moat-gpu.service")
    for name in "ab":
        wait(host, f"curl -sf --unix-socket /run/moat-model/{name}/engine.sock http://x/")
        assert host.said(f"systemctl show -p NRestarts --value moat-model@{name}.service").strip() == "0"
    started = host.said(
        "systemctl show -p ActiveEnterTimestampMonotonic --value moat-gpu.service moat-model@a.service"
    ).split()
    assert int(started[0]) < int(started[1])
    # the control: without its nodes a model does not start at all
    host.said("systemctl stop moat-model@b.service; rm /dev/nvidia1; systemctl start moat-model@b.service || :")
    wait(host, "journalctl -b -o cat --no-pager -u moat-model@b.service | grep -q 'status=226/NAMESPACE'")
    assert host.on("curl -sf --unix-socket /run/moat-model/b/engine.sock http://x/").code != 0
