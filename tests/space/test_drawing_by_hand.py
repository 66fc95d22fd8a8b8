"""What SearchSpace prepares once so as to be quick, against the same done plainly: by walking the model."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace
from supernet.errors import ArchitectureError
from supernet.space import Domain

SPACES = settings(max_examples=150, derandomize=True, deadline=None)


# --- random models -----------------------------------------------------------------------------------------


@st.composite
def choices(draw):
    """What one label decides: a function of the modules inside each candidate, and how many candidates there are."""
    n = draw(st.integers(1, 5))
    if draw(st.booleans()):
        prior = draw(priors(n, at_least=1))
        return n, lambda label, inside: LayerChoice(
            [nn.Sequential(*modules) for modules in inside], label=label, prior=prior
        )
    bounds = [(0, 1), (1, 2), (2, 4)] if n > 1 else []
    n_chosen = draw(st.sampled_from([None, *range(1, min(n, 2) + 1), *(b for b in bounds if b[1] <= n)]))
    if isinstance(n_chosen, int):
        prior = draw(priors(n, at_least=n_chosen))
    else:
        low, high = n_chosen or (0, n)
        each = st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=n, max_size=n)
        prior = draw(st.none() | each.filter(lambda ps: sum(p > 0 for p in ps) >= low and ps.count(1) <= high))
    return 0, lambda label, _: InputChoice(n, n_chosen, label=label, prior=prior)


def priors(n, at_least):
    weights = st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0]), min_size=n, max_size=n)
    allowing = weights.filter(lambda ws: sum(w > 0 for w in ws) >= at_least)
    return st.none() | allowing.map(lambda ws: [w / sum(ws) for w in ws])


@st.composite
def models(draw):
    """A model whose choices share labels and stand inside one another, or (depth 0) all stand side by side."""
    kinds = draw(st.lists(choices(), min_size=1, max_size=6))
    labels = st.integers(0, len(kinds) - 1)

    def modules(depth):
        made = []
        for k in draw(st.lists(labels, max_size=5 if depth == 0 else 3)):
            n, make = kinds[k]
            made.append(make(f"label {k}", [modules(depth - 1) if depth else [] for _ in range(n)]))
        return made

    return nn.Sequential(*modules(draw(st.integers(0, 2))))


# --- the same, done plainly --------------------------------------------------------------------------------


def reached(module, decisions):
    """The labels that are met when `module` runs as decided."""
    if isinstance(module, LayerChoice | InputChoice):
        inside = [module[decisions[module.label]]] if isinstance(module, LayerChoice) else []
        found = {module.label: decisions[module.label]}
    else:
        inside, found = module.children(), {}
    for child in inside:
        found |= reached(child, decisions)
    return found


def in_order(space, architecture):
    return [(label, architecture[label]) for label in space if label in architecture]


def by_weight(names, weights, u):
    """The candidate in whose share of the total `u` lies."""
    *_, total = accumulate(weights)
    end = 0.0
    for name, weight in zip(names, weights, strict=True):
        end += weight
        if weight:
            last = name
            if u * total < end:
                break
    return last


def drawn(domain, uniforms):
    if not domain.is_set:
        return by_weight(domain.options, domain.prior or [1.0] * domain.size, uniforms[0])
    inputs = range(len(domain.options))
    if domain.arity is None:
        return [i for i in inputs if uniforms[i] < (domain.prior[i] if domain.prior else 0.5)]
    if isinstance(domain.arity, tuple):
        return drawn_within_bounds(domain, uniforms)
    weights = domain.prior or [1.0] * len(domain.options)
    keys = [math.log1p(-uniforms[i]) / weights[i] if weights[i] else -math.inf for i in inputs]
    return sorted(sorted(inputs, key=lambda i: (-keys[i], i))[: domain.arity])


def drawn_within_bounds(domain, uniforms):
    """One input after another, as probable as the sets that remain and have it, by independent inclusion."""
    p = domain.prior or [0.5] * len(domain.options)
    weight = {s: math.prod(p[i] if i in s else 1 - p[i] for i in range(len(p))) for s in map(tuple, domain)}
    for i, u in enumerate(uniforms):
        with_it = sum(w for s, w in weight.items() if i in s)
        takes = u * sum(weight.values()) < with_it
        weight = {s: w for s, w in weight.items() if (i in s) == takes and w}
    return list(*weight)


def all_drawn(space, generator):
    """A decision for every label, each from its own stretch of one row of numbers."""
    widths = [len(domain.options) if domain.is_set else 1 for domain in space.values()]
    row = torch.rand(sum(widths), generator=generator, dtype=torch.float64).split(widths)
    return {label: drawn(space[label], numbers.tolist()) for label, numbers in zip(space, row, strict=True)}


def mutated(space, model, parent, generator):
    changeable = [label for label in parent if len(list(space[label])) > 1]
    if not changeable:
        return parent
    label = changeable[int(torch.rand((), generator=generator, dtype=torch.float64) * len(changeable))]
    domain, decision = space[label], parent[label]
    width = len(domain.options) if domain.is_set else 1
    numbers = torch.rand(max(2, width), generator=generator, dtype=torch.float64).tolist()
    if not domain.is_set:
        others = [float(name != decision) for name in domain.options]
        weights = [p * other for p, other in zip(domain.prior or others, others, strict=True)]
        changed = by_weight(domain.options, weights if any(weights) else others, numbers[0])
    else:
        changed = domain.mutate(decision, numbers)
    return reached(model, {**all_drawn(space, generator), **parent, label: changed})


# --- the tests ---------------------------------------------------------------------------------------------


@SPACES
@given(models(), st.integers(0, 2**31))
def test_samples_and_mutations_are_those_drawn_by_hand(model, seed):
    space = SearchSpace(model)
    ours, plain = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    for _ in range(3):
        sample = space.sample(ours)
        assert list(sample.items()) == in_order(space, reached(model, all_drawn(space, plain)))
        assert list(space.draw(ours).items()) == in_order(space, all_drawn(space, plain))
        mutation = space.mutate(sample, ours)
        assert list(mutation.items()) == in_order(space, mutated(space, model, sample, plain))
    assert torch.equal(ours.get_state(), plain.get_state())


@SPACES
@given(models(), st.integers(0, 2**31), st.data())
def test_an_architecture_is_understood_as_its_decisions_and_its_way_through_the_model(model, seed, data):
    space = SearchSpace(model)
    decisions = space.draw(torch.Generator().manual_seed(seed))
    expected = reached(model, decisions)

    def in_another_way(label, decision):
        if isinstance(decision, str):
            return data.draw(st.sampled_from([decision, space[label].options.index(decision)]))
        return data.draw(st.permutations(decision).map(data.draw(st.sampled_from([tuple, list]))))

    given_as = {label: in_another_way(label, decisions[label]) for label in data.draw(st.permutations(list(decisions)))}
    result = space.canonical(given_as)
    assert list(result.items()) == list(space.canonical(decisions).items()) == in_order(space, expected)
    for label, decision in result.items():  # the caller may change what he got
        assert isinstance(decision, str) or decision is not decisions[label]
    for label in expected:
        with pytest.raises(ArchitectureError, match=f"leaves '{label}' open; decide it: "):
            space.canonical({other: decision for other, decision in given_as.items() if other != label})
        with pytest.raises(ArchitectureError, match=f"choice '{label}' "):
            space.canonical({**given_as, label: "neither a candidate nor an input"})


@pytest.mark.parametrize("n", [*range(1, 65), 100, 1000])
def test_equal_candidates_have_equal_shares_up_to_the_last_bit(n):
    domain = Domain("op", tuple(str(k) for k in range(n)))
    near_the_edges = [v for k in range(n) for v in (math.nextafter(k / n, 0), k / n, math.nextafter(k / n, 1))]
    for u in [*near_the_edges, math.nextafter(1.0, 0)]:
        assert domain.draw([u]) == str(int(u * n))


def test_rounding_leads_to_no_candidate_that_the_prior_forbids():
    """Not even where the prior does not quite sum to 1."""
    for prior in [(0.3, 0.7 - 1e-7, 0.0), (0.0, 1.0, 0.0), (*[0.1] * 10, 0.0)]:
        domain = Domain("op", tuple(str(k) for k in range(len(prior))), prior=prior)
        allowed = [str(k) for k, p in enumerate(prior) if p]
        assert domain.draw([0.0]) == allowed[0]
        assert domain.draw([math.nextafter(1.0, 0)]) == allowed[-1]


@pytest.mark.parametrize("depth", [0, 1])
def test_decisions_are_asked_for_outer_before_inner_each_in_the_order_in_which_they_stand(depth):
    inner = [InputChoice(2, label=label) for label in "cab"][: 3 * depth]
    model = nn.Sequential(
        LayerChoice({"plain": nn.Identity(), "deep": nn.Sequential(*inner)}, label="z"),
        *(InputChoice(2, label=label) for label in "ywx"),
    )
    asked = []
    SearchSpace(model).follow(lambda label: asked.append(label) or ("deep" if label == "z" else [0]))
    assert asked == [*"zywx", *"cab"[: 3 * depth]]
