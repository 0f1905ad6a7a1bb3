"""A packet filter table of this machine that keeps the lab inside: nothing from it is forwarded or answered."""

from __future__ import annotations

from tests.lab.shell import capture, privileged

TABLE = "moat_lab"


def rules(bridges: list[str]) -> str:
    """The ruleset; bridged frames that the kernel shows to the forward hook keep their bridge as both ends and pass."""
    forward = "\n".join(
        f'    iifname "{bridge}" oifname != "{bridge}" drop\n    oifname "{bridge}" iifname != "{bridge}" drop'
        for bridge in bridges
    )
    names = ", ".join(f'"{bridge}"' for bridge in bridges)
    return f"""table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  chain forward {{
    type filter hook forward priority -10; policy accept;
{forward}
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname {{ {names} }} ct state established,related accept
    iifname {{ {names} }} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    iifname {{ {names} }} drop
  }}
}}
"""


def close(bridges: list[str], silent: list[str]) -> None:
    """Raise the fence. The controller has no business on the silent bridges: not even link-local addresses."""
    capture(privileged(["nft", "-f", "-"]), data=rules(bridges).encode())
    for bridge in silent:
        capture(privileged(["sysctl", "-q", "-w", f"net.ipv6.conf.{bridge}.disable_ipv6=1"]), check=False)


def hold(host: str, addresses: list[str]) -> None:
    """Take no frame from a host that starts: a container has its interfaces before its first program runs, a machine has not."""
    table, frames = f"table bridge {TABLE}_{host}", ", ".join(addresses)
    chain = f"chain starts {{\ntype filter hook prerouting priority -400\nether saddr {{ {frames} }} counter drop\n}}"
    capture(privileged(["nft", "-f", "-"]), data=f"{table}\ndelete {table}\n{table} {{\n{chain}\n}}\n".encode())


def release(host: str) -> None:
    capture(privileged(["nft", "delete", "table", "bridge", f"{TABLE}_{host}"]))


def open_again() -> None:
    capture(privileged(["nft", "delete", "table", "inet", TABLE]), check=False)
    for line in capture(privileged(["nft", "list", "tables", "bridge"]), check=False).splitlines():
        if line.split()[-1].startswith(f"{TABLE}_"):
            capture(privileged(["nft", "delete", *line.split()]), check=False)
