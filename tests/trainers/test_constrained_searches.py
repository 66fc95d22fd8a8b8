"""Every trainer searches a constrained space: it trains, evaluates and exports nothing that breaks a constraint."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet
from supernet import (
    DartsTrainer,
    EnasTrainer,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    SearchSpace,
    SinglePathTrainer,
    ValueChoice,
    require,
)
from supernet.errors import TrainingError
from supernet.relaxations import DecisionDistribution, EnasController, Gates, Softmax

KINDS = {
    "darts": (DartsTrainer, {}),
    "proxyless": (ProxylessTrainer, {}),
    "reinforce": (ProxylessTrainer, {"estimator": "reinforce"}),
    "single path": (SinglePathTrainer, {"num_evaluations": 6, "population": 4, "num_parents": 2}),
    "random": (RandomTrainer, {"num_samples": 4, "num_finalists": 2}),
    "enas": (EnasTrainer, {"num_samples": 3, "reward_function": lambda output, target: 0.0}),
}


def constrained(*more):
    """Return a model in which one width is below the other, and the narrow one is followed by a tanh."""
    torch.manual_seed(0)
    a, b = (ValueChoice([2, 4, 6, 8], label=label) for label in "ab")
    act = LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="act")
    model = nn.Sequential(supernet.nn.Linear(4, a), act, supernet.nn.Linear(a, b), supernet.nn.Linear(b, 2))
    is_tanh = SearchSpace(model).value("act") == "tanh"
    return require(model, a < b, ValueChoice.condition(is_tanh, a <= 4, a > 4), *(make(a, b) for make in more))


def is_kept(path):
    return path["a"] < path["b"] and (path["a"] <= 4) == (path["act"] == "tanh")


def trainer(kind, model, **options):
    cls, its_own = KINDS[kind]
    X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return cls(
        model, nn.CrossEntropyLoss(), None, optimizer=optimizer, num_epochs=2, batch_size=8, progress=False,
        dataset=TensorDataset(X, (X.sum(1) > 0).long()), device="cpu", **its_own, **options,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_path_that_a_trainer_runs_and_what_it_exports_keep_the_constraints(kind):
    search, ran = trainer(kind, constrained()), []
    following = search.supernet.following

    def noting(plan):
        active = {label: entry.active[0] if hasattr(entry, "active") else entry for label, entry in plan.items()}
        ran.append(active)
        return following(plan)

    search.supernet.following = noting
    search.fit()
    paths = [path for path in ran if not any(isinstance(entry, torch.Tensor) for entry in path.values())]
    assert (kind == "darts") == (paths == [])
    assert all(map(is_kept, paths))
    assert is_kept(search.export())
    assert all(is_kept(record["architecture"]) for record in search.history if record.get("architecture"))


def test_a_search_goes_on_with_the_same_constraints_only(tmp_path):
    trainer("darts", constrained(), run_dir=tmp_path).fit()
    again = trainer("darts", constrained(), run_dir=tmp_path)
    again.fit(resume="auto")
    assert again.epoch == 2
    with pytest.raises(TrainingError, match="or other constraints between them"):
        trainer("darts", constrained(lambda a, b: b > 4), run_dir=tmp_path).fit(resume="auto")


@pytest.mark.parametrize("make", [Softmax, DecisionDistribution, Gates])
def test_what_is_derived_is_the_most_probable_architecture_that_is_allowed(make):
    space = SearchSpace(constrained())
    for seed in range(5):
        relaxation = make(space, seed=seed)
        with torch.no_grad():
            for logits_K in relaxation.logits.values():
                logits_K.mul_(1000)
        best = max(space.enumerate(), key=lambda one: relaxation.log_prob(one).item())
        assert relaxation.derive() == best


def test_a_controller_draws_and_derives_what_is_allowed():
    space = SearchSpace(constrained())
    for seed in range(2):
        controller = EnasController(space, seed=seed, lstm_size=4)
        assert all(is_kept(controller.sample()) for _ in range(20))
        state = controller.generator.get_state()
        assert is_kept(controller.derive())
        assert torch.equal(state, controller.generator.get_state())
