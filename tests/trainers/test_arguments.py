"""Arguments that are numbers, rules that cannot work, and what a subclass says for itself."""

import math

import pytest
import torch
from searches import Net, loss, search
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, EnasTrainer, LayerChoice, ProxylessTrainer, RandomTrainer, SinglePathTrainer, train
from supernet.errors import NonFiniteError, TrainingError
from supernet.execution import GatedInput, GatedLayer, Gates, Plan
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
    plan = Plan({"c": Gates(("a",), gate), "i": Gates(([1],), gate)})
    layer, picked = GatedLayer(choice, plan), GatedInput(inputs, plan)
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
    trainer._run.write_checkpoint({}, 1, 1, math.nan)
    trainer._run.write_checkpoint({}, 2, 1, 1.0)
    trainer._run.write_checkpoint({}, 3, 1, 2.0)
    assert sorted(path.name[-1 - len(".safetensors")] for path in tmp_path.glob("checkpoints/*")) == ["2", "3"]
    assert isinstance(trainer.model, Net)
