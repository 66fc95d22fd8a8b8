"""Plans as people write them: decisions in every form that architectures take, and mistakes named where they enter."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import supernet
from supernet import BilevelTrainer, InputChoice, LayerChoice, Supernet, freeze
from supernet.errors import ArchitectureError, ChoiceError, NonFiniteError, TrainingError, UnresolvedChoiceError
from supernet.execution import Selection
from supernet.execution.fast.candidates import Candidates
from supernet.nn import Choice
from supernet.relaxations import Relaxation
from supernet.space import Domain


class Width(Choice):
    """Multiplies by its value."""

    def domain(self):
        return Domain(str(self.label), ("single", "fourfold"), values=(1, 4))

    def resolve(self, decision):
        return Times(self.domain().normalized(decision))


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = LayerChoice({"c3": nn.Linear(4, 4), "c5": nn.Linear(4, 4), "skip": nn.Identity()}, label="a")
        self.b = LayerChoice([nn.Tanh(), nn.Identity()], label="b")
        self.w = Width(label="w")
        self.j = InputChoice(2, 1, label="j")
        self.k = InputChoice(n_chosen=2, choose_from=["x", "y", "z"], label="k")
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = self.j([self.w(self.b(self.a(x))), x])
        return self.head(self.k({"x": x, "y": h, "z": h.exp()}))


def net():
    torch.manual_seed(0)
    return Net()


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
PATH = {"a": "c3", "b": "0", "w": 4, "j": [0], "k": [0, 2]}


def trainer_of(relaxation, model=None, **config):
    model = model or net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = TensorDataset(X, torch.arange(8) % 2)
    return BilevelTrainer(
        model, cross_entropy, None, optimizer, 1, data, relaxation=relaxation, batch_size=4, device="cpu",
        progress=False, **config,
    )  # fmt: skip


class Given(Relaxation):
    """Sigmoid weights, but for what is given in the place of some."""

    instead = {}  # noqa: RUF012

    def plan(self, progress):
        return {**{label: torch.sigmoid(logits) for label, logits in self.logits.items()}, **self.instead}


# --- decisions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        {"a": 0}, {"a": np.int64(0)}, {"a": torch.tensor(0)}, {"b": 0}, {"w": 4.0}, {"w": np.int64(4)}, {"j": 0},
        {"j": np.int64(0)}, {"j": (0,)}, {"k": ["x", "z"]}, {"k": ("z", "x")}, {"k": ["x", 2]},
        {"a": Selection((0,)), "w": Selection((4,)), "j": Selection((0,)), "k": Selection((["z", "x"],))},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_takes_each_decision_that_an_architecture_takes(written):
    model = net()
    search, plan = Supernet(model).eval(), {**PATH, **written}
    architecture = {label: entry.active[0] if isinstance(entry, Selection) else entry for label, entry in plan.items()}
    assert search.space.canonical(architecture) == PATH
    assert torch.equal(search(X, plan), freeze(model, PATH).eval()(X))


def test_inputs_that_have_names_are_mixed_by_them():
    search, weights = Supernet(net()).eval(), torch.tensor([0.25, 0.75])
    x, h = X, 4 * torch.tanh(search.model.a["c3"](X))
    for active in (("z", "x"), (2, 0), ("z", 0)):
        output = search(X, {**PATH, "k": Selection(active, weights)})
        torch.testing.assert_close(output, search.model.head(0.25 * h.exp() + 0.75 * x))
    sets = Selection((["x", "y"], ["z", "y"]), torch.tensor([1.0, 0.5]), detached=1)
    torch.testing.assert_close(search(X, {**PATH, "k": sets}), search.model.head(x + h + 0.5 * (h.exp() + h)))


def test_a_trainers_pass_takes_them_too():
    trainer = trainer_of(Given)
    trainer.supernet.eval()
    written = {"a": 0, "b": 0, "w": 4, "j": 0, "k": ["z", "x"]}
    assert torch.equal(trainer.forward(X, written), freeze(trainer.model, PATH).eval()(X))


# --- mistakes ----------------------------------------------------------------------------------------------

MISTAKES = [
    ({"a": torch.ones(2)}, ChoiceError, r"'a' is given weights of shape \(2,\); .* each of its 3 .*: c3, c5, skip"),
    ({"a": torch.ones(6)}, ChoiceError, r"'a' is given weights of shape \(6,\)"),
    ({"a": torch.ones(1, 3)}, ChoiceError, r"'a' is given weights of shape \(1, 3\)"),
    ({"j": torch.ones(1, 2)}, ChoiceError, r"'j' is given weights of shape \(1, 2\)"),
    ({"a": Selection(("c3", "c5"), torch.ones(2, 1))}, ChoiceError, r"by weights of shape \(2, 1\)"),
    ({"a": Selection(("c3", "c5"), [0.5, 0.5])}, ChoiceError, r"by weights \[0.5, 0.5\]; let the plan have a tensor"),
    ({"a": Selection(("c3", "c5"), torch.ones(2), 2)}, ChoiceError, "2 options, 2 of them detached"),
    ({"a": Selection((0, -1), torch.ones(2))}, ArchitectureError, "'a' has no candidate -1; it has: c3, c5, skip"),
    ({"zzz": torch.ones(3)}, ArchitectureError, "an entry for 'zzz', but the choices of this model are: 'a', 'b'"),
    ({"a": "c7"}, ArchitectureError, "choice 'a' has no candidate 'c7'; it has: c3, c5, skip"),
    ({"a": [0.2, 0.3, 0.5]}, ArchitectureError, r"'a' is given \[0.2, 0.3, 0.5\], a list, .* torch.tensor"),
    ({"a": np.ones(3)}, ArchitectureError, r"'a' is given array.*, a ndarray, .*if these are weights"),
    ({"j": [0.2, 0.8]}, ArchitectureError, r"'j' is given \[0.2, 0.8\], a list, .*if these are weights"),
    ({"w": [torch.ones(()), torch.ones(())]}, ArchitectureError, "'w' is given .*if these are weights"),
]


@pytest.mark.parametrize(("mistake", "error", "match"), MISTAKES, ids=[str(m) for m, *_ in MISTAKES])
def test_a_mistake_is_named_by_a_supernet_by_a_trainers_pass_and_by_its_constructor(mistake, error, match):
    search = Supernet(net())
    search(X, PATH)
    with pytest.raises(error, match=match):
        search(X, {**PATH, **mistake})
    assert search._plan == PATH  # the last plan stands
    trainer = trainer_of(Given)
    with pytest.raises(error, match=match):
        trainer.forward(X, {**PATH, **mistake})
    kind = type("Mistaken", (Given,), {"instead": mistake})
    model = net()
    with pytest.raises(error, match=match):
        trainer_of(kind, model)
    assert isinstance(model.a, LayerChoice)


def test_a_plan_that_goes_wrong_later_is_refused_in_that_step():
    trainer = trainer_of(Given)
    trainer.relaxation.instead = {"a": torch.ones(2)}
    with pytest.raises(ChoiceError, match=r"'a' is given weights of shape \(2,\)"):
        trainer.fit()


def test_a_label_that_was_renamed_is_named():
    class Renamed(Given):
        def plan(self, progress):
            plan = super().plan(progress)
            return {**{label: entry for label, entry in plan.items() if label != "a"}, "A": plan["a"]}

    with pytest.raises(ArchitectureError, match="an entry for 'A', but the choices of this model are: 'a'"):
        trainer_of(Renamed)


def test_a_label_that_is_missing_is_named_beside_those_that_the_plan_has():
    search = Supernet(net())
    with pytest.raises(UnresolvedChoiceError, match="'k' has no plan to follow: the plan has an entry for 'a', 'b', "):
        search(X, {label: entry for label, entry in PATH.items() if label != "k"})


def test_a_plan_that_is_given_by_its_name_is_told_from_one_that_lacks():
    with pytest.raises(ArchitectureError, match=r"not Tensor; give it without its name: supernet\(X, plan\)"):
        Supernet(net())(X, plan=PATH)


def test_weights_that_are_not_finite_are_named_where_the_loss_is_not():
    trainer = trainer_of(Given)
    trainer.relaxation.instead = {"a": torch.full((3,), torch.nan)}
    with pytest.raises(NonFiniteError, match=r"the loss on the valid part is not finite .* plan has for choice 'a'"):
        trainer.fit()


# --- the supernet around -----------------------------------------------------------------------------------


def test_freeze_takes_the_model_of_a_supernet():
    search = Supernet(net()).eval()
    for function in (freeze, supernet.space.freeze):
        network = function(search, PATH)
        assert type(network).__name__ == type(function(search.model, PATH)).__name__
        assert torch.equal(network.eval()(X), search(X, PATH))


def test_a_model_without_choices_is_refused():
    with pytest.raises(TrainingError, match="Linear has no choices that a plan could decide; mark some"):
        Supernet(nn.Linear(2, 2))


def test_a_choice_of_ones_own_is_explained_by_what_it_takes():
    search = Supernet(net())
    search(X, PATH)
    assert "w:\n  Width (1 | 4): what the decision makes of it, as it is" in search.explain()
    search(X, {**PATH, "w": torch.tensor([0.5, 0.5])})
    assert "w:\n  Width (1 | 4): what each decision makes of it is mixed, as it is" in search.explain()


def test_what_is_explained_of_passes_under_autocast_is_what_runs(monkeypatch):
    calls = []
    fast_way = Candidates.weighted_sum
    monkeypatch.setattr(Candidates, "weighted_sum", lambda *args: calls.append(1) or fast_way(*args))
    search, plan = Supernet(net()), {**PATH, "a": torch.tensor([0.2, 0.3, 0.5])}
    with torch.autocast("cpu", torch.bfloat16):
        search(X, plan)
        assert not calls
        assert "a:\n  candidate by candidate, as they are: under autocast\n" in search.explain()
    search(X, plan)
    assert calls
    assert "  c3: Linear\n" in search.explain()
    assert "\n  under autocast candidate by candidate, as they are\n" in search.explain()


def test_a_trainer_of_mixed_precision_explains_and_logs_what_runs(capsys, caplog):
    caplog.set_level("INFO", "supernet")
    for precision, expected, count in (("bf16-mixed", "as they are: under autocast", 0), ("32-true", "c3: Linear", 5)):
        trainer_of(Given, precision=precision).explain()
        assert expected in capsys.readouterr().out
        assert f"{count} of the 5 candidates in 2 choices run the fast way" in caplog.text


# --- the trial of the fast way -----------------------------------------------------------------------------


class RaisesAt(nn.Module):
    """Raises in calls of these numbers, of which the trial of the fast way has some."""

    def __init__(self, *numbers):
        super().__init__()
        self.op = LayerChoice({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, label="op")
        self.calls, self.numbers = 0, numbers

    def forward(self, x):
        self.calls += 1
        if self.calls in self.numbers:
            raise RuntimeError(f"call {self.calls}")
        return self.op(x)


def test_an_error_in_the_trial_of_the_fast_way_is_passed_on_where_the_plain_way_raises_too(caplog):
    """In eval form a trial is one call: the plain way, and then the fast way."""
    plan = {"op": torch.tensor([0.5, 0.5])}
    with pytest.raises(RuntimeError, match="call 3"):
        Supernet(RaisesAt(2, 3)).eval()(X, plan)
    assert not caplog.text
    search = Supernet(RaisesAt(2)).eval()
    assert search(X, plan).shape == X.shape
    assert "RaisesAt raises RuntimeError ('call 2') the fast way" in caplog.text
    assert not search.model.op.fast
