"""The authority is lost and comes back from its backup: the same root, certificates that renew, new ones that are issued."""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults import run
from tests.lab import site
from tests.lab.shell import LAB, capture
from tests.lab.site import on

OPERATOR = LAB / "operator"


def serves() -> bool:
    """Whether the authority answers with a certificate of its own root."""
    plan = site.plans()["ca1"]
    address, port = plan["firewall"]["segments"][0]["addresses"][0], plan["ca"]["port"]
    root = (LAB / "state" / "ca-root.pem").read_bytes()
    script = f"openssl s_client -connect {address}:{port} -verify_return_error -CAfile /dev/stdin"
    return "Verify return code: 0" in on("ca1", script, data=root).out


def test_a_lost_authority_comes_back_from_its_backup(tmp_path: Path) -> None:
    root = (LAB / "state" / "ca-root.pem").read_text(encoding="utf-8")
    backup = tmp_path / "backup.cms"
    files = {"moat_ca_recipient": str(OPERATOR / "certificate.pem"), "moat_ca_backup_path": str(backup)}
    made = run.play("moat.inference.ca_backup", "-e", json.dumps(files))
    assert made.rc == 0, made.out[-4000:]
    assert serves()
    assert "-----BEGIN CMS-----" in backup.read_text(encoding="utf-8")

    lost = on("ca1", "systemctl stop moat-ca moat-ca-listen.socket; rm -rf /var/lib/moat-ca; ls /var/lib/moat-ca")
    assert lost.code != 0
    assert not serves()
    refused = run.play("moat.inference.site", "--tags", "ca")
    assert refused.rc == 2, "a bare authority must not begin a new root by mistake"

    files["moat_ca_recipient_key"] = str(OPERATOR / "key.pem")
    back = run.play("moat.inference.ca_restore", "-e", json.dumps(files))
    assert back.rc == 0, back.out[-4000:]
    assert (LAB / "state" / "ca-root.pem").read_text(encoding="utf-8") == root
    assert serves()

    renew = "install -d -m 0700 /run/moat-certificate; touch /run/moat-certificate/gateway.renew; "
    serial = "openssl x509 -noout -serial -in /etc/moat/tls/gateway/cert.pem"
    before = on("gpu1", serial).out
    renewed = on("gpu1", f"{renew} systemctl start moat-certificate@gateway.service", timeout=120)
    assert renewed.code == 0, renewed.err
    assert on("gpu1", serial).out != before
    on("app3", "rm -rf /etc/moat/tls/connector-batch")
    ended = run.play()
    assert ended.rc == 0, ended.out[-4000:]
    assert "BEGIN CERTIFICATE" in on("app3", "cat /etc/moat/tls/connector-batch/cert.pem").out
    again = run.play("moat.inference.site", "--limit", "ca1,gpu1,app3")
    assert not any(again.counts("changed").values()), again.out[-4000:]


def test_the_operator_can_open_the_root_key_and_the_host_has_it_no_more() -> None:
    export = LAB / "state" / "ca-root-key.cms"
    opened = ["openssl", "cms", "-decrypt", "-inform", "PEM", "-in", str(export)]
    opened += ["-recip", str(OPERATOR / "certificate.pem"), "-inkey", str(OPERATOR / "key.pem")]
    key = capture(opened)
    # a line of the key itself: its certificate may stand beside it
    body = key.partition("PRIVATE KEY-----\n")[2].splitlines()[0]
    assert len(body) == 64
    assert on("ca1", f"grep -rlF -e '{body}' /var/lib/moat-ca /etc/moat").out == ""
    intermediate = on("ca1", "grep -rl 'PRIVATE KEY' /var/lib/moat-ca").out
    assert "intermediate_ca_key" in intermediate, "the search must find the keys that stay"
