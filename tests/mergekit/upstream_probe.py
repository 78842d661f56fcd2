"""pytest plugin: says whether mergekit's tests run with `bone_soup`, and stops them where it should be and is not.

It registers nothing. What it sees is what the start-up file did, in the process that runs the tests.
"""

import os

import pytest


def _seen():
    """Return what mergekit knows of the plugin: the method, and the guards on its entry points."""
    from mergekit import merge, merge_methods
    from mergekit.plan import MergePlanner

    known = "bone_soup" in {method.spec.name for method in merge_methods.registered_methods()}
    guards = [hasattr(f, "_checks_bone_soup") for f in (merge.run_merge, MergePlanner.plan_to_disk)]
    return known, all(guards)


def pytest_report_header(config):
    known, guarded = _seen()
    return f"mergekit_bonesoup: bone_soup registered: {known}, entry points guarded: {guarded}"


def pytest_sessionstart(session):
    expected = os.environ.get("MERGEKIT_BONESOUP_AUTOLOAD") != "0"
    if _seen() != (expected, expected):
        pytest.exit(f"bone_soup was to be {'registered' if expected else 'absent'}, and is not", returncode=3)


def pytest_terminal_summary(terminalreporter):
    known, guarded = _seen()
    terminalreporter.write_line(f"After the tests: bone_soup registered: {known}, entry points guarded: {guarded}")
