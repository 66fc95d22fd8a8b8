"""What passes of one kind leave to those of another: a way that was found is still taken, and each is tried before."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, LayerChoice, Supernet
from supernet.execution import LayerSlot, trial
from supernet.execution.fast.candidates import Candidates
from supernet.search import SupernetEvaluator

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
W = {"op": torch.tensor([0.3, 0.7])}


def net(*labels):
    torch.manual_seed(0)
    labels = labels or ("op",)
    return nn.Sequential(
        nn.Linear(4, 4), *(LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label=n) for n in labels)
    )


def is_fast(search, plan, monkeypatch):
    """Say whether a pass takes the fast way."""
    calls, fast_way = [], Candidates.weighted_sum
    with monkeypatch.context() as patch:
        patch.setattr(Candidates, "weighted_sum", lambda *args: calls.append(1) or fast_way(*args))
        search(X, plan)
        calls.clear()
        search(X, plan)
    return bool(calls)


def path(search):
    search(X, {"op": "skip"})


def mixture_under_autocast(search):
    with torch.autocast("cpu", torch.bfloat16):
        search(X, W)


def path_under_autocast(search):
    with torch.autocast("cpu", torch.bfloat16):
        path(search)


def path_without_gradients(search):
    with torch.no_grad():
        path(search)


def evaluated(search):
    data = TensorDataset(X, torch.arange(8) % 2)
    SupernetEvaluator(search, (data, data), loss=cross_entropy)({"op": "skip"})


def failing(search):
    with pytest.raises(RuntimeError):
        search(X[:, :2], {"op": "skip"})


PASSES = [path, mixture_under_autocast, path_under_autocast, path_without_gradients, evaluated, failing]


@pytest.mark.parametrize("between", PASSES, ids=lambda function: function.__name__)
def test_mixtures_run_the_fast_way_whatever_runs_before_or_between(between, monkeypatch):
    search = Supernet(net())
    between(search)
    assert is_fast(search, W, monkeypatch)
    search = Supernet(net())
    search(X, W)
    between(search)
    assert is_fast(search, W, monkeypatch)


def test_a_trainers_mixtures_run_the_fast_way_after_a_path(monkeypatch):
    data = TensorDataset(X, torch.arange(8) % 2)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = DartsTrainer(model, cross_entropy, None, optimizer, 1, data, batch_size=4, device="cpu", progress=False)
    assert all(slot.fast for _, slot in trainer.supernet.replaced)
    path(trainer.supernet)
    assert is_fast(trainer.supernet, W, monkeypatch)


@pytest.mark.parametrize("between", PASSES, ids=lambda function: function.__name__)
def test_a_lean_mixture_is_computed_again_as_it_was_whatever_runs_before_its_backward_pass(between):
    gradients = []
    for runs_between in (False, True):
        search, weights = Supernet(net(), layer=partial(LayerSlot, lean=True)), W["op"].clone().requires_grad_()
        output = search(X, {"op": weights})
        if runs_between:
            between(search)
        output.square().sum().backward()
        gradients.append(weights.grad)
    assert torch.equal(*gradients)


def test_what_is_first_mixed_in_a_later_pass_is_tried_then(monkeypatch):
    search, tried = Supernet(net("op", "other")), []
    search(X, {**W, "other": "skip"})
    assert [slot.fast for _, slot in search.replaced] == [True, None]
    agree = trial.agree
    monkeypatch.setattr(trial, "agree", lambda *outputs: tried.append(1) or agree(*outputs))
    for _ in range(2):
        search(X, {**W, "other": W["op"]})
    assert len(tried) == 1 and [slot.fast for _, slot in search.replaced] == [True, True]


def test_a_way_that_gave_another_output_stays_off(monkeypatch, caplog):
    search = Supernet(net())
    with monkeypatch.context() as patch:
        patch.setattr(trial, "agree", lambda *_: False)
        search(X, W)
    assert "gives another output" in caplog.text
    mixture_under_autocast(search)  # where all runs as it is, so that it gives the same
    assert not is_fast(search, W, monkeypatch)


def test_a_first_pass_in_a_transform_or_in_inference_mode_runs_candidate_by_candidate(monkeypatch):
    monkeypatch.setattr(Candidates, "weighted_sum", None)  # it would raise
    search = Supernet(net())
    gradient = torch.func.grad(lambda weights: search(X, {"op": weights}).sum())(W["op"])
    h = search.model[0](X)
    expected = torch.stack([search.model[1]["linear"](h).sum(), h.sum()])
    torch.testing.assert_close(gradient, expected)
    with torch.inference_mode():
        torch.testing.assert_close(Supernet(net())(X, W), search(X, W))
