"""The installed command in a process of its own: what it finds from the folder that it is started in."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = [str(Path(sys.executable).with_name("bonesoup"))]
MODULE = [sys.executable, "-m", "trl_bonesoup"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_rewards.py").write_text("import helpers_of_mine\n\nhelpful = 'not a function'\n")
    (tmp_path / "helpers_of_mine.py").write_text("")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    return tmp_path


def seek(command, folder):
    """What `seek` says to a reward that is found and is no function, before it loads a model."""
    rewards = ("--reward", "helpful=my_rewards:helpful", "--reward", "plainness")
    return subprocess.run(
        [*command, "seek", "--model", "org/sft", *rewards, "--prompts", "prompts.jsonl", "--output-dir", "run"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["bonesoup", "python -m trl_bonesoup"])
def test_rewards_are_found_in_the_folder_that_the_command_is_started_in(command, folder):
    done = seek(command, folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bonesoup: Reward 'my_rewards:helpful' is not a callable in module my_rewards.\n"


def test_what_is_installed_comes_before_the_folder(folder):
    """A file that is called like a package is not run in its place."""
    (folder / "yaml.py").write_text("raise SystemExit('the wrong one')\n")
    assert "is not a callable" in seek(SCRIPT, folder).stderr


def test_a_module_that_is_nowhere_is_said_to_be_looked_for_here(folder):
    (folder / "my_rewards.py").unlink()
    done = seek(SCRIPT, folder)
    assert done.returncode == 2
    assert "No module named 'my_rewards'" in done.stderr
    assert str(folder) in done.stderr
