"""`python3 -m tests.lab <verb>`: the targets of the Makefile."""

from __future__ import annotations

import argparse
import os
import sys

from tests.lab import setup
from tests.lab.shell import LabError, lock, LAB


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("setup", help="install what the lab needs on this machine")
    up = verbs.add_parser("up", help="image, engine, weights and hosts")
    up.add_argument("--no-engine", action="store_true", help="hosts without the model engine")
    verbs.add_parser("down", help="remove hosts and networks")
    verbs.add_parser("status", help="hosts, images and caches")
    shell = verbs.add_parser("shell", help="SSH to a host")
    shell.add_argument("host", nargs="?", default="")
    shell.add_argument("command", nargs=argparse.REMAINDER)
    clean = verbs.add_parser("clean", help="remove every trace")
    clean.add_argument("--caches", action="store_true")
    verbs.add_parser("build", help="build the collection's tarball")
    verbs.add_parser("install", help="build the collection and install it into .lab/collections")
    for name in ("prepare", "converge", "verify", "plan"):
        verbs.add_parser(name, help=f"run the {name} playbook").add_argument("options", nargs=argparse.REMAINDER)
    molecule = verbs.add_parser("molecule", help="the molecule scenario")
    molecule.add_argument("options", nargs=argparse.REMAINDER)
    return parser.parse_args(arguments)


def act(options: argparse.Namespace) -> None:
    from tests.lab import collection, lab

    match options.verb:
        case "up":
            lab.up(with_engine=not options.no_engine)
        case "down":
            lab.down()
        case "status":
            lab.status()
        case "shell":
            lab.shell(options.host, options.command)
        case "clean":
            lab.clean(caches=options.caches)
        case "build":
            print(collection.build())
        case "install":
            collection.install()
        case "prepare":
            collection.playbook("tests/lab/prepare.yml", *options.options)
        case "converge":
            collection.playbook("moat.inference.site", *options.options)
        case "verify" | "plan":
            collection.playbook(f"moat.inference.{options.verb}", *options.options)
        case "molecule":
            collection.run("molecule", *(options.options or ["test"]))


def main() -> int:
    os.umask(0o022)
    options = parse(sys.argv[1:])
    try:
        with lock(LAB / "setup.lock"):
            setup.setup()
        if options.verb == "setup":
            return 0
        if sys.prefix != str(setup.VENV):
            os.execv(setup.venv_python(), [str(setup.venv_python()), "-m", "tests.lab", *sys.argv[1:]])
        act(options)
    except LabError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the next run takes it from here", file=sys.stderr)
        return 130
    return 0


sys.exit(main())
