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


def open_again() -> None:
    capture(privileged(["nft", "delete", "table", "inet", TABLE]), check=False)
