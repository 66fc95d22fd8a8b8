"""Attention whose width, heads, width of a head and number of heads of keys and values are decided by choices."""

import copy
import math
import pickle
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import supernet
from supernet import SearchSpace, Supernet, ValueChoice, fixed_architecture, freeze
from supernet.errors import ChoiceError
from supernet.execution import Selection

# N batch, L length, E features.

WIDTHS, HEADS, KEYS = [4, 8], [1, 2], [3, 8]
THOROUGH = {"rtol": 0, "atol": 1e-10}


def double(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values(label, candidates):
    return ValueChoice(candidates, label=label)


def width():
    return values("width", WIDTHS)


def heads():
    return values("heads", HEADS)


def randomized(module):
    """Give all weights numbers, for biases are zeros at first."""
    for position, p in enumerate(module.parameters()):
        p.data = 0.5 * double(*p.shape, seed=position)
    return module


# --- torch's ---------------------------------------------------------------------------------------------------

CASES = {
    "packed": {},
    "without bias": {"bias": False},
    "more keys": {"add_bias_kv": True, "add_zero_attn": True},
    "other widths of keys": {"kdim": values("keys", KEYS), "vdim": 3},
    "keys as wide at their widest": {"kdim": values("keys", KEYS)},
    "batch first": {"batch_first": True},
}


def multihead(case, **more):
    return randomized(supernet.nn.MultiheadAttention(width(), heads(), **CASES[case], **more))


def by_hand(layer, sizes):
    """Return torch's layer of the given sizes, with slices of the weights as one writes them by hand."""
    e, k, v = sizes["width"], sizes["keys"], sizes["values"]
    options = {"bias": layer.in_proj_bias is not None, "add_bias_kv": layer.bias_k is not None}
    options |= {"add_zero_attn": layer.add_zero_attn, "batch_first": layer.batch_first, "dtype": torch.float64}
    plain = nn.MultiheadAttention(e, sizes["heads"], layer.dropout, kdim=k, vdim=v, **options)
    if layer.in_proj_weight is not None:
        of_q, of_k, of_v = layer.in_proj_weight.chunk(3)
    else:
        of_q, of_k, of_v = layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
    state = {"q_proj_weight": of_q[:e, :e], "k_proj_weight": of_k[:e, :k], "v_proj_weight": of_v[:e, :v]}
    if e == k == v:
        state = {"in_proj_weight": torch.cat(list(state.values()))}
    if layer.in_proj_bias is not None:
        state["in_proj_bias"] = torch.cat([bias[:e] for bias in layer.in_proj_bias.chunk(3)])
        state["out_proj.bias"] = layer.out_proj.bias[:e]
    if layer.bias_k is not None:
        state |= {"bias_k": layer.bias_k[:, :, :e], "bias_v": layer.bias_v[:, :, :e]}
    plain.load_state_dict({**state, "out_proj.weight": layer.out_proj.weight[:e, :e]})
    return plain.train(layer.training)


def sizes_of(case, architecture):
    """Return all sizes under an architecture."""
    e = architecture["width"]
    keys = architecture.get("keys", e)
    return {"width": e, "heads": architecture["heads"], "keys": keys, "values": 3 if "vdim" in CASES[case] else e}


def inputs(sizes):
    """Return queries of length 3, keys and values of length 5, of a batch of 2."""
    return double(3, 2, sizes["width"]), double(5, 2, sizes["keys"], seed=1), double(5, 2, sizes["values"], seed=2)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_each_path_and_its_frozen_layer_are_torchs_own_with_slices_of_the_weights(case, is_training):
    layer = multihead(case, dropout=0.5).train(is_training)
    model = nn.ModuleList([layer])
    running = Supernet(copy.deepcopy(layer))
    for architecture in SearchSpace(model).enumerate():
        sizes = sizes_of(case, architecture)
        q, k, v = inputs(sizes)
        if layer.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        plain, frozen = by_hand(layer, sizes), freeze(model, architecture)[0]
        assert type(frozen) is nn.MultiheadAttention
        assert {name: p.shape for name, p in frozen.named_parameters()} == {
            name: p.shape for name, p in plain.named_parameters()
        }
        assert all(torch.equal(p, plain.state_dict()[name]) for name, p in frozen.state_dict().items())
        torch.manual_seed(1)
        expected, weights = plain(q, k, v)
        for compute in (frozen, lambda *args, plan=architecture: running(*args, plan)):
            torch.manual_seed(1)
            output, attention = compute(q, k, v)
            torch.testing.assert_close(output, expected, **THOROUGH)
            torch.testing.assert_close(attention, weights, **THOROUGH)


@pytest.mark.parametrize("options", [{"need_weights": False}, {"average_attn_weights": False}])
def test_masks_and_what_is_wanted_go_along(options):
    layer = multihead("batch first").eval()
    running, x = Supernet(copy.deepcopy(layer)), double(2, 3, 4)
    masks = {
        "attn_mask": torch.ones(3, 3).triu(1).bool(),
        "key_padding_mask": torch.tensor([[False] * 3, [False, False, True]]),
    }
    plan = {"width": 4, "heads": 2}
    output, weights = running(x, x, x, plan, **masks, **options)
    expected, expected_weights = by_hand(layer, sizes_of("batch first", plan))(x, x, x, **masks, **options)
    torch.testing.assert_close(output, expected, **THOROUGH)
    torch.testing.assert_close(weights, expected_weights, **THOROUGH)
    alone, _ = running(x[1], x[1], x[1], plan, need_weights=False)  # not batched
    torch.testing.assert_close(alone, running(x[1:], x[1:], x[1:], plan)[0][0], **THOROUGH)


def test_in_a_layer_of_torchs_encoder_the_weights_are_sliced_where_that_is_fastest_too():
    """In evaluation form its fast path takes weights past the attention's own forward."""
    block = nn.TransformerEncoderLayer(8, 2, 4, dropout=0.0, batch_first=True, dtype=torch.float64)
    block.self_attn = supernet.nn.MultiheadAttention(8, values("heads", [2, 4]), batch_first=True).double()
    randomized(block).eval()
    x = double(2, 3, 8)
    frozen = {h: freeze(block, {"heads": h}) for h in (2, 4)}
    running = Supernet(block)
    with torch.no_grad():
        for h, network in frozen.items():
            torch.testing.assert_close(running(x, {"heads": h}), network(x), **THOROUGH)
    assert not torch.allclose(frozen[2](x), frozen[4](x))


weights_of = st.lists(st.floats(-1, 1), min_size=4, max_size=4).map(lambda x: torch.tensor(x, dtype=torch.float64))


@settings(max_examples=15)
@given(weights_of)
def test_a_mixture_of_torchs_layers_is_the_sum_of_what_each_gives_padded_with_zeros(numbers):
    layer = multihead("packed")
    x = double(3, 2, 8)
    output, attention = 0, 0
    for e, of_e in zip(WIDTHS, numbers[:2], strict=True):
        for h, of_h in zip(HEADS, numbers[2:], strict=True):
            plain = by_hand(layer, {"width": e, "heads": h, "keys": e, "values": e})
            of_path, weights = plain(x[..., :e], x[..., :e], x[..., :e], average_attn_weights=False)
            output = output + of_e * of_h * F.pad(of_path, (0, 8 - e))
            attention = attention + of_e * of_h * F.pad(weights, (0, 0, 0, 0, 0, 2 - h))
    plan = {"width": numbers[:2], "heads": numbers[2:]}
    running = Supernet(layer)
    found, weights = running(x, x, x, plan, average_attn_weights=False)
    torch.testing.assert_close(found, output, **THOROUGH)
    torch.testing.assert_close(weights, attention, **THOROUGH)
    assert running(x, x, x, plan, need_weights=False)[1] is None


def test_a_mixture_of_torchs_layers_has_the_gradients_of_its_definition():
    layer = multihead("packed")
    running, x, numbers = Supernet(layer), double(2, 1, 8).requires_grad_(), double(4, seed=1).requires_grad_()

    def mixture(numbers, x, *_):
        return running(x, x, x, {"width": numbers[:2], "heads": numbers[2:]}, need_weights=False)[0]

    assert torch.autograd.gradcheck(mixture, (numbers, x, *layer.parameters()), fast_mode=True)


# --- our own -------------------------------------------------------------------------------------------------------

GROUPS, HEAD_WIDTHS = [1, 2], [2, 3]


def attention(**options):
    """Return one all of whose sizes are chosen: heads 2 or 4, of which 1 or 2 have keys and values of their own."""
    num_heads, groups = values("heads", [2, 4]), values("groups", GROUPS)
    head_dim = values("head", HEAD_WIDTHS)
    return randomized(supernet.nn.Attention(width(), num_heads, head_dim, num_kv_heads=groups, **options))


def textbook(q, k, v, heads, groups, head_dim, is_causal=False):
    """Return attention as its formula has it, head by head, of queries, keys and values with all heads in one row."""
    q, k, v = (x.unflatten(-1, (-1, head_dim)) for x in (q, k, v))
    outputs = []
    for head in range(heads):
        of_group = head // (heads // groups)
        scores = torch.einsum("nld,nmd->nlm", q[:, :, head], k[:, :, of_group]) / math.sqrt(head_dim)
        if is_causal:
            scores = scores + torch.full_like(scores, -math.inf).triu(1)
        outputs.append(torch.einsum("nlm,nmd->nld", scores.softmax(-1), v[:, :, of_group]))
    return torch.cat(outputs, -1)


def sliced(layer, e, heads, groups, head_dim):
    """Return the slices that the projections take, by hand."""
    rows = {"q": heads * head_dim, "k": groups * head_dim, "v": groups * head_dim}
    found = {}
    for name, n in rows.items():
        linear = getattr(layer, f"{name}_proj")
        found[name] = linear.weight[:n, :e], None if linear.bias is None else linear.bias[:n]
    out = layer.out_proj
    found["out"] = out.weight[:e, : rows["q"]], None if out.bias is None else out.bias[:e]
    return found


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True, "qkv_bias": False}, {"out_bias": False, "dropout": values("rate", [0.0, 0.5])}],
    ids=["plain", "causal", "dropout"],
)
def test_each_path_and_its_frozen_network_are_the_textbooks_attention(options, is_training):
    layer = attention(**options).train(is_training)
    running, model = Supernet(copy.deepcopy(layer)), nn.Sequential(layer)
    for architecture in SearchSpace(model).enumerate():
        e, *sizes = (architecture[label] for label in ("width", "heads", "groups", "head"))
        x, weights, frozen = double(2, 3, e), sliced(layer, e, *sizes), freeze(model, architecture)[0]
        assert {type(m) for m in frozen.modules()} >= {nn.Linear}
        assert not any("supernet" in type(module).__module__ for module in frozen.modules())
        assert torch.equal(frozen.k_proj.weight, weights["k"][0])
        outputs = []
        for compute in (frozen, lambda x, plan=architecture: running(x, plan)):
            torch.manual_seed(1)
            outputs.append(compute(x))
        torch.testing.assert_close(*outputs, **THOROUGH)
        if not (is_training and architecture.get("rate")):
            projected = [F.linear(x, *weights[name]) for name in "qkv"]
            expected = F.linear(textbook(*projected, *sizes, is_causal="is_causal" in options), *weights["out"])
            torch.testing.assert_close(outputs[0], expected, **THOROUGH)


def test_dropped_weights_are_those_of_the_form_that_the_frozen_network_has_now():
    frozen = freeze(nn.Sequential(attention(dropout=0.5)), {"width": 4, "heads": 2, "groups": 1, "head": 3})
    x = double(2, 3, 4)
    for network in (frozen, copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen.eval()))):
        assert torch.equal(network.eval()(x), network(x))
        assert not torch.equal(network.train()(x), network(x))


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_of_as_many_heads_as_divide_the_width_it_is_torchs_attention(rate):
    layer, x = randomized(supernet.nn.Attention(8, 2, dropout=rate)), double(2, 3, 8)
    plain = nn.MultiheadAttention(8, 2, rate, batch_first=True, dtype=torch.float64)
    q, k, v, out = (getattr(layer, f"{name}_proj") for name in ("q", "k", "v", "out"))
    packed = {"in_proj_weight": torch.cat([q.weight, k.weight, v.weight])}
    packed["in_proj_bias"] = torch.cat([q.bias, k.bias, v.bias])
    plain.load_state_dict({**packed, "out_proj.weight": out.weight, "out_proj.bias": out.bias})
    torch.manual_seed(1)
    output = layer(x)
    torch.manual_seed(1)
    torch.testing.assert_close(output, plain(x, x, x)[0], **THOROUGH)


OF_SIZES = {"width": WIDTHS, "heads": [2, 4], "groups": GROUPS, "head": HEAD_WIDTHS}


def plan_of(numbers):
    return dict(zip(OF_SIZES, numbers.split(2), strict=True))


def mixed_by_hand(linear, plan, ins, outs):
    """Return the sum of the padded slices of a weight and a bias, of joint sizes that some choices decide."""
    weight, bias = torch.zeros_like(linear.weight), torch.zeros_like(linear.bias)
    labels = sorted({*ins, *outs})
    for picked in product((0, 1), repeat=len(labels)):
        sizes = {label: OF_SIZES[label][i] for label, i in zip(labels, picked, strict=True)}
        factor = math.prod(plan[label][i] for label, i in zip(labels, picked, strict=True))
        n_in, n_out = (math.prod(sizes[label] for label in names) for names in (ins, outs))
        missing_in, missing_out = linear.in_features - n_in, linear.out_features - n_out
        weight = weight + factor * F.pad(linear.weight[:n_out, :n_in], (0, missing_in, 0, missing_out))
        bias = bias + factor * F.pad(linear.bias[:n_out], (0, missing_out))
    return weight, bias


@settings(max_examples=15)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8), st.booleans())
def test_a_mixture_mixes_each_projections_slices_and_sums_what_all_numbers_of_heads_make_of_them(numbers, is_causal):
    layer, x = attention(is_causal=is_causal), double(2, 3, 8)
    plan = plan_of(torch.tensor(numbers, dtype=torch.float64))
    q = F.linear(x, *mixed_by_hand(layer.q_proj, plan, ["width"], ["heads", "head"]))
    k = F.linear(x, *mixed_by_hand(layer.k_proj, plan, ["width"], ["groups", "head"]))
    v = F.linear(x, *mixed_by_hand(layer.v_proj, plan, ["width"], ["groups", "head"]))
    attended = 0
    for i, j, m in product((0, 1), repeat=3):
        h, g, d = OF_SIZES["heads"][i], GROUPS[j], HEAD_WIDTHS[m]
        of_sizes = textbook(q[..., : h * d], k[..., : g * d], v[..., : g * d], h, g, d, is_causal)
        attended = attended + plan["heads"][i] * plan["groups"][j] * plan["head"][m] * F.pad(of_sizes, (0, 12 - h * d))
    expected = F.linear(attended, *mixed_by_hand(layer.out_proj, plan, ["heads", "head"], ["width"]))
    torch.testing.assert_close(Supernet(layer)(x, plan), expected, **THOROUGH)


def test_a_mixture_has_the_gradients_of_its_definition():
    layer = attention(is_causal=True)
    running, x, numbers = Supernet(layer), double(1, 2, 8).requires_grad_(), double(8, seed=1).requires_grad_()

    def mixture(numbers, x, *_):
        return running(x, plan_of(numbers))

    assert torch.autograd.gradcheck(mixture, (numbers, x, *layer.parameters()), fast_mode=True)


def gates(active, detached):
    weights = torch.tensor([1.0, 0.25], dtype=torch.float64, requires_grad=True)
    return weights, Selection((active, detached), weights, detached=1)


def test_of_two_gates_the_detached_one_gives_no_gradient_to_heads_that_it_alone_has():
    layer, (weights, selection) = randomized(supernet.nn.Attention(8, values("heads", [2, 4]), 2)), gates(2, 4)
    Supernet(layer)(double(2, 3, 8), {"heads": selection}).sum().backward()
    assert weights.grad.all()
    of_out = layer.out_proj.weight.grad.T
    for gradient in (layer.q_proj.weight.grad, layer.k_proj.weight.grad, layer.v_proj.weight.grad, of_out):
        of_first, of_others = gradient.split(4)
        assert of_first.any() and not of_others.any()


def test_of_two_gates_the_detached_one_gives_an_output_and_its_weight_a_gradient_alone():
    layer, (weights, selection) = multihead("packed"), gates(4, 8)
    x = double(3, 2, 8)
    of_active, of_other = (
        by_hand(layer, {"width": e, "heads": 2, "keys": e, "values": e})(x[..., :e], x[..., :e], x[..., :e])[0]
        for e in (4, 8)
    )
    output, _ = Supernet(layer)(x, x, x, {"width": selection, "heads": 2})
    torch.testing.assert_close(output, F.pad(of_active, (0, 4)) + 0.25 * of_other, **THOROUGH)
    output.sum().backward()
    torch.testing.assert_close(weights.grad, torch.stack([of_active.sum(), of_other.sum()]), **THOROUGH)
    for of_part in layer.in_proj_weight.grad.chunk(3):
        assert of_part[:4, :4].any() and not of_part[4:].any() and not of_part[:, 4:].any()


def test_constructors_that_follow_an_architecture_give_modules_of_torch():
    with fixed_architecture({"width": 4, "heads": 2}):
        ours = supernet.nn.Attention(width(), heads())
        theirs = supernet.nn.MultiheadAttention(width(), heads())
    assert type(theirs) is nn.MultiheadAttention and theirs.num_heads == 2
    assert isinstance(ours, torch.fx.GraphModule) and type(ours.q_proj) is nn.Linear
    assert ours(torch.ones(1, 3, 4)).shape == (1, 3, 4)


@pytest.mark.parametrize("kind", [supernet.nn.MultiheadAttention, supernet.nn.Attention])
def test_heads_that_do_not_divide_the_width_are_refused_by_choices_and_values(kind):
    with pytest.raises(ChoiceError, match="num_heads=heads must divide embed_dim=width, but 4 does not divide 6"):
        kind(values("width", [8, 6]), values("heads", [2, 4]))
    with pytest.raises(ChoiceError, match="num_heads=4 must divide embed_dim=6"):
        kind(6, 4)
    with pytest.raises(ChoiceError, match="num_heads is a whole number above 0"):
        kind(8, values("heads", [2, 0]))
    with pytest.raises(ChoiceError, match=r"dropout=rate is a number from 0 to 1, but may be 2\.0"):
        kind(8, 2, dropout=values("rate", [0.5, 2.0]))
    follows = values("width", [8, 12])
    kind(follows, follows // 4)  # which meet only where they divide


def test_heads_of_keys_and_values_that_do_not_divide_the_others_are_refused_by_choices_and_values():
    with pytest.raises(ChoiceError, match="num_kv_heads=kv must divide num_heads=heads, but 3 does not divide 4"):
        supernet.nn.Attention(8, values("heads", [6, 4]), 2, num_kv_heads=values("kv", [1, 3]))
