# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import socket
import struct
import threading

import pytest
from ansible_collections.moat.inference.plugins.module_utils import egress_client_resolv as resolv


class Server:
    """A name server on loopback that answers with a given code, or not at all."""

    def __init__(self, code, wrong_number=0):
        self.plug = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.plug.bind(("127.0.0.1", 0))
        self.port = self.plug.getsockname()[1]
        self.code, self.wrong, self.asked = code, wrong_number, []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                text, peer = self.plug.recvfrom(4096)
            except OSError:
                return
            self.asked.append(text)
            if self.code is not None:
                number = struct.unpack("!H", text[:2])[0] ^ self.wrong
                self.plug.sendto(struct.pack("!HH", number, 0x8180 | self.code) + text[4:], peer)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(resolv, "WAIT", 0.2)


@pytest.mark.parametrize(
    ("code", "domain", "said"),
    [
        (0, "inference.internal", ""),
        (3, "inference.internal", ""),
        (5, "inference.internal", "answers REFUSED"),
        (2, "inference.internal", "answers SERVFAIL"),
        (5, "", ""),
        (2, "", "answers SERVFAIL"),
    ],
)
def test_a_resolver_counts_by_its_answer(code, domain, said):
    server = Server(code)
    assert resolv.ask("127.0.0.1", domain, server.port) == said
    assert len(server.asked) == 1
    assert server.asked[0][12:] == (b"\x09inference\x08internal\0\0\x06\0\x01" if domain else b"\0\0\x02\0\x01")


def test_a_silent_resolver_is_asked_twice():
    server = Server(None)
    assert resolv.ask("127.0.0.1", "a.b", server.port).startswith("gives no answer")
    assert len(server.asked) == resolv.ATTEMPTS


def test_an_answer_to_another_question_is_none():
    assert resolv.ask("127.0.0.1", "a.b", Server(0, wrong_number=1).port) == "gives no answer"
    assert resolv.verdict(b"\0\1\x81", 1, "a.b") is None
    assert resolv.verdict(struct.pack("!HH", 1, 0x0100) + b"\0" * 8, 1, "a.b") is None


def test_a_closed_port_is_known_at_once():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plug:
        plug.bind(("127.0.0.1", 0))
        port = plug.getsockname()[1]
    assert "refused" in resolv.ask("127.0.0.1", "a.b", port)


def test_an_own_address_is_told_from_anothers():
    assert resolv.is_own("127.0.0.1")
    assert not resolv.is_own("192.0.2.1")


def test_no_more_than_three_servers():
    text = resolv.resolv_text([f"10.0.0.{n}" for n in range(1, 6)], "inference.internal")
    assert resolv.in_force(text) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert "search inference.internal\n" in text and "options timeout:2 attempts:2\n" in text
    assert "search" not in resolv.resolv_text(["10.0.0.1"], "")


def test_resolved_forgets_what_other_files_have_and_falls_back_to_none():
    lines = resolv.resolved_text(["10.0.0.1", "fd00::1"], "a.b").splitlines()
    assert lines.index("DNS=") < lines.index("DNS=10.0.0.1 fd00::1")
    assert lines.index("Domains=") < lines.index("Domains=a.b ~.")
    assert "FallbackDNS=" in lines


@pytest.mark.parametrize(
    ("link", "active", "settings", "resolvconf", "said"),
    [
        ("", {}, "", False, ""),
        ("/run/systemd/resolve/stub-resolv.conf", {}, "", False, ""),
        ("", {"NetworkManager.service": True}, "[main]\nplugins=keyfile\n", False, "dns=none"),
        ("", {"NetworkManager.service": True}, "[main]\ndns=none\n", False, ""),
        ("", {"NetworkManager.service": True}, "[main]\n#dns=none\n", False, "dns=none"),
        ("/run/NetworkManager/resolv.conf", {"NetworkManager.service": True}, "dns = none", False, ""),
        ("/run/resolvconf/resolv.conf", {}, "", False, "remove its package"),
        ("", {}, "", True, "remove its package"),
        ("/srv/resolv.conf", {}, "", False, "replace it by a file"),
    ],
)
def test_other_writers_are_named(link, active, settings, resolvconf, said):
    faults = resolv.writers(link, "", active, settings, resolvconf)
    assert len(faults) == bool(said)
    for fault in faults:
        assert said in fault
