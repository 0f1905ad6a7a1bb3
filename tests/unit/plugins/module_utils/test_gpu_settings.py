# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program of moat-gpu.service on a host that is a double: a directory with /proc and /run, and an nvidia-smi and nvidia-modprobe
in Python that answer with an H100's real reports and remember what they were told (see test_gpu_settings_plan.py for these).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_settings, gpu_settings_plan

HERE = Path(__file__).parent / "gpu_settings"
UUID = "GPU-00000000-1111-2222-3333-444444444444"
XML = (HERE / "h100_580.xml").read_text()
LGIP = (HERE / "h100_580_lgip.txt").read_text()
NAMES = {9: "3g.40gb", 19: "1g.10gb", 0: "7g.80gb"}
CLOCKS = {"min": 1200, "max": 1980}


class Double(gpu_settings.System):
    """Stands in for a host with an H100; fails maps the beginning of a command line to status and text."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.ran: list[str] = []
        self.fails: dict[str, tuple[int, str]] = {}
        self.absent: set[str] = set()
        self.nodes = {"/dev/nvidiactl": (195, 255), "/dev/nvidia0": (195, 0), "/dev/nvidia-uvm": (238, 0)}
        self.mig, self.pending, self.layout, self.limit = False, False, list[str](), 700
        self.needs_reset = False
        self.persistence, self.users = True, ""
        self.put("/proc/devices", (HERE / "h100_580_devices.txt").read_text())
        self.put("/proc/driver/nvidia/version", "NVRM version: 580.159.04\n")
        self.put("/proc/driver/nvidia/gpus/0000:00:06.0/information", "Model: \t H100\nDevice Minor: \t 0\n")
        self.put("/proc/driver/nvidia/capabilities/mig/config", "DeviceFileMinor: 1\nDeviceFileMode: 256\n")
        self.put("/proc/driver/nvidia/capabilities/mig/monitor", "DeviceFileMinor: 2\nDeviceFileMode: 292\n")
        self.put("/proc/sys/kernel/random/boot_id", "one\n")
        self.put("/sys/module/nvidia/version", "580.159.04\n")
        self.put("/run/nvidia-persistenced/socket", "")

    def put(self, path: str, text: str) -> None:
        target = Path(self.root + path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def declare(self, settings: dict[str, Any], **more: Any) -> None:
        self.put("/etc/moat/gpu.json", json.dumps({"gpus": {"all": settings}, "wait_s": 0, **more}))

    def changes(self) -> list[str]:
        """Return the commands so far that may change something, and forget them."""
        reads = ("nvidia-smi -q", "nvidia-smi -L", "nvidia-smi mig -l")
        done = [line.replace(UUID, "U") for line in self.ran if not line.startswith(reads)]
        self.ran.clear()
        return done

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.text("/run/moat/gpu.json")))

    def has(self, program: str) -> bool:
        return program not in self.absent

    def device(self, path: str) -> tuple[int, int] | None:
        return self.nodes.get(path)

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        line = " ".join(argv)
        self.ran.append(line)
        if argv[0] in self.absent:
            return 127, f"{argv[0]} is not installed"
        for begin, answer in self.fails.items():
            if line.replace(UUID, "U").startswith(begin):
                return answer
        return self.modprobe(argv[1:]) if argv[0] == "nvidia-modprobe" else self.smi(line.replace(UUID, "U"))

    def modprobe(self, arguments: Sequence[str]) -> tuple[int, str]:
        if not arguments:
            self.put("/proc/driver/nvidia/version", "")
        elif arguments[0] == "-f":
            minor = int(re.findall(r"Minor: (\d+)", self.text(arguments[1]))[0])
            self.nodes[f"/dev/nvidia-caps/nvidia-cap{minor}"] = (241, minor)
        elif arguments[0] == "-u":
            self.nodes["/dev/nvidia-uvm"] = (238, 0)
        else:
            name = "nvidiactl" if arguments[1] == "255" else f"nvidia{arguments[1]}"
            self.nodes[f"/dev/{name}"] = (195, int(arguments[1]))
        return 0, ""

    def smi(self, line: str) -> tuple[int, str]:
        words = line.split()
        if line == "nvidia-smi -q -x":
            return 0, self.report()
        if line == "nvidia-smi -L":
            rows = [f"  MIG {n}     Device  {i}: (UUID: MIG-{i})\n" for i, n in enumerate(self.layout)]
            return 0, f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUID})\n" + "".join(rows)
        if line == "nvidia-smi mig -lgip":
            return 0, LGIP
        if line.startswith("nvidia-smi mig -l"):
            row = (
                "|   0  MIG {n}   19   {i}   0:1     |\n"
                if words[-1] == "-lgi"
                else "|   0   {i}   MIG {n}   0    0    0:1 |\n"
            )
            rows = [row.format(n=name, i=index + 1) for index, name in enumerate(self.layout)]
            return (0, "".join(rows)) if rows else (6, "No GPU instances found: Not Found\n")
        if "-mig" in words:
            self.pending = words[-1] == "1"
            self.mig = self.mig if self.needs_reset else self.pending
        elif "-dgi" in words:
            self.layout = []
        elif "-cgi" in words:
            self.layout = [NAMES[int(number)] for number in words[-2].split(",")]
            for index in range(len(self.layout)):
                base = f"/proc/driver/nvidia/capabilities/gpu0/mig/gi{index + 1}"
                self.put(f"{base}/access", f"DeviceFileMinor: {3 + 2 * index}\n")
                self.put(f"{base}/ci0/access", f"DeviceFileMinor: {4 + 2 * index}\n")
        elif "-pl" in words:
            self.limit = int(words[-1])
        elif "-pm" in words:
            self.persistence = True
        return 0, "All done.\n"

    def report(self) -> str:
        text = XML
        for tag, value in (
            ("current_mig", self.mig),
            ("pending_mig", self.pending),
            ("persistence_mode", self.persistence),
        ):
            text = re.sub(f"<{tag}>.*</{tag}>", f"<{tag}>{'Enabled' if value else 'Disabled'}</{tag}>", text)
        for tag in ("current_power_limit", "requested_power_limit"):
            text = text.replace(f"<{tag}>700.00 W", f"<{tag}>{self.limit}.00 W")
        row = "<mig_device><index>{}</index><gpu_instance_id>{}</gpu_instance_id><compute_instance_id>0</compute_instance_id></mig_device>"
        devices = "".join(row.format(index, index + 1) for index in range(len(self.layout)))
        text = re.sub(r"<mig_devices>\s*None", "<mig_devices>" + devices, text)
        return text.replace("<processes>", f"<processes>{self.users}")


@pytest.fixture
def host(tmp_path: Path) -> Double:
    return Double(tmp_path)


def run(host: Double, *arguments: str) -> int:
    return gpu_settings.main(arguments, host)


def test_nothing_is_declared_and_nothing_done(host: Double) -> None:
    host.declare({})
    assert run(host) == 0 and host.changes() == []
    state = host.state()
    assert state["gpus"][UUID]["nodes"] == ["/dev/nvidia0"] and state["faults"] == [] and state["applied"] == []
    assert state["nodes"] == ["/dev/nvidiactl", "/dev/nvidia-uvm"]


def test_all_settings_are_applied_read_back_and_not_applied_again(host: Double) -> None:
    host.declare({"power_limit_w": 350, "graphics_clock_mhz": CLOCKS, "mig": ["1g.10gb", "3g.40gb"]})
    assert run(host) == 0
    caps = "/proc/driver/nvidia/capabilities"
    assert host.changes() == [
        f"nvidia-modprobe -f {caps}/mig/config",
        f"nvidia-modprobe -f {caps}/mig/monitor",
        "nvidia-smi -i U -mig 1",
        "nvidia-smi mig -i U -cgi 9,19 -C",
        "nvidia-smi -i U -pl 350",
        "nvidia-smi -i U -lgc 1200,1980",
        f"nvidia-modprobe -f {caps}/gpu0/mig/gi1/access",
        f"nvidia-modprobe -f {caps}/gpu0/mig/gi1/ci0/access",
        f"nvidia-modprobe -f {caps}/gpu0/mig/gi2/access",
        f"nvidia-modprobe -f {caps}/gpu0/mig/gi2/ci0/access",
    ]
    state = host.state()
    gpu = state["gpus"][UUID]
    assert (gpu["mig_mode"], gpu["power_w"], gpu["power_limit_w"], gpu["graphics_clock_mhz"]) == (
        True,
        350.0,
        350,
        CLOCKS,
    )
    assert gpu["mig"][1] == {
        "uuid": "MIG-1",
        "profile": "1g.10gb",
        "gi": 2,
        "ci": 0,
        "nodes": ["/dev/nvidia-caps/nvidia-cap5", "/dev/nvidia-caps/nvidia-cap6"],
    }
    assert state["mig"] == ["MIG-0", "MIG-1"] and len(state["applied"]) == 10
    assert run(host) == 0 and host.changes() == []
    assert host.state()["gpus"] == state["gpus"]


def test_a_boot_and_a_new_load_of_the_module_have_the_clocks_locked_again(host: Double) -> None:
    host.declare({"graphics_clock_mhz": CLOCKS})
    lock = ["nvidia-smi -i U -lgc 1200,1980"]
    assert run(host) == 0 and host.changes() == lock
    host.put("/proc/sys/kernel/random/boot_id", "two\n")
    assert run(host) == 0 and host.changes() == lock
    Path(host.root + "/sys/module/nvidia").rename(host.root + "/sys/module/kept")
    host.put("/sys/module/nvidia/version", "580.159.04\n")
    assert run(host) == 0 and host.changes() == lock
    assert run(host) == 0 and host.changes() == []


def test_what_is_no_longer_declared_goes_back(host: Double) -> None:
    host.declare({"power_limit_w": 300, "graphics_clock_mhz": CLOCKS})
    assert run(host) == 0 and host.changes()
    host.declare({})
    assert run(host) == 0 and host.changes() == ["nvidia-smi -i U -pl 700", "nvidia-smi -i U -rgc"]
    assert run(host) == 0 and host.changes() == []
    assert "power_limit_w" not in host.state()["gpus"][UUID]


def test_no_answer_of_nvidia_smi_forgets_nothing(host: Double, capsys: pytest.CaptureFixture[str]) -> None:
    host.declare({"power_limit_w": 300})
    assert run(host) == 0 and host.changes()
    host.fails["nvidia-smi -q"] = (9, "couldn't communicate with the NVIDIA driver")
    assert run(host) == 1 and "status 9: couldn't communicate" in capsys.readouterr().err
    host.fails.clear()
    host.declare({})
    assert run(host) == 0 and host.changes() == ["nvidia-smi -i U -pl 700"]


def test_missing_nodes_are_made_once(host: Double) -> None:
    host.declare({})
    host.nodes = {"/dev/nvidia-uvm": (511, 0)}
    assert run(host) == 0
    assert host.changes() == ["nvidia-modprobe -c 255", "nvidia-modprobe -u -c 0", "nvidia-modprobe -c 0"]
    assert run(host) == 0 and host.changes() == []


def test_a_node_that_cannot_be_made_is_told_once(host: Double, capsys: pytest.CaptureFixture[str]) -> None:
    host.declare({})
    del host.nodes["/dev/nvidia-uvm"]
    host.absent = {"nvidia-modprobe"}
    assert run(host) == 1
    err = capsys.readouterr().err
    assert err.count("/dev/nvidia-uvm is not there") == 1 and "nvidia-modprobe is not installed" in err
    host.absent, host.fails = set(), {"nvidia-modprobe": (0, "")}
    assert run(host) == 1 and "although nvidia-modprobe ran" in capsys.readouterr().err


def test_the_module_is_loaded_first(host: Double, capsys: pytest.CaptureFixture[str]) -> None:
    host.declare({}, wait_s=2)
    Path(host.root + "/proc/driver/nvidia/version").unlink()
    assert run(host) == 0 and host.changes() == ["nvidia-modprobe"]
    Path(host.root + "/proc/driver/nvidia/version").unlink()
    host.absent = {"nvidia-modprobe"}
    host.declare({})
    assert run(host) == 1
    err = capsys.readouterr().err
    assert "nvidia-modprobe is not installed" in err and "nvidia is not loaded" in err
    assert host.state()["faults"]


def test_a_host_without_nvidia_smi_is_told(host: Double, capsys: pytest.CaptureFixture[str]) -> None:
    host.declare({})
    host.absent = {"nvidia-smi"}
    assert run(host) == 1 and "nvidia-smi is not installed" in capsys.readouterr().err


def test_the_daemon_is_waited_for_and_not_for_ever(host: Double, capsys: pytest.CaptureFixture[str]) -> None:
    Path(host.root + "/run/nvidia-persistenced/socket").unlink()
    host.persistence = False
    host.declare({}, wait_s=1)
    assert run(host) == 1 and "start nvidia-persistenced.service" in capsys.readouterr().err
    host.put("/run/nvidia-persistenced/socket", "")
    assert run(host) == 0 and host.changes() == ["nvidia-smi -i U -pm 1"]


def test_a_wrong_declaration_changes_nothing(host: Double, capsys: pytest.CaptureFixture[str]) -> None:
    host.declare({"power_limit_w": 100, "graphics_clock_mhz": CLOCKS, "mig": ["9g.1gb"]})
    assert run(host) == 78
    err = capsys.readouterr().err
    assert "the GPU takes 200 to 700" in err and "names 9g.1gb" in err
    assert [line for line in host.changes() if "smi" in line] == [] and host.limit == 700
    host.declare({"ecc": True})
    assert run(host) == 78 and host.ran == [] and "no such setting" in host.state()["faults"][0]


def test_no_declaration_is_told(host: Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(host) == 78 and "/etc/moat/gpu.json is not there" in capsys.readouterr().err
    assert run(host, "--nonsense") == 2 and run(host, "a", "b") == 2


def test_a_gpu_in_use_keeps_its_layout_and_gets_the_rest(host: Double, capsys: pytest.CaptureFixture[str]) -> None:
    host.users = "<process_info><pid>7</pid><process_name>vllm</process_name></process_info>"
    host.declare({"mig": ["1g.10gb"], "power_limit_w": 300})
    assert run(host) == 1 and "in use by 7 (vllm)" in capsys.readouterr().err
    assert host.limit == 300 and not host.pending
    host.users = ""
    assert run(host) == 0 and host.layout == ["1g.10gb"]


def test_a_mode_that_needs_a_reset_is_told_and_no_reset_is_made(
    host: Double, capsys: pytest.CaptureFixture[str]
) -> None:
    host.needs_reset = True
    host.declare({"mig": ["1g.10gb"]})
    for _turn in range(2):
        assert run(host) == 1
        err = capsys.readouterr().err
        assert err.count("<3>") == 1 and "only after a reset of the GPU" in err
    assert not [line for line in host.changes() if "reset" in line or "-cgi" in line]
    host.mig = True
    assert run(host) == 0 and host.layout == ["1g.10gb"]


@pytest.mark.parametrize(
    ("begin", "answer", "said"),
    [
        ("nvidia-smi mig -i U -cgi", (6, "Insufficient Resources"), "status 6: Insufficient Resources"),
        ("nvidia-smi -i U -mig", (0, "Warning: MIG mode is in pending enable state"), "pending enable"),
        ("nvidia-smi -i U -pl", (0, "not supported for GPU. Treating as warning and moving on."), "moving on"),
        ("nvidia-smi -i U -lgc", (4, "Insufficient Permissions"), "status 4"),
    ],
)
def test_a_command_that_fails_is_told_once_and_its_change_does_not_count(
    host: Double, capsys: pytest.CaptureFixture[str], begin: str, answer: tuple[int, str], said: str
) -> None:
    host.declare({"power_limit_w": 350, "graphics_clock_mhz": CLOCKS, "mig": ["3g.40gb"]})
    host.fails[begin] = answer
    assert run(host) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("<3>") == 1, err
    host.fails.clear()
    host.changes()
    assert run(host) == 0 and any(line.startswith(begin) for line in host.changes())


def test_what_is_not_as_asked_afterwards_is_told(host: Double, capsys: pytest.CaptureFixture[str]) -> None:
    host.declare({"power_limit_w": 350})
    host.fails["nvidia-smi -i U -pl"] = (0, "All done.")
    assert run(host) == 1 and "the power limit is 700 W" in capsys.readouterr().err


def test_check_shows_the_plan_and_changes_nothing(host: Double, capsys: pytest.CaptureFixture[str]) -> None:
    host.declare({"power_limit_w": 350})
    del host.nodes["/dev/nvidia0"]
    host.absent = {"nvidia-modprobe"}
    assert run(host, "--check") == 1
    out, err = capsys.readouterr()
    assert "would run: nvidia-modprobe -c 0 (/dev/nvidia0 is not there)" in out
    assert f"would run: nvidia-smi -i {UUID} -pl 350 (GPU {UUID}: the power limit is 700 W)" in out
    assert "nvidia-modprobe is not installed; needed for" in err
    assert host.changes() == [] and not host.exists("/run/moat/gpu.json") and host.limit == 700


def test_who_has_a_node_open_is_found(host: Double) -> None:
    for pid, name, target in (
        ("7", "vllm", "/dev/nvidia0"),
        ("8", "nvidia-persiste", "/dev/nvidia0"),
        ("9", "x", "/a"),
    ):
        host.put(f"/proc/{pid}/comm", name + "\n")
        Path(f"{host.root}/proc/{pid}/fd").mkdir()
        Path(f"{host.root}/proc/{pid}/fd/3").symlink_to(target)
    assert host.openers("/dev/nvidia0") == ["7 (vllm)"]


def test_a_real_host_answers_for_itself(tmp_path: Path) -> None:
    system = gpu_settings.System()
    assert system.run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == (3, "out\nerr\n")
    assert system.run(["no-such-program"]) == (127, "no-such-program is not installed")
    assert system.run([str(tmp_path)])[0] == 126
    assert (
        system.device("/dev/null") == (1, 3) and system.device("/etc/passwd") is None and system.device("/no") is None
    )
    assert system.has("sh") and not system.has("no-such-program")
    assert system.names("/no") == [] and system.text("/no") == "" and system.inode("/no") == 0


def test_the_program_runs_from_where_the_role_puts_it(tmp_path: Path) -> None:
    for module in (gpu_settings, gpu_settings_plan):
        source = Path(str(module.__file__))
        (tmp_path / source.name).write_text(source.read_text())
    (tmp_path / "gpu.json").write_text('{"gpus": {"all": {"ecc": true}}}')
    argv = [sys.executable, "-sE", "-B", str(tmp_path / "gpu_settings.py"), "--check", str(tmp_path / "gpu.json")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 78 and "no such setting" in done.stderr and "Traceback" not in done.stderr
