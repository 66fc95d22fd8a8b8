"""The sandwich rule: a step's gradient is the sum of those of its architectures, whatever else a step stands in."""

import copy
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from test_distillation import Net, first_batches, teacher_network, trainer_of
from torch import nn
from torch.nn.functional import cross_entropy

import supernet.nn
from supernet import (
    Distillation,
    EnasTrainer,
    LayerChoice,
    RandomTrainer,
    SinglePathTrainer,
    ValueChoice,
    freeze,
    kl_divergence,
)
from supernet.cost import ArchitectureCost, Parameters, Parts
from supernet.errors import CostError, TrainingError
from supernet.execution import Supernet
from supernet.testing import check_trainer

SAMPLED = [{"width": 8, "op": "relu"}, {"width": 4, "op": "relu"}]


def sandwich(trainer_class=SinglePathTrainer, **options):
    trainer = trainer_of(trainer_class, norm=False, **{"sandwich": 2, "grad_clip": None, **options})
    drawn = iter(SAMPLED * 100)
    trainer.sample = lambda: next(drawn)
    return trainer


def check_step(trainer, loss_of_others):
    """Hold the gradient of a step to that of a sum: of the largest by its targets, and of the others as is said."""
    X, y = first_batches(trainer)
    trainer.train_model_weight(X, y)
    torch.manual_seed(0)
    whole = Supernet(Net(norm=False))
    of_largest = whole(X, trainer.extremes.largest)
    loss = cross_entropy(of_largest, y)
    for path in (trainer.extremes.smallest, *SAMPLED):
        loss = loss + loss_of_others(whole(X, path), y, of_largest.detach())
    loss.backward()
    check_gradients(trainer.model, whole.model)


def check_gradients(model, expected):
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_networks_are_looked_at_once_for_limits_of_parameters_and_for_what_is_large():
    with patch.object(Parts, "_find_scopes", autospec=True, side_effect=Parts._find_scopes) as looked:
        trainer = sandwich(limits={"parameters": "90%"})
    assert looked.call_count == 1
    cost = trainer.limits.costs["parameters"]
    assert (
        cost.of(trainer.extremes.smallest) < cost.of(trainer.extremes.largest) <= trainer.limits.bounds["parameters"][1]
    )


def test_the_largest_and_the_smallest_are_those_of_most_and_fewest_parameters():
    trainer = sandwich()
    assert (trainer.extremes.largest["width"], trainer.extremes.smallest["width"]) == (16, 4)
    by_another = ArchitectureCost(trainer.space, lambda a: -a["width"])
    assert sandwich(sampling_cost=by_another).extremes.largest["width"] == 4


def test_the_gradient_of_a_step_is_the_sum_of_those_of_its_architectures():
    check_step(sandwich(), lambda output, y, _: cross_entropy(output, y))


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_in_place_the_largest_learns_from_targets_and_teaches_the_others(weight):
    def of_others(output, y, taught):
        return (1 - weight) * cross_entropy(output, y) + weight * kl_divergence(output, taught, temperature=2.0)

    check_step(sandwich(distillation=Distillation("largest", temperature=2.0, weight=weight)), of_others)


def test_a_step_has_no_further_pass_where_the_largest_teaches_in_place():
    passes = []
    for distillation in (None, Distillation("largest"), Distillation(SAMPLED[1])):
        trainer = sandwich(distillation=distillation)
        count = []
        trainer.model.register_forward_hook(lambda *_, count=count: count.append(1))
        trainer.train_model_weight(*first_batches(trainer))
        passes.append(len(count))
    assert passes == [4, 4, 5]


def test_a_frozen_teacher_teaches_the_largest_too():
    teacher = teacher_network()
    trainer = sandwich(sandwich=0, distillation=Distillation(teacher, weight=1.0))
    X, y = first_batches(trainer)
    trainer.train_model_weight(X, y)
    torch.manual_seed(0)
    whole = Supernet(Net(norm=False))
    sum(kl_divergence(whole(X, path), y.output) for path in trainer.extremes).backward()
    check_gradients(trainer.model, whole.model)


def test_two_batches_of_a_step_have_the_mean_of_their_sums():
    trained = []
    for size, accumulate in ((16, 1), (8, 2)):
        trainer = sandwich(sandwich=0, batch_size=size, accumulate=accumulate, num_epochs=1)
        trainer.fit()
        trained.append(trainer.model.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_of_which_one_pass_is_not_finite_is_not_taken_at_all(accumulate):
    """Of the third pass, when the gradients of two others are there already."""
    trainer = sandwich(on_nonfinite="skip", accumulate=accumulate)
    trainer.callbacks.clear()
    losses, before = [], copy.deepcopy(trainer.model.state_dict())

    def loss(output, y):
        losses.append(1)
        return cross_entropy(output, y) * (float("nan") if len(losses) == 3 else 1.0)

    trainer.loss = loss
    for X, y in trainer.train_part.batches(0):
        losses.clear()
        with trainer.one_step():
            trainer.train_model_weight(X, y)
    assert trainer.skipped_steps == trainer.step == 2
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("trainer_class", [RandomTrainer, EnasTrainer])
def test_other_trainers_that_sample_have_sandwiches_too(trainer_class):
    trainer = trainer_of(trainer_class, sandwich=1, distillation=Distillation("largest"))
    trainer.fit()
    freeze(trainer.model, trainer.export())


def all_at_once(**options):
    return trainer_of(sandwich=1, cost_bins=2, distillation=Distillation("largest"), **options)


def test_a_trainer_with_sandwiches_bins_and_a_teacher_in_place_holds_what_trainers_promise():
    check_trainer(all_at_once)


class Deep(nn.Module):
    """Of some 4,000 architectures those of two wide layers at most have 250 parameters or fewer: one in 60."""

    def __init__(self):
        super().__init__()
        widths = [ValueChoice([2, 16], label=f"width{i}") for i in range(12)]
        self.stem, self.head = supernet.nn.Linear(6, widths[0]), supernet.nn.Linear(widths[-1], 3)
        self.layers = nn.ModuleList(supernet.nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x.relu())
        return self.head(x)


def test_where_limits_are_rarely_kept_paths_walk_among_the_architectures_that_keep_them():
    options = {"model": Deep(), "limits": {"parameters": 250}, "sandwich": 0}
    trainer = trainer_of(SinglePathTrainer, **options)
    drawn = [trainer.sample() for _ in range(200)]
    assert all(map(trainer.limits, [*drawn, *trainer.extremes]))
    assert sum(trainer.limits(trainer.space.sample()) for _ in range(200)) < 10
    assert len({str(one) for one in drawn}) > 20
    assert trainer_of(SinglePathTrainer, limits={"parameters": "90%"}).cost_bins is None


def test_bins_are_refused_where_a_policy_draws_the_paths():
    with pytest.raises(TrainingError, match="paths are sampled, which EnasTrainer does in its own way"):
        trainer_of(EnasTrainer, cost_bins=2)


def test_a_constraint_of_what_is_trained_holds_for_the_ends_too():
    trainer = trainer_of(RandomTrainer, sandwich=1, constraint=lambda a: a["width"] < 16)
    assert trainer.extremes.largest["width"] == 8
    trainer = trainer_of(RandomTrainer, distillation=Distillation("largest"), constraint=lambda a: a["width"] < 16)
    assert trainer.teaching.architecture["width"] == 8


def other():
    return nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sandwich": -1}, TrainingError, "sandwich is a whole number from 0 on"),
        ({"sandwich": False}, TrainingError, "sandwich is a whole number from 0 on, not False"),
        (
            {"distillation": Distillation({"width": 16, "op": "relu"}), "limits": {"parameters": 100}},
            TrainingError,
            "the teacher .*16.* breaks the limits .* would never learn",
        ),
        (
            {"sampling_cost": "parameters", "sandwich": 1},
            TrainingError,
            "sampling_cost is a supernet.cost.Cost or None",
        ),
        (
            {"sampling_cost": Parameters(nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()]))), "sandwich": 1},
            CostError,
            "of another space",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_has_changed(options, error, message):
    model = Net()
    written = repr(model)
    with pytest.raises(error, match=message):
        trainer_of(model=model, **options)
    assert repr(model) == written
