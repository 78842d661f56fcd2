"""Options that a command does not have are told by their names, with the usage of that command."""

import pytest

from trl_bonesoup.cli import main


@pytest.mark.parametrize(
    ("arguments", "command", "message"),
    [
        ("merge run out --prefernce 0.7,0.3", "merge", "merge has no option --prefernce; did you mean --preference?"),
        ("merge run out --prefernce=0.7,0.3", "merge", "merge has no option --prefernce; did you mean --preference?"),
        ("merge run out --preference x --dtyp=bf16 --rnk 3", "merge", "no option --rnk; did you mean --rank?"),
        ("sweep run out --grid --stepp", "sweep", "sweep has no option --stepp"),
        ("sweep run out --zzz 3", "sweep", "sweep has no option --zzz"),
        ("sweep run out more", "sweep", "unrecognized arguments: more"),
        ("sweep run out -x", "sweep", "unrecognized arguments: -x"),
        ("merge run out", "merge", "the following arguments are required: --preference"),
    ],
)
def test_what_a_command_does_not_take_is_told_with_its_own_usage(arguments, command, message, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith(f"usage: bonesoup {command} ")
    assert "{" not in shown  # braces would show a list of choices


def test_only_a_near_option_is_offered(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "run", "out", "--zzz"])
    assert "did you mean" not in capsys.readouterr().err


def test_values_after_two_dashes_and_shortened_options_are_left_alone(capsys) -> None:
    assert main(["merge", "--pref", "0.5,0.5", "--", "--no-such-folder", "out"]) == 2
    assert "--no-such-folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["run --preference 0.5,0.5 out", "run out --preference 0.5,0.5"])
def test_a_folder_may_follow_the_options(arguments, monkeypatch) -> None:
    taken = []
    monkeypatch.setattr("trl_bonesoup.cli.merge.run", taken.append)
    assert main(["merge", *arguments.split()]) == 0
    assert (taken[0].soup, taken[0].preference, taken[0].out) == ("run", "0.5,0.5", "out")


def test_more_folders_than_a_command_takes_are_told(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["merge", "run", "--preference", "0.5,0.5", "out", "more"])
    assert "unrecognized arguments: more" in capsys.readouterr().err
