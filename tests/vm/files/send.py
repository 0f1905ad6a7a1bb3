"""In the intruder's namespace: datagrams to addresses behind a hardware address."""

import socket
import subprocess
import sys
import time

for address in sys.argv[2:]:
    subprocess.run(
        ["ip", "neigh", "replace", address, "lladdr", sys.argv[1], "nud", "permanent", "dev", "eth0"], check=True
    )
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _try in range(10):
            probe.sendto(b"moat", (address, 7))
            time.sleep(0.2)
time.sleep(1)
