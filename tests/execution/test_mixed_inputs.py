"""What stands in an InputChoice's place where all inputs are mixed."""

import itertools

import pytest
import torch

from supernet.execution import InputSlot, Plan
from supernet.execution.expected_mean import weights_of_mean
from supernet.nn import InputChoice


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("named", [False, True])
def test_a_mixture_follows_a_decision_as_a_path_does(reduction, named):
    names = ["a", "b", "c"] if named else None
    choice = InputChoice(3, 2, reduction, choose_from=names, label="join")
    tensors = [torch.randn(2, 3) for _ in range(3)]
    inputs = dict(zip(names, tensors, strict=True)) if named else tensors
    for chosen in ([0, 1], [0, 2], [1, 2]):
        plan = Plan(join=chosen)
        expected = sum(tensors[i] for i in chosen) / (len(chosen) if reduction == "mean" else 1)
        torch.testing.assert_close(InputSlot(choice, plan)(inputs), expected)
        assert torch.equal(InputSlot(choice, plan)(inputs), InputSlot(choice, plan)(inputs))


SETS = [[i for i in range(3) if mask >> i & 1] for mask in range(8)]


def expectation(choice, p, tensors):
    """What the choice gives on average, each input chosen on its own with probability p."""
    total = torch.zeros((), dtype=torch.float64)
    for chosen in SETS:
        probability = torch.stack([p[i] if i in chosen else 1 - p[i] for i in range(3)]).prod()
        output = choice.resolve(chosen)(tensors)
        if output is not None:
            total = total + probability * (torch.cat(output, 1) if isinstance(output, list) else output)
    return total


@pytest.mark.parametrize(
    ("reduction", "absent"),
    [
        ("sum", "omitted"),
        ("mean", "omitted"),
        ("sum", "zeros"),
        ("mean", "zeros"),
        ("concat", "zeros"),
        ("none", "zeros"),
    ],
)
def test_a_mixture_of_any_number_is_the_mean_over_independent_choices_and_so_is_its_gradient(reduction, absent):
    choice = InputChoice(3, None, reduction, absent=absent, label="join")
    tensors = [torch.randn(2, 3, dtype=torch.float64) for _ in range(3)]
    for logits in (torch.tensor([0.3, -1.0, 2.0]), torch.zeros(3), torch.tensor([40.0, -40.0, 0.1])):
        alpha = logits.double().requires_grad_()
        p = torch.sigmoid(alpha)
        output = InputSlot(choice, Plan(join=p))(tensors)
        output = torch.cat(output, 1) if reduction == "none" else output
        expected = expectation(choice, p, tensors)
        torch.testing.assert_close(output, expected)
        at = torch.randn_like(output)
        ours, theirs = (torch.autograd.grad((x * at).sum(), alpha, retain_graph=True)[0] for x in (output, expected))
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_the_weights_of_a_mean_are_those_of_its_enumeration(count):
    p = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    expected = torch.zeros(count, dtype=torch.float64)
    for chosen in itertools.product((0, 1), repeat=count):
        b = torch.tensor(chosen, dtype=torch.float64)
        expected += torch.where(b.bool(), p, 1 - p).prod() * b / b.sum().clamp_min(1)
    torch.testing.assert_close(weights_of_mean(p), expected, atol=1e-14, rtol=1e-12)


def test_the_weights_of_a_mean_are_as_exact_in_mixed_precision():
    p = torch.rand(5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed_precision = weights_of_mean(p)
    assert torch.equal(mixed_precision, weights_of_mean(p))


def test_a_mean_that_was_first_asked_for_in_inference_mode_is_differentiable_later():
    with torch.inference_mode():
        weights_of_mean(torch.rand(7))
    p = torch.rand(7, requires_grad=True)
    weights_of_mean(p).sum().backward()
    torch.testing.assert_close(p.grad, torch.stack([(1 - p).prod() / (1 - q) for q in p]))  # of 1 - P(none is chosen)


@pytest.mark.parametrize("reduction", ["concat", "none", "mean", "sum"])
def test_where_absent_inputs_are_zeros_a_mixture_of_two_stands_where_the_average_of_all_pairs_does(reduction):
    """At equal probabilities; "sum" has weights that add up to one, as where absent inputs are omitted."""
    choice = InputChoice(3, 2, reduction, absent="zeros", label="join")
    tensors = [torch.randn(2, 3) for _ in range(3)]
    output = InputSlot(choice, Plan(join=torch.full((3,), 1 / 3)))(tensors)
    pairs = [choice.resolve(pair)(tensors) for pair in ([0, 1], [0, 2], [1, 2])]
    if reduction == "none":
        output, pairs = torch.stack(output), [torch.stack(pair) for pair in pairs]
    average = torch.stack(pairs).mean(0)
    torch.testing.assert_close(output, average / 2 if reduction == "sum" else average)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_mixture_has_the_dtype_of_its_inputs_and_gradients_reach_weights_of_float32(shape, dtype):
    tensors = [torch.full(shape, value, dtype=dtype) for value in (1.0, 2.0)]
    for reduction in ("sum", "none"):
        weights = torch.tensor([0.25, 0.5], requires_grad=True)
        output = InputSlot(InputChoice(2, None, reduction, absent="zeros", label="join"), Plan(join=weights))(tensors)
        total = sum(output) if reduction == "none" else output
        assert total.dtype == dtype
        assert total.sum().item() == pytest.approx(1.25 * total.numel())
        total.sum().backward()
        assert weights.grad.tolist() == [1.0 * total.numel(), 2.0 * total.numel()]
