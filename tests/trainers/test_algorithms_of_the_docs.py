"""GDAS and DrNAS as docs/custom_trainer.md shows them, against their mathematics."""

import ast
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import InputChoice, LayerChoice, SearchSpace
from supernet.testing import check_trainer

PAGE = (Path(__file__).parents[2] / "docs" / "custom_trainer.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
SHOWN = {name: block for name in ("GumbelMax", "DirichletMixture") for block in BLOCKS if f"class {name}(" in block}
DOCS = {"torch": torch, "F": nn.functional, "__name__": "custom_trainer"}
for source in SHOWN.values():
    exec(source, DOCS)

SPACE = SearchSpace(nn.Sequential(LayerChoice([nn.Identity() for _ in range(3)], label="op")))
ALPHA = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64)


def made(relaxation_class):
    relaxation = relaxation_class(SPACE, seed=0, dtype=torch.float64)
    with torch.no_grad():
        relaxation.logits["op"].copy_(ALPHA)
    return relaxation


def gumbel_noise(generator):
    """What `exponential_` and two signs make of a generator's next numbers, read without moving it."""
    twin = torch.Generator().manual_seed(0)
    twin.set_state(generator.get_state())
    return -torch.empty(3).exponential_(generator=twin).log().double()


@pytest.mark.parametrize(("progress", "tau"), [(0.0, 10.0), (0.5, 5.05), (1.0, 0.1)])
def test_gdas_runs_the_largest_of_the_noisy_logits_with_the_gradient_of_the_soft_sample(progress, tau):
    """d softmax((alpha + noise) / tau)_k / d alpha_i = s_k (delta_ik - s_i) / tau, and by finite differences."""
    relaxation = made(DOCS["GumbelMax"])
    for _ in range(5):
        noise = gumbel_noise(relaxation.generator)
        active, weights, detached = relaxation.plan(progress)["op"]
        k = int((ALPHA + noise).argmax())
        assert (active, weights.tolist(), detached) == ((k,), [1.0], 0)
        (gradient,) = torch.autograd.grad(weights.sum(), relaxation.logits["op"])
        soft = torch.softmax((ALPHA + noise) / tau, -1)
        closed = soft[k] * (torch.eye(3, dtype=torch.float64)[k] - soft) / tau
        torch.testing.assert_close(gradient, closed, rtol=1e-9, atol=1e-12)
        for i, step in enumerate(1e-6 * torch.eye(3, dtype=torch.float64)):
            sides = [torch.softmax((ALPHA + sign * step + noise) / tau, -1)[k].item() for sign in (1, -1)]
            assert gradient[i].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_gdas_runs_each_candidate_as_often_as_softmax_says():
    relaxation, counts, number = made(DOCS["GumbelMax"]), torch.zeros(3), 2000
    for _ in range(number):
        counts[relaxation.weights_plan(0.5)["op"].active[0]] += 1
    expected = number * torch.softmax(ALPHA, -1)
    assert float(((counts - expected) ** 2 / expected).sum()) < 2 + 4 * math.sqrt(2 * 2)


def test_drnas_draws_weights_whose_mean_is_that_of_its_dirichlet_distribution():
    """The mean is c / sum c for c = elu(beta) + 1; the pathwise gradient averages to that of the mean."""
    relaxation, value, number = made(DOCS["DirichletMixture"]), torch.tensor([1.0, -2.0, 0.5]).double(), 2000
    beta = ALPHA.clone().requires_grad_()
    c = torch.where(beta > 0, beta + 1, beta.exp())
    mean = c / c.sum()
    torch.testing.assert_close(relaxation.probabilities()["op"], mean)
    drawn = torch.stack([relaxation.plan(0.0)["op"] for _ in range(number)])
    torch.testing.assert_close(drawn.sum(1), torch.ones(number, dtype=torch.float64))
    variance = (mean * (1 - mean) / (c.sum() + 1)).detach()
    assert ((drawn.mean(0) - mean).detach().abs() < 4 * (variance / number).sqrt()).all()
    (found,) = torch.autograd.grad((drawn @ value).mean(), relaxation.logits["op"])
    (exact,) = torch.autograd.grad(mean @ value, beta)
    torch.testing.assert_close(found, exact, rtol=0.15, atol=0.02)
    assert relaxation.derive() == {"op": "2"}
    p = [relaxation.log_prob({"op": k}).exp().item() for k in range(3)]
    assert p == pytest.approx(mean.tolist())


def test_the_term_of_drnas_is_the_divergence_of_its_closed_form():
    """KL(Dir(c) || Dir(1)) = ln G(c0) - sum ln G(c_k) - ln G(K) + sum (c_k - 1) (psi(c_k) - psi(c0))."""
    relaxation = made(DOCS["DirichletMixture"])
    c = torch.where(ALPHA > 0, ALPHA + 1, ALPHA.exp())
    c0 = c.sum()
    expected = torch.lgamma(c0) - torch.lgamma(c).sum() - math.lgamma(3)
    expected = expected + ((c - 1) * (torch.digamma(c) - torch.digamma(c0))).sum()
    found = DOCS["divergence_from_uniform"](relaxation, {}, 0.0, weight=2.0)
    torch.testing.assert_close(found.detach(), 2 * expected)
    assert expected > 0.01


class Planted(nn.Module):
    """One candidate and one input are right, their rivals are wrong."""

    def __init__(self):
        super().__init__()
        self.op = LayerChoice({"wrong": Times(-1.0), "right": Times(1.0), "none": Times(0.0)}, label="net.op")
        self.skip = InputChoice(2, 1, label="net.skip")
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.skip([-x, self.op(x) * self.scale])


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@pytest.mark.parametrize("name", ["GdasTrainer", "DrnasTrainer"])
def test_they_find_the_planted_architecture(name):
    for seed in range(2):
        torch.manual_seed(seed)
        X, model = torch.randn(320, 4), Planted()
        trainer = DOCS[name](
            *(model, nn.functional.mse_loss, None, SGD(model.parameters(), 0.02), 6, TensorDataset(X, X)),
            architecture_optimizer=lambda parameters: torch.optim.Adam(parameters, 0.05),
            **{"batch_size": 16, "seed": seed, "progress": False, "device": "cpu"},
        )
        trainer.fit()
        assert trainer.export() == {"net.op": "right", "net.skip": [1]}


def test_each_is_short():
    """A relaxation in 15 lines, and all else in 20."""
    for relaxation, source in SHOWN.items():
        lengths = {"relaxation": 0, "all else": 0}
        for node in ast.parse(source).body:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                own = [line for line in source.splitlines()[node.lineno - 1 : node.end_lineno] if line.strip()]
                lengths["relaxation" if getattr(node, "name", None) == relaxation else "all else"] += len(own)
        assert lengths["relaxation"] <= 15
        assert lengths["all else"] <= 20


def searched(name, **options):
    torch.manual_seed(0)
    X, model = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), Planted()
    return DOCS[name](
        *(model, nn.functional.mse_loss, None, SGD(model.parameters(), 0.02), 2, TensorDataset(X, X)),
        **{"batch_size": 4, "progress": False, "device": "cpu", **options},
    )


@pytest.mark.parametrize("name", ["GdasTrainer", "DrnasTrainer"])
def test_they_hold_what_trainers_promise(name):
    check_trainer(partial(searched, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GdasTrainer", "DrnasTrainer"])
def test_they_run_one_path_in_two_processes(name):
    check_trainer(partial(searched, name), processes=2)
