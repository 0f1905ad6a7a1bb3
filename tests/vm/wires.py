"""The wires of the machine: two networks in namespaces of their own, with no route and no interface that leads out of them."""

from __future__ import annotations

from tests.lab.shell import capture, privileged
from tests.vm import machine

ROOM, INTRUDER = "moat-vm", "moat-vm-intruder"
DATA_TAP, ADMIN_TAP = "tap-data", "tap-admin"


def inside(namespace: str, *argv: str) -> list[str]:
    """The command line of something that runs in a namespace, as root."""
    return privileged(["ip", "netns", "exec", namespace, *argv])


def _ip(namespace: str, text: str) -> None:
    capture(privileged(["ip", "-n", namespace, "-batch", "-"]), data=text.encode())


def up() -> None:
    """Both networks; the intruder knows the machine's hardware address, so that no probe waits for an answer to ARP."""
    down()
    for namespace in (ROOM, INTRUDER):
        capture(privileged(["ip", "netns", "add", namespace]))
    for tap in (DATA_TAP, ADMIN_TAP):
        capture(privileged(["ip", "-n", ROOM, "tuntap", "add", "dev", tap, "mode", "tap"]))
    _ip(
        ROOM,
        f"""link set lo up
link add br-data type bridge forward_delay 0 mcast_snooping 0
link add v-data type veth peer name eth0 netns {INTRUDER}
link set {DATA_TAP} master br-data
link set v-data master br-data
""",
    )
    silent = [f"net.ipv6.conf.{name}.disable_ipv6=1" for name in ("br-data", "v-data", DATA_TAP)]
    capture(inside(ROOM, "sysctl", "-q", "-w", *silent))
    _ip(
        ROOM,
        f"""link set br-data up
link set v-data up
link set {DATA_TAP} up
link set {ADMIN_TAP} up
addr add {machine.CONTROLLER4}/24 dev {ADMIN_TAP}
addr add {machine.STRANGER4}/24 dev {ADMIN_TAP}
addr add {machine.CONTROLLER6}/64 dev {ADMIN_TAP} nodad
addr add {machine.STRANGER6}/64 dev {ADMIN_TAP} nodad
neigh replace {machine.ADMIN4} lladdr {machine.ADMIN_MAC} nud permanent dev {ADMIN_TAP}
neigh replace {machine.ADMIN6} lladdr {machine.ADMIN_MAC} nud permanent dev {ADMIN_TAP}
""",
    )
    _ip(
        INTRUDER,
        f"""link set lo up
link set eth0 up
addr add {machine.INTRUDER4}/24 dev eth0
addr add {machine.INTRUDER6}/64 dev eth0 nodad
neigh replace {machine.DATA4} lladdr {machine.DATA_MAC} nud permanent dev eth0
neigh replace {machine.DATA6} lladdr {machine.DATA_MAC} nud permanent dev eth0
""",
    )


def down() -> None:
    """Remove both, and with them every interface."""
    there = capture(["ip", "netns", "list"]).split()
    for namespace in (INTRUDER, ROOM):
        if namespace in there:
            capture(privileged(["ip", "netns", "delete", namespace]))
