"""Signals at random moments of merges, sweeps and exports: what is left, and whether the next run finishes.

    python tests/stress/kills.py                      every writer, 50 times each signal
    python tests/stress/kills.py --trials 5 --only mergekit

A writer is run in a child of this process, which has imported everything already, so that the moment lies
within the work and not within the imports. What is left is compared with the files of an undisturbed run.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "soup")]

from killing import contents, forked, killed_after  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Writer:
    """Something that writes into `out`.

    Attributes:
        name: for the table.
        write: writes, and returns an exit status or anything else that is no number.
        older: writes what is in `out` before, if anything is.
        many: whether `out` holds one soup for each folder in it.
    """

    name: str
    write: Callable[[Path], Any]
    older: Callable[[Path], Any] | None = None
    many: bool = False


def writers(runs: Path) -> list[Writer]:
    """Make two tiny soups below `runs`, and return everything that writes soups of them."""
    from tiny_soups import adapter_soup, full_soup

    from trl_bonesoup import BoneSoup, SoupManifest, sweep
    from trl_bonesoup.cli import main
    from trl_bonesoup.soup.recipe import mergekit_yaml

    adapters, full = adapter_soup(runs / "adapters", [{}, {}]), full_soup(runs / "full", 2)
    soup, grid = BoneSoup.from_pretrained(adapters), [[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.0, 1.0]]

    def merge(run: Path, preference: str, *options: str) -> Callable[[Path], Any]:
        return lambda out: main(["merge", str(run), str(out), "--preference", preference, *options])

    def mergekit(preference: list[float], *options: str) -> Callable[[Path], Any]:
        from mergekit.scripts.run_yaml import main as run_yaml

        file = runs / f"{preference[0]}.yml"
        file.write_text(mergekit_yaml(SoupManifest.load(full), full, preference))
        return lambda out: run_yaml([str(file), str(out), "--quiet", *options], standalone_mode=False)

    swept = {"show_progress": False, "overwrite": True}
    return [
        Writer("bonesoup merge: an adapter", merge(adapters, "0.7,0.3")),
        Writer(
            "bonesoup merge: over an older one",
            merge(adapters, "0.7,0.3", "--overwrite"),
            merge(adapters, "0.1,0.9", "--overwrite"),
        ),
        Writer("bonesoup merge: a checkpoint of adapters", merge(adapters, "0.7,0.3", "--full")),
        Writer("bonesoup merge: full backbones", merge(full, "0.7,0.3")),
        Writer("bonesoup sweep: adapters", lambda out: sweep(adapters, out, grid, **swept) and 0, many=True),
        Writer("bonesoup sweep: full backbones", lambda out: sweep(full, out, grid, **swept) and 0, many=True),
        Writer("bonesoup to-full", lambda out: main(["to-full", str(adapters), str(out)])),
        Writer("save_pretrained", lambda out: soup.save_pretrained(out, [0.7, 0.3]) and 0),
        Writer("save_pretrained(full=True)", lambda out: soup.save_pretrained(out, [0.7, 0.3], full=True) and 0),
        Writer("mergekit-yaml", mergekit([0.7, 0.3])),
        Writer(
            "mergekit-yaml: shards over an older one",
            mergekit([0.7, 0.3], "--out-shard-size", "4k"),
            mergekit([0.1, 0.9]),
        ),
    ]


class Trials:
    """One writer, killed again and again."""

    def __init__(self, writer: Writer, room: Path, seed: int) -> None:
        self.writer = writer
        self._random = random.Random(f"{writer.name} {seed}")
        self._room, self._out, self._template = room / "room", room / "room" / "out", room / "template"
        self._template.mkdir(parents=True)
        if writer.older:
            assert forked(lambda: writer.older(self._template / "out")) == 0
        self._reset()
        self._older = contents(self._room)
        self.seconds = min(self._timed() for _ in range(3))
        self._expected = contents(self._room)

    def run(self, number: int, trials: int) -> Counter[str]:
        """Send a signal in so many runs, and count what was found."""
        found: Counter[str] = Counter()
        for _ in range(trials):
            self._reset()
            status = killed_after(self._write, self._random.uniform(0.0, 1.1 * self.seconds), number)
            found["ended by it"] += status != 0
            left = self._left()
            found[left] += 1
            if left == "broken":
                print(f"{self.writer.name}: {sorted(contents(self._room))}", file=sys.stderr)
            if left != "new" or self.writer.many or self.writer.older:
                again = forked(self._write)
                found["next run failed"] += again != 0
            found["next run differs"] += contents(self._room) != self._expected
        return found

    def _left(self) -> str:
        if self.writer.many:
            whole = all(self._is_whole(soup) for soup in self._out.glob("mu-*"))
            return "some whole" if whole else "broken"
        found = {f"out/{name}": value for name, value in contents(self._out).items()} if self._out.exists() else {}
        if "out/config.json" not in found and "out/adapter_config.json" not in found and "out/soup.json" not in found:
            return "absent"
        return "new" if found == self._expected else "older" if found == self._older else "broken"

    def _is_whole(self, soup: Path) -> bool:
        prefix = f"out/{soup.name}/"
        expected = {name: value for name, value in self._expected.items() if name.startswith(prefix)}
        return {f"{prefix}{name}": value for name, value in contents(soup).items()} == expected

    def _write(self) -> Any:
        warnings.simplefilter("ignore")
        return self.writer.write(self._out)

    def _reset(self) -> None:
        shutil.rmtree(self._room, ignore_errors=True)
        shutil.copytree(self._template, self._room)

    def _timed(self) -> float:
        self._reset()
        start = time.perf_counter()
        status = forked(self._write)
        assert status == 0, f"{self.writer.name} ends with {status}"
        return time.perf_counter() - start


COLUMNS = ("ended by it", "new", "older", "absent", "some whole", "broken", "next run failed", "next run differs")


def main() -> int:
    """Print a row for each writer and signal; return 1 if anything was broken, or a next run did not finish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50, help="runs of each writer with each signal (50)")
    parser.add_argument("--only", default="", help="writers whose name contains this")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    arguments = parser.parse_args()
    from tqdm import tqdm

    import mergekit_bonesoup

    tqdm.monitor_interval = 0  # its thread would not be there in a child
    mergekit_bonesoup.register()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        every = [writer for writer in writers(Path(folder, "runs")) if arguments.only in writer.name]
        inputs = contents(Path(folder, "runs"))
        print("| writer | ms | signal | runs | " + " | ".join(COLUMNS) + " |")
        print("| --- " * (4 + len(COLUMNS)) + "|")
        for number, writer in enumerate(every):
            warm = Path(folder, f"warm-{number}")
            for write in filter(None, (writer.older, writer.write)):
                with open(os.devnull, "w") as silence, redirect_stdout(silence), redirect_stderr(silence):  # noqa: PTH123
                    write(warm)  # imports, here and not in each child
            trials = Trials(writer, Path(folder, str(number)), arguments.seed)
            for kind in SIGNALS:
                found = trials.run(kind, arguments.trials)
                cells = [writer.name, f"{1000 * trials.seconds:.0f}", kind.name, arguments.trials]
                print("| " + " | ".join(map(str, [*cells, *(found[column] for column in COLUMNS)])) + " |", flush=True)
                bad += found["broken"] + found["next run failed"] + found["next run differs"]
        changed = contents(Path(folder, "runs")) != inputs
    print(f"\nThe inputs are {'CHANGED' if changed else 'as they were'}; {bad} runs went wrong.")
    return int(bool(bad or changed))


if __name__ == "__main__":
    sys.exit(main())
