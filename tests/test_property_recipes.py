"""2,000 mutated recipes: each ends in a valid tree, which reads back equal when written out, or in a `RecipeError`."""

from __future__ import annotations

import contextlib
import random
import warnings
from typing import Any

import pytest
import yaml

from tauon.config import override, parse, read_yaml
from tauon.errors import RecipeError
from tauon.recipe import Recipe, shipped_recipes, to_yaml

TOYS = [
    """
name: toy
seed: 3
stages: [prepare, train, evaluate, report]
data: {source: {kind: text, path: [a.txt, b.txt.gz], document_start: "^#"}, tokenizer: {kind: bpe, vocab: 1k, sample: 1MiB}, seq_len: 64,
  split: {validation: 5%, by: position}, workers: 2}
task: {kind: language-modelling, z_loss: 1e-4}
model: {kind: gpt, layers: 2, width: 32, heads: 4, kv_heads: 2, mlp: swiglu, tied: true, dropout: 10%}
optim: {kind: muon, lr: 0.02, schedule: {kind: wsd, warmup: 5%, decay: 0.3}, clip_norm: 1.0}
train: {time: 90s, batch: 16, microbatch: 4, ema: 0.99, early_stopping: {patience: 3}, spike_factor: 5, compile: false, keep_every: 1k}
evaluate: {prompts: ["a", "b\\n"], samples: 2, resamples: 2k, confidence: 90%}
track: [{kind: tensorboard}]
""",
    """
name: table
data: {source: {kind: csv, path: t.csv, label: y, features: [a, b]}, normalize: minmax, split: {folds: 5, validation: 0}}
task: {kind: classification, label_smoothing: 0.1}
model: {kind: mlp, hidden: [16, 16], activation: gelu}
optim: {kind: adamw, betas: [0.9, 0.99], weight_decay: 0}
train: {epochs: 2.5, batch: 32}
""",
    """
name: images
data: {source: {kind: npz, path: i.npz, features: x, targets: y}, augment: [flip]}
task: regression
model: {kind: cnn, channels: [8, 16], input_shape: [1, 8, 8]}
optim: {kind: sgd, momentum: 0.9, nesterov: true, clip_value: 1}
train: {steps: 2k, validate_every: 100, device: cpu}
""",
    """
name: anchors
data: {source: &source {kind: python-stdlib, limit: 5}, validation: *source, tokenizer: chars}
task: language-modelling
model: {<<: {kind: gpt2, layers: 1, width: 8}, heads: 2}
train: {tokens: 1M}
""",
]  # fmt: skip

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63 - 1, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.5, 1.5, 1e-320, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"), "", " ", "x", "64k", "64Ki", "1.5M", "2h", "90s", "5%", "150%", "-5%", "1GiB", "1e3", "1e400", "9" * 400,
    "5 apples", "auto", "none", "null", "yes", "nan", "..", "../../etc/passwd", "a/b", "a\0b", "é", "\u202e", "\ud800", "日本", "\u2028", "😀" * 50, "{", "}", "{x}", "%s",
    "!!int 3", "&a", "*a", "gpt", "mlp", "adamw", "wsd", "text", "bytes", "sklearn", "classification", [], {}, [[]], [{}], {"kind": "gpt"}, {"kind": None}, {"kind": ["a"]}, {"kind": "nope"},
    {"kind": {}}, {"": 1}, {"a": {"b": {"c": {"d": [1, {"e": 2}]}}}}, ["a", 1, None], [1, 2, 3], [0.9, 0.99], [float("nan")] * 2, ["train", "prepare"],
    {1: 2}, {None: None}, {True: 1}, {1.5: "x"}, {"kind": "adamw", "lr": "1e-3"}, [float("inf")], tuple(range(50)), {"\ud800": 1}, b"bytes", {1, 2},
]  # fmt: skip
TEXT_EDITS = [
    "{", "}", "[", "]", ":", ",", "- ", "&a ", "*a", "!!int ", "!!bool ", "!!float ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!python/object:os.system ",
    "!!merge ", "!!null ", "!x ", "'", '"', "|\n", ">\n", "#", "%YAML 1.1\n---\n", "---\n", "...\n", "? ", "<<: ", "\t", "\n", "\0", "\x85", "\ufeff", "é", "\\ud800", "2024-13-45",
    "0x1F", "0o17", "1:30", "~", ".nan", ".inf", "1e999", "=", "@", "`", "%", "[" * 70 + "]" * 70, "{a: " * 90, "train: {steps: 1}\n", "a: &l [*l]\n",
]  # fmt: skip
ASSIGNED = [
    "train.steps", "optim.lr", "model.layers", "name", "data.source", "data.source.path", "a.b.c", "track.0", "track.0.kind", "evaluate.prompts.1", "evaluate.prompts.²", "model",
    "optim.schedule.warmup", "", ".", "..", "train.", ".train", "data.split.validation", "stages", "stages.9", "seed", "x" * 300, "train.early_stopping.patience",
]  # fmt: skip


def nodes(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Path of every value below the root."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [p for k, v in items for p in [(*path, k), *nodes(v, (*path, k))]]


def mutate(data: Any, rng: random.Random) -> None:
    """One change somewhere in the tree, in place."""
    at = nodes(data)
    if not at:
        return
    path = rng.choice(at)
    owner = data
    for part in path[:-1]:
        owner = owner[part]
    key, value = path[-1], owner[path[-1]]
    what = rng.randrange(9)
    if what == 0:
        del owner[key]
    elif what == 1 and isinstance(owner, dict) and isinstance(key, str):  # rename: a letter less, more, or another case
        i = rng.randrange(len(key) + 1)
        owner[rng.choice([key[:i] + key[i + 1 :], key[:i] + rng.choice("aze_é²\0") + key[i:], key.upper(), key + "s", ""])] = owner.pop(key)
    elif what == 2:  # the value of somewhere else
        other = data
        for part in rng.choice(at):
            other = other[part]
        owner[key] = other  # perhaps a tree inside itself: YAML writes it with an anchor
    elif what == 3:
        owner[key] = [value] * rng.choice([1, 2, 30])
    elif what == 4:
        for _ in range(rng.choice([1, 3, 100])):
            value = {rng.choice(["kind", "a", "source"]): value} if rng.random() < 0.5 else [value]
        owner[key] = value
    elif what == 5 and isinstance(owner, dict):
        owner[rng.choice(["kind", "stpes", "lr", "limit", "seed", "_reads", "__class__", "model_config", "problems"])] = rng.choice(VALUES)
    else:
        owner[key] = rng.choice(VALUES)


def outcome(text: str, assignments: list[str]) -> Recipe | RecipeError:
    """What becomes of a recipe's text: anything else than these two is a failure of the test."""
    try:
        data = read_yaml(text, "mutated.yaml")
        return parse(Recipe, override(data, assignments) if isinstance(data, dict) else data, "mutated.yaml")
    except RecipeError as err:
        return err


@pytest.mark.parametrize("batch", range(8))
def test_a_mutated_recipe_is_a_valid_tree_or_a_recipe_error(batch: int) -> None:
    rng = random.Random(1000 + batch)
    texts = TOYS + [p.read_text(encoding="utf-8") for p in shipped_recipes().values()]
    valid = 0
    for case in range(250):
        text = rng.choice(texts)
        for _ in range(rng.choice([0, 0, 1, 1, 1, 3])):
            data = yaml.safe_load(text)
            if isinstance(data, dict):
                mutate(data, rng)
                with contextlib.suppress(ValueError, RecursionError, TypeError):  # what YAML cannot even say
                    text = yaml.dump(data, allow_unicode=True, sort_keys=False)
                if "!!python" in text or "\\uD800" in text or "\\x00" in text or "&id" in text or len(text) > 6_000:
                    break  # no more of our own reading; `outcome` reads it
        if rng.random() < 0.3:
            i = rng.randrange(len(text) + 1)
            text = text[:i] + rng.choice(TEXT_EDITS) + text[i + rng.choice([0, 0, 1, 10]) :]
        assignments = [
            f"{rng.choice(ASSIGNED)}{rng.choice(['=', '=', '=', '', '=='])}{rng.choice([str(rng.choice(VALUES)), rng.choice(TEXT_EDITS), '3', 'mlp'])}"
            for _ in range(rng.choice([0, 0, 0, 1, 2]))
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                got = outcome(text, assignments)
            except BaseException as err:
                raise AssertionError(f"case {case}: {type(err).__name__}: {err}\n{assignments}\n{text}") from err
        if isinstance(got, RecipeError):
            assert got.problems and all(p.message for p in got.problems)
            assert all(len(line) < 1000 for line in str(got).split("\n")), f"case {case}: {got}"
            continue
        valid += 1
        assert parse(Recipe, read_yaml(to_yaml(got))) == got, f"case {case}: reads back otherwise\n{text}"
    assert 20 < valid < 230  # both ends were seen often


@pytest.mark.parametrize("text", TOYS)
def test_the_recipes_that_are_mutated_are_valid(text: str) -> None:
    assert isinstance(outcome(text, []), Recipe)
