"""Spaces of transformers: published networks counted exactly; paths and frozen networks compute the same, and right."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from supernet import SearchSpace, Supernet, fixed_architecture, freeze
from supernet.errors import ChoiceError
from supernet.hub import (
    AUTOFORMER_B,
    AUTOFORMER_S,
    AUTOFORMER_T,
    DEIT_S,
    GPT,
    GPT2_LARGE,
    GPT2_MEDIUM,
    GPT2_SMALL,
    AutoFormer,
)

IMAGES = {"num_classes": 3, "in_channels": 1, "image_size": 4, "patch_size": 2, "head_dim": 4}
WORDS = {"vocab_size": 11, "context_length": 6, "head_dim": 4}
SPACE = {"width": (8, 12), "depth": (1, 2), "heads": (1, 2), "mlp_ratio": (1, 1.5)}
THOROUGH = {"rtol": 0, "atol": 1e-10}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def multiply_adds(network, *batch):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*batch)
    return counter.get_total_flops() // 2


# --- as published, on the device "meta": nothing is computed ------------------------------------------------------


@pytest.fixture(scope="module")
def small_vit():
    with torch.device("meta"):
        return AutoFormer("small", relative_positions=False, average=False)


def test_the_small_space_holds_vit_s_with_its_parameters_and_multiply_adds(small_vit):
    """DeiT-S of arXiv 2012.12877, which says 22 million and 4.6 billion; its code's network has 22,050,664."""
    network = freeze(small_vit, DEIT_S)
    assert parameters(network) == 22_050_664
    length, width = 14**2 + 1, 384
    of_block = length * width * (3 * width + width + 2 * 4 * width) + 2 * length**2 * width
    expected = 14**2 * 3 * 16**2 * width + 12 * of_block + width * 1000
    found = multiply_adds(network, torch.empty(1, 3, 224, 224, device="meta"))
    assert found == expected == 4_598_882_304


def vit_parameters(width, heads, ratios, side=14, num_classes=1000):
    """Count by hand: patches, tokens, blocks with four tables of relative positions each, norm and head."""
    total = 768 * width + width + width + (side**2 + 1) * width + 2 * width + width * num_classes + num_classes
    for h, ratio in zip(heads, ratios, strict=True):
        hidden = int(width * ratio)
        total += 4 * width + 3 * (width + 1) * 64 * h + (64 * h + 1) * width + 4 * 30 * 64
        total += (width + 1) * hidden + (hidden + 1) * width
    return total


@pytest.mark.parametrize(
    ("space", "architecture", "num_parameters"),
    [("tiny", AUTOFORMER_T, 5_867_944), ("small", AUTOFORMER_S, 22_891_432), ("base", AUTOFORMER_B, 53_691_688)],
)
def test_networks_of_autoformer_have_the_parameters_of_their_definition(space, architecture, num_parameters):
    """The paper says 22.9 and 53.7 million of the larger two, and 5.7 of the smallest."""
    depth = architecture["depth"]
    heads = [architecture[f"heads_{i}"] for i in range(depth)]
    ratios = [architecture[f"mlp_ratio_{i}"] for i in range(depth)]
    assert vit_parameters(architecture["width"], heads, ratios) == num_parameters
    with torch.device("meta"):
        network = freeze(AutoFormer(space), architecture)
    assert parameters(network) == num_parameters
    length, width, total = 14**2 + 1, architecture["width"], 14**2 * 768 * architecture["width"]
    for h, ratio in zip(heads, ratios, strict=True):
        # Four products of queries or weights with keys, values and what is added to these for each pair.
        total += length * width * (4 * 64 * h + 2 * int(width * ratio)) + 4 * length**2 * 64 * h
    assert multiply_adds(network, torch.empty(1, 3, 224, 224, device="meta")) == total + width * 1000


@pytest.mark.parametrize(
    ("space", "architecture", "num_parameters"),
    [("small", GPT2_SMALL, 124_439_808), ("medium", GPT2_MEDIUM, 354_823_168), ("large", GPT2_LARGE, 774_030_080)],
)
def test_the_largest_networks_of_the_spaces_are_gpt_2_with_its_parameters(space, architecture, num_parameters):
    with torch.device("meta"):
        model = GPT(space)
    assert parameters(model) == num_parameters  # what the supernet holds, too
    if space == "small":  # the others differ in numbers alone
        network = freeze(model, architecture)
        assert parameters(network) == num_parameters
        total = 12 * (1024 * 768**2 * 12 + 2 * 1024**2 * 768) + 1024 * 768 * 50257
        assert multiply_adds(network, torch.empty(1, 1024, dtype=torch.long, device="meta")) == total
    assert SearchSpace(model).canonical(architecture) == architecture


def test_spaces_have_as_many_architectures_as_their_decisions_make(small_vit):
    assert SearchSpace(small_vit).size == 3 * sum(9**depth for depth in (12, 13, 14))
    with torch.device("meta"):
        assert SearchSpace(AutoFormer("base")).size == 3 * sum(9**depth for depth in (14, 15, 16))
        assert SearchSpace(GPT()).size == 3 * sum(9**depth for depth in (10, 11, 12))
    # As the paper counts, with the blocks that are not reached, and in "tiny" two ratios.
    assert f"{9**17 + 9**15 + 9 * 4**14:.1e}" == "1.7e+16"


# --- what they compute --------------------------------------------------------------------------------------------


def vit(**options):
    torch.manual_seed(0)
    return AutoFormer(SPACE, **IMAGES, **options).double()


def gpt():
    torch.manual_seed(0)
    return GPT(SPACE, **WORDS).double()


MODELS = {
    "AutoFormer": (vit, torch.rand(2, 1, 4, 4, dtype=torch.float64)),
    "ViT": (lambda: vit(relative_positions=False, average=False), torch.rand(2, 1, 4, 4, dtype=torch.float64)),
    "GPT": (gpt, torch.tensor([[1, 4, 2, 10, 0], [3, 3, 3, 3, 3]])),
}


@pytest.fixture(params=MODELS)
def model_and_batch(request):
    make, batch = MODELS[request.param]
    model = make()
    for position, p in enumerate(model.parameters()):  # so that nothing is too small to be seen, or zero
        p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(position), dtype=torch.float64)
    return model, batch


def test_a_path_is_its_frozen_network_which_holds_modules_of_torch_alone(model_and_batch):
    model, batch = model_and_batch
    space, running = SearchSpace(model), Supernet(copy.deepcopy(model))
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        architecture = space.sample(generator)
        network = freeze(model, architecture)
        assert {type(module).__module__.split(".")[0] for module in network.modules()} == {"torch"}
        for is_training in (True, False):
            expected = network.train(is_training)(batch)
            torch.testing.assert_close(running.train(is_training)(batch, architecture), expected, **THOROUGH)


def test_a_mixture_of_one_architecture_is_its_path_and_any_other_trains_all_weights(model_and_batch):
    model, batch = model_and_batch
    running = Supernet(model)
    architecture = running.space.sample(torch.Generator().manual_seed(1))
    plan = {}
    for label, domain in running.space.items():
        (chosen,) = domain.positions(architecture.get(label, domain.values[0]))
        plan[label] = torch.eye(len(domain.options), dtype=torch.float64)[chosen]
    torch.testing.assert_close(running(batch, plan), running(batch, architecture), **THOROUGH)
    even = {label: torch.full((len(domain.options),), 0.5).double() for label, domain in running.space.items()}
    running(batch, even).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_constructors_that_follow_an_architecture_give_a_network_of_modules_of_torch():
    plain = {"width": 12, "depth": 1, "heads_0": 2, "mlp_ratio_0": 1.5}
    for make, batch in MODELS.values():
        with fixed_architecture(plain):
            network = make()
        assert {type(module).__module__.split(".")[0] for module in network.modules()} == {"torch"}
        assert network(batch).shape == (2, 3) if batch.is_floating_point() else (2, 5, 11)
        assert network.state_dict().keys() == freeze(make(), plain).state_dict().keys()
        assert network.position.weight.std() > 0.005


def test_the_next_word_depends_on_those_before_alone_and_words_are_one_table():
    network = freeze(gpt(), {"width": 8, "depth": 2, "heads_0": 1, "heads_1": 2, "mlp_ratio_0": 1, "mlp_ratio_1": 1})
    assert network.head.weight is network.embed.weight
    words = torch.tensor([[1, 4, 2, 10, 0]])
    before, after = network(words), network(torch.tensor([[1, 4, 2, 7, 7]]))
    torch.testing.assert_close(before[:, :3], after[:, :3], **THOROUGH)
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_attention_between_patches_adds_what_tables_have_for_rows_and_columns_apart():
    """Pair by pair, as arXiv 1803.02155 and 2107.00651 have it: q (k + r_k), then weights (v + r_v)."""
    model = vit()
    heads = model.blocks.get_submodule("0").attention.heads
    for name in ("of_keys", "of_values"):
        table = getattr(heads, name)
        table.data = torch.randn(table.shape, generator=torch.Generator().manual_seed(len(name)), dtype=torch.float64)
    q, k, v = torch.randn(3, 1, 5, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def relative(table, i, j):
        if i == 0 or j == 0:  # the class token
            return table[0, 0] + table[1, 0]
        (row_i, column_i), (row_j, column_j) = divmod(i - 1, 2), divmod(j - 1, 2)
        return table[0, row_j - row_i + 15] + table[1, column_j - column_i + 15]

    expected = torch.zeros(1, 5, 8, dtype=torch.float64)
    for head in (slice(0, 4), slice(4, 8)):
        for i in range(5):
            scores = [q[0, i, head] @ (k[0, j, head] + relative(heads.of_keys, i, j)) / 4**0.5 for j in range(5)]
            weights = torch.stack(scores).softmax(0)
            values = [v[0, j, head] + relative(heads.of_values, i, j) for j in range(5)]
            expected[0, i, head] = weights @ torch.stack(values)
    torch.testing.assert_close(heads.run({"num_heads": 2}, q, k, v), expected, **THOROUGH)


def test_what_is_no_space_or_no_grid_of_patches_is_refused_by_name():
    with pytest.raises(ChoiceError, match="no space 'huge'; there are: micro, tiny, small, base"):
        AutoFormer("huge")
    with pytest.raises(ChoiceError, match="candidates for width, depth, heads, mlp_ratio, not for width"):
        GPT({"width": [8]})
    with pytest.raises(ChoiceError, match="patch_size=5 does not divide image_size=8"):
        AutoFormer("micro", image_size=8, patch_size=5)


def test_small_settings_run_as_they_come():
    vision = AutoFormer("micro", num_classes=10, in_channels=1, image_size=8, patch_size=2)
    language = GPT("micro", vocab_size=65, context_length=8)
    generator = torch.Generator().manual_seed(0)
    for model, batch, shape in (
        (vision, torch.rand(2, 1, 8, 8), (2, 10)),
        (language, torch.ones(2, 8).long(), (2, 8, 65)),
    ):
        running = Supernet(model)
        assert running(batch, running.space.sample(generator)).shape == shape
