"""InputChoice(n_chosen=(low, high)) against enumeration of its sets."""

import json
import math
from itertools import combinations

import pytest
import torch
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace, freeze, load_architecture, save_architecture
from supernet.errors import ArchitectureError, ChoiceError
from supernet.nn import Domain

BOUNDS = [(4, (1, 2)), (4, (0, 2)), (3, (2, 3)), (5, (1, 4)), (2, (0, 1)), (1, None)]


def sets(n, low, high):
    return [list(chosen) for count in range(low, high + 1) for chosen in combinations(range(n), count)]


def space(*arguments, **options):
    return SearchSpace(nn.Sequential(InputChoice(*arguments, label="join", **options)))


@pytest.mark.parametrize(("n", "n_chosen"), BOUNDS)
def test_the_decisions_are_the_sets_that_keep_the_bounds(n, n_chosen):
    low, high = n_chosen or (0, n)
    expected = [{"join": chosen} for chosen in sets(n, low, high)]
    assert list(space(n, n_chosen).enumerate()) == expected
    assert space(n, n_chosen).size == len(expected)


def test_bounds_that_allow_one_number_or_all_are_the_same_as_that():
    assert space(4, (2, 2)) == space(4, 2) != space(4, (1, 2))
    assert space(4, (0, 4)) == space(4, None) != space(4, (0, 3))
    assert InputChoice(4, [1, 2]).n_chosen == (1, 2)


def test_a_space_and_its_files_tell_bounds():
    bounded = space(3, (1, 2))
    assert json.loads(json.dumps(bounded.to_json()))["choices"]["join"]["n_chosen"] == [1, 2]
    assert str(bounded["join"]) == "1 to 2 of 3 inputs"
    with pytest.raises(ArchitectureError, match=r"'join' takes 1 to 2 inputs, not 3: \[0, 1, 2\]"):
        bounded.validate({"join": [0, 1, 2]})
    with pytest.raises(ArchitectureError, match=r"takes 1 to 2 inputs, not 0"):
        bounded.validate({"join": []})


def test_an_architecture_within_bounds_goes_through_a_file_and_is_frozen(tmp_path):
    model = nn.Sequential(InputChoice(3, (1, 2), label="join"))
    save_architecture({"join": [0, 2]}, tmp_path / "a.json", SearchSpace(model))
    architecture = load_architecture(tmp_path / "a.json", SearchSpace(model))
    x = [torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([4.0])]
    assert freeze(model, architecture)(x).item() == 5.0


@pytest.mark.parametrize(
    ("n_chosen", "prior"),
    [((1, 2), None), ((0, 3), None), ((1, 2), [0.1, 0.5, 0.9, 0.3]), ((2, 3), [0.0, 1.0, 0.2, 0.7])],
)
def test_a_decision_is_drawn_as_often_as_independent_inclusion_within_the_bounds_says(n_chosen, prior):
    """Without a prior each set is as likely as any other."""
    p = prior or [0.5] * 4
    product = {str(s): math.prod(p[i] if i in s else 1 - p[i] for i in range(4)) for s in sets(4, *n_chosen)}
    total = sum(product.values())
    count, seen, generator = 6000, {}, torch.Generator().manual_seed(0)
    drawn = space(4, n_chosen, prior=prior)
    for _ in range(count):
        name = str(drawn.sample(generator)["join"])
        seen[name] = seen.get(name, 0) + 1
    possible = {name: count * q / total for name, q in product.items() if q}
    assert set(seen) <= set(possible)
    freedom = len(possible) - 1
    chi_square = sum((seen.get(name, 0) - e) ** 2 / e for name, e in possible.items())
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)
    if prior is None:
        assert len({round(e, 6) for e in possible.values()}) == 1


@pytest.mark.parametrize("n_chosen", [(1, 2), (1999, 2000), (0, 1)])
def test_draws_keep_the_bounds_among_thousands_of_inputs_and_at_the_edges(n_chosen):
    domain = Domain("join", tuple(map(str, range(2001))), n_chosen, is_set=True)
    low, high = n_chosen
    for u in (0.0, 0.5, math.nextafter(1.0, 0)):
        assert low <= len(domain.draw([u] * 2001)) <= high


@pytest.mark.parametrize(("n", "n_chosen"), [(4, (1, 2)), (3, (0, 1)), (4, (2, 3))])
def test_mutations_reach_each_set_from_each_and_take_one_input_in_or_out(n, n_chosen):
    domain = space(n, n_chosen)["join"]
    reached = {}
    for decision in domain:
        neighbours = {str(domain.mutate(decision, [u / 100, 0.0])) for u in range(100)}
        allowed = [d for d in domain if len(set(d) ^ set(decision)) == 1]
        assert neighbours == {str(d) for d in allowed}
        reached[str(decision)] = neighbours
    known, ahead = set(), [str(next(iter(domain)))]
    while ahead:
        known.add(name := ahead.pop())
        ahead += reached[name] - known
    assert len(known) == domain.size


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        ((3, (2, 1)), {}, r"not \(2, 1\); or bounds within 0 and 3, such as \(1, 3\)"),
        ((3, (0, 0)), {}, r"not \(0, 0\)"),
        ((3, (1, 4)), {}, r"not \(1, 4\)"),
        ((3, (1, 2, 3)), {}, r"not \(1, 2, 3\)"),
        ((3, (True, 2)), {}, r"not \(True, 2\)"),
        ((3, (2, 3)), {"prior": [1.0, 0, 0]}, "2 inputs are to be chosen, but the prior allows fewer"),
        ((3, (1, 2)), {"prior": [1.0, 1.0, 1.0]}, "at most 2 inputs are to be chosen, but the prior demands more"),
        ((3, (1, 2)), {"absent": "ones"}, "absent is one of omitted, zeros, not 'ones'"),
    ],
)
def test_bounds_that_cannot_be_are_refused(arguments, options, match):
    with pytest.raises(ChoiceError, match=match):
        InputChoice(*arguments, **options)


def test_spaces_without_bounds_have_the_fingerprints_that_files_hold():
    layers = LayerChoice([nn.ReLU(), nn.Tanh()], label="op")
    inputs = [
        InputChoice(3, label="one"),
        InputChoice(3, 2, label="two"),
        InputChoice(choose_from=["a", "b"], n_chosen=None, absent="zeros", label="any"),
    ]
    fingerprint = SearchSpace(nn.Sequential(layers, *inputs)).fingerprint
    assert fingerprint == "0bd3557482c33301bb282cfcf50473d00f97191a1e94a66774c88b95f4903a6b"
