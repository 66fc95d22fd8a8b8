"""Files of networks give what the networks give, say what they are, and are refused where they are not whole."""

import io
import json
import pickle
import shutil
import zipfile

import onnx
import pytest
import torch
from torch import nn

from supernet import LayerChoice, ValueChoice, accuracy, evaluate, export_network, freeze, load_network
from supernet.cost import Limits
from supernet.deploy import read_card
from supernet.errors import CostError, ExportError, FileFormatError, UnresolvedChoiceError
from supernet.nn import BatchNorm2d, Conv2d, Linear

SUFFIX = {"onnx": "onnx", "torch.export": "pt2", "safetensors": "safetensors"}


def searchable():
    width = ValueChoice([4, 8], label="width")
    return nn.Sequential(
        Conv2d(1, width, 3),
        LayerChoice({"norm": BatchNorm2d(width), "none": nn.Identity()}, label="norm"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Linear(width, 3),
    )


ARCHITECTURE = {"width": 8, "norm": "norm"}


def made():
    torch.manual_seed(0)
    network = freeze(searchable(), ARCHITECTURE)
    network[1].running_mean.uniform_()
    network[1].running_var.uniform_(1, 2)
    return network


@pytest.fixture
def network():
    return made()


def images(count=2):
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Files of one network, by format."""
    network, paths = made(), {}
    for format, suffix in SUFFIX.items():
        paths[format] = tmp_path_factory.mktemp("files") / "made" / f"net.{suffix}"
        export_network(network, images(), paths[format], format, architecture=ARCHITECTURE)
        assert network.training and network[1].training
    return paths


@pytest.mark.parametrize("format", SUFFIX)
def test_a_file_gives_for_any_batch_what_the_network_gives_in_eval_form(written, network, format):
    path, card = written[format], read_card(written[format])
    loaded = load_network(path, searchable() if format == "safetensors" else None)
    network.eval()
    for count in (1, 2, 7):
        assert torch.allclose(loaded(images(count)), network(images(count)), atol=1e-6)
    assert card["check"]["batch_sizes"] == [2, 3, 1]
    assert card["check"]["difference"] <= card["check"]["tolerance"] == (1e-4)
    assert card["inputs"] == {"input": [{"dtype": "float32", "shape": ["batch", 1, 6, 6]}]}
    assert card["outputs"] == [{"dtype": "float32", "shape": ["batch", 3]}]
    assert [entry.name for entry in sorted(path.parent.iterdir())] == [path.name, f"{path.name}.json"]
    assert b"/site-packages/" not in path.read_bytes()  # nothing of this machine


def test_an_example_of_one_sample_stands_for_batches_too(network, tmp_path):
    export_network(network, images(1), tmp_path / "net.pt2", "torch.export")
    loaded = load_network(tmp_path / "net.pt2")
    assert torch.allclose(loaded(images(5)), network.eval()(images(5)), atol=1e-6)


def test_a_loaded_file_is_measured_as_the_network_is(written, network):
    data = torch.utils.data.TensorDataset(images(20), torch.arange(20) % 3)
    expected = evaluate(network, nn.CrossEntropyLoss(), accuracy, data, batch_size=8)
    for format in ("onnx", "torch.export"):
        measured = evaluate(load_network(written[format]), nn.CrossEntropyLoss(), accuracy, data, batch_size=8)
        assert measured == pytest.approx(expected, abs=1e-5)


def test_an_onnx_file_calls_the_dimension_batch(written):
    model = onnx.load(written["onnx"])
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.output]
    assert shapes == [["batch", 3]]


def test_a_card_says_what_the_network_is_and_costs_and_which_limits_it_keeps(network, tmp_path):
    path = tmp_path / "net.safetensors"
    limits = Limits(searchable(), {"parameters": 200, "macs": (None, "100%")}, example=images(1))
    metrics = {"accuracy": 0.75, "loss": torch.tensor(0.5)}
    export_network(
        network,
        images(),
        path,
        "safetensors",
        architecture=ARCHITECTURE,
        limits=limits,
        costs={"latency_ms": 2.5},
        metrics=metrics,
    )
    card = read_card(path)
    assert card["architecture"] == ARCHITECTURE
    # 9 * 8 + 8 of the convolution, 2 * 8 of the norm, 8 * 3 + 3; with means, variances and one count of 8 bytes.
    assert card["costs"] == {
        "parameters": 123,
        "weight_memory": 4 * (123 + 16) + 8,
        "macs": 16 * 9 * 8 + 24,
        "latency_ms": 2.5,
    }
    assert card["limits"] == {"parameters": [None, 200], "macs": [None, 16 * 9 * 8 + 24]}
    assert card["metrics"] == {"accuracy": 0.75, "loss": 0.5}
    assert card["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # a build of CUDA may not say so
    assert json.loads((tmp_path / "net.safetensors.json").read_text())["format"] == "supernet/network"


def test_a_network_that_breaks_its_limits_is_not_written(network, tmp_path):
    path = tmp_path / "net.safetensors"
    limits = Limits(searchable(), {"parameters": 122})
    with pytest.raises(CostError, match="costs 123 parameters, not at most "):
        export_network(network, images(), path, "safetensors", architecture=ARCHITECTURE, limits=limits)
    with pytest.raises(CostError, match="has 123 parameters, but the limits count 63 under the architecture"):
        export_network(network, images(), path, "safetensors", architecture={"width": 4, "norm": "norm"}, limits=limits)
    with pytest.raises(CostError, match=r"limit of 'latency_ms', but its cost is not known"):
        export_network(network, images(), path, "safetensors", limits={"latency_ms": 5.0})
    with pytest.raises(CostError, match="costs 123 parameters, not at least 124, the limit"):
        export_network(network, images(), path, "safetensors", limits={"parameters": (124, None)})
    with pytest.raises(ExportError, match="metrics of a card are finite numbers by name, and 'loss' is nan"):
        export_network(network, images(), path, "safetensors", metrics={"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


# --- bad input ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_refused_by_name_and_leaves_nothing(network, tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(
        ExportError, match=r"no format 'tflite'; known are 'onnx', 'torch.export', 'safetensors', 'transformers'"
    ):
        export_network(network, images(), path, "tflite")
    with pytest.raises(ExportError, match=r"of format 'onnx' ends in .onnx, and 'net.bin' does not"):
        export_network(network, images(), tmp_path / "net.bin")
    with pytest.raises(UnresolvedChoiceError, match=r"still has choices \(width, norm\)"):
        export_network(searchable(), images(), path)
    for example in (None, {"x": 1}, torch.tensor(1.0), torch.zeros(0, 1, 6, 6)):
        with pytest.raises(ExportError, match="the example is what the network is called with"):
            export_network(network, example, path)
    with pytest.raises(ExportError, match=r"does not run on the example of 2, .*RuntimeError"):
        export_network(network, torch.zeros(2, 2, 6, 6), path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"file/net.onnx cannot be written: .*"):
        export_network(network, images(), tmp_path / "file" / "net.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_an_operator_that_onnx_lacks_is_named_with_its_module(tmp_path):
    network = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Bessel()))
    with pytest.raises(ExportError, match=r"operator 'prims.bessel_j0' of module '1.0' has no form in ONNX"):
        export_network(network, torch.ones(2, 3), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_onnxruntime_cannot_run_is_told_with_the_mend(tmp_path):
    network = nn.Sequential(nn.Linear(3, 3), nn.GELU()).double()
    with pytest.raises(ExportError, match=r"lacks operators of torch.float64: export network.float\(\)"):
        export_network(network, torch.ones(2, 3).double(), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []
    export_network(network.float(), torch.ones(2, 3), tmp_path / "net.onnx")


class OfTwo(nn.Module):
    def forward(self, x):
        return x.view(2, -1) * 2


class ByValue(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("kind", [OfTwo, ByValue])
def test_a_network_that_is_no_program_for_all_batches_is_refused(kind, tmp_path):
    with pytest.raises(ExportError, match=f"{kind.__name__} .*"):
        export_network(kind(), torch.ones(2, 3), tmp_path / "net.pt2", "torch.export")
    assert list(tmp_path.iterdir()) == []


class WithHiddenWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x):
        return x * self.scale


def test_weights_that_a_file_does_not_hold_are_noticed(tmp_path):
    with pytest.raises(ExportError, match="differs from the network's by 1 of its norm"):
        export_network(WithHiddenWeights(), torch.ones(2, 3), tmp_path / "net.safetensors", "safetensors")


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", SUFFIX)
def test_a_file_that_was_changed_is_refused(written, format, tmp_path):
    path = copied(written[format], tmp_path)
    model = searchable() if format == "safetensors" else None
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(FileFormatError, match=f"{path.name} has the digest .* its card says"):
        load_network(path, model)
    path.write_bytes(whole)
    card = tmp_path / f"{path.name}.json"
    card.write_text(card.read_text().replace('"width": 8', '"width": 4'))
    with pytest.raises(FileFormatError, match="does not have the digest that it was written with"):
        load_network(path, model)
    card.unlink()
    with pytest.raises(FileNotFoundError):
        load_network(path, model)


def copied(path, directory):
    for file in path.parent.iterdir():
        shutil.copy(file, directory)
    return directory / path.name


def test_weights_alone_need_their_model_and_no_other(network, tmp_path):
    path = tmp_path / "net.safetensors"
    export_network(network, images(), path, "safetensors")
    with pytest.raises(ExportError, match="holds weights alone; give the model"):
        load_network(path)
    with pytest.raises(FileFormatError, match="has no architecture by which to freeze Sequential; give the network"):
        load_network(path, searchable())
    plain = freeze(searchable(), ARCHITECTURE)
    assert load_network(path, plain) is plain
    assert torch.equal(plain(images()), network.eval()(images()))
    with pytest.raises(FileFormatError, match="does not hold the weights of this network"):
        load_network(path, nn.Linear(3, 3))
    export_network(network, images(), path, "safetensors", architecture=ARCHITECTURE)
    with pytest.raises(FileFormatError, match="is of another model than this"):
        load_network(path, nn.Sequential(LayerChoice([nn.ReLU()], label="other")))


def rewritten(path, change):
    """Let `change(name, content)` give the content of each entry of an archive, and the card say so."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(name, change(name, content))


class Evil:
    def __reduce__(self):
        return print, ("evil",)


def with_pickled_samples(name, content):
    file = io.BytesIO()
    torch.save(Evil(), file)
    return file.getvalue() if name.endswith("sample_inputs/model.pt") else content


def with_pickled_weight(name, content):
    if name.endswith("weights_config.json"):
        return content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    return pickle.dumps(Evil()) if name.endswith("weight_0") else content


def with_evil_size(name, content):
    return (
        content.replace(b"Symbol('s", b"__import__('os').getcwd() and Symbol('s")
        if name.endswith("model.json")
        else content
    )


def with_evil_text(name, content):
    return content.replace(b"Symbol('s", b"Max('print()') + Symbol('s") if name.endswith("model.json") else content


def with_evil_call(name, content):
    return (
        content.replace(b"torch.ops.aten.relu.default", b"torch.hub.load") if name.endswith("model.json") else content
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_pickled_samples, "sample_inputs/model.pt is a pickle"),
        (with_pickled_weight, "names a pickle"),
        (with_evil_size, "has a size .*__import__"),
        (with_evil_text, r"has a size .*Max\('print\(\)'\)"),
        (with_evil_call, "calls 'torch.hub.load'"),
    ],
)
def test_what_could_run_code_in_a_program_is_not_read_whatever_the_card_says(
    written, change, message, tmp_path, monkeypatch, capsys
):
    path = copied(written["torch.export"], tmp_path)
    before = path.read_bytes()
    rewritten(path, change)
    assert path.read_bytes() != before
    monkeypatch.setattr("supernet.deploy.export.read_card", lambda path: {"network_format": "torch.export"})
    with pytest.raises(FileFormatError, match=message):
        load_network(path)
    assert "evil" not in capsys.readouterr().out
