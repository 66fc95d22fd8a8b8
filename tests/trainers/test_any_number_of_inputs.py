"""What decides an InputChoice whose number of inputs is not fixed, in each trainer."""

import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import (
    DartsTrainer,
    EnasTrainer,
    InputChoice,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    SearchSpace,
    SinglePathTrainer,
    freeze,
)
from supernet.errors import ChoiceError
from supernet.relaxations import most_probable, probabilities
from supernet.trainers import EnasController


def negative_loss(output, target):
    return -float(nn.functional.mse_loss(output, target))


TRAINERS = {
    "darts": (DartsTrainer, {"arc_learning_rate": 0.05}),
    "unrolled": (DartsTrainer, {"arc_learning_rate": 0.05, "unrolled": True}),
    "gates": (ProxylessTrainer, {"arc_learning_rate": 0.05}),
    "reinforce": (ProxylessTrainer, {"arc_learning_rate": 0.05, "estimator": "reinforce"}),
    "enas": (
        EnasTrainer,
        {
            "reward_function": negative_loss,
            "ctrl_steps_aggregate": 4,
            "ctrl_lr": 0.02,
            "skip_weight": 0,
            "num_samples": 20,
        },
    ),
    "single path": (SinglePathTrainer, {"num_evaluations": 16, "population": 8, "num_parents": 4}),
    "random": (RandomTrainer, {"num_samples": 32, "num_finalists": 8}),
}


def trainer_of(name, model, data, num_epochs=1, lr=0.02, **options):
    trainer_class, its_own = TRAINERS[name]
    optimizer = SGD(model.parameters(), lr, momentum=0.9)
    return trainer_class(
        model,
        loss=nn.functional.mse_loss,
        metrics=None,
        optimizer=optimizer,
        num_epochs=num_epochs,
        dataset=data,
        **{"batch_size": 16, "device": "cpu", "progress": False, **its_own, **options},
    )


# --- the distribution and its most probable decision ---------------------------------------------------------


@pytest.mark.parametrize("n_chosen", [None, (0, 1), (1, 2), (2, 3), (1, 4), (3, 4), 2])
def test_the_exported_inputs_are_the_most_probable_set_within_the_bounds(n_chosen):
    """Each input is chosen on its own with probability sigmoid(alpha); of a fixed number the largest alphas win."""
    space = SearchSpace(nn.Sequential(InputChoice(4, n_chosen, label="join")))
    generator = torch.Generator().manual_seed(0)
    for shift in (-2.0, 0.0, 2.0):
        for _ in range(20):
            alpha = torch.randn(4, generator=generator, dtype=torch.float64) + shift
            p = torch.sigmoid(alpha)
            of_set = [math.prod(float(p[i] if i in s else 1 - p[i]) for i in range(4)) for s in space["join"]]
            best = list(space["join"])[max(range(len(of_set)), key=of_set.__getitem__)]
            assert most_probable(space, {"join": alpha}) == {"join": best}
            expected = torch.softmax(alpha, -1) if n_chosen == 2 else p
            torch.testing.assert_close(probabilities(space, {"join": alpha})["join"], expected)


def test_undecided_inputs_are_not_taken():
    space = SearchSpace(nn.Sequential(InputChoice(3, None, label="any"), InputChoice(3, (1, 2), label="some")))
    assert most_probable(space, {label: torch.zeros(3) for label in space}) == {"any": [], "some": [0]}


class Bounded(nn.Module):
    def __init__(self, n_chosen, n_candidates=4):
        super().__init__()
        self.choice = InputChoice(n_candidates, n_chosen, label="join")


def controller(n_chosen):
    space = SearchSpace(Bounded(n_chosen))
    policy = EnasController(space, lstm_size=4, skip_target=0.3, tanh_constant=None).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter *= 10
    return policy


def test_within_bounds_the_controller_chooses_each_input_on_its_own_on_condition_that_they_are_kept():
    """With the same parameters the policy over any number, conditioned on the bounds, is the one within bounds."""
    bounded, unbounded = controller((1, 2)), controller(None)
    p = {str(a["join"]): math.exp(unbounded(a).log_prob.detach()) for a in unbounded.space.enumerate()}
    kept = {name: q for name, q in p.items() if 1 <= len(json.loads(name)) <= 2}
    found = {str(a["join"]): math.exp(bounded(a).log_prob.detach()) for a in bounded.space.enumerate()}
    assert found == pytest.approx({name: q / sum(kept.values()) for name, q in kept.items()}, abs=1e-12)
    assert max(found.values()) > 1.2 * min(found.values())


def test_within_bounds_the_skip_penalty_is_the_divergence_from_inputs_of_that_probability():
    policy = controller((1, 2))
    target = {s: 0.3 ** len(s) * 0.7 ** (4 - len(s)) for k in (1, 2) for s in itertools.combinations(range(4), k)}
    total, expected = sum(target.values()), 0.0
    for s, q in target.items():
        p = math.exp(policy({"join": list(s)}).log_prob.detach())
        expected += p * math.log(p / (q / total))
    assert float(policy({"join": [0]}).skip_penalty.detach()) == pytest.approx(expected, abs=1e-10)
    assert expected > 0.01


# --- searches with a planted answer --------------------------------------------------------------------------


class Skipping(nn.Module):
    """Concatenates two skips, absent ones as zeros, to what it adds up with one gain for all: the second is noise."""

    def __init__(self, n_chosen=None, reduction="concat"):
        super().__init__()
        self.skips = InputChoice(2, n_chosen, reduction, absent="zeros", label="skips")
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        skipped = self.skips([x[:, :2], x[:, 2:]])
        if isinstance(skipped, list):
            skipped = torch.cat(skipped, 1)
        return self.gain * skipped.sum(1, keepdim=True)


def planted(seed=0):
    X = torch.randn(320, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(X, X[:, :2].sum(1, keepdim=True))


@pytest.mark.parametrize("name", list(TRAINERS))
def test_each_trainer_drops_the_skip_that_does_harm_from_a_concatenation(name):
    model, held_out = Skipping(), planted(seed=1)
    num_epochs = 10 if name in ("gates", "reinforce") else 2
    trainer = trainer_of(name, model, planted(), num_epochs=num_epochs, valid_dataset=held_out)
    trainer.fit()
    assert trainer.export() == {"skips": [0]}
    X, y = held_out.tensors
    for chosen, inputs in (([], X[:, :0]), ([0], X[:, :2]), ([1], X[:, 2:]), ([0, 1], X)):
        output = freeze(model, {"skips": chosen})(X)
        torch.testing.assert_close(output, model.gain * inputs.sum(1, keepdim=True))
        loss = nn.functional.mse_loss(output, y).item()
        assert trainer.evaluate({"skips": chosen})["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("name", list(TRAINERS))
def test_absent_zeros_run_in_each_trainer_by_each_reduction(name, reduction):
    trainer = trainer_of(name, Skipping(reduction=reduction), planted())
    trainer.fit()
    trainer.space.validate(trainer.export())


@pytest.mark.parametrize("name", list(TRAINERS))
def test_each_trainer_exports_inputs_within_the_bounds(name):
    """Both inputs are wrong, and one must be taken; or both are right, and one may be."""
    data = planted()
    for n_chosen, scale in (((1, 2), 30.0), ((0, 1), 1.0)):
        model = nn.Sequential(Fork(n_chosen, scale), nn.Linear(2, 1), nn.Tanh())
        trainer = trainer_of(name, model, data, num_epochs=2)
        trainer.fit()
        assert n_chosen[0] <= len(trainer.export()["join"]) <= n_chosen[1]


class Fork(nn.Module):
    def __init__(self, n_chosen, scale):
        super().__init__()
        self.join, self.scale = InputChoice(3, n_chosen, absent="zeros", label="join"), scale

    def forward(self, x):
        return self.join([self.scale * x[:, :2], self.scale * x[:, 2:], x[:, 1:3]])


class MayBeWithout(nn.Module):
    """Handles the None that an optional input is where it is not taken."""

    def __init__(self):
        super().__init__()
        self.skip = InputChoice(1, None, label="skip")
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        y, more = x[:, :1], self.skip([x[:, 1:2]])
        return self.gain * (y if more is None else y + more)


def test_darts_decides_against_the_only_input_where_it_does_harm_and_for_it_where_it_helps():
    X = torch.randn(320, 2, generator=torch.Generator().manual_seed(1))
    for y, expected in ((X[:, :1], []), (X.sum(1, keepdim=True), [0])):
        for seed in range(3):
            model = MayBeWithout()
            trainer = trainer_of("darts", model, TensorDataset(X, y), seed=seed)
            trainer.fit()
            assert trainer.export() == {"skip": expected}
        network = freeze(model, trainer.export())
        torch.testing.assert_close(network(X), model.gain * (X if expected else X[:, :1]).sum(1, keepdim=True))


# --- what is refused, and when -------------------------------------------------------------------------------


class NeedsOne(nn.Module):
    def __init__(self, **options):
        super().__init__()
        inner = nn.Sequential(Pair(**options), nn.Linear(4, 4))
        self.op = LayerChoice({"plain": nn.Linear(4, 4), "joined": inner}, label="op")
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.op(x))


class Pair(nn.Module):
    def __init__(self, n_chosen=None, reduction="sum", absent="omitted"):
        super().__init__()
        self.join = InputChoice(2, n_chosen, reduction, absent=absent, label="join")

    def forward(self, x):
        return self.join([x, 2 * x]) * 1.0


@pytest.mark.parametrize("name", [name for name in TRAINERS if name != "gates"])
@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_does_not_bear_nothing_is_refused_by_the_choice_s_name_whatever_is_drawn_first(name, seed):
    model = NeedsOne()
    match = (
        r"choice 'join' may choose nothing and then gives None, which NeedsOne does not bear \(TypeError: .*\); "
        r"give it n_chosen=\(1, 2\) or absent='zeros', or handle None"
    )
    with pytest.raises(ChoiceError, match=match):
        trainer_of(name, model, planted(), seed=seed)
    assert isinstance(model.op, LayerChoice)
    for mended in (NeedsOne(n_chosen=(1, 2)), NeedsOne(absent="zeros")):
        trainer_of(name, mended, planted(), seed=seed)


@pytest.mark.parametrize("name", ["reinforce", "enas", "single path", "random"])
def test_a_width_that_depends_on_how_many_are_chosen_is_refused_by_the_choice_s_name(name):
    model = NeedsOne(n_chosen=(1, 2), reduction="concat")
    model.op["joined"][1] = nn.Linear(8, 4)
    match = (
        r"choice 'join' may choose 1 of its inputs and reduces them by 'concat', which NeedsOne does not bear "
        r"\(RuntimeError: .*\); give it absent='zeros', or n_chosen as a number"
    )
    with pytest.raises(ChoiceError, match=match):
        trainer_of(name, model, planted())
    mended = NeedsOne(n_chosen=(1, 2), reduction="concat", absent="zeros")
    mended.op["joined"][1] = nn.Linear(8, 4)
    trainer_of(name, mended, planted())


class BothOrOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (InputChoice(1, None, label=label) for label in "ab")
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        given = [y for y in (self.a([x]), self.b([-x])) if y is not None]
        return self.out(torch.stack(given).sum(0))


def test_choices_that_must_not_all_choose_nothing_are_named_together():
    with pytest.raises(ChoiceError, match=r"choices 'a', 'b' may all choose nothing .* BothOrOne does not bear"):
        trainer_of("random", BothOrOne(), planted())


def test_what_is_wrong_with_a_model_otherwise_is_said_in_its_own_terms():
    model = nn.Sequential(MayBeWithout(), nn.Linear(3, 1))
    with pytest.raises(RuntimeError, match="mat1 and mat2") as raised:
        trainer_of("random", model, planted())
    assert not isinstance(raised.value, ChoiceError)


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        (
            {},
            r"any number of its inputs, none included, .*absent='zeros', or n_chosen as a number or bounds .*\(1, 2\)",
        ),
        ({"n_chosen": (0, 1)}, r"0 to 1 of its inputs, none included"),
        (
            {"n_chosen": (1, 2), "reduction": "concat"},
            r"1 to 2 of its inputs, which are reduced by 'concat', .*absent='zeros', or a number n_chosen",
        ),
    ],
)
def test_gates_between_what_cannot_be_added_up_are_refused(options, mend):
    model = NeedsOne(**options)
    with pytest.raises(ChoiceError, match=f"choice 'join' takes {mend}"):
        trainer_of("gates", model, planted())
    assert isinstance(model.op, LayerChoice)


# --- the record ----------------------------------------------------------------------------------------------


def test_the_record_of_gates_has_each_input_s_probability_to_be_chosen():
    trainer = trainer_of("gates", Skipping(), planted())
    with torch.no_grad():
        trainer.alphas["skips"].copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())  # [], [0], [1], [0, 1]
    assert trainer.probabilities()["skips"] == pytest.approx([0.6, 0.7])


# --- architecture parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["darts", "gates", "reinforce"])
def test_architecture_parameters_are_of_float32_at_least_and_move_by_small_steps(name, dtype):
    """At 1 a step of 3e-4 is lost in what 16 bits round. The model computes in its own dtype."""
    X = torch.randn(128, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    model = nn.Sequential(LayerChoice([nn.Linear(4, 2), nn.Linear(4, 2)], label="op"), Fork4(), nn.Linear(2, 1)).to(
        dtype
    )
    seen = set()
    model[2].register_forward_pre_hook(lambda module, inputs: seen.update(x.dtype for x in inputs))
    trainer = trainer_of(name, model, TensorDataset(X, X[:, :1]), lr=0.01, arc_learning_rate=3e-4)
    with torch.no_grad():
        for alpha in trainer.alphas.values():
            alpha.fill_(1.0)
    trainer.fit()
    for alpha in trainer.alphas.values():
        assert alpha.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert (alpha != 1).any()
    assert seen == {dtype}
    assert {p.dtype for p in model.parameters()} == {dtype}


class Fork4(nn.Module):
    def __init__(self):
        super().__init__()
        self.join = InputChoice(2, None, "concat", absent="zeros", label="join")

    def forward(self, x):
        return self.join([x[:, :1], x[:, 1:]])


def test_the_controller_s_parameters_are_of_float32_at_least():
    torch.set_default_dtype(torch.bfloat16)
    try:
        policy = EnasController(SearchSpace(Bounded(None)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
