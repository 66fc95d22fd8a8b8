"""An export that searches the trained supernet goes with whatever trains it."""

import os
import signal

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, LayerChoice, accuracy
from supernet.search import RandomSearcher, search
from supernet.trainers import SubnetSearchTrainer


class SearchedDarts(SubnetSearchTrainer, DartsTrainer):
    """Trains as DARTS does, and exports what is best in the supernet instead of what is most probable."""

    asked = 0
    killed_at = None

    def export(self):
        searcher = RandomSearcher(self.space, generator=torch.Generator().manual_seed(0))
        return self.search_once(lambda: search(searcher, self.scores, 9)[0].architecture, 9)

    def derive(self):
        return self.relaxation.derive()

    def stateful(self):
        return super().stateful()

    def evaluate(self, architecture, **options):
        if self.asked == self.killed_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.asked += 1
        return super().evaluate(architecture, **options)


def new(**options):
    torch.manual_seed(0)
    choices = [
        LayerChoice({"a": nn.Linear(3, 3), "b": nn.Identity(), "c": nn.Tanh()}, label=label) for label in ("one", "two")
    ]
    model = nn.Sequential(choices[0], nn.BatchNorm1d(3), choices[1], nn.Linear(3, 2))
    X = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(X, (X.prod(1) > 0).long())
    options = {"metrics": accuracy, "num_epochs": 2, "batch_size": 8, **options}
    return SearchedDarts(
        model, nn.functional.cross_entropy, optimizer=SGD(model.parameters(), 0.1), dataset=data, **options
    )


def test_what_is_exported_evaluates_best_of_all_and_each_is_evaluated_once():
    trainer = new()
    trainer.fit()
    assert trainer.asked == trainer.space.size == 9
    losses = {str(a): trainer.evaluator(a)["loss"] for a in trainer.space.enumerate()}
    assert str(trainer.export()) == min(losses, key=losses.get)
    assert trainer.asked == 9


def test_its_alphas_and_weights_are_those_of_the_trainer_beside_it():
    trainer = new()
    trainer.fit()
    plain = new()
    plain.export = plain.derive
    plain.fit()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value), name
    assert all(torch.equal(trainer.alphas[label], alpha) for label, alpha in plain.alphas.items())


@pytest.mark.parametrize("moved", ["weights", "architecture"])
def test_what_was_found_is_forgotten_when_the_weights_move_and_only_then(moved):
    trainer = new()
    trainer.fit()
    batches = next(trainer.train_part.batches(0)), next(trainer.valid_part.batches(0))
    if moved == "weights":
        trainer.train_model_weight(*batches[0])
    else:
        trainer.train_architecture(*batches[1])
    assert (trainer.found is None) == (not trainer.evaluations) == (moved == "weights")
    trainer.export()
    assert trainer.asked == (18 if moved == "weights" else 9)


def test_a_search_that_is_killed_goes_on_with_what_it_has_evaluated(tmp_path):
    whole = new()
    whole.fit()
    killed = new(run_dir=tmp_path)
    killed.killed_at = 4
    with pytest.raises(SystemExit):
        killed.fit()
    resumed = new(run_dir=tmp_path)
    resumed.fit(resume="auto")
    assert killed.asked + resumed.asked == 9
    assert resumed.export() == whole.export()
    again = new(run_dir=tmp_path)
    again.fit(resume="auto")  # of a finished run nothing is evaluated
    assert (again.asked, again.export()) == (0, whole.export())
