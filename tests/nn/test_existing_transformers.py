"""Networks of the package transformers, made elastic: heads, widths and depths of BERT, GPT-2, ViT and Llama."""

import logging
from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.bert.modeling_bert import BertConfig, BertForSequenceClassification
from transformers.models.gpt2.modeling_gpt2 import GPT2Config, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaForCausalLM
from transformers.models.vit.modeling_vit import ViTConfig, ViTForImageClassification

from supernet import Supernet, ValueChoice, elastic, freeze, restore

logging.getLogger("transformers").setLevel(logging.ERROR)

OF_TEXT = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}


def bert(width=16, heads=4, hidden=32, depth=2):
    config = BertConfig(
        **OF_TEXT,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=hidden,
        num_hidden_layers=depth,
        max_position_embeddings=8,
    )
    return BertForSequenceClassification(config)


def gpt2(width=16, heads=4, hidden=64, depth=2):
    return GPT2LMHeadModel(
        GPT2Config(**OF_TEXT, n_positions=8, n_embd=width, n_head=heads, n_inner=hidden, n_layer=depth)
    )


def vit(width=16, heads=4, hidden=32, depth=2):
    config = ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=hidden,
        num_hidden_layers=depth,
        image_size=8,
        patch_size=4,
    )
    return ViTForImageClassification(config)


def llama(width=16, heads=4, hidden=32, depth=2):
    config = LlamaConfig(
        **OF_TEXT,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=4,
        intermediate_size=hidden,
        num_hidden_layers=depth,
        max_position_embeddings=8,
    )
    return LlamaForCausalLM(config)


def tokens():
    return torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


NETWORKS = {
    "bert": (
        bert,
        tokens,
        "bert.embeddings.word_embeddings",
        "bert.encoder.layer",
        "attention.self",
        "intermediate.dense",
    ),
    "gpt2": (gpt2, tokens, "transformer.wte", "transformer.h", "attn", "mlp.c_fc"),
    "vit": (vit, images, "vit.embeddings.patch_embeddings.projection", "vit.layers", "attention", "mlp.fc1"),
    "llama": (llama, tokens, "model.embed_tokens", "model.layers", "self_attn", "mlp.gate_proj"),
}
WIDTH = {"bert": "embedding_dim", "gpt2": "embedding_dim", "vit": "out_channels", "llama": "embedding_dim"}


def made(name):
    make, example, *_ = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double()
    with torch.no_grad():
        for p in model.parameters():  # biases and norms are not as they are made
            p.add_(0.1 * torch.randn_like(p))
    return model, example()


def searchable(name):
    """Heads of each block, hidden widths, depth, and the width that all blocks share, by name."""
    model, x = made(name)
    _, _, embedding, blocks, attention, hidden = NETWORKS[name]
    number = {"gpt2": "nf"}.get(name, "out_features")
    whole = 64 if name == "gpt2" else 32
    choices = {
        embedding: {WIDTH[name]: [8, 12, 16]},
        blocks: {"depth": [1, 2]},
        f"{blocks}.*.{attention}": {"num_heads": [2, 4]},
        f"{blocks}.*.{hidden}": {number: [whole // 2, whole]},
    }
    if name == "bert":
        choices["bert.pooler.dense"] = {"out_features": [8, 16]}
    return elastic(model, choices, example=x), x


@pytest.mark.parametrize("name", NETWORKS)
def test_the_widest_transformer_is_the_original_and_a_frozen_one_is_what_the_supernet_computes(name):
    original, _ = made(name)
    model, x = searchable(name)
    labels = {m.label: m.candidates for m in model.modules() if isinstance(m, ValueChoice)}
    assert len(labels) == 6 + (name == "bert")  # the width and the depth of all, heads and hidden width of each block
    supernet = Supernet(model).eval()
    widest = supernet(x, {label: max(candidates) for label, candidates in labels.items()})
    assert torch.equal(widest.logits, original.eval()(x).logits)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        architecture = supernet.space.sample(generator)
        network = freeze(model, architecture)
        assert not [m for m in network.modules() if type(m).__module__.startswith("supernet")]
        for form in (False, True):
            torch.manual_seed(2)  # dropout
            expected = network.train(form)(x).logits
            torch.manual_seed(2)
            actual = supernet.train(form)(x, architecture).logits
            torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_all_numbers_is_the_transformer_that_is_configured_so(name):
    model, x = searchable(name)
    labels = {m.label: m.candidates for m in model.modules() if isinstance(m, ValueChoice)}
    network = freeze(model, {label: min(candidates) for label, candidates in labels.items()})
    reference = NETWORKS[name][0](8, 2, 32 if name == "gpt2" else 16, 1).double()
    reference.load_state_dict(network.state_dict())
    torch.testing.assert_close(network.eval()(x).logits, reference.eval()(x).logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_written_out_by_torch_is_followed_as_in_one_kernel(name):
    """Which kernel attention runs in depends on the machine, the masks and torch's version."""
    widths = []
    for kernels in (nullcontext(), sdpa_kernel(SDPBackend.MATH)):
        model, x = made(name)
        with kernels:
            elastic(model, ratios=[0.5, 1.0], example=x)
        widths.append({m.label: m.candidates for m in model.modules() if isinstance(m, ValueChoice)})
    assert widths[0] == widths[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_mixture_that_is_sure_of_all_widths_and_heads_is_that_path(name):
    model, x = made(name)
    elastic(model, ratios=[0.5, 1.0], example=x)
    labels = {m.label: m.candidates for m in model.modules() if isinstance(m, ValueChoice)}
    supernet = Supernet(model).eval()
    architecture = {label: candidates[i % 2] for i, (label, candidates) in enumerate(labels.items())}
    certain = {
        label: torch.tensor([value == architecture[label] for value in candidates]).double()
        for label, candidates in labels.items()
    }
    torch.testing.assert_close(supernet(x, certain).logits, supernet(x, architecture).logits)


def test_weights_that_are_tied_stay_tied_in_the_frozen_network():
    model, _ = searchable("gpt2")
    labels = {m.label: m.candidates for m in model.modules() if isinstance(m, ValueChoice)}
    network = freeze(model, {label: min(candidates) for label, candidates in labels.items()})
    assert network.lm_head.weight is network.transformer.wte.weight
    assert network.lm_head.weight.shape == (20, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_restoring_the_original_gives_back_the_transformer(name):
    original, _ = made(name)
    model, x = searchable(name)
    restore(model, original=True)
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    before, after = original.state_dict(), model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(model.eval()(x).logits, original.eval()(x).logits)


def test_a_transformer_goes_on_generating_where_it_is_frozen():
    """With the cache of keys and values, whose numbers of heads the network now has."""
    model, x = searchable("llama")
    labels = {m.label: m.candidates for m in model.modules() if isinstance(m, ValueChoice)}
    network = freeze(model, {label: min(candidates) for label, candidates in labels.items()}).eval()
    with torch.no_grad():
        start = network(x[:, :4], use_cache=True)
        rest = network(x[:, 4:], cache=start.cache)
        torch.testing.assert_close(rest.logits, network(x).logits[:, 4:])
