# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import http.server
import json
import os
import shutil
import socketserver
import tempfile
import threading
from contextlib import contextmanager

import pytest
from ansible_collections.moat.inference.plugins.module_utils import model_ready

GOOD = json.dumps({"usage": {"completion_tokens": 1}})


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def serving(status, body, raw=None):
    """An HTTP server on a Unix socket; yields its path and what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["Content-Length"])
            asked.append((self.path, json.loads(self.rfile.read(length))))
            if raw is not None:
                self.wfile.write(raw)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def address_string(self):
            return "unix"

        def log_message(self, *arguments):
            pass

    folder = tempfile.mkdtemp()  # pytest's own directories are too long for a socket's path on some systems
    path = os.path.join(folder, "s")
    server = Server(path, Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield path, asked
    finally:
        server.shutdown()
        server.server_close()
        shutil.rmtree(folder)


def test_a_token_means_ready_and_exactly_one_is_asked_for():
    with serving(200, GOOD) as (path, asked):
        assert model_ready.probe(path, "m", 5) == ""
        assert model_ready.main([path, "m"]) == 0
    assert asked[0][0] == "/v1/completions"
    assert (asked[0][1]["model"], asked[0][1]["max_tokens"]) == ("m", 1)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, GOOD, "status 500"),
        (404, "{}", "status 404"),
        (503, "", "status 503"),
        (200, "garbage", "JSONDecodeError"),
        (200, "", "JSONDecodeError"),
        (200, "[]", "TypeError"),
        (200, "null", "TypeError"),
        (200, "{}", "KeyError"),
        (200, json.dumps({"usage": {"completion_tokens": 0}}), "no token"),
        (200, json.dumps({"usage": {"completion_tokens": "x"}}), "TypeError"),
    ],
)
def test_everything_else_says_why_not(status, body, said, capsys):
    with serving(status, body) as (path, _asked):
        assert said in model_ready.probe(path, "m", 5)
        assert model_ready.main([path, "m", "5"]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("raw", [b"", b"\x00\xff\n", b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{"])
def test_broken_answers_are_no_answers(raw):
    with serving(200, "", raw) as (path, _asked):
        assert model_ready.probe(path, "m", 2) != ""


def test_no_socket_and_silent_socket():
    folder = tempfile.mkdtemp()
    try:
        assert "FileNotFoundError" in model_ready.probe(os.path.join(folder, "none"), "m", 1)
        silent = socketserver.UnixStreamServer(os.path.join(folder, "s"), socketserver.BaseRequestHandler)
        assert "imeout" in model_ready.probe(os.path.join(folder, "s"), "m", 0.2)
        silent.server_close()
    finally:
        shutil.rmtree(folder)


def test_usage():
    assert model_ready.main([]) == 2


def test_the_lines_that_tell_are_found():
    journal = "loading\nValueError: too little memory\n  File x\nValueError: too little memory\nRuntimeError: see above\nbye\n"
    assert model_ready.telling_lines(journal) == ["ValueError: too little memory", "RuntimeError: see above"]
    assert model_ready.telling_lines("weights refused: x is missing\n") == ["weights refused: x is missing"]
    assert model_ready.telling_lines("GPUs refused: x is gone\n") == ["GPUs refused: x is gone"]
    assert model_ready.telling_lines("a\n\nb\n", most=1) == ["b"]
    assert model_ready.telling_lines("") == []


def test_units_are_read_in_the_order_asked():
    text = "ActiveState=active\nNRestarts=0\n\nNRestarts=3\nActiveState=activating\n"
    assert model_ready.parse_units(text, ["a", "b"]) == {"a": ("active", 0), "b": ("activating", 3)}
    assert model_ready.parse_units("", ["a"]) == {"a": ("", 0)}
