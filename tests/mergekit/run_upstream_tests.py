"""Runs the test-suite of the installed mergekit without the plugin and with it, and compares test by test.

The tests are fetched with pip, from mergekit's source distribution, into build/, which git ignores. They are
LGPL-3.0 and are no part of this project. What is not an option below goes to pytest, such as -x or -k tokenizer.
Fails if a test that passes without the plugin does not pass with it, or if bone_soup was not registered where it
should have been.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build"
RUNS = {"without": "0", "with": "1"}

# mergekit runs this test on every registered method with values for parameters named weight, t and density, and
# bone_soup cannot be run without a preference. test_merge_options.py has the same check with one.
DESELECTED = (
    "tests/test_merge_method_regressions.py::test_state_dict_methods_accept_strided_weights_without_mutation[bone_soup]"
)


def main():
    arguments, pytest_arguments = parse()
    release = version("mergekit")
    folder = BUILD / f"mergekit-{release}-tests"
    source = arguments.source or fetch(release, folder / "sdist")
    lay_out(source, folder / "suite")
    outcomes = {}
    for run, switch in RUNS.items():
        print(f"== mergekit {release}, {run} the plugin", flush=True)
        outcomes[run] = run_suite(folder, run, switch, pytest_arguments)
    sys.exit(compare(outcomes))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a checkout of mergekit to take the tests from, instead of pip")
    return parser.parse_known_args()


def fetch(release, folder):
    """Download and unpack the source distribution of a release, unless it is there, and return its root."""
    root = folder / f"mergekit-{release}"
    if not root.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", f"mergekit=={release}"]
        # Without build isolation, pip reads the metadata with the setuptools that is here, and needs to fetch none.
        subprocess.run([*pip, "--no-deps", "--no-binary=mergekit", "--no-build-isolation", "-d", folder], check=True)
        with tarfile.open(folder / f"mergekit-{release}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return root


def lay_out(source, suite):
    """Copy the tests, and pytest's settings, away from mergekit's package: the installed one is tested."""
    if not (source / "tests").is_dir():
        sys.exit(f"{source} has no folder tests; --source takes the root of a checkout of mergekit.")
    shutil.rmtree(suite, ignore_errors=True)
    shutil.copytree(source / "tests", suite / "tests")
    shutil.copy(source / "pyproject.toml", suite)
    (suite / "tests" / "__init__.py").touch()
    if not (suite / "tests" / "common.py").exists():
        shutil.copy(HERE / "upstream_common.py", suite / "tests" / "common.py")


def run_suite(folder, run, switch, pytest_arguments):
    """Run the suite in a process of its own and return the outcome of every test."""
    report = folder / f"{run}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "pytest", "-q", "-p", "upstream_probe"]
    command += [f"--junitxml={report}", f"--deselect={DESELECTED}", "tests", *pytest_arguments]
    environment = {
        "HF_HUB_OFFLINE": "1",
        **os.environ,
        "MERGEKIT_BONESOUP_AUTOLOAD": switch,
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    code = subprocess.run(command, cwd=folder / "suite", env=environment, check=False).returncode
    if code not in (0, 1):  # 1 is pytest's code for failed tests
        sys.exit(code)
    return {
        f"{case.get('classname')}::{case.get('name')}": outcome(case)
        for case in ElementTree.parse(report).iter("testcase")
    }


def outcome(case):
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")


def compare(outcomes):
    """Print what came of both runs, and return the exit status."""
    counts = {run: Counter(of_run.values()) for run, of_run in outcomes.items()}
    print(f"\n{'plugin':10}" + "".join(f"{name:>10}" for name in ("passed", "failed", "skipped")))
    for run, count in counts.items():
        print(f"{run:10}{count['passed']:10}{count['failure'] + count['error']:10}{count['skipped']:10}")
    lost = [test for test, result in outcomes["without"].items() if result != outcomes["with"].get(test)]
    for test in lost:
        print(f"differs: {test}: {outcomes['without'][test]} without, {outcomes['with'].get(test, 'absent')} with")
    return int(any(outcomes["without"][test] == "passed" for test in lost))


if __name__ == "__main__":
    main()
