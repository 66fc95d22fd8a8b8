"""Arguments that are numbers, rules that cannot work, and what a subclass says for itself."""

import math

import numpy
import pytest
import torch
import torchmetrics
from searches import Net, loss, search
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, EnasTrainer, LayerChoice, ProxylessTrainer, RandomTrainer, SinglePathTrainer, train
from supernet.errors import NonFiniteError, TrainingError
from supernet.execution import InputSlot, LayerSlot, Plan, Selection
from supernet.nn import InputChoice
from supernet.search import evolve
from supernet.space import SearchSpace
from supernet.trainers import DartsPlusStopping, StableStopping


def data(count=32, width=4):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(count, width, generator=generator)
    return TensorDataset(X, (X.sum(1) > 0).long())


def layers():
    torch.manual_seed(0)
    return nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "same": nn.Identity()}, label="a"), nn.Linear(4, 2))


def trainer_of(kind, model, **options):
    more = {"reward_function": lambda o, y: -loss(o, y)} if kind is EnasTrainer else {}
    if kind in (SinglePathTrainer, EnasTrainer, RandomTrainer):
        more |= {SinglePathTrainer: {"num_evaluations": 4}, EnasTrainer: {}, RandomTrainer: {"num_samples": 4}}[kind]
    options = {"loss": loss, "metrics": None, "num_epochs": 1, "dataset": data(), "batch_size": 4, **more, **options}
    options.setdefault("optimizer", SGD(model.parameters(), 0.1))
    return kind(model, **options)


# --- numbers -----------------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_numbers_in_run_directories_and_checkpoints_too(tmp_path):
    def fit(count, resume=None):
        options = {"num_epochs": numpy.int64(1), "batch_size": numpy.int64(4), "accumulate": numpy.int64(2)}
        options |= {"seed": numpy.int64(3), "grad_clip": numpy.float32(5), "ctrl_lr": numpy.float32(0.01)}
        trainer = trainer_of(EnasTrainer, layers(), ctrl_steps_aggregate=count, run_dir=tmp_path / "run", **options)
        trainer.fit(resume=resume)

    fit(numpy.int64(2))
    fit(2, "auto")
    with pytest.raises(TrainingError, match="ctrl_steps_aggregate was 2, is 4"):
        fit(numpy.int64(4), "auto")


def test_a_metric_of_several_numbers_is_refused_at_its_first_batch():
    trainer = trainer_of(DartsTrainer, layers(), metrics=lambda output, y: (output.argmax(1) == y).float())
    with pytest.raises(TrainingError, match="metrics must return a number or a dict of numbers"):
        trainer.fit()


def test_alphas_are_searched_over_weights_that_stay_as_they_are():
    model = layers().requires_grad_(False)
    trainer = trainer_of(DartsTrainer, model)
    before = trainer.alphas["a"].detach().clone()
    trainer.fit()
    assert not torch.equal(trainer.alphas["a"], before)


def test_options_of_the_search_alone_are_those_that_were_given_last(tmp_path):
    for num_epochs, options in ((1, {"num_evaluations": 3, "population": 2}), (2, {"num_evaluations": 9})):
        trainer = trainer_of(SinglePathTrainer, layers(), num_epochs=num_epochs, run_dir=tmp_path / "run", **options)
        trainer.fit(resume="auto")
        assert trainer.num_evaluations == options["num_evaluations"]
    assert trainer.population == 50


class Smoothed(nn.Module):
    def __init__(self, smoothing):
        super().__init__()
        self.inner = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def forward(self, output, y):
        return self.inner(output, y)


@pytest.mark.parametrize(
    ("given", "other"),
    [
        (lambda: nn.CrossEntropyLoss(torch.tensor([1.0, 1.0])), lambda: nn.CrossEntropyLoss(torch.tensor([1.0, 5.0]))),
        (lambda: Smoothed(0.0), lambda: Smoothed(0.1)),
    ],
)
def test_a_search_goes_on_with_the_loss_that_it_had_alone(tmp_path, given, other):
    def fit(loss, num_epochs):
        trainer = trainer_of(DartsTrainer, layers(), loss=loss, num_epochs=num_epochs, run_dir=tmp_path / "run")
        trainer.fit(resume="auto")

    fit(given(), 1)
    with pytest.raises(TrainingError, match=r"loss was .*, is "):
        fit(other(), 2)
    fit(given(), 2)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (DartsTrainer, {"seed": 1.5}, "seed is a whole number, not 1.5"),
        (DartsTrainer, {"seed": None}, "seed is a whole number, not None"),
        (DartsTrainer, {"stop_when": StableStopping(2)}, r"stop_when is a list, .*; give \[StableStopping\(...\)\]"),
        (ProxylessTrainer, {"warmup_epochs": 1.5}, "warmup_epochs is a whole number from 0 on, not 1.5"),
        (ProxylessTrainer, {"baseline_decay": 5}, "baseline_decay is a number from 0 to 1, not 5"),
        (ProxylessTrainer, {"cost_weight": math.nan}, "cost_weight is a finite number, not nan"),
        (ProxylessTrainer, {"cost": {"a": {"linear": math.nan, "same": 1}}}, "the cost of 'linear' in choice 'a' is a"),
        (SinglePathTrainer, {"mutation_probability": 7}, "mutation_probability is a number from 0 to 1, not 7"),
        (SinglePathTrainer, {"constraint": {"a": "same"}}, "constraint is a function or None, not"),
        (RandomTrainer, {"score": 3}, "score is a function or None, not 3"),
        (EnasTrainer, {"entropy_weight": math.nan}, "entropy_weight is a finite number, not nan"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_by_its_name(kind, options, message):
    with pytest.raises(TrainingError, match=message):
        trainer_of(kind, layers(), **options)


@pytest.mark.parametrize("name", ["num_epochs", "batch_size", "accumulate"])
@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "2", None])
def test_a_count_is_a_whole_number_from_one_on(name, bad):
    with pytest.raises(TrainingError, match=rf"{name} is a whole number from 1 on"):
        trainer_of(DartsTrainer, layers(), **{name: bad})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (SinglePathTrainer, "num_evaluations"),
        (SinglePathTrainer, "population"),
        (RandomTrainer, "num_samples"),
        (EnasTrainer, "ctrl_steps_aggregate"),
        (RandomTrainer, "recalibration_samples"),
    ],
)
def test_a_trainer_s_own_counts_obey_the_same_rule(kind, name):
    for bad in (True, 0, 2.0):
        with pytest.raises(TrainingError, match=f"{name} is a whole number from 1 on, not {bad}"):
            trainer_of(kind, layers(), **{name: bad})


def test_train_and_stopping_rules_obey_it_too():
    network = nn.Linear(4, 2)
    with pytest.raises(TrainingError, match="num_epochs is a whole number from 1 on, not True"):
        train(network, loss, None, SGD(network.parameters(), 0.1), True, data())
    with pytest.raises(TrainingError, match="epochs is a whole number from 1 on, not 0"):
        StableStopping(0)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, True, "5"])
def test_a_gradient_cannot_be_clipped_to_a_negative_or_endless_norm(bad):
    with pytest.raises(TrainingError, match="grad_clip is a number from 0 on"):
        trainer_of(DartsTrainer, layers(), grad_clip=bad)


@pytest.mark.parametrize("kind", [DartsTrainer, SinglePathTrainer, ProxylessTrainer, EnasTrainer])
def test_a_grad_clip_of_zero_does_not_clip(kind):
    weights = {}
    for clip in (None, 0, 0.0):
        model = layers()
        trainer_of(kind, model, grad_clip=clip).fit()
        weights[clip if clip is None else 0] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(weights[None], weights[0])
    assert not torch.equal(weights[0], torch.cat([p.detach().flatten() for p in layers().parameters()]))


# --- scores that are NaN -----------------------------------------------------------------------------------


def test_evolution_ranks_and_breeds_no_architecture_whose_score_is_nan():
    model = nn.Sequential(*(LayerChoice([nn.Linear(2, 2) for _ in range(4)], label=f"l{i}") for i in range(3)))
    space = SearchSpace(model)

    def score(architecture):
        return math.nan if architecture["l0"] == "0" else -float(sum(int(name) for name in architecture.values()))

    for seed in range(3):
        found = evolve(
            space,
            lambda generation: [score(a) for a in generation],
            budget=64,
            generator=torch.Generator().manual_seed(seed),
            population=8,
            num_parents=4,
        )
        assert {scored.architecture["l0"] for scored in found} == {"1", "2", "3"}
        assert [scored.score for scored in found] == sorted((scored.score for scored in found), reverse=True)
        assert found[0].architecture == {"l0": "1", "l1": "0", "l2": "0"}


def test_where_every_score_is_nan_there_is_no_best():
    with pytest.raises(NonFiniteError, match="each of 2 architectures is NaN"):
        evolve(SearchSpace(layers()), lambda g: [math.nan] * len(g), budget=9, generator=torch.Generator())


class BreaksInEval(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (1.0 if self.training else math.nan)


@pytest.mark.parametrize("kind", [SinglePathTrainer, RandomTrainer])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_architecture_whose_score_is_nan_is_never_exported(kind, place):
    candidates = [("one", nn.Linear(4, 4)), ("two", nn.Linear(4, 4))]
    candidates.insert(place, ("nan", BreaksInEval(4, 4)))
    model = nn.Sequential(LayerChoice(dict(candidates), label="a"), nn.Linear(4, 2))
    trainer = trainer_of(kind, model)
    trainer.fit()
    assert trainer.export()["a"] in ("one", "two")


def test_a_search_all_of_whose_scores_are_nan_ends_in_an_error():
    model = nn.Sequential(LayerChoice([BreaksInEval(4, 4), BreaksInEval(4, 4)], label="a"), nn.Linear(4, 2))
    with pytest.raises(NonFiniteError, match="is NaN"):
        trainer_of(RandomTrainer, model).fit()


# --- gates -------------------------------------------------------------------------------------------------


def test_a_lone_gate_scales_what_it_stands_at_and_has_its_gradient():
    choice = LayerChoice({"a": nn.Linear(3, 3), "b": nn.Identity()}, label="c")
    inputs = InputChoice(2, label="i")
    gate = torch.tensor([0.5], requires_grad=True)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    plan = Plan({"c": Selection(("a",), gate), "i": Selection(([1],), gate)})
    layer, picked = LayerSlot(choice, plan), InputSlot(inputs, plan)
    torch.testing.assert_close(layer(x), 0.5 * choice["a"](x))
    torch.testing.assert_close(picked([x, 2 * x]), x)
    (gradient,) = torch.autograd.grad(layer(x).sum(), gate)
    torch.testing.assert_close(gradient, choice["a"](x).sum().detach().reshape(1))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), 0.5 * choice["a"](x))


# --- subclasses --------------------------------------------------------------------------------------------


def test_records_and_stopping_rules_take_a_subclass_s_own_export():
    class Second(DartsTrainer):
        def export(self):
            return {"a": "same"}

    class SecondOfTwo(ProxylessTrainer):
        def export(self):
            return {"a": "same"}

    for kind in (Second, SecondOfTwo):
        trainer = trainer_of(kind, layers(), num_epochs=3, arc_learning_rate=1.0, stop_when=[StableStopping(1)])
        trainer.fit()
        assert [record["architecture"] for record in trainer.history] == [{"a": "same"}] * 2


@pytest.mark.parametrize("rule", [StableStopping(2), DartsPlusStopping()])
@pytest.mark.parametrize("kind", [SinglePathTrainer, RandomTrainer, EnasTrainer])
def test_a_rule_that_needs_each_epoch_s_architecture_is_refused_before_a_search_that_has_none(kind, rule):
    trainer = trainer_of(kind, layers(), stop_when=[rule])
    with pytest.raises(TrainingError, match=f"{type(rule).__name__} asks for the architecture of each epoch"):
        trainer.fit()
    assert trainer.global_step == 0


@pytest.mark.filterwarnings("ignore:.* has state that it does not name")
def test_what_a_subclass_set_before_the_constructor_of_its_base_comes_back(tmp_path):
    class Counting(DartsTrainer):
        def __init__(self, *args, **options):
            self.seen = {"batches": 0}
            self.loss = None  # which the base sets anew, and keeps for itself
            super().__init__(*args, **options)

        def train_model_weight(self, X, y):
            self.seen["batches"] += 1
            super().train_model_weight(X, y)

    counts = []
    for epochs in (1, 2):
        trainer = trainer_of(Counting, layers(), num_epochs=epochs, run_dir=tmp_path)
        trainer.fit(resume="auto")
        counts.append(trainer.seen["batches"])
    assert counts == [4, 8]


def test_the_best_checkpoint_is_not_one_whose_loss_is_nan(tmp_path):
    trainer = search("path", tmp_path)
    trainer._run.directory.write_checkpoint({}, 1, 1, math.nan)
    trainer._run.directory.write_checkpoint({}, 2, 1, 1.0)
    trainer._run.directory.write_checkpoint({}, 3, 1, 2.0)
    assert sorted(path.name[-1 - len(".safetensors")] for path in tmp_path.glob("checkpoints/*")) == ["2", "3"]
    assert isinstance(trainer.model, Net)


class Late(DartsTrainer):
    """Makes an attribute of its own while it trains."""

    make = staticmethod(int)

    def train_model_weight(self, X, y):
        if not hasattr(self, "late"):
            self.late = self.make()
        self.late += 1
        super().train_model_weight(X, y)


@pytest.mark.filterwarnings("ignore:.* has state that it does not name")
def test_what_a_subclass_makes_while_it_trains_comes_back(tmp_path):
    trainer_of(Late, layers(), num_epochs=1, run_dir=tmp_path).fit()
    again = trainer_of(Late, layers(), num_epochs=2, run_dir=tmp_path)
    again.fit(resume="auto")
    assert again.late == again.global_step == 8


@pytest.mark.filterwarnings("ignore:.* has state that it does not name")
def test_what_a_subclass_makes_after_a_checkpoint_is_gone_where_the_same_object_goes_on(tmp_path):
    class Second(Late):
        def train_model_weight(self, X, y):
            (Late if self.epoch == 1 else DartsTrainer).train_model_weight(self, X, y)
            if self.global_step == 5 and not self.interrupted:
                self.interrupted.append(True)
                raise KeyboardInterrupt

    trainer = trainer_of(Second, layers(), num_epochs=2, run_dir=tmp_path)
    trainer.interrupted = []
    trainer._ours.add("interrupted")
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.fit(resume="auto")
    assert trainer.late == 4


@pytest.mark.filterwarnings("ignore:.* has state that it does not name")
def test_what_cannot_be_made_from_its_state_is_to_be_made_in_the_constructor(tmp_path):
    class Tensors(Late):
        def make(self):
            self.optimizer_of_late = SGD([torch.zeros(2, requires_grad=True)], 0.1)
            return 0

    trainer_of(Tensors, layers(), num_epochs=1, run_dir=tmp_path).fit()
    with pytest.raises(TrainingError, match="a SGD in 'optimizer_of_late', which this trainer makes only while"):
        trainer_of(Tensors, layers(), num_epochs=2, run_dir=tmp_path).fit(resume="auto")


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        (DartsTrainer, {"arc_learning_rate": "fast"}, "arc_learning_rate is a number from 0 on, not 'fast'"),
        (ProxylessTrainer, {"arc_learning_rate": -1.0}, "arc_learning_rate is a number from 0 on"),
        (EnasTrainer, {"ctrl_lr": math.nan}, "ctrl_lr is a number from 0 on"),
        (DartsTrainer, {"checkpointing": None}, r"checkpointing is a supernet.trainers.Checkpointing, not None"),
    ],
)
def test_other_arguments_that_cannot_be_are_refused_by_name(kind, options, match):
    with pytest.raises(TrainingError, match=match):
        trainer_of(kind, layers(), **options)


def test_calls_that_cannot_be_are_refused_by_name(caplog):
    trainer = trainer_of(ProxylessTrainer, layers(), warmup_epochs=1)
    assert "warmup_epochs=1 of 1 epochs: the architecture is not trained" in caplog.text
    with pytest.raises(TrainingError, match="resume is 'auto', the path of a run directory, or None, not True"):
        trainer.fit(resume=True)
    with pytest.raises(TrainingError, match="num_batches is a whole number from 1 on, not 0"):
        trainer.evaluate({"a": "same"}, num_batches=0)
    several = torchmetrics.classification.MulticlassAccuracy(2, average=None)
    with pytest.raises(TrainingError, match="a number or a dict of numbers, but 'MulticlassAccuracy' is"):
        trainer_of(DartsTrainer, layers(), metrics=several).fit()


@pytest.mark.parametrize("kind", [DartsTrainer, SinglePathTrainer, ProxylessTrainer, EnasTrainer])
def test_optimizers_that_need_a_closure_are_refused_by_name(kind):
    model = layers()
    with pytest.raises(TrainingError, match="LBFGS evaluates the loss several times a step, by a closure"):
        trainer_of(kind, model, optimizer=torch.optim.LBFGS(model.parameters()))
    network = nn.Linear(4, 2)
    with pytest.raises(TrainingError, match="LBFGS evaluates the loss"):
        train(network, loss, None, torch.optim.LBFGS(network.parameters()), 1, data())
