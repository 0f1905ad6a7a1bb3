"""Tiny random models in the real format, made on the spot with the engine's own libraries.

`ensure` runs on the controller; run as a program, in a container of the image, the file makes one model.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import string
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Model:
    seed: int
    hidden: int
    heads: int


MODELS = {"xray-7b": Model(seed=7, hidden=128, heads=4), "notes-1b": Model(seed=1, hidden=64, heads=2)}
SPECIAL = ["<s>", "</s>", "<pad>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def make(folder: Path, model: Model) -> None:
    """Write config, tokenizer and weights. The libraries are those of the engine: they are not on the controller."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)

    torch.manual_seed(model.seed)
    size = (len(alphabet) + 63) // 64 * 64
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=model.hidden,
        intermediate_size=2 * model.hidden,
        num_hidden_layers=2,
        num_attention_heads=model.heads,
        num_key_value_heads=model.heads,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    network = LlamaForCausalLM(config)
    # One coordinate is the same for every token and counts against all but these letters, so that answers can be read.
    readable = [vocabulary[c] for c in string.ascii_lowercase] + [vocabulary["Ġ"]]
    with torch.no_grad():
        network.model.embed_tokens.weight[:, 0] = 1.0
        network.lm_head.weight.normal_(0.0, 0.3)
        network.lm_head.weight[:, 0] = -40.0
        network.lm_head.weight[readable, 0] = 0.0
    network.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=2, do_sample=True, temperature=1.0).save_pretrained(
        folder
    )
    for file in folder.iterdir():
        file.chmod(0o644)


def digest() -> str:
    settings = json.dumps({name: asdict(model) for name, model in MODELS.items()}, sort_keys=True)
    parts = [settings, TEMPLATE, *SPECIAL, inspect.getsource(make)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def ensure(image: str, engine: Path) -> Path:
    """The folder with one folder per model."""
    from tests.lab.shell import CACHE, lock

    target = CACHE / f"weights-{digest()}"
    # the engine's own lock: both are made in a container of the same name
    with lock(CACHE / "engine.lock"):
        if not target.is_dir():
            _make_all(image, engine, target)
    return target


def _make_all(image: str, engine: Path, target: Path) -> None:
    """Make the models under another name, so that a killed run never leaves half of them under this name."""
    from tests.lab import podman
    from tests.lab.engine import BUILDER, HOME, TREE
    from tests.lab.shell import CACHE, Step, capture, privileged, remove_tree

    partial = CACHE / "weights.tmp"
    capture(podman.podman("rm", "--force", "--ignore", "--time", "0", BUILDER))
    remove_tree(partial)
    partial.mkdir(parents=True)
    places = [(engine, HOME, "true"), (Path(__file__), "/weights.py", "true"), (partial, "/out", "false")]
    mounts = [f"--mount=type=bind,src={here},dst={there},ro={ro}" for here, there, ro in places]
    with Step("weights of two tiny models") as step:
        run = podman.podman("run", "--rm", "--name", BUILDER, "--network", "none", *mounts, image)
        step.run([*run, f"{TREE}/bin/python", "/weights.py", "/out"])
    capture(privileged(["mv", "-T", str(partial), str(target)]))


if __name__ == "__main__":
    for name, parameters in MODELS.items():
        make(Path(sys.argv[1], name), parameters)
        print(name, flush=True)
