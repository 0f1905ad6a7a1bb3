# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the model_server role may ask of an engine: names, sockets, arguments and environment, all faults at once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.moat.inference.plugins.module_utils import model_gpus

LABEL = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
# the unit file has it bare: no blank, quote, % or $
SOURCE = re.compile(r"^/(?:srv|var/lib|opt|mnt)(?:/[A-Za-z0-9._+@-]+)+/?\Z")
SOCKET = re.compile(r"^[A-Za-z0-9._/-]+\Z")
UNIT = re.compile(r"^moat-model@([a-z0-9-]+)\.service$")
ROLE_SETS = "the role sets it"
OPENS = "it would open the server"
LOGS = "it would write prompts or answers to the log"
RUNS = "it would run code from beside the weights"
UNVERIFIED = "it would load files that no manifest covers"
# argument of `vllm serve` 0.32 -> why an operator may not give it
ARGUMENTS = {
    "--uds": ROLE_SETS,
    "--model": ROLE_SETS,
    "--served-model-name": ROLE_SETS,
    "--shutdown-timeout": ROLE_SETS,
    "--disable-fastapi-docs": ROLE_SETS,
    "--host": OPENS,
    "--port": OPENS,
    "--grpc": OPENS,
    "--grpc-port": OPENS,
    "--kv-events-config": OPENS,
    "--enable-offline-docs": OPENS,
    "--enable-tokenizer-info-endpoint": OPENS,
    "--config": "it would hide arguments from this check",
    "--api-key": "it would show in the process list; the gateway authenticates",
    "--hf-token": "it would show in the process list, and there is no network",
    "--allowed-local-media-path": "it would let a request read files of the host",
    "--trust-request-chat-template": "it would let a request bring a template of its own",
    "--enable-log-requests": LOGS,
    "--enable-log-outputs": LOGS,
    "--enable-log-deltas": LOGS,
    "--log-error-stack": LOGS,
    "--log-config-file": LOGS,
    "--log-level": LOGS,
    "--logging-config": LOGS,
    "--uvicorn-log-level": LOGS,
    "--device-ids": "the intent's gpus decide",
    "--disable-uvicorn-access-log": ROLE_SETS,
    "--disable-access-log-for-endpoints": ROLE_SETS,
    "--otlp-traces-endpoint": LOGS,
    "--collect-detailed-traces": LOGS,
    "--profiler-config": LOGS,
    "--enable-trace-replay": LOGS,
    "--trust-remote-code": RUNS,
    "--tool-parser-plugin": RUNS,
    "--reasoning-parser-plugin": RUNS,
    "--io-processor-plugin": RUNS,
    "--logits-processors": RUNS,
    "--middleware": RUNS,
    "--model-class-overrides": RUNS,
    "--scheduler-cls": RUNS,
    "--worker-cls": RUNS,
    "--worker-extension-cls": RUNS,
    "--default-mm-loras": UNVERIFIED,
    "--hf-config-path": UNVERIFIED,
    "--lora-modules": UNVERIFIED,
    "--spec-model": UNVERIFIED,
    "--speculative-config": UNVERIFIED,
    "--tokenizer": UNVERIFIED,
}
# whole names that begin like a refused one
HARMLESS = frozenset({"--reasoning-parser"})
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": OPENS,
    "VLLM_ALLOW_INSECURE_SERIALIZATION": OPENS,
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": OPENS,
    "VLLM_API_KEY": "a secret does not belong into the environment; the gateway authenticates",
    "VLLM_LOGGING_LEVEL": LOGS,
    "VLLM_LOGGING_CONFIG_PATH": LOGS,
    "VLLM_CONFIGURE_LOGGING": LOGS,
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": LOGS,
    "VLLM_DEBUG_DUMP_PATH": LOGS,
    "VLLM_TRACE_FUNCTION": LOGS,
    "PYTHONOPTIMIZE": "vLLM checks input with assert statements",
    "PYTHONPATH": RUNS,
    "PYTHONHOME": RUNS,
    "CUDA_VISIBLE_DEVICES": "the intent's gpus decide",
    "CUDA_DEVICE_ORDER": ROLE_SETS,
    "NVIDIA_VISIBLE_DEVICES": "the intent's gpus decide",
    "VLLM_PLUGINS": ROLE_SETS,
    "VLLM_NO_USAGE_STATS": ROLE_SETS,
    "DO_NOT_TRACK": ROLE_SETS,
    "HF_HUB_OFFLINE": ROLE_SETS,
    "TRANSFORMERS_OFFLINE": ROLE_SETS,
    "HOME": ROLE_SETS,
}


def system_user(name: str) -> str:
    """Return the user of a model; useradd(8) takes 32 characters at most."""
    user = f"moat-model-{name}"
    if len(user) <= 31:
        return user
    return "moat-model-" + hashlib.sha256(name.encode()).hexdigest()[:16]


def argument_faults(arguments: Sequence[str]) -> list[tuple[int, str]]:
    """Return index and reason of each argument that is refused."""
    faults = []
    for index, argument in enumerate(arguments):
        # vLLM's parser takes underscores for dashes and --x.key for a key of x, argparse(3) any unambiguous beginning
        flag = argument.split("=", 1)[0].replace("_", "-").split(".", 1)[0]
        if not flag.startswith("--") or flag in HARMLESS:
            continue
        if flag.startswith("--no-"):
            flag = "--" + flag[len("--no-") :]
        for forbidden, reason in ARGUMENTS.items():
            if forbidden.startswith(flag):
                faults.append((index, f"{argument} is refused ({forbidden}): {reason}"))
                break
    return faults


def model_faults(models: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> list[str]:
    """Return every fault of the desired models, each with its key and a remedy."""
    faults = []
    seen: dict[str, set[str]] = {"name": set(), "socket": set()}
    for index, model in enumerate(models):
        key = f"model_server_models[{index}]"
        for field, values in seen.items():
            if model[field] in values:
                faults.append(f"{key}.{field}: {model[field]} is there twice; give each model its own")
            values.add(model[field])
        if not LABEL.match(model["name"]):
            faults.append(f"{key}.name: {model['name']!r} is no DNS label; use a-z, 0-9 and -")
        if not SOCKET.match(model["socket"]):
            faults.append(
                f"{key}.socket: {model['socket']!r} has characters that a unit cannot take; use a-z, 0-9 and ._-"
            )
        expected = f"/run/moat-model/{model['name']}/"
        if not model["socket"].startswith(expected) or "/" in model["socket"][len(expected) :]:
            faults.append(f"{key}.socket: {model['socket']} must be a file in {expected}")
        # sun_path of unix(7), with its closing NUL
        if len(model["socket"]) > 107:
            faults.append(f"{key}.socket: {model['socket']} is longer than 107 bytes; shorten the name")
        if not SOURCE.match(model["source"]) or ".." in model["source"].split("/"):
            faults.append(
                f"{key}.source: {model['source']} must lie below /srv, /var/lib, /opt or /mnt; use a-z, 0-9 and ._+-"
            )
        faults += [f"{key}.engine_args[{at}]: {reason}" for at, reason in argument_faults(model["engine_args"])]
        faults += [
            f"{key}.gpus[{at}]: {name!r} names no GPU; name it {model_gpus.NAMES}"
            for at, name in enumerate(model.get("gpus") or ())
            if not model_gpus.is_name(name)
        ]
    for name, value in environment.items():
        if not isinstance(value, str):
            faults.append(f"model_server_environment.{name}: {value!r} is no string; write it in quotes")
    for name, reason in ENVIRONMENT.items():
        if name in environment:
            faults.append(f"model_server_environment.{name}: {reason}; leave it out")
    return faults


def stale_units(present: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the names of models that have a unit on the host and are no longer wanted."""
    wanted = set(names)
    matches = (UNIT.match(name) for name in present)
    return sorted(match.group(1) for match in matches if match and match.group(1) not in wanted)
