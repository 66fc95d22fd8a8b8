"""Every trainer keeps limits of costs: what it samples, what it exports, and what it says of the frozen network."""

import json
import logging

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet.nn as elastic
from supernet import (
    DartsTrainer,
    EnasTrainer,
    InputChoice,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    SampledTrainer,
    SearchSpace,
    SinglePathTrainer,
    ValueChoice,
    freeze,
)
from supernet.cost import ArchitectureCost, Limits, Macs, TableCost
from supernet.errors import CostError, TrainingError
from supernet.testing import check_trainer
from supernet.training.first_call import first_of

KINDS = {
    "darts": (DartsTrainer, {}),
    "unrolled": (DartsTrainer, {"unrolled": True}),
    "proxyless": (ProxylessTrainer, {}),
    "reinforce": (ProxylessTrainer, {"estimator": "reinforce"}),
    "single path": (SinglePathTrainer, {"num_evaluations": 4, "population": 4, "num_parents": 2}),
    "random": (RandomTrainer, {"num_samples": 4, "num_finalists": 2}),
    "enas": (EnasTrainer, {"num_samples": 3, "reward_function": lambda output, target: float(-output.square().mean())}),
}


class Net(nn.Module):
    """A width, a choice of layers, and one of inputs."""

    def __init__(self):
        super().__init__()
        self.width = ValueChoice([2, 4, 8], label="width")
        self.first = elastic.Linear(4, self.width)
        big = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
        self.op = LayerChoice({"big": big, "small": nn.Linear(4, 4), "skip": nn.Identity()}, label="op")
        self.inputs = InputChoice(2, (1, 2), absent="zeros", label="inputs")
        self.last = elastic.Linear(self.width, 2)

    def forward(self, x):
        return self.last(self.first(self.inputs([x, self.op(x)])))


def data(count=32):
    X = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(X, (X.sum(1) > 0).long())


def trainer(kind, model=None, **options):
    cls, its_own = KINDS[kind] if isinstance(kind, str) else (kind, {})
    torch.manual_seed(0)
    model = Net() if model is None else model
    options = {"loss": nn.CrossEntropyLoss(), "num_epochs": 2, "dataset": data(), **its_own, **options}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return cls(model, metrics=None, optimizer=optimizer, batch_size=8, progress=False, device="cpu", **options)


def parameters_of(architecture):
    return sum(p.numel() for p in freeze(Net(), architecture).parameters())


# --- what is exported, and what is said of it -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_trainer_exports_keeps_the_limits_and_its_frozen_network_is_what_is_counted(kind, tmp_path, caplog):
    caplog.set_level(logging.INFO, "supernet")
    search = trainer(kind, limits={"parameters": 40, "macs": "50%"}, run_dir=tmp_path)
    search.fit()
    network = freeze(search.model, search.export())
    parameters = sum(p.numel() for p in network.parameters())
    macs = Macs(network, torch.ones(1, 4)).of({})
    assert parameters <= 40 and macs <= 112 / 2  # the largest has 4 * 8 four times, less half of the last
    costs = json.loads((tmp_path / "run.json").read_text())["costs"]
    assert costs["parameters"] == {"cost": parameters, "unit": "", "least": None, "most": 40.0}
    assert costs["macs"]["cost"] == macs and costs["macs"]["most"] == pytest.approx(112 / 2)
    assert f"the exported network has parameters {parameters} (at most 40), macs {macs:g} (at most 56)" in caplog.text


@pytest.mark.parametrize("kind", ["single path", "random", "enas", SampledTrainer])
def test_every_path_that_a_sampling_trainer_runs_keeps_the_limits(kind):
    class Own(SampledTrainer):
        def __init__(self, *task, **config):
            super().__init__(*task, **config)
            self.build_path_supernet()

        def export(self):
            return self.best([self.sample()], 1)[0]

    search, ran = trainer(Own if kind is SampledTrainer else kind, limits={"parameters": (20, 60)}), []
    following = search.supernet.following
    search.supernet.following = lambda plan: ran.append(dict(plan)) or following(plan)
    search.fit()
    assert len(ran) > 8
    assert all(20 <= parameters_of(search.space.canonical(path)) <= 60 for path in ran)


@pytest.mark.parametrize("kind", ["single path", "random"])
def test_limits_and_a_constraint_are_kept_together(kind):
    search = trainer(kind, limits={"parameters": 60}, constraint=lambda architecture: architecture["op"] == "small")
    search.fit()
    assert search.export()["op"] == "small" and parameters_of(search.export()) <= 60


def planted(limit):
    class Times(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return self.factor * x

    class Planted(nn.Module):
        """What is right is dear, what is wrong is free, and what is between them is half of what is right."""

        def __init__(self):
            super().__init__()
            factors = {"wrong": 0.0, "right": 1.0, "near": 0.5}
            layers = [LayerChoice({k: Times(f) for k, f in factors.items()}, label=f"op{i}") for i in range(4)]
            self.layers, self.scale = nn.Sequential(*layers), nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * self.layers(x)

    model = Planted()
    cost = TableCost(SearchSpace(model), {f"op{i}": {"wrong": 0.0, "right": 3.0, "near": 1.0} for i in range(4)})
    return model, {"cost": limit}, {"cost": cost}


PLANTED = {
    "darts": {"arc_learning_rate": 0.05},
    "unrolled": {"arc_learning_rate": 0.05},
    "proxyless": {"arc_learning_rate": 0.1},
    "reinforce": {"arc_learning_rate": 0.1, "baseline_decay": 0.9},
    "enas": {
        **{"ctrl_steps_aggregate": 4, "ctrl_lr": 0.04, "baseline_decay": 0.9, "num_samples": 10},
        "ctrl_kwargs": {"lstm_size": 16, "tanh_constant": 2.5},
        "reward_function": lambda output, target: -nn.functional.mse_loss(output, target),
    },
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 10), marks=pytest.mark.slow)])
def test_a_limit_is_kept_for_each_of_10_seeds_where_the_same_search_without_it_is_beyond(kind, seeds):
    """Nor is a decision of what is found one of the wrong ones, which cost nothing."""
    for seed in seeds:
        found = []
        for limit in (6.0, 12.0):
            torch.manual_seed(seed)
            X = torch.randn(128, 4)
            model, limits, costs = planted(limit)
            options = {"num_epochs": 8, "dataset": TensorDataset(X, X), "loss": nn.functional.mse_loss, "seed": seed}
            search = trainer(kind, model, limits=limits, costs=costs, **{**options, **PLANTED[kind]})
            search.fit()
            found.append(search.limits.costs_of(search.export())["cost"])
            if kind not in ("reinforce", "enas"):  # policies seldom meet here what is right, which is a product
                assert "wrong" not in search.export().values()
        assert found[0] <= 6 < found[1]
        if hasattr(search, "relaxation"):
            assert search.history[-1]["most_probable_keeps_limits"]


@pytest.mark.parametrize("kind", ["darts", "proxyless"])
def test_where_the_most_probable_breaks_a_limit_the_most_probable_that_keeps_it_is_exported_and_that_is_said(
    kind, caplog
):
    search = trainer(kind, limits={"parameters": 30}, arc_learning_rate=1e-9, num_epochs=1)
    with torch.no_grad():
        for label, logits_K in search.alphas.items():
            logits_K.copy_(torch.linspace(0.3, 0, len(logits_K)) if label == "op" else torch.arange(len(logits_K)))
    log_prob = search.relaxation.log_prob
    kept = [one for one in search.space.enumerate() if parameters_of(one) <= 30]
    # Of what is not reached nothing is asked; all of this space is.
    best = max(kept, key=lambda one: log_prob(one).item())
    search.fit()
    assert search.export() == best != search.relaxation.derive()
    assert "the most probable architecture breaks limits: it has parameters" in caplog.text
    assert "(at most 30); exported is the most probable that keeps them" in caplog.text
    record = search.history[-1]
    assert record["architecture"] == best and record["most_probable_keeps_limits"] is False
    assert record["network_costs"] == {"parameters": parameters_of(best)}


def test_a_trainer_of_one_s_own_whose_export_knows_no_limits_is_told_of(tmp_path, caplog):
    class Largest(SampledTrainer):
        def __init__(self, *task, **config):
            super().__init__(*task, **config)
            self.build_path_supernet()

        def export(self):
            return {"width": 8, "op": "big", "inputs": [0, 1]}

    trainer(Largest, limits={"parameters": 60}, run_dir=tmp_path).fit()
    assert "the exported network breaks the limits of parameters" in caplog.text
    assert json.loads((tmp_path / "run.json").read_text())["costs"]["parameters"]["cost"] == 134


def test_costs_without_limits_are_said_too(caplog):
    caplog.set_level(logging.INFO, "supernet")
    model = Net()
    search = trainer("darts", model, costs={"macs": Macs(model, torch.ones(1, 4))}, num_epochs=1)
    search.fit()
    assert f"the exported network has macs {search.limits.costs_of(search.export())['macs']:g}" in caplog.text


# --- what leads there ------------------------------------------------------------------------------------------


def test_of_a_cost_without_a_mean_the_export_alone_keeps_the_limit_and_that_is_said(caplog):
    model = Net()
    cost = ArchitectureCost(SearchSpace(model), lambda architecture: float(architecture["width"]))
    search = trainer("darts", model, limits={"width": 2}, costs={"width": cost}, num_epochs=1)
    assert "nothing leads the search to the limit of 'width', which only what is exported keeps" in caplog.text
    search.fit()
    assert search.export()["width"] == 2


def test_what_a_policy_draws_beyond_limits_counts_as_the_worst_reward_and_does_not_run():
    options = {"ctrl_steps_aggregate": 1_000, "baseline_decay": 0.5, "num_epochs": 1, "dataset": data(96)}
    search = trainer("enas", limits={"parameters": 40}, **options)
    noted, train_controller = [], search.train_controller
    search.train_controller = lambda: noted.extend(search.pending) or train_controller()
    search.fit()
    beyond = [one["advantage"] for one in noted if parameters_of(one["architecture"]) > 40]
    assert beyond and all(advantage <= 0 for advantage in beyond)
    assert min(beyond) < 0 and len(noted) - len(beyond) <= 6  # validation batches


# --- resuming ----------------------------------------------------------------------------------------------------


def test_a_search_goes_on_with_the_same_limits_only(tmp_path):
    trainer("darts", limits={"parameters": 60}, run_dir=tmp_path, num_epochs=1).fit()
    with pytest.raises(TrainingError, match=r"limits was \{'parameters': 60\}, is \{'parameters': 40\}"):
        trainer("darts", limits={"parameters": 40}, run_dir=tmp_path).fit(resume="auto")
    again = trainer("darts", limits={"parameters": 60}, run_dir=tmp_path, num_epochs=1)
    again.fit(resume="auto")
    assert len(again.history) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_with_limits_a_trainer_promises_what_it_does_without(kind):
    check_trainer(lambda **options: trainer(kind, limits={"parameters": 60, "macs": "60%"}, **options))


# --- the example -------------------------------------------------------------------------------------------------


def test_the_example_is_the_first_training_sample_in_whatever_way_the_model_is_called():
    expected = Macs(Net(), torch.ones(1, 4)).of({"width": 8, "op": "big", "inputs": [1]})
    X, y = data().tensors

    def of_batch(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    ways = [
        {},
        {"dataset": [({"image": a, "other": a}, b) for a, b in data()], "forward_fn": lambda m, X: m(X["image"])},
        {"dataset": TensorDataset(X, y, torch.ones(len(X))), "loss": None, "loss_fn": of_batch},
        {"dataset": [({"x": a}, b) for a, b in data()], "forward_fn": lambda model, X: model(**X)},
        {"example": torch.ones(2, 4)},
    ]
    found = []
    for options in ways:
        search = trainer("darts", limits={"macs": 10_000}, **options)
        found.append(search.limits.costs_of({"width": 8, "op": "big", "inputs": [1]})["macs"])
    assert found == [expected] * 4 + [2 * expected]


def test_what_cannot_be_called_without_the_model_asks_for_an_example():
    def of_parts(model, batch):
        return nn.functional.cross_entropy(model.last(model.first(batch[0])), batch[1])

    with pytest.raises(CostError, match="give example=, what the model is called with"):
        trainer("random", limits={"macs": 10_000}, loss=None, loss_fn=of_parts)


def test_the_first_sample_of_a_batch_is_taken_of_each_of_its_parts():
    image, sizes = torch.arange(6.0).reshape(3, 2), torch.ones(2)
    assert first_of({"image": image, "sizes": sizes, "k": 3}, 3)["image"].tolist() == [[0.0, 1.0]]
    assert first_of({"image": image, "sizes": sizes, "k": 3}, 3)["sizes"] is sizes
    assert first_of([{"boxes": image}, {"boxes": image}], 2) == [{"boxes": image}]
    assert [tuple(part.shape) for part in first_of([image, image, image], 3)] == [(1, 2)] * 3


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_that_nothing_meets_is_refused_and_the_model_is_as_it_was(kind):
    model = Net()
    before, keys = {name: type(m) for name, m in model.named_modules()}, list(model.state_dict())
    with pytest.raises(CostError, match=r"the nearest has parameters 16 \(at most 5\)"):
        trainer(kind, model, limits={"parameters": 5})
    assert {name: type(m) for name, m in model.named_modules()} == before
    assert list(model.state_dict()) == keys
    trainer(kind, model)  # takes it, as if nothing had been


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"limits": 60_000}, TrainingError, "limits is a dict, name of a cost -> the most .*, not 60000"),
        ({"limits": {"flops": 1}}, CostError, "there is no cost 'flops'"),
        ({"limits": Limits(nn.Sequential(LayerChoice([nn.ReLU()], label="a")), {})}, CostError, "of another space"),
        ({"limits": Limits(Net(), {}), "example": 3}, TrainingError, "that are made already have costs and example"),
        ({"limits": {"parameters": 60}, "limit_penalty": "square"}, TrainingError, "'hinge' or 'log_ratio', not"),
        ({"limit_penalty": "square"}, TrainingError, "'hinge' or 'log_ratio', not"),
        ({"limits": {"parameters": 60}, "limit_strength": -1.0}, TrainingError, "limit_strength"),
    ],
)
def test_what_is_no_limit_is_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        trainer("darts", **options)
