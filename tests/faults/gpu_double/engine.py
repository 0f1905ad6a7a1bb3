#!/usr/bin/python3
"""Stands where vLLM for CUDA would, which does not start without a GPU: tells what it may open and gives one token when asked."""

import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler


def openable() -> list[str]:
    """Every NVIDIA node of this /dev that opens."""
    found = []
    for folder, _folders, names in os.walk("/dev"):
        for path in (os.path.join(folder, name) for name in names if name.startswith("nvidia")):
            os.close(os.open(path, os.O_RDONLY))
            found.append(path)
    return sorted(found)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        told = {
            "openable": openable(),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "order": os.environ.get("CUDA_DEVICE_ORDER"),
        }
        self.answer(told)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"usage": {"completion_tokens": 1}})

    def answer(self, told: dict) -> None:
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_arguments: object) -> None:
        """Say nothing: what it is asked is the test's."""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    Server(sys.argv[sys.argv.index("--uds") + 1], Handler).serve_forever()
