"""An edit of an allowlist by the policy playbook: in force within seconds, at the proxy alone, and no allowed request fails meanwhile."""

from __future__ import annotations

import copy
import json
import os
import shlex
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.faults import run
from tests.lab import bench
from tests.lab.site import on, plans

pytestmark = pytest.mark.usefixtures("as_it_was")
POLICY = "moat.inference.policy"
HOST = "gpu1"
# Others have it on their lists, this host does not.
EDITED = "pypi.example.org"
# The long form is judged on an otherwise idle machine; the short one only shows that the edit takes effect.
MOST_SECONDS = 3.0 if os.environ.get("MOAT_PROOF") == "long" else 15.0
STOP = "/run/moat-test-stop"
# Asks for the listed name without pause, in TLS and in plain HTTP, each time over a new connection, and for the edited one; prints what
# each of them was told, and when. Together they stay below the rate of connections that a host has.
ASKS = r"""
import json, os, socket, ssl, sys, threading, time
proxy, port, listed, edited, stop = sys.argv[1:]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
end = time.time() + 120
def told(kind, name):
    with socket.create_connection((proxy, int(port)), 5) as plug:
        plug.settimeout(5)
        if kind == "http":
            plug.sendall(f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            return plug.recv(4096)[9:12].decode()
        plug.sendall(f"CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n".encode())
        status = plug.recv(4096)[9:12].decode()
        if status != "200":
            return status
        with context.wrap_socket(plug, server_hostname=name) as tls:
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            return tls.recv(4096)[9:12].decode()
def ask(what, kind, name):
    while time.time() < end and not os.path.exists(stop):
        began = time.time()
        try:
            said = told(kind, name)
        except OSError as error:
            said = repr(error)
        print(json.dumps([what, said, began, time.time()]), flush=True)
        time.sleep(0.03)
asked = (("listed http", "http", listed), ("listed tls", "tls", listed), ("edited", "tls", edited))
for thread in [threading.Thread(target=ask, args=each) for each in asked]:
    thread.start()
"""
Told = list[tuple[str, str, float, float]]


def edited(*ports: int) -> dict[str, Any]:
    intent = copy.deepcopy(run.INTENT)
    intent["egress"].append({"from": HOST, "host": EDITED, "ports": list(ports)})
    return intent


def listed() -> str:
    """A name that the host may reach in plain HTTP and by CONNECT."""
    (proxy,) = (plan["egress_proxy"] for plan in plans().values() if "egress_proxy" in plan)
    (source,) = (source for source in proxy["sources"] if source["name"] == HOST)
    assert EDITED not in [item["host"] for item in source["allow"]]
    return str(next(item["host"] for item in source["allow"] if {80, 443} <= set(item["ports"])))


def ask() -> Told:
    url = urlsplit(plans()[HOST]["egress_client"]["proxies"][0])
    words = ["python3", "-", str(url.hostname), str(url.port), listed(), EDITED, STOP]
    said = on(HOST, f"rm -f {STOP}; {shlex.join(words)}; rm -f {STOP}", data=ASKS.encode(), timeout=150)
    assert not said.err, said.err
    return [tuple(json.loads(line)) for line in said.out.splitlines()]


def apply(intent: dict[str, Any] | None) -> tuple[float, Counter[str]]:
    """When the playbook began, and the remote executions on each host."""
    began = time.time()
    _seconds, notes, _output = bench.play(POLICY, *(["-e", json.dumps({"moat_perimeter": intent})] if intent else []))
    return began, Counter(entry["host"] for entry in notes if entry["kind"] == "remote")


# With a port that no list had until now, the packet filter of the proxy lets it out too.
@pytest.mark.parametrize(("ports", "most"), [((443,), 1), ((443, 8445), 3)])
def test_an_edit_is_in_force_within_seconds_and_no_allowed_request_fails(ports: tuple[int, ...], most: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        asking: Future[Told] = pool.submit(ask)
        try:
            time.sleep(2)
            added, of_addition = apply(edited(*ports))
            time.sleep(1)
            removed, of_removal = apply(None)
            time.sleep(1)
        finally:
            on(HOST, f"touch {STOP}")
        told = asking.result()
    for remote in (of_addition, of_removal):
        assert set(remote) == {name for name, plan in plans().items() if "egress_proxy" in plan}
        assert remote.total() <= most, remote
    for what in ("listed http", "listed tls"):
        answers = [item for item in told if item[0] == what]
        assert [item for item in answers if item[1] != "200"] == []
        # without pause: no answer came long after the one before
        ends = [item[3] for item in answers]
        assert len(answers) > 100 and max(b - a for a, b in zip(ends, ends[1:])) < 2
    fate = [(said, end) for what, said, _begin, end in told if what == "edited"]
    admitted = [end for said, end in fate if said == "200"]
    refused = [end for said, end in fate if said == "403"]
    assert {said for said, _end in fate} == {"200", "403"}, Counter(said for said, _end in fate)
    assert [end for end in refused if end < added] and min(admitted) > added
    assert min(admitted) - added < MOST_SECONDS
    assert removed < max(admitted) < removed + MOST_SECONDS
    # and so it stays
    assert [end for end in refused if min(admitted) + 0.5 < end < removed] == []
    assert max(refused) > max(admitted)
    print(f"ports {ports}: in force after {min(admitted) - added:.2f} s, gone after {max(admitted) - removed:.2f} s")
