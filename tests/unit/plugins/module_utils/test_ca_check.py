# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import subprocess

from ansible_collections.moat.inference.plugins.module_utils import ca_check


def test_the_check_loads_the_candidate_without_the_database_and_shows_no_token(tmp_path, monkeypatch, capfdbinary):
    seen = {}

    def run(argv, **options):
        with open(argv[argv.index("--ca-config") + 1], encoding="utf-8") as handle:
            seen.update(config=json.load(handle), stdout=options["stdout"], argv=argv)
        return subprocess.CompletedProcess(argv, 1, None, b"cannot parse\n")

    monkeypatch.setattr(subprocess, "run", run)
    candidate = tmp_path / "ca.json"
    candidate.write_text(json.dumps({"dnsNames": ["ca1.ca.inference.internal"], "db": {"type": "badgerv2"}}))
    assert ca_check.main(str(candidate), "/d") == 1
    assert "db" not in seen["config"] and seen["stdout"] == subprocess.DEVNULL
    assert seen["argv"][-2:] == ["--", "ca1.ca.inference.internal"]
    assert not [word for word in seen["argv"] if "password" in word and not word.startswith(("-", "/"))]
