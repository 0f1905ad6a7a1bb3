"""A change of the policy by its own playbook: it goes where it must, nowhere else, and takes back what the plan no longer has."""

from __future__ import annotations

import copy
import json
import os
import shlex
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.faults import run
from tests.faults.test_bad_input import Recorder
from tests.lab import bench
from tests.lab.site import on

LONG = os.environ.get("MOAT_PROOF") == "long"
pytestmark = pytest.mark.usefixtures("as_it_was")
POLICY = "moat.inference.policy"
# What a host keeps of the roles besides the packet filter, as far as a glance tells; nothing when it has none of them.
LEFT = """
ls -d /etc/moat/tls/* /etc/moat/tls/.versions/* /etc/moat/certificate/* /etc/moat/connector/* /etc/moat/gateway/* /run/moat-connector/* \
  /etc/wireguard/moat0.* /etc/systemd/system/moat-connector.service /etc/systemd/system/moat-gateway.service \
  /etc/systemd/system/moat-certificate@* /etc/systemd/system/wg-quick@moat0.service.d 2>/dev/null
ip -o link show moat0 2>/dev/null
systemctl list-units --all --plain --no-legend 'moat-connector*' 'moat-certificate*' 'moat-gateway*' 'wg-quick@*'
getent group | grep ^moat-c-
true
"""
STOP = "/run/moat-test-stop"
SERVING = ("gpu1", "gpu2")
# Streams through a connector without pause, each as long as the model goes, until a file stops it; prints the time of every piece that comes.
STREAMS = """
import json, os, socket, sys, time
path, model, stop = sys.argv[1:]
body = json.dumps({"model": model, "stream": True, "max_tokens": 1900, "ignore_eos": True,
                   "messages": [{"role": "user", "content": "go on"}]})
request = (f"POST /{model}/v1/chat/completions HTTP/1.1\\r\\nHost: moat\\r\\nConnection: close\\r\\n"
           f"Content-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n{body}").encode()
end = time.time() + 240
while time.time() < end and not os.path.exists(stop):
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(path)
            client.sendall(request)
            data = b""
            while not os.path.exists(stop) and (piece := client.recv(65536)):
                data = (data + piece)[-300:]
                if b"data: " in piece:
                    print("piece", time.time(), flush=True)
            print("whole" if b"[DONE]" in data or os.path.exists(stop) else "cut", time.time(), flush=True)
    except OSError as error:
        print("error", time.time(), error, flush=True)
    time.sleep(0.1)
"""


def policy(intent: dict[str, Any] | None = None, *arguments: str, **options: Any) -> run.Run:
    ended = run.play(POLICY, *arguments, intent=intent, **options)
    assert ended.rc == 0, ended.out[-4000:]
    return ended


def verified(intent: dict[str, Any] | None = None) -> None:
    ended = run.play("moat.inference.verify", intent=intent)
    assert ended.rc == 0, ended.out[-4000:]


def moved() -> dict[str, Any]:
    """Client portal on app2 instead of app1, with a user that both hosts have."""
    intent = copy.deepcopy(run.INTENT)
    intent["clients"]["portal"].update(hosts="app2", users=["nobody"])
    return intent


def without(client: str) -> dict[str, Any]:
    intent = copy.deepcopy(run.INTENT)
    del intent["clients"][client]
    intent["tests"] = [test for test in intent["tests"] if test["from"] != client]
    return intent


def answers(host: str, user: str, client: str, model: str) -> str:
    url = f"http://moat/{model}/v1/models"
    asked = f"curl -s -m 10 -o /dev/null -w '%{{http_code}}' --unix-socket /run/moat-connector/{client}.sock {url}"
    return on(host, f"sudo -u {user} {asked}").out


def test_without_a_change_no_host_is_touched(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    policy(settings=recorder.settings)
    assert recorder.called() == 0
    # the recorder would have seen it
    assert run.play("moat.inference.site", "--limit", "dns1", settings=recorder.settings).rc != 0
    assert recorder.called() > 0
    policy()


def test_a_client_more_touches_the_hosts_that_it_concerns() -> None:
    for change in bench.CHANGES.values():
        seconds, notes, _output = bench.play(POLICY, *bench.intent(change))
        touched = {entry["host"] for entry in notes if entry["kind"] == "remote"}
        assert touched == set(change.hosts), (change, seconds)
        policy()


def test_a_change_in_check_mode_says_so_and_is_still_to_be_made() -> None:
    intent = run.more_allowed()
    assert sum(policy(intent, "--check").counts("changed").values()) > 0
    assert sum(policy(intent).counts("changed").values()) > 0
    assert not any(policy(intent, "--check").counts("changed").values())
    policy()


def test_a_run_that_was_limited_leaves_the_rest_to_the_next() -> None:
    intent = run.more_allowed()
    assert set(policy(intent, "--limit", "gpu1").counts("changed")) == {"gpu1"}
    rest = policy(intent).counts("changed")
    assert {host for host, number in rest.items() if number} == {"app3", "gpu2"}
    verified(intent)
    policy()


def test_a_client_that_moves_leaves_nothing_and_is_served_where_it_went() -> None:
    assert answers("app1", "portal", "portal", "xray-7b") == "200"
    assert on("app1", LEFT).out.strip()
    intent = moved()
    policy(intent)
    assert on("app1", LEFT).out.strip() == ""
    assert answers("app2", "nobody", "portal", "xray-7b") == "200"
    for gateway in ("gpu1", "gpu2"):
        plan = on(
            gateway, "wg show moat0 allowed-ips; cat /etc/moat/gateway/addresses.map; nft list table inet moat"
        ).out
        assert "10.110.0.12" in plan and "10.110.0.11" not in plan, plan
    verified(intent)
    again = run.play(intent=intent)
    assert again.rc == 0 and not any(again.counts("changed").values()), again.out[-4000:]
    policy()
    assert on("app2", LEFT).out.strip() == ""
    assert answers("app1", "portal", "portal", "xray-7b") == "200"


def test_a_host_that_stops_serving_loses_its_gateway_and_keeps_the_weights() -> None:
    intent = copy.deepcopy(run.INTENT)
    intent["models"]["xray-7b"]["hosts"] = "gpu1"
    policy(intent)
    assert on("gpu2", LEFT).out.strip() == ""
    models = on(
        "gpu2", "systemctl list-units --plain --no-legend 'moat-model@*'; ls /srv/models/xray-7b/config.json"
    ).out
    assert models.split() == ["/srv/models/xray-7b/config.json"]
    verified(intent)
    policy()
    verified()


# Lets the engines run a fifth of the time: at full speed they take the processors from the run that is under test.
ENGINES = "-f [V]LLM::EngineCor"  # with a bracket, so that the shell which says so is none of them
SLOWLY = f"""
rm -f {STOP}
timeout 240 sh -c 'while [ ! -e {STOP} ]; do pkill -CONT {ENGINES}; sleep 0.05; pkill -STOP {ENGINES}; sleep 0.2; done'
pkill -CONT {ENGINES}
rm -f {STOP}
"""


def stream(host: str, user: str, client: str, model: str) -> list[list[str]]:
    """Words of each line that the streaming program printed on a host."""
    words = ["python3", "-", f"/run/moat-connector/{client}.sock", model, STOP]
    said = on(
        host, f"rm -f {STOP}; sudo -u {user} {shlex.join(words)}; rm -f {STOP}", data=STREAMS.encode(), timeout=300
    )
    assert not said.err, said.err
    return [line.split() for line in said.out.splitlines()]


def pieces(lines: list[list[str]]) -> list[float]:
    return [float(line[1]) for line in lines if line[0] == "piece"]


@pytest.mark.parametrize("playbook", [POLICY, "moat.inference.site"] if LONG else [POLICY])
def test_streams_of_a_removed_client_end_and_those_of_others_go_on(playbook: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        slowed = [pool.submit(on, host, SLOWLY, timeout=300) for host in SERVING]
        removed: Future[list[list[str]]] = pool.submit(stream, "app1", "portal", "portal", "xray-7b")
        other: Future[list[list[str]]] = pool.submit(stream, "app3", "batch", "batch", "notes-1b")
        time.sleep(5)
        ended = run.play(playbook, intent=without("portal"))
        after = time.time()
        time.sleep(8)
        for host in ("app1", "app3", *SERVING):
            on(host, f"touch {STOP}")
        assert [answer.result().err for answer in slowed] == ["", ""]
        gone, stayed = removed.result(), other.result()
    policy()
    assert ended.rc == 0, ended.out[-4000:]
    assert len([at for at in pieces(gone) if at < after]) > 20, "there was no stream to end"
    assert max(pieces(gone)) < after + 5, gone[-5:]
    assert "cut" in [line[0] for line in gone] or any("reset" in " ".join(line) for line in gone), gone[-5:]
    assert [at for at in pieces(stayed) if at > after + 5], stayed[-5:]
    assert not [line for line in stayed if line[0] in ("cut", "error")], json.dumps(stayed[-5:])
