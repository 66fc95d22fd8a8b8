"""ProxylessNAS against its mathematics (arXiv 1812.00332): gates by enumeration, and what they leave alone."""

import itertools

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import InputChoice, LayerChoice, ProxylessTrainer
from supernet.errors import ChoiceError, TrainingError
from supernet.execution import LayerSlot, Plan, Selection
from supernet.relaxations import binary_gates

ALPHA = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64)


def estimate(alpha, costs, drawn, active):
    """The estimator's gradient where the loss is `sum_k g_k costs_k`, linear in the gates."""
    alpha = alpha.clone().requires_grad_()
    (binary_gates(alpha, drawn, active) * costs[list(drawn)]).sum().backward()
    return alpha.grad


def exact_gradient(alpha, costs):
    alpha = alpha.clone().requires_grad_()
    (torch.softmax(alpha, -1) * costs).sum().backward()
    return alpha.grad


def test_gates_are_exactly_one_and_zero_and_their_gradient_is_that_of_the_formula():
    """dL/dalpha_i = sum_j dL/dg_j p_j (delta_ij - p_i)."""
    alpha = ALPHA.float().requires_grad_()
    gates = binary_gates(alpha, [0, 1, 2], 1)
    assert gates.tolist() == [0.0, 1.0, 0.0]
    d = torch.tensor([2.0, -1.0, 0.5])
    gates.backward(d)
    p = torch.softmax(alpha.detach(), -1)
    expected = [sum(d[j] * p[j] * (float(i == j) - p[i]) for j in range(3)) for i in range(3)]
    torch.testing.assert_close(alpha.grad, torch.stack(expected))


def test_over_all_gates_the_estimator_averages_to_the_true_gradient_of_a_linear_loss():
    costs = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64)
    p = torch.softmax(ALPHA, -1)
    average = sum(p[active] * estimate(ALPHA, costs, [0, 1, 2], active) for active in range(3))
    torch.testing.assert_close(average, exact_gradient(ALPHA, costs), atol=1e-12, rtol=0)


def two_path_average(alpha, costs):
    """Enumerate both draws and the active one, as the trainer makes them."""
    p = torch.softmax(alpha, -1)
    total = torch.zeros_like(alpha)
    for i, j in itertools.permutations(range(len(alpha)), 2):
        of_pair = p[i] * p[j] / (1 - p[i])
        q = p[i] / (p[i] + p[j])
        for active, weight in ((0, q), (1, 1 - q)):
            order = [i, j] if active == 0 else [j, i]
            total += of_pair * weight * estimate(alpha, costs, order, 0)
    return total


def test_over_two_gates_the_estimator_equals_its_own_formula():
    """sum over pairs of P(pair) q_i q_j (c_i - c_j), q the probabilities among the two."""
    costs = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64)
    p = torch.softmax(ALPHA, -1)
    expected = torch.zeros_like(ALPHA)
    for i, j in itertools.combinations(range(3), 2):
        of_pair = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        slope = of_pair * p[i] * p[j] / (p[i] + p[j]) ** 2 * (costs[i] - costs[j])
        expected[i] += slope
        expected[j] -= slope
    torch.testing.assert_close(two_path_average(ALPHA, costs), expected, atol=1e-12, rtol=0)


def test_the_bias_of_two_gates_is_the_one_that_the_docstring_names():
    """With three candidates of equal probability the factor of (c_i - c_j) is 1/12 where 1/9 is exact."""
    alpha, costs = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert two_path_average(alpha, costs)[1].item() == pytest.approx(-1 / 12, abs=1e-12)
    assert exact_gradient(alpha, costs)[1].item() == pytest.approx(-1 / 9, abs=1e-12)
    assert "1/12 where 1/9 is exact" in ProxylessTrainer.__doc__


# --- gates in a network --------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        inner = LayerChoice({"tanh": nn.Tanh(), "relu": nn.ReLU()}, label="inner")
        candidates = {
            "flat": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
            "deep": nn.Sequential(nn.Linear(3, 4), inner, nn.BatchNorm1d(4)),
            "other": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(dropout)),
        }
        self.op = LayerChoice(candidates, label="op")
        self.skip = InputChoice(3, 2, label="skip")
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.op(x)
        return self.head(self.skip([x, x.sin(), x.cos()]))


def small_trainer(model=None, **options):
    torch.manual_seed(0)
    model = Net().double() if model is None else model
    data = TensorDataset(torch.randn(32, 3, dtype=torch.float64), torch.randint(2, (32,)))
    options = {"batch_size": 8, "num_epochs": 1, "optimizer": SGD(model.parameters(), 0.1), **options}
    return ProxylessTrainer(model, loss=nn.functional.cross_entropy, metrics=None, dataset=data, **options)


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, dtype=torch.float64, generator=generator), torch.arange(8) % 2


def test_a_gates_gradient_is_that_of_finite_differences_of_the_gate():
    """dL/dg_j = <dL/dm, o_j(x)>, for the inactive candidate too, which runs without a graph."""
    torch.manual_seed(0)
    choice = LayerChoice({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}, label="op").double()
    plan = Plan()
    gated, x = LayerSlot(choice, plan), torch.randn(5, 3, dtype=torch.float64)

    def loss(g):
        plan["op"] = Selection(("b", "a"), g, detached=1)
        return gated(x).square().sum()

    g = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    loss(g).backward()
    for j in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[j] = 1e-6
        difference = (loss((g + step).detach().requires_grad_()) - loss((g - step).detach().requires_grad_())) / 2e-6
        assert g.grad[j].item() == pytest.approx(difference.item(), rel=1e-7)
    assert choice["a"].weight.grad is None
    assert choice["b"].weight.grad is not None


def count_runs(model):
    runs = {}
    for name, candidate in model.op.candidates.items():
        candidate.register_forward_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    return runs


def test_an_architecture_step_runs_two_candidates_and_a_weight_step_one():
    trainer = small_trainer()
    runs = count_runs(trainer.model)
    trainer.train_architecture(*batch())
    assert sorted(runs.values()) == [1, 1]
    runs.clear()
    trainer.train_model_weight(*batch())
    assert list(runs.values()) == [1]


def saved_bytes(step):
    storages = {}  # alive until they are counted, or another one could get the address of one that is gone

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storage.nbytes() for storage in storages.values())


def test_no_more_than_two_candidates_are_held_however_many_there_are():
    def held(count):
        class Many(nn.Module):
            def __init__(self):
                super().__init__()
                made = [nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)) for _ in range(count)]
                self.op = LayerChoice(made, label="op")
                self.first, self.head = nn.Linear(3, 64), nn.Linear(64, 2)

            def forward(self, x):
                return self.head(self.op(self.first(x)))

        torch.manual_seed(0)
        trainer = small_trainer(Many().double())
        X, y = torch.randn(500, 3, dtype=torch.float64), torch.zeros(500, dtype=torch.long)
        return saved_bytes(lambda: trainer.train_architecture(X, y))

    assert held(8) == pytest.approx(held(2), rel=0.01)


def test_an_architecture_step_moves_alphas_only():
    trainer = small_trainer()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    alphas = {label: alpha.detach().clone() for label, alpha in trainer.alphas.items()}
    trainer.train_architecture(*batch())
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in trainer.model.parameters())
    assert any(not torch.equal(alpha, alphas[label]) for label, alpha in trainer.alphas.items())


def test_the_probabilities_of_what_was_not_drawn_stay_to_1e_12():
    trainer = small_trainer(arc_learning_rate=0.1)
    moved = 0
    for seed in range(6):
        before = {label: torch.softmax(alpha.detach(), -1) for label, alpha in trainer.alphas.items()}
        trainer.train_architecture(*batch(seed))
        for label, alpha in trainer.alphas.items():
            after = torch.softmax(alpha.detach(), -1)
            for k in set(range(len(after))) - set(trainer.relaxation.drawn[label]):
                assert after[k].item() == pytest.approx(before[label][k].item(), abs=1e-12)
            moved += not torch.allclose(after, before[label])
    assert moved >= 12  # of op, and of skip; inner is reached in some


def test_a_weight_step_touches_the_active_candidate_only():
    trainer = small_trainer()
    before = {name: value.clone() for name, value in trainer.model.op.state_dict().items()}
    runs = count_runs(trainer.model)
    trainer.train_model_weight(*batch())
    changed = {
        name.split(".")[0] for name, v in trainer.model.op.state_dict().items() if not torch.equal(v, before[name])
    }
    assert changed == set(runs)


def test_the_gradient_of_a_step_is_that_of_a_hand_written_two_path_network():
    """With both of two candidates drawn: gates (1, 0), p (delta - p) by hand, the inactive one detached."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = LayerChoice({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}, label="op")

        def forward(self, x):
            return self.op(x)

    trainer = small_trainer(Two().double())
    X, y = batch()
    outputs = {name: candidate(X).detach() for name, candidate in trainer.model.op.candidates.items()}
    alpha = trainer.alphas["op"].detach().clone()
    trainer.train_architecture(X, y)
    names = ["a", "b"]
    active = runs_first = trainer.supernet._plan["op"].active[0]
    m = outputs[active].clone().requires_grad_()
    nn.functional.cross_entropy(m, y).backward()
    d = [float((m.grad * outputs[name]).sum()) for name in names]
    p = torch.softmax(alpha, -1).tolist()
    expected = [sum(d[j] * p[j] * (float(i == j) - p[i]) for j in range(2)) for i in range(2)]
    assert trainer.alphas["op"].grad.tolist() == pytest.approx(expected, rel=1e-9)
    assert runs_first in names


def test_inner_choices_of_an_inactive_candidate_run_one_path_and_get_no_gradient():
    trainer = small_trainer()
    gates = {
        "op": Selection(("flat", "deep"), binary_gates(trainer.alphas["op"], [0, 1], 0), 1),
        "inner": Selection(("tanh", "relu"), binary_gates(trainer.alphas["inner"], [0, 1], 0), 1),
        "skip": Selection(([0, 1], [1, 2]), binary_gates(trainer.alphas["skip"], [0, 2], 0), 1),
    }
    runs = []
    inner = trainer.model.op.candidates["deep"][1]
    for name, candidate in inner.candidates.items():
        candidate.register_forward_hook(lambda *_, name=name: runs.append(name))
    X, y = batch()
    nn.functional.cross_entropy(trainer.forward(X, gates), y).backward()
    assert runs == ["tanh"]
    assert trainer.alphas["inner"].grad is None
    assert trainer.alphas["op"].grad[2] == 0
    assert trainer.alphas["skip"].grad[[0, 2]].abs().min() > 0


# --- cost, REINFORCE, and the rest ---------------------------------------------------------------------------


def test_the_cost_of_a_path_is_that_of_what_it_reaches():
    cost = {"op": {"flat": 1.0, "deep": 10.0, "other": 100.0}, "inner": {"tanh": 0.25, "relu": 0.5}}
    trainer = small_trainer(cost=cost)
    assert trainer.cost_of({"op": "deep", "inner": "relu", "skip": [0, 1]}) == 10.5
    assert trainer.cost_of({"op": "flat", "skip": [0, 1]}) == 1.0


def test_the_gates_gradient_of_the_cost_averages_to_that_of_the_expected_cost():
    """Two candidates with an inner choice: over all gates the estimator is exact, for cost is linear in each gate."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            inner = LayerChoice({"tanh": nn.Tanh(), "relu": nn.ReLU()}, label="inner")
            self.op = LayerChoice({"flat": nn.Linear(3, 2), "deep": nn.Sequential(nn.Linear(3, 2), inner)}, label="op")

        def forward(self, x):
            return self.op(x)

    cost = {"op": {"flat": 3.0, "deep": 1.0}, "inner": {"tanh": 0.5, "relu": 4.0}}
    trainer = small_trainer(Two().double(), cost=cost, cost_weight=2.0)
    with torch.no_grad():
        trainer.alphas["op"].copy_(torch.tensor([0.4, -0.3]))
        trainer.alphas["inner"].copy_(torch.tensor([0.1, 0.6]))
    alphas = list(trainer.alphas.values())
    p, q = (torch.softmax(alpha, -1) for alpha in alphas)
    table = cost["op"]["flat"] * p[0] + p[1] * (cost["op"]["deep"] + q[0] * 0.5 + q[1] * 4.0)
    exact = torch.autograd.grad(2.0 * table, alphas)
    average = [torch.zeros_like(alpha) for alpha in alphas]
    for i, j in itertools.product(range(2), range(2)):
        orders = {"op": [i, 1 - i], "inner": [j, 1 - j]}
        gates = {
            label: Selection(
                tuple(trainer.relaxation.decisions[label][k] for k in order),
                binary_gates(trainer.alphas[label], order, 0),
                detached=1,
            )
            for label, order in orders.items()
        }
        found = torch.autograd.grad(trainer._term_of_cost(trainer.relaxation, gates, 0.0), alphas, allow_unused=True)
        for total, g in zip(average, found, strict=True):
            if g is not None:
                total += (p[i] * q[j]).detach() * g
    for one, other in zip(average, exact, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_a_cost_pulls_the_search_to_the_cheaper_of_two_equal_candidates():
    class Equal(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = LayerChoice({"dear": nn.Identity(), "cheap": nn.Identity()}, label="op")
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.op(x))

    for estimator in ("gates", "reinforce"):
        trainer = small_trainer(
            Equal().double(),
            cost={"op": {"dear": 5.0, "cheap": 1.0}},
            arc_learning_rate=0.1,
            num_epochs=12,
            estimator=estimator,
        )
        trainer.fit()
        assert trainer.probabilities()["op"][1] > 0.6, estimator


@pytest.mark.parametrize("baseline", [None, 2.0])
def test_reinforce_averages_to_the_gradient_of_the_expected_reward(baseline):
    """sum_a p(a) (R(a) - b) grad log p(a), a over all architectures, nested ones counted as they are reached."""
    trainer = small_trainer(estimator="reinforce", cost={"op": {"flat": 1.0, "deep": -2.0, "other": 0.5}})
    distribution, alphas = trainer.relaxation, list(trainer.alphas.values())
    with torch.no_grad():
        for alpha in alphas:
            alpha.copy_(torch.linspace(-0.5, 0.7, len(alpha)))
    expected, estimate_ = 0.0, [torch.zeros_like(alpha) for alpha in alphas]
    for k, architecture in enumerate(trainer.space.enumerate()):
        log_prob = distribution.log_prob(architecture)
        reward = float(k % 5) - trainer.cost_of(architecture)
        expected = expected + log_prob.exp() * reward
        found = torch.autograd.grad(
            (reward - (baseline or 0.0)) * log_prob, alphas, allow_unused=True, retain_graph=True
        )
        for total, g in zip(estimate_, found, strict=True):
            if g is not None:
                total += log_prob.exp().detach() * g
    p = [float(distribution.log_prob(a).detach().exp()) for a in trainer.space.enumerate()]
    assert sum(p) == pytest.approx(1, abs=1e-12)
    for one, other in zip(estimate_, torch.autograd.grad(expected, alphas), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_a_reinforce_step_has_the_advantage_over_the_baseline_before_it():
    rewards = iter([1.0, 5.0])
    trainer = small_trainer(estimator="reinforce", reward_function=lambda output, y: next(rewards), baseline_decay=0.5)
    trainer.train_architecture(*batch())
    assert all(float(alpha.grad.abs().sum()) == 0 for alpha in trainer.alphas.values() if alpha.grad is not None)
    before = {label: alpha.detach().clone() for label, alpha in trainer.alphas.items()}
    drawn = []
    sample = trainer.relaxation.sample
    trainer.relaxation.sample = lambda: drawn.append(sample()) or drawn[-1]
    trainer.train_architecture(*batch())
    for label, decision in drawn[0].items():
        hot = torch.zeros_like(before[label])
        hot[trainer.relaxation.decisions[label].index(decision)] = 1
        expected = -4.0 * (hot - torch.softmax(before[label], -1))
        torch.testing.assert_close(trainer.alphas[label].grad, expected)
    assert trainer.baseline == 3.0


def test_warm_up_trains_weights_on_uniform_paths_and_leaves_the_alphas():
    trainer = small_trainer(warmup_epochs=1, num_epochs=1)
    before = {label: alpha.detach().clone() for label, alpha in trainer.alphas.items()}
    trainer.fit()
    for label, alpha in trainer.alphas.items():
        assert torch.equal(alpha, before[label])


def test_default_architecture_optimizer_is_that_of_the_paper():
    (group,) = small_trainer().architecture_optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-3, (0.0, 0.999), 0)


def test_export_names_the_set_of_inputs_of_the_largest_alpha():
    trainer = small_trainer()
    with torch.no_grad():
        trainer.alphas["op"].copy_(torch.tensor([0.0, 2.0, 1.0]))
        trainer.alphas["skip"].copy_(torch.tensor([0.0, 3.0, 1.0]))  # [0, 1], [0, 2], [1, 2]
        trainer.alphas["inner"].copy_(torch.tensor([0.0, 1.0]))
    assert trainer.export() == {"op": "deep", "inner": "relu", "skip": [0, 2]}


def test_the_record_has_a_distribution_over_inputs_where_alphas_belong_to_sets():
    trainer = small_trainer()
    with torch.no_grad():
        trainer.alphas["skip"].copy_(torch.tensor([0.2, 0.5, 0.3]).log())  # [0, 1], [0, 2], [1, 2]
    assert trainer.probabilities()["skip"] == pytest.approx([0.35, 0.25, 0.4])


def test_what_has_no_meaning_is_refused_at_construction_and_the_model_is_as_it_was():
    class Any(nn.Module):
        def __init__(self, n_candidates, n_chosen):
            super().__init__()
            self.choice = InputChoice(n_candidates, n_chosen, label="some")
            self.head = nn.Linear(3, 2)

    for arguments, message in (
        ((3, None), "choice 'some' takes any number of its inputs, none included"),
        ((20, 10), "choice 'some' has 184,756 sets of 10 inputs"),
    ):
        model = Any(*arguments).double()
        with pytest.raises(ChoiceError, match=message):
            small_trainer(model)
        assert isinstance(model.choice, InputChoice)
    for options, message in (
        (
            {"cost": {"skip": {"0": 1.0}}},
            "cost names 'skip', which is no choice of one option in this space; it has: op, inner",
        ),
        (
            {"cost": {"op": {"flat": 1.0}}},
            "the cost of choice 'op' is given for 'flat'; give a number for each of 'flat', 'deep'",
        ),
        ({"estimator": "straight"}, "estimator is 'gates' or 'reinforce', not 'straight'"),
        ({"reward_function": max}, "a reward_function is what estimator='reinforce' takes"),
    ):
        with pytest.raises(TrainingError, match=message):
            small_trainer(**options)
