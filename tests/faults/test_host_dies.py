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


def load() -> Counter[str]:
    """Requests of the client through its connector, by status."""
    options, url = demo.connector()
    request = demo.curl(url, options=options).replace('"max_tokens": 24', '"max_tokens": 2')
    one = f"sleep {PAUSE}; {request} -o /dev/null"
    script = f"seq {REQUESTS} | xargs -P {WORKERS} -I @@ sh -c {shlex.quote(one)}"
    said = on(demo.APP, f"sudo -u {demo.USER} {script}", timeout=300).out
    return Counter(line.split()[0] for line in said.splitlines() if line.strip())


def test_a_dead_host_costs_no_request_and_comes_back_closed() -> None:
    backend = Podman()
    with prober.probing() as watching:
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(load)
            time.sleep(4)
            backend.kill("gpu2")
            statuses = loading.result()
        backend.start("gpu2")
        moments.boots("gpu2")
        watching.asked("gpu2")
        ended = run.play("moat.inference.site", "--limit", "gpu2")
        watching.stop()
    assert statuses == {"200": REQUESTS}
    assert ended.rc == 0, ended.out[-4000:]
    assert not any(ended.counts("changed").values()), "a host that booted needs nothing\n" + ended.out[-4000:]
    assert not watching.wrong, watching.wrong[:20]
    verified = run.play("moat.inference.verify")
    assert verified.rc == 0, verified.out[-4000:]
