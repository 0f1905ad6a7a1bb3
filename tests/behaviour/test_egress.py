"""What a compromised host of models could try by the proxy, as root and as the models' user, against an internet that answers all of it."""

from __future__ import annotations

import ipaddress
import json
import shlex
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.behaviour.asking import PROBE, At, Case, Client, clients, passed, python
from tests.lab.internet import (
    CA,
    FORBIDDEN,
    KEYRING,
    LEADS,
    PACKAGE,
    REQUESTS,
    RESOLVER,
    SUITE,
    UNLISTED_PORTS,
    VERSION,
    Internet,
)

PLACE = "/run/moat-probe"
# what `python3 -m venv` would install, without its three seconds
PIP = "PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl) python3 -m pip --no-input --disable-pip-version-check"


@pytest.fixture(scope="module")
def root(plan: Any, at: At) -> Client:
    """A host of models with two names for TLS, one of them for plain HTTP too."""
    for found in clients(plan, at):
        if "model_server" in plan.host(found.host) and len(found.names(443)) > 1 and found.names(80):
            return found
    raise LookupError("no host of models may reach two names at 443 and one of them at 80")


@pytest.fixture(scope="module", params=["root", "model"])
def client(request: pytest.FixtureRequest, root: Client, model_user: str) -> Client:
    return root if request.param == "root" else replace(root, user=model_user)


@pytest.fixture(scope="module")
def name(root: Client) -> tuple[str, str]:
    return next(item for item in root.names(443) if item in root.names(80))


@pytest.fixture(scope="module")
def second(root: Client, name: tuple[str, str]) -> tuple[str, str]:
    return next(item for item in root.names(443) if item != name)


@pytest.fixture(scope="module")
def wildcard(root: Client, internet: Internet) -> tuple[str, str]:
    """A wildcard of the list, without its asterisk: where its names lead, a stranger says."""
    entries = [(item["host"].removeprefix("*."), item["rule"]) for item in root.allow if item["host"].startswith("*.")]
    return next(entry for entry in entries if entry[0] in internet.wildcards)


def names_and_ports(client: Client, name: tuple[str, str]) -> list[tuple[Case, str]]:
    return [
        (client.case("tls", name[0]), name[1]),
        (client.case("tls", FORBIDDEN), "deny-name"),
        (client.case("http", FORBIDDEN, 80), "deny-name"),
        (client.case("tls", RESOLVER), "deny-name"),  # DNS over HTTPS
        *((client.case("tls", name[0], port), "deny-port") for port in UNLISTED_PORTS),
        *((client.case("raw", name[0], port), "deny-port") for port in (25, 53, 123, 853, 9999)),
        (client.case("http", name[0], 8080), "deny-port"),
        (client.case("http", name[0], 80), name[1]),
    ]


def fronts(client: Client, name: tuple[str, str], second: tuple[str, str]) -> list[tuple[Case, str]]:
    return [
        (client.case("tls", name[0]), name[1]),
        (client.case("tls", second[0]), second[1]),
        (client.case("tls", name[0], sni=second[0]), "deny-sni"),
        (client.case("tls", second[0], sni=name[0]), "deny-sni"),
        (client.case("tls", name[0], sni=FORBIDDEN), "deny-sni"),
        (client.case("tls", name[0], sni=None), "deny-sni"),
        (client.case("raw", name[0]), "deny-tls"),
    ]


def forms(address: str) -> list[str]:
    """An address in the notations that programs take."""
    six = ipaddress.ip_address(address).version == 6
    if six:
        return [f"[{address}]", f"[{ipaddress.ip_address(address).exploded}]"]
    number = int(ipaddress.ip_address(address))
    a, b, c, d = ipaddress.IPv4Address(address).packed
    found = [address, f"{address}.", str(number), hex(number), f"[::ffff:{address}]"]
    found += [f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{hex(a)}.{b}.{hex(c)}.{d}"]
    return [*found, f"{a}.{b}.{c * 256 + d}", f"{a}.{(b * 256 + c) * 256 + d}"]


def test_another_name_or_port_is_refused(client: Client, name: tuple[str, str]) -> None:
    client.expect(names_and_ports(client, name))


def test_tls_must_ask_for_the_name_that_was_named(
    client: Client, name: tuple[str, str], second: tuple[str, str]
) -> None:
    client.expect(fronts(client, name, second))


def test_a_stranger_without_a_perimeter_gets_all_of_it(
    at: At, root: Client, name: tuple[str, str], second: tuple[str, str], internet: Internet, stranger: str
) -> None:
    """The control: the same requests straight to the same servers, from the same segment."""
    addresses = internet.leads()
    cases = [
        {**case, "proxy": "", "server": address}
        for case, _rule in [*names_and_ports(root, name), *fronts(root, name, second)]
        for address in addresses[case["name"]]
        if case["kind"] != "raw" and case["port"] != 8080 and case["name"] != RESOLVER
    ]
    answers = json.loads(at(stranger).check_output(python(PROBE, cases)))
    assert len(cases) > 20
    assert [(case, answer) for case, answer in zip(cases, answers) if not passed(case, answer)] == []


def test_addresses_are_refused_in_every_form(client: Client, name: tuple[str, str], internet: Internet) -> None:
    """The way back from the address leads to the name that is listed."""
    pointers = client.at(client.proxy_host).check_output(f"dig +short @{internet.resolvers[0]} -x {internet.web[0]}")
    assert f"{name[0]}." in pointers.split()
    every = [form for address in internet.web for form in forms(address)]
    every += ["[::1]", "127.0.0.1", "127.1", "0", "2130706433", "169.254.169.254"]
    client.expect(
        [
            (client.case("tls", name[0]), name[1]),
            *((client.case("tls", form, sni=name[0]), "deny-address") for form in every),
            *((client.case("http", form, 80), "deny-address") for form in every),
            (client.case("http", name[0], 80), name[1]),
        ]
    )


def test_a_listed_name_leads_to_no_address_inside(client: Client, wildcard: tuple[str, str]) -> None:
    """Names below a wildcard that lead to the web server get through, to ca1, loopback or the clouds' metadata they do not."""
    parent, rule = wildcard
    outside = [label for label, places in LEADS.items() if all(place.startswith("{web") for place in places)]
    assert len(outside) == 3
    expected = {label: rule if label in outside else "deny-destination" for label in LEADS}
    client.expect([(client.case("tls", f"{label}.{parent}"), wanted) for label, wanted in expected.items()])


def test_another_host_header_never_leaves(client: Client, name: tuple[str, str]) -> None:
    """Squid puts the name of the URL in its place, so the lie ends at the proxy."""
    plain, changed = client.ask([client.case("http", name[0], 80), client.case("http", name[0], 80, header=FORBIDDEN)])
    assert plain[:2] == changed[:2] == (True, name[1])
    assert changed[2]["body"] == plain[2]["body"] == f"{name[0]}\n"


def test_the_internet_sees_only_what_is_listed(
    at: At,
    client: Client,
    name: tuple[str, str],
    second: tuple[str, str],
    wildcard: tuple[str, str],
    internet: Internet,
) -> None:
    """What arrives there, by the logs of its web server and its resolver."""
    far, parent = at(internet.host), wildcard[0]
    offset = int(far.check_output(f"stat -c %s {REQUESTS}"))
    cursor = far.check_output("journalctl -u moat-lab-internet-dns -n 1 -o json").strip()
    after = shlex.quote(json.loads(cursor)["__CURSOR"])
    client.ask(
        [
            *(case for case, _rule in [*names_and_ports(client, name), *fronts(client, name, second)]),
            client.case("http", name[0], 80, header=FORBIDDEN),
            client.case("tls", f"fresh{time.time_ns()}.{FORBIDDEN}"),
            client.case("tls", f"fresh{time.time_ns()}.{parent}"),
        ]
    )
    requests = [json.loads(line) for line in far.check_output(f"tail -c +{offset + 1} {REQUESTS}").splitlines()]
    asked = sorted((item["port"], item["sni"], item["host"]) for item in requests)
    tls, plain = ("443", name[0], name[0]), ("80", "", name[0])
    assert asked == sorted([tls, tls, ("443", second[0], second[0]), plain, plain])
    own = next(source["addresses"] for source in client.proxy["sources"] if source["name"] == client.host)
    assert not {item["source"] for item in requests} & set(own)
    log = far.check_output(f"journalctl -u moat-lab-internet-dns -o cat --after-cursor={after}")
    resolved = [line.split("info: ")[1].split()[1] for line in log.splitlines() if "info: " in line]
    assert [entry for entry in resolved if entry.endswith(f"{parent}.")], "the control: a listed name is resolved"
    assert [entry for entry in resolved if FORBIDDEN in entry or RESOLVER in entry] == []


def test_an_odd_port_is_for_who_has_it(plan: Any, at: At, root: Client) -> None:
    odd = [(c, item) for c in clients(plan, at) for item in c.allow if set(item["ports"]) - {80, 443}]
    assert odd
    for other, item in odd:
        port = next(port for port in item["ports"] if port not in (80, 443))
        other.expect(
            [(other.case("tls", item["host"], port), item["rule"]), (other.case("tls", item["host"]), "deny-port")]
        )
        root.expect([(root.case("tls", item["host"], port), "deny-name")])


def test_apt_updates_and_installs_through_the_proxy(
    at: At, root: Client, name: tuple[str, str], internet: Internet
) -> None:
    """A signed package from a repository on the other side, in plain HTTP and in TLS; without the proxy there is none."""
    far = at(internet.host)
    trust = {"ca.pem": far.check_output(f"cat {CA}"), "packages.asc": far.check_output(f"cat {KEYRING}")}
    write = "\n".join(f"printf '%s\\n' {shlex.quote(text)} > {PLACE}/{file}" for file, text in trust.items())
    script = f"""set -eu
mkdir -p {PLACE}/lists/partial {PLACE}/cache
{write}
apt="apt-get -q -y -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists={PLACE}/lists -o Dir::Cache={PLACE}/cache"
apt="$apt -o Acquire::https::CaInfo={PLACE}/ca.pem -o Acquire::Retries=0 -o APT::Update::Error-Mode=any"
for scheme in http https; do
  echo "deb [signed-by={PLACE}/packages.asc] $scheme://{name[0]}/debian {SUITE} main" > {PLACE}/$scheme.list
  if $apt -o Dir::Etc::SourceList={PLACE}/$scheme.list -o Acquire::http::Proxy=DIRECT -o Acquire::https::Proxy=DIRECT update; then exit 9; fi
  echo "directly $scheme: none"
  $apt -o Dir::Etc::SourceList={PLACE}/$scheme.list update
  $apt -o Dir::Etc::SourceList={PLACE}/$scheme.list install {PACKAGE}
  cat /usr/share/{PACKAGE}/hello
  dpkg --purge {PACKAGE}
  rm -rf {PLACE}/lists/* {PLACE}/cache/*; mkdir -p {PLACE}/lists/partial
done"""
    after = root.cursor()
    try:
        done = at(root.host).run("bash -c " + shlex.quote(script))
    finally:
        at(root.host).run(f"rm -rf {PLACE}; dpkg --purge {PACKAGE} 2>/dev/null")
    assert done.rc == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("hello") == 2 and "directly http: none" in lines and "directly https: none" in lines
    logged = {(line["rule"], line["port"]) for line in root.log(after) if line["source"] == root.host}
    assert logged == {(name[1], "80"), (name[1], "443")}


def test_pip_installs_through_the_proxy(at: At, client: Client, name: tuple[str, str], internet: Internet) -> None:
    text = at(internet.host).check_output(f"cat {CA}")
    become = "" if client.user == "root" else f"setpriv --reuid={client.user} --regid={client.user} --clear-groups "
    script = f"""set -eu
mkdir -p {PLACE}/into; chmod 777 {PLACE}/into
printf '%s\\n' {shlex.quote(text)} > {PLACE}/ca.pem
install="install --quiet --no-cache-dir --retries 0 --timeout 5 --cert {PLACE}/ca.pem --index-url https://{name[0]}/simple/ --target {PLACE}/into"
if {become}env PIP_CONFIG_FILE=/dev/null {PIP} $install {PACKAGE}; then exit 9; fi
{become}env {PIP} $install {PACKAGE}
{become}env PYTHONPATH={PLACE}/into python3 -c 'import {PACKAGE.replace("-", "_")} as it; print(it.VERSION)'"""
    after = client.cursor()
    try:
        done = at(client.host).run("bash -c " + shlex.quote(script))
    finally:
        at(client.host).run(f"rm -rf {PLACE}")
    assert (done.rc, done.stdout.strip()) == (0, VERSION), done.stdout + done.stderr
    assert {line["rule"] for line in client.log(after) if line["source"] == client.host} == {name[1]}
