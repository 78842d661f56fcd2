"""The public reward models of the Bone Soup and Rewards-in-Context experiments, ready to be named.

Each is a `ClassifierReward` that loads nothing before it scores its first completion, and is the
spec "trl_bonesoup.rewards.public:helpful" (or "helpful" for short) in commands and soup.json.
`dataclasses.replace(helpful, dtype="bfloat16")` changes a setting.

How a sample is put together follows the model cards and `ric/multi_reward_models.py` of
github.com/YangRui2015/RiC (commit 6fc6d69). docs/rewards.md says what was verified and what not.
"""

from __future__ import annotations

from typing import Any

from trl_bonesoup.rewards.classifier import ClassifierReward
from trl_bonesoup.rewards.texts import last_user_message

_SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "Human"}


def hh_transcript(prompt: Any) -> str:
    """Return a prompt in the form of Anthropic's HH-RLHF: turns after blank lines, an open answer at the end.

    A string with a "Human:" turn is taken to be in that form; another one becomes its only turn.
    A system message counts as a turn of the human's. The space before the last "Assistant:" is that
    of the model cards.

    >>> hh_transcript([{"role": "user", "content": "Hi?"}])
    '\\n\\nHuman: Hi? \\n\\nAssistant:'
    """
    if isinstance(prompt, str):
        if "\n\nHuman:" in prompt or prompt.startswith("Human:"):
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    turns = (f"\n\n{_SPEAKERS.get(turn['role'], turn['role'])}: {str(turn['content']).strip()}" for turn in prompt)
    return "".join(turns) + " \n\nAssistant:"


def one_line(prompt: Any) -> str:
    """Return a post (or the last user message) without its line breaks and outer spaces.

    >>> one_line(" First.\\nSecond. ")
    'First. Second.'
    """
    return last_user_message(prompt).strip().replace("\n", " ")


def _published(name: str, model: str, **settings: Any) -> ClassifierReward:
    reward = ClassifierReward(model, name=name, **settings)
    reward.spec = f"{__name__}:{name}"
    return reward


helpful = _published(
    "helpful",
    "Ray2333/gpt2-large-helpful-reward_model",
    revision="dac1612be70cff3a62de4a42793dab3a4cdf5ead",
    prompt_text=hh_transcript,
)
"""How helpful an answer is: one logit of (question, answer), trained on HH-RLHF's helpful split."""

harmless = _published(
    "harmless",
    "Ray2333/gpt2-large-harmless-reward_model",
    revision="b8f2f921817e5975fcde75ae99b6c52646e577f0",
    prompt_text=hh_transcript,
)
"""How harmless an answer is: one logit of (question, answer), trained on HH-RLHF's harmless split."""

humor = _published("humor", "mohameddhiab/humor-no-humor", inputs="{completion}", logit=1)
"""How funny an answer is: output 1 of the answer alone. Its main branch holds no safetensors file."""

faithful_summary = _published(
    "faithful_summary",
    "CogComp/bart-faithful-summary-detector",
    revision="refs/pr/1",
    inputs=("{completion}", "{prompt}"),
    logit=1,
    prompt_text=one_line,
    prompt_column="post",
    keep_prompt="start",
)
"""Whether a summary says only what its post says: output 1 of (summary, post); needs the column "post"."""

summary_quality = _published(
    "summary_quality",
    "Tristan/gpt2_reward_summarization",
    revision="a9658a9c2da88c0c64052c3e974338b0422c3a10",
    inputs="{completion} {bos} {prompt}",
    prompt_text=one_line,
    prompt_column="post",
    keep_prompt="start",
)
"""How people would rate a summary: one logit of "summary <bos> post"; needs the column "post"."""
