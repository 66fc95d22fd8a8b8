"""The term that leads a distribution to limits: its value, its gradient, and what is found within limits."""

import itertools
import math

import pytest
import torch
from torch import nn

import supernet.nn as elastic
from supernet import InputChoice, LayerChoice, SearchSpace, ValueChoice
from supernet.cost import ArchitectureCost, Limits, Parameters
from supernet.cost import limits as limits_module
from supernet.errors import TrainingError
from supernet.relaxations import DecisionDistribution, EnasController, Gates, Softmax
from supernet.search import EvolutionSearcher, RandomSearcher
from supernet.trainers.keeping_limits import LimitsTerm
from supernet.trainers.keeping_limits import check_relaxation as check_for_limits


class Net(nn.Module):
    """A width, a choice of layers with one inside, and sets of inputs: of a fixed number, within bounds."""

    def __init__(self):
        super().__init__()
        width = ValueChoice([2, 4, 8], label="width")
        self.layers = nn.Sequential(elastic.Linear(4, width), elastic.Linear(width, 2))
        inner = LayerChoice([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)], label="inner")
        self.op = LayerChoice({"deep": nn.Sequential(nn.Linear(4, 8), inner), "skip": nn.Identity()}, label="op")
        self.sets = nn.ModuleList(
            InputChoice(3, n_chosen, absent="zeros", label=label)
            for label, n_chosen in {"two": 2, "some": (1, 2)}.items()
        )


class NumberOfInputs(ArchitectureCost):
    """How many inputs all choices of sets take; its mean follows from the probability of each decision."""

    def __init__(self, space):
        super().__init__(space, lambda a: sum(len(d) for d in a.values() if isinstance(d, list)), name="inputs")

    def expected(self, probabilities):
        sizes = {k: torch.tensor([len(d) for d in domain]) for k, domain in self.space.items() if domain.is_set}
        return sum((probabilities[k] * size.to(probabilities[k])).sum() for k, size in sizes.items())


def limits_of_net(bounds):
    model = Net()
    return Limits(model, bounds, costs={"inputs": NumberOfInputs(SearchSpace(model))})


def moved(make, space, seed):
    relaxation = make(space).double()
    with torch.no_grad():
        for p in relaxation.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return relaxation


def means_by_enumeration(relaxation, costs):
    p_of = [(float(relaxation.log_prob(a).detach().exp()), a) for a in relaxation.space.enumerate()]
    return {name: sum(p * cost.of(a) for p, a in p_of) for name, cost in costs.items()}


@pytest.mark.parametrize("make", [Softmax, DecisionDistribution, Gates])
def test_the_term_is_the_share_by_which_the_mean_or_the_most_probable_is_beyond_times_a_rising_strength(make):
    """Means over all architectures, by the relaxation's own `log_prob`; of sets of inputs too."""
    limits = limits_of_net({"parameters": 50, "inputs": (4, None)})
    relaxation = moved(make, limits.space, seed=0)
    means, likeliest = means_by_enumeration(relaxation, limits.costs), limits.costs_of(relaxation.derive())
    beyond = max(means["parameters"], likeliest["parameters"]) / 50
    below = min(means["inputs"], likeliest["inputs"]) / 4
    assert beyond > 1 and below < 1
    shares = {"hinge": beyond - 1 + 1 - below, "log_ratio": math.log(beyond) - math.log(below)}
    for penalty, share in shares.items():
        for progress in (0.0, 0.25, 1.0):
            term = LimitsTerm(limits, penalty, 10.0)(relaxation, {}, progress)
            assert term.item() == pytest.approx(10.0 * progress * share, rel=1e-4)


@pytest.mark.parametrize("make", [Softmax, DecisionDistribution, Gates])
@pytest.mark.parametrize("penalty", ["hinge", "log_ratio"])
def test_the_gradient_of_the_term_is_that_of_finite_differences_of_the_mean(make, penalty):
    limits = limits_of_net({"parameters": (None, 20), "inputs": (4, None)})
    relaxation = moved(make, limits.space, seed=0)
    parameters = list(relaxation.parameters())
    term = LimitsTerm(limits, penalty, 3.0)
    gradients = torch.autograd.grad(term(relaxation, {}, 0.5), parameters)
    log_probs = {k: v.detach() for k, v in relaxation.log_probs().items()}
    likeliest = {k: 1e-6 * v.exp() + (1 - 1e-6) * (v == v.max()) for k, v in log_probs.items()}
    standing = {name: float(cost.expected(likeliest)) for name, cost in limits.costs.items()}

    def surrogate():
        """Return the term with the mean's own change, from wherever its value stands."""
        means = {
            name: float(cost.expected({k: v.exp() for k, v in relaxation.log_probs().items()}))
            for name, cost in limits.costs.items()
        }
        beyond = means["parameters"] + shift["parameters"]
        below = means["inputs"] + shift["inputs"]
        if penalty == "hinge":
            return 1.5 * (max(0, beyond / 20 - 1) + max(0, 1 - below / 4))
        return 1.5 * (max(0, math.log(beyond / 20)) + max(0, -math.log(below / 4)))

    with torch.no_grad():
        shift = {"parameters": 0.0, "inputs": 0.0}
        now = {k: float(c.expected({k: v.exp() for k, v in log_probs.items()})) for k, c in limits.costs.items()}
        shift["parameters"] = max(0.0, standing["parameters"] - now["parameters"])
        shift["inputs"] = min(0.0, standing["inputs"] - now["inputs"])
        for p, gradient in zip(parameters, gradients, strict=True):
            for i in range(p.numel()):
                sides = []
                for step in (1e-5, -1e-5):
                    p[i] += step
                    sides.append(surrogate())
                    p[i] -= step
                assert gradient[i].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("make", [Softmax, DecisionDistribution, Gates])
def test_within_the_limits_the_term_and_its_gradient_are_0(make):
    limits = limits_of_net({"parameters": (1, 10_000), "inputs": (0, 100)})
    for penalty in ("hinge", "log_ratio"):
        relaxation = moved(make, limits.space, seed=1)
        term = LimitsTerm(limits, penalty, 10.0)(relaxation, {}, 1.0)
        assert term == 0
        found = torch.autograd.grad(term, list(relaxation.parameters()), allow_unused=True)
        assert all(gradient is None or not gradient.any() for gradient in found)


@pytest.mark.parametrize("make", [Softmax, DecisionDistribution])
def test_probabilities_of_decisions_add_up_to_those_of_architectures(make):
    space = SearchSpace(Net())
    relaxation = moved(make, space, seed=0)
    log_probs, decisions = relaxation.log_probs(), {label: list(domain) for label, domain in space.items()}
    for architecture in itertools.islice(space.enumerate(), 0, None, 5):
        added = sum(log_probs[label][decisions[label].index(d)] for label, d in architecture.items())
        assert added.item() == pytest.approx(relaxation.log_prob(architecture).item())


def test_a_relaxation_that_does_not_say_how_probable_each_decision_is_is_refused():
    class Squared(Softmax):
        def log_prob(self, architecture):
            return 2 * super().log_prob(architecture)

    space = SearchSpace(Net())
    with pytest.raises(TrainingError, match=r"Squared.log_probs\(\) says of these does not add up to its log_prob"):
        check_for_limits(Squared(space), space)
    with pytest.raises(TrainingError, match=r"EnasController.log_probs\(\) does not say that of each choice"):
        check_for_limits(EnasController(space), space)
    check_for_limits(Gates(space), space)


# --- what is found within limits ------------------------------------------------------------------------------


def widths(layers=4):
    values = [ValueChoice([4, 8, 12, 16], label=f"width{i}") for i in range(layers)]
    return nn.Sequential(*(elastic.Linear(a, b) for a, b in itertools.pairwise([4, *values, 2])))


def scores_of(space, seed):
    generator = torch.Generator().manual_seed(seed)
    return {label: torch.randn(domain.size, generator=generator).tolist() for label, domain in space.items()}


def test_the_best_within_limits_is_that_of_an_enumeration():
    for share in ("80%", "30%"):
        limits = Limits(widths(), {"parameters": share})
        for seed in range(3):
            scores = scores_of(limits.space, seed)

            def total(architecture, scores=scores):
                return sum(scores[label][d // 4 - 1] for label, d in architecture.items())

            expected = max(filter(limits, limits.space.enumerate()), key=total)
            assert limits.best(scores) == (expected, True)


def test_where_the_best_is_too_far_down_what_is_found_keeps_the_limits_and_is_said_not_to_be_known_as_the_best(
    monkeypatch,
):
    monkeypatch.setattr(limits_module, "MAX_EXPANDED", 1)
    limits = Limits(widths(), {"parameters": "30%"})
    for seed in range(3):
        scores = scores_of(limits.space, seed)

        def total(architecture, scores=scores):
            return sum(scores[label][d // 4 - 1] for label, d in architecture.items())

        found, is_best = limits.best(scores)
        totals = sorted(map(total, filter(limits, limits.space.enumerate())))
        assert limits(found) and not is_best
        assert total(found) >= totals[int(0.95 * len(totals))]


@pytest.mark.parametrize("kind", [EvolutionSearcher, RandomSearcher])
def test_a_searcher_begins_with_what_limits_draw_where_hardly_anything_keeps_them(kind):
    model = nn.Sequential(
        *(
            elastic.Linear(a, b)
            for a, b in itertools.pairwise(
                [4, *(ValueChoice(list(range(8, 72, 8)), label=f"width{i}") for i in range(6)), 2]
            )
        )
    )
    limits = Limits(model, {"parameters": 440})  # 8 of 262,144 networks are that small
    asked = kind(limits.space, constraint=limits).ask(4)
    cost = Parameters(model)
    assert asked and all(cost.of(one) <= 440 for one in asked)
