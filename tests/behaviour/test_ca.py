"""What the authority serves, to whom, and what it refuses to sign."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest

At = Callable[[str], Any]
STATE = "/var/lib/moat-ca"
ROOT = f"{STATE}/pki/root_ca.crt"

# A token made as moat.inference.ca_token makes it, and used at once with a new key. $1 common name, $2 first name, the rest URIs.
ISSUE = f"""
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cn=$1; shift; sans=""; for san in "$@"; do sans="$sans --san $san"; done
token=$(step ca token --offline --issuer moat --ca-config /nonexistent/ca.json --ca-url "$URL" --root {ROOT} --not-after 5m \
  --key {STATE}/pki/provisioner/private.json --provisioner-password-file {STATE}/pki/provisioner/password $sans -- "$cn" 2>/dev/null)
step ca certificate --ca-url "$URL" --root {ROOT} --token "$token" "$cn" "$work/crt" "$work/key" 2>&1
openssl verify -CAfile {ROOT} -untrusted "$work/crt" "$work/crt"
openssl x509 -in "$work/crt" -noout -subject -nameopt RFC2253 -ext subjectAltName
if [ -n "$AGAIN" ]; then step ca certificate --force --ca-url "$URL" --root {ROOT} --token "$token" "$cn" "$work/crt" "$work/key" 2>&1; fi
"""


@pytest.fixture(scope="module")
def authority(plan: Any) -> str:
    return next(name for name in plan.hosts if "ca" in plan.host(name)["roles"])


@pytest.fixture(scope="module")
def inputs(plan: Any, authority: str) -> dict[str, Any]:
    return dict(plan.host(authority)["ca"])


@pytest.fixture(scope="module")
def urls(inputs: dict[str, Any]) -> list[str]:
    addresses = [name for name in inputs["dns_names"] if ":" in name or name.replace(".", "").isdigit()]
    return [f"https://{f'[{text}]' if ':' in text else text}:{inputs['port']}" for text in addresses]


@pytest.fixture(scope="module")
def client(plan: Any) -> dict[str, Any]:
    """What the plan lets the first client have."""
    items = [item for name in plan.hosts for item in plan.host(name).get("certificate", []) if item["uris"]]
    return dict(next(item for item in items if "/client/" in item["uris"][0]))


@pytest.fixture(scope="module")
def issue(at: At, authority: str, urls: list[str]) -> Callable[..., Any]:
    def run(common_name: str, *sans: str, again: bool = False) -> Any:
        words = " ".join(map(shlex.quote, (common_name, *sans)))
        environment = f"URL={shlex.quote(urls[0])} AGAIN={'1' if again else ''}"
        return at(authority).run(f"{environment} sh -c {shlex.quote(ISSUE)} issue {words}")

    return run


def test_every_address_serves_a_chain_to_the_root_that_the_hosts_were_given(at: At, plan: Any, urls: list[str]) -> None:
    member, item = next((name, item) for name in plan.hosts for item in plan.host(name).get("certificate", []))
    host = at(member)
    for url in urls:
        answer = host.run(f"curl -s --max-time 5 --cacert /etc/moat/tls/{item['name']}/root.pem {url}/health")
        assert json.loads(answer.stdout)["status"] == "ok", url
    other = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=other -keyout /dev/null 2>/dev/null"
    stranger = host.run(
        f"{other} > /tmp/other.pem; curl -s --max-time 5 --cacert /tmp/other.pem {urls[0]}/health; rm /tmp/other.pem"
    )
    assert stranger.stdout == ""


def test_it_listens_on_its_own_addresses_only(at: At, authority: str, urls: list[str], inputs: dict[str, Any]) -> None:
    lines = at(authority).run(f"ss -Hltn sport = :{inputs['port']}").stdout.split("\n")
    assert sorted(f"https://{line.split()[3]}" for line in lines if line.strip()) == sorted(urls)


def test_the_provisioner_is_not_published(at: At, authority: str, urls: list[str]) -> None:
    text = at(authority).run(f"curl -s --max-time 5 --cacert {ROOT} {urls[0]}/provisioners").stdout
    (provisioner,) = json.loads(text)["provisioners"]
    assert provisioner["name"] == "moat" and "encryptedKey" not in text and "d" not in provisioner["key"]
    kid = provisioner["key"]["kid"]
    refused = at(authority).run(f"curl -s --max-time 5 --cacert {ROOT} {urls[0]}/provisioners/{kid}/encrypted-key")
    assert json.loads(refused.stdout)["status"] == 404


def test_a_planned_name_is_issued_once(issue: Callable[..., Any], client: dict[str, Any]) -> None:
    answer = issue(client["common_name"], *client["dns"], *client["uris"], again=True)
    assert f"subject=CN={client['common_name']}" in answer.stdout and f"URI:{client['uris'][0]}" in answer.stdout
    assert ": OK" in answer.stdout and answer.rc != 0
    assert "not authorized" in answer.stdout or "lacked necessary authorization" in answer.stdout


@pytest.mark.parametrize("kind", ["name", "common name", "wildcard", "address", "trust domain", "authority"])
def test_any_other_name_is_refused(
    issue: Callable[..., Any], client: dict[str, Any], inputs: dict[str, Any], kind: str
) -> None:
    domain, common_name, dns = inputs["trust_domain"], client["common_name"], client["dns"][0]
    wanted = {
        "name": (common_name, f"nobody.client.{domain}"),
        "common name": ("nobody", dns),
        "wildcard": (common_name, f"*.client.{domain}"),
        "address": (common_name, "10.0.0.1"),
        "trust domain": (common_name, dns, "spiffe://elsewhere.example/client/x"),
        "authority": (inputs["dns_names"][0], inputs["dns_names"][0]),
    }[kind]
    answer = issue(*wanted)
    assert answer.rc != 0 and ": OK" not in answer.stdout
    assert "not allowed" in answer.stdout or "not permitted by any constraint" in answer.stdout


def test_the_root_key_is_gone_and_the_rest_is_closed(at: At, authority: str) -> None:
    host = at(authority)
    listed = host.run(f"find {STATE} -path {STATE}/db -prune -o -printf '%m %u %P\\n'").stdout.strip().split("\n")
    found = {words[2]: (words[0], words[1]) for words in (line.split(" ", 2) for line in listed) if words[2]}
    assert "pki/root-exported.json" in found and not [path for path in found if path.startswith("pki/root/")]
    assert host.run(f"stat -c '%a %U' {STATE}").stdout.strip() == "700 moat-ca"
    for path in ("intermediate_ca_key", "intermediate_password"):
        assert found[f"pki/{path}"] == ("600", "moat-ca")
    for path in ("provisioner/private.json", "provisioner/password"):
        assert found[f"pki/{path}"] == ("600", "root")
    assert not [path for path, (mode, _user) in found.items() if mode[-1] != "0"]


def test_the_service_cannot_read_what_makes_tokens(at: At, authority: str) -> None:
    host = at(authority)
    readable = f"test -r {STATE}/pki/intermediate_ca_key && ! test -r {STATE}/pki/provisioner/private.json"
    assert host.run(f"setpriv --reuid moat-ca --regid moat-ca --clear-groups sh -c {shlex.quote(readable)}").rc == 0
    pid = host.run("systemctl show -P MainPID moat-ca.service").stdout.strip()
    inside = host.run(f"nsenter -t {pid} -m ls {STATE}/pki/provisioner {STATE}/pki/intermediate_ca.crt")
    assert "intermediate_ca.crt" in inside.stdout and "private.json" not in inside.stdout


def test_old_tls_is_refused(at: At, authority: str, urls: list[str]) -> None:
    script = f"curl -s -o /dev/null --max-time 5 --cacert {ROOT} --ciphers DEFAULT@SECLEVEL=0"
    assert at(authority).run(f"{script} --tls-max 1.2 {urls[0]}/health").rc == 0
    assert at(authority).run(f"{script} --tlsv1.0 --tls-max 1.1 {urls[0]}/health").rc != 0


def test_only_hosts_of_the_plan_reach_it(at: At, plan: Any, authority: str, inputs: dict[str, Any]) -> None:
    """A probe in the authority's own segment is refused where a gateway's host is answered."""
    segment = plan.hosts[authority].addresses[0]
    member = next(name for name in plan.hosts if "gateway" in plan.host(name)["roles"])
    addresses = [name for name in inputs["dns_names"] if ":" in name or name.replace(".", "").isdigit()]
    assert segment.text in addresses
    tries = " ; ".join(f"nc -z -w 2 {address} {inputs['port']} && echo {address}" for address in addresses)
    assert at(member).run(tries).stdout.split() == addresses
    for probe in plan.probes:
        assert at(probe).run(tries).stdout.split() == [], probe
