"""A GPU host dies under load and boots again: no request that had not started is lost, and it comes back closed and serving."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.faults import moments, prober, run
from tests.lab import demo
from tests.lab.podman import Podman
from tests.lab.site import on

REQUESTS, WORKERS, PAUSE = 160, 2, 0.15  # about ten a second: one host alone may serve them within the client's limits
UPLOADS, SENDING, GO = 6, "/run/lock/moat-uploads", "/run/lock/moat-uploads.go"
# seconds: a dead host's connection ends 15 s after what it did not acknowledge (tcp-ut); the rest is for a busy machine
ENDED, TOO_LONG = 30, 45
# Each sends more than a buffer holds, so that its request has left for a host, and the rest when that host may be dead.
UPLOAD = f"""
import os, socket, sys, threading, time
def upload(path):
    body = b'{{"prompt": "' + b"x" * 200000 + b'"}}'
    head = "POST /{demo.MODEL}/v1/completions HTTP/1.1\\r\\nHost: moat\\r\\nContent-Type: application/json\\r\\n"
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout({TOO_LONG})
        stream.connect(sys.argv[1])
        stream.sendall(head.encode() + b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body[:-9000])
        os.mkdir(path)
        while not os.path.exists("{GO}"):
            time.sleep(0.05)
        began = time.monotonic()
        try:
            stream.sendall(body[-9000:])
            answer = stream.recv(64).split()
            status = answer[1].decode() if answer else "closed"
        except TimeoutError:
            status = "silence"
        except OSError:
            status = "closed"
    print(status, time.monotonic() - began, flush=True)
for number in range({UPLOADS}):
    threading.Thread(target=upload, args=(f"{SENDING}/{{number}}",)).start()
"""


def load() -> Counter[str]:
    """Requests of the client through its connector, by status; what curl says of those without one is in the key."""
    options, url = demo.connector()
    request = demo.curl(url, options=options).replace('"max_tokens": 24', '"max_tokens": 2')
    one = f"sleep {PAUSE}; {request} -o /dev/null 2>&1"
    script = f"seq {REQUESTS} | xargs -P {WORKERS} -I @@ sh -c {shlex.quote(one)}"
    said = on(demo.APP, f"sudo -u {demo.USER} {script}", timeout=300).out
    return Counter(line if line.startswith(("000", "curl")) else line.split()[0] for line in said.splitlines() if line)


def uploads() -> list[tuple[str, float]]:
    """How requests ended that were on their way to a host when it died: the status, and the seconds after that."""
    socket = demo.connector()[0].split()[-1]
    prepare = f"rm -rf {SENDING} {GO}; install -d -o {demo.USER} {SENDING}"
    script = f"{prepare}; sudo -u {demo.USER} timeout {2 * TOO_LONG} python3 - {socket}"
    said = on(demo.APP, script, data=UPLOAD.encode(), timeout=120).out
    on(demo.APP, f"rm -rf {SENDING} {GO}")
    return [(status, float(seconds)) for status, seconds in map(str.split, said.splitlines())]


def test_a_dead_host_costs_no_request_and_comes_back_closed() -> None:
    backend = Podman()
    with prober.probing() as watching:
        with ThreadPoolExecutor(2) as pool:
            loading = pool.submit(load)
            uploading = pool.submit(uploads)
            time.sleep(4)
            on(demo.APP, f"until [ $(ls {SENDING} | wc -l) = {UPLOADS} ]; do sleep 0.1; done", timeout=20)
            backend.kill("gpu2")
            on(demo.APP, f"touch {GO}")
            statuses, ends = loading.result(), uploading.result()
        backend.start("gpu2")
        moments.boots("gpu2")
        watching.asked("gpu2")
        ended = run.play("moat.inference.site", "--limit", "gpu2")
        watching.stop()
    assert statuses == {"200": REQUESTS}
    assert len(ends) == UPLOADS
    assert all(status != "silence" and seconds < ENDED for status, seconds in ends), ends
    assert "502" in {status for status, _seconds in ends}, f"no request was on its way to the host that died: {ends}"
    assert ended.rc == 0, ended.out[-4000:]
    assert not any(ended.counts("changed").values()), "a host that booted needs nothing\n" + ended.out[-4000:]
    assert not watching.wrong, watching.wrong[:20]
    verified = run.play("moat.inference.verify")
    assert verified.rc == 0, verified.out[-4000:]
