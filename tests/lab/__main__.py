"""`python3 -m tests.lab <verb>`: the targets of the Makefile."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from tests.lab import setup
from tests.lab.shell import LAB, LabError, lock

HELP = {
    "setup": "install what the lab needs on this machine",
    "up": "image, engine, weights and hosts",
    "down": "remove hosts and networks",
    "status": "hosts, images and caches",
    "shell": "SSH to a host",
    "clean": "remove every trace; with --caches the caches too",
    "build": "build the collection's tarball",
    "install": "build the collection and install it into .lab/collections",
    "prepare": "make what a site has before the collection comes",
    "converge": "install the collection and run its site playbook",
    "verify": "compare the expected reachability with the live one",
    "plan": "print the plan in words",
    "snapshot": "write down what the managed hosts hold",
    "untouched": "fail unless they hold what the snapshot says",
    "unchanged": "fail unless the site playbook in check mode finds nothing to do",
    "demo": "from nothing to the table of who gets an answer",
    "bench": "time and count the site playbook",
    "proof-safety": "prove that nothing opens and nobody is locked out, while all changes",
    "proof-boot": "boot a virtual machine in every way that may open it",
    "proof-gpu": "prove how the GPU driver comes, changes, is refused and is finished",
    "proof-dkms": "have DKMS build Debian's open GPU module for Debian's kernel",
    "bench-firewall": "time the packet filter with short and long allowlists",
    "bench-egress": "what a flood of refused requests from one host costs another",
    "molecule": "the molecule scenario, or the molecule command given",
    "test": "every check of the repository",
    "versions": "sanity and units under each ansible-core that is promised",
}
# Nothing is installed only to remove things.
WITHOUT_SETUP = {"down", "clean"}


def verbs(rest: list[str]) -> dict[str, Callable[[], object]]:
    """What each verb does with the rest of the command line. Needs the virtual environment."""
    from tests.lab import collection, lab, oracle

    def up() -> None:
        lab.up(with_engine="--no-engine" not in rest)
        collection.prepare()

    def converge() -> None:
        collection.install()
        collection.playbook("moat.inference.site", *rest)

    def demo() -> None:
        up()
        converge()
        collection.module("tests.lab.demo")

    def proof() -> None:
        up()
        collection.module("tests.faults.proof", *rest)

    def proof_boot() -> None:
        collection.install()
        collection.module("tests.vm", *rest)

    def tested(*files: str) -> None:
        collection.install()
        collection.run("pytest", "-v", "-p", "no:cacheprovider", *(f"tests/faults/{name}" for name in files), *rest)

    def bench_firewall() -> None:
        collection.install()
        collection.module("tests.lab.bench_firewall", *rest)

    def bench_egress() -> None:
        collection.install()
        collection.module("tests.lab.bench_egress", *rest)

    def molecule() -> None:
        collection.install()
        collection.run("molecule", *(rest or ["test"]))

    return {
        "setup": lambda: None,
        "up": up,
        "down": lab.down,
        "status": lab.status,
        "shell": lambda: lab.shell(rest[0] if rest else "", rest[1:]),
        "clean": lambda: lab.clean(caches="--caches" in rest),
        "build": lambda: print(collection.build()),
        "install": collection.install,
        "prepare": collection.prepare,
        "converge": converge,
        "verify": lambda: collection.playbook("moat.inference.verify", *rest),
        "plan": lambda: collection.playbook("moat.inference.plan", *rest),
        "snapshot": oracle.take,
        "untouched": oracle.compare,
        "unchanged": oracle.unchanged,
        "demo": demo,
        "bench": lambda: collection.module("tests.lab.bench", *rest),
        "proof-safety": proof,
        "proof-boot": proof_boot,
        "proof-gpu": lambda: tested("test_gpu_driver.py", "proof_gpu_driver.py", "proof_gpu_playbook.py"),
        "proof-dkms": lambda: tested("proof_gpu_dkms.py"),
        "bench-firewall": bench_firewall,
        "bench-egress": bench_egress,
        "molecule": molecule,
        "test": lambda: collection.module("tests.checks", *rest),
        "versions": lambda: collection.module("tests.checks.versions", *rest),
    }


def main() -> int:
    os.umask(0o022)
    listing = "\n".join(f"  {verb:<12} {text}" for verb, text in HELP.items())
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.lab", epilog=listing, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=HELP, metavar="verb")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="options of the verb")
    options = parser.parse_args()
    try:
        if options.verb not in WITHOUT_SETUP:
            with lock(LAB / "setup.lock"):
                setup.setup()
            if options.verb != "setup" and sys.prefix != str(setup.VENV):
                python = str(setup.venv_python())
                os.execv(python, [python, "-m", "tests.lab", *sys.argv[1:]])
        verbs(options.rest)[options.verb]()
    except LabError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the next run takes it from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
