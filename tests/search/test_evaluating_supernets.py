"""A supernet that was trained in a loop of one's own: architectures are measured in it, and searched for."""

import copy
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import programs
from supernet import InputChoice, LayerChoice, SinglePathTrainer, Supernet, accuracy, evaluate, freeze
from supernet.errors import ArchitectureError, DataError, TrainingError
from supernet.search import EvolutionSearcher, RandomSearcher, SupernetEvaluator, search


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.linear, self.factor = nn.Linear(4, 4), factor

    def forward(self, x):
        return self.linear(x) * self.factor


class Net(nn.Module):
    """Of candidates of unequal scales, so that the statistics of one are far from those of another."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice({"tanh": nn.Tanh(), "relu": nn.ReLU()}, label="inner")
        deep = nn.Sequential(nn.Linear(4, 4), inner, nn.BatchNorm1d(4))
        self.op = LayerChoice({"small": Scaled(0.1), "large": Scaled(30.0), "deep": deep}, label="op")
        self.norm, self.drop = nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5)
        self.skip = InputChoice(3, 2, label="skip")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.drop(self.norm(self.op(x)))
        return self.head(self.skip([x, y, y.relu()]))


def data(count, seed, dtype=torch.float64):
    X = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 + 1
    return TensorDataset(X, (X.sum(1) > 4).long() + (X.prod(1) > 0).long())


TRAIN, VALID = data(48, 0), data(30, 1)
loss = nn.functional.cross_entropy


def trained(steps=6):
    """A supernet after a few steps of a loop of one's own."""
    torch.manual_seed(0)
    supernet = Supernet(Net().double())
    optimizer, generator = SGD(supernet.parameters(), 0.1, momentum=0.9), torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(supernet(TRAIN.tensors[0], supernet.space.sample(generator)), TRAIN.tensors[1]).backward()
        optimizer.step()
    return supernet


def evaluator_of(supernet, **options):
    return SupernetEvaluator(
        supernet, (TRAIN, VALID), **{"loss": loss, "metrics": accuracy, "batch_size": 8, **options}
    )


# --- what is measured ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [20_000, 20])
def test_it_is_what_the_frozen_network_gives_with_statistics_that_are_averages_over_batches(samples):
    supernet = trained()
    loaders = DataLoader(TRAIN, 8), DataLoader(VALID, 7)  # in their order, nothing left out
    evaluator = SupernetEvaluator(supernet, loaders, samples, loss=loss, metrics=accuracy)
    for architecture in supernet.space.enumerate():
        network = freeze(supernet.model, architecture).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.reset_running_stats()
                module.momentum = None
                module.train()
        with torch.no_grad():
            for X in TRAIN.tensors[0].split(8)[: -(-min(samples, 48) // 8)]:
                network(X)
            output = network.eval()(VALID.tensors[0])
        measured = evaluator(architecture)
        assert measured["loss"] == pytest.approx(loss(output, VALID.tensors[1]).item(), rel=1e-12)
        assert measured["accuracy"] == pytest.approx(accuracy(output, VALID.tensors[1]).item())
        with evaluator.recalibrated(architecture):
            frozen = freeze(supernet.model, architecture)
        expected = network.state_dict()
        assert all(torch.allclose(t, expected[n], rtol=1e-12) for n, t in frozen.state_dict().items())


def test_it_is_bit_for_bit_what_a_trainer_says_of_the_same_weights_and_data():
    torch.manual_seed(0)
    model = Net()
    train, valid = data(50, 0, torch.float32), data(30, 1, torch.float32)
    optimizer = SGD(model.parameters(), 0.1)
    options = {"valid_dataset": valid, "batch_size": 8, "seed": 3, "num_evaluations": 2, "recalibration_samples": 20}
    trainer = SinglePathTrainer(model, loss, accuracy, optimizer, 1, train, **options)
    trainer.fit()
    supernet = Supernet(Net())
    supernet.load_state_dict(trainer.supernet.state_dict())
    options = {"loss": loss, "metrics": accuracy, "batch_size": 8, "seed": 3}
    evaluator = SupernetEvaluator(supernet, (train, valid), 20, **options)
    for architecture in supernet.space.enumerate():
        assert evaluator(architecture) == trainer.evaluate(architecture)
        assert evaluator(architecture, num_batches=2) == trainer.evaluate(architecture, num_batches=2)


def test_nothing_is_left_changed_whatever_form_the_model_is_in():
    supernet = trained()
    evaluator = evaluator_of(supernet)
    architectures = list(supernet.space.enumerate())[:4]
    for training in (True, False):
        supernet.train(training)
        supernet.model.norm.eval()
        supernet.model.head.weight.requires_grad_(training)
        before, grads = copy.deepcopy(supernet.state_dict()), copy.deepcopy([p.grad for p in supernet.parameters()])
        forms, drawn = [module.training for module in supernet.modules()], torch.get_rng_state()
        evaluator.forget()
        first = evaluator.evaluate_many(architectures)
        assert [evaluator(architecture) for architecture in architectures] == first
        after = supernet.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], value) for name, value in before.items())
        for p, grad in zip(supernet.parameters(), grads, strict=True):
            assert p.grad is None if grad is None else torch.equal(p.grad, grad)
        assert [p.requires_grad for p in supernet.model.head.parameters()] == [training, True]
        assert [module.training for module in supernet.modules()] == forms
        assert torch.equal(torch.get_rng_state(), drawn)
        assert supernet.model.norm.momentum == 0.3


def test_after_an_error_all_is_as_it_was_too():
    supernet = trained()
    before = copy.deepcopy(supernet.state_dict())

    def broken(output, y):
        raise ValueError("broken on purpose")

    with pytest.raises(ValueError, match="broken on purpose"):
        evaluator_of(supernet, metrics=broken)({"op": "large", "skip": [0, 1]})
    assert all(torch.equal(supernet.state_dict()[name], value) for name, value in before.items())
    assert all(module.training for module in supernet.modules())


def test_a_frozen_backbone_keeps_its_statistics():
    supernet = trained()
    evaluator = evaluator_of(supernet)
    supernet.model.norm.eval()
    supernet.model.norm.running_mean.fill_(5.0)
    architecture = {"op": "large", "skip": [0, 1]}
    network = freeze(supernet.model, architecture)
    assert evaluator(architecture)["loss"] == pytest.approx(evaluate(network, loss, None, VALID)["loss"])


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_what_draws_in_eval_form_draws_the_same_for_each_architecture_and_leaves_the_numbers_of_others_alone():
    noise = LayerChoice({"one": Noise(), "two": Noise()}, label="noise")
    evaluator = evaluator_of(Supernet(nn.Sequential(noise, nn.Linear(4, 3)).double()))
    drawn = torch.get_rng_state()
    assert evaluator({"noise": "one"}) == evaluator({"noise": "two"})
    assert torch.equal(torch.get_rng_state(), drawn)


def test_batches_of_other_forms_and_weights_of_samples_are_measured_by_functions_of_one_s_own():
    supernet, architecture = trained(), {"op": "small", "skip": [1, 2]}
    expected = evaluator_of(supernet, metrics=None)(architecture)

    def loss_fn(model, batch):
        X, y = batch
        return loss(model(X), y)

    assert evaluator_of(supernet, loss=None, metrics=None, loss_fn=loss_fn)(architecture) == expected
    forward_fn = partial(lambda model, X: model(X))
    assert evaluator_of(supernet, metrics=None, forward_fn=forward_fn)(architecture) == expected


def test_autocast_holds_for_what_is_measured_under_it():
    torch.manual_seed(0)
    supernet = Supernet(Net())
    train, valid = data(48, 0, torch.float32), data(30, 1, torch.float32)
    dtypes = set()
    evaluator = SupernetEvaluator(supernet, (train, valid), loss=lambda o, y: dtypes.add(o.dtype) or loss(o.float(), y))
    with torch.autocast("cpu", torch.bfloat16):
        evaluator({"op": "small", "skip": [0, 1]})
    assert dtypes == {torch.bfloat16}


# --- what is remembered --------------------------------------------------------------------------------------


def counted(evaluator):
    asked, inner = [], evaluator.measure
    evaluator.measure = lambda path, num_batches: (
        asked.append((json.dumps(path), num_batches)) or inner(path, num_batches)
    )
    return asked


def test_what_is_known_is_not_measured_again_however_it_is_written():
    supernet = trained()
    evaluator = evaluator_of(supernet)
    asked = counted(evaluator)
    one, two = {"op": "small", "skip": [0, 1]}, {"op": 2, "inner": "relu", "skip": [1, 0]}
    first = evaluator.evaluate_many([one, two, one, {"op": 0, "skip": [1, 0], "inner": "tanh"}])
    assert first[0] == first[2] == first[3] == evaluator(one)
    assert len(asked) == 2
    first[0]["loss"] = math.nan  # what is given is the caller's own
    assert evaluator.evaluate_many([two, one]) == [evaluator(two), evaluator(one)]
    assert len(asked) == 2
    evaluator.evaluate_many([one], num_batches=1)
    assert asked[2:] == [(json.dumps(one), 1)]
    evaluator.forget()
    evaluator.evaluate_many([one])
    assert len(asked) == 4


def in_place(supernet):
    supernet.model.head.weight.data.add_(1.0)


def another_tensor(supernet):
    supernet.model.head.weight.data = supernet.model.head.weight.data + 1.0


def loaded(supernet):
    supernet.load_state_dict({name: value + 1 for name, value in supernet.state_dict().items()})


def a_buffer(supernet):
    supernet.model.norm.running_mean += 1


@pytest.mark.parametrize("move", [in_place, another_tensor, loaded, a_buffer])
def test_what_was_measured_is_forgotten_when_the_weights_move(move):
    supernet = trained()
    supernet.model.norm.eval()  # so that its statistics count
    evaluator = evaluator_of(supernet)
    architecture = {"op": "small", "skip": [0, 1]}
    before = evaluator.evaluate_many([architecture])
    move(supernet)
    assert evaluator.evaluate_many([architecture]) == [evaluator(architecture)] != before


def test_progress_is_told_how_many_have_been_evaluated():
    told = []
    evaluator = evaluator_of(trained())
    architectures = list(evaluator.space.enumerate())[:3]
    evaluator.evaluate_many(architectures[:1])
    evaluator.evaluate_many(architectures, progress=told.append)
    assert told == [1, 1]


# --- searches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("searcher", [RandomSearcher, partial(EvolutionSearcher, population=4, num_parents=2)])
def test_a_search_of_the_whole_space_finds_the_architecture_that_measures_best(searcher):
    supernet = trained()
    evaluator = evaluator_of(supernet)
    asked = counted(evaluator)

    def score(architectures):
        return [-measured["loss"] for measured in evaluator.evaluate_many(architectures)]

    found = search(searcher(supernet.space), score, supernet.space.size)
    assert len(asked) == len(set(asked)) == supernet.space.size == 12
    best = min(supernet.space.enumerate(), key=lambda architecture: evaluator(architecture)["loss"])
    assert found[0] == (best, -evaluator(best)["loss"])


SHARING = """
import json, os, sys
import torch
sys.path[:0] = [{tests!r}]
from test_evaluating_supernets import TRAIN, VALID, counted, loss, trained
from torch.utils.data import DataLoader, DistributedSampler
from supernet.errors import TrainingError
from supernet.search import SupernetEvaluator

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
supernet = trained()
loaders = [DataLoader(part, 6, sampler=DistributedSampler(part, shuffle=False)) for part in (TRAIN, VALID)]
evaluator = SupernetEvaluator(supernet, loaders, loss=loss, shared=True)
asked, told = counted(evaluator), []
found = evaluator.evaluate_many(list(supernet.space.enumerate())[:5], progress=told.append)
alone = SupernetEvaluator(supernet, loaders, loss=loss).evaluate_many(list(supernet.space.enumerate())[:1])
errors = []
for difference in ("architectures", "weights"):
    if difference == "weights" and rank:
        supernet.model.head.weight.data.add_(1.0)
    try:
        evaluator.evaluate_many(list(supernet.space.enumerate())[rank : rank + 6])
    except TrainingError as error:
        errors.append(str(error))
result = {{"asked": [name for name, _ in asked], "told": told, "found": found, "alone": alone, "errors": errors}}
open({results!r} + str(rank), "w").write(json.dumps(result))
"""


def test_two_processes_share_the_work_and_measure_all_of_the_data_that_a_distributed_sampler_deals_out(tmp_path):
    script = tmp_path / "sharing.py"
    script.write_text(SHARING.format(tests=str(Path(__file__).parent), results=f"{tmp_path}/result-"))
    programs.run(script, processes=2)
    one, two = (json.loads((tmp_path / f"result-{rank}").read_text()) for rank in (0, 1))
    supernet = trained()
    architectures = list(supernet.space.enumerate())[:5]
    assert (one["asked"], two["asked"]) == tuple([json.dumps(a) for a in architectures[rank::2]] for rank in (0, 1))
    assert one["told"] == two["told"] == [2, 2, 1]
    whole = SupernetEvaluator(supernet, (DataLoader(TRAIN, 6), DataLoader(VALID, 6)), loss=loss)
    expected = [whole(architecture) for architecture in architectures]
    assert one["found"] == two["found"] == expected
    assert one["alone"] == expected[:1]
    assert "the processes evaluate different architectures" in one["errors"][0]
    assert "the processes that share evaluations have different weights" in two["errors"][1]


# --- what cannot be ------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_by_name():
    supernet = trained()
    for arguments, options, error, message in (
        ((Net(), (TRAIN, VALID)), {}, TrainingError, r"supernet is a Supernet, not a Net; give Supernet\(model\)"),
        ((supernet, TRAIN), {}, TrainingError, r"data is \(training data, validation data\), not <"),
        ((supernet, (TRAIN,)), {}, TrainingError, r"data is \(training data, validation data\)"),
        ((supernet, (TRAIN, None)), {}, TrainingError, r"data is \(training data, validation data\)"),
        ((supernet, (TRAIN, 3)), {}, DataError, "data comes as a torch Dataset or DataLoader, not as int"),
        ((supernet, (TRAIN, VALID), 0), {}, TrainingError, "recalibration_samples is a whole number from 1 on, not 0"),
        ((supernet, (TRAIN, VALID)), {"loss": None, "metrics": None}, TrainingError, "there is nothing to measure"),
        ((supernet, (TRAIN, VALID)), {"loss_fn": loss}, TrainingError, "loss_fn computes the loss itself"),
        ((supernet, (TRAIN, VALID)), {"metrics": "accuracy"}, TrainingError, "metrics is a function"),
    ):
        with pytest.raises(error, match=message):
            SupernetEvaluator(*arguments, **{"loss": loss, "metrics": accuracy, **options})


def test_what_is_no_architecture_and_data_without_a_batch_are_refused_by_name():
    supernet = trained()
    with pytest.raises(ArchitectureError, match="no candidate 'conv'"):
        evaluator_of(supernet)({"op": "conv", "skip": [0, 1]})
    with pytest.raises(ArchitectureError, match="leaves 'skip' open"):
        evaluator_of(supernet).evaluate_many([{"op": "small"}])
    with pytest.raises(TrainingError, match="num_batches is a whole number from 1 on, not 0"):
        evaluator_of(supernet)({"op": "small", "skip": [0, 1]}, num_batches=0)
    before = copy.deepcopy(supernet.state_dict())
    for loaders, which in (((NoBatch(), VALID), "training"), ((TRAIN, NoBatch()), "validation")):
        with pytest.raises(DataError, match=f"the {which} data give no batch"):
            SupernetEvaluator(supernet, loaders, loss=loss)({"op": "small", "skip": [0, 1]})
    assert all(torch.equal(supernet.state_dict()[name], value) for name, value in before.items())


class NoBatch(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())
