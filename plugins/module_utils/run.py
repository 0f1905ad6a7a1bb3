# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run commands for modules: argv lists only, C locale, secrets through standard input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class CommandError(Exception):
    """A command ended with a status that the caller did not accept."""

    def __init__(self, result: Result) -> None:
        self.result = result
        super().__init__(
            "{} ended with status {}: {}".format(
                " ".join(result.argv),
                result.rc,
                (result.stderr or result.stdout).strip(),
            )
        )


@dataclass(frozen=True)
class Result:
    """What a command returned."""

    argv: tuple[str, ...]
    rc: int
    stdout: str
    stderr: str


class Runner:
    """Runs argv lists through AnsibleModule.run_command, so that tests can replace it by a recorder."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def run(
        self,
        argv: Sequence[str],
        stdin: str | None = None,
        ok: Sequence[int] = (0,),
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> Result:
        """Run argv and return its Result; raise CommandError when the status is not in ok.

        stdin is text for standard input, the only way a secret may reach a command. As in a shell, a command that is
        not installed has the status 127, and one that cannot be run 126.
        """
        environment = {"LC_ALL": "C", "LANG": "C"}
        environment.update(env or {})
        try:
            rc, out, err = self._module.run_command(
                list(argv),
                data=stdin,
                binary_data=stdin is not None,
                environ_update=environment,
                cwd=cwd,
                expand_user_and_vars=False,
                handle_exceptions=False,
            )
        except FileNotFoundError as error:
            rc, out, err = 127, "", str(error)
        except OSError as error:
            rc, out, err = 126, "", str(error)
        result = Result(tuple(argv), rc, out, err)
        if rc not in ok:
            raise CommandError(result)
        return result
