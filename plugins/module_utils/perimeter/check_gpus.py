# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks of the GPUs of models: no two models of a host get one GPU unless both say so."""

from __future__ import annotations

from ansible_collections.moat.inference.plugins.module_utils import model_gpus
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import Absent, Faults, suggest
from ansible_collections.moat.inference.plugins.module_utils.perimeter.model import Intent, Model
from ansible_collections.moat.inference.plugins.module_utils.perimeter.read import ROOT
from ansible_collections.moat.inference.plugins.module_utils.perimeter.read_gpus import EVERY, gpus_of


def check(intent: Intent, faults: Faults) -> None:
    """What needs more than one model or host to judge."""
    owners: dict[str, tuple[str, str]] = {}
    for model in intent.models.values():
        _check_hosts(model, faults)
        for host in model.hosts:
            for name, path in gpus_of(model, host).items():
                if model_gpus.NUMBER.match(name):
                    continue
                owner, first = owners.setdefault(name, (host, path))
                if owner != host:
                    problem = f"is a GPU of {owner}, where {first} has it, and cannot be one of {host} too"
                    faults.add(path, name, problem, f"write the GPUs by host, such as gpus: {{{host}: [...]}}")
    _check_clashes(intent, faults)


def _check_hosts(model: Model, faults: Faults) -> None:
    path = f"{ROOT}.models.{model.name}.gpus"
    if model.gpus is None or EVERY in model.gpus or not model.hosts:
        return
    for host in model.gpus:
        if host not in model.hosts:
            faults.add(f"{path}.{host}", Absent, f"is no host of model {model.name}", suggest(host, model.hosts))
    for host in model.hosts:
        if host not in model.gpus:
            faults.add(path, host, "serves the model and has no GPUs here", f"add {host}: [0], or take it from hosts")


def _check_clashes(intent: Intent, faults: Faults) -> None:
    """One fault for each pair of models, at the later one, however many hosts they meet on."""
    told: set[tuple[str, str]] = set()
    hosts: dict[str, list[Model]] = {}
    for model in intent.models.values():
        for host in model.hosts:
            # A list that was refused is at fault already, and what follows from it is not judged.
            if model.gpus is None or gpus_of(model, host):
                hosts.setdefault(host, []).append(model)
    for host, models in hosts.items():
        # Without any GPU named the engines may be built for the CPU; the role, which knows, refuses two that are not.
        if not any(gpus_of(model, host) for model in models):
            continue
        listed = [{"gpus": list(gpus_of(model, host)), "shared": model.shared} for model in models]
        for first, second, gpu in model_gpus.clashes(listed):
            one, other = models[first].name, models[second].name
            if (one, other) in told:
                continue
            told.add((one, other))
            path = gpus_of(models[second], host).get(gpu, f"{ROOT}.models.{other}.gpus")
            problem = f"is given to model {one} on {host} too"
            remedy = "give each model GPUs of its own, or write shared: true in both"
            faults.add(path, gpu, problem, remedy)
