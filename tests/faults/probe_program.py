"""Runs on a host of the lab: connects without pause until standard input ends, then prints what it saw as JSON."""

import json
import socket
import sys
import threading
import time

WAIT = 0.4


def watch(target, seen, stop):
    """Connect to one target again and again; a refusal or an answer is followed by a short rest."""
    family = socket.AF_INET6 if ":" in target["address"] else socket.AF_INET
    while not stop.is_set():
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(WAIT)
        begun = time.time()
        try:
            connection.connect((target["address"], target["port"]))
            seen["opened"].append(begun)
        except OSError:
            pass
        finally:
            connection.close()
        seen["tried"] += 1
        seen["gap"] = max(seen["gap"], begun - seen["last"])
        seen["last"] = begun
        stop.wait(0.05)


def main():
    targets = json.loads(sys.argv[1])
    stop = threading.Event()
    results = [{"opened": [], "tried": 0, "gap": 0.0, "last": time.time(), **target} for target in targets]
    threads = [threading.Thread(target=watch, args=(t, r, stop)) for t, r in zip(targets, results)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    for result in results:
        result["opened"] = len(result["opened"])
    print(json.dumps(results))


main()
