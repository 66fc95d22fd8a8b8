"""Evolution over a table of scores: it finds the optimum, keeps its budget and its constraint."""

import json

import pytest
import torch
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace
from supernet.errors import SpaceError
from supernet.search import evolve


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        inner = LayerChoice([nn.ReLU(), nn.ReLU(), nn.ReLU()], label="inner")
        self.layers = nn.ModuleList(LayerChoice([nn.ReLU() for _ in range(4)], label=f"l{i}") for i in range(5))
        self.deep = LayerChoice({"flat": nn.ReLU(), "deep": nn.Sequential(inner)}, label="deep")
        self.inputs = InputChoice(4, 2, label="inputs")


SPACE = SearchSpace(Net())


def distance(architecture):
    """Minus how many decisions differ from a planted architecture."""
    planted = {f"l{i}": str(i % 4) for i in range(5)} | {"deep": "deep", "inner": "2", "inputs": [1, 3]}
    return -sum(architecture.get(label) != decision for label, decision in planted.items())


def evolution(score=distance, **options):
    asked = []

    def scores(architectures):
        asked.extend(json.dumps(a) for a in architectures)
        return [score(a) for a in architectures]

    options = {"budget": 600, "generator": torch.Generator().manual_seed(0), **options}
    return evolve(SPACE, scores, **options), asked


@pytest.mark.parametrize("seed", range(10))
def test_the_optimum_of_a_table_is_found_within_a_twentieth_of_the_space_and_nothing_is_scored_twice(seed):
    ranked, asked = evolution(generator=torch.Generator().manual_seed(seed), budget=1200)
    assert SPACE.size == 4**5 * 4 * 6  # 24,576
    assert ranked[0].score == 0
    assert len(asked) == len(set(asked)) == len(ranked) == 1200
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)


def test_it_does_better_than_random_draws_of_the_same_budget():
    generator = torch.Generator().manual_seed(0)
    best_at_random = max(distance(SPACE.sample(generator)) for _ in range(600))
    assert evolution(budget=600)[0][0].score > best_at_random


def test_every_architecture_that_is_scored_keeps_the_constraint():
    ranked, _ = evolution(constraint=lambda a: a["deep"] == "flat" and a["l0"] != "0", budget=200)
    assert all(one.architecture["deep"] == "flat" and one.architecture["l0"] != "0" for one in ranked)
    assert ranked[0].score > -5


def test_equal_scores_keep_the_order_in_which_they_were_found_and_the_same_seed_gives_the_same():
    ranked, asked = evolution(lambda architecture: 0.0, budget=120)
    assert [json.dumps(one.architecture) for one in ranked] == asked
    assert evolution(lambda architecture: 0.0, budget=120)[0] == ranked


def test_a_space_smaller_than_the_budget_is_gone_through_once():
    space = SearchSpace(nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh(), nn.GELU()], label="op")))
    ranked = evolve(space, lambda a: [0.0] * len(a), budget=50, generator=torch.Generator().manual_seed(0))
    assert sorted(one.architecture["op"] for one in ranked) == ["0", "1", "2"]


def test_a_constraint_that_nothing_keeps_is_an_error_that_says_so():
    with pytest.raises(SpaceError, match=r"none of [\d,]+ architectures drawn keeps the constraint"):
        evolution(constraint=lambda architecture: False)


def test_a_crossed_child_takes_each_decision_from_one_of_the_best():
    """Without mutation, the second generation is crossover alone."""
    generations = []

    def scores(architectures):
        generations.append(architectures)
        return [distance(a) for a in architectures]

    evolve(SPACE, scores, budget=100, generator=torch.Generator().manual_seed(0), mutation_probability=0.0)
    first, second = generations
    best = sorted(first, key=lambda a: -distance(a))[:10]
    for child in second:
        for label, decision in child.items():
            assert decision in [parent[label] for parent in best if label in parent] or label == "inner"


def test_a_mutated_child_differs_from_its_parent_in_about_a_tenth_of_its_decisions():
    generations = []

    def scores(architectures):
        generations.append(architectures)
        return [distance(a) for a in architectures]

    evolve(SPACE, scores, budget=1025, population=1000, num_parents=1, generator=torch.Generator().manual_seed(0))
    first, second = generations
    parent = max(first, key=distance)
    differing = [sum(child.get(label) != decision for label, decision in parent.items()) for child in second]
    assert max(differing) <= 4
    assert 1 <= sum(differing) / len(differing) < 2  # those that differ nowhere are drawn again
