"""Times one merge inside a process that has imported everything, and prints the seconds as its last line."""

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["merge", "sweep", "mergekit", "copy"])
    parser.add_argument("source", type=Path, help="folder of soup.json, YAML for mergekit, or file to copy")
    parser.add_argument("out", type=Path)
    parser.add_argument("--preferences", type=json.loads, default=[], help="JSON list of preferences")
    arguments = parser.parse_args()
    work = {"merge": _merge, "sweep": _sweep, "mergekit": _mergekit, "copy": _copy}[arguments.what](arguments)
    begin = time.perf_counter()
    work()
    print(json.dumps({"seconds": time.perf_counter() - begin}))


def _merge(arguments):
    import trl_bonesoup.soup.streaming  # noqa: F401 - torch is imported when it is first needed
    from trl_bonesoup.soup.export import merge

    return lambda: merge(arguments.source, arguments.out, arguments.preferences[0])


def _sweep(arguments):
    import trl_bonesoup.soup.streaming  # noqa: F401 - as above
    from trl_bonesoup.soup.sweep import sweep

    return lambda: sweep(arguments.source, arguments.out, arguments.preferences, show_progress=False)


def _mergekit(arguments):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from yaml import safe_load

    config = MergeConfiguration.model_validate(safe_load(arguments.source.read_text()))
    return lambda: run_merge(config, str(arguments.out), MergeOptions(quiet=True))


def _copy(arguments):
    """Copy a file as `cp` does, once per preference."""
    import shutil

    def copy():
        arguments.out.mkdir(parents=True)
        for k in range(len(arguments.preferences) or 1):
            shutil.copyfile(arguments.source, arguments.out / f"{k}.safetensors")

    return copy


if __name__ == "__main__":
    main()
