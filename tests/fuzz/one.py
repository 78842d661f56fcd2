"""One target under the fuzzer: python tests/fuzz/one.py TARGET [libFuzzer's options] FOLDER."""

import sys

import atheris

with atheris.instrument_imports(include=["trl_bonesoup", "json", "yaml"]):
    from targets import TARGETS

    target, seeds = TARGETS[sys.argv[1]]
    for seed in seeds:
        target(seed)  # imports what it needs, to be instrumented

atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
atheris.Fuzz()
