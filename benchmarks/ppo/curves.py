"""Learning curves of this trainer and TRL 1.12's PPOTrainer, on one reward and several seeds. See README.md."""

from __future__ import annotations

import argparse
import json
from statistics import mean
from typing import Any

from benchmarks.ppo.jobs import TITLES, add_arguments, provenance, run_job, work_from
from benchmarks.report import machine, table

WINDOW = 5


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, steps=12, contestants=["bonesoup", "trl-ppo"])
    parser.set_defaults(tokens=24, epochs=2, kl_coef=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="%(default)s")
    parser.add_argument(
        "--learning-rates",
        type=float,
        nargs="+",
        default=[3e-4],
        help="every contestant is run at each; its best one is shown and named (%(default)s)",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the curves (PNG, SVG or PDF)")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every contestant at every learning rate on every seed, and keep each contestant's best rate."""
    runs: dict[str, dict[float, list]] = {contestant: {} for contestant in arguments.contestants}
    for seed in arguments.seeds:
        for rate in arguments.learning_rates:
            work = work_from(arguments, learning_rate=rate, seed=seed)
            for contestant in arguments.contestants:
                path = arguments.out / f"curve-{contestant}-{rate:g}-{seed}.json"
                result = run_job(contestant, work, path, arguments.trl_python)
                runs[contestant].setdefault(rate, []).append(result)
    best = {}
    for contestant, rates in runs.items():
        best[contestant] = max(rates.values(), key=lambda seeds: mean(late(run) for run in seeds))
    return {"machine": machine(), "runs": best}


def rewards(run: dict[str, Any]) -> list[float]:
    return [step["reward"] for step in run["steps"]]


def quarter(run: dict[str, Any]) -> int:
    return max(len(run["steps"]) // 4, 1)


def early(run: dict[str, Any]) -> float:
    return mean(rewards(run)[: quarter(run)])


def late(run: dict[str, Any]) -> float:
    return mean(rewards(run)[-quarter(run) :])


def summary(results: dict[str, Any], markdown: bool) -> str:
    """Return, per contestant, the mean reward of the first and the last quarter of its rollouts, over seeds."""
    rows = []
    for contestant, runs in results["runs"].items():
        minutes = [sum(step["seconds"] for step in run["steps"]) / 60 for run in runs]
        rows.append(
            [
                TITLES[contestant],
                f"{runs[0]['work']['learning_rate']:g}",
                str(len(runs)),
                over_seeds([early(run) for run in runs]),
                over_seeds([late(run) for run in runs]),
                f"{mean(minutes):.1f}",
            ]
        )
    header = ["contestant", "learning rate", "seeds", "reward, first quarter", "reward, last quarter", "minutes"]
    return "\n\n".join([table(header, rows, markdown), provenance(results)])


def over_seeds(values: list[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def smooth(values: list[float]) -> list[float]:
    """Return running means of the last `WINDOW` values, fewer at the start."""
    return [mean(values[max(0, end - WINDOW) : end]) for end in range(1, len(values) + 1)]


def plot(results: dict[str, Any], file: str) -> None:
    """Draw the mean over seeds and the range of seeds, against rollout batches and against minutes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for contestant, runs in results["runs"].items():
        curves = list(zip(*(smooth(rewards(run)) for run in runs), strict=True))
        centre, low, high = ([pick(values) for values in curves] for pick in (mean, min, max))
        seconds = [mean(values) for values in zip(*([s["seconds"] for s in run["steps"]] for run in runs), strict=True)]
        minutes = [sum(seconds[:end]) / 60 for end in range(1, len(seconds) + 1)]
        for axis, x in zip(axes, (range(1, len(centre) + 1), minutes), strict=True):
            (line,) = axis.plot(x, centre, label=TITLES[contestant])
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes[0].set(xlabel="rollout batch", ylabel=f"positivity, mean of the last {WINDOW}")
    axes[1].set(xlabel="minutes")
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def main() -> None:
    arguments = parse()
    results = measure(arguments)
    (arguments.out / "curves.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(results, arguments.plot)
    print(summary(results, arguments.markdown))


if __name__ == "__main__":
    main()
