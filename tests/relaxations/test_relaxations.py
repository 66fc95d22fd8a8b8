"""Relaxations against closed forms and enumeration: gradients, probabilities, modes, draws and state."""

import itertools
import math

import pytest
import torch
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace
from supernet.relaxations import DecisionDistribution, Gates, Relaxation, Softmax, new_logits
from supernet.relaxations.logits import Logits


def layer(*names, **options):
    return LayerChoice({name: nn.Identity() for name in names}, **options)


def flat_space():
    return SearchSpace(
        nn.Sequential(
            layer("a", "b", "c", label="op.0"),
            InputChoice(2, 1, label="one"),
            InputChoice(3, 2, label="two"),
            InputChoice(2, None, label="any"),
            InputChoice(3, (1, 2), label="some"),
        )
    )


def nested_space():
    deep = nn.Sequential(layer("c", "d", label="inner"), InputChoice(3, (0, 2), label="skip"))
    return SearchSpace(nn.ModuleList([LayerChoice({"flat": nn.Identity(), "deep": deep}, label="outer")]))


def made(relaxation_class, space, seed=0, scale=1.0):
    relaxation = relaxation_class(space, seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits_K in relaxation.logits.values():
            logits_K.copy_(scale * torch.randn(len(logits_K), generator=generator, dtype=torch.float64))
    return relaxation


ALL = [Softmax, DecisionDistribution, Gates]


# --- probabilities -------------------------------------------------------------------------------------------


def test_the_gradient_of_a_mixture_s_weights_is_that_of_softmax_and_of_sigmoid():
    """dp_i/da_j = p_i (delta_ij - p_j), and p_i (1 - p_i) on the diagonal alone."""
    relaxation = made(Softmax, flat_space())
    plan = relaxation.plan(0.0)
    for label, is_softmax in {"op.0": True, "one": True, "two": True, "any": False, "some": False}.items():
        alpha_K, p_K = relaxation.logits[label], plan[label]
        exp_K = alpha_K.detach().exp()
        expected_K = exp_K / exp_K.sum() if is_softmax else exp_K / (1 + exp_K)
        torch.testing.assert_close(p_K.detach(), expected_K)
        for i, p in enumerate(expected_K):
            (gradient,) = torch.autograd.grad(p_K[i], alpha_K, retain_graph=True)
            delta = torch.eye(len(p_K), dtype=torch.float64)[i]
            torch.testing.assert_close(gradient, p * (delta - expected_K) if is_softmax else delta * p * (1 - p))


def test_the_weights_run_the_same_mixture_without_a_gradient():
    relaxation = made(Softmax, flat_space())
    for label, p_K in relaxation.weights_plan(0.5).items():
        assert not p_K.requires_grad
        assert torch.equal(p_K, relaxation.plan(0.5)[label].detach())


@pytest.mark.parametrize("space", [flat_space, nested_space])
@pytest.mark.parametrize("relaxation_class", ALL)
def test_probabilities_of_all_architectures_sum_to_one(relaxation_class, space):
    relaxation = made(relaxation_class, space())
    p = [math.exp(relaxation.log_prob(architecture).detach()) for architecture in relaxation.space.enumerate()]
    assert sum(p) == pytest.approx(1, abs=1e-12)
    assert max(p) > 2 * min(p)


def by_hand(domain, alpha, chosen):
    """The probability of a set of options, each of which is in it on its own, on condition that the bounds are kept."""
    low, high = domain.bounds
    p = [1 / (1 + math.exp(-a)) for a in alpha.tolist()]
    sets = [s for k in range(low, high + 1) for s in itertools.combinations(range(len(p)), k)]
    of_set = {s: math.prod(p[i] if i in s else 1 - p[i] for i in range(len(p))) for s in sets}
    return of_set[tuple(chosen)] / sum(of_set.values())


def test_a_set_of_inputs_is_chosen_by_sigmoids_on_condition_that_the_bounds_are_kept():
    relaxation = made(Softmax, flat_space())
    space = relaxation.space
    for architecture in itertools.islice(space.enumerate(), 0, None, 11):
        p_op = torch.softmax(relaxation.logits["op.0"].detach(), -1)[["a", "b", "c"].index(architecture["op.0"])]
        expected = math.log(p_op) + sum(
            math.log(by_hand(space[label], relaxation.logits[label], architecture[label]))
            for label in ("one", "two", "any", "some")
        )
        assert float(relaxation.log_prob(architecture).detach()) == pytest.approx(expected, abs=1e-10)


def test_the_gradient_of_log_prob_is_what_was_chosen_minus_what_is_expected():
    """For p(s) ~ exp(sum of s's logits), d log p(s) / d alpha_i = [i in s] - P(i in a set)."""
    relaxation = made(Softmax, flat_space())
    for label in ("two", "any", "some"):
        domain, alpha_K = relaxation.space[label], relaxation.logits[label]
        sets = [domain.positions(decision) for decision in domain]
        inclusion = [sum(by_hand(domain, alpha_K, s) for s in sets if i in s) for i in range(len(alpha_K))]
        architecture = {"op.0": "a", "one": [0], "two": [0, 2], "any": [0], "some": [2]}
        (gradient,) = torch.autograd.grad(relaxation.log_prob(architecture), alpha_K)
        expected = [(i in architecture[label]) - inclusion[i] for i in range(len(alpha_K))]
        assert gradient.tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("relaxation_class", ALL)
def test_what_is_derived_is_the_mode_where_choices_do_not_hold_others(relaxation_class, seed):
    relaxation = made(relaxation_class, flat_space(), seed)
    best = max(relaxation.space.enumerate(), key=lambda architecture: float(relaxation.log_prob(architecture).detach()))
    assert relaxation.derive() == best


def test_what_is_drawn_is_drawn_as_often_as_its_probability_says():
    relaxation = made(DecisionDistribution, nested_space(), seed=3)
    count, seen = 1000, {}
    for _ in range(count):
        drawn = str(relaxation.plan(0.0))
        seen[drawn] = seen.get(drawn, 0) + 1
    expected = {str(a): count * math.exp(relaxation.log_prob(a).detach()) for a in relaxation.space.enumerate()}
    chi_square = sum((seen.get(name, 0) - e) ** 2 / e for name, e in expected.items())
    freedom = len(expected) - 1
    assert seen.keys() <= expected.keys()
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_the_first_logits_depend_on_the_seed_alone():
    space = flat_space()
    generator = torch.Generator().manual_seed(7)
    for relaxation_class, widths in ((Softmax, (3, 2, 3, 2, 3)), (Gates, (3, 2, 3, 4, 6))):
        relaxation = relaxation_class(space, seed=7, dtype=torch.bfloat16)
        for logits_K, width in zip(relaxation.logits.values(), widths, strict=True):
            assert torch.equal(logits_K, 1e-3 * torch.randn(width, generator=generator))
        generator.manual_seed(7)
    functional = new_logits(space, seed=7, dtype=torch.float32, device="cpu")
    assert all(torch.equal(functional[label], v) for label, v in Softmax(space, seed=7).logits.items())


# --- gates ---------------------------------------------------------------------------------------------------


def test_all_batches_of_a_step_have_the_same_two_gates_and_each_its_active_one():
    relaxation = made(Gates, flat_space())
    relaxation.begin_step()
    actives = set()
    for _ in range(20):
        gates = relaxation.plan(0.0)
        for label, (active, weights, detached) in gates.items():
            two = [relaxation.decisions[label][k] for k in relaxation.drawn[label]]
            assert sorted(map(str, active)) == sorted(map(str, two))
            assert (weights.tolist(), detached) == ([1.0, 0.0], 1)
        actives.add(str(gates["two"].active[0]))
    assert len(actives) == 2
    before = dict(relaxation.drawn)
    relaxation.begin_step()
    assert relaxation.drawn != before


def test_the_active_gate_is_drawn_by_the_probabilities_among_the_two():
    relaxation = made(Gates, flat_space(), seed=1)
    relaxation.begin_step()
    first, second = relaxation.drawn["two"]
    p = torch.softmax(relaxation.logits["two"][[first, second]].detach(), -1)[0].item()
    of_first = relaxation.decisions["two"][first]
    count = sum(relaxation.plan(0.0)["two"].active[0] == of_first for _ in range(1000))
    assert count / 1000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 1000))


def test_a_step_leaves_the_probabilities_of_the_others():
    relaxation = made(Gates, flat_space())
    relaxation.begin_step()
    before = {label: torch.softmax(alpha.detach(), -1) for label, alpha in relaxation.logits.items()}
    with relaxation.stepping(), torch.no_grad():
        for label, two in relaxation.drawn.items():
            relaxation.logits[label][two] += torch.tensor([0.7, -0.2], dtype=torch.float64)
    for label, alpha in relaxation.logits.items():
        after, two = torch.softmax(alpha.detach(), -1), relaxation.drawn[label]
        others = [k for k in range(len(alpha)) if k not in two]
        torch.testing.assert_close(after[others], before[label][others], atol=1e-12, rtol=0)
        assert not torch.allclose(after[two], before[label][two])


# --- a module, its state and its draws -----------------------------------------------------------------------


class Noisy(Relaxation):
    """Draws by torch's own distributions, which take no generator."""

    def plan(self, progress):
        with self.drawing():
            return {label: torch.distributions.Gumbel(alpha, 1.0).rsample() for label, alpha in self.logits.items()}


def test_labels_with_dots_and_names_of_a_module_s_own_are_parameters_under_their_names():
    labels = ["layers.0.op", "keys", "training", "forward", "_parameters"]
    space = SearchSpace(nn.Sequential(*(layer("a", "b", label=label) for label in labels)))
    relaxation = Softmax(space)
    assert [*relaxation.logits] == labels
    assert [name for name, _ in relaxation.named_parameters()] == [f"logits.{label}" for label in labels]
    assert [*relaxation.state_dict()] == ["_extra_state", *(f"logits.{label}" for label in labels)]
    assert relaxation.training is True
    other = Softmax(space, seed=1)
    other.load_state_dict(relaxation.state_dict())
    assert all(torch.equal(other.logits[label], relaxation.logits[label]) for label in labels)


def test_a_state_that_lacks_a_label_or_has_another_is_refused_by_name():
    values = {"a.b": nn.Parameter(torch.zeros(2)), "c": nn.Parameter(torch.zeros(2))}
    module = nn.ModuleDict({"logits": Logits(values)})
    state = module.state_dict()
    del state["logits.a.b"]
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*logits\.a\.b"):
        module.load_state_dict(state)
    assert module.load_state_dict(state, strict=False).missing_keys == ["logits.a.b"]
    with pytest.raises(RuntimeError, match=r"(?s)Unexpected key.*logits\.x\.y"):
        module.load_state_dict({**module.state_dict(), "logits.x.y": torch.zeros(2)})


@pytest.mark.parametrize("relaxation_class", [DecisionDistribution, Gates, Noisy])
def test_a_state_brings_the_draws_back_too(relaxation_class):
    def draws(relaxation):
        return [str(relaxation.plan(0.0)) for _ in range(3)]

    relaxation, other = made(relaxation_class, flat_space()), made(relaxation_class, flat_space(), seed=1)
    relaxation.begin_step()
    draws(relaxation)
    state = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in relaxation.state_dict().items()}
    expected = draws(relaxation)
    assert draws(other) != expected
    other.load_state_dict(state)
    assert draws(other) == expected


def test_what_torch_draws_comes_from_the_generator_and_leaves_torch_s_own_numbers():
    first, second = Noisy(flat_space(), seed=3), Noisy(flat_space(), seed=3)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    drawn = first.plan(0.0)
    assert torch.equal(torch.rand(3), expected)
    again = second.plan(0.0)
    assert all(torch.equal(drawn[label], again[label]) for label in drawn)
    assert not torch.equal(first.plan(0.0)["op.0"], drawn["op.0"])
    drawn["op.0"].sum().backward()
    assert torch.equal(first.logits["op.0"].grad, torch.ones(3))
