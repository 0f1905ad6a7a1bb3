"""The playbook gpu: drained before the driver changes, out of service over the reboot, back only when the GPUs were proven to work.

There is no GPU here. Doubles: the role gpu_driver, which gives what a file on the host says; the module gpu_verify, likewise; the engine;
the
kernel's boot identifier, for a container that restarts has that of the machine; and shutdown(8). The playbook, its tasks, the modules gpu_drain and
model_ready, systemd, SSH and the restart of the host are the real ones.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import collection
from tests.lab.backend import File
from tests.lab.podman import podman
from tests.lab.scratch import Ran, Scratch
from tests.lab.shell import capture

RECORD = "/var/lib/moat/gpu-drained.json"
UNIT = "moat-model@echo.service"
ENGINE = """\
import http.server, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"usage": {"completion_tokens": 1}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "unix"
socketserver.UnixStreamServer("/run/echo.sock", Handler).serve_forever()
"""
SERVICE = """\
[Unit]
Description=A model that is a double
[Service]
ExecStartPre=/bin/rm -f /run/echo.sock
ExecStart=/usr/bin/python3 /opt/double/engine.py
[Install]
WantedBy=multi-user.target
"""
# the boot identifier of the machine stays when a container restarts
BOOT = """\
[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'cat /proc/sys/kernel/random/uuid > /run/boot-id && mount --bind /run/boot-id /proc/sys/kernel/random/boot_id'
[Install]
WantedBy=sysinit.target
"""
GPU_UNIT = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sleep 2
[Install]
WantedBy=multi-user.target
"""
# the lab's image has no logind, which shutdown(8) asks; systemd(1), SIGRTMIN+5
SHUTDOWN = "#!/bin/sh\nsetsid bash -c 'sleep 1; kill -s RTMIN+5 1' > /dev/null 2>&1 < /dev/null &\nsleep 0.2\n"
# what the role's module would return, before it did anything and after
BEFORE = {"state": "absent", "pending": ["another version"], "reboot": {"needed": False, "why": []}}
AFTER = {"state": "reboot_required", "pending": [], "reboot": {"needed": True, "why": ["another module is loaded"]}}
DONE = {"state": "installed", "pending": [], "reboot": {"needed": False, "why": []}}
NONE = {"state": "skipped", "pending": [], "reboot": {"needed": False, "why": []}}
SAY = """\
- name: Say what the file says
  ansible.builtin.command: cat /opt/double/driver.json
  register: __gpu_driver_said
  changed_when: false
  check_mode: false
- name: Return it
  ansible.builtin.set_fact:
    __gpu_driver_result: "{{ __gpu_driver_said.stdout | from_json }}"
- name: Refuse GPUs in use
  ansible.builtin.command: sh -c '! systemctl is-active moat-model@echo.service'
  changed_when: false
  check_mode: false
  when: gpu_driver_busy == 'refuse' and __gpu_driver_result.pending | length > 0
"""
MAIN = """\
- name: Look
  ansible.builtin.import_tasks: preflight.yml
- name: Install
  ansible.builtin.command: sh -c 'cp /opt/double/after.json /opt/double/driver.json; echo installed >> /opt/double/told'
  when: __gpu_driver_result.pending | length > 0
- name: Look again
  ansible.builtin.include_tasks: preflight.yml
"""
VERIFY = """\
#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(argument_spec={"expected_version": {}, "xids": {"type": "bool"}})
fault = open("/opt/double/verdict").read()
module.fail_json(msg=fault) if fault else module.exit_json()
"""


class Host(Scratch):
    """The host of these tests; it comes up again when it restarts."""

    def __init__(self, collections: Path) -> None:
        self.collections = collections
        unit = (collection.ROOT / "roles/model_server/templates/moat-model.service.j2").read_text(encoding="utf-8")
        (condition,) = (line for line in unit.splitlines() if RECORD in line)
        texts = {
            "/opt/double/engine.py": ENGINE,
            f"/etc/systemd/system/{UNIT}": SERVICE.replace(
                "[Service]", f"{condition}\nAfter=moat-gpu.service\n[Service]"
            ),
            "/etc/systemd/system/boot-id.service": BOOT,
            "/etc/systemd/system/moat-gpu.service": GPU_UNIT,
            "/etc/moat/models/echo.json": '{"socket": "/run/echo.sock"}',
        }
        files = [File(path, text.encode()) for path, text in texts.items()]
        files += [
            File("/opt/double/shutdown", SHUTDOWN.encode(), 0o755),
        ]
        super().__init__("gpu-playbook", *files)
        self.said(
            "ln -sf /opt/double/shutdown /usr/sbin/shutdown; systemctl daemon-reload;"
            f" systemctl -q enable {UNIT} boot-id moat-gpu; systemctl start {UNIT} boot-id"
        )

    def set(self, driver: dict[str, Any], after: dict[str, Any], verdict: str = "") -> None:
        """Say what the doubles say; forget what was told; serve."""
        for name, content in (
            ("driver.json", json.dumps(driver)),
            ("after.json", json.dumps(after)),
            ("verdict", verdict),
        ):
            self.put(File(f"/opt/double/{name}", content.encode()))
        self.said(f"rm -f /opt/double/told {RECORD}; systemctl start {UNIT}")

    def gpu(self, *arguments: str, **variables: Any) -> Ran:
        extra = {"moat_gpu_hosts": "scratch", "moat_gpu_ready_timeout": 20, "moat_gpu_grace": 1, **variables}
        over = threading.Event()
        power = threading.Thread(target=self.come_up_again, args=(over,))
        power.start()
        try:
            return self.play([{"import_playbook": "moat.inference.gpu"}], "-e", json.dumps(extra), *arguments)
        finally:
            over.set()
            power.join()

    def come_up_again(self, over: threading.Event) -> None:
        """Do for the container what firmware does for a machine: what went down for a restart is started."""
        while not over.wait(0.5):
            if capture(podman("inspect", "--format", "{{.State.Status}}", self.id)).strip() == "exited":
                self.start()

    def serves(self) -> bool:
        return self.on(f"systemctl is-active {UNIT}").code == 0

    def boot(self) -> str:
        return self.said("cat /proc/sys/kernel/random/boot_id")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host, and the collection as it is installed but for the doubles."""
    place = tmp_path_factory.mktemp("collections")
    inside = place / "ansible_collections" / "moat" / "inference"
    shutil.copytree(collection.COLLECTIONS / "ansible_collections" / "moat" / "inference", inside, ignore=KEPT_OUT)
    role = inside / "roles" / "gpu_driver"
    shutil.rmtree(role, ignore_errors=True)
    for name, text in (("tasks/preflight", SAY), ("tasks/main", MAIN), ("defaults/main", DEFAULTS)):
        (role / name).parent.mkdir(parents=True, exist_ok=True)
        (role / f"{name}.yml").write_text(f"---\n{text}")
    (inside / "plugins" / "modules" / "gpu_verify.py").write_text(VERIFY)
    patched = pytest.MonkeyPatch()
    patched.setattr(collection, "COLLECTIONS", place)
    made = None
    try:
        made = Host(place)
        yield made
    finally:
        patched.undo()
        if made is not None:
            made.remove()


KEPT_OUT = shutil.ignore_patterns(".*", "tests")
DEFAULTS = "gpu_driver_version: 580.178.04\ngpu_driver_busy: refuse\n"


def test_a_host_as_it_shall_be_is_left_alone_and_serves_throughout(host: Host) -> None:
    host.set(DONE, DONE)
    since = host.said(f"systemctl show -p ActiveEnterTimestampMonotonic {UNIT}")
    for reboot in (False, True):
        ran = host.gpu(moat_gpu_reboot=reboot).good()
        assert ran.count("changed") == 0, ran.out
    assert host.said(f"systemctl show -p ActiveEnterTimestampMonotonic {UNIT}") == since


def test_a_host_without_a_gpu_is_passed_by(host: Host) -> None:
    host.set(NONE, NONE, "there is no GPU to verify")
    assert host.gpu(moat_gpu_reboot=True).good().count("changed") == 0 and host.serves()


def test_check_mode_changes_nothing_and_does_not_mind_who_uses_the_gpus(host: Host) -> None:
    host.set(BEFORE, AFTER)
    ran = host.gpu("--check", moat_gpu_reboot=True).good()
    assert ran.count("changed") > 0
    assert host.serves() and host.on(f"test -e {RECORD} -o -e /opt/double/told").code != 0


def test_without_leave_to_reboot_gpus_in_use_stop_it_before_anything_changes(host: Host) -> None:
    host.set(BEFORE, AFTER)
    ran = host.gpu()
    assert ran.rc != 0 and "Its models were not touched" in ran.out
    assert host.serves() and host.on("test -e /opt/double/told").code != 0


def test_a_reboot_that_is_not_allowed_is_asked_for(host: Host) -> None:
    host.set(AFTER, AFTER, "not to be verified before the reboot")
    ran = host.gpu().good()
    assert "needs a reboot (another module is loaded)" in ran.out and host.serves()


def test_drained_changed_rebooted_verified_and_back(host: Host) -> None:
    host.set(BEFORE, AFTER)
    boot = host.boot()
    own = host.folder / "own.yml"
    own.write_text(
        "- name: Tell\n  ansible.builtin.shell: systemctl is-active moat-model@echo.service >> /opt/double/told\n  failed_when: moat_no | default(false)\n"
    )
    ran = host.gpu(moat_gpu_reboot=True, moat_gpu_drain=str(own), moat_gpu_resume=str(own)).good()
    assert host.boot() != boot and host.serves() and host.on(f"test -e {RECORD}").code != 0, ran.out
    # drained first, installed then, resumed last
    assert host.said("cat /opt/double/told").split() == ["active", "installed", "active"]


def test_a_failed_verification_leaves_the_host_drained_over_reboots_until_a_run_succeeds(host: Host) -> None:
    host.set(BEFORE, AFTER, "the kernel module is 1 and the libraries are 2")
    boot = host.boot()
    ran = host.gpu(moat_gpu_reboot=True)
    assert ran.rc != 0 and host.boot() != boot
    assert (
        "the kernel module is 1 and the libraries are 2" in ran.out
        and "stays drained, over a reboot too: echo" in ran.out
    )
    assert not host.serves() and json.loads(host.said(f"cat {RECORD}")) == {"models": ["echo"]}
    host.said(f"systemctl start {UNIT}")
    assert not host.serves(), "nothing starts it while the record is there"
    host.put(File("/opt/double/verdict", b""), File("/opt/double/driver.json", json.dumps(DONE).encode()))
    host.gpu(moat_gpu_reboot=True).good()
    assert host.serves() and host.on(f"test -e {RECORD}").code != 0


def test_the_first_host_that_fails_stops_the_run(host: Host) -> None:
    # the same container under a second name
    hosts = yaml.safe_load((host.folder / "hosts.yml").read_text())["all"]["hosts"]
    second = host.folder / "second.yml"
    second.write_text(yaml.safe_dump({"all": {"hosts": {"second": hosts["scratch"]}}}))
    both = {"moat_gpu_hosts": "scratch:second"}
    host.set(DONE, DONE, "the GPU has fallen off the bus")
    ran = host.gpu("-i", str(second), **both)
    assert ran.rc != 0 and "the GPU has fallen off the bus" in ran.out
    assert "second" not in ran.out.split("PLAY RECAP")[1]
    host.set(DONE, DONE)
    assert "second" in host.gpu("-i", str(second), **both).good().out.split("PLAY RECAP")[1]
