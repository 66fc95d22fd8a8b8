"""What a searcher keeps in a storage of Optuna's: people can read it, it is true, and a search that died goes on."""

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from search_that_dies import KINDS, LIMITS, OBJECTIVES, accuracy, new_model, searched, storage_in
from tests.programs import Program

from supernet.cost import Limits, Parameters
from supernet.errors import TrainingError
from supernet.search import search, search_front

optuna = pytest.importorskip("optuna")
every_kind = pytest.mark.parametrize("kind", KINDS)
NAME = "mlp, parameters 60 to 400"
COMPLETE, PRUNED, FAIL, RUNNING = (optuna.trial.TrialState[n] for n in ("COMPLETE", "PRUNED", "FAIL", "RUNNING"))


def study_in(directory):
    return optuna.load_study(study_name=NAME, storage=storage_in(directory))


@every_kind
def test_a_study_shows_to_optuna_alone_what_was_measured_of_which_architecture(kind, tmp_path):
    url = f"sqlite:///{tmp_path / 'search.db'}"
    front = searched(kind, tmp_path, 8, storage=url)
    study, cost = optuna.load_study(study_name=NAME, storage=url), Parameters(new_model())
    assert study.metric_names == ["accuracy", "parameters"]
    assert [way.name for way in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.user_attrs == {"uneven (position)": "4, 8, 32"}
    shown = {}
    for trial in study.trials:
        architecture = json.loads(trial.user_attrs["architecture"])
        position = [4, 8, 32].index(architecture["uneven"])
        assert trial.params == {
            "even": architecture["even"],
            "uneven (position)": position,
            "act": architecture["act"],
        }
        assert trial.user_attrs["parameters"] == cost.of(architecture)
        assert (trial.state == PRUNED) == (not 60 <= cost.of(architecture) <= 400)
        if trial.state == COMPLETE:
            shown[json.dumps(architecture)] = trial.values
            assert trial.values == [accuracy(architecture), cost.of(architecture)]
        elif trial.state == FAIL:
            assert math.isnan(accuracy(architecture)) or trial.user_attrs["why"] == "proposed again"
    measured = {json.dumps(entry.architecture): entry for entry in front.entries}
    assert shown.keys() == {name for name, entry in measured.items() if not math.isnan(entry.value("accuracy"))}
    best = {trial.user_attrs["architecture"] for trial in study.best_trials}
    assert best == {json.dumps(entry.architecture) for entry in front.nondominated}


@every_kind
def test_a_search_whose_process_was_killed_goes_on_and_evaluates_nothing_twice(kind, tmp_path):
    script = Path(__file__).with_name("search_that_dies.py")
    killed = Program(script, kind, tmp_path, 11)
    killed.communicate()
    assert killed.poll() == -9
    done = (tmp_path / "begun").read_text().splitlines()[:-1]
    (dying,) = [t for t in study_in(tmp_path).trials if t.state == RUNNING]
    assert len(done) == 10 and any(math.isnan(accuracy(json.loads(name))) for name in done)

    limits = Limits(new_model(), LIMITS)
    allowed = {json.dumps(one) for one in limits.space.enumerate() if limits(one)}
    front = searched(kind, tmp_path, len(allowed))
    times = Counter((tmp_path / "begun").read_text().splitlines())
    assert times.keys() == allowed
    assert {name for name, count in times.items() if count > 1} <= {dying.user_attrs["architecture"]}
    # What the process that died has measured is on the front too.
    numbers = {name for name in allowed if not math.isnan(accuracy(json.loads(name)))}
    expected = search_front(
        lambda some: [{"accuracy": accuracy(one)} for one in some],
        OBJECTIVES,
        len(allowed),
        model=new_model(),
        limits=LIMITS,
        progress=False,
    )
    assert numbers <= {json.dumps(entry.architecture) for entry in front.entries}
    assert str(front) == str(expected)


def test_what_another_process_put_in_the_queue_gets_no_score_of_another_architecture(tmp_path):
    """It died before it told, or is about to."""
    limits = Limits(new_model(), LIMITS)
    searcher = KINDS["TPE"](limits.space, storage=storage_in(tmp_path), study_name="mlp", constraint=limits)
    search(searcher, lambda some: [accuracy(one) for one in some], 2)
    study_in(tmp_path).enqueue_trial({"even": 8, "uneven (position)": 0, "act": "relu"})
    search(searcher, lambda some: [accuracy(one) for one in some], 2)  # which are drawn by the priors
    complete = [trial for trial in study_in(tmp_path).trials if trial.state == COMPLETE]
    told = [(one.architecture, one.score) for one in searcher.ranked()]
    assert complete and len(complete) == len(told)
    for trial in complete:
        assert (architecture := json.loads(trial.user_attrs["architecture"]), accuracy(architecture)) in told
        assert trial.value == accuracy(architecture)


@pytest.mark.parametrize(
    "objectives",
    [{"accuracy": "max", "macs": "min"}, {"accuracy": "max", "parameters": "max"}, {"parameters": "min"}],
    ids=["other names", "other ways", "fewer"],
)
def test_a_study_of_other_objectives_is_refused(objectives, tmp_path):
    searched("TPE", tmp_path, 5)
    with pytest.raises(TrainingError, match=r"mlp, parameters 60 to 400.*give another study_name"):
        searched("TPE", tmp_path, 5, objectives=objectives, example=torch.zeros(1, 4))
    assert len(study_in(tmp_path).trials) == len((tmp_path / "begun").read_text().splitlines())


def test_with_a_directory_too_the_front_has_all_metrics_of_what_the_storage_knows(tmp_path):
    def evaluate(some):
        asked.extend(map(json.dumps, some))
        return [{"accuracy": accuracy(one), "loss": 1 / one["even"]} for one in some]

    asked = []
    again = partial(
        search_front, evaluate, OBJECTIVES, 6, model=new_model(), directory=tmp_path, identity="of May", progress=False
    )
    searcher = partial(KINDS["TPE"], storage=storage_in(tmp_path))
    first, second = again(searcher=searcher), again(searcher=searcher)
    assert len({*asked}) == len(asked) == 12
    known = [entry for entry in first.entries if not math.isnan(entry.value("accuracy"))]
    assert known and all(entry in second.entries for entry in known)
