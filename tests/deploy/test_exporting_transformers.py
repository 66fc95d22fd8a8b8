"""Frozen elastic models of the package transformers in directories: from_pretrained reads them, or ten lines do."""

import pytest
import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertConfig, BertForSequenceClassification
from transformers.models.gpt2.modeling_gpt2 import GPT2Config, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaForCausalLM
from transformers.models.vit.modeling_vit import ViTConfig, ViTForImageClassification

from supernet import SearchSpace, elastic, export_network, freeze, load_network
from supernet.deploy.pretrained import LOADER_TEXT
from supernet.errors import ExportError, FileFormatError

OF_TEXT = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
SIZES = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32, "num_hidden_layers": 2}


def bert():
    return BertForSequenceClassification(BertConfig(**OF_TEXT, **SIZES, max_position_embeddings=8))


def gpt2(**options):
    return GPT2LMHeadModel(GPT2Config(**OF_TEXT, n_positions=8, n_embd=16, n_head=4, n_layer=2, **options))


def vit():
    return ViTForImageClassification(ViTConfig(**SIZES, image_size=8, patch_size=4))


def llama():
    options = {"num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 8}
    return LlamaForCausalLM(LlamaConfig(**OF_TEXT, **SIZES, **options))


# What makes it; paths of width, blocks, attention and hidden layer; and names of the numbers in its config.
MODELS = {
    "bert": (bert, "bert.embeddings.word_embeddings", "bert.encoder.layer", "attention.self", "intermediate.dense"),
    "gpt2": (gpt2, "transformer.wte", "transformer.h", "attn", "mlp.c_fc"),
    "vit": (vit, "vit.embeddings.patch_embeddings.projection", "vit.layers", "attention", "mlp.fc1"),
    "llama": (llama, "model.embed_tokens", "model.layers", "self_attn", "mlp.gate_proj"),
}


def batch(name, count=2):
    generator = torch.Generator().manual_seed(count)
    return (
        torch.randn(count, 3, 8, 8, generator=generator)
        if name == "vit"
        else torch.randint(0, 20, (count, 6), generator=generator)
    )


def frozen(name, width=16, heads=(4, 4), hidden=(32, 32), depth=2):
    """Return a network with such numbers, of each of two layers; in GPT-2 the hidden width is twice that."""
    make, embedding, blocks, attention, of_hidden = MODELS[name]
    torch.manual_seed(0)
    model, twice = make(), 2 if name == "gpt2" else 1
    number = {"gpt2": "nf"}.get(name, "out_features")
    choices = {
        embedding: {"out_channels" if name == "vit" else "embedding_dim": [8, 16]},
        blocks: {"depth": [1, 2]},
        f"{blocks}.*.{attention}": {"num_heads": [2, 4]},
        f"{blocks}.*.{of_hidden}": {number: [16 * twice, 32 * twice]},
    }
    if name == "bert":
        choices["bert.pooler.dense"] = {"out_features": [8, 16]}
    elastic(model, choices, example=batch(name))
    decisions = {}
    for label in SearchSpace(model):
        layer = next((int(part) for part in label.split(".") if part.isdigit()), None)
        if layer is None:
            decisions[label] = depth if label.endswith("depth") else width
        else:
            decisions[label] = heads[layer] if label.endswith("num_heads") else hidden[layer] * twice
    return freeze(model, decisions).eval()


@pytest.mark.parametrize("name", MODELS)
def test_sizes_that_a_config_can_say_are_in_the_config_that_from_pretrained_reads(name, tmp_path):
    network = frozen(name, width=8, heads=(2, 2), hidden=(16, 16), depth=1)
    X = batch(name)
    card = export_network(network, X, tmp_path / "net", "transformers")
    assert {"config.json", "model.safetensors"} <= card["files"].keys()
    assert "load.py" not in card["files"]
    loaded = type(network).from_pretrained(tmp_path / "net")
    assert torch.equal(loaded(X).logits, network(X).logits)
    config = loaded.config
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (8, 2, 1)
    assert (config.n_inner if name == "gpt2" else config.intermediate_size) == (32 if name == "gpt2" else 16)
    again = load_network(tmp_path / "net")
    assert type(again) is type(network) and torch.equal(again(X).logits, network(X).logits)
    assert network.config.hidden_size == 16  # the network stays as it is


@pytest.mark.parametrize("name", MODELS)
def test_layers_of_different_sizes_are_read_by_the_loader(name, tmp_path, monkeypatch):
    network = frozen(name, heads=(2, 4), hidden=(32, 16))
    X = batch(name)
    card = export_network(network, X, tmp_path / "net", "transformers")
    assert {"config.json", "model.safetensors", "sizes.json", "load.py"} <= card["files"].keys()
    namespace = {"__file__": str(tmp_path / "net" / "load.py")}
    exec((tmp_path / "net" / "load.py").read_text(), namespace)
    for loaded in (namespace["load"](), load_network(tmp_path / "net")):
        assert type(loaded) is type(network)
        for count in (1, 2, 3):
            assert torch.equal(loaded(batch(name, count)).logits, network(batch(name, count)).logits)


def test_the_loader_needs_torch_and_transformers_only():
    body = LOADER_TEXT.split("def load")[1].split("\n", 1)[1]
    assert len([line for line in body.splitlines() if line]) == 10
    imports = [
        line.split()[1].split(".")[0] for line in LOADER_TEXT.splitlines() if line.startswith(("import", "from"))
    ]
    assert set(imports) == {"json", "pathlib", "torch", "transformers", "safetensors"}  # the last one is transformers'


def test_weights_that_are_tied_are_kept_once_and_stay_tied(tmp_path):
    for sizes in ({"width": 8}, {"heads": (2, 4)}):
        network = frozen("gpt2", **sizes)
        path = tmp_path / "-".join(sizes)
        card = export_network(network, batch("gpt2"), path, "transformers")
        loaded = load_network(path)
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
        elements = sum(p.numel() for p in network.parameters())
        assert 4 * elements < card["files"]["model.safetensors"]["bytes"] < 4 * elements + 4096


def test_a_config_that_has_numbers_of_each_layer_says_them(tmp_path):
    """A frozen network's own config is still that of the whole model."""
    gemma = pytest.importorskip("transformers.models.gemma4", reason="older ones have no such config")
    Gemma4TextConfig, Gemma4TextModel = gemma.Gemma4TextConfig, gemma.Gemma4TextModel
    sizes = {**SIZES, "num_key_value_heads": 2, "head_dim": 4, "global_head_dim": 4, "hidden_size_per_layer_input": 0}
    whole = Gemma4TextConfig(**sizes, vocab_size=20, layer_types=["sliding_attention", "full_attention"])
    torch.manual_seed(0)
    narrowed = Gemma4TextConfig(**whole.to_dict() | {"per_layer_config": {"1": {"num_key_value_heads": 1}}})
    network = Gemma4TextModel(narrowed).eval()
    X = batch("gemma")
    expected = network(X).last_hidden_state
    network.config = whole
    card = export_network(network, X, tmp_path / "net", "transformers")
    assert "load.py" not in card["files"]
    loaded = Gemma4TextModel.from_pretrained(tmp_path / "net")
    assert [layer.num_key_value_heads for layer in loaded.config.per_layer_config] == [2, 1]
    assert torch.equal(loaded(X).last_hidden_state, expected)


@pytest.mark.slow
def test_onnx_of_a_frozen_transformer(tmp_path):
    network = frozen("bert", heads=(2, 4))
    X = batch("bert")
    example = {"input_ids": X, "attention_mask": torch.ones_like(X)}
    card = export_network(network, example, tmp_path / "net.onnx")
    assert list(card["inputs"]) == ["input_ids", "attention_mask"]
    X = batch("bert", 5)
    loaded = load_network(tmp_path / "net.onnx")
    torch.testing.assert_close(
        loaded(attention_mask=torch.ones_like(X), input_ids=X), network(X).logits, atol=1e-5, rtol=1e-4
    )


# --- bad input ---------------------------------------------------------------------------------------------------


def test_what_is_no_model_of_transformers_is_refused(tmp_path):
    with pytest.raises(ExportError, match="Linear is no model of the package transformers"):
        export_network(nn.Linear(2, 2), torch.ones(2, 2), tmp_path / "net", "transformers")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds notes.txt already; export into a directory of its own"):
        export_network(frozen("vit"), batch("vit"), tmp_path, "transformers")
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_a_loader_that_was_changed_is_neither_run_nor_passed_over(tmp_path):
    export_network(frozen("vit", heads=(2, 4)), batch("vit"), tmp_path / "net", "transformers")
    (tmp_path / "net" / "load.py").write_text("raise SystemExit('evil')")
    with pytest.raises(FileFormatError, match=r"load.py has the digest"):
        load_network(tmp_path / "net")
