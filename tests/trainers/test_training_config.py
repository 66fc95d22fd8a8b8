"""Options of trainers: written once, given by name or as one config, and compared where a search goes on."""

import dataclasses
import inspect
import json
import re

import pytest
import torch
from searches import Augmented, Net, loss, search
from torch.optim import SGD

from supernet import DartsTrainer, EnasTrainer, SearchSpace, SinglePathTrainer, SupernetTrainer
from supernet.errors import TrainingError
from supernet.trainers import FabricConfig, LoopOptions, TrainerArguments, TrainingConfig
from supernet.training.config import FIELDS
from supernet.training.evaluation import NetworkTrainer
from supernet.training.loop import TrainingLoop


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    monkeypatch.setattr("supernet.trainers.SupernetTrainer._write_plots", lambda self, run: None)


class Tempered(DartsTrainer):
    """A trainer of somebody else, with options of its own."""

    free_options = frozenset({"shown"})

    def __init__(self, *task, temperature=1.0, shown=10, **config):
        super().__init__(*task, **config)


class Cooled(Tempered):
    def __init__(self, *task, rate=0.5, **config):
        super().__init__(*task, **config)


class Closed(DartsTrainer):
    """Makes the task itself, so what it is given may mean anything."""

    def __init__(self, model, passes=1, run_dir=None):
        optimizer = SGD(model.parameters(), 0.1)
        super().__init__(
            model, loss, None, optimizer, passes, Augmented(), batch_size=12, run_dir=run_dir, device="cpu"
        )


def task():
    torch.manual_seed(0)
    model = Net()
    return {"model": model, "loss": loss, "metrics": None, "optimizer": SGD(model.parameters(), 0.1), "num_epochs": 1}


def new(kind, *, num_epochs=1, **options):
    return kind(**{**task(), "num_epochs": num_epochs}, dataset=Augmented(), batch_size=12, device="cpu", **options)


# --- one config ------------------------------------------------------------------------------------------------


def test_keyword_arguments_and_a_config_say_the_same():
    options = {"batch_size": 8, "accumulate": 2, "seed": 3, "precision": "bf16-mixed", "process_timeout": 60}
    by_name = search("first order", **options)
    given = search("first order", config=TrainingConfig.of(**options), batch_size=8)  # the searches say a batch size
    assert by_name.config == given.config
    assert by_name.given_options == given.given_options
    assert (given.accumulate, given.seed, given.precision) == (2, 3, "bf16-mixed")


def test_an_option_given_by_name_stands_before_that_of_a_config():
    config = TrainingConfig(accumulate=2, seed=3, fabric=FabricConfig(device="cpu", precision="bf16-mixed"))
    trainer = search("first order", config=config, seed=4, precision="32-true")
    assert (trainer.accumulate, trainer.seed, trainer.precision) == (2, 4, "32-true")
    assert (config.seed, config.fabric.precision) == (3, "bf16-mixed")
    with pytest.raises(dataclasses.FrozenInstanceError):
        trainer.config.seed = 5


def test_a_config_is_one():
    with pytest.raises(TrainingError, match=r"config is a supernet\.trainers\.TrainingConfig, not {'seed': 3}"):
        search("first order", config={"seed": 3})
    with pytest.raises(TrainingError, match=r"fabric is a supernet\.trainers\.FabricConfig, not 'cpu'"):
        TrainingConfig(fabric="cpu")


@pytest.mark.parametrize("make", [TrainingConfig.of, lambda **options: search("first order", **options)])
def test_an_option_is_checked_wherever_it_is_given(make):
    with pytest.raises(TrainingError, match="accumulate is a whole number from 1 on, not 0"):
        make(accumulate=0)
    with pytest.raises(TrainingError, match=r"process_timeout is a number from 0\.1 to 1e"):
        make(process_timeout=0)


def test_second_order_looks_at_the_options_of_a_config_too():
    for options, why in (({"accumulate": 2}, "goes with accumulate=1"), ({"precision": "bf16-true"}, "16 bits cannot")):
        with pytest.raises(TrainingError, match=f"unrolled=True .*{why}"):
            search("second order", config=TrainingConfig.of(**options))


# --- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "nearest"),
    [
        (DartsTrainer, "batchsize", "batch_size"),
        (DartsTrainer, "xyz", None),
        (SinglePathTrainer, "num_evaluation", "num_evaluations"),
        (Cooled, "temprature", "temperature"),
        (Cooled, "schedular", "scheduler"),
        (Cooled, "progres", "progress"),
    ],
)
def test_an_argument_that_there_is_not_is_refused_with_the_nearest(kind, name, nearest):
    arguments = task()
    mend = f"did you mean '{nearest}'\\?" if nearest else "it takes: model, loss, metrics, .*, arc_learning_rate,"
    with pytest.raises(TypeError, match=f"^{kind.__name__} takes no argument '{name}'; {mend}"):
        kind(**arguments, dataset=Augmented(), **{name: 1})
    assert SearchSpace(arguments["model"])  # it is as it was


def test_arguments_that_are_missing_or_too_many_are_refused_by_the_trainers_name():
    model = Net()
    for kind in (DartsTrainer, SinglePathTrainer, Cooled):
        with pytest.raises(TypeError, match=f"^{kind.__name__}: missing a required argument: 'loss'$"):
            kind(model)
        with pytest.raises(TypeError, match=f"^{kind.__name__}: too many positional arguments$"):
            kind(*task().values(), Augmented(), 5.0)
    assert SearchSpace(model)


def test_help_shows_all_that_a_trainer_takes():
    parameters = inspect.signature(Cooled).parameters
    loops = list(inspect.signature(TrainingLoop).parameters)
    assert list(parameters)[:6] == ["model", "loss", "metrics", "optimizer", "num_epochs", "dataset"]
    assert {*loops, "rate", "temperature", "shown", "arc_learning_rate", "memory", "unrolled"} <= set(parameters)
    assert "relaxation" not in parameters  # which DARTS gives its base
    assert (parameters["rate"].default, parameters["batch_size"].default) == (0.5, 64)
    assert list(inspect.signature(EnasTrainer).parameters)[:4] == ["model", "loss", "metrics", "reward_function"]
    assert list(inspect.signature(Closed).parameters) == ["model", "passes", "run_dir"]  # it hands on nothing
    networks = inspect.signature(NetworkTrainer).parameters  # which calls the model by another name
    assert {"network", "batch_size"} <= set(networks) and "model" not in networks


def test_a_task_may_be_given_by_position_and_by_name():
    given = task()
    for trainer in (Cooled(*given.values(), Augmented(), device="cpu"), new(Cooled, rate=0.1)):
        assert trainer.num_epochs == 1


def test_what_type_checkers_know_is_what_there_is():
    loops = inspect.signature(TrainingLoop).parameters
    keywords = {name for name, parameter in loops.items() if parameter.kind is parameter.KEYWORD_ONLY}
    assert keywords == set(LoopOptions.__annotations__)
    assert set(loops) == set(TrainerArguments.__annotations__)
    types = {name: known.__forward_arg__ for name, known in LoopOptions.__annotations__.items()}
    assert {name: types[name] for name in FIELDS} == {name: field.type for name, field in FIELDS.items()}


def test_each_option_has_a_text_that_says_its_default():
    documented = SupernetTrainer.__doc__
    for name in inspect.signature(TrainingLoop).parameters:
        assert re.search(rf"^ +{name}: [A-Z`]", documented, re.MULTILINE), name
    for cls in (TrainingConfig, FabricConfig):
        for field in dataclasses.fields(cls):
            entry = " ".join(cls.__doc__.split(f" {field.name}: ")[1].split())
            assert "Default: " in entry, field.name
            assert entry[0].isupper() and field.metadata["text"].endswith("."), field.name
    assert "{options}" not in documented + TrainingConfig.__doc__ + FabricConfig.__doc__


# --- where a search goes on ------------------------------------------------------------------------------------


def test_an_option_of_a_trainer_of_ones_own_is_compared_where_it_goes_on_unless_it_is_free(tmp_path):
    new(Cooled, run_dir=tmp_path).fit()
    for change, text in (({"temperature": 2.0}, "temperature was 1.0, is 2.0"), ({"rate": 1}, "rate was 0.5, is 1")):
        with pytest.raises(TrainingError, match=f"{text}; make the trainer as it was"):
            new(Cooled, num_epochs=2, run_dir=tmp_path, **change).fit(resume="auto")
    trainer = new(Cooled, num_epochs=2, run_dir=tmp_path, shown=20)
    trainer.fit(resume="auto")
    assert len(trainer.history) == 2
    written = json.loads((tmp_path / "run.json").read_text())["hyperparameters"]
    assert (written["temperature"], written["rate"], written["shown"]) == (1.0, 0.5, 20)


def test_a_trainer_that_makes_its_task_itself_may_be_given_more_epochs(tmp_path):
    for passes in (1, 2):
        trainer = Closed(Net(), passes, run_dir=tmp_path)
        trainer.fit(resume="auto")
    assert len(trainer.history) == 2


def test_what_options_says_besides_is_read_before_the_first_step_and_compared(tmp_path):
    class Annealed(Closed):
        def __init__(self, model, passes, run_dir, start):
            super().__init__(model, passes, run_dir)
            self.temperature = start

        def stateful(self):
            return {**super().stateful(), "temperature": self.temperature}

        def options(self):
            return {**super().options(), "start": self.temperature}

        def train_model_weight(self, X, y):
            self.temperature /= 2
            super().train_model_weight(X, y)

    Annealed(Net(), 1, tmp_path, 8.0).fit()
    again = Annealed(Net(), 2, tmp_path, 8.0)
    again.fit(resume="auto")
    assert again.temperature == 8.0 / 2**again.global_step
    with pytest.raises(TrainingError, match=r"start was 8\.0, is 4\.0"):
        Annealed(Net(), 3, tmp_path, 4.0).fit(resume="auto")
    assert json.loads((tmp_path / "run.json").read_text())["hyperparameters"]["start"] == 8.0


def test_options_that_are_noted_as_before_are_compared_with_a_warning(tmp_path):
    class Noting(Closed):
        def __init__(self, model, run_dir, temperature, shown):
            super().__init__(model, 1, run_dir)
            with pytest.warns(DeprecationWarning, match=r"note_options is not needed .* Noting\.free_options"):
                self.note_options(temperature=temperature)
            with pytest.warns(DeprecationWarning, match="note_options"):
                self.note_options(free=True, shown=shown)

    Noting(Net(), tmp_path, 1.0, 1).fit()
    with pytest.raises(TrainingError, match=r"temperature was 1\.0, is 2\.0"):
        Noting(Net(), tmp_path, 2.0, 2).fit(resume="auto")
    Noting(Net(), tmp_path, 1.0, 2).fit(resume="auto")
