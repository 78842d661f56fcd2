"""The start-up files in interpreters of their own, which see nothing but what a test gives them."""

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
import zipapp
from importlib.metadata import distribution
from pathlib import Path

import pytest

from mergekit_bonesoup import autoload, registration

PLUGIN = Path(__file__).parents[2] / "mergekit_plugin"
ACTIVE = "import sys; print(any(type(f).__name__ == 'MergekitFinder' for f in sys.meta_path))"


def python(code, *paths, site=None, **environment):
    """Run `code` isolated (-I -S: no environment, no site-packages), after `site`'s start-up files."""
    lines = [f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}"]
    if site is not None:
        lines.append(f"import site; site.addsitedir({str(site)!r})")
    command = [sys.executable, "-I", "-S", "-c", "\n".join([*lines, code])]
    kept = {key: os.environ[key] for key in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if key in os.environ}
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    for suffix in ("pth", "start"):
        shutil.copy(PLUGIN / f"zz_mergekit_bonesoup.{suffix}", folder)
    return folder


def test_the_start_up_file_installs_the_finder(site):
    result = python(ACTIVE, PLUGIN, site=site)
    assert (result.stdout, result.stderr) == ("True\n", "")


@pytest.mark.parametrize(
    ("options", "active"),
    [([], "True"), (["-I"], "True"), (["-E", "-s"], "True"), (["-B", "-W", "error"], "True"), (["-X", "utf8"], "True"),
     (["-S"], "False"), (["-I", "-S"], "False")],
)  # fmt: skip
def test_the_installed_start_up_file_is_silent_however_python_is_started(options, active):
    command = [sys.executable, *options, "-c", ACTIVE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{active}\n", "")


def test_a_zipapp_starts_as_always(tmp_path):
    application = tmp_path / "application"
    application.mkdir()
    (application / "__main__.py").write_text(ACTIVE, encoding="utf-8")
    zipapp.create_archive(application, tmp_path / "application.pyz")
    done = subprocess.run(
        [sys.executable, tmp_path / "application.pyz"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


WORKER = """
import multiprocessing

def known():
    from mergekit import merge_methods
    return merge_methods.get("bone_soup").spec.name

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(known))
"""


def test_a_spawned_worker_knows_the_method(tmp_path):
    """Workers of pools, Ray and mergekit-evolve are interpreters that import mergekit for themselves."""
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, tmp_path / "worker.py"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "bone_soup\n"), done.stderr


@pytest.mark.parametrize(
    ("value", "active"),
    [("0", False), ("false", False), ("No", False), ("OFF", False), ("1", True), ("true", True), ("", True)],
)
def test_the_environment_variable_turns_it_off(site, value, active):
    result = python(ACTIVE, PLUGIN, site=site, MERGEKIT_BONESOUP_AUTOLOAD=value)
    assert (result.stdout, result.stderr) == (f"{active}\n", "")


def test_a_stale_start_up_file_prints_nothing(tmp_path):
    shutil.copy(PLUGIN / "zz_mergekit_bonesoup.pth", tmp_path)
    result = python(ACTIVE, site=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "False\n", "")


def test_without_mergekit_there_is_nothing_to_see(site):
    code = "try:\n    import mergekit.plan\nexcept ModuleNotFoundError as error:\n    print(error)"
    result = python(code, PLUGIN, site=site)
    assert (result.stdout, result.stderr) == ("No module named 'mergekit'\n", "")


def test_start_up_imports_nothing_else():
    code = """
import os
before = set(sys.modules)
from mergekit_bonesoup.autoload import start
start()
print(sorted(set(sys.modules) - before))
"""
    result = python(code, PLUGIN)
    assert result.stdout == "['mergekit_bonesoup', 'mergekit_bonesoup.autoload']\n", result.stderr


def test_start_up_takes_less_than_its_three_milliseconds():
    """The least processor time of many, which other work does not reach; benchmarks/startup has the wall clock."""
    code = f"""
import time
line = open({str(PLUGIN / "zz_mergekit_bonesoup.pth")!r}).read()
def start():
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != 'MergekitFinder']
    for name in [name for name in sys.modules if name.startswith('mergekit_bonesoup')]:
        del sys.modules[name]
    begin = time.process_time()
    exec(line)
    return time.process_time() - begin
fastest = min(start() for _ in range(50))
{ACTIVE}
print(fastest)
"""
    result = python(code, PLUGIN)
    active, fastest = result.stdout.split()
    assert active == "True", result.stderr
    assert 0.0 < float(fastest) < 0.003


def test_importtime_of_the_start_up_file_shows_no_library(site):
    code = f"import sys, site; sys.path.insert(0, {str(PLUGIN)!r}); site.addsitedir({str(site)!r})"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "mergekit_bonesoup.autoload" in imported
    heavy = ("torch", "numpy", "mergekit.", "click", "trl_bonesoup", "importlib.metadata", "importlib.abc", "typing")
    assert not [name for name in imported if name.startswith(heavy)]


def test_the_start_file_names_the_same_callable():
    (line,) = (PLUGIN / "zz_mergekit_bonesoup.start").read_text().splitlines()
    assert pkgutil.resolve_name(line) is autoload.start


def test_the_path_file_of_an_editable_install_is_read_first():
    assert sorted(["zz_mergekit_bonesoup.pth", "_trl_bonesoup.pth", "_editable_impl_trl_bonesoup.pth"])[-1].startswith(
        "zz_"
    )


def test_uninstalling_takes_everything_along_that_lies_beside_the_packages():
    """pip removes what RECORD lists, of a wheel and of an editable install."""
    installed = distribution("trl-bonesoup")
    recorded = {file.parts[0] for file in installed.files}
    assert {"zz_mergekit_bonesoup.pth", "zz_mergekit_bonesoup.start"} <= recorded
    beside = {path.name for path in Path(installed.locate_file("")).iterdir()}
    assert {name for name in beside if "bonesoup" in name} <= recorded


def test_every_watched_module_has_something_to_do():
    assert {"mergekit.merge_methods", *registration._GUARDED} == autoload.WATCHED


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `watched` that is acted upon once imported; yields the list of what was."""
    (tmp_path / "watched").mkdir()
    (tmp_path / "watched" / "__init__.py").write_text("value = 1\n")
    (tmp_path / "watched" / "broken.py").write_text("raise ImportError('of its own')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(autoload, "WATCHED", frozenset({"watched", "watched.broken"}))
    others = [finder for finder in sys.meta_path if not isinstance(finder, autoload.MergekitFinder)]
    monkeypatch.setattr(sys, "meta_path", others)
    seen = []
    monkeypatch.setattr(
        registration, "after_import", lambda module: seen.append((module.__name__, vars(module).copy()))
    )
    yield seen
    for name in ("watched", "watched.broken"):
        sys.modules.pop(name, None)


def test_a_module_is_acted_upon_after_it_has_executed_and_looks_as_always(package):
    autoload.install()
    module = importlib.import_module("watched")
    ((name, attributes),) = package
    assert (name, attributes["value"]) == ("watched", 1)
    assert type(module.__loader__) is type(module.__spec__.loader) is importlib.machinery.SourceFileLoader
    importlib.reload(module)
    assert len(package) == 2


def test_a_module_imported_before_is_acted_upon_at_once(package):
    importlib.import_module("watched")
    autoload.install()
    assert [name for name, _ in package] == ["watched"]


def test_a_module_that_fails_to_import_fails_as_always(package):
    autoload.install()
    with pytest.raises(ImportError, match="of its own"):
        importlib.import_module("watched.broken")
    assert [name for name, _ in package] == ["watched"]


def test_installed_once(package):
    autoload.install()
    autoload.install()
    assert sum(isinstance(finder, autoload.MergekitFinder) for finder in sys.meta_path) == 1


def test_a_wrapped_loader_still_answers_for_the_source(package):
    autoload.install()
    assert importlib.util.find_spec("watched").loader.get_source("watched") == "value = 1\n"


def test_register_says_what_is_missing():
    result = python("import mergekit_bonesoup; mergekit_bonesoup.register()", PLUGIN, PLUGIN.parent / "src")
    assert "DependencyError: bone_soup needs mergekit 0.1.5 or newer: pip install" in result.stderr


def test_importing_the_method_first_neither_warns_nor_loses_it():
    """The method's module imports mergekit, so the hook runs while that module is half loaded."""
    code = (
        "from mergekit_bonesoup.autoload import install; install()\n"
        "from mergekit_bonesoup.method import bone_soup\n"
        "import mergekit.plan\n"
        "from mergekit import merge_methods\n"
        "assert merge_methods.get('bone_soup') is bone_soup\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stderr
