"""A kind of choice that a user defines, by its domain and what it becomes, is one like ours everywhere."""

import itertools
import json

import pytest
import torch
from torch import nn

from kinds_of_choice import Depth, Several, Temperature
from supernet import InputChoice, LayerChoice, SearchSpace, freeze, load_architecture, save_architecture
from supernet.errors import ArchitectureError, ChoiceError, SpaceError
from supernet.nn import Choice, Domain
from supernet.relaxations import DecisionDistribution, most_probable, new_logits, probabilities
from supernet.reports import plot_architecture, plot_probabilities
from supernet.search import evolve
from supernet.training.health import entropies


def block(label):
    return LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label=label)


@pytest.fixture
def model():
    torch.manual_seed(0)
    depth = Depth(nn.Linear(4, 4), block("second"), nn.Sequential(block("third")), label="depth")
    return nn.Sequential(depth, Several(block("a"), nn.Tanh(), nn.ReLU(), label="several"), Temperature(label="t"))


def by_hand():
    """Every architecture, by what reaches what."""
    two = ("linear", "skip")
    for depth in (1, 2, 3):
        for several in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):
            open_labels = ["second", "third"][: depth - 1] + (["a"] if 0 in several else [])
            for inner in itertools.product(two, repeat=len(open_labels)):
                for t in (0.5, 2):
                    yield {"depth": depth, "several": several, "t": t, **dict(zip(open_labels, inner, strict=True))}


def key(architecture):
    return json.dumps(architecture, sort_keys=True)


def test_its_architectures_are_counted_and_enumerated_and_drawn(model):
    space = SearchSpace(model)
    expected = {key(architecture) for architecture in by_hand()}
    assert {key(architecture) for architecture in space.enumerate()} == expected
    assert space.size == len(expected) == 2 * (1 + 2 + 4) * (3 + 3 * 2)
    generator = torch.Generator().manual_seed(0)
    drawn = [space.sample(generator) for _ in range(2000)]
    assert {key(architecture) for architecture in drawn} <= expected
    assert sum(a["t"] == 2 for a in drawn) / 2000 == pytest.approx(0.75, abs=0.04)
    mutated = [space.mutate(drawn[i], generator) for i in range(500)]
    assert all(key(m) in expected and m != drawn[i] for i, m in enumerate(mutated))
    ranked = evolve(space, lambda many: [a["t"] + a["depth"] for a in many], budget=80, generator=generator)
    assert (ranked[0].architecture["depth"], ranked[0].architecture["t"]) == (3, 2)


def test_each_architecture_freezes_to_the_network_that_it_says(model):
    x = torch.randn(3, 4)
    depth, several, _ = model
    for architecture in by_hand():
        expected = x
        for position, part in enumerate(list(depth.blocks)[: architecture["depth"]]):
            label = [None, "second", "third"][position]
            inner = part if label is None else (part if position == 1 else part[0])[architecture[label]]
            expected = inner(expected)
        before, expected = expected, 0
        for i in architecture["several"]:
            part = several.parts[i]
            expected = expected + (part[architecture["a"]] if i == 0 else part)(before)
        network = freeze(model, architecture)
        assert torch.equal(network(x), expected * architecture["t"])
        assert not any(isinstance(module, Choice) for module in network.modules())
        assert {id(p) for p in network.parameters()}.isdisjoint({id(p) for p in model.parameters()})


def test_its_decisions_are_read_from_files_and_refused_by_name(model, tmp_path):
    space = SearchSpace(model)
    architecture = {"depth": 2, "second": "skip", "several": [1], "t": 0.5}
    save_architecture(architecture, tmp_path / "a.json", space)
    assert load_architecture(tmp_path / "a.json", space) == architecture
    assert space.canonical({**architecture, "t": torch.tensor(2.0), "several": "b", "second": 1})["t"] == 2
    for wrong, match in (
        ({"depth": 0}, "choice 'depth' has no depth 0; it has: 1, 2, 3"),
        ({"depth": True}, "has no depth True"),
        ({"depth": "2 deep"}, "has no depth '2 deep'"),
        ({"several": []}, "takes 1 to 2 parts, not 0"),
        ({"several": [0, 0]}, "twice"),
        ({"t": [0.5]}, r"has no option \[0.5\]"),
    ):
        with pytest.raises(ArchitectureError, match=match):
            space.canonical({**architecture, "a": "skip", "third": "skip", **wrong})
    assert "depth: 1 | 2 | 3" in space.describe()
    assert "in 2, 3:" in space.describe()
    assert "in (0,), (0, 1), (0, 2):" in space.describe()


def test_its_fingerprint_tells_it_from_others(model):
    space = SearchSpace(model)
    assert SearchSpace(model).fingerprint == space.fingerprint
    model[0].least = 2
    assert SearchSpace(model).fingerprint != space.fingerprint
    assert json.loads(json.dumps(space.to_json())) == space.to_json()


def test_distributions_records_and_plots_take_it_as_any_other(model, tmp_path):
    space = SearchSpace(model)
    logits = new_logits(space, seed=0, dtype=torch.float32, device=torch.device("cpu"))
    with torch.no_grad():
        logits["depth"][2] = logits["t"][0] = logits["several"][1] = 1
        logits["several"][0] = logits["several"][2] = -1
    best = most_probable(space, logits)
    assert best == {"depth": 3, "second": best["second"], "third": best["third"], "several": [1], "t": 0.5}
    shares = {label: p.tolist() for label, p in probabilities(space, logits).items()}
    assert sum(shares["depth"]) == pytest.approx(1)
    assert entropies(shares, space)["depth"] < 1.1
    history = [{"epoch": epoch, "probabilities": shares} for epoch in (1, 2)]
    plot_probabilities(space, history, tmp_path / "probabilities")
    plot_architecture(model, best, tmp_path / "architecture")
    assert {path.stem for path in tmp_path.glob("*.svg")} == {"probabilities", "architecture"}
    distribution = DecisionDistribution(space, seed=0, dtype=torch.float32, device=torch.device("cpu"))
    assert distribution.decisions["depth"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        ((("a", "b"), 2), {}, "choice 'x' cannot choose 2 of 2 options"),
        ((("a", "b"), (1, 3)), {"is_set": True}, "cannot choose 1 to 3 of 2 options"),
        (((),), {}, "needs options"),
        (((1, 2),), {}, "needs options, each with a text as its name"),
        ((("a", "b"),), {"values": (1,)}, "needs a name or value for each of its 2 options"),
        ((("a", "b"),), {"values": (1, 1.0)}, "no two the same"),
        ((("a", "a"),), {}, "no two the same"),
        ((("a", "b"),), {"prior": (1.0,)}, "a prior has one number for each of 2 options, not 1"),
        ((("a", "b"),), {"prior": (2.0, -1.0)}, "a prior has probabilities between 0 and 1"),
        ((("a", "b"),), {"prior": (0.5, 0.4)}, "a prior sums to 1, not to 0.9"),
        (
            (("a", "b"), 2),
            {"is_set": True, "prior": (1.0, 0.0)},
            "2 options are to be chosen, but the prior allows",
        ),
        ((("a", "b"), (0, 1)), {"is_set": True, "prior": (1.0, 1.0)}, "at most 1 options are to be chosen"),
    ],
)
def test_a_domain_that_cannot_be_is_refused(arguments, options, match):
    with pytest.raises(ChoiceError, match=match):
        Domain("x", *arguments, **options)


def test_a_kind_without_a_domain_and_one_of_too_many_decisions_say_so():
    class Nothing(Choice):
        pass

    with pytest.raises(NotImplementedError, match="Nothing does not define domain"):
        SearchSpace(nn.Sequential(Nothing(label="x")))

    class Many(Several):
        def domain(self):
            return Domain(str(self.label), tuple(map(str, range(20))), None, is_set=True)

    parts = [block(f"inner {i}") for i in range(20)]
    with pytest.raises(
        SpaceError, match="Many 'x' holds choices and has 1,048,576 decisions; at most 1,000 are counted"
    ):
        SearchSpace(nn.Sequential(Many(*parts, label="x")))


def test_files_and_fingerprints_of_our_kinds_are_what_they_were():
    """Written down when the kinds of choice had a class each."""
    inner = LayerChoice({"a": nn.Linear(2, 2), "b": nn.Identity()}, label="inner", prior=[0.3, 0.7])
    model = nn.Sequential(
        LayerChoice([inner, nn.Tanh()], label="outer"),
        InputChoice(3, (1, 2), label="some"),
        InputChoice(choose_from=["x", "y"], n_chosen=None, label="any"),
    )
    space = SearchSpace(model)
    assert space.to_json()["choices"] == {
        "outer": {"kind": "layer", "candidates": ["0", "1"]},
        "inner": {"kind": "layer", "candidates": ["a", "b"]},
        "some": {"kind": "input", "n_candidates": 3, "n_chosen": [1, 2], "choose_from": None},
        "any": {"kind": "input", "n_candidates": 2, "n_chosen": None, "choose_from": ["x", "y"]},
    }
    assert space.fingerprint == "cd301ba7056ee37c4ea009ee535a393086ead76cd3c51a02b7649d7e320df3c1"
