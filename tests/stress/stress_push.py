"""200 preferences pushed while 5 % of all requests fail at random: `pytest tests/stress/stress_push.py -s`.

Half of the failures are answers of 503, half are answers that are lost after the Hub did what was asked.
"""

import time
from collections import Counter
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from small_models import write_soup

from trl_bonesoup import BoneSoup
from trl_bonesoup.errors import HubError
from trl_bonesoup.hub.push import push

PREFERENCES = [[share / 199, 1.0 - share / 199] for share in range(200)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_arrive_once(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    waits: list[float] = []
    monkeypatch.setattr("trl_bonesoup.hub.client.time.sleep", waits.append)
    folder = write_soup(tmp_path / "run")
    faults = [
        hub.fail(share=0.025, times=None, seed=seed, status=503),
        hub.fail(share=0.025, times=None, seed=100 + seed, drop="answer"),
    ]
    started, pushes = time.perf_counter(), 0
    while True:
        pushes += 1
        try:
            done = push(folder, "org/soup", preferences=PREFERENCES, collection="Soups")
            break
        except HubError as error:  # a repository that failed five times in a row: the same push again
            print(error)
            assert pushes < 3
    seconds = time.perf_counter() - started
    commits = Counter(len(hub.commits(repo)) for repo in hub.repos)
    requests = len(hub.requests)
    print(
        f"seed {seed}: {len(hub.repos)} repositories, {requests} requests, of which {sum(f.hits for f in faults)} "
        f"failed; {pushes} push(es), {seconds:.0f} s, and {sum(waits) + sum(hub.waits):.0f} s of waiting left out"
    )
    assert commits == {2: 202}, "the Hub's own first commit and one of ours, in each repository"
    assert len(done) == len(hub.repos) == len(next(iter(hub.collections.values())).items) == 202
    hub.heal()
    BoneSoup.from_pretrained("org/soup").set_preference(PREFERENCES[7])
