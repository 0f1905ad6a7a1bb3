"""Names, texts, references and parts that are refused."""

from __future__ import annotations

import pytest
from ansible_collections.moat.inference.tests.unit.plugins.module_utils.perimeter.samples import (
    REMOVE,
    P,
    Refusals,
    assert_refused,
)

# what is written -> path, value, problem, remedy
REFUSED: Refusals = {
    # references
    "typo in a group": (
        {f"{P}.models.xray-7b.hosts": "gpu_host"},
        f"{P}.models.xray-7b.hosts",
        "'gpu_host'",
        "no group or host",
        "write 'gpu_hosts'",
    ),
    "typo in a host of a list": (
        {f"{P}.clients.portal.hosts": ["app1", "ap2"]},
        f"{P}.clients.portal.hosts[1]",
        "'ap2'",
        "no group or host",
        "write 'app2'",
    ),
    "typo in the authority": ({f"{P}.ca.host": "ca2"}, f"{P}.ca.host", "'ca2'", "no host", "write 'ca1'"),
    "a group as the authority": (
        {f"{P}.ca.host": "gpu_hosts"},
        f"{P}.ca.host",
        "'gpu_hosts'",
        "no host of the inventory",
        "write",
    ),
    "typo in a model": (
        {f"{P}.clients.portal.models": ["xray-7b", "note-1b"]},
        f"{P}.clients.portal.models[1]",
        "'note-1b'",
        "no model",
        "write 'notes-1b'",
    ),
    "typo in a segment": (
        {"hosts.app2.moat_segment": "ap"},
        "hostvars.app2.moat_segment",
        "'ap'",
        "no segment",
        "write 'app'",
    ),
    "typo in a test": (
        {f"{P}.tests.0.from": "portl"},
        f"{P}.tests[0].from",
        "'portl'",
        "no client",
        "write 'portal'",
    ),
    "group without a host": (
        {f"{P}.services.dns.from": "empty"},
        f"{P}.services.dns.from",
        "'empty'",
        "group without a host",
        "add a host",
    ),
    "group with a host outside": (
        {f"{P}.services.dns.from": "mixed"},
        f"{P}.services.dns.from",
        "'outside'",
        "host of group mixed outside the perimeter",
        "set moat_segment on outside",
    ),
    "a probe as a client": (
        {f"{P}.clients.portal.hosts": ["app1", "intruder"]},
        f"{P}.clients.portal.hosts[1]",
        "'intruder'",
        "outside the perimeter",
        "set moat_segment",
    ),
    "a name that is group and host": (
        {"groups.app2": ["app3"], f"{P}.services.dns.from": "app2"},
        f"{P}.services.dns.from",
        "'app2'",
        "both a group and a host",
        "rename one",
    ),
    # names
    "client in upper case": (
        {f"{P}.clients.Portal2": {"hosts": "app2", "users": ["a"], "models": ["xray-7b"]}},
        f"{P}.clients.Portal2",
        "'Portal2'",
        "no DNS label",
        "write a DNS label such as 'portal2'",
    ),
    "model with a dot": (
        {f"{P}.models.llama3.1": {}, f"{P}.models": {"llama3.1": {"hosts": "gpu1", "source": "/srv/m"}}}
        | {f"{P}.clients": {}, f"{P}.tests": []},
        f"{P}.models.llama3.1",
        "'llama3.1'",
        "no DNS label",
        "such as 'llama3-1'",
    ),
    "segment with an underscore": (
        {f"{P}.segments.far_away": {"cidr4": "10.150.0.0/24"}},
        f"{P}.segments.far_away",
        "'far_away'",
        "no DNS label",
        "such as 'far-away'",
    ),
    "segment with the name of the link": (
        {f"{P}.segments.private-link": {"cidr4": "10.150.0.0/24"}},
        f"{P}.segments.private-link",
        "",
        "name of the private link",
        "write another name",
    ),
    "client with the name of a socket": (
        {f"{P}.clients.admin": {"hosts": "app2", "users": ["a"], "models": ["xray-7b"]}},
        f"{P}.clients.admin",
        "",
        "name of the connector's own socket",
        "write another name",
    ),
    "service name that is too long": (
        {f"{P}.services.{'s' * 64}": {"to": ["10.1.1.1"], "protocol": "tcp", "ports": [1], "from": "app1"}},
        f"{P}.services.{'s' * 64}",
        f"'{'s' * 64}'",
        "no DNS label",
        "write a DNS label such as",
    ),
    "name of nothing but hyphens": (
        {f"{P}.segments.--": {"cidr4": "10.150.0.0/24"}},
        f"{P}.segments.--",
        "'--'",
        "no DNS label",
        "RFC 1123",
    ),
    "domain in upper case": (
        {f"{P}.domain": "Inference.internal"},
        f"{P}.domain",
        "'Inference.internal'",
        "will not do",
        "DNS name in lower case",
    ),
    "user name": (
        {f"{P}.clients.batch.users": ["Batch User"]},
        f"{P}.clients.batch.users[0]",
        "'Batch User'",
        "will not do",
        "local user name",
    ),
    "interface name": (
        {"hosts.app2.moat_interface": "eth0 up"},
        "hostvars.app2.moat_interface",
        "'eth0 up'",
        "no interface name",
        "at most 15",
    ),
    "interface name that YAML reads as a number": (
        {"hosts.app2.moat_interface": 0},
        "hostvars.app2.moat_interface",
        "0",
        "no interface name",
        "in quotes",
    ),
    "the link's interface as that of a segment": (
        {"hosts.app2.moat_interface": "moat0"},
        "hostvars.app2.moat_interface",
        "'moat0'",
        "the private link's interface",
        "choose another moat_perimeter.link.interface",
    ),
    # choices and texts
    "engine": ({f"{P}.models.notes-1b.engine": "vlm"}, f"{P}.models.notes-1b.engine", "'vlm'", "no choice", "'vllm'"),
    "protocol": (
        {f"{P}.services.dns.protocol": "icmp"},
        f"{P}.services.dns.protocol",
        "'icmp'",
        "no choice",
        "write one of: tcp, udp",
    ),
    "expectation": ({f"{P}.tests.0.expect": "alow"}, f"{P}.tests[0].expect", "'alow'", "no choice", "write 'allow'"),
    "weights by a relative path": (
        {f"{P}.models.notes-1b.source": "models/notes"},
        f"{P}.models.notes-1b.source",
        "'models/notes'",
        "will not do",
        "absolute path",
    ),
    "weights by a way up": (
        {f"{P}.models.notes-1b.source": "/srv/models/../../etc"},
        f"{P}.models.notes-1b.source",
        "'/srv/models/../../etc'",
        "will not do",
        "without '..'",
    ),
    "weights among the system's files": (
        {f"{P}.models.notes-1b.source": "/etc/models"},
        f"{P}.models.notes-1b.source",
        "'/etc/models'",
        "will not do",
        "below /srv",
    ),
    "engine on a port": (
        {f"{P}.models.notes-1b.engine_args": ["--max-model-len", "512", "--port=8000"]},
        f"{P}.models.notes-1b.engine_args[2]",
        "'--port=8000'",
        "it would open the server",
        "remove it",
    ),
    "engine on a port, with underscores": (
        {f"{P}.models.notes-1b.engine_args": ["--served_model_name", "x"]},
        f"{P}.models.notes-1b.engine_args[0]",
        "'--served_model_name'",
        "the role sets it",
        "remove it",
    ),
    "engine with a line break": (
        {f"{P}.models.notes-1b.engine_args": ["--dtype\nfloat16"]},
        f"{P}.models.notes-1b.engine_args[0]",
        "'--dtype\\nfloat16'",
        "will not do",
        "printable",
    ),
    # one part to play
    "client where a model is served": (
        {f"{P}.clients.portal.hosts": "gpu2"},
        f"{P}.clients.portal.hosts",
        "'gpu2'",
        "serves model xray-7b",
        "a host that serves no model",
    ),
    "client where the authority is": (
        {f"{P}.clients.portal.hosts": "ca1"},
        f"{P}.clients.portal.hosts",
        "'ca1'",
        "holds the certificate authority",
        "on another host",
    ),
    "authority where a model is served": (
        {f"{P}.ca.host": "gpu1"},
        f"{P}.ca.host",
        "'gpu1'",
        "serves model xray-7b",
        "a host of its own",
    ),
    "segment and probe at once": (
        {"hosts.intruder.moat_segment": "app"},
        "hostvars.intruder.moat_segment",
        "'app'",
        "set on a probe",
        "remove one of the two",
    ),
    # families
    "client and model without a family in common": (
        {"hosts.gpu2.moat_address6": REMOVE, "hosts.app1.moat_address4": REMOVE},
        f"{P}.clients.portal.hosts",
        "'app1'",
        "no address family in common with gpu2 (model xray-7b)",
        "give both moat_address4, or both moat_address6",
    ),
    "client and authority without a family in common": (
        {"hosts.ca1.moat_address6": REMOVE, "hosts.app1.moat_address4": REMOVE},
        f"{P}.clients.portal.hosts",
        "'app1'",
        "no address family in common with ca1 (the certificate authority)",
        "give both",
    ),
}


@pytest.mark.parametrize("title", sorted(REFUSED))
def test_refused_with_path_value_and_remedy(title: str) -> None:
    assert_refused(*REFUSED[title])
