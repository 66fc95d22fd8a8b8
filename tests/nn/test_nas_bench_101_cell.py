"""The cell of NAS-Bench-101: its graphs are the paper's, its networks the benchmark's, and a path is what is frozen."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from supernet import (
    DartsTrainer,
    EnasTrainer,
    NasBench101Cell,
    ProxylessTrainer,
    RandomTrainer,
    SearchSpace,
    SinglePathTrainer,
    Supernet,
    fixed_architecture,
    freeze,
)
from supernet.errors import ArchitectureError, ChoiceError
from supernet.nn import Choice, Mutable
from supernet.testing.comparing import flat


def convolution(c_in, c_out, kernel):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


OPERATIONS = {
    "conv3x3-bn-relu": lambda c: convolution(c, c, 3),
    "conv1x1-bn-relu": lambda c: convolution(c, c, 1),
    "maxpool3x3": lambda c: nn.MaxPool2d(3, 1, 1),
}


def projection(c_in, c_out):
    return convolution(c_in, c_out, 1)


def network_of(channels=128, stacks=3, modules=3, **options):
    """Return the benchmark's network: stacks of cells, each with twice the channels and half the size."""
    layers, c_in = [convolution(3, channels, 3)], channels
    for stack in range(stacks):
        c_out = channels * 2**stack
        layers += [nn.MaxPool2d(2)] * (stack > 0)
        for _ in range(modules):
            layers.append(NasBench101Cell(OPERATIONS, c_in, c_out, projection, label="cell", **options))
            c_in = c_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 10))


# --- graphs --------------------------------------------------------------------------------------------------


def graphs(num_nodes, most_edges=9):
    """Return the pairs of nodes, and as bits of a number those that each graph joins: no node leads nowhere."""
    pairs = list(itertools.combinations(range(num_nodes), 2))
    codes = np.arange(1 << len(pairs))
    edges = [(codes >> k) & 1 for k in range(len(pairs))]
    right = sum(edges) <= most_edges
    for node in range(num_nodes):
        if node:
            right &= sum(e for e, (_, j) in zip(edges, pairs, strict=True) if j == node) > 0
        if node < num_nodes - 1:
            right &= sum(e for e, (i, _) in zip(edges, pairs, strict=True) if i == node) > 0
    return pairs, codes[right]


def different_graphs(num_nodes, num_operations=3):
    """Return how many graphs with operations there are, of those that are the same in another order one."""
    pairs, codes = graphs(num_nodes)
    index = {pair: k for k, pair in enumerate(pairs)}
    between = range(1, num_nodes - 1)
    operations = np.array(list(itertools.product(range(num_operations), repeat=len(between))), dtype=np.int64)
    least = np.full((len(codes), len(operations)), 1 << 60)
    for order in itertools.permutations(between):
        to = [0, *order, num_nodes - 1]
        moved, possible = np.zeros_like(codes), np.ones(len(codes), dtype=bool)
        for (i, j), k in index.items():
            edge = (codes >> k) & 1
            if to[i] < to[j]:
                moved |= edge << index[to[i], to[j]]
            else:
                possible &= edge == 0
        of_operations = sum(operations[:, n - 1] * num_operations ** (to[n] - 1) for n in between) + np.zeros(1, int)
        both = np.where(possible, moved, 1 << 40)[:, None] * len(operations) + of_operations
        least = np.minimum(least, both)
    return len(np.unique(least))


def test_architectures_are_exactly_the_graphs_in_which_no_node_leads_nowhere():
    for num_nodes, most_edges in [(4, 9), (5, 9), (5, 5)]:
        two = dict(itertools.islice(OPERATIONS.items(), 2))
        cell = NasBench101Cell(two, 2, 6, projection, num_nodes, most_edges, label="cell")
        expected = set()
        for count in range(2, num_nodes + 1):
            pairs, codes = graphs(count, most_edges)
            for code, ops in itertools.product(codes, itertools.product(two, repeat=count - 2)):
                inputs = [
                    [i for k, (i, j) in enumerate(pairs) if j == node and code >> k & 1] for node in range(1, count)
                ]
                expected.add(repr((ops, inputs)))
        space, found = SearchSpace(cell), []
        for a in space.enumerate():
            count = a["cell/num_nodes"]
            ops, inputs = (
                (a[f"cell/op_{n}"] for n in range(1, count - 1)),
                [a[f"cell/input_{n}"] for n in range(1, count)],
            )
            found.append(repr((tuple(ops), inputs)))
        assert set(found) == expected and len(found) == len(expected) == space.size


def test_up_to_six_nodes_the_graphs_are_64542_of_128509_architectures():
    assert [different_graphs(n) for n in range(2, 7)] == [1, 6, 84, 2441, 62010]
    assert sum(len(graphs(n)[1]) * 3 ** (n - 2) for n in range(2, 7)) == 128509


@pytest.mark.slow
def test_the_graphs_are_the_423624_of_the_paper():
    assert sum(different_graphs(n) for n in range(2, 8)) == 423624
    assert sum(len(graphs(n)[1]) * 3 ** (n - 2) for n in range(2, 8)) == 1293208


# --- networks ------------------------------------------------------------------------------------------------

INCEPTION = (
    [[0, 1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0, 0],
     [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]],
    ["input", "conv1x1-bn-relu", "conv3x3-bn-relu", "conv3x3-bn-relu", "conv3x3-bn-relu", "maxpool3x3", "output"],
)  # fmt: skip


def count_of(network):
    return sum(p.numel() for p in network.parameters())


def fixed_network(matrix, operations, **options):
    cell = NasBench101Cell(OPERATIONS, 1, 5, projection, label="cell")
    with torch.device("meta"), fixed_architecture(cell.architecture(matrix, operations)):
        return network_of(**options)


def test_the_cell_that_the_benchmark_shows_has_its_2694282_parameters():
    """https://github.com/google-research/nasbench: trainable_parameters of the Inception-like cell."""
    assert count_of(fixed_network(*INCEPTION)) == 2694282


def test_widths_that_do_not_divide_are_the_papers():
    """Three nodes share 128 features as 43, 43 and 42, and what leads to all of them has 43."""
    cell = NasBench101Cell(OPERATIONS, 128, 128, projection, label="cell")
    matrix = np.zeros((6, 6), dtype=int)
    for i, j in [(0, 1), (1, 2), (1, 3), (1, 4), (2, 5), (3, 5), (4, 5), (0, 5)]:
        matrix[i, j] = 1
    network = freeze(cell, cell.architecture(matrix, [None, *["conv3x3-bn-relu"] * 4, None]))
    widths = [network.ops.get_submodule(str(node))[0].out_channels for node in range(1, 5)]
    assert widths == [43, 43, 43, 42]
    assert network(torch.randn(2, 128, 4, 4)).shape == (2, 128, 4, 4)


def test_what_does_not_lead_to_the_output_is_left_out_of_a_benchmarks_cell():
    cell = NasBench101Cell(OPERATIONS, 2, 6, projection, label="cell")
    matrix = [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    decisions = cell.architecture(matrix, ["in", "conv1x1-bn-relu", "maxpool3x3", "conv3x3-bn-relu", "out"])
    assert decisions == {
        "cell/num_nodes": 3, "cell/op_1": "maxpool3x3", "cell/input_1": [0], "cell/input_2": [1],
    }  # fmt: skip
    with pytest.raises(ChoiceError, match="does not lead to its output"):
        cell.architecture([[0, 1, 0], [0, 0, 0], [0, 0, 0]], ["in", "maxpool3x3", "out"])


def by_hand(cell, architecture, x):
    """Return what a cell gives, from the rules of the paper's section 2.2 and the modules of the cell."""
    count = architecture["cell/num_nodes"]
    inputs = {node: architecture[f"cell/input_{node}"] for node in range(1, count)}
    widths, leading = {count - 1: cell.out_features}, [n for n in inputs[count - 1] if n]
    for k, node in enumerate(leading):
        widths[node] = cell.out_features // len(leading) + (1 if k < cell.out_features % len(leading) else 0)
    for node in range(count - 2, 0, -1):
        if node not in widths:
            widths[node] = max(widths[n] for n in range(node + 1, count - 1) if node in inputs[n])
    outputs = {}
    for node in range(1, count - 1):
        value = sum(outputs[n][:, : widths[node]] for n in inputs[node] if n)
        if 0 in inputs[node]:
            value = value + cell.projections[f"{node}_{widths[node]}"](x)
        position = list(OPERATIONS).index(architecture[f"cell/op_{node}"])
        outputs[node] = cell.ops[f"{node}_{position}_{widths[node]}"](value)
    output = torch.cat([outputs[n] for n in leading], 1) if leading else 0
    if 0 in inputs[count - 1]:
        output = output + cell.projections[f"{count - 1}_{cell.out_features}"](x)
    return output


@pytest.mark.parametrize("training", [True, False])
def test_a_path_and_the_frozen_network_compute_what_the_paper_says(training):
    torch.manual_seed(0)
    model = nn.Sequential(NasBench101Cell(OPERATIONS, 3, 7, projection, label="cell")).double().train(training)
    space, generator = SearchSpace(model), torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=generator)
    architectures = [space.sample(generator) for _ in range(12)]
    expected = [by_hand(model[0], a, x) for a in architectures]
    frozen = [freeze(model, a) for a in architectures]
    supernet = Supernet(model)
    assert {a["cell/num_nodes"] for a in architectures} >= {4, 5, 6, 7}
    for architecture, network, output in zip(architectures, frozen, expected, strict=True):
        assert not any(isinstance(module, Choice | Mutable) for module in network.modules())
        torch.testing.assert_close(network(x), output, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(supernet(x, architecture), output, rtol=1e-10, atol=1e-10)
        assert flat(freeze(supernet, architecture).state_dict()).keys() == flat(network.state_dict()).keys()


def test_constructors_give_the_graph_that_is_decided():
    torch.manual_seed(0)
    model = network_of(channels=8, stacks=2, modules=1)
    architecture = SearchSpace(model).sample(torch.Generator().manual_seed(5))
    frozen = freeze(model, architecture)
    with fixed_architecture(architecture):
        network = network_of(channels=8, stacks=2, modules=1)
    network.load_state_dict(frozen.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(network.eval()(x), frozen.eval()(x))
    with pytest.raises(ChoiceError, match="but leaves cell/input_1 open"), fixed_architecture({"cell/num_nodes": 2}):
        network_of(channels=8, stacks=1, modules=1)


# --- searches ------------------------------------------------------------------------------------------------


def trainer_of(kind, **options):
    torch.manual_seed(0)
    model = network_of(channels=6, stacks=1, modules=2, max_num_nodes=6)
    X = torch.randn(24, 3, 4, 4)
    data = TensorDataset(X, torch.arange(24) % 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    return model, kind(
        model,
        nn.CrossEntropyLoss(),
        None,
        optimizer=optimizer,
        num_epochs=1,
        dataset=data,
        batch_size=6,
        progress=False,
        **options,
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SinglePathTrainer, {"num_evaluations": 4, "population": 3, "num_parents": 2}),
        (RandomTrainer, {"num_samples": 3}),
        (EnasTrainer, {"num_samples": 2, "reward_function": lambda output, target: -1.0}),
    ],
)
def test_trainers_of_paths_search_it_and_export_a_graph_of_the_space(kind, options):
    model, trainer = trainer_of(kind, **options)
    trainer.fit()
    architecture = trainer.export()
    trainer.space.validate(architecture)
    assert freeze(model, architecture)(torch.randn(2, 3, 4, 4)).shape == (2, 10)


@pytest.mark.parametrize("kind", [DartsTrainer, ProxylessTrainer])
def test_trainers_that_mix_are_refused_when_they_are_made(kind):
    with pytest.raises(ChoiceError, match=r"'cell'.* no mixture of graphs is known; use a trainer that samples paths"):
        trainer_of(kind)


def test_what_is_no_cell_is_refused_by_name():
    model = network_of(channels=6, stacks=1, modules=1, max_num_nodes=4)
    hanging = {
        "num_nodes": 4,
        "op_1": "maxpool3x3",
        "op_2": "maxpool3x3",
        "input_1": [0],
        "input_2": [0],
        "input_3": [2],
    }
    with pytest.raises(ArchitectureError, match="each node of 'cell' leads to its output, by at most 9 edges"):
        freeze(model, {f"cell/{name}": decision for name, decision in hanging.items()})
    for wrong in ({"max_num_nodes": 1}, {"max_num_edges": 0}):
        with pytest.raises(ChoiceError, match=f"{next(iter(wrong))} is a number from"):
            network_of(channels=6, stacks=1, modules=1, **wrong)
    with pytest.raises(ChoiceError, match="5 nodes cannot share 4 out_features"):
        network_of(channels=4, stacks=1, modules=1)
