# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads the GPUs of a model. What needs more than one model or host to judge is in check_gpus.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import model_gpus
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import Absent, Faults, kind
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Model
from ansible_collections.moat.inference.plugins.module_utils.perimeter.section import Section

EVERY = "*"  # the key of a list that holds for every host


def read_gpus(section: Section) -> dict[str, dict[str, str]] | None:
    """Host -> name of a GPU -> path at which it is written; a list alone stands for every host. None when nothing is written."""
    value = section.take("gpus")
    path = f"{section.path}.gpus"
    if value is None or section.faults.is_secret(path):
        return None
    if not isinstance(value, dict):
        return {EVERY: read_list(section.faults, path, value)}
    if not value:
        section.faults.add(path, Absent, "is an empty map", "name the GPUs of each host, or remove it")
        return None
    return {str(host): read_list(section.faults, f"{path}.{host}", value[host]) for host in sorted(value, key=str)}


def read_list(faults: Faults, path: str, value: Any) -> dict[str, str]:
    """The GPUs of one host, each with its path."""
    found: dict[str, str] = {}
    if not isinstance(value, (list, tuple)):
        faults.add(path, value, f"is {kind(value)}, not a list", "write a list, such as [0, 1]")
        return found
    if not value:
        faults.add(path, Absent, "is an empty list", "name its GPUs, or remove it")
    for index, item in enumerate(value):
        here = f"{path}[{index}]"
        number = isinstance(item, int) and not isinstance(item, bool)
        if not (number or isinstance(item, str)) or not model_gpus.is_name(str(item)):
            faults.add(here, item, "names no GPU", f"name it {model_gpus.NAMES}")
        elif str(item) in found:
            faults.add(here, item, "is there twice", "remove one of the two")
        else:
            found[str(item)] = here
    fault = model_gpus.list_fault(list(found))
    if fault:
        problem, _separator, remedy = fault.partition("; ")
        faults.add(path, Absent, problem, remedy)
    return found


def gpus_of(model: Model, host: str) -> dict[str, str]:
    """What the intent gives a model on a host, each with its path; nothing when it names none."""
    named = model.gpus or {}
    return named[EVERY] if EVERY in named else named.get(host, {})
