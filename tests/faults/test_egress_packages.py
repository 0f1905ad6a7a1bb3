"""A package that a run finds missing is installed through the proxy, on a host that has no other way to it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from tests.faults import run
from tests.lab import internet
from tests.lab.image import SERVED
from tests.lab.site import on, plans

HOST = "app3"
NAME = "packages.example.org"
SOURCE, KEY = "/etc/apt/sources.list.d/moat-test.list", "/etc/apt/keyrings/moat-test.asc"
# The distribution's own servers are not there; without them apt says nothing of the lab's repository.
ASIDE = "/etc/apt/sources.list.moat-test"
THERE = f"dpkg-query -W -f '${{db:Status-Status}}' {SERVED}"


@pytest.fixture
def repository() -> Iterator[None]:
    """The lab's signed repository as the host's only one."""
    served = internet.internet()
    assert served is not None
    key = on(served.host, f"cat {internet.KEYRING}").out
    ready = f"""set -e
mv /etc/apt/sources.list {ASIDE}
mkdir -p /etc/apt/keyrings
printf '%s' {shlex.quote(key)} > {KEY}
echo 'deb [signed-by={KEY}] http://{NAME}/debian {internet.SUITE} main' > {SOURCE}
apt-get -qq update -o APT::Update::Error-Mode=any -o Acquire::Retries=0
"""
    try:
        done = on(HOST, ready)
        assert done.code == 0, done.err
        yield
    finally:
        on(HOST, f"mv {ASIDE} /etc/apt/sources.list; rm -rf {SOURCE} {KEY} /var/lib/apt/lists/*_dists_*; apt-get clean")


def apply() -> run.Run:
    return run.play("moat.inference.site", "--limit", HOST)


def test_a_missing_package_comes_through_the_proxy(repository: None) -> None:
    proxy = next(name for name, plan in plans().items() if "egress_proxy" in plan["roles"])
    begun = on(proxy, "date +%s").out.strip()
    assert on(HOST, f"dpkg --remove {SERVED}; {THERE}").out.split()[-1:] != ["installed"]
    assert on(HOST, "command -v wg").code != 0
    try:
        ended = apply()
    finally:
        if on(HOST, THERE).out != "installed":
            on(HOST, f"apt-get -qq -y install {SERVED}")
    assert ended.rc == 0, ended.out[-4000:]
    assert ended.counts("changed")[HOST] >= 1
    assert on(HOST, THERE).out == "installed"
    log = on(proxy, f"journalctl -q -o cat -u moat-egress-proxy --since @{begun}").out
    assert [line for line in log.splitlines() if f'"source":"{HOST}"' in line and f'"host":"{NAME}"' in line], log[
        -2000:
    ]
    again = apply()
    assert again.rc == 0 and again.counts("changed")[HOST] == 0, again.out[-4000:]


def test_without_the_proxy_there_is_none(repository: None) -> None:
    """The control: the same repository, asked for directly."""
    direct = "apt-get -qq update -o APT::Update::Error-Mode=any -o Acquire::Retries=0 -o Acquire::http::Timeout=3"
    assert on(HOST, direct).code == 0
    assert on(HOST, f"{direct} -o Acquire::http::Proxy=DIRECT").code != 0
