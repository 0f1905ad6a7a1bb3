"""How refusals come: all at once, secrets hidden, and nothing refused that is good."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils.model_server import model_faults
from ansible_collections.moat.inference.plugins.module_utils.perimeter import compiler
from ansible_collections.moat.inference.plugins.module_utils.perimeter.compiler import compile_intent
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import IntentError
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter import (
    test_refused_addresses,
    test_refused_egress,
    test_refused_gpus,
    test_refused_names,
    test_refused_naming,
    test_refused_shapes,
)
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.samples import (
    REMOVE,
    P,
    Refusals,
    assert_refused,
    compiled,
    faults_of,
    sample,
)

KEY = "qL0/5q0yKXzWwS7iHhmEbVgZ5cVwnkZBc0uYVhJwZ0A="
PROXY = {"hosts": "app2", "resolvers": ["203.0.113.53"]}
REFUSED: Refusals = {
    # secrets
    "password": (
        {f"{P}.ca.password": "hunter2hunter2"},
        f"{P}.ca.password",
        "(hidden)",
        "secret written in clear",
        "born on the host",
    ),
    "key of WireGuard": (
        {f"{P}.link": {"interface": KEY}},
        f"{P}.link.interface",
        "(hidden)",
        "secret written in clear",
        "remove it",
    ),
    "key in PEM": (
        {"hosts.app2.moat_interface": "-----BEGIN EC PRIVATE KEY-----\nMHcC"},
        "hostvars.app2.moat_interface",
        "(hidden)",
        "secret written in clear",
        "remove it",
    ),
    "key of the engine": (
        {f"{P}.models.notes-1b.engine_args": ["--api-key=hunter2hunter2"]},
        f"{P}.models.notes-1b.engine_args[0]",
        "(hidden)",
        "secret written in clear",
        "remove it",
    ),
    "token of the engine": (
        {f"{P}.models.notes-1b.engine_args": ["--hf-token", "hunter2hunter2"]},
        f"{P}.models.notes-1b.engine_args[0]",
        "(hidden)",
        "secret written in clear",
        "remove it",
    ),
    "token by its form": (
        {f"{P}.models.notes-1b.source": f"hf_{'A' * 34}"},
        f"{P}.models.notes-1b.source",
        "(hidden)",
        "secret written in clear",
        "remove it",
    ),
    "password in a URL": (
        {f"{P}.egress": [{"from": "gpu1", "host": "https://user:hunter2hunter2@example.org"}], f"{P}.proxy": PROXY},
        f"{P}.egress[0].host",
        "(hidden)",
        "secret written in clear",
        "remove it",
    ),
    # the policy's own tests
    "failing test, too much": (
        {f"{P}.clients.batch.models": ["notes-1b", "xray-7b"]},
        f"{P}.tests[1]",
        "'deny'",
        "fails: batch to xray-7b is allow in the plan, whose models for batch are: notes-1b, xray-7b",
        f"remove xray-7b from {P}.clients.batch.models, or correct expect",
    ),
    "failing test, too little": (
        {f"{P}.clients.portal.models": ["notes-1b"]},
        f"{P}.tests[0]",
        "'allow'",
        "fails: portal to xray-7b is deny in the plan",
        f"add xray-7b to {P}.clients.portal.models, or correct expect",
    ),
}


@pytest.mark.parametrize("title", sorted(REFUSED))
def test_refused_with_path_value_and_remedy(title: str) -> None:
    assert_refused(*REFUSED[title])


def test_the_sample_itself_is_accepted() -> None:
    assert compiled().hosts


def test_all_faults_in_one_message() -> None:
    titles = (
        "unknown key",
        "public address of a host",
        "typo in a group",
        "limit of zero",
        "wildcard without a reason",
        "password",
        "VLAN twice",
        "failing test, too much",
    )
    table = {
        **REFUSED,
        **test_refused_egress.REFUSED,
        **test_refused_addresses.REFUSED,
        **test_refused_names.REFUSED,
        **test_refused_gpus.REFUSED,
        **test_refused_naming.REFUSED,
        **test_refused_shapes.REFUSED,
    }
    edits: dict[str, Any] = {}
    for title in titles:
        edits.update(table[title][0])
    # the model's hosts are unknown, so what a test of it would find is not judged
    edits[f"{P}.clients.batch.models"] = ["notes-1b"]
    edits[f"{P}.tests"] = [{"from": "batch", "to": "notes-1b", "expect": "deny"}]
    with pytest.raises(IntentError) as caught:
        compiled(edits)
    lines = str(caught.value).splitlines()
    assert lines[0] == "The perimeter is refused: 8 faults. No host was touched."
    assert [line.split(".")[0].strip() for line in lines[1:]] == [str(number) for number in range(1, 9)]
    for title in titles[:-1]:
        _edits, path, value, problem, remedy = table[title][:5]
        line = next(line for line in lines if f" {path}: " in line)
        assert value in line and problem in line and remedy in line
    assert any(f" {P}.tests[0]: 'deny' fails" in line for line in lines)
    assert "hunter2" not in str(caught.value)


def test_one_fault_is_one_fault() -> None:
    assert str(IntentError(faults_of({f"{P}.domain": REMOVE}))).startswith("The perimeter is refused: 1 fault. No host")


@pytest.mark.parametrize("intent", [None, [], "x", 7, {}, {"clients": None}])
def test_an_intent_that_is_none(intent: Any) -> None:
    _sample, inventory = sample()
    with pytest.raises(IntentError):
        compile_intent(intent, inventory)


def test_a_client_may_be_called_like_a_secret() -> None:
    for name in ("token", "api-key", "secret"):
        edits = {f"{P}.clients.{name}": {"hosts": "app2", "users": ["a"], "models": ["xray-7b"]}}
        assert compiled(edits).intent.clients[name].hosts == ("app2",)


def test_what_is_not_refused() -> None:
    """The near neighbours of what is."""
    edits: dict[str, Any] = {
        f"{P}.admin.from": ["10.110.0.64/28", "10.90.0.0/28"],
        f"{P}.segments.spare": {"cidr4": "10.121.0.0/24"},
        f"{P}.models.notes-1b.engine_args": ["--max-num-batched-tokens=512", "--dtype", "float16", "-O0"],
        "hosts.app2.moat_interface": "eth0.120",
        "hosts.outside.moat_state_dir": "/x",
    }
    assert compiled(edits).hosts


@pytest.mark.parametrize("source", ["/srv/m", "/var/lib/m", "/opt/m", "/mnt/m", "/home/m", "/", "/srv", "/var/libm/m"])
def test_the_compiler_and_the_role_take_the_same_weights(source: str) -> None:
    model = {"name": "m", "socket": "/run/moat-model/m/engine.sock", "source": source, "engine_args": []}
    assert bool(faults_of({f"{P}.models.notes-1b.source": source})) == bool(model_faults([model], {}))


def test_a_host_name_that_is_no_label() -> None:
    for name, remedy in (("App_9", "'app-9'"), ("app9.example.org", "'app9-example-org'"), ("ä", "RFC 1123")):
        intent, inventory = sample()
        inventory["hosts"][name] = {"moat_segment": "app", "moat_address4": "10.110.0.99"}
        with pytest.raises(IntentError) as caught:
            compile_intent(intent, inventory)
        (fault,) = caught.value.faults
        assert fault.path == f"hostvars.{name}" and "no DNS label" in fault.problem
        assert remedy in fault.remedy and "ansible_host" in fault.remedy


def test_a_host_name_that_makes_a_long_certificate_name() -> None:
    intent, inventory = sample()
    inventory["hosts"]["a" * 60] = {"moat_segment": "app", "moat_address4": "10.110.0.99"}
    with pytest.raises(IntentError) as caught:
        compile_intent(intent, inventory)
    assert [fault.path for fault in caught.value.faults] == [f"hostvars.{'a' * 60}"]
    assert "longer than 64" in caught.value.faults[0].problem


def test_netaddr_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "HAS_NETADDR", False)
    with pytest.raises(IntentError, match="pip install netaddr"):
        compile_intent(*sample())


def test_a_domain_that_makes_every_name_too_long() -> None:
    found = faults_of({f"{P}.domain": ".".join(["a" * 60] * 4)})
    assert {fault.path for fault in found} >= {f"{P}.clients.batch", f"{P}.models.xray-7b", "hostvars.gpu1"}
    assert all(f"shorten {P}.domain" in fault.remedy or "moat_perimeter.domain" in fault.remedy for fault in found)
