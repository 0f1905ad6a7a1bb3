"""The model servers as the gateway, other users and somebody with the disk see them."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Callable
from typing import Any

At = Callable[[str], Any]


def serving(plan: Any) -> list[tuple[str, dict[str, Any]]]:
    """(host, model) of every model server."""
    pairs = [(name, model) for name in sorted(plan.hosts) for model in plan.host(name).get("model_server", ())]
    assert pairs, "no host of the perimeter serves a model"
    return pairs


def script(host: Any, text: str) -> Any:
    return host.run("sh -euc %s", text)


def ask(socket: str, path: str, body: str) -> str:
    """A command that prints the answer's body, then its status on a line of its own."""
    return (
        f"curl -s -m 30 -w '\\n%{{http_code}}\\n' --unix-socket {socket} -H 'Content-Type: application/json' "
        f"-d {shlex.quote(body)} http://localhost{path}"
    )


def test_every_model_completes_over_its_socket(at: At, plan: Any) -> None:
    for name, model in serving(plan):
        body = json.dumps({"model": model["name"], "prompt": "hello", "max_tokens": 3})
        answer, status = at(name).run(ask(model["socket"], "/v1/completions", body)).stdout.strip().rsplit("\n", 1)
        assert status == "200", (name, model["name"], answer)
        assert json.loads(answer)["usage"]["completion_tokens"] >= 1


def test_the_engine_has_no_network_and_listens_nowhere_else(at: At, plan: Any) -> None:
    for name, model in serving(plan):
        found = script(
            at(name),
            f"""
            unit=moat-model@{model["name"]}.service
            pid=$(systemctl show -p MainPID --value "$unit")
            pids=$(grep -l "/$unit" /proc/[0-9]*/cgroup 2>/dev/null | cut -d/ -f3)
            [ "$(echo $pids | wc -w)" -ge 2 ]
            for each in $pids; do [ "$(readlink /proc/$each/ns/net)" != "$(readlink /proc/1/ns/net)" ]; done
            echo "inside: $(nsenter -t "$pid" -n ip -o link | cut -d: -f2 | xargs)"
            echo "outside: $(ip -o link | cut -d: -f2 | xargs)"
            if ss -Hlntup | grep -E 'pid=('"$(echo $pids | tr ' ' '|')"'),'; then exit 9; fi
            ss -Hlntup | grep -q sshd
            nsenter -t "$pid" -n ss -Hlx | grep -qF {model["socket"]}
            # no way out by a neighbour's socket either
            echo "sockets inside: $(nsenter -t "$pid" -m find /run -type s | xargs)"
            echo "sockets outside: $(find /run -type s -perm -o+w | xargs)"
            """,
        )
        assert found.rc == 0, found.stdout + found.stderr
        lines = dict(line.split(": ", 1) for line in found.stdout.splitlines())
        assert lines["inside"] == "lo"
        assert len(lines["outside"].split()) > 1  # the same look sees an interface where there is one
        assert lines["sockets inside"] == model["socket"]
        assert "/run/systemd/journal/stdout" in lines["sockets outside"].split()


def test_only_members_of_the_group_may_connect(at: At, plan: Any) -> None:
    name, model = serving(plan)[0]
    others = [other["name"] for host, other in serving(plan) if host == name and other["name"] != model["name"]]
    curl = f"curl -s -m 10 -o /dev/null -w '%{{http_code}} ' --unix-socket {model['socket']} http://localhost/v1/models"
    probes = [f"setpriv --reuid nobody --regid nogroup --groups moat-gateway {curl}"]
    probes += [f"setpriv --reuid nobody --regid nogroup --clear-groups {curl}"]
    probes += [f"setpriv --reuid moat-model-{o} --regid moat-model-{o} --clear-groups {curl}" for o in others]
    found = at(name).run("; ".join(f"{probe} || true" for probe in probes))
    assert found.stdout.split() == ["200"] + ["000"] * (len(probes) - 1), found.stdout + found.stderr


def test_the_sandbox_holds(at: At, plan: Any) -> None:
    name, model = serving(plan)[0]
    unit = f"moat-model@{model['name']}.service"
    found = script(
        at(name),
        f"""
        systemd-analyze security --no-pager --threshold=20 {unit} >/dev/null
        if systemd-analyze security --no-pager --threshold=20 ssh.service >/dev/null; then exit 8; fi
        pid=$(systemctl show -p MainPID --value {unit})
        grep -E '^Max core file size +0 +0 ' /proc/$pid/limits
        grep -E '^(CapEff|CapBnd):.0+$' /proc/$pid/status
        grep -E '^NoNewPrivs:.1$' /proc/$pid/status
        [ "$(stat -c %U /proc/$pid)" != root ]
        for place in {model["source"]} /opt/moat/engine /usr/local/lib/moat /etc /var/lib; do
          if nsenter -t $pid -m touch $place/moat-x 2>/dev/null; then exit 9; fi
        done
        nsenter -t $pid -m touch /run/moat-model/{model["name"]}/x && rm /run/moat-model/{model["name"]}/x
        """,
    )
    assert found.rc == 0, found.stdout + found.stderr


def test_changed_weights_stop_the_next_start(at: At, plan: Any) -> None:
    """On a copy of unit, settings and weights, whose engine only sleeps: starting the real one takes too long."""
    name, model = serving(plan)[0]
    own, copy = model["name"], f"copy-{uuid.uuid4().hex[:8]}"
    change = (
        "import json, sys; s = json.load(open(sys.argv[1])); "
        f"s.update(source='/srv/models/{copy}', socket='/run/moat-model/{own}/{copy}.sock', command=['/bin/sleep', '600']); "
        "json.dump(s, open(sys.argv[2], 'w'))"
    )
    found = script(
        at(name),
        f"""
        unit=moat-{copy}.service
        trap 'systemctl stop $unit; systemctl reset-failed $unit 2>/dev/null; rm -rf /srv/models/{copy} /etc/moat/models/{copy}.json \
          /run/systemd/system/$unit; systemctl daemon-reload' EXIT
        cp -a {model["source"]} /srv/models/{copy}
        python3 -c {shlex.quote(change)} /etc/moat/models/{own}.json /etc/moat/models/{copy}.json
        sed 's#/etc/moat/models/{own}.json#/etc/moat/models/{copy}.json#; s#^ReadOnlyPaths=.*#ReadOnlyPaths=/srv/models/{copy}#' \
          /etc/systemd/system/moat-model@{own}.service > /run/systemd/system/$unit
        systemctl daemon-reload
        systemctl start $unit
        for try in 1 2 3 4 5 6 7 8 9 10; do
          [ "$(cat /proc/$(systemctl show -p MainPID --value $unit)/comm)" = sleep ] && break; sleep 0.3
        done
        echo "whole: $(systemctl is-active $unit)"
        systemctl stop $unit
        file=$(ls /srv/models/{copy}/*.safetensors | head -1)
        printf X | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") - 1)) conv=notrunc status=none
        systemctl start $unit || true
        for try in 1 2 3 4 5 6 7 8 9 10; do systemctl -q is-failed $unit && break; sleep 0.3; done
        systemctl show -p Result,ExecMainStatus,NRestarts $unit
        journalctl -b -u $unit -o cat --no-pager | grep 'weights refused'
        """,
    )
    assert found.rc == 0, found.stdout + found.stderr
    assert "whole: active" in found.stdout
    for part in ("Result=exit-code", "ExecMainStatus=78", "NRestarts=0"):
        assert part in found.stdout
    assert ".safetensors has another content than the manifest says; restore it" in found.stdout


def test_no_request_leaves_its_text_on_the_host(at: At, plan: Any) -> None:
    """Good and malformed requests; the same search finds a word that was put into the journal and into a file."""
    name, model = serving(plan)[0]
    own, word, control = model["name"], f"canary{uuid.uuid4().hex}", f"control{uuid.uuid4().hex}"
    chat = {"model": own, "messages": [{"role": "user", "content": word}]}
    completion = {"model": own, "prompt": word, "max_tokens": 2}
    requests = [
        ("/v1/completions", completion, "200"),
        ("/v1/chat/completions", {**chat, "max_tokens": 2}, "200"),
        ("/v1/completions", {**completion, "stream": True}, "200"),
        ("/v1/chat/completions", {**chat, "model": word}, "404"),
        ("/v1/completions", {**completion, "max_tokens": word, "prompt": {word: 1}}, "400"),
        ("/v1/completions", {**completion, "prompt": "a" * 9000 + word}, "400"),
        ("/v1/completions", {**completion, "structured_outputs": {"regex": f"({word}["}}, "400"),
        ("/v1/chat/completions", {**chat, "chat_template": f"{{{{ {word}"}, "400"),
        (
            "/v1/chat/completions",
            {"model": own, word: 1, "messages": [{"role": "system", "content": [{"type": word}]}]},
            "400",
        ),
        (f"/v1/{word}", chat, "404"),
    ]
    commands = [f"{ask(model['socket'], path, json.dumps(body))} | tail -1" for path, body, _status in requests]
    commands.append(
        ask(model["socket"], "/v1/completions", f'{{"model": "{own}", "prompt": "{word}" broken') + " | tail -1"
    )
    found = at(name).run("; ".join(commands))
    assert found.stdout.split() == [status for _path, _body, status in requests] + ["400"]
    places = f"/var/log /tmp /var/tmp /var/cache /var/lib/systemd /var/crash /run /dev/shm /etc/moat /srv /root {model['source']}"
    search = (
        "sleep 1; journalctl --sync; for word in {words}; do echo $word "
        "journal=$(journalctl -a --no-pager -o cat | grep -c -- $word) "
        f"files=$(grep -rlasF --exclude-dir=systemd-cgroup -- $word {places} 2>/dev/null | grep -v '^/run/log/journal\\|^/var/log/journal' | wc -l); done"
    )
    put = f"logger {control}; echo {control} > /var/tmp/moat-control; {search.format(words=f'{word} {control}')}; rm /var/tmp/moat-control"
    found = script(at(name), f"set +e; {put}")
    lines = [line.split() for line in found.stdout.splitlines()]
    assert lines == [[word, "journal=0", "files=0"], [control, "journal=1", "files=1"]], found.stdout + found.stderr
