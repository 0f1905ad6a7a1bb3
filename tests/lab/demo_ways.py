"""Which ways out of a host of models are open, and which are not: the second table of `make demo`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.lab import internet, site, table
from tests.lab.shell import LabError
from tests.lab.site import on

WAIT = 3  # seconds; a packet that is dropped is never answered
HTTPS = 443


@dataclass(frozen=True)
class Way:
    """One line of the table."""

    source: str
    way: str
    to: str
    result: str
    layer: str
    good: bool

    def cells(self) -> tuple[str, ...]:
        return (
            "ok" if self.good else "WRONG",
            self.source,
            self.way,
            self.to,
            self.result,
            self.layer or "NO EVIDENCE",
        )


def proxied(source: str, name: str) -> Way:
    """HTTPS through the proxy; its log says why not."""
    url = site.plans()[source]["egress_client"]["proxies"][0]
    form = "%{http_connect} %{http_code} %{local_port}"
    answer = on(source, f"curl -sk -o /dev/null -m 15 --noproxy '' -x {url} -w '{form}' https://{name}/")
    connect, status, port = (answer.out.split() + ["000"] * 3)[:3]
    entry = logged(source, int(port))
    verdict, rule = entry.get("verdict", ""), entry.get("rule", "")
    if verdict == "allow":
        good = (connect, status) == ("200", "200")
        return Way(source, "proxy", name, status, f"admitted: {rule}" if good else "", good)
    layer = f"name: proxy {entry['on']}, {rule}" if verdict == "deny" else ""
    return Way(source, "proxy", name, connect, layer, connect == "403" and bool(layer))


def logged(source: str, port: int) -> dict[str, Any]:
    """The line of a proxy's log about a connection of a source."""
    proxies = [name for name, plan in site.plans().items() if "egress_proxy" in plan]
    for _try in range(10):
        for name in proxies:
            text = on(name, "journalctl -u moat-egress-proxy.service -n 200 -o cat --no-pager").out
            for line in reversed(text.splitlines()):
                entry = json.loads(line) if line.startswith("{") else {}
                if entry.get("source") == source and str(entry.get("source_port")) == str(port):
                    return {**entry, "on": name}
        time.sleep(0.3)
    return {}


def straight(source: str, address: str) -> str:
    """HTTPS with no proxy."""
    where = f"[{address}]" if ":" in address else address
    answer = on(
        source, f"curl -sk -o /dev/null --noproxy '*' --connect-timeout {WAIT} -w '%{{http_code}}' https://{where}/"
    )
    return {0: answer.out, 7: "unreachable", 28: "no answer"}.get(answer.code, f"curl {answer.code}")


def asked(source: str, server: str, name: str) -> str:
    """What a DNS server answers: addresses, the status when there are none, or that nothing came."""
    answer = on(source, f"dig +tries=1 +time={WAIT} +noall +comments +answer @{server} {name} A")
    found = [line.split()[-1] for line in answer.out.splitlines() if line and not line.startswith(";")]
    status = answer.out.partition("status: ")[2].partition(",")[0]
    return ", ".join(sorted(found)) or status or ("unreachable" if "unreachable" in answer.out else "no answer")


def refused(source: str, way: str, address: str, to: str, attempt: Callable[[], str]) -> Way:
    """Something that must not leave its host, and the layer that says so itself: the routes, or the packet filter's counters."""
    before = site.denied(source)
    seen = attempt()
    after = site.denied(source)
    layer = ""
    if on(source, f"ip route get {address}").code:
        layer = f"route: {source} has none to there" if seen == "unreachable" else ""
    elif seen == "no answer":
        moved = sorted(name for name in after if after[name] > before.get(name, 0))
        layer = f"packet: firewall of {source}, {', '.join(moved)}" if moved else ""
    return Way(source, way, to, seen, layer, bool(layer))


def resolved(source: str, name: str, wanted: str, layer: str) -> Way:
    """A name asked of the host's own resolver."""
    seen = asked(source, site.plans()[source]["resolvers"][0], name)
    return Way(source, "its resolver", name, seen, layer if seen == wanted else "", seen == wanted)


def neighbour(source: str) -> str:
    """A host outside the perimeter in the segment of a source: what it reaches, the source would without the perimeter."""
    hosts = table.load().hosts
    network = hosts[source].interfaces[0].network
    return next(h.name for h in hosts.values() if h.probe and not h.router and h.interfaces[0].network == network)


def ways(source: str, model: str, application: str) -> list[Way]:
    """Each refused way beside one that is open; what is named comes from the plan and from what the lab's internet serves."""
    net = internet.internet()
    if net is None:
        raise LabError("The lab has no stand-in for the internet, so no refusal would prove anything.")
    plans = site.plans()
    proxy = next(plan["egress_proxy"] for plan in plans.values() if "egress_proxy" in plan)
    names = next(plan["private_dns"] for plan in plans.values() if "private_dns" in plan)
    lists = {item["name"]: item["allow"] for item in proxy["sources"]}
    listed = next(e["host"] for e in lists[source] if HTTPS in e["ports"] and not e["host"].startswith("*."))
    record = next(item for item in names["records"] if item["name"].startswith(f"{model}.model."))
    private = ", ".join(sorted(address for address in record["addresses"] if ":" not in address))
    web, resolver = net.web[0], net.resolvers[0]
    outsider = neighbour(source)
    beside = table.load().hosts[outsider].interfaces[0].address4
    seen = straight(outsider, web)
    return [
        proxied(source, listed),
        proxied(source, internet.FORBIDDEN),
        proxied(source, web),
        Way(
            outsider,
            "directly",
            web,
            seen,
            "none: a host outside the perimeter" if seen == "200" else "",
            seen == "200",
        ),
        refused(source, "directly", web, web, lambda: straight(source, web)),
        resolved(source, record["name"], private, "admitted: private name"),
        resolved(application, record["name"], private, "admitted: private name"),
        resolved(application, listed, web, "admitted: forwarded for this host"),
        resolved(source, listed, "REFUSED", "name: resolver of the perimeter"),
        refused(
            source, "another resolver", resolver, f"{listed} at {resolver}", lambda: asked(source, resolver, listed)
        ),
        refused(source, "another resolver", beside, f"{listed} at {beside}", lambda: asked(source, beside, listed)),
    ]
