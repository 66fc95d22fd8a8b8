"""ENAS against its mathematics (arXiv 1802.03268): the controller by enumeration, its objective term by term."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from supernet import EnasTrainer, InputChoice, LayerChoice, SearchSpace
from supernet.errors import ChoiceError, TrainingError
from supernet.trainers import EnasController


def relu():
    return nn.ReLU()


class Choices(nn.Module):
    """Choices of every kind: nested, shared, inputs one, two or any, and inputs that name an earlier choice."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice([relu(), relu()], label="inner")
        self.first = LayerChoice({"plain": relu(), "deep": nn.Sequential(inner)}, label="stem.first")
        self.again = LayerChoice({"plain": relu(), "deep": relu()}, label="stem.first")
        self.named = InputChoice(choose_from=["stem", "other"], n_chosen=1, label="named")
        self.two = InputChoice(3, 2, label="two")
        self.any = InputChoice(2, None, label="any")


def controller(seed=0, **options):
    """One in float64, whose parameters are large enough for the policy to be far from uniform."""
    made = EnasController(SearchSpace(Choices()), seed=seed, lstm_size=5, **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 10
    return made


def probability(policy, architecture):
    return math.exp(policy(architecture).log_prob.detach())


def gradients(loss, model):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


def rewards(space, seed=0):
    numbers = torch.randn(space.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return list(zip(space.enumerate(), numbers.tolist(), strict=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"tanh_constant": None}, {"temperature": 2.0}, {"lstm_num_layers": 2}],
)
def test_probabilities_of_all_architectures_sum_to_one(options):
    policy = controller(**options)
    p = [probability(policy, architecture) for architecture in policy.space.enumerate()]
    assert len(p) == 3 * 2 * 3 * 4
    assert sum(p) == pytest.approx(1, abs=1e-12)
    assert max(p) > 1.5 * min(p)


@pytest.mark.slow
def test_an_architecture_is_drawn_as_often_as_its_probability_says():
    policy = controller()
    generator = torch.Generator().manual_seed(0)
    count, seen = 4000, {}
    with torch.no_grad():
        for _ in range(count):
            rollout = policy(generator=generator)
            seen[str(rollout.architecture)] = seen.get(str(rollout.architecture), 0) + 1
        expected = {str(a): count * probability(policy, a) for a in policy.space.enumerate()}
    assert probability(policy, rollout.architecture) == pytest.approx(math.exp(rollout.log_prob), abs=1e-12)
    chi_square = sum((seen.get(name, 0) - e) ** 2 / e for name, e in expected.items())
    assert chi_square < 71 + 4 * math.sqrt(2 * 71)  # 72 architectures


@pytest.mark.parametrize("baseline", [0.0, 3.0])
def test_the_estimator_averaged_over_all_architectures_is_the_gradient_of_the_expected_reward(baseline):
    """sum_a pi(a) (R(a) - b) grad log pi(a) = grad sum_a pi(a) R(a), for any b."""
    policy = controller()
    trainer = trainer_with(policy, entropy_weight=0.0, skip_weight=0.0)
    estimate = [torch.zeros_like(p) for p in policy.parameters()]
    expected_reward = 0.0
    for architecture, reward in rewards(policy.space):
        p = policy(architecture).log_prob.exp()
        expected_reward = expected_reward + p * reward
        loss = trainer.controller_loss(architecture, reward - baseline)
        for total, g in zip(estimate, gradients(-loss, policy), strict=True):
            total += p.detach() * g
    exact = gradients(expected_reward, policy)
    assert max(float(g.abs().max()) for g in exact) > 1e-2
    for one, other in zip(estimate, exact, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


def test_a_baseline_lessens_the_variance_where_all_rewards_are_large():
    policy = controller()
    trainer = trainer_with(policy, entropy_weight=0.0, skip_weight=0.0)

    def variance(baseline):
        total = 0.0
        for architecture, reward in rewards(policy.space):
            g = gradients(trainer.controller_loss(architecture, reward + 10 - baseline), policy)
            total += probability(policy, architecture) * sum(float(x.square().sum()) for x in g)
        return total

    assert variance(10.0) < 0.1 * variance(0.0)


def test_entropy_is_that_of_the_conditional_distributions_and_averages_to_that_of_the_policy():
    policy = controller()
    p = {str(a): probability(policy, a) for a in policy.space.enumerate()}
    whole = -sum(q * math.log(q) for q in p.values())
    along = sum(p[str(a)] * float(policy(a).entropy.detach()) for a in policy.space.enumerate())
    assert along == pytest.approx(whole, abs=1e-10)
    mean = controller(entropy_reduction="mean")
    architecture = next(policy.space.enumerate())
    assert float(mean(architecture).entropy.detach()) == pytest.approx(
        float(policy(architecture).entropy.detach()) / 4, abs=1e-12
    )


def test_skip_penalty_is_the_kl_divergence_of_its_formula():
    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.choice = InputChoice(3, None, label="any")

    policy = EnasController(SearchSpace(Any()), lstm_size=4, skip_target=0.3, tanh_constant=None).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter *= 10
    # The probability of an input follows from those of the sets with it and without it.
    p_of = {tuple(a["any"]): probability(policy, a) for a in policy.space.enumerate()}
    p = [sum(value for chosen, value in p_of.items() if i in chosen) for i in range(3)]
    expected = sum(q * math.log(q / 0.3) + (1 - q) * math.log((1 - q) / 0.7) for q in p)
    assert float(policy({"any": [0]}).skip_penalty.detach()) == pytest.approx(expected, abs=1e-10)
    assert expected > 0.01


def test_choosing_input_0_alone_counts_as_one_input_and_none_at_all_is_possible():
    policy = controller()
    base = {"stem.first": "plain", "named": [0], "two": [0, 1]}
    p = {tuple(chosen): float(policy({**base, "any": chosen}).log_prob.detach()) for chosen in ([], [0], [1], [0, 1])}
    assert len(set(p.values())) == 4


def test_an_input_that_is_named_after_an_earlier_choice_is_represented_by_the_state_after_it():
    """The state is another after another decision on the earlier choice; a learnt vector would not be."""
    policy = controller()
    attention_sees = []
    policy.attention_anchor.register_forward_pre_hook(lambda module, args: attention_sees.append(args[0].clone()))
    for first, inner in (("plain", {}), ("deep", {"inner": "0"})):
        policy({"stem.first": first, **inner, "named": [0], "two": [0, 1], "any": []})
    named = attention_sees[0::3]
    learnt = policy.embeddings[2].weight
    assert not torch.allclose(named[0][0], learnt[0])
    torch.testing.assert_close(named[0][1], learnt[1])  # "other" is no choice


def test_the_policy_goes_to_the_better_arm():
    class Arms(nn.Module):
        def __init__(self):
            super().__init__()
            self.arm = LayerChoice({"worse": relu(), "better": relu()}, label="arm")

    policy = EnasController(SearchSpace(Arms()), lstm_size=8)
    trainer = trainer_with(policy)
    trainer.ctrl_steps_aggregate = 1
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(policy.parameters(), 0.02)
    baseline = 0.5
    for _ in range(100):
        with torch.no_grad():
            architecture = policy(generator=generator).architecture
        reward = float(architecture["arm"] == "better")
        optimizer.zero_grad()
        trainer.controller_loss(architecture, reward - baseline).backward()
        optimizer.step()
        baseline = 0.9 * baseline + 0.1 * reward
    assert probability(policy, {"arm": "better"}) > 0.9


# --- the trainer ---------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = LayerChoice({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}, label="op")
        self.drop = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
        self.skip = InputChoice(2, None, label="skip")

    def forward(self, x):
        x = self.drop(self.op(x))
        skipped = self.skip([x, -x])
        return x if skipped is None else x + skipped


def reward_of_output(output, target):
    return (output.argmax(1) == target).float().mean()


def small_trainer(**options):
    torch.manual_seed(0)
    model = Net()
    data = TensorDataset(torch.randn(48, 3), torch.randint(2, (48,)))
    options = {"reward_function": reward_of_output, "batch_size": 4, "num_samples": 3, **options}
    return EnasTrainer(
        model,
        loss=nn.functional.cross_entropy,
        metrics=None,
        optimizer=SGD(model.parameters(), 0.1),
        num_epochs=2,
        dataset=data,
        **options,
    )


def trainer_with(policy, **options):
    trainer = small_trainer(**options)
    trainer.controller = policy
    return trainer


def test_the_objective_is_reward_entropy_and_skip_penalty_with_their_weights():
    trainer = small_trainer(entropy_weight=0.5, skip_weight=0.25)
    rollout = trainer.controller({"op": "a", "skip": [1]})
    expected = -2.0 * rollout.log_prob - 0.5 * rollout.entropy + 0.25 * rollout.skip_penalty
    assert float(trainer.controller_loss({"op": "a", "skip": [1]}, 2.0).detach()) == pytest.approx(
        float(expected.detach()), abs=1e-6
    )
    gradient = gradients(trainer.controller_loss({"op": "a", "skip": [1]}, 0.0), trainer.controller)
    assert max(float(g.abs().max()) for g in gradient) > 0  # entropy and penalty are in the loss, not detached


def test_a_controller_step_averages_the_gradients_of_as_many_architectures_as_asked_for():
    trainer = small_trainer(ctrl_steps_aggregate=3, grad_clip=None)
    sampled = [{"architecture": {"op": op, "skip": [1]}, "advantage": a} for op, a in (("a", 1.0), ("b", -2.0))]
    mean = sum(trainer.controller_loss(**one) for one in sampled) / 2
    expected = gradients(mean, trainer.controller)
    trainer.pending = sampled
    trainer.train_controller()
    for parameter, g in zip(trainer.controller.parameters(), expected, strict=True):
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(got, g)
    assert trainer.pending == []


def test_the_controller_phase_moves_no_weight_no_statistic_and_runs_in_eval_form():
    trainer = small_trainer()
    forms = []
    trainer.model.drop.register_forward_hook(lambda module, args, output: forms.append(module.training))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.training_steps = 1
    trainer.use_validation_batch(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert forms == [False]
    assert trainer.model.drop.training


def test_the_baseline_is_the_moving_average_of_rewards_and_advantages_use_the_one_before():
    trainer = small_trainer(baseline_decay=0.75, reward_function=lambda output, y: next(given), num_samples=1)
    given = iter([4.0, 8.0, 0.0])
    advantages = []
    for _ in range(3):
        trainer.use_validation_batch(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    advantages = [one["advantage"] for one in trainer.pending]
    assert advantages == pytest.approx([0, 4, -5])
    assert trainer.baseline == pytest.approx(0.75 * 5.0)


def test_export_is_the_best_by_reward_of_what_the_controller_draws():
    trainer = small_trainer(reward_function=lambda output, y: -output.square().sum(), num_samples=30)
    trainer.fit()
    best = trainer.export()
    drawn = [one["architecture"] for one in drawn_by(trainer, 30)]
    measured = {str(a): trainer.evaluate(a)["reward"] for a in drawn}
    assert measured[str(best)] == max(measured.values())
    assert len(set(measured.values())) > 1


def drawn_by(trainer, count):
    from supernet.data.loaders import derive_seed

    generator = torch.Generator().manual_seed(derive_seed(trainer.seed, 3))
    return [{"architecture": trainer.controller(generator=generator).architecture} for _ in range(count)]


def test_log_lines_name_the_phase(caplog):
    with caplog.at_level("INFO", logger="supernet"):
        small_trainer(log_frequency=3).fit()
    lines = [record.getMessage() for record in caplog.records]
    wanted = ["Model Epoch [1/2] Step [3/6]", "Model Epoch [1/2] Step [6/6]", "RL Epoch [1/2] Step [3/6]"]
    for start in (*wanted, "RL Epoch [2/2] Step [6/6]"):
        assert sum(line.startswith(start) for line in lines) == 1, start


def test_what_cannot_be_is_refused_at_construction_and_the_model_is_as_it_was():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = InputChoice(30, 15, label="wide")
            self.head = nn.Linear(3, 2)

    model = Wide()
    data = TensorDataset(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
    with pytest.raises(ChoiceError, match="choice 'wide' has 155,117,520 sets of 15 inputs"):
        EnasTrainer(model, reward_of_output, None, reward_of_output, SGD(model.parameters(), 0.1), 1, data)
    assert isinstance(model.wide, InputChoice)
    with pytest.raises(TrainingError, match="reward_function is a function"):
        small_trainer(reward_function=0.5)
    for ctrl_kwargs, message in (
        ({"skip_target": 1.0}, "skip_target is a probability between 0 and 1, not 1.0"),
        ({"entropy_reduction": "max"}, "entropy_reduction is 'sum' or 'mean', not 'max'"),
        ({"lstm_size": 0}, "lstm_size is a whole number from 1 on, not 0"),
    ):
        with pytest.raises(TrainingError, match=message):
            small_trainer(ctrl_kwargs=ctrl_kwargs)
    with pytest.raises(TrainingError, match="reward_function returned nan for"):
        small_trainer(reward_function=lambda output, y: math.nan).fit()


def test_sets_of_two_inputs_are_drawn_by_the_sum_of_their_scores():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.choice = InputChoice(4, 2, label="two")

    policy = EnasController(SearchSpace(Two()), lstm_size=4, tanh_constant=None).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter *= 10
    lp = {s: float(policy({"two": list(s)}).log_prob.detach()) for s in itertools.combinations(range(4), 2)}
    assert lp[0, 1] + lp[2, 3] == pytest.approx(lp[0, 2] + lp[1, 3], abs=1e-10)
    assert lp[0, 1] + lp[2, 3] == pytest.approx(lp[0, 3] + lp[1, 2], abs=1e-10)
    assert lp[0, 1] != pytest.approx(lp[2, 3], abs=1e-3)
