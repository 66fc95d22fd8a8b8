"""Tables of costs: fitted to measured networks, exact where costs are sums; and in files, of one space alone."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from supernet import InputChoice, LayerChoice, Repeat, SearchSpace, ValueChoice
from supernet.cost import TableCost, fit_table
from supernet.errors import ArchitectureError, CostError, FileFormatError

DATA = Path(__file__).parents[3] / "shared" / "data"
NAS_LATENCY = DATA / "nas_latency.npz"
OPERATIONS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")


def fbnet():
    """Only which candidates there are matters."""
    candidates = {name: nn.Identity() for name in OPERATIONS}
    return SearchSpace(nn.Sequential(*(LayerChoice(dict(candidates), label=f"layer_{i}") for i in range(22))))


@pytest.mark.skipif(not NAS_LATENCY.exists(), reason="shared/data/nas_latency.npz is not here")
@pytest.mark.parametrize("device", ["pixel3", "raspi4", "fpga", "eyeriss"])
def test_a_table_that_is_fitted_to_sums_is_exact_on_networks_that_were_left_out(device):
    np = pytest.importorskip("numpy")
    data = np.load(NAS_LATENCY)
    assert tuple(data["fbnet_operations"]) == OPERATIONS
    latency = data["fbnet_latency"][list(data["fbnet_device"]).index(device)]
    architectures = [{f"layer_{i}": OPERATIONS[k] for i, k in enumerate(row)} for row in data["fbnet_operation"][:1500]]
    cost = fit_table(fbnet(), architectures[:1000], latency[:1000])
    for architecture, measured in zip(architectures[1000:], latency[1000:1500], strict=True):
        assert cost.of(architecture) == pytest.approx(measured, rel=1e-6)


def nested():
    torch.manual_seed(0)
    inner = LayerChoice({"a": nn.ReLU(), "b": nn.Tanh()}, label="inner")
    layers = nn.Sequential(LayerChoice({"deep": inner, "flat": nn.Identity()}, label="outer"))
    layers.append(Repeat([nn.Identity() for _ in range(3)], ValueChoice([1, 2, 3], label="depth")))
    layers.append(InputChoice(3, label="join"))
    return SearchSpace(layers)


def of_nested(architecture):
    return 3 + {"a": 1.5, "b": 4, None: 0.25}[architecture.get("inner")] + 2 * architecture["depth"]


def test_a_fitted_table_counts_options_where_they_are_reached():
    space, generator = nested(), torch.Generator().manual_seed(0)
    measured = [space.sample(generator) for _ in range(20)]
    cost = fit_table(space, measured, [of_nested(one) for one in measured])
    for architecture in space.enumerate():
        assert cost.of(architecture) == pytest.approx(of_nested(architecture), rel=1e-9)


def test_costs_that_do_not_follow_from_what_was_measured_are_refused():
    space = nested()
    measured = [one for one in space.enumerate() if one["depth"] != 3]
    with pytest.raises(CostError, match=r"what '3' of choice 'depth' costs does not follow from the 4 independent"):
        fit_table(space, measured, [1.0] * len(measured))
    for numbers in ([1.0, 2.0], [float("nan")] * len(measured)):
        with pytest.raises(CostError, match="one finite number for each architecture"):
            fit_table(space, measured, numbers)
    with pytest.raises(ArchitectureError):
        fit_table(space, [{"outer": "flat"}], [1.0])


def test_a_table_from_a_file_says_what_it_said_and_is_of_one_space_alone(tmp_path):
    space = nested()
    table = {"depth": {1: 1.0, 2: 2.5, 3: 1e-9}, "outer": {"deep": 1 / 3, "flat": 0}}
    cost = TableCost(space, table, constant=0.1, name="latency_ms", unit="ms")
    cost.save(tmp_path / "board.json")
    loaded = TableCost.load(tmp_path / "board.json", space)
    assert (loaded.name, loaded.unit, loaded.space) == ("latency_ms", "ms", space)
    assert all(loaded.of(one) == cost.of(one) for one in space.enumerate())
    with pytest.raises(FileFormatError, match="holds costs of another space"):
        TableCost.load(tmp_path / "board.json", fbnet())


def test_a_table_file_may_be_written_by_hand_and_what_is_wrong_in_it_is_named(tmp_path):
    space = SearchSpace(nn.Sequential(LayerChoice({"conv": nn.ReLU(), "skip": nn.Identity()}, label="op")))
    content = {
        "format": "supernet/cost table",
        "version": 1,
        "space": space.fingerprint,
        "name": "energy",
        "unit": "mJ",
        "constant": 1,
        "table": {"op": {"conv": 2, "skip": 0.5}},
    }
    path = tmp_path / "energy.json"
    path.write_text(json.dumps(content))
    assert TableCost.load(path, space).of({"op": "skip"}) == 1.5
    for change, message in (
        ({"table": {"op": {"conv": 2}}}, "give a number for each of"),
        ({"table": {"op": {"conv": 2, "skip": float("nan")}}}, "is a finite number"),
        ({"table": [1]}, "the table is label -> costs"),
        ({"constant": None}, "no table of costs"),
        ({"format": "supernet/architecture"}, "is no file of a table of costs"),
        ({"version": 2}, "this library reads 1"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(FileFormatError, match=message):
            TableCost.load(path, space)
    with pytest.raises(FileNotFoundError):
        TableCost.load(tmp_path / "none.json", space)
