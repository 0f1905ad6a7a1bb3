"""Asking an egress proxy as its clients do, and what its log says of it."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

At = Callable[[str], Any]
Case = dict[str, Any]

# Asks the proxy, or without one the server itself, and reports the status, what TLS said, and its own port, by which the proxy's log is searched.
PROBE = r"""
import json, socket, ssl, sys
def ask(case):
    out = {"status": 0, "answer": "", "body": "", "port": 0}
    name, port = case["name"], case["port"]
    try:
        s = socket.create_connection((case["proxy"], case["proxy_port"]) if case["proxy"] else (case["server"], port), 5)
        s.settimeout(8)
        out["port"] = s.getsockname()[1]
        if case["kind"] == "http":
            url = case.get("url") or "http://%s%s/" % (name, "" if port == 80 else ":%d" % port)
            head = "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n"
            s.sendall((head % (case.get("method", "GET"), url, case.get("header", name), case.get("more", ""))).encode())
        elif case["proxy"]:
            s.sendall(("CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (name, port, name, port)).encode())
        data = b"" if case["proxy"] or case["kind"] == "http" else b"HTTP/1.1 200 directly\r\n\r\n"
        while b"\r\n\r\n" not in data or case["kind"] == "http":
            chunk = s.recv(65536)
            data += chunk
            if not chunk:
                break
        head, _, body = data.partition(b"\r\n\r\n")
        out["status"], out["body"] = int(head.split()[1]), body[:2000].decode("latin1")
        if case["kind"] == "raw" and out["status"] == 200:
            s.sendall(b"SSH-2.0-probe\r\n\r\n")
            out["answer"] = s.recv(100).decode("latin1")
        if case["kind"] == "tls" and out["status"] == 200:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(s, server_hostname=case.get("sni", name)) as tls:
                tls.sendall(("GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % name).encode())
                out["answer"] = tls.recv(65536)[:12].decode("latin1")
    except (OSError, ValueError, IndexError) as error:
        out["error"] = repr(error)
    return out
sys.stdout.write(json.dumps([ask(case) for case in json.load(sys.stdin)]))
"""


def encoded(script: str) -> str:
    return b64encode(script.encode()).decode()


def python(program: str, given: Any, user: str = "root") -> str:
    """The shell command that runs a program of Python as a user, with what it is given as JSON on its standard input."""
    become = "" if user == "root" else f"setpriv --reuid={user} --regid={user} --clear-groups "
    return (
        f'echo {encoded(json.dumps(given))} | base64 -d | {become}python3 -c "$(echo {encoded(program)} | base64 -d)"'
    )


@dataclass(frozen=True)
class Client:
    """A host that may use a proxy, and what its list says."""

    host: str
    proxy_host: str
    proxy: dict[str, Any]
    allow: list[dict[str, Any]]
    at: At
    user: str = "root"

    def case(self, kind: str, name: str, port: int = 443, **more: Any) -> Case:
        proxy, proxy_port = self.proxy["addresses"][0], self.proxy["port"]
        return {"kind": kind, "name": name, "port": port, "proxy": proxy, "proxy_port": proxy_port, **more}

    def ask(self, cases: list[Case]) -> list[tuple[bool, str, dict[str, Any]]]:
        """For each case: whether it got through, the rule in the proxy's log, and the answer."""
        after = self.cursor()
        answers = json.loads(self.at(self.host).check_output(python(PROBE, cases, self.user)))
        time.sleep(0.3)
        rules = {}
        for line in self.log(after):
            if line["source"] in (self.host, "-"):
                rules[line["source_port"]] = line["rule"]
        return [(passed(case, answer), rules.get(answer["port"], ""), answer) for case, answer in zip(cases, answers)]

    def expect(self, expected: list[tuple[Case, str]]) -> None:
        """What rule `deny-...` refuses must not get through, everything else must; both with that rule in the log."""
        results = self.ask([case for case, _rule in expected])
        wrong = [
            (case, rule, result)
            for (case, rule), result in zip(expected, results)
            if result[:2] != (not rule.startswith("deny-"), rule)
        ]
        assert not wrong, wrong

    def cursor(self) -> str:
        """The end of the proxy's log, as it is now."""
        text = self.at(self.proxy_host).check_output("journalctl -u moat-egress-proxy -n 1 -o json")
        return str(json.loads(text)["__CURSOR"])

    def log(self, after: str) -> list[dict[str, Any]]:
        """The proxy's log since then; a line that is no JSON fails the test."""
        command = f"journalctl -u moat-egress-proxy -o cat --after-cursor='{after}'"
        text = self.at(self.proxy_host).check_output(command)
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def names(self, port: int) -> list[tuple[str, str]]:
        """Names that the client may reach at the port, and their rules."""
        entries = [item for item in self.allow if port in item["ports"] and not item["host"].startswith("*.")]
        return [(item["host"], item["rule"]) for item in entries]


def passed(case: Case, answer: dict[str, Any]) -> bool:
    if case["kind"] == "http":
        return bool(answer["status"] == 200)
    return answer["status"] == 200 and bool(answer["answer"])


def clients(plan: Any, at: At) -> list[Client]:
    found = []
    for proxy_host in sorted(plan.hosts):
        proxy = plan.host(proxy_host).get("egress_proxy")
        for source in proxy["sources"] if proxy else ():
            if source["name"] != proxy_host and source["allow"]:
                found.append(Client(source["name"], proxy_host, proxy, source["allow"], at))
    return found
