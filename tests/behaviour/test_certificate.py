"""The certificates of every managed host: names as planned, keys private, renewed by a timer, and served once renewed."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import pytest

Facts = list[tuple[str, dict[str, Any], dict[str, str]]]
LEEWAY = 120
FACTS = r"""
cd /etc/moat/tls/NAME || exit 1
n=NAME u=moat-certificate@NAME
field() { printf '%s\t%s\n' "$1" "$(cat)"; }
openssl x509 -in cert.pem -noout -subject -nameopt RFC2253 | sed 's/^subject=//' | field subject
openssl x509 -in cert.pem -noout -ext subjectAltName | tail -n 1 | field names
openssl x509 -in cert.pem -noout -startdate -enddate | cut -d= -f2 | paste -sd, | field dates
openssl x509 -in cert.pem -noout -text | grep -c 'ASN1 OID: prime256v1' | field curve
openssl verify -CAfile root.pem -untrusted cert.pem cert.pem 2>&1 | field verify
grep -c BEGIN cert.pem | field chain
cmp -s <(openssl x509 -in cert.pem -noout -pubkey) <(openssl pkey -in key.pem -pubout); echo $? | field pair
cmp -s <(cat cert.pem key.pem) bundle.pem; echo $? | field bundle
stat -L -c '%n=%a:%U:%G' key.pem cert.pem bundle.pem root.pem | paste -sd, | field modes
sha256sum < root.pem | cut -d' ' -f1 | field root
systemctl show -p ActiveState,UnitFileState,NextElapseUSecMonotonic,RandomizedDelayUSec $u.timer | paste -sd, | field timer
systemctl show -p Result,ActiveState $u.service | paste -sd, | field service
find /etc/moat/tls -name '*.pem' -perm /007 \( -name 'key*' -o -name 'bundle*' \) | field exposed
find /etc/moat /run /tmp /var/tmp /root -xdev -type f -size -64k -perm /004 -exec grep -l 'PRIVATE KEY' {} + 2>/dev/null | field readable
runuser -u nobody -- cat key.pem >/dev/null 2>&1; echo $? | field nobody_key
runuser -u nobody -- cat root.pem >/dev/null 2>&1; echo $? | field nobody_root
"""
RENEW = r"""
n=NAME
serial() { openssl x509 -in /etc/moat/tls/$n/cert.pem -noout -serial | cut -d= -f2; }
served() { for s in /run/moat-gateway/admin.sock /run/moat-connector/admin.sock; do [ -S $s ] || continue
  python3 -c 'import socket,sys
s=socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1]); s.sendall(b"show ssl cert /etc/moat/tls/%s/bundle.pem\n" % sys.argv[2].encode())
t=b""
while True:
    p=s.recv(65536)
    if not p: break
    t+=p
print(t.decode())' $s $n | sed -n 's/^Serial: *//p'; done; }
before=$(serial) key=$(openssl pkey -in /etc/moat/tls/$n/key.pem -pubout | sha256sum)
was=$(served)
install -d -m 0700 /run/moat-certificate && touch /run/moat-certificate/$n.renew
systemctl start moat-certificate@$n.service; rc=$?
after=$(serial) now=$(served)
[ "$key" = "$(openssl pkey -in /etc/moat/tls/$n/key.pem -pubout | sha256sum)" ] && same=1 || same=0
printf '{"rc": %d, "before": "%s", "after": "%s", "was": "%s", "now": "%s", "same_key": %d}' $rc $before $after "$was" "$now" $same
"""


def items(plan: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every certificate of the plan, with its host."""
    return [(name, item) for name in sorted(plan.hosts) for item in plan.host(name).get("certificate", [])]


@pytest.fixture(scope="module")
def facts(at: Callable[[str], Any], plan: Any) -> Facts:
    """For each planned certificate its host, its item, and what the host says of it."""
    found = []
    for name, item in items(plan):
        done = at(name).run("bash -c %s", FACTS.replace("NAME", item["name"]))
        assert done.rc == 0, done.stderr
        found.append((name, item, dict(line.partition("\t")[::2] for line in done.stdout.splitlines())))
    assert found
    return found


def test_names_are_those_of_the_plan(facts: Facts) -> None:
    for name, item, fields in facts:
        wanted = {f"DNS:{dns}" for dns in item["dns"]} | {f"URI:{uri}" for uri in item["uris"]}
        assert fields["subject"] == f"CN={item['common_name']}", name
        assert set(fields["names"].strip().split(", ")) == wanted, name


def test_the_chain_leads_to_the_one_root(facts: Facts) -> None:
    assert {fields["verify"] for _name, _item, fields in facts} == {"cert.pem: OK"}
    assert {fields["chain"] for _name, _item, fields in facts} == {"2"}
    assert len({fields["root"] for _name, _item, fields in facts}) == 1


def test_they_are_short_lived(facts: Facts) -> None:
    for name, item, fields in facts:
        start, end = (
            datetime.datetime.strptime(text.replace(" GMT", ""), "%b %d %H:%M:%S %Y")
            for text in fields["dates"].split(",")
        )
        assert item["lifetime"] == "24h"
        assert 0 < (end - start).total_seconds() <= 24 * 3600 + LEEWAY, name


def test_key_certificate_and_bundle_belong_together(facts: Facts) -> None:
    for name, _item, fields in facts:
        assert (fields["curve"], fields["pair"], fields["bundle"]) == ("1", "0", "0"), name


def test_keys_are_private(facts: Facts) -> None:
    for name, _item, fields in facts:
        modes = dict(part.split("=") for part in fields["modes"].split(","))
        assert modes["key.pem"] == "600:root:root", name
        assert modes["bundle.pem"] == "640:root:haproxy", name
        assert (fields["exposed"], fields["readable"]) == ("", ""), name
        # the refusal counts because the same user reads the root beside it
        assert fields["nobody_key"] != "0", name
        assert fields["nobody_root"] == "0", name


def test_the_timer_waits_for_its_next_run(facts: Facts) -> None:
    for name, _item, fields in facts:
        timer = dict(part.split("=", 1) for part in fields["timer"].split(","))
        assert (timer["ActiveState"], timer["UnitFileState"]) == ("active", "enabled"), name
        assert timer["NextElapseUSecMonotonic"] not in ("", "0", "infinity"), name
        assert timer["RandomizedDelayUSec"] not in ("", "0"), name
        assert "Result=success" in fields["service"], name


def test_a_renewal_is_served_at_once_with_a_new_key(at: Callable[[str], Any], plan: Any) -> None:
    for name, item in items(plan):
        done = at(name).run("bash -c %s", RENEW.replace("NAME", item["name"]))
        result = json.loads(done.stdout)
        assert result["rc"] == 0, (name, done.stderr)
        assert result["before"] != result["after"], name
        assert result["same_key"] == 0, name
        # HAProxy served the old one before, so the comparison after it can fail
        assert int(result["was"], 16) == int(result["before"], 16), name
        assert int(result["now"], 16) == int(result["after"], 16), name


def test_the_authority_is_trusted_by_this_root_and_no_other(at: Callable[[str], Any], plan: Any) -> None:
    name, item = items(plan)[0]
    ask = f"curl -sf -o /dev/null --max-time 5 {plan.host(name)['certificate_ca']['url']}/health --cacert"
    lines = at(name).run(
        f"{ask} /etc/moat/tls/{item['name']}/root.pem; echo $?; {ask} /etc/ssl/certs/ca-certificates.crt; echo $?"
    )
    own, public = lines.stdout.split()
    assert own == "0"
    # 60: not trusted; 77: the host has no such file
    assert public in ("60", "77")
