"""The runner, on real commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


@pytest.fixture
def runner() -> Iterator[Runner]:
    with patch_module_args({}):
        yield Runner(AnsibleModule(argument_spec={}))


def test_a_status_that_is_not_accepted_is_an_error(runner: Runner) -> None:
    with pytest.raises(CommandError, match="sh -c echo why >&2; exit 3 ended with status 3: why"):
        runner.run(["sh", "-c", "echo why >&2; exit 3"])
    assert runner.run(["sh", "-c", "exit 3"], ok=(0, 3)).rc == 3


def test_a_command_that_is_not_there_has_the_status_of_a_shell(runner: Runner) -> None:
    assert runner.run(["moat-no-such-command"], ok=(127,)).rc == 127
    assert runner.run(["sh", "-c", "exit 2"], ok=(2,)).rc == 2


def test_the_locale_is_fixed_and_input_arrives_as_it_is(runner: Runner) -> None:
    program = "import os, sys; print(os.environ['LC_ALL'], os.environ['X'], len(sys.stdin.buffer.read()))"
    result = runner.run([sys.executable, "-c", program], stdin="ä\n\n", env={"X": "y"})
    assert result.stdout == "C y 4\n"


def test_arguments_go_through_no_shell(runner: Runner) -> None:
    assert runner.run(["printf", "%s", "$HOME ; a*"]).stdout == "$HOME ; a*"
