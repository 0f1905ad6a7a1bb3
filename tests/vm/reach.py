"""OpenSSH's ProxyCommand with ProxyUseFdpass: connect inside the namespace that this runs in, and hand the socket over."""

import socket
import sys

connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3]))
connection.settimeout(None)
channel = socket.socket(fileno=1)
socket.send_fds(channel, [b"\0"], [connection.fileno()])
