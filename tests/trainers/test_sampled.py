"""Trainers of one path a step: what a step runs and touches, and how architectures are evaluated and picked."""

import copy
import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import InputChoice, LayerChoice, RandomTrainer, SinglePathTrainer, freeze
from supernet.errors import DataError, SpaceError, TrainingError


class Net(nn.Module):
    def __init__(self, count=3):
        super().__init__()
        inner = LayerChoice({"tanh": nn.Tanh(), "relu": nn.ReLU()}, label="inner")
        deep = nn.Sequential(nn.Conv2d(2, 4, 1), inner, nn.BatchNorm2d(4))
        plain = {f"c{i}": nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)) for i in range(count)}
        self.op = LayerChoice({**plain, "deep": deep}, label="op")
        self.norm = nn.BatchNorm2d(4, momentum=0.3)
        self.skip = InputChoice(3, None, label="skip", prior=[0.5, 0.9, 0.2])
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.op(x))
        skipped = self.skip([x, x.relu(), x.sin()])
        return self.head(self.drop(x if skipped is None else x + skipped).mean((2, 3)))


def small_trainer(trainer_class=SinglePathTrainer, model=None, **options):
    torch.manual_seed(0)
    model = Net() if model is None else model
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(70, 2, 5, 5, generator=generator) * 3 + 1
    data = TensorDataset(X, torch.randint(3, (70,), generator=generator))
    return trainer_class(
        model,
        loss=nn.functional.cross_entropy,
        metrics=lambda output, y: {"accuracy": (output.argmax(1) == y).float().mean()},
        optimizer=SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-2),
        **{"num_epochs": 1, "dataset": data, "batch_size": 8, **options},
    )


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 2, 5, 5, generator=generator), torch.arange(8) % 3


# --- a step --------------------------------------------------------------------------------------------------


def test_paths_are_uniform_over_each_choice_and_follow_the_prior_where_one_is_given():
    trainer = small_trainer()
    drawn = [trainer.sample() for _ in range(3000)]
    ops = Counter(a["op"] for a in drawn)
    assert chi_square(ops.values(), [750] * 4) < 3 + 4 * math.sqrt(6)
    inner = Counter(a["inner"] for a in drawn if "inner" in a)
    assert chi_square(inner.values(), [ops["deep"] / 2] * 2) < 1 + 4 * math.sqrt(2)
    for i, p in enumerate((0.5, 0.9, 0.2)):
        taken = sum(i in a["skip"] for a in drawn)
        assert chi_square([taken, 3000 - taken], [3000 * p, 3000 * (1 - p)]) < 1 + 4 * math.sqrt(2)


def chi_square(counts, expected):
    return sum((count - e) ** 2 / e for count, e in zip(counts, expected, strict=True))


def test_the_paths_depend_on_the_seed_and_on_no_global_random_number():
    drawn = []
    for seed in (0, 0, 1):
        trainer = small_trainer(seed=seed)
        torch.manual_seed(len(drawn))
        drawn.append([trainer.sample() for _ in range(20)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_step_runs_one_candidate_and_touches_its_weights_only():
    trainer = small_trainer()
    runs = []
    for name, candidate in trainer.model.op.candidates.items():
        candidate.register_forward_hook(lambda *_, name=name: runs.append(name))
    for _ in range(6):
        runs.clear()
        before = {name: value.clone() for name, value in trainer.model.op.state_dict().items()}
        trainer.train_model_weight(*batch())
        assert len(runs) == 1
        changed = {
            name.split(".")[0] for name, v in trainer.model.op.state_dict().items() if not torch.equal(v, before[name])
        }
        assert changed == set(runs)
        with_gradient = {name.split(".")[0] for name, p in trainer.model.op.named_parameters() if p.grad is not None}
        assert with_gradient == set(runs)


def test_a_step_holds_the_activations_of_one_path_however_many_candidates_there_are():
    def held(count):
        trainer = small_trainer(model=Net(count))
        trainer.sample = lambda: {"op": "c0", "skip": [0]}
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.train_model_weight(*batch())
        return sum(sizes.values())

    assert held(8) == held(1)


def test_a_step_of_a_path_is_the_step_of_its_plain_network():
    trainer = small_trainer()
    path = {"op": "deep", "inner": "tanh", "skip": [1, 2]}
    network = freeze(trainer.model, path).train()
    optimizer = SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    trainer.sample = lambda: path
    for _ in range(3):
        X, y = batch()
        inside = X.contiguous(memory_format=torch.channels_last)  # which the order of dropout's numbers follows
        torch.manual_seed(0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inside), y).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        torch.manual_seed(0)
        trainer.train_model_weight(X, y)
    expected, got = network.state_dict(), freeze(trainer.model, path).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name)


def test_the_supernet_under_a_path_is_its_plain_network_bit_for_bit_in_eval_form():
    trainer = small_trainer()
    trainer.fit()
    trainer.model.eval()
    X, _ = batch()
    for architecture in [trainer.sample() for _ in range(10)]:
        network = freeze(trainer.model, architecture).eval()
        inside = X.contiguous(memory_format=torch.channels_last) if trainer.distributed._channels_last else X
        assert torch.equal(trainer.distributed.forward_local(X, architecture), network(inside))


def test_a_path_without_parameters_is_trained_by_doing_nothing():
    model = nn.Sequential(LayerChoice({"none": nn.Flatten(), "some": nn.Sequential(nn.Flatten(), nn.Linear(50, 50))}))
    small_trainer(model=model).fit()


# --- an evaluation -------------------------------------------------------------------------------------------


def test_recalibrated_statistics_are_those_of_the_plain_network_on_the_same_batches():
    trainer = small_trainer(recalibration_samples=20)
    trainer.fit()
    architecture = {"op": "deep", "inner": "relu", "skip": [1]}
    network = freeze(trainer.model, architecture).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    batches = [X for X, _ in trainer._recalibration_part.batches(0)][:3]  # 24 samples are the first 20 and more
    with torch.no_grad():
        for X in batches:
            network(X)
    seen = []
    trainer._evaluation_part.batches = lambda round: seen.append(statistics(freeze(trainer.model, architecture))) or []
    with pytest.raises(DataError, match="the validation data give no batch"):
        trainer.evaluate(architecture)
    for name, value in statistics(network).items():
        torch.testing.assert_close(seen[0][name], value, msg=name)
    assert int(seen[0]["norm.num_batches_tracked"]) == 3


def statistics(network):
    return {name: value.clone() for name, value in network.named_buffers()}


def test_an_evaluation_is_the_loss_of_the_recalibrated_plain_network_on_the_whole_validation_part():
    trainer = small_trainer()
    trainer.fit()
    architecture = {"op": "c1", "skip": [0, 2]}
    network = freeze(trainer.model, architecture).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.no_grad():
        for X, _ in trainer._recalibration_part.batches(0):
            network(X)
        network.eval()
        samples = [trainer.valid_loader.dataset.dataset[i] for i in range(35)]  # 35: no batch is dropped
        X, y = torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])
        loss = nn.functional.cross_entropy(network(X), y)
        accuracy = (network(X).argmax(1) == y).float().mean()
    measured = trainer.evaluate(architecture)
    assert measured["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert measured["accuracy"] == pytest.approx(accuracy.item(), rel=1e-5)


def test_an_evaluation_leaves_everything_as_it_was():
    trainer = small_trainer()
    trainer.fit()
    trainer.model.norm.eval()
    before = copy.deepcopy(trainer.model.state_dict())
    forms = [module.training for module in trainer.model.modules()]
    random_state, paths = torch.get_rng_state(), trainer.generator.get_state()
    assert trainer.evaluate({"op": 0, "skip": []}) == trainer.evaluate({"op": 0, "skip": []})
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [module.training for module in trainer.model.modules()] == forms
    assert trainer.model.norm.momentum == 0.3
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(trainer.generator.get_state(), paths)


def test_an_evaluation_in_the_middle_of_training_does_not_disturb_it():
    from supernet.trainers import Callback

    class Evaluates(Callback):
        def step_ended(self, trainer):
            trainer.evaluate({"op": 0, "skip": []})

    plain, disturbed = small_trainer(num_epochs=2), small_trainer(num_epochs=2, callbacks=[Evaluates()])
    plain.fit()
    disturbed.fit()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(disturbed.model.state_dict()[name], value), name


# --- exports -------------------------------------------------------------------------------------------------


def test_single_path_exports_what_evaluates_best_of_all_within_its_constraint():
    def allowed(architecture):
        return architecture["op"] != "c0" and len(architecture["skip"]) < 3

    trainer = small_trainer(num_evaluations=1000, population=10, num_parents=3, constraint=allowed)
    trainer.fit()
    every = [a for a in trainer.space.enumerate() if allowed(a)]
    losses = {str(a): trainer.evaluate(a)["loss"] for a in every}
    assert losses[str(trainer.export())] == min(losses.values())


def test_random_exports_the_best_on_the_whole_part_of_those_that_were_best_on_one_batch():
    trainer = small_trainer(RandomTrainer, num_samples=3000, num_finalists=3)
    trainer.fit()
    every = list(trainer.space.enumerate())
    on_one = sorted(every, key=lambda a: trainer.evaluate(a, num_batches=1)["loss"])
    best = min(on_one[:3], key=lambda a: trainer.evaluate(a)["loss"])
    assert trainer.export() == best


def test_no_architecture_is_evaluated_twice_and_another_score_may_decide():
    trainer = small_trainer(
        num_evaluations=20, population=5, num_parents=2, score=lambda measured: -abs(measured["accuracy"] - 0.3)
    )
    trainer.fit()
    asked, evaluate = [], trainer.evaluate

    def counted(architecture, **options):
        asked.append(str(architecture))
        return evaluate(architecture, **options)

    trainer.evaluate = counted
    best = trainer.export()
    assert asked == []  # fit has evaluated them
    trainer.train_model_weight(*batch())
    trainer.export()
    assert len(asked) == len(set(asked)) == 20
    assert best in trainer.space.enumerate()


@pytest.mark.parametrize("after", [3, 9])
def test_an_export_that_is_killed_goes_on_with_what_it_has_evaluated(tmp_path, after):
    options = {"num_evaluations": 12, "population": 4, "num_parents": 2, "run_dir": tmp_path}
    expected = small_trainer(**{**options, "run_dir": None})
    expected.fit()

    class Stop(Exception):
        pass

    def counting(trainer, limit=None):
        asked, evaluate = [], trainer.evaluate

        def counted(architecture, **options):
            if len(asked) == limit:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)
            asked.append(str(architecture))
            return evaluate(architecture, **options)

        trainer.evaluate = counted
        return asked

    killed = small_trainer(**options)
    first = counting(killed, after)
    with pytest.raises(SystemExit):
        killed.fit()
    resumed = small_trainer(**options)
    second = counting(resumed)
    resumed.fit(resume="auto")
    assert resumed.export() == expected.export()
    assert len(first) + len(second) == 12
    assert not set(first) & set(second)


def test_what_cannot_be_is_refused_at_construction():
    for trainer_class, options, message in (
        (SinglePathTrainer, {"num_evaluations": 0}, "num_evaluations is a whole number from 1 on, not 0"),
        (SinglePathTrainer, {"population": 2.5}, r"population is a whole number from 1 on, not 2\.5"),
        (RandomTrainer, {"num_finalists": -1}, "num_finalists is a whole number from 1 on, not -1"),
        (RandomTrainer, {"recalibration_samples": True}, "recalibration_samples is a whole number from 1 on, not True"),
    ):
        with pytest.raises(TrainingError, match=message):
            small_trainer(trainer_class, **options)
    with pytest.raises(SpaceError, match="keeps the constraint; loosen it"):
        small_trainer(constraint=lambda architecture: False)


def test_inputs_may_be_reduced_in_every_way():
    class Reduced(nn.Module):
        def __init__(self, reduction):
            super().__init__()
            self.first = LayerChoice([nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Tanh())])
            self.choice = InputChoice(3, 2, reduction)
            self.head = nn.LazyLinear(3)
            self.together = (lambda picked: sum(picked)) if reduction == "none" else (lambda picked: picked)

        def forward(self, x):
            x = self.first(x)
            return self.head(self.together(self.choice([x, x.sin(), x.cos()])))

    for reduction in ("sum", "mean", "concat", "none"):
        model = Reduced(reduction)
        model.head = nn.Linear(100 if reduction == "concat" else 50, 3)
        small_trainer(model=model).fit()
