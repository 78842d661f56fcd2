import json

import numpy as np
import pytest

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.plots import plot_training
from trl_bonesoup.front.plots.style import COLOURS
from trl_bonesoup.front.plots.training import read_training_logs


def entries(rewards, **others):
    log = [
        {
            "step": 4 * (t + 1),
            "reward": r,
            "kl": 0.1 * t,
            "rewards/warm/mean": 2 * r,
            "rewards/brief/mean": -r,
            **others,
        }
        for t, r in enumerate(rewards)
    ]
    return [*log, {"step": 4 * len(log), "train_runtime": 12.0}, {"epoch": 1.0}]


@pytest.fixture
def run(tmp_path):
    """A run of seek: backbone "warm" is finished, "brief" is in training and has two whole checkpoints."""
    (tmp_path / "seek.json").write_text(json.dumps({"request": {"objectives": ["warm", "brief"]}}))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "warm.json").write_text(json.dumps({"steps": 12, "log": entries([1.0, 2.0, 4.0])}))
    for step, rewards in ((8, [5.0, 6.0]), (16, [5.0, 6.0, 7.0, 8.0]), (9, [0.0])):
        checkpoint = tmp_path / ".training-brief" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": entries(rewards)}))
    (tmp_path / ".training-brief" / "checkpoint-20").mkdir()  # being written
    return tmp_path


def test_logs_of_finished_backbones_and_of_those_in_training(run):
    logs = read_training_logs(run)
    assert {label: [e["reward"] for e in log if "reward" in e] for label, log in logs.items()} == {
        "backbone warm": [1.0, 2.0, 4.0],
        "backbone brief": [5.0, 6.0, 7.0, 8.0],
    }


def test_a_finished_backbone_is_not_read_from_what_is_left_of_its_training(run):
    (run / "logs" / "brief.json").write_text(json.dumps({"steps": 4, "log": entries([3.0])}))
    assert read_training_logs(run)["backbone brief"][0]["reward"] == 3.0


def test_a_trainers_folder_a_checkpoint_and_a_file(run):
    work = run / ".training-brief"
    assert list(read_training_logs(work)) == [".training-brief"]
    assert len(read_training_logs(work)[".training-brief"]) == 5
    assert list(read_training_logs(work / "checkpoint-8")) == ["checkpoint-8"]
    assert list(read_training_logs(work / "checkpoint-8" / "trainer_state.json")) == ["checkpoint-8"]
    assert list(read_training_logs(run / "logs" / "warm.json")) == ["warm"]


def test_runs_by_name_go_before_their_backbones(run):
    logs = read_training_logs({"β .7": run, "expert": run / "logs" / "warm.json"})
    assert list(logs) == ["β .7, backbone warm", "β .7, backbone brief", "expert"]


def test_a_panel_for_reward_kl_and_each_objective_with_a_line_for_each_backbone(run):
    figure = plot_training(run)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "weighted reward", "KL from base (nats/token)", "mean warm", "mean brief"
    ]  # fmt: skip
    for axes, warm in zip(figure.axes, ([1, 2, 4], [0, 0.1, 0.2], [2, 4, 8], [-1, -2, -4]), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        np.testing.assert_allclose(lines["backbone warm"].get_xydata(), np.stack([[4, 8, 12], warm], axis=1))
        np.testing.assert_allclose(lines["backbone brief"].get_xdata(), [4, 8, 12, 16])
        assert [lines[f"backbone {name}"].get_color() for name in ("warm", "brief")] == list(COLOURS[:2])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["backbone warm", "backbone brief"]


def test_long_curves_have_their_running_mean_on_top(tmp_path):
    rewards = [float((-1) ** t * t) for t in range(60)]  # a fifteenth of 60: means of the last 4
    file = tmp_path / "long.json"
    file.write_text(json.dumps({"steps": 240, "log": entries(rewards)}))
    raw, smooth = plot_training(file, metrics=["reward"]).axes[0].lines
    np.testing.assert_allclose(raw.get_ydata(), rewards)
    expected = [np.mean(rewards[max(0, end - 4) : end]) for end in range(1, 61)]
    np.testing.assert_allclose(smooth.get_ydata(), expected)
    assert smooth.get_label() == "long"


def test_chosen_metrics_and_curves_that_lack_one(run):
    (run / "logs" / "warm.json").write_text(json.dumps({"steps": 4, "log": entries([3.0], entropy=0.5)}))
    (axes,) = plot_training(run, metrics=["entropy"]).axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    assert lines == {"backbone warm": [0.5], "backbone brief": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no training logs"),
        ("{", "neither a log"),
        ("{}", "neither a log"),
        ('{"log": 3}', "neither a log"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, content, message):
    place = tmp_path
    if content is not None:
        place = tmp_path / "x.json"
        place.write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        plot_training(place)


def test_a_metric_that_was_not_logged_is_refused_with_those_that_were(run):
    with pytest.raises(ConfigurationError, match=r"hold no \['speed'\].*'kl'"):
        plot_training(run, metrics=["reward", "speed"])
