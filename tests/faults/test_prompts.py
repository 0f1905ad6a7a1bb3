"""Prompts are written nowhere: after a request with a canary text all that every host keeps is searched for it."""

from __future__ import annotations

import json
import secrets
import shlex
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab import demo, site, table
from tests.lab.site import on

# What a host keeps: every file of every file system but the kernel's own and the read-only engine, journals (which are
# compressed, so they are read as journals), and core dumps, which are files as well.
SEARCH = r"""
grep -rlFa -D skip --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev --exclude-dir=engine -e CANARY / 2>/dev/null
grep -rlFa -D skip -e CANARY /dev/shm 2>/dev/null
journalctl --no-pager -o json --all 2>/dev/null | grep -cF CANARY | sed '/^0$/d; s/^/journal lines: /'
for pid in $(pgrep -x haproxy; pgrep -f 'engine.sock'); do
  grep -rlFa -D skip -e CANARY /proc/$pid/root/tmp /proc/$pid/root/var/tmp 2>/dev/null
done
true
"""


def search(canary: str) -> dict[str, str]:
    """Where each host has the text."""
    hosts = list(table.load().hosts)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda host: on(host, SEARCH.replace("CANARY", canary), timeout=300).out.strip(), hosts)
    return {host: text for host, text in zip(hosts, found, strict=True) if text}


def ask(canary: str, *, broken: bool = False) -> str:
    """A request with the text in prompt, user and stop; or one that the engine must refuse, with the text all over it."""
    options, url = demo.connector()
    body = {
        "model": demo.MODEL,
        "messages": [{"role": "user", "content": f"keep this: {canary}"}],
        "max_tokens": 4,
        "user": canary,
        "stop": [canary],
    }
    if broken:
        body.update(temperature=canary, messages=[{"role": canary, "content": {"odd": canary}}])
    script = f"curl -sS -m 60 {options} -H 'Content-Type: application/json' -d @- -w '\\n%{{http_code}}' {url}"
    # by standard input, so that the command line of the test itself does not hold it
    return on(demo.APP, f"sudo -u {demo.USER} {script}", data=json.dumps(body).encode()).out.splitlines()[-1]


def test_a_prompt_is_written_nowhere() -> None:
    canary = f"canary-{secrets.token_hex(12)}"
    assert ask(canary) == "200"
    assert ask(canary, broken=True) == "400"
    assert not search(canary)


def test_a_crash_leaves_no_prompt_behind() -> None:
    canary = f"canary-{secrets.token_hex(12)}"
    assert ask(canary) == "200"
    on(demo.APP, "pkill -ABRT -u haproxy haproxy; sleep 1")
    on(demo.GATEWAY, "pkill -ABRT -u haproxy haproxy; sleep 1")
    assert not search(canary)
    for _try in range(10):
        if ask(f"{canary}-2") == "200":
            break
    else:
        pytest.fail("connector or gateway did not come back after a crash")


def test_the_search_finds_what_a_verbose_server_writes() -> None:
    """The positive control: the model's own unit and engine, told to log requests, on weights and socket of its own."""
    canary = f"canary-{secrets.token_hex(12)}"
    plan = next(item for item in site.plans()[demo.GATEWAY]["model_server"] if item["name"] == "notes-1b")
    launch = json.loads(on(demo.GATEWAY, "cat /etc/moat/models/notes-1b.json").out)
    words = [word for word in launch["command"] if word != "--no-enable-log-requests"]
    place = "/run/moat-verbose"
    words[words.index(plan["socket"])] = f"{place}/engine.sock"
    environment = {**launch["environment"], "VLLM_LOGGING_LEVEL": "DEBUG", "HOME": place, "VLLM_CACHE_ROOT": place}
    del environment["VLLM_LOGGING_CONFIG_PATH"]  # with which the role keeps the loggers that see text silent
    settings = " ".join(f"--setenv={key}={shlex.quote(str(value))}" for key, value in environment.items())
    command = " ".join(shlex.quote(word) for word in [*words, "--enable-log-requests"])
    unit = f"systemd-run --quiet --collect --unit=moat-verbose -p PrivateNetwork=yes {settings} {command}"
    try:
        started = on(demo.GATEWAY, f"mkdir -p {place}; {unit}")
        assert started.code == 0, started.err
        body = json.dumps({"model": "notes-1b", "prompt": canary, "max_tokens": 2})
        ready = f"curl -sS -m 60 --unix-socket {place}/engine.sock -H 'Content-Type: application/json'"
        wait = f"for n in $(seq 150); do [ -S {place}/engine.sock ] && curl -sf -m 5 --unix-socket {place}/engine.sock http://m/health && break; sleep 1; done"
        on(demo.GATEWAY, wait, timeout=200)
        answer = on(demo.GATEWAY, f"{ready} -d @- http://m/v1/completions", data=body.encode())
        assert "choices" in answer.out, answer.out + answer.err
        assert demo.GATEWAY in search(canary)
    finally:
        on(demo.GATEWAY, f"systemctl stop moat-verbose; rm -rf {place}")
