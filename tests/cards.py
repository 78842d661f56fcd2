"""Manifests, fronts and hostile texts for cards, and readers of what came out of them."""

import dataclasses
import re

import numpy as np
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from trl_bonesoup.front.front import Front
from trl_bonesoup.hub.card import write_card
from trl_bonesoup.manifest import Backbone, BaseModelRef, Objective, SoupManifest
from trl_bonesoup.weights import circulant_weights

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")

RECIPE = """\
# the soup at (0.8, 0.2)
merge_method: bone_soup
models:
  - model: org/sft+org/helpful
    parameters: {preference: 0.8}
  - model: org/sft+org/harmless
    parameters: {preference: 0.2}
parameters: {beta: 0.7}
"""


def make_manifest(names=("helpful", "harmless"), base="org/sft", **changes):
    n = len(names)
    return SoupManifest(
        **{
            "base_model": BaseModelRef(id=base),
            "objectives": tuple(Objective(name=name, reward=f"rewards:{i}") for i, name in enumerate(names)),
            "combination_weights": circulant_weights(n, 0.7 if n == 2 else 0.6),
            "backbones": tuple(Backbone(path=f"backbone-{i}", kind="adapter", steps=40 + i) for i in range(n)),
            "training": {"kl_coef": 0.05},
            "versions": {"trl-bonesoup": "0.1.0", "trl": "1.16.0"},
            **changes,
        }
    )


def made_by_hand(weights=((1.0, 0.0), (0.0, 1.0)), kind="adapter", **changes):
    """The record of two models that were trained elsewhere, as the documentation says how to write it."""
    backbones = tuple(Backbone(path=name, kind=kind) for name in ("../helpful-lora", "../harmless-lora"))
    return make_manifest(**{"combination_weights": weights, "backbones": backbones, "training": {}, "versions": {},
                            **changes})  # fmt: skip


def make_front(manifest, preferences, extrapolation=0.0, markers=None):
    """Rewards that say where they come from: row k has means 10k + i, each ± .5."""
    preferences = np.array(preferences)
    shape = preferences.shape
    rewards = 10.0 * np.arange(shape[0])[:, None] + np.arange(shape[1])
    return Front(
        objectives=manifest.objective_names,
        preferences_KN=preferences,
        coefficients_KN=manifest.coefficients(preferences, extrapolation),
        rewards_KN=rewards,
        intervals_KN2=np.stack([rewards - 0.5, rewards + 0.5], axis=-1),
        n_samples_KN=np.full(shape, 64),
        markers=markers or {},
    )


EVALUATION = {
    "rewards": {"helpful": "rewards:0", "harmless": "rewards:1"},
    "prompts": 32,
    "prompts_sha256": "5ca1ab1e",
    "samples_per_prompt": 2,
    "seed": 0,
    "decoding": {"max_new_tokens": 24, "temperature": 0.7},
}


def evaluated(front, **changes):
    """The same front with a record of its evaluation, changed; None takes an entry away."""
    record = {key: value for key, value in {**EVALUATION, **changes}.items() if value is not None}
    return dataclasses.replace(front, provenance=record)


def read_back(card, tmp_path):
    """What a reader of the saved file gets: metadata as plain YAML, and the card as the Hub client loads it."""
    file = write_card(tmp_path, card)
    _, metadata, _ = file.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), ModelCard.load(file)


def tables(text):
    """Every table of a card, as a list of rows of plain cell texts."""
    found, row = [], []
    for token in MARKDOWN.parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            row = []
        elif token.type == "inline":
            row.append("".join(child.content for child in token.children))
        elif token.type == "tr_close":
            found[-1].append(row)
            row = []
    return found


def table_with(text, header):
    (found,) = [rows for rows in tables(text) if header in rows[0]]
    return found


def section(text, heading):
    return re.split(r"^## ", text.split(f"## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(text, language):
    return [token.content for token in MARKDOWN.parse(text) if token.type == "fence" and token.info == language]


HOSTILE = [
    '"}]\n---',
    "---\nlicense: mit\n---",
    "x\n---\n\n# owned",
    "{{7*7}}",
    "{% include 'x' %}{{ card_data }}",
    "[x](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a ``` b ` c | d \\| e \\",
    "```\n\n# owned",
    "\u202eevil\u2066",
    "!!python/object/apply:os.system",
    "x" * 200,
    "有用性 и безопасность 🍲 مفيد",
    "/home/ann/rewards/helpful",
]
