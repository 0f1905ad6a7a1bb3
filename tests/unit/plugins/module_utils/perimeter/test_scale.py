"""The work grows with what is declared, not with its square: calls are counted, for times flake."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import parse_network
from ansible_collections.moat.inference.plugins.module_utils.perimeter.compiler import compile_intent
from ansible_collections.moat.inference.plugins.module_utils.perimeter.inventory import nearest_key

MODEL_HOSTS = 4


def perimeter(size: int, ways_out: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """`size` hosts, half of them serve, and `size` clients with two models each."""
    hosts = {"ca1": {"moat_segment": "services", "moat_address4": "10.140.0.10"}}
    for index in range(size):
        name, segment, number = (f"gpu{index}", "inference", 120) if index % 2 else (f"app{index}", "app", 64)
        address = f"10.{number}.{index // 200}.{index % 200 + 1}"
        hosts[name] = {
            "moat_segment": segment,
            "moat_address4": address,
            "moat_address6": f"fd00:{number}::{index + 1:x}",
        }
    serving, running = ([name for name in hosts if name.startswith(kind)] for kind in ("gpu", "app"))
    models = max(2, size // 10)
    intent = {
        "domain": "inference.internal",
        "segments": {
            "app": {"cidr4": "10.64.0.0/16", "cidr6": "fd00:64::/64"},
            "inference": {"cidr4": "10.120.0.0/16", "cidr6": "fd00:120::/64"},
            "services": {"cidr4": "10.140.0.0/16"},
        },
        "admin": {"from": ["10.90.0.0/28"]},
        "ca": {"host": "ca1"},
        "models": {
            f"model-{index}": {
                "hosts": [serving[(index * 7 + step) % len(serving)] for step in range(MODEL_HOSTS)],
                "source": f"/srv/models/model-{index}",
            }
            for index in range(models)
        },
        "clients": {
            f"client-{index}": {
                "hosts": running[index % len(running)],
                "users": ["service"],
                "models": [f"model-{index % models}", f"model-{(index + 1) % models}"],
            }
            for index in range(size)
        },
    }
    if ways_out:
        add_ways_out(intent, hosts)
    return intent, {"hosts": hosts, "groups": {"all": list(hosts)}}


def add_ways_out(intent: dict[str, Any], hosts: dict[str, Any]) -> None:
    """Two proxies and two name servers for all, an entry of each GPU host's own, and no default route anywhere."""
    for index, name in enumerate(("egress1", "egress2", "dns1", "dns2"), 20):
        hosts[name] = {"moat_segment": "services", "moat_address4": f"10.140.0.{index}"}
        hosts[name]["moat_address6"] = f"fd00:140::{index}"
    intent["segments"]["services"]["cidr6"] = "fd00:140::/64"
    for segment in intent["segments"].values():
        routers = {f"router{family}": segment[f"cidr{family}"] for family in (4, 6)}
        last = {"router4": "255.254", "router6": "ffff"}
        segment.update({key: text.split("/")[0].removesuffix("0.0") + last[key] for key, text in routers.items()})
        segment["default_route"] = False
    intent["proxy"] = {"hosts": ["egress1", "egress2"], "resolvers": ["203.0.113.53"]}
    intent["egress"] = [{"from": "all", "host": "packages.example.org"}]
    intent["egress"] += [{"from": name, "host": f"{name}.example.org"} for name in hosts if name.startswith("gpu")]
    intent["dns"] = {"hosts": ["dns1", "dns2"], "forward": {"to": ["203.0.113.53"], "for": "app0"}}


def calls(size: int, ways_out: bool = False) -> int:
    """Calls of Python functions that compiling and planning everything takes."""
    parse_network.cache_clear()
    nearest_key.cache_clear()
    arguments = perimeter(size, ways_out)
    count = 0

    def counted(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        compile_intent(*arguments).to_dict(cells=False)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("ways_out", [False, True])
def test_twice_the_perimeter_is_twice_the_work(ways_out: bool) -> None:
    calls(10, ways_out)
    small, large = calls(100, ways_out), calls(200, ways_out)
    assert large < 2.2 * small, (small, large)


@pytest.mark.parametrize("ways_out", [False, True])
def test_a_thousand_hosts_and_a_thousand_clients(ways_out: bool) -> None:
    arguments = perimeter(1000, ways_out)
    start = time.process_time()
    plan = compile_intent(*arguments).to_dict(cells=False)
    # 0.4 s where nothing else runs; the bound is only for a machine that is much slower
    assert time.process_time() - start < 10
    assert len(plan["hosts"]) == (1005 if ways_out else 1001) and len(plan["roles"]["gateway"]) > 300


def gateway_rules(size: int) -> list[dict[str, Any]]:
    """The rules of a gateway whose one model every client of the perimeter may use."""
    intent, inventory = perimeter(size)
    intent["models"]["model-0"]["hosts"] = "gpu1"
    for client in intent["clients"].values():
        client["models"] = ["model-0"]
    rules: list[dict[str, Any]] = compile_intent(intent, inventory).host("gpu1")["firewall"]["rules"]
    return rules


def test_the_rules_of_a_gateway_do_not_grow_with_its_clients() -> None:
    few, many = gateway_rules(10), gateway_rules(1000)
    for small, large in zip(few, many):
        assert {**small, "peers4": [], "peers6": []} == {**large, "peers4": [], "peers6": []}
    assert len(few) == len(many) == 6
    peers = {rule["id"]: (len(rule["peers4"]), len(rule["peers6"])) for rule in many}
    assert peers["in-gateway"] == peers["in-link"] == peers["out-link"] == (500, 500)


def test_one_host_s_plan_needs_no_other_plan() -> None:
    plan = compile_intent(*perimeter(200))
    plan.to_dict(["gpu1"], cells=False)
    assert list(plan._plans) == ["gpu1"]
