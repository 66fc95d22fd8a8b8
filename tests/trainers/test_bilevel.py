"""What `BilevelTrainer` makes of any relaxation and any terms, against closed forms; progress, draws and resume."""

import ast
import io
import tokenize
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

import supernet.trainers
from supernet import BilevelTrainer, LayerChoice
from supernet.errors import TrainingError
from supernet.relaxations import Gates, Relaxation, Softmax
from supernet.trainers import Checkpointing
from supernet.training.agreement import what_has_come_out


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full((), self.value, dtype=x.dtype)


class Quadratic(nn.Module):
    """Gives (w, a): a weight, and the mixture of the constants 1 and 0."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.a = LayerChoice([Constant(1.0), Constant(0.0)], label="a")

    def forward(self, x):
        return self.w, self.a(x)


def quadratic_loss(output, target):
    """L_val = w^2 / 2 + w a where the target is 1, L_train = (w - a)^2 / 2 where it is 0."""
    w, a = output
    return torch.where(target.bool().all(), w**2 / 2 + w * a, (w - a) ** 2 / 2)


ONE = torch.ones(2, 1, dtype=torch.float64)
VALID, TRAIN = (ONE, torch.ones(2)), (ONE, torch.zeros(2))


def quadratic_trainer(relaxation=Softmax, **options):
    model = Quadratic()
    arguments = (model, quadratic_loss, None, SGD(model.parameters(), 0.4), 1, TensorDataset(*TRAIN))
    return BilevelTrainer(*arguments, relaxation=relaxation, valid_dataset=TensorDataset(*VALID), **options)


def gradient_of(trainer):
    trainer.train_architecture(*VALID, *TRAIN)
    return trainer.alphas["a"].grad


def squared(relaxation, plan, progress):
    return 3.0 * relaxation.logits["a"].square().sum()


def weighed(relaxation, plan, progress):
    return 5.0 * plan["a"][0]


@pytest.mark.parametrize("unrolled", [False, True])
def test_terms_are_in_the_gradient_of_first_and_of_second_order(unrolled):
    """First order: w da; second: d(w'^2 / 2 + w' a) with w' = w - xi (w - a), so (xi (w' + a) + w') da.

    To either 6 alpha comes from 3 |alpha|^2, and 5 da from 5 p_0, for a = p_0 and da = p_0 p_1 (1, -1).
    """
    trainer = quadratic_trainer(unrolled=unrolled, terms=[squared, weighed])
    alpha = torch.tensor([0.3, -0.1], dtype=torch.float64)
    with torch.no_grad():
        trainer.alphas["a"].copy_(alpha)
    a = torch.softmax(alpha, -1)[0].item()
    da = a * (1 - a) * torch.tensor([1.0, -1.0], dtype=torch.float64)
    w, w_after = 1.0, 1 - 0.4 * (1 - a)
    slope = 0.4 * (w_after + a) + w_after if unrolled else w
    torch.testing.assert_close(gradient_of(trainer), (slope + 5) * da + 6 * alpha, rtol=1e-6, atol=1e-9)
    assert trainer.model.w.item() == w


class Noisy(Relaxation):
    """Softmax of logits with noise."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen, self.progress = [], []

    def plan(self, progress):
        noise = torch.randn(2, generator=self.generator, dtype=torch.float64)
        self.seen.append(noise.tolist())
        self.progress.append(progress)
        return {label: torch.softmax(alpha + noise, -1) for label, alpha in self.logits.items()}


def test_all_passes_of_a_second_order_step_see_the_same_draws_and_the_next_step_others():
    """The gradient is that of the map from alpha to L_val(w'(alpha)) for the noise that was drawn."""
    trainer = quadratic_trainer(Noisy, unrolled=True)
    relaxation = trainer.relaxation
    assert relaxation.seen == []  # the trial's was a copy's
    alpha = trainer.alphas["a"].detach().clone()
    gradient = gradient_of(trainer)
    assert len(relaxation.seen) == 4 and len(set(map(str, relaxation.seen))) == 1
    a = torch.softmax(alpha + torch.tensor(relaxation.seen[0], dtype=torch.float64), -1)[0].item()
    da = a * (1 - a) * torch.tensor([1.0, -1.0], dtype=torch.float64)
    w_after = 1 - 0.4 * (1 - a)
    torch.testing.assert_close(gradient, (0.4 * (w_after + a) + w_after) * da, rtol=1e-6, atol=1e-9)
    trainer.train_model_weight(*TRAIN)
    assert relaxation.seen[4] != relaxation.seen[0]


# --- in whole searches ---------------------------------------------------------------------------------------


class Learned(Noisy):
    """Has a parameter beside its logits, and a buffer."""

    def __init__(self, *arguments, scale=1.0, **options):
        super().__init__(*arguments, **options)
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.register_buffer("plans", torch.zeros(()))

    def plan(self, progress):
        self.plans += 1
        return {label: torch.softmax(self.scale * p, -1) for label, p in super().plan(progress).items()}


def searched(run_dir=None, resume=None, num_epochs=2, stop_at=None, scale=1.0, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        LayerChoice({"linear": nn.Linear(3, 3), "same": nn.Identity()}, label="x.op"), nn.Linear(3, 2)
    ).double()
    X = torch.randn(32, 3, dtype=torch.float64)
    trainer = BilevelTrainer(
        *(model, nn.functional.cross_entropy, None, SGD(model.parameters(), 0.1, momentum=0.9), num_epochs),
        TensorDataset(X, (X[:, 0] > 0).long()),
        relaxation=partial(Learned, scale=scale),
        architecture_optimizer=partial(torch.optim.Adam, lr=0.1),
        **{"batch_size": 4, "run_dir": run_dir, "checkpointing": Checkpointing(every_steps=1), **options},
        progress=False,
        device="cpu",
    )
    if stop_at is not None:
        step = trainer.train_step

        def train_step(*batches):
            if trainer.global_step == stop_at:
                raise InterruptedError
            step(*batches)

        trainer.train_step = train_step
        with pytest.raises(InterruptedError):
            trainer.fit(resume)
    else:
        trainer.fit(resume)
    return trainer


@pytest.mark.parametrize("options", [{}, {"unrolled": True}, {"accumulate": 2, "warmup_epochs": 1}])
def test_a_search_that_goes_on_draws_and_counts_on_where_it_was(tmp_path, options):
    whole = searched(**options)
    searched(tmp_path, stop_at=5, **options)
    resumed = searched(tmp_path, resume="auto", **options)
    first, second = whole.relaxation, resumed.relaxation
    state, other = dict(first.state_dict()), dict(second.state_dict())
    assert torch.equal(state.pop("_extra_state")["generator"], other.pop("_extra_state")["generator"])
    torch.testing.assert_close(other, state, rtol=0, atol=0)
    assert state["plans"] > 0 and not torch.equal(state["scale"], torch.ones(()))
    torch.testing.assert_close(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0)
    assert second.progress == first.progress[-len(second.progress) :]


def test_progress_runs_from_0_to_1_over_the_search():
    trainer = searched(num_epochs=3)
    steps = [k / 12 for k in range(12)]  # four of each epoch, each with a plan for the architecture and one for weights
    assert trainer.relaxation.progress == pytest.approx([fraction for fraction in steps for _ in range(2)])
    assert trainer.fraction_done == 1


def test_no_architecture_step_is_taken_while_the_weights_warm_up(caplog):
    trainer = searched(num_epochs=1, warmup_epochs=1)
    fresh = searched(num_epochs=1, warmup_epochs=1).relaxation
    assert torch.equal(trainer.alphas["x.op"], fresh.initial_logits(0, torch.float64, "cpu")["x.op"])
    assert len(trainer.relaxation.progress) == 4
    assert "warmup_epochs=1 of 1 epochs: the architecture is not trained" in caplog.text


def test_the_architecture_optimizer_trains_all_of_the_relaxation_and_the_weights_none_of_it():
    trainer = searched(num_epochs=1)
    assert {id(p) for p in trainer.architecture_parameters} == {id(p) for p in trainer.relaxation.parameters()}
    of_weights = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert of_weights.isdisjoint(map(id, trainer.architecture_parameters))
    assert trainer.export() == trainer.derive() == trainer.relaxation.derive()
    assert trainer.history[-1]["probabilities"]["x.op"] == trainer.relaxation.probabilities()["x.op"].tolist()


def test_a_search_with_another_relaxation_or_its_settings_does_not_go_on(tmp_path):
    searched(tmp_path, num_epochs=1)
    with pytest.raises(TrainingError, match=r"relaxation was .*'scale': 1\.0.*, is .*'scale': 2\.0"):
        searched(tmp_path, resume="auto", scale=2.0)


def test_processes_whose_relaxations_would_draw_otherwise_are_told_apart():
    first, second = searched(num_epochs=1), searched(num_epochs=1)
    assert what_has_come_out(first) == what_has_come_out(second)
    torch.rand(1, generator=second.relaxation.generator)
    ours, theirs = what_has_come_out(first), what_has_come_out(second)
    assert {name for name in ours if ours[name] != theirs[name]} == {
        "the digest of trainer.relaxation.generator, a generator"
    }


# --- what is refused, and how short it is --------------------------------------------------------------------


def test_what_cannot_be_is_refused_before_the_model_is_touched():
    for options, message in (
        ({"relaxation": Gates, "unrolled": True}, "of choice 'a' the relaxation runs one without a weight"),
        ({"unrolled": True, "accumulate": 2}, "unrolled=True goes with accumulate=1 only"),
        ({"memory": "slow"}, "memory is 'fast' or 'lean', not 'slow'"),
        ({"warmup_epochs": -1}, "warmup_epochs is a whole number from 0 on, not -1"),
        ({"terms": [lambda relaxation, *_: relaxation.logits["a"]]}, r"a term is one number, but .* returned \[2\]"),
    ):
        with pytest.raises(TrainingError, match=message):
            quadratic_trainer(**options)


def test_a_relaxation_without_a_plan_says_so():
    with pytest.raises(NotImplementedError, match=r"Relaxation does not define plan\(progress\)"):
        quadratic_trainer(Relaxation)


def code_lines(path):
    """Lines that are neither blank, nor of comments or docstrings."""
    source = path.read_text()
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}:
            lines |= {*range(token.start[0], token.end[0] + 1)} if token.string else set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines -= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    return len(lines)


@pytest.mark.parametrize("algorithm", ["darts", "enas", "proxyless", "random_search", "single_path"])
def test_the_file_of_an_algorithm_is_60_lines_of_code_at_most(algorithm):
    assert code_lines(Path(supernet.trainers.__file__).parent / f"{algorithm}.py") <= 60
