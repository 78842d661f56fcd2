"""How the offline rewards go together on answers of the base model: their correlation over all training prompts.

python -m benchmarks.fronts.correlations --markdown
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from benchmarks.report import machine, table

from trl_bonesoup.cli.demo_model import embedded_model
from trl_bonesoup.cli.text_forms import read_prompts
from trl_bonesoup.front.checkpoints import CheckpointPolicies
from trl_bonesoup.front.evaluate import evaluate_policies
from trl_bonesoup.front.scores import read_scores
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.rewards.spec import BUILT_IN, load_reward

FOLDER = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fronts/correlations"), help="folder of the answers")
    parser.add_argument("--answer-tokens", type=int, default=24, help="longest answer (24, as in the plans)")
    parser.add_argument("--samples", type=int, default=4, help="answers per prompt (4)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    arguments = parser.parse_args()

    n = len(BUILT_IN)
    prompts = read_prompts(str(FOLDER / "prompts" / "train.jsonl"))
    base = CheckpointPolicies([embedded_model(arguments.out / "base")], [[1.0 / n] * n], BUILT_IN)
    settings = EvaluationSettings(
        samples_per_prompt=arguments.samples, max_new_tokens=arguments.answer_tokens, batch_size=64
    )
    answers = arguments.out / "answers.parquet"
    evaluate_policies(base, prompts, [load_reward(name) for name in BUILT_IN], settings, samples_path=answers)
    scores_BN = read_scores(answers, BUILT_IN).reshape(-1, n)
    complete_BN = scores_BN[~np.isnan(scores_BN).any(axis=1)]
    correlation_NN = np.corrcoef(complete_BN, rowvar=False)
    rows = [
        [name, f"{scores.mean():.3g}", f"{scores.std():.3g}", *(f"{value:+.2f}" for value in correlations)]
        for name, scores, correlations in zip(BUILT_IN, complete_BN.T, correlation_NN, strict=True)
    ]
    header = ["reward", "mean", "standard deviation", *(f"correlation with {name}" for name in BUILT_IN)]
    print(table(header, rows, arguments.markdown))
    error = 1.0 / np.sqrt(len(complete_BN) - 3)
    print(
        f"\n{len(complete_BN)} answers to {len(prompts)} prompts; standard error of a correlation near 0: {error:.2f}."
    )
    print(f"Machine: {machine()}.")


if __name__ == "__main__":
    main()
