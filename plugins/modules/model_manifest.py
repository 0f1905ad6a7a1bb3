#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: model_manifest
short_description: Check the models of a host and keep the manifests of their weights
version_added: 0.1.0
description:
  - Refuses, all at once, engine arguments and environment that would open a model server or log prompts, and weights that
    somebody but root could change or that could run code when loaded.
  - Keeps one manifest per model, with SHA-256 and size of each file. A given manifest is written; without one the first
    deployment records what is there (trust on first use).
  - A recorded manifest is never replaced by itself. Contents are read when a manifest is recorded and, by the launcher of the
    model's unit, before every start; a run on an unchanged host compares names, sizes and modes only.
author:
  - moat.inference contributors (@moat-inference)
options:
  models:
    description: Models that the host serves.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the model; a DNS label (RFC 1035)., type: str, required: true}
      engine: {description: Engine that serves it., type: str, choices: [vllm], default: vllm}
      source: {description: Directory of the weights., type: path, required: true}
      engine_args: {description: Further arguments of the engine., type: list, elements: str, default: []}
      socket: {description: Path of the Unix socket., type: path, required: true}
      gpus:
        description: Names of its GPUs, of which only the form is checked here; M(moat.inference.model_gpus) finds them.
        type: list
        elements: str
        version_added: 0.4.0
      shared: {description: "As in M(moat.inference.model_gpus).", type: bool, default: false, version_added: 0.4.0}
  manifests:
    description: Text of a manifest by name of the model, in this module's format or as sha256sum(1) prints it.
    type: dict
    default: {}
  environment:
    description: Environment that the operator gives to the engines.
    type: dict
    default: {}
  directory:
    description: Directory of the manifests.
    type: path
    default: /etc/moat/models
  unit_directory:
    description: Directory of the units, searched for models that are no longer wanted.
    type: path
    default: /etc/systemd/system
attributes:
  check_mode:
    support: full
    description: Contents are read where a manifest would be recorded.
  diff_mode:
    support: full
    description: Shows the manifest before and after.
"""

EXAMPLES = r"""
- name: Keep the manifest of a model
  moat.inference.model_manifest:
    models:
      - name: xray-7b
        source: /srv/models/xray-7b
        socket: /run/moat-model/xray-7b/engine.sock
    manifests:
      xray-7b: "{{ lookup('ansible.builtin.file', 'xray-7b.sha256') }}"
"""

RETURN = r"""
models:
  description: For each model its name, user, manifest path, the manifest's own SHA-256 and its origin.
  type: list
  elements: dict
  returned: success
  sample:
    - {name: xray-7b, user: moat-model-xray-7b, manifest: /etc/moat/models/xray-7b.sha256, manifest_sha256: 0f3a, origin: recorded}
stale:
  description: Names of models that have a unit on the host and are no longer wanted.
  type: list
  elements: str
  returned: success
reason:
  description: Which manifests were recorded or replaced, and on whose word.
  type: list
  elements: str
  returned: success
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import files, model_manifest, model_server


def desired_manifest(model: dict[str, Any], given: str | None, present: files.FileState) -> tuple[str, str]:
    """Return text and origin of a model's manifest; raise ManifestError when the weights do not fit it."""
    source = model["source"]
    if given is not None:
        entries = model_manifest.parse(given)
        model_manifest.verify(source, entries, full=False)
        return model_manifest.render(entries), "given"
    if present.content is not None:
        text = present.content.decode("utf-8")
        model_manifest.verify(source, model_manifest.parse(text), full=False)
        return text, "present"
    return model_manifest.render(model_manifest.record(source)), "recorded"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "models": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "engine": {"type": "str", "choices": ["vllm"], "default": "vllm"},
                    "source": {"type": "path", "required": True},
                    "engine_args": {"type": "list", "elements": "str", "default": []},
                    "socket": {"type": "path", "required": True},
                    "gpus": {"type": "list", "elements": "str"},
                    "shared": {"type": "bool", "default": False},
                },
            },
            "manifests": {"type": "dict", "default": {}},
            "environment": {"type": "dict", "default": {}},
            "directory": {"type": "path", "default": "/etc/moat/models"},
            "unit_directory": {"type": "path", "default": "/etc/systemd/system"},
        },
        supports_check_mode=True,
    )
    params = module.params
    names = [model["name"] for model in params["models"]]
    faults = model_server.model_faults(params["models"], params["environment"])
    faults += [
        f"model_server_manifests.{name}: there is no such model; remove it"
        for name in sorted(set(params["manifests"]) - set(names))
    ]
    if faults:
        module.fail_json(msg="; ".join(faults))
    changes: list[tuple[str, files.FileState, files.FileState]] = []
    result: list[dict[str, str]] = []
    reason = []
    for model in params["models"]:
        path = os.path.join(params["directory"], model["name"] + ".sha256")
        before = files.read_state(path)
        try:
            text, origin = desired_manifest(model, params["manifests"].get(model["name"]), before)
        except (model_manifest.ManifestError, OSError, UnicodeDecodeError) as error:
            faults.append("{}: {}".format(model["name"], error))
            continue
        after = files.FileState("file", text.encode("utf-8"), 0o644, "root", "root")
        if before != after:
            changes.append((path, before, after))
            word = "trust on first use" if origin == "recorded" else origin
            reason.append("{}: manifest written ({})".format(model["name"], word))
        result.append(
            {
                "name": model["name"],
                "user": model_server.system_user(model["name"]),
                "manifest": path,
                "manifest_sha256": model_manifest.digest(text),
                "origin": origin,
            }
        )
    if faults:
        module.fail_json(msg="weights refused: " + "; ".join(faults))
    if changes and not module.check_mode:
        os.makedirs(params["directory"], mode=0o755, exist_ok=True)
        for path, _before, after in changes:
            files.write(path, after)
    present = os.listdir(params["unit_directory"]) if os.path.isdir(params["unit_directory"]) else []
    module.exit_json(
        changed=bool(changes),
        diff=[files.diff_entry(*change) for change in changes],
        models=result,
        stale=model_server.stale_units(present, names),
        reason=reason,
    )


if __name__ == "__main__":
    main()
