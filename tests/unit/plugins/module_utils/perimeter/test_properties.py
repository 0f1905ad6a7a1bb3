"""What holds of every intent that is accepted, whatever it says."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils.perimeter.compiler import Plan, compile_intent
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import IntentError
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter import samples
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.oracle import Oracle, check_plan
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.samples import out, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SETTINGS = settings(
    max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SEGMENTS = {"app": 110, "inference": 120, "batch": 130, "services": 140}
FAMILIES = {
    "IPv4": ({4},),
    "IPv6": ({6},),
    "dual": ({4, 6},),
    "IPv4 at least": ({4}, {4, 6}),
    "IPv6 at least": ({6}, {4, 6}),
}
Policy = tuple[dict[str, Any], dict[str, Any]]


def draw_proxy(draw: st.DrawFn, hosts: list[str], port: int, outer: list[str]) -> dict[str, Any]:
    proxy: dict[str, Any] = {"hosts": hosts, "port": port, "resolvers": outer}
    # every public network is many of them, which one in four shows as well as each
    if draw(st.integers(0, 3)):
        proxy["to"] = [{".": "203.0.113.0/24", ":": "2001:db8:9::/48"}[":" if ":" in text else "."] for text in outer]
    if draw(st.integers(0, 3)) == 0:
        proxy["parents"] = [{"address": text, "port": draw(st.sampled_from([3128, 8080]))} for text in outer]
    if draw(st.booleans()):
        proxy["upload_limit"] = draw(st.sampled_from(["1 KB", "10 MB", "2 GB"]))
    return proxy


def draw_egress(draw: st.DrawFn, names: list[str]) -> list[dict[str, Any]]:
    entries = []
    for index in range(draw(st.integers(0, 3))):
        chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
        entry = {
            "from": chosen,
            "host": draw(st.sampled_from(["*.", ""])) + f"n{index}.example.org",
            "reason": "it has to",
        }
        if draw(st.booleans()):
            entry["ports"] = draw(st.lists(st.sampled_from([80, 443, 8443]), min_size=1, unique=True))
        entries.append(entry)
    return entries


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """An intent that has to be accepted, with its inventory: hosts in parts that do not overlap, any edges between them."""
    kinds = FAMILIES[draw(st.sampled_from(sorted(FAMILIES)))]
    versions = set().union(*kinds)
    segments: dict[str, dict[str, Any]] = {
        name: {
            f"cidr{version}": {4: f"10.{number}.0.0/24", 6: f"fd00:{number}::/64"}[version]
            for version in sorted(versions)
        }
        for name, number in SEGMENTS.items()
    }
    hosts: dict[str, dict[str, Any]] = {}

    def add(name: str, octet: int, segment: str, families: set[int]) -> None:
        number = SEGMENTS[segment]
        hosts[name] = {"moat_segment": segment}
        for version in sorted(families):
            hosts[name][f"moat_address{version}"] = {4: f"10.{number}.0.{octet}", 6: f"fd00:{number}::{octet:x}"}[
                version
            ]
        if draw(st.booleans()):
            hosts[name]["moat_link_address4"] = f"100.127.0.{octet}"

    pools: dict[str, list[str]] = {}
    octet = 10
    for part, most in (("gpu", 4), ("app", 5), ("idle", 2)):
        pools[part] = [f"{part}{index}" for index in range(draw(st.integers(0 if part == "idle" else 1, most)))]
        for name in pools[part]:
            octet += 1
            add(name, octet, draw(st.sampled_from(sorted(SEGMENTS))), set(draw(st.sampled_from(kinds))))
    add("ca1", 5, "services", versions)
    doors = {part: [f"{part}{index}" for index in range(draw(st.integers(0, 2)))] for part in ("egress", "dns")}
    for name in (*doors["egress"], *doors["dns"]):
        octet += 1
        add(name, octet, draw(st.sampled_from(sorted(SEGMENTS))), versions)
    groups = {f"{part}_hosts": list(names) for part, names in pools.items() if names}
    for part in ("gpu", "app"):
        groups[f"some_{part}"] = sorted(draw(st.sets(st.sampled_from(pools[part]), min_size=1)))
    for index in range(draw(st.integers(0, 2))):
        number = draw(st.sampled_from([*SEGMENTS.values(), 90]))
        addresses = {4: f"10.{number}.0.{200 + index}", 6: f"fd00:{number}::{200 + index:x}"}
        hosts[f"probe{index}"] = {"moat_probe": True, **{f"moat_address{v}": addresses[v] for v in sorted(versions)}}

    def some(part: str) -> Any:
        names = [
            name for name in (*pools[part], *groups) if name in pools[part] or name in (f"{part}_hosts", f"some_{part}")
        ]
        chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
        return chosen[0] if len(chosen) == 1 and draw(st.booleans()) else chosen

    numbers = draw(
        st.lists(
            st.integers(1, 19999).filter(lambda port: port not in (22, 53, 853)), min_size=6, max_size=6, unique=True
        )
    )
    models = {
        f"model-{index}": {"hosts": some("gpu"), "source": f"/srv/models/{index}"}
        for index in range(draw(st.integers(1, 3)))
    }
    clients: dict[str, Any] = {}
    for index in range(draw(st.integers(1, 5))):
        clients[f"client-{index}"] = {
            "hosts": some("app"),
            "users": draw(st.lists(st.sampled_from(["alice", "bob", "svc"]), min_size=1, unique=True)),
            "models": draw(st.lists(st.sampled_from(sorted(models)), min_size=1, unique=True)),
        }
        if draw(st.booleans()):
            clients[f"client-{index}"]["port"] = 20000 + index
        if draw(st.booleans()):
            clients[f"client-{index}"]["limits"] = {"concurrent": draw(st.integers(1, 9))}
    admin = [
        ["10.90.0.0/28"],
        ["fd00:90::/124"],
        ["10.90.0.0/24", "10.90.0.0/28", "10.91.0.7"],
        ["10.90.0.200", "fd00:90::c8"],
    ]
    intent: dict[str, Any] = {
        "domain": draw(st.sampled_from(["inference.internal", "a.b.example"])),
        "segments": segments,
        "admin": {"from": draw(st.sampled_from(admin)), "ports": [22, *numbers[:1]], "metrics_port": numbers[1]},
        "ca": {"host": "ca1", "port": numbers[2]},
        "gateway": {"port": numbers[3]},
        "models": models,
        "clients": clients,
    }
    if draw(st.booleans()):
        intent["link"] = {"port": numbers[4], "interface": "wg7", "cidr6": "fd00:201::/64"}
    if draw(st.booleans()):
        protocol = draw(st.sampled_from(["tcp", "udp"]))
        where = draw(st.sampled_from(["all", "ca1", ["app_hosts", "ca1"]]))
        intent["services"] = {
            "time": {"to": ["10.200.0.0/30", "fd00:140::/64"], "protocol": protocol, "ports": [123], "from": where}
        }
    for name, number in SEGMENTS.items():
        if draw(st.booleans()):
            routers = {4: f"10.{number}.0.254", 6: f"fd00:{number}::fe"}
            segments[name].update({f"router{version}": routers[version] for version in sorted(versions)})
            segments[name]["default_route"] = draw(st.booleans())
    outer = [{4: "203.0.113.53", 6: "2001:db8:9::53"}[version] for version in sorted(versions)]
    if doors["egress"]:
        intent["proxy"] = draw_proxy(draw, doors["egress"], numbers[5], outer)
        intent["egress"] = draw_egress(
            draw, [*(name for name in hosts if not name.startswith("probe")), *groups, "all"]
        )
    if doors["dns"]:
        intent["dns"] = {"hosts": doors["dns"]}
        if draw(st.booleans()):
            asking = st.sampled_from([*pools["app"], *pools["idle"], "app_hosts", "ca1"])
            intent["dns"]["forward"] = {"to": outer, "for": draw(st.lists(asking, min_size=1, max_size=3, unique=True))}
    intent["tests"] = [
        {"from": client, "to": model, "expect": "allow" if model in item["models"] else "deny"}
        for client, item in clients.items()
        for model in models
    ]
    return intent, {"hosts": hosts, "groups": groups}


def whole(plan: Plan) -> dict[str, Any]:
    return plan.to_dict()


def text(intent: Any, inventory: dict[str, Any]) -> str:
    """Everything that a compilation returns, its order of keys included."""
    return json.dumps(whole(compile_intent(copy.deepcopy(intent), copy.deepcopy(inventory))))


def shuffled(value: Any, mixer: random.Random) -> Any:
    """The same value with the keys of all its maps in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, mixer)) for key, item in value.items()]
        mixer.shuffle(items)
        return dict(items)
    return [shuffled(item, mixer) for item in value] if isinstance(value, list) else value


@SETTINGS
@given(policies())
def test_nothing_admits_an_undeclared_source(policy: Policy) -> None:
    """Rules, peers, certificate names, gateway maps, connector routes and expected cells against an independent reading."""
    check_plan(*policy, whole(compile_intent(*policy)))


@SETTINGS
@given(policies(), st.integers(0, 2**32))
def test_the_order_of_keys_never_changes_the_plan(policy: Policy, seed: int) -> None:
    mixer = random.Random(seed)
    other = shuffled(policy[0], mixer), shuffled(policy[1], mixer)
    for members in other[1]["groups"].values():
        mixer.shuffle(members)
    assert text(*other) == text(*policy)


@SETTINGS
@given(policies())
def test_compiling_is_deterministic_and_leaves_its_input_alone(policy: Policy) -> None:
    before = copy.deepcopy(policy)
    first = whole(compile_intent(*policy))
    assert policy == before
    assert whole(compile_intent(*policy)) == first
    assert text(*policy) == json.dumps(first)


PROGRAM = f"""
import hashlib, json
from {samples.__name__} import compiled, faults_of, out
broken = faults_of({{"moat_perimeter.models.xray-7b.hosts": ["gpu_host", "mixed"], "hosts.app2.moat_address4": "10.110.0.11"}})
text = json.dumps([compiled().to_dict(), compiled(out()).to_dict()]) + "".join(str(fault) for fault in broken)
print(len(broken), hashlib.sha256(text.encode()).hexdigest())
"""


def test_compiling_is_the_same_in_every_process() -> None:
    """Python orders its sets anew in each process, unless told otherwise."""
    root = str(Path(samples.__file__).parents[8])
    printed = set()
    for seed in ("0", "1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        printed.add(done.stdout)
    assert len(printed) == 1 and int(printed.pop().split()[0]) > 2


@SETTINGS
@given(policies(), st.data())
def test_a_host_that_comes_or_goes_renumbers_nobody(policy: Policy, data: st.DataObject) -> None:
    intent, inventory = policy
    before = compile_intent(intent, inventory)
    number = data.draw(st.integers(100, 150))
    key, address = ("moat_address4", f"10.120.0.{number}")
    if "cidr4" not in intent["segments"]["inference"]:
        key, address = ("moat_address6", f"fd00:120::{number:x}")
    grown = copy.deepcopy(inventory)
    grown["hosts"][f"new{number}"] = {"moat_segment": "inference", key: address}
    after = compile_intent(intent, grown)
    assert {name: host.link for name, host in before.hosts.items()} == {
        name: host.link for name, host in after.hosts.items() if name in before.hosts
    }
    everyone = any("all" in entry["from"] for entry in intent.get("egress", []))
    if not everyone and "services" not in intent and "dns" not in intent:  # which may be about all
        assert {name: before.host(name) for name in before.hosts} == {name: after.host(name) for name in before.hosts}


def without_peers(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in rule.items() if key not in ("peers4", "peers6")} for rule in rules]


def with_another_edge(intent: dict[str, Any], inventory: dict[str, Any]) -> Policy:
    """A policy with a gateway more, which has a client already, and none of the other clients."""
    versions = [version for version in (4, 6) if f"cidr{version}" in intent["segments"]["app"]]
    for name, segment in (("gpu-more", "inference"), ("app-more", "app")):
        addresses = {4: f"10.{SEGMENTS[segment]}.0.99", 6: f"fd00:{SEGMENTS[segment]}::99"}
        more = {f"moat_address{version}": addresses[version] for version in versions}
        inventory["hosts"][name] = {"moat_segment": segment, **more}
    intent["models"]["more"] = {"hosts": "gpu-more", "source": "/srv/models/more"}
    intent["clients"]["more"] = {"hosts": "app-more", "users": ["svc"], "models": ["more"]}
    return intent, inventory


@SETTINGS
@given(policies(), st.data())
def test_a_client_that_comes_or_goes_changes_peers_and_no_rule(policy: Policy, data: st.DataObject) -> None:
    """On hosts that run clients already; a gateway's first client is what opens the link there."""
    intent, inventory = with_another_edge(*copy.deepcopy(policy))
    oracle, before = Oracle(intent, inventory), compile_intent(intent, inventory)
    running = sorted(set().union(*oracle.running.values()))
    app = data.draw(st.sampled_from([name for name in running if name != "app-more"]))
    name = data.draw(st.sampled_from(["a-first", "client-0-a", "z-last"]))
    client: dict[str, Any] = {
        "hosts": sorted({app, *data.draw(st.sets(st.sampled_from(running)))}),
        "users": ["svc"],
        "models": sorted({"more", *data.draw(st.sets(st.sampled_from(sorted(intent["models"]))))}),
    }
    if data.draw(st.booleans()):
        client["port"] = 25000
    grown = copy.deepcopy(intent)
    grown["clients"][name] = client
    after = compile_intent(grown, inventory)
    grew = 0
    for host in before.hosts:
        old, new = before.host(host)["firewall"]["rules"], after.host(host)["firewall"]["rules"]
        if host in client["hosts"]:
            new = [rule for rule in new if rule["id"] != f"local-connector-{name}"]
        if oracle.ends(host):
            assert without_peers(new) == without_peers(old)
            grew += new != old
        else:
            assert {rule["id"] for rule in new} - {rule["id"] for rule in old} <= {"in-gateway", "in-link", "out-link"}
            new = [rule for rule in new if rule in old]
        for was, now in zip(old, new):
            assert all(set(was[key]) <= set(now[key]) for key in ("peers4", "peers6") if key in was)
    assert grew >= 2
    del grown["clients"][name]
    assert whole(compile_intent(grown, inventory)) == whole(before)


@SETTINGS
@given(policies(), st.data())
def test_to_narrow_the_run_never_narrows_the_policy(policy: Policy, data: st.DataObject) -> None:
    plan = compile_intent(*policy)
    only = data.draw(st.sets(st.sampled_from(sorted({**plan.hosts, **plan.probes}))))
    everything, part = plan.to_dict(), compile_intent(*policy).to_dict(only)
    assert part["digest"] == everything["digest"]
    for key in ("hosts", "cells", "words"):
        assert part[key] == {name: item for name, item in everything[key].items() if name in only}


@SETTINGS
@given(policies(), st.data())
def test_the_digest_tells_plans_apart(policy: Policy, data: st.DataObject) -> None:
    intent, inventory = policy
    client = data.draw(st.sampled_from(sorted(intent["clients"])))
    other = copy.deepcopy(intent)
    other["clients"][client].setdefault("limits", {})["burst"] = 12345
    assert compile_intent(other, inventory).digest != compile_intent(intent, inventory).digest


@SETTINGS
@given(policies(), st.data())
def test_a_wrong_test_of_the_policy_is_refused(policy: Policy, data: st.DataObject) -> None:
    intent, inventory = copy.deepcopy(policy)
    index = data.draw(st.integers(0, len(intent["tests"]) - 1))
    test = intent["tests"][index]
    test["expect"] = "deny" if test["expect"] == "allow" else "allow"
    with pytest.raises(IntentError) as caught:
        compile_intent(intent, inventory)
    assert [fault.path for fault in caught.value.faults] == [f"moat_perimeter.tests[{index}]"]


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["10.0.0.0/8", "::/0", "all"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [way] if way else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for key, item in items for place in places(item, (*way, key))]


@settings(SETTINGS, max_examples=250)
@given(st.data())
def test_junk_anywhere_is_a_fault_or_a_sound_plan_and_never_a_traceback(data: st.DataObject) -> None:
    intent, inventory = sample(data.draw(st.sampled_from([{}, out(), out()])))
    hosts = inventory["hosts"]
    root = data.draw(st.sampled_from([intent, intent, hosts]))
    place = data.draw(st.sampled_from(places(root)))
    if root is hosts and len(place) == 1:
        return
    node = root
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = data.draw(JUNK)
    try:
        plan = compile_intent(intent, inventory)
    except IntentError as error:
        assert all(fault.path and fault.problem and fault.remedy for fault in error.faults)
        return
    whole(plan)
