"""Two proxies that are two resolvers as well: the second serves while the first does not, whatever has become of it. And systemd-resolved hands over
to them and back while names are resolved without pause.

The hosts are the test's own, with a plan and a packet filter of their own; squid, unbound, apt, pip, curl and systemd-resolved are real.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.lab.stand import ASKER, NAME, OTHER, PORT, WAYS, Stand, addresses

FIRST, SECOND = WAYS
STOP = "/run/moat-test-stop"
PRIVATE = "other.ca.inference.internal"
SLOWEST = 1.0  # seconds of a lookup while one hands over to the other
# Resolves names that nobody has asked for yet, without pause, in one process; and a name of the site's own.
RESOLVES = r"""
import json, os, socket, sys, time
end, number = time.time() + 120, 0
while time.time() < end and not os.path.exists(sys.argv[1]):
    number += 1
    name, began = f"n{os.getpid()}-{number}.example.org", time.time()
    try:
        said = socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        said = str(error)
    print(json.dumps([said, began, time.time()]), flush=True)
    time.sleep(0.01)
"""
FORMER = f"""
set -e
mkdir -p /etc/systemd/resolved.conf.d
printf '[Resolve]\nDNS={addresses(SECOND)[0]}\nDomains=~.\n' > /etc/systemd/resolved.conf.d/former.conf
systemctl enable -q --now systemd-resolved
ln -sfn ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
getent ahostsv4 first.example.org >&2
cat /etc/resolv.conf
"""
CURL = "curl -s -o /dev/null -w '%{http_code}' -m 15 --connect-timeout 4"
ENVIRONMENT = "set -a; . /etc/moat/egress/environment; set +a; "
# What a host does over the way out; each prints a word of its own. pip is the one that comes with the distribution's virtual environments.
USES = {
    "curl": f"{ENVIRONMENT}{CURL} http://{NAME}/ | sed s/^200$/curl/",
    "curl in TLS": f"{ENVIRONMENT}{CURL} -k https://{NAME}/ | sed 's/^200$/curl in TLS/'",
    "apt": (
        "rm -rf /run/moat-apt; mkdir -p /run/moat-apt/partial; "
        f"echo 'deb [trusted=yes] http://{NAME}/ ./' > /run/moat-apt/list; "
        "apt-get -qq -o Dir::Etc::SourceList=/run/moat-apt/list -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=/run/moat-apt"
        " -o APT::Update::Error-Mode=any update >/run/moat-apt/log 2>&1 && echo apt || cat /run/moat-apt/log"
    ),
    "pip": (
        "rm -rf /run/moat-pip; export PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl); "
        f"python3 -m pip download -q --timeout 3 --no-cache-dir -d /run/moat-pip -i http://{NAME}/simple/ --trusted-host {NAME} hello "
        ">/run/moat-pip.log 2>&1 && ls /run/moat-pip | grep -q hello-1.0 && echo pip || cat /run/moat-pip.log"
    ),
    "a name of others": "getent ahostsv4 $(date +%s%N).example.org | grep -q ^198.51.100.80 && echo a name of others",
    "a name of the site": f"getent ahostsv4 {PRIVATE} | grep -q ^{addresses('other')[0]} && echo a name of the site",
}
# curl and a lookup, again and again: the word, its outcome, when it began and ended
GOES_ON = f"""
{ENVIRONMENT}
rm -f {STOP}
while [ ! -e {STOP} ]; do
  b=$(date +%s.%N); echo "curl $({CURL} http://{NAME}/) $b $(date +%s.%N)"
  b=$(date +%s.%N); getent ahostsv4 x$b.example.org >/dev/null; echo "name $? $b $(date +%s.%N)"
  sleep 0.05
done
rm -f {STOP}
"""


@dataclass(frozen=True)
class HandOver:
    """What lookups were told while a change was made, and how the host stood before and after."""

    told: list[tuple[str, float, float]]
    before: str
    after: str

    def check(self) -> None:
        assert len(self.told) > 100
        assert {said for said, _began, _ended in self.told} == {"198.51.100.80"}, self.told
        assert max(ended - began for _said, began, ended in self.told) < SLOWEST
        starts = [began for _said, began, _ended in self.told]
        assert max(b - a for a, b in zip(starts, starts[1:])) < SLOWEST


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """Both ways out serve; their users have nothing but a packet filter."""
    with Stand() as made:
        made.play("--tags", "firewall,egress_proxy,private_dns")
        yield made


def said(stand: Stand, host: str, script: str) -> str:
    answer = stand.on(host, script)
    assert answer.code == 0, f"{host}: {answer.out}{answer.err}"
    return answer.out


@contextmanager
def resolving(stand: Stand) -> Iterator[Future[list[tuple[str, float, float]]]]:
    """Names are resolved meanwhile; the result is there afterwards."""

    def resolve() -> list[tuple[str, float, float]]:
        lines = stand.on(ASKER, f"rm -f {STOP}; python3 - {STOP}", data=RESOLVES.encode(), timeout=150).out.splitlines()
        return [tuple(json.loads(line)) for line in lines]

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(resolve)
        try:
            time.sleep(1)
            yield future
            time.sleep(1)
        finally:
            stand.on(ASKER, f"touch {STOP}")


@pytest.fixture(scope="module")
def handed_over(stand: Stand) -> HandOver:
    """The user of the ways out had systemd-resolved, and has been told of the ways out since."""
    before = said(stand, ASKER, FORMER)
    with resolving(stand) as told:
        stand.play("--tags", "egress_client", "--limit", ASKER)
    after = said(
        stand, ASKER, "grep ^nameserver /etc/resolv.conf; resolvectl dns; systemctl is-active systemd-resolved"
    )
    return HandOver(told.result(), before, after)


def test_systemd_resolved_hands_over_without_a_gap(handed_over: HandOver) -> None:
    assert "nameserver 127.0.0.53" in handed_over.before
    resolvers = [addresses(FIRST)[0], addresses(SECOND)[0], addresses(FIRST)[1]]
    lines = handed_over.after.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("nameserver")] == resolvers
    # whoever asks systemd-resolved itself is answered by the same servers
    assert [line.split()[1:] for line in lines if line.startswith("Global:")] == [resolvers]
    assert lines[-1] == "active"
    handed_over.check()


def test_a_gap_would_be_seen(stand: Stand, handed_over: HandOver) -> None:
    """The control of the above: for little more than a second nobody answers."""
    with resolving(stand) as told, ThreadPoolExecutor(2) as pool:
        script = "systemctl stop moat-private-dns; sleep 1.5; systemctl start moat-private-dns"
        assert [answer.code for answer in pool.map(lambda way: stand.on(way, script), WAYS)] == [0, 0]
    with pytest.raises(AssertionError):
        HandOver(told.result(), "", "").check()


@contextmanager
def away(stand: Stand, fault: str) -> Iterator[None]:
    """The first of the two is of no use meanwhile, and itself again afterwards."""
    units = "moat-egress-proxy moat-private-dns"
    begin, end = {
        "stopped": (f"systemctl stop {units}", f"systemctl start {units}"),
        "cut off": (
            "nft 'add table inet cut; add chain inet cut in { type filter hook input priority -500; policy drop; }'",
            "nft delete table inet cut",
        ),
        "without power": ("", ""),
    }[fault]
    if begin:
        said(stand, FIRST, begin)
    else:
        stand.kill(FIRST)
    try:
        yield
    finally:
        if end:
            said(stand, FIRST, end)
        else:
            stand.start(FIRST)
            said(
                stand,
                FIRST,
                f"for _try in $(seq 50); do systemctl is-active -q {units} && exit; sleep 0.2; done; exit 1",
            )


def serves(stand: Stand, way: str, since: float) -> bool:
    """Whether a way out has let something of the asker's through since then, and resolved a name; it may take a moment."""
    script = f"journalctl -u moat-egress-proxy -u moat-private-dns -o cat --since @{int(since) + 1}"
    for _try in range(20):
        lines = [line for line in said(stand, way, script).splitlines() if addresses(ASKER)[0] in line]
        if {line.startswith("{") for line in lines} == {True, False}:
            return True
        time.sleep(0.3)
    return False


def timed(stand: Stand, script: str) -> tuple[str, float]:
    began = time.time()
    return stand.on(ASKER, script).out.strip(), round(time.time() - began, 1)


@pytest.mark.parametrize("fault", ["stopped", "cut off", "without power"])
def test_the_second_serves_while_the_first_does_not(fault: str, stand: Stand, handed_over: HandOver) -> None:
    with ThreadPoolExecutor(1) as pool:
        going_on = pool.submit(stand.on, ASKER, GOES_ON, timeout=120)
        try:
            time.sleep(1)
            gone = time.time()
            with away(stand, fault):
                with ThreadPoolExecutor(len(USES)) as uses:
                    done = dict(zip(USES, uses.map(lambda script: timed(stand, script), USES.values()), strict=True))
                assert {use: word for use, (word, _seconds) in done.items()} == {use: use for use in USES}, done
                assert serves(stand, SECOND, gone)
            back = time.time()
            assert serves(stand, FIRST, back)
        finally:
            stand.on(ASKER, f"touch {STOP}")
        lines = [line.split() for line in going_on.result().out.splitlines()]
    print(f"{fault}: {done}; {len(lines)} asked meanwhile")
    assert {word for word, *_rest in lines} == {"curl", "name"} and len(lines) > 20
    # what was measured is 4 s at most: one wait for a resolver, and one for a proxy
    assert max(seconds for _word, seconds in done.values()) < 10, done
    # one that was under way when the first went is lost with it
    failed = [line for line in lines if (line[0], line[1]) not in {("curl", "200"), ("name", "0")}]
    assert [line for line in failed if float(line[2]) > gone + 0.5 or float(line[3]) < gone] == []
    assert len(failed) <= 1


# Opens more connections in a moment than a host may; prints how many were.
HASTE = f"""
import socket
opened = 0
for _number in range(700):
    with socket.socket() as plug:
        plug.settimeout(0.02)
        opened += plug.connect_ex(("{addresses(FIRST)[0]}", {PORT})) == 0
print(opened)
"""


def test_too_many_connections_are_refused_to_their_own_host_alone(stand: Stand) -> None:
    counter = "nft list chain inet moat rate | grep -o 'packets [0-9]*' | cut -d ' ' -f 2"
    before = int(said(stand, FIRST, counter))
    opened = int(stand.on(OTHER, "python3 -", data=HASTE.encode()).out)
    asked = f"curl -s -o /dev/null -w '%{{http_code}}' -m 0.7 -x http://{addresses(FIRST)[0]}:{PORT} http://{NAME}/"
    answer = stand.on(ASKER, asked).out
    # five hundred at once, and a hundred a second meanwhile
    assert 500 <= opened < 700
    assert int(said(stand, FIRST, counter)) - before >= 700 - opened
    assert answer == "200"
    # the host that was too hasty waits, and is admitted a second later
    time.sleep(1.5)
    assert stand.on(OTHER, asked).out == "200"


def test_systemd_resolved_is_handed_back_without_a_gap(stand: Stand, handed_over: HandOver) -> None:
    with resolving(stand) as told:
        stand.role(ASKER, "egress_client")
    after = said(stand, ASKER, "cat /etc/resolv.conf; resolvectl dns; ls /etc/moat/egress 2>&1 || true")
    assert "nameserver 127.0.0.53" in after and "No such file" in after
    assert f"Global: {addresses(SECOND)[0]}\n" in after
    HandOver(told.result(), handed_over.after, after).check()
