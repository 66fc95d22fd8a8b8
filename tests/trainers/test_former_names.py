"""Trainers that were written against the names that methods had before run as they are, and are warned."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import supernet.errors
from supernet import DartsTrainer, LayerChoice, SupernetTrainer
from supernet.errors import AlreadyReplacedError
from supernet.execution import InputSlot, LayerSlot
from supernet.relaxations import most_probable, new_logits

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
DATASET = TensorDataset(X, (X.sum(1) > 0).long())


def model():
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    return nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "deep": deep}), nn.Linear(4, 2))


def searched(trainer_class, **options):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    arguments = (net, nn.CrossEntropyLoss(), None, optimizer, 2, DATASET)
    trainer = trainer_class(*arguments, batch_size=4, progress=False, device="cpu", **options)
    trainer.fit()
    return trainer


# As the documentation showed it.
class SnasTrainer(SupernetTrainer):
    def __init__(self, *args, temperature=1.0, **options):
        super().__init__(*args, **options)
        self.temperature = temperature
        self.alphas = new_logits(self.space, seed=self.seed, dtype=torch.float32, device=self.device)
        self.architecture_optimizer = torch.optim.Adam(self.alphas.values(), 0.01)
        self.take_over(LayerSlot, InputSlot, self.plan())

    def stateful(self):
        return {"alphas": self.alphas, "architecture_optimizer": self.architecture_optimizer}

    def plan(self):
        return {label: F.gumbel_softmax(alpha, self.temperature) for label, alpha in self.alphas.items()}

    def train_step(self, trn_X, trn_y, val_X, val_y):
        with self.weights_held():
            output = self.forward(val_X, self.plan())
            self.descend(self.measure("valid", output, val_y), self.architecture_optimizer)
        with torch.no_grad():
            plan = self.plan()
        self.descend(self.measure("train", self.forward(trn_X, plan), trn_y), self.optimizer, clip=self.grad_clip)

    def export(self):
        return most_probable(self.space, self.alphas)


def test_a_trainer_that_calls_the_former_names_runs_and_is_warned():
    with pytest.warns(DeprecationWarning) as warned:
        trainer = searched(SnasTrainer)
    assert trainer.export() == trainer.space.canonical(trainer.export())
    said = {str(one.message).split(";")[0] for one in warned}
    assert said == {
        "take_over is called build_supernet now",
        "weights_held is called frozen_weights now",
        "measure is called compute_loss now",
        "descend is called optimizer_step now",
    }


def test_a_method_that_overrides_a_former_name_is_what_runs():
    with pytest.warns(DeprecationWarning) as warned:

        class Doubling(DartsTrainer):
            def measure(self, part, output, target):
                self.calls = getattr(self, "calls", 0) + 1
                return 2 * super().measure(part, output, target)

            def preferred(self):
                return {"0": "deep"}

        class Again(Doubling):
            def measure(self, part, output, target):
                return super().measure(part, output, target) / 2

        trainer, as_written = searched(Again), searched(DartsTrainer)
    assert trainer.calls == 2 * trainer.global_step and trainer.global_step > 0
    assert {tuple(record["architecture"].items()) for record in trainer.history} == {(("0", "deep"),)}
    ours, theirs = ([p.tolist() for p in one.model.parameters()] for one in (trainer, as_written))
    assert ours == theirs  # doubled and halved
    assert "Doubling.measure is called compute_loss now" in str(warned[0].message)
    assert warned[0].filename == __file__


def test_overrides_by_either_name_are_all_called_in_the_order_of_inheritance():
    calls = []

    def called(name):
        calls.append(name)
        return name

    with pytest.warns(DeprecationWarning) as warned:

        class Mixin:
            def measure(self, *arguments):
                called("mixin")
                return super().measure(*arguments)

        class A(DartsTrainer):
            def compute_loss(self, *arguments):
                called("a")
                return super().compute_loss(*arguments)

        class B(A):
            def measure(self, *arguments):
                called("b")
                return super().measure(*arguments)

        class C(B):
            def compute_loss(self, *arguments):
                called("c")
                return super().compute_loss(*arguments)

        class D(Mixin, C):
            def measure(self, *arguments):
                called("d")
                return super().measure(*arguments)

        class Mixed(Mixin, DartsTrainer):
            pass

        searched(D)
        assert calls[:5] == calls[5:10] == ["d", "mixin", "c", "b", "a"]
        calls.clear()
        searched(Mixed)
        assert calls and set(calls) == {"mixin"}
    assert any("Mixin.measure is called compute_loss now" in str(one.message) for one in warned)


def test_the_former_name_of_an_error_is_the_error():
    with pytest.warns(DeprecationWarning, match="AlreadyReplacedError now"):
        assert supernet.errors.TakenOverError is AlreadyReplacedError
    with pytest.raises(AttributeError, match="TakenOver"):
        supernet.errors.TakenOver  # noqa: B018
