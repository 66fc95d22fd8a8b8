"""Latencies are sums of what layers were measured to take, each once; trust compares them with whole networks."""

import json
import math

import pytest
import torch
from torch import nn

import supernet.nn as elastic
from supernet import LayerChoice, SearchSpace, ValueChoice
from supernet.cost import FileMeasure, Latency, Limits, Trust
from supernet.errors import CostError, FileFormatError


def mlp():
    torch.manual_seed(0)
    widths = [ValueChoice([8, 16], label=label) for label in "ab"]
    return nn.Sequential(
        elastic.Linear(4, widths[0]),
        LayerChoice({"relu": nn.ReLU(), "skip": nn.Identity()}, label="act"),
        elastic.Linear(*widths),
        elastic.Linear(widths[1], 2),
    )


class Board:
    """Says of a linear layer the number of its weights, of all else 1; counts how often it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, layer, args, kwargs):
        self.asked.append((type(layer), tuple(args[0].shape)))
        assert layer(*args, **kwargs).isfinite().all()
        return layer.weight.numel() if isinstance(layer, nn.Linear) else 1


def test_a_latency_is_the_sum_of_layers_each_measured_once():
    board = Board()
    cost = Latency(mlp(), torch.ones(3, 4), measure=board)
    for architecture in cost.space.enumerate():
        a, b = architecture["a"], architecture["b"]
        assert cost.of(architecture) == 4 * a + 1 + a * b + b * 2
    assert len(board.asked) == 2 + 4 + 2 + 4  # linear layers of 2, 4 and 2 forms; ReLU and Identity of two widths each
    assert all(shape[0] == 3 for _, shape in board.asked)


def test_what_has_been_measured_is_kept_for_the_same_device_threads_dtype_and_batch_alone(tmp_path):
    path = tmp_path / "latencies.json"
    architecture = {"a": 8, "act": "relu", "b": 16}

    def asked(example=None, model=None, **options):
        board = Board()
        example = torch.ones(3, 4) if example is None else example
        cost = Latency(model or mlp(), example, measure=board, cache=path, **options)
        assert cost.of(architecture) == 4 * 8 + 1 + 8 * 16 + 16 * 2
        return len(board.asked)

    assert asked() == 4
    assert asked() == 0
    assert asked(name_of_device="another board") == 4
    assert asked(torch.ones(1, 4)) == 4
    assert asked(torch.ones(3, 4, dtype=torch.float64), mlp().double()) == 4
    assert asked() == 0
    kept = json.loads(path.read_text())["measured"].values()
    assert {one["device"] for one in kept} == {"measured elsewhere", "another board"}
    assert {"(3, 4) torch.float32", "(1, 4) torch.float32", "(3, 4) torch.float64"} < {one["inputs"][0] for one in kept}
    threads = [Latency(mlp(), torch.ones(3, 4), cache=path, num_threads=n) for n in (1, 2)]
    assert [one.num_threads for one in threads] == [1, 2]
    path.write_text(json.dumps({"format": "supernet/latencies", "version": 1, "measured": {"key": {"ms": "fast"}}}))
    with pytest.raises(FileFormatError, match="holds no measured latencies"):
        Latency(mlp(), torch.ones(3, 4), cache=path)


def test_this_device_is_measured_where_nothing_else_is_said():
    cost = Latency(mlp(), torch.ones(3, 4), num_threads=1)
    milliseconds = [cost.of(architecture) for architecture in cost.space.enumerate()]
    assert all(0 < one < math.inf for one in milliseconds)
    assert cost.of({"a": 8, "act": "relu", "b": 8}) == milliseconds[0]
    trust = cost.trust(num_networks=2)
    assert all(0 < one < math.inf for one in trust.measured)
    assert trust.summed == tuple(cost.of(architecture) for architecture in trust.architectures)


def test_layers_of_whole_numbers_attention_and_half_precision_are_measured():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.layer = LayerChoice({"linear": nn.Linear(8, 8), "skip": nn.Identity()}, label="layer")

        def forward(self, tokens):
            x = self.embedding(tokens)
            return self.layer(self.attention(x, x, x, need_weights=False)[0])

    seen = []

    def measure(layer, args, kwargs):
        layer(*args, **kwargs)
        seen.append((type(layer), next(layer.parameters()).dtype))
        return 1.5

    tokens = torch.ones(2, 5, dtype=torch.long)
    assert Latency(Model().bfloat16(), tokens, measure=measure).of({"layer": "linear"}) == 4.5
    assert set(seen) == {(kind, torch.bfloat16) for kind in (nn.Embedding, nn.MultiheadAttention, nn.Linear)}


def test_trust_says_errors_and_rank_correlation_against_whole_networks():
    def of_network(network, example):
        return 2 * sum(p.numel() for p in network.parameters() if p.dim() == 2) + 2

    trust = Latency(mlp(), torch.ones(3, 4), measure=Board()).trust(num_networks=20, measure=of_network)
    assert trust.error == pytest.approx(0.5)
    assert trust.bias == pytest.approx(0.5)
    assert trust.tau == pytest.approx(1)
    # Of six pairs four stand as they are, one the other way round, and one is tied in the sums: (4 - 1) / sqrt(5 * 6).
    tied = Trust(({},) * 4, (1.0, 1.0, 3.0, 2.0), (1.0, 2.0, 3.0, 4.0))
    assert tied.tau == pytest.approx(3 / 30**0.5)
    assert tied.error == pytest.approx((0 + 0.5 + 0 + 0.5) / 4)
    assert "4 random networks of 1 to 4 ms" in str(tied)
    with pytest.raises(CostError, match="layers are measured elsewhere, so networks must be too"):
        Latency(mlp(), torch.ones(3, 4), measure=Board()).trust()


def test_a_function_of_a_file_measures_layers(tmp_path):
    sizes = []

    def on_board(path):
        loaded = torch.export.load(path)
        sizes.append((path.suffix, sum(p.numel() for p in loaded.state_dict.values())))
        return 2.0

    model = nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="op"))
    assert Latency(model, torch.ones(1, 4), measure=FileMeasure(on_board)).of({"op": "linear"}) == 2
    assert sizes == [(".pt2", 20)]


def test_what_cannot_be_measured_is_named():
    model = nn.Sequential(LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="op"))
    for measure, message in (
        (lambda layer, args, kwargs: float("nan"), "what measure returns is a number from 0 on, not nan"),
        (lambda layer, args, kwargs: 1 / 0, "division by zero"),
    ):
        cost = Latency(model, torch.ones(1, 4), measure=measure, name_of_device="my board")
        with pytest.raises(CostError, match=rf"Linear\(in_.* for inputs \(1, 4\) could .* on my board: {message}"):
            cost.of({"op": "linear"})
    with pytest.raises(CostError, match="'latency_ms' is of a network that runs; give example="):
        Limits(model, {"latency_ms": 5.0})
    with pytest.raises(CostError, match="'latency_ms' is of a network that runs; give example="):
        Latency(model)


def test_it_is_limited_by_its_name():
    model = mlp()
    slow = Latency(model, torch.ones(1, 4), measure=Board())
    limits = Limits(model, {"latency_ms": 200.0}, costs={"latency_ms": slow})
    assert limits({"a": 8, "act": "relu", "b": 8})
    assert not limits({"a": 16, "act": "relu", "b": 16})
    measured = Limits(model, {"latency_ms": 1e6}, example=torch.ones(1, 4))
    assert isinstance(measured.costs["latency_ms"], Latency)
    assert SearchSpace(model) == measured.space
