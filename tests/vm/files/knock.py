"""On the machine, in the peer's namespace: which of these ports answer, as JSON."""

import json
import socket
import sys


def answers(kind, address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as probe:
        probe.settimeout(4)
        try:
            probe.connect((address, int(port)))
            if kind == "udp":
                probe.send(b"moat")
                probe.recv(64)
        except TimeoutError:
            return False
        except OSError:
            return True  # a refusal is an answer
    return True


print(json.dumps({word: answers(*word.split("/")) for word in sys.argv[1:]}))
