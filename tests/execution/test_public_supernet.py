"""`Supernet` in a loop of one's own: without a trainer, without Fabric."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset
from ways import take_way

import supernet
from supernet import DartsTrainer, InputChoice, LayerChoice, Supernet, freeze, restore
from supernet.errors import (
    AlreadyReplacedError,
    ArchitectureError,
    ChoiceError,
    TrainingError,
    UnresolvedChoiceError,
)
from supernet.execution import Selection
from supernet.execution.fast.candidates import Candidates


class Net(nn.Module):
    """Has a child that is called as the supernet calls the model itself, and a choice in a candidate."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice({"tanh": nn.Tanh(), "linear": nn.Linear(4, 4)}, label="inner")
        self.scale = nn.Parameter(torch.ones(()))
        self.model = nn.ModuleDict({"scale": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)})
        self.norm = nn.BatchNorm1d(4)
        self.op = LayerChoice(
            {"linear": nn.Linear(4, 4), "deep": nn.Sequential(inner, nn.Dropout(0.2)), "skip": nn.Identity()},
            label="op",
        )
        self.join = InputChoice(2, 1, label="join")
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = self.norm(self.scale * self.model["norm"](self.model["scale"](x)))
        return self.head(self.join([self.op(h), h]))


PATH = {"op": "deep", "inner": "linear", "join": [0]}


def net():
    torch.manual_seed(0)
    return Net()


def mixture(requires_grad=False):
    numbers = {"op": [0.2, 0.3, 0.5], "inner": [0.6, 0.4], "join": [0.7, 0.3]}
    return {label: torch.tensor(weights, requires_grad=requires_grad) for label, weights in numbers.items()}


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 2


# --- what runs ---------------------------------------------------------------------------------------------


def test_an_architecture_runs_as_the_frozen_network_does():
    model = net()
    search = Supernet(model).eval()
    assert search.space.keys() == {"op", "inner", "join"} and search.model is model
    for architecture in (PATH, {"op": "skip", "join": [0]}, {"op": "linear", "join": [1]}):
        assert torch.equal(search(X, architecture), freeze(model, architecture).eval()(X))


def test_a_mixture_is_the_weighted_sum_by_hand_and_a_selection_that_of_some():
    search, plan = Supernet(net()).eval(), mixture()
    m = search.model
    h = m.norm(m.scale * m.model["norm"](m.model["scale"](X)))
    op, inner = m.op.candidates, m.op.candidates["deep"][0].candidates
    deep = 0.6 * torch.tanh(h) + 0.4 * inner["linear"](h)
    expected = m.head(0.7 * (0.2 * op["linear"](h) + 0.3 * deep + 0.5 * h) + 0.3 * h)
    torch.testing.assert_close(search(X, plan), expected)
    some = {**plan, "op": Selection(("skip", "linear"), torch.tensor([0.9, 0.1]))}
    torch.testing.assert_close(search(X, some), m.head(0.7 * (0.9 * h + 0.1 * op["linear"](h)) + 0.3 * h))


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = LayerChoice({"a": nn.Linear(3, 3), "b": nn.Identity()}, label="op")

    def forward(self, x, factor, *, shift, flag=False):
        return factor * self.op(x) + shift + (1 if flag else 0)


def test_all_arguments_but_the_plan_go_to_the_model():
    model, x = Several(), torch.randn(2, 3)
    search = Supernet(model)
    expected = 2 * model.op["a"](x) + 5 + 1
    assert torch.equal(search(x, 2, {"op": "a"}, shift=5, flag=True), expected)
    expected = 3 * (0.25 * model.op["a"](x) + 0.75 * x) + 1
    torch.testing.assert_close(search(x, 3, {"op": torch.tensor([0.25, 0.75])}, shift=1), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_fast_way_gives_what_candidate_by_candidate_does_with_its_gradients(training, monkeypatch):
    calls = []
    fast_way = Candidates.weighted_sum
    monkeypatch.setattr(Candidates, "weighted_sum", lambda *args: calls.append(1) or fast_way(*args))
    found = []
    for fast in (True, False):
        search, plan = Supernet(net().double()).train(training), mixture(requires_grad=True)
        plan = {label: weights.detach().double().requires_grad_() for label, weights in plan.items()}
        x = X.double()
        search(x, plan)  # the first pass settles the way
        search.load_state_dict(net().double().state_dict())
        assert all(slot.fast for _, slot in search.replaced)
        take_way(search, fast)
        calls.clear()
        torch.manual_seed(2)
        output = search(x, plan)
        assert bool(calls) == fast
        gradients = torch.autograd.grad(
            output.square().sum(), [*plan.values(), *search.parameters()], allow_unused=True
        )
        found.append((output, gradients, dict(search.named_buffers())))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("plan", [PATH, mixture()], ids=["path", "mixture"])
def test_the_first_pass_leaves_no_trace_of_what_it_tries(plan):
    search, twin = Supernet(net()), Supernet(net(), example=(X, plan))
    outputs = []
    for one in (search, twin):
        torch.manual_seed(3)
        outputs.append(one(X, plan))
        outputs.append(torch.rand(1))
        outputs += one.state_dict().values()
        assert all(p.grad is None for p in one.parameters()) and all(m.training for m in one.modules())
    half = len(outputs) // 2
    assert all(map(torch.equal, outputs[:half], outputs[half:]))
    assert int(search.model.norm.num_batches_tracked) == 1


# --- a loop of one's own ------------------------------------------------------------------------------------


def test_a_step_of_darts_in_a_loop_of_ones_own_is_the_trainers_bit_for_bit():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    data = TensorDataset(X, Y)
    trainer = DartsTrainer(model, cross_entropy, None, optimizer, 1, data, batch_size=4, device="cpu", progress=False)
    alphas = {label: alpha.detach().clone().requires_grad_() for label, alpha in trainer.alphas.items()}
    ours = Supernet(net())
    theirs = trainer.supernet
    sgd = torch.optim.SGD(ours.parameters(), 0.1, momentum=0.9)
    adam = torch.optim.Adam(alphas.values(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def plan():
        return {label: torch.softmax(alpha, -1) for label, alpha in alphas.items()}

    ours(X[:4], plan())  # what is tried is tried by now, as the trainer has done
    ours.load_state_dict(net().state_dict())
    ours.train()
    for step in range(2):
        torch.manual_seed(step)
        trainer.train_step(X[:4], Y[:4], X[4:], Y[4:])
        torch.manual_seed(step)
        with ours.frozen_weights():
            adam.zero_grad()
            cross_entropy(ours(X[4:], plan()), Y[4:]).backward()
            adam.step()
        sgd.zero_grad()
        with torch.no_grad():
            held = plan()
        cross_entropy(ours(X[:4], held), Y[:4]).backward()
        nn.utils.clip_grad_norm_(ours.parameters(), 5.0)
        sgd.step()
    assert all(torch.equal(trainer.alphas[label], alpha) for label, alpha in alphas.items())
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_frozen_weights_get_no_gradient_and_running_statistics_stay():
    search, plan = Supernet(net()), mixture(requires_grad=True)
    before = copy.deepcopy(search.state_dict())
    with search.frozen_weights():
        search(X, plan).sum().backward()
    assert all(p.grad is None and p.requires_grad for p in search.parameters())
    assert all(weights.grad is not None for weights in plan.values())
    assert all(map(torch.equal, before.values(), search.state_dict().values()))
    search(X, plan).sum().backward()
    assert all(p.grad is not None for p in search.parameters())
    assert not torch.equal(before["norm.running_mean"], search.state_dict()["norm.running_mean"])


def test_a_copy_is_a_supernet_of_its_own():
    search = Supernet(net()).eval()
    expected = search(X, PATH)
    other = copy.deepcopy(search)
    with torch.no_grad():
        for p in search.parameters():
            p.zero_()
    assert torch.equal(other(X, PATH), expected)
    assert other.state_dict().keys() == search.state_dict().keys()
    assert search._plan is not other._plan and all(slot.plan is other._plan for _, slot in other.replaced)


def test_it_runs_under_autocast_and_out_of_it():
    search, plan = Supernet(net()).eval(), mixture(requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        low = search(X, plan)
    assert low.dtype == torch.bfloat16
    low.float().sum().backward()
    assert plan["op"].grad is not None
    torch.testing.assert_close(low.float(), search(X, plan), rtol=0.05, atol=0.05)


def test_it_runs_without_gradients_and_in_inference_mode():
    search, plan = Supernet(net()).eval(), mixture()
    with torch.inference_mode():
        first = search(X, plan)
    with torch.no_grad():
        torch.testing.assert_close(search(X, plan), first)


def test_ddp_may_stand_around_it(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        alone = Supernet(net()).eval()
        together = DistributedDataParallel(Supernet(net()).eval(), find_unused_parameters=True)
        weights = mixture(requires_grad=True)
        assert list(together.state_dict()) == [f"module.{name}" for name in net().state_dict()]
        output = together(X, weights)
        assert torch.equal(output, alone(X, mixture()))
        output.sum().backward()
        assert weights["op"].grad is not None and together.module.model.head.weight.grad is not None
        saved = {f"module.{name}": torch.zeros_like(t) for name, t in net().state_dict().items()}
        together.load_state_dict(saved)
        assert not any(t.any() for t in together.module.model.state_dict().values())
    finally:
        torch.distributed.destroy_process_group()


# --- state -------------------------------------------------------------------------------------------------


def test_its_state_is_that_of_the_model_as_written_both_ways_and_strictly():
    as_written = net()
    search = Supernet(net())
    assert list(search.state_dict()) == list(as_written.state_dict())
    with torch.no_grad():
        for p in search.parameters():
            p.add_(1)
    file = io.BytesIO()
    torch.save(search.state_dict(), file)
    file.seek(0)
    as_written.load_state_dict(torch.load(file), strict=True)
    for name, tensor in as_written.state_dict().items():
        assert torch.equal(tensor, search.model.state_dict()[name])
    back = Supernet(net())
    back.load_state_dict(as_written.state_dict(), strict=True)
    for one, other in zip(back.model.parameters(), search.model.parameters(), strict=True):
        assert torch.equal(one, other)
    restore(search.model)
    as_written.load_state_dict(search.model.state_dict(), strict=True)


def test_what_is_missing_or_unexpected_is_named_as_in_the_model_as_written():
    search, state = Supernet(net()), net().state_dict()
    state["more.weight"] = state.pop("head.bias")
    missing, unexpected = search.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["head.bias"], ["more.weight"])
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "head.bias"'):
        search.load_state_dict(state)


class Versioned(nn.Linear):
    _version = 3
    seen = None

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        self.seen = local_metadata.get("version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_versions_of_modules_go_along():
    def versioned():
        return nn.Sequential(LayerChoice({"a": Versioned(2, 2), "b": nn.Identity()}, label="op"), Versioned(2, 2))

    written, search = versioned(), Supernet(versioned())
    search.load_state_dict(written.state_dict())
    assert search.model[1].seen == search.model[0]["a"].seen == 3
    written.load_state_dict(search.state_dict())
    assert written[1].seen == written[0]["a"].seen == 3


# --- errors ------------------------------------------------------------------------------------------------


def test_a_model_whose_choices_run_already_is_refused_and_stays_as_it_is():
    search = Supernet(net())
    with pytest.raises(AlreadyReplacedError, match="restore"):
        Supernet(search.model)
    assert search(X, PATH).shape == (8, 2)
    restore(search.model)
    assert isinstance(search.model.op, LayerChoice)
    Supernet(search.model)


@pytest.mark.parametrize(
    ("plan", "error", "match"),
    [
        (
            {**PATH, "other": "a"},
            ArchitectureError,
            "an entry for 'other', but the choices of this model are: 'op', 'inner'",
        ),
        ({**PATH, "op": "conv"}, ArchitectureError, "choice 'op' has no candidate 'conv'; it has: linear, deep, skip"),
        ({**PATH, "join": [0, 1]}, ArchitectureError, "choice 'join' takes 1 inputs, not 2"),
        ({**PATH, "op": torch.ones(2)}, ChoiceError, r"'op' is given weights of shape \(2,\); .* linear, deep, skip"),
        ({**PATH, "op": torch.ones(3, 1)}, ChoiceError, r"'op' is given weights of shape \(3, 1\)"),
        (
            {**PATH, "op": Selection(("skip", "deep"), torch.ones(3))},
            ChoiceError,
            "'op' is to run 2 options by 3 weights",
        ),
        ({**PATH, "op": Selection(("skip", "deep"))}, ChoiceError, "'op' is to run 2 options, 'skip', 'deep', but"),
        ({"op": "deep", "join": [0]}, UnresolvedChoiceError, "choice 'inner' has no plan to follow"),
        (None, ArchitectureError, "the last positional argument is the plan, label -> decision, not NoneType"),
    ],
)
def test_a_plan_that_cannot_run_is_refused_by_name(plan, error, match):
    search = Supernet(net())
    search(X, {"op": "skip", "join": [1]})
    before = copy.deepcopy(search.state_dict())
    with pytest.raises(error, match=match):
        search(X, plan)
    if error is not UnresolvedChoiceError:
        assert all(map(torch.equal, before.values(), search.state_dict().values()))


def test_an_example_is_the_arguments_of_a_pass():
    with pytest.raises(TrainingError, match=r"example is a tuple of arguments, the plan last, not a Tensor; give"):
        Supernet(net(), example=X)
    model = net()
    with pytest.raises(ArchitectureError, match="has no candidate 'conv'"):
        Supernet(model, example=(X, {**PATH, "op": "conv"}))
    assert isinstance(model.op, LayerChoice)


class NeedsItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = LayerChoice({"relu": nn.ReLU(inplace=True), "skip": nn.Identity()}, label="op")

    def forward(self, x):
        h = x + 0
        return self.op(h) + h


class BearsNoNothing(nn.Module):
    def __init__(self):
        super().__init__()
        self.join = InputChoice(2, None, label="join")

    def forward(self, x):
        return self.join([x, x]) + 1


def test_what_a_pass_shows_to_be_wrong_is_said_at_the_first():
    search = Supernet(NeedsItsInput())
    search(X, {"op": "relu"})
    with pytest.raises(ChoiceError, match="candidate 'relu' of choice 'op' changes its input in place, and the model"):
        search(X, {"op": torch.ones(2)})
    with pytest.raises(ChoiceError, match="choice 'join' may choose nothing and then gives None, which"):
        Supernet(BearsNoNothing(), example=(X, {"join": [0]}))


def test_any_supernet_runs_any_plan_also_a_trainers():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = DartsTrainer(model, cross_entropy, None, optimizer, 1, TensorDataset(X, Y), batch_size=4, progress=False)
    trainer.supernet.eval()
    assert torch.equal(trainer.supernet(X, PATH), freeze(model, PATH).eval()(X))
    torch.testing.assert_close(trainer.supernet(X, mixture()), Supernet(net()).eval()(X, mixture()))


def test_how_choices_run_is_explained():
    search = Supernet(net(), example=(X, mixture()))
    assert "op:\n" in search.explain() and "linear" in search.explain()
    assert supernet.Supernet is supernet.execution.Supernet is Supernet
