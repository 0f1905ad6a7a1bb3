"""Hosts that a test or a benchmark makes for itself, beside the lab's: two proxies that serve the names as well, two hosts that use them, and one
that stands for what is outside. They are of the lab's image, get the lab's collection, and vanish with the program that made them.
"""

from __future__ import annotations

import copy
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml

from tests.lab import image
from tests.lab.backend import File
from tests.lab.collection import plain, tool
from tests.lab.podman import STAND_PREFIX as PREFIX
from tests.lab.podman import Podman, hardware_address, podman, remove_stand, tar_of
from tests.lab.shell import CACHE, LAB, ROOT, LabError, capture, lock, remove_tree, succeeds
from tests.lab.site import Answer

WAYS, ASKER, OTHER, OUTSIDE = ("way1", "way2"), "asker", "other", "outside"
SITE = {"way1": 11, "way2": 12, "asker": 21, "other": 22}
BEYOND = {"way1": 11, "way2": 12, "outside": 80}
NETWORKS = {"site": ("10.180.0", "fd00:180::"), "beyond": ("198.51.100", "2001:db8:51::")}
MEMBERS = {"site": SITE, "beyond": BEYOND}
PORT, NAME = 3128, "packages.example.org"
# The authority is named and never made: with these tags only the ways out are.
TAGS = ("--tags", "firewall,egress_proxy,private_dns,egress_client")
INTENT: dict[str, Any] = {
    "domain": "inference.internal",
    "segments": {"site": {"cidr4": "10.180.0.0/24", "cidr6": "fd00:180::/64"}},
    "admin": {"from": ["10.180.0.1/32", "fd00:180::1/128"]},
    "ca": {"host": OTHER},
    "proxy": {"hosts": list(WAYS), "to": ["198.51.100.0/24"], "resolvers": ["198.51.100.80"]},
    "egress": [{"from": [ASKER, OTHER], "host": NAME, "ports": [80, 443]}],
    "dns": {"hosts": list(WAYS), "forward": {"to": ["198.51.100.80"], "for": [ASKER]}},
}
NGINX = """
worker_processes 1;
error_log stderr;
pid /run/nginx.pid;
events { worker_connections 4096; }
http {
  access_log off;
  root /srv/outside;
  autoindex on;
  server {
    listen 198.51.100.80:80 backlog=4096;
    listen 198.51.100.80:443 ssl backlog=4096;
    ssl_certificate /etc/outside.pem;
    ssl_certificate_key /etc/outside.pem;
  }
}
"""
# every name below example.org, however new
UNBOUND = """
server:
  interface: 198.51.100.80
  access-control: 198.51.100.0/24 allow
  do-daemonize: no
  username: ""
  chroot: ""
  use-syslog: no
  log-queries: yes
  pidfile: ""
  local-zone: "example.org." redirect
  local-data: "example.org. 60 IN A 198.51.100.80"
"""
# A repository for apt, one for pip, and a page.
SERVE = r"""
set -eu
mkdir -p /srv/outside/simple/hello && cd /srv/outside
echo hello > index.html
: > Packages
python3 - <<'END'
import zipfile
with zipfile.ZipFile("simple/hello/hello-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("hello.py", "")
    wheel.writestr("hello-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n")
    wheel.writestr("hello-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("hello-1.0.dist-info/RECORD", "")
END
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=example.org \
  -keyout /etc/outside.key -out /etc/outside.crt 2>/dev/null
cat /etc/outside.key /etc/outside.crt > /etc/outside.pem
systemd-run -q -u outside-dns unbound -d -c /etc/outside-dns.conf
systemd-run -q -u outside-web nginx -c /etc/outside-web.conf -g 'daemon off;'
for _try in $(seq 50); do
  if curl -s -o /dev/null http://198.51.100.80/ && dig +short @198.51.100.80 packages.example.org | grep -q 198.51; then exit 0; fi
  sleep 0.1
done
exit 1
"""


def addresses(host: str) -> tuple[str, str]:
    """In the site, IPv4 and IPv6."""
    four, six = NETWORKS["site"]
    return f"{four}.{SITE[host]}", f"{six}{SITE[host]}"


def changed(**parts: Any) -> dict[str, Any]:
    return {**copy.deepcopy(INTENT), **parts}


class Stand:
    """The hosts while they are there."""

    def __init__(self) -> None:
        self.folder = LAB / "stand"
        self.inventory = self.folder / "hosts.yml"
        self._key = self.folder / "key"

    def __enter__(self) -> Stand:
        self.remove()
        try:
            self._make()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()

    def remove(self) -> None:
        remove_stand()
        remove_tree(self.folder)

    def _make(self) -> None:
        backend = Podman()
        with lock(CACHE / "lock"):
            backend.prepare({})
            built = image.ensure(backend)
        self.folder.mkdir(parents=True, mode=0o700)
        capture(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "moat-stand", "-f", str(self._key)])
        for network, (four, six) in NETWORKS.items():
            subnets = [
                "--subnet",
                f"{four}.0/24",
                "--gateway",
                f"{four}.1",
                "--subnet",
                f"{six}/64",
                "--gateway",
                f"{six}1",
            ]
            capture(podman("network", "create", "--internal", "--disable-dns", "--ipv6", *subnets, PREFIX + network))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda host: self._host(host, built), {**SITE, **BEYOND}))
        self._write_inventory()
        made = self.on(OUTSIDE, SERVE)
        if made.code:
            raise LabError(f"{OUTSIDE}: {made.out}{made.err}")

    def _host(self, host: str, built: str) -> None:
        networks: list[str] = []
        for network, members in MEMBERS.items():
            if host in members:
                four, six = NETWORKS[network]
                place = f"ip={four}.{members[host]},ip6={six}{members[host]},interface_name=eth{len(networks) // 2}"
                place += f",mac={hardware_address(f'{four}.{members[host]}')}"
                networks += ["--network", f"{PREFIX}{network}:{place}"]
        options = ["--privileged", "--systemd=always", "--no-hosts", "--dns=none", "--stop-timeout=10"]
        options += [f"--name={PREFIX}{host}", f"--hostname={host}"]
        capture(podman("create", *options, *networks, built))
        files = [File("/root/.ssh/authorized_keys", self._key.with_suffix(".pub").read_bytes(), 0o600)]
        if host == OUTSIDE:
            files += [
                File("/etc/outside-web.conf", NGINX.encode()),
                File("/etc/outside-dns.conf", UNBOUND.encode()),
            ]
        capture(podman("cp", "-", f"{PREFIX}{host}:/"), data=tar_of(tuple(files)))
        capture(podman("start", PREFIX + host))
        self.wait(host)

    def wait(self, host: str) -> None:
        """Until its system is up."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if succeeds(podman("exec", PREFIX + host, "systemctl", "is-active", "-q", "multi-user.target")):
                return
            time.sleep(0.2)
        raise LabError(f"{host} of the stand has not come up within 60 s")

    def _write_inventory(self) -> None:
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o IdentitiesOnly=yes"
        hosts = {}
        for host in SITE:
            four, six = addresses(host)
            hosts[host] = {"ansible_host": four, "moat_segment": "site", "moat_address4": four, "moat_address6": six}
        variables = {
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_private_key_file": str(self._key),
            "ansible_ssh_common_args": options,
            "moat_state_dir": str(self.folder / "state"),
            "moat_perimeter": INTENT,
        }
        self.inventory.write_text(yaml.safe_dump({"all": {"vars": variables, "hosts": hosts}}), encoding="utf-8")

    def on(self, host: str, script: str, *, data: bytes = b"", timeout: float = 60) -> Answer:
        """Run a shell script on a host, whatever its packet filter says."""
        argv = podman("exec", "--interactive", PREFIX + host, "bash", "-c", script)
        done = subprocess.run(argv, input=data, capture_output=True, check=False, timeout=timeout)
        return Answer(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def kill(self, host: str) -> None:
        """Its power is cut."""
        capture(podman("kill", PREFIX + host))

    def start(self, host: str) -> None:
        capture(podman("start", PREFIX + host))
        self.wait(host)

    def play(self, *arguments: str, intent: dict[str, Any] | None = None, name: str = "moat.inference.site") -> str:
        """Run a playbook for the ways out; return what it said."""
        given = ["-e", json.dumps({"moat_perimeter": intent})] if intent else []
        argv = tool("ansible-playbook", "-i", str(self.inventory), name, *(arguments or TAGS), *given)
        return self._run(argv)

    def role(self, host: str, role: str, **inputs: Any) -> str:
        """Apply one role by hand."""
        extra = ["-e", json.dumps(inputs)] if inputs else []
        argv = tool("ansible", "-i", str(self.inventory), host, "-m", "ansible.builtin.include_role")
        return self._run([*argv, "-a", f"name=moat.inference.{role}", *extra])

    def _run(self, argv: list[str]) -> str:
        done = subprocess.run(
            argv,
            env=plain(),
            cwd=ROOT,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            raise LabError(
                f"{' '.join(argv[:4])} failed with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
            )
        return done.stdout
