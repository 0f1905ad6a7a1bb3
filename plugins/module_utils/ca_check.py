# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Judge a configuration of step-ca before it is put in place; a program of its own on the authority's host.

step-ca has no option for it: here step loads the whole authority from a copy without a database, makes a token and throws it away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile


def command(config: str, directory: str, subject: str) -> list[str]:
    """Return the command that loads an authority."""
    provisioner = os.path.join(directory, "pki", "provisioner")
    return [
        *["/usr/local/bin/step", "ca", "token", "--offline", "--ca-config", config, "--issuer", "moat"],
        *["--key", os.path.join(provisioner, "private.json")],
        *["--provisioner-password-file", os.path.join(provisioner, "password")],
        *["--password-file", os.path.join(directory, "pki", "intermediate_password")],
        *["--root", os.path.join(directory, "pki", "root_ca.crt"), "--", subject],
    ]


def main(path: str, directory: str) -> int:
    """Return 0 when the configuration loads; say why it does not otherwise."""
    with open(path, encoding="utf-8") as handle:
        config = json.load(handle)
    config.pop("db", None)
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as copy:
        json.dump(config, copy)
        copy.flush()
        done = subprocess.run(
            command(copy.name, directory, config["dnsNames"][0]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
            check=False,
        )
    sys.stderr.buffer.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2]))
