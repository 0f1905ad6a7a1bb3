"""The ways out are taken away and come back on hosts that have none of the packages: proxy first, then names, then everybody else."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults import run
from tests.lab import internet
from tests.lab.image import DEBS
from tests.lab.site import on, plans

pytestmark = pytest.mark.usefixtures("as_it_was")
POLICY = "moat.inference.policy"
NAME = "packages.example.org"
SOURCE, KEY = "/etc/apt/sources.list.d/moat-test.list", "/etc/apt/keyrings/moat-test.asc"
ASIDE = "/etc/apt/sources.list.moat-test"
HELD = "gpu1"
# What each host lacks at first, and what shows that it does: a program of the package.
LACKS = {"egress1": ("squid-openssl", "squid"), "dns1": ("unbound", "unbound"), "app3": ("wireguard-tools", "wg")}


def without_ways_out() -> dict[str, Any]:
    """The lab's intent as it would be without any of them."""
    intent = copy.deepcopy(run.INTENT)
    for key in ("proxy", "egress", "dns"):
        del intent[key]
    for segment in intent["segments"].values():
        for key in ("default_route", "router4", "router6"):
            segment.pop(key, None)
    return intent


def installed(host: str) -> bool:
    return on(host, f"dpkg-query -W -f '${{db:Status-Status}}' {LACKS[host][0]}").out == "installed"


def left(host: str) -> list[str]:
    """What the roles of the ways out put on a host."""
    script = r"""
ls /etc/moat/egress/* /etc/moat/routes/* /etc/moat/egress-proxy/* /etc/moat/private-dns/* /etc/apt/apt.conf.d/*moat* \
  /etc/systemd/system/moat-routes* /etc/systemd/system/moat-egress-proxy* /etc/systemd/system/moat-private-dns* 2>/dev/null
systemctl list-units --all --plain --no-legend 'moat-routes*' 'moat-egress*' 'moat-private-dns*'
ip rule show | grep -E '^1018[89]|^10190'
true
"""
    return on(host, script).out.splitlines()


def defaults(host: str) -> list[str]:
    return on(host, "ip -4 route show default; ip -6 route show default").out.splitlines()


def test_what_the_plan_no_longer_has_is_taken_away() -> None:
    # the control: all of it is there before
    assert all(left(host) for host in plans()) and not defaults(HELD)
    ended = run.play(POLICY, intent=without_ways_out())
    assert ended.rc == 0, ended.out[-4000:]
    assert {host: left(host) for host in plans()} == {host: [] for host in plans()}
    assert len(defaults(HELD)) == 2, "the host has its own way out again, IPv4 and IPv6"
    again = run.play("moat.inference.site", "--limit", ",".join([HELD, *LACKS]), intent=without_ways_out())
    assert again.rc == 0 and not any(again.counts("changed").values()), again.out[-4000:]


@pytest.fixture
def bare() -> Iterator[None]:
    """The packages are gone, and the lab's signed repository is each host's only one. Nobody has seen what it has."""
    served = internet.internet()
    assert served is not None
    key = on(served.host, f"cat {internet.KEYRING}").out
    try:
        for host, (package, program) in LACKS.items():
            ready = f"""set -e
mv /etc/apt/sources.list {ASIDE}
mkdir -p /etc/apt/keyrings
printf '%s' {shlex.quote(key)} > {KEY}
echo 'deb [signed-by={KEY}] http://{NAME}/debian {internet.SUITE} main' > {SOURCE}
rm -rf /var/lib/apt/lists/*
dpkg --remove {package}
! command -v {program}
"""
            done = on(host, ready)
            assert done.code == 0, done.err
        # the site's own resolver, as the network of the proxy's host would name it
        on("egress1", f"echo nameserver {served.resolvers[0]} > /etc/resolv.conf")
        yield
    finally:
        for host, (package, _program) in LACKS.items():
            on(host, f"mv {ASIDE} /etc/apt/sources.list; rm -rf {SOURCE} {KEY} /var/lib/apt/lists/*; apt-get clean")
            if not installed(host):
                on(host, f"dpkg -i {DEBS}/{package}_*.deb")


def test_one_run_brings_it_all_up_on_bare_hosts(bare: None) -> None:
    begun = on("egress1", "date +%s").out.strip()
    ended = run.play()
    assert ended.rc == 0, ended.out[-4000:]
    assert [host for host in LACKS if not installed(host)] == []
    assert all(left(host) for host in plans()) and not defaults(HELD)
    # the proxy's own package came directly, for there was no other way; the others by the proxy
    log = on("egress1", f"journalctl -q -o cat -u moat-egress-proxy --since @{begun}").out.splitlines()
    asked = {
        host
        for host in plans()
        if [line for line in log if f'"source":"{host}"' in line and f'"host":"{NAME}"' in line]
    }
    assert asked == set(LACKS) - {"egress1"}
    again = run.play("moat.inference.site", "--limit", ",".join([HELD, *LACKS]))
    assert again.rc == 0 and not any(again.counts("changed").values()), again.out[-4000:]
    verified = run.play("moat.inference.verify")
    assert verified.rc == 0, verified.out[-4000:]
