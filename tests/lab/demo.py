"""Who gets an answer and who does not, and which ways out are open, as two tables: `make demo` ends with them."""

from __future__ import annotations

import json
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.lab import demo_ways, lab, site, table
from tests.lab.shell import LabError, say
from tests.lab.site import Answer, on

CLIENT, MODEL, APP, USER, GATEWAY = "portal", "xray-7b", "app1", "portal", "gpu1"
WAIT = 3  # seconds; a packet that is dropped is never answered
THEFT = "/run/moat-demo"  # in memory, removed at the end
IDENTITIES = {"other CA": "other", "none": "", "app1's own, copied": "stolen"}
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 24}
OTHER_CA = f"""umask 077; mkdir -p {THEFT}; cd {THEFT}
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN={CLIENT} -keyout other.key -out other.crt
"""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    source: str
    way: str
    identity: str
    result: str
    layer: str
    good: bool

    def cells(self) -> tuple[str, ...]:
        return ("ok" if self.good else "WRONG", self.source, self.way, self.identity, self.result, self.layer)


def curl(url: str, *, stream: bool = False, options: str = "") -> str:
    """The command line of the request that everybody makes."""
    body = shlex.quote(json.dumps({**BODY, "stream": stream}))
    form = "%{http_code} %{time_total}" if not stream else "%{http_code} %{time_starttransfer} %{time_total}"
    return (
        f"curl -sS -N -m 60 --connect-timeout {WAIT} {options} -H 'Content-Type: application/json' -d {body} "
        f"-w '\\n{form}\\n' {url}"
    )


def connector() -> tuple[str, str]:
    """Options and URL of the connector of the client."""
    entry = next(item for item in site.plans()[APP]["connector"] if item["name"] == CLIENT)
    return f"--unix-socket {entry['socket']}", f"http://moat/{MODEL}/v1/chat/completions"


def allowed() -> list[Row]:
    options, url = connector()
    plain = on(APP, f"sudo -u {USER} {curl(url, options=options)}", timeout=90)
    streamed = on(APP, f"sudo -u {USER} {curl(url, stream=True, options=options)}", timeout=90)
    identity = "its own"
    return [completion(plain, identity), stream(streamed, identity), by_name(identity), *backends()]


def by_name(identity: str) -> Row:
    """The gateway itself, found and verified by the model's private name; only root may read the certificate of a client."""
    entry = next(item for item in site.plans()[APP]["connector"] if item["name"] == CLIENT)
    backend = entry["models"][0]["backends"][0]
    port, domain = backend["port"], backend["server_name"].partition(".gateway.")[2]
    folder, name = f"/etc/moat/tls/{entry['certificate']}", f"{MODEL}.model.{domain}"
    options = f"--noproxy '*' --cacert {folder}/root.pem --cert {folder}/cert.pem --key {folder}/key.pem"
    form = "%{http_code} %{remote_ip}"
    answer = on(APP, f"curl -sS -o /dev/null -m 20 {options} -w '{form}' https://{name}:{port}/{MODEL}/v1/models")
    good = answer.out.startswith("200 ")
    return Row(APP, name, identity, answer.out if good else answer.err.strip()[-60:], "admitted", good)


def backends() -> list[Row]:
    """What the connector dials, by its own account."""
    text = on(APP, "echo show servers state | nc -NU /run/moat-connector/admin.sock").out
    found = {words[3]: words for line in text.splitlines() if len(words := line.split()) > 17}
    rows = []
    for backend in next(item for item in site.plans()[APP]["connector"] if item["name"] == CLIENT)["models"][0][
        "backends"
    ]:
        words = found.get(backend["name"], [""] * 18)
        good = (words[17], words[4]) == (backend["server_name"], backend["addresses"][0])
        rows.append(Row(APP, "connector's own look-up", words[17], words[4], "admitted", good))
    return rows


def completion(answer: Answer, identity: str) -> Row:
    lines = answer.out.rstrip().splitlines()
    text, result = "", (answer.err or answer.out).strip()[-60:]
    if len(lines) >= 2 and lines[-1].startswith("200 "):
        text = json.loads("\n".join(lines[:-1]))["choices"][0]["message"]["content"]
        result = f"200: {text.strip()[:28]!r} in {float(lines[-1].split()[1]):.2f} s"
    return Row(APP, "connector", identity, result, "admitted", bool(text))


def stream(answer: Answer, identity: str) -> Row:
    events = [line for line in answer.out.splitlines() if line.startswith("data: {")]
    lines = answer.out.rstrip().splitlines()
    good = "data: [DONE]" in answer.out and len(events) > 2 and lines[-1].startswith("200 ")
    result = (answer.err or answer.out).strip()[-60:]
    if good:
        _code, first, total = lines[-1].split()
        result = f"200: {len(events)} events, the first after {float(first):.2f} s, all after {float(total):.2f} s"
    return Row(APP, "connector, streamed", identity, result, "admitted", good)


def straight(source: str, address: str, identity: str) -> Answer:
    """The same request past the connector, at the gateway itself."""
    port = site.plans()[GATEWAY]["gateway"]["port"]
    kept = IDENTITIES[identity]
    options = f"-k --cert {THEFT}/{kept}.crt --key {THEFT}/{kept}.key" if kept else "-k"
    host = f"[{address}]" if ":" in address else address
    return on(source, curl(f"https://{host}:{port}/{MODEL}/v1/chat/completions", options=options))


def outcome(answer: Answer) -> str:
    """What the caller saw: an HTTP status, or why there was none."""
    status = (answer.out.rstrip().splitlines() or [""])[-1].split(" ")[0]
    if status.isdigit() and int(status):
        return status
    if answer.code == 28:
        return "no answer"
    if answer.code in (35, 55, 56):
        return "TLS alert"
    return "refused" if answer.code == 7 else f"curl {answer.code}"


def layer_of(seen: str, before: dict[str, int], after: dict[str, int], where: str, rule: str) -> str:
    """The layer that refused, from what it counted or logged itself; no evidence, no layer."""
    if seen == "no answer":
        moved = sorted(name for name in after if after[name] > before.get(name, 0))
        return f"packet: firewall of {where}, {', '.join(moved)}" if moved else ""
    if seen == "TLS alert":
        return f"identity: gateway of {where}, TLS"
    return f"request: gateway of {where}, {rule}" if seen == "403" and rule else ""


def outsider(source: str, address: str) -> list[Row]:
    """A host that may not: at the gateway with each identity."""
    where = source if source in site.plans() else GATEWAY
    before = site.denied(where)
    with ThreadPoolExecutor(len(IDENTITIES)) as pool:
        answers = list(pool.map(lambda identity: straight(source, address, identity), IDENTITIES))
    after = site.denied(where)
    rows = []
    for identity, answer in zip(IDENTITIES, answers, strict=True):
        seen = outcome(answer)
        layer = layer_of(seen, before, after, where, "")
        rows.append(Row(source, f"gateway {address}", identity, seen, layer or "NO EVIDENCE", bool(layer)))
    return rows


def peer(source: str, identity: str, address: str) -> Row:
    """A host that has a link to the gateway, so that only certificate and request are left to refuse it."""
    seen = outcome(straight(source, address, identity))
    rule = ""
    if seen == "403":
        entries = [item for item in site.gateway_log(GATEWAY) if str(item.get("rule", "")).startswith("deny")]
        rule = str(entries[-1]["rule"]) if entries else ""
    layer = layer_of(seen, {}, {}, GATEWAY, rule)
    return Row(source, f"gateway {address}", identity, seen, layer or "NO EVIDENCE", bool(layer))


def unlisted(source: str) -> Row:
    """An app host that is not on the list has no connector to call."""
    options, url = connector()
    answer = on(source, curl(url, options=options))
    good = answer.code == 7
    return Row(
        source, "connector", "-", "refused" if good else outcome(answer), "caller: no connector on this host", good
    )


def show() -> bool:
    """Make every request and print the table; True when all went as the plan says."""
    hosts = table.load().hosts.values()
    plan = site.plans()[GATEWAY]
    inner, outer = plan["gateway"]["addresses"][0], plan["firewall"]["segments"][0]["addresses"][0]
    outsiders = [host.name for host in hosts if host.probe]
    strangers = ["app2", *outsiders]
    thieves = [*strangers, "app3"]
    site.teach_router()
    say(
        "\nThe requests run on the hosts themselves; each row names the layer that says so by its own counter or log.\n"
    )
    try:
        stolen = on(APP, f"cd /etc/moat/tls/connector-{CLIENT} && cat cert.pem && echo ==== && cat key.pem").out
        certificate, _mark, key = stolen.partition("====\n")
        for host in [*thieves, APP]:
            on(host, OTHER_CA)
        for host in thieves:
            on(host, f"umask 077; cat > {THEFT}/stolen.crt", data=certificate.encode())
            on(host, f"umask 077; cat > {THEFT}/stolen.key", data=key.encode())
        rows = allowed()
        rows.append(unlisted("app2"))
        rows += [peer(APP, "other CA", inner), peer(APP, "none", inner), peer("app3", "app1's own, copied", inner)]
        for source in strangers:
            for address in dict.fromkeys((outer, inner) if source in outsiders else (inner,)):
                rows += outsider(source, address)
    finally:
        for host in [*thieves, APP]:
            on(host, f"rm -rf {THEFT}")
    lab.show(("", "from", "at", "certificate", "what came back", "by which layer"), [row.cells() for row in rows])
    ways = demo_ways.ways(GATEWAY, MODEL, APP)
    say("\nThe ways out, and those that are none:\n")
    lab.show(("", "from", "way", "to", "what came back", "by which layer"), [way.cells() for way in ways])
    good = [row.good for row in rows] + [way.good for way in ways]
    say(f"\n{sum(good)} of {len(good)} requests went as the plan says.")
    return all(good)


def main() -> int:
    try:
        return 0 if show() else 1
    except LabError as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
