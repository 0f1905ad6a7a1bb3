"""What counts as proof: each refusal with and without its controls."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import reach

GATEWAY = "100.120.0.11"


def cell(**more: Any) -> dict[str, Any]:
    made = {
        "id": "the cell",
        "destination": "gpu1",
        "address": "10.120.0.11",
        "family": 4,
        "protocol": "tcp",
        "port": 9443,
        "identity": "none",
        "client": None,
        "path": None,
        "expect": "deny",
        "rule": "deny-input",
    }
    return {**made, **more}


def probe(found: str | None = None, **more: Any) -> dict[str, Any]:
    results = {} if found is None else {"the cell": found}
    return {"found": results, "control": True, "controls": {"4": "10.0.0.1 port 22"}, "listening": [], **more}


def judged(
    wanted: dict[str, Any], found: str | None, target: dict[str, Any] | None = None, **source: Any
) -> reach.Verdict:
    """The verdict of one cell, asked by app2 of gpu1, which says that it listens there unless told otherwise."""
    target = probe(listening=[f"0.0.0.0 {wanted['port']}"]) if target is None else target
    probes = {"app2": probe(found, **source), "gpu1": target}
    return reach.judge({"app2": [wanted]}, probes)[0]


ALLOWED = {"expect": "allow", "rule": "in-gateway"}
NO_IDENTITY = {"rule": "deny-identity", "path": "/m/v1/models"}
NO_REQUEST = {"rule": "deny-request", "path": "/m/v1/models", "client": "batch", "identity": "own"}
CLOSED = {"expect": "closed", "port": 8000}


@pytest.mark.parametrize(
    ("wanted", "found", "outcome"),
    [
        (ALLOWED, "open", "right"),
        (ALLOWED, "timeout", "wrong"),
        (ALLOWED, None, "wrong"),
        ({**ALLOWED, "path": "/m/v1/models"}, "status 200", "right"),
        ({**ALLOWED, "path": "/m/v1/models"}, "status 403", "wrong"),
        ({**ALLOWED, "path": "/m/v1/models"}, "status 503", "wrong"),
        ({**ALLOWED, "path": "/m/v1/models"}, "not probed: certificate connector-portal: no such file", "wrong"),
        ({}, "timeout", "right"),
        ({}, "refused", "right"),
        ({}, "unreachable", "right"),
        ({}, "open", "wrong"),
        ({}, None, "unproven"),
        ({}, "error bad file descriptor", "unproven"),
        ({"path": "/m/v1/models"}, "timeout", "right"),
        # who gets as far as TLS or HTTP has passed the firewall, whatever the gateway says then
        ({"path": "/m/v1/models"}, "tls CERTIFICATE_REQUIRED", "wrong"),
        ({"path": "/m/v1/models"}, "status 403", "wrong"),
        ({"path": "/m/v1/models"}, "status 200", "wrong"),
        (NO_IDENTITY, "tls TLSV13_ALERT_CERTIFICATE_REQUIRED", "right"),
        (NO_IDENTITY, "tls reset", "right"),
        (NO_IDENTITY, "status 403", "right"),
        (NO_IDENTITY, "status 200", "wrong"),
        (NO_IDENTITY, "timeout", "unproven"),
        (NO_IDENTITY, "status 503", "unproven"),
        (NO_IDENTITY, "no answer", "unproven"),
        (NO_IDENTITY, "not probed: certificate x: no such file", "unproven"),
        (NO_REQUEST, "status 404", "right"),
        (NO_REQUEST, "status 403", "right"),
        (NO_REQUEST, "tls TLSV1_ALERT_UNKNOWN_CA", "unproven"),
        (NO_REQUEST, "status 429", "unproven"),
        (NO_REQUEST, "status 200", "wrong"),
        (CLOSED, "timeout", "wrong"),
    ],
)
def test_found_against_expected(wanted: dict[str, Any], found: str | None, outcome: str) -> None:
    assert judged(cell(**wanted), found).outcome == outcome


@pytest.mark.parametrize("found", ["timeout", "refused", "unreachable"])
def test_a_closed_port_is_right_only_if_nothing_listens(found: str) -> None:
    wanted = cell(**CLOSED)
    assert judged(wanted, found, probe(listening=["127.0.0.1 8000", "0.0.0.0 22"])).outcome == "right"
    for listening in ("0.0.0.0 8000", ":: 8000", "10.120.0.11 8000"):
        verdict = judged(wanted, found, probe(listening=[listening]))
        assert verdict.outcome == "wrong" and "nothing may listen there" in verdict.reason
    for other in ("open", "status 200", "tls reset"):
        assert judged(wanted, other, probe()).outcome == "wrong"
    assert judged(wanted, found, probe(), controls={}).outcome == "unproven"
    assert judged(wanted, "error x", probe()).outcome == "unproven"


def test_no_refusal_counts_without_the_source_s_own_control() -> None:
    for controls in ({}, {"4": ""}, {"4": "", "6": "fd00::1 port 22"}, None):
        verdict = judged(cell(), "timeout", controls=controls)
        assert verdict.outcome == "unproven" and "IPv4" in verdict.reason
    verdict = judged(cell(family=6, address="fd00:120::11"), "timeout", probe(listening=[":: 9443"]))
    assert verdict.outcome == "unproven" and "IPv6" in verdict.reason


def test_a_host_that_reached_only_itself_proves_only_its_own_firewall() -> None:
    controls = {"4": reach.ITSELF}
    assert judged(cell(rule="deny-output"), "timeout", controls=controls).outcome == "right"
    assert judged(cell(rule="deny-input"), "timeout", controls=controls).outcome == "unproven"


def test_no_refusal_counts_without_a_listener() -> None:
    verdict = judged(cell(), "timeout", probe())
    assert verdict.outcome == "unproven" and "gpu1 did not say" in verdict.reason
    for listening in ("0.0.0.0 9444", "127.0.0.1 9443", "10.120.0.12 9443", "fd00:120::11 9443"):
        assert judged(cell(), "timeout", probe(listening=[listening])).outcome == "unproven"
    for listening in ("10.120.0.11 9443", "0.0.0.0 9443", ":: 9443"):
        verdict = judged(cell(), "timeout", probe(listening=[listening]))
        assert verdict.outcome == "right" and f"gpu1 listens on {listening.split()[0]}" in verdict.control


def test_an_admitted_source_is_a_control_for_the_same_address_and_port_only() -> None:
    open_cell = cell(address=GATEWAY, port=8443, id="open", **ALLOWED)
    for wanted, outcome in (
        (cell(address=GATEWAY, port=8443), "right"),
        (cell(address=GATEWAY, port=9443), "unproven"),
        (cell(address="100.120.0.12", port=8443), "unproven"),
        (cell(address=GATEWAY, port=8443, destination="gpu2"), "unproven"),
    ):
        probes = {"app1": {**probe(), "found": {"open": "open"}}, "app2": probe("timeout")}
        verdicts = reach.judge({"app1": [open_cell], "app2": [wanted]}, probes)
        assert [item.outcome for item in verdicts] == ["right", outcome]
    probes["app1"]["found"] = {"open": "timeout"}
    verdicts = reach.judge({"app1": [open_cell], "app2": [cell(address=GATEWAY, port=8443)]}, probes)
    assert [item.outcome for item in verdicts] == ["wrong", "unproven"]


def test_the_summary_names_the_layer_and_puts_what_is_wrong_first() -> None:
    cells = {"app2": [cell(id="a"), cell(id="b", **NO_REQUEST), cell(id="c"), cell(id="d", port=1)]}
    results = {"a": "timeout", "b": "status 403", "c": "open", "d": "timeout"}
    found = reach.summary(
        reach.judge(cells, {"app2": {**probe(), "found": results}, "gpu1": probe(listening=["0.0.0.0 9443"])})
    )
    assert found["counts"] == {"right": 2, "wrong": 1, "unproven": 1}
    assert found["layers"] == {"deny-input by timeout": 1, "deny-request by status 403": 1}
    assert [fault["outcome"] for fault in found["faults"]] == ["wrong", "unproven"]
    assert found["lines"][0] == (
        "wrong: app2 to gpu1, 10.120.0.11 port 9443: expected deny [deny-input], found open; it was admitted"
    )
    assert "app2 as batch" in reach.judge(cells, {"app2": probe()})[1].line()


def test_a_probe_that_failed_leaves_every_cell_open() -> None:
    for answer in ({}, {"failed": True, "msg": "no"}):
        verdicts = reach.judge({"app2": [cell(), cell(**ALLOWED)]}, {"app2": answer})
        assert [item.outcome for item in verdicts] == ["unproven", "wrong"]


def test_listening_sockets_of_the_kernel() -> None:
    head = "  sl  local_address rem_address   st\n"
    tcp = f"{head}   0: 0B0A780A:20FB 00000000:0000 0A 0\n   1: 00000000:0016 00000000:0000 0A 0\n   2: 0100007F:1F40 0100007F:9 01 0\n"
    assert list(reach.parse_listening(tcp)) == ["10.120.10.11 8443", "0.0.0.0 22"]
    tcp6 = f"{head}   0: 000000FD00012000000000000B000000:20FB {'0' * 32}:0000 0A 0\n   1: {'0' * 32}:0016 {'0' * 32}:0 0A\n"
    assert list(reach.parse_listening(tcp6)) == ["fd00:0:20:100::b 8443", ":: 22"]
    assert list(reach.parse_listening("")) == []
