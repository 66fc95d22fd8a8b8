"""Trainers that inherit Retiarii's, as scripts have them: what they override, read and assign has its effect."""

import json

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from supernet.errors import TrainingError
from supernet.retiarii.nn import pytorch as rnn
from supernet.retiarii.oneshot.pytorch import (
    DartsTrainer,
    EnasTrainer,
    ProxylessTrainer,
    RandomTrainer,
    SinglePathTrainer,
    replace_layer_choice,
)
from supernet.retiarii.oneshot.pytorch.darts import DartsLayerChoice
from supernet.retiarii.oneshot.pytorch.enas import ReinforceController, ReinforceField
from supernet.retiarii.oneshot.pytorch.utils import AverageMeterGroup


class Scale(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return self.w * x


class Net(nn.Module):
    """y = (p_0 w_0 + p_1 w_1) x, of which everything can be computed by hand."""

    def __init__(self, *values):
        super().__init__()
        self.op = rnn.LayerChoice([Scale(value) for value in values or (1.0, -2.0)], label="op")

    def forward(self, x):
        return self.op(x)


def squares(output, target):
    return ((output - target) ** 2).mean() / 2


def data(count=8):
    x = torch.linspace(-1, 1, count).reshape(-1, 1)
    return TensorDataset(x, 3 * x)


def loader(count=4, batch_size=4):
    return DataLoader(data(count), batch_size)


def arguments(model=None, **changed):
    model = model or Net()
    given = {
        "model": model, "loss": squares, "metrics": None, "optimizer": SGD(model.parameters(), 0.1), "num_epochs": 1,
        "dataset": data(), "workers": 0, "batch_size": 4,
    }  # fmt: skip
    return {**given, **changed}


def paths(**changed):
    given = arguments()
    given["dataset_train"] = given["dataset_valid"] = given.pop("dataset")
    return {**given, **changed}


ENAS = {"reward_function": lambda output, target: -squares(output, target).item()}


# --- DARTS ---------------------------------------------------------------------------------------------------


def test_an_overridden_loss_trains_alphas_and_weights_by_its_extra_term():
    """L = L_data + 5 alpha_0 + 7 w_0: Adam's first step of alpha_0 and SGD's of w_0 are those of the whole gradient."""

    class Regularized(DartsTrainer):
        def _logits_and_loss(self, X, y):
            logits = self.model(X)
            alpha = dict(self.nas_modules)["op"].alpha
            return logits, self.loss(logits, y) + 5 * alpha[0] + 7 * self.model.op.candidates["0"].w

    def trained(trainer_class):
        torch.manual_seed(0)
        trainer = trainer_class(**arguments(grad_clip=None, arc_learning_rate=1e-2))
        alpha = dict(trainer.nas_modules)["op"].alpha
        x, y = trainer.train_loader.dataset[:]
        before = alpha.detach().clone()
        trainer.fit()
        return before, alpha.detach(), trainer.model.op.candidates["0"].w.item(), x, y

    before, after, w_0, x, y = trained(Regularized)
    assert before[0] - after[0] == pytest.approx(1e-2, rel=1e-3)  # Adam's first step is lr * sign(gradient)
    p = torch.softmax(after, -1)
    gradient = (p[0] * x * ((p[0] - 2 * p[1]) * x - y)).mean() + 7
    assert w_0 == pytest.approx(1 - 0.1 * gradient.item(), rel=1e-5)


def test_an_overridden_backward_is_the_gradient_of_the_alphas():
    class Fixed(DartsTrainer):
        def _backward(self, val_X, val_y):
            for _, module in self.nas_modules:
                module.alpha.grad = torch.tensor([-1.0, 1.0])

    trainer = Fixed(**arguments(arc_learning_rate=0.5))
    before = trainer.nas_modules[0][1].alpha.detach().clone()
    trainer.fit()
    moved = trainer.nas_modules[0][1].alpha.detach() - before
    torch.testing.assert_close(moved, torch.tensor([0.5, -0.5]), rtol=1e-3, atol=0)
    assert trainer.export() == {"op": "0"}


def test_an_epoch_of_ones_own_runs_through_the_attributes_that_it_reads(caplog):
    """The forward follows alpha at each call, also after a step of `ctrl_optim`, and can be differentiated twice."""
    epochs = []

    class Own(DartsTrainer):
        def _train_one_epoch(self, epoch):
            epochs.append(epoch)
            meters = AverageMeterGroup()
            for (trn_X, trn_y), (val_X, val_y) in zip(self.train_loader, self.valid_loader, strict=True):
                module = self.nas_modules[0][1]
                first, second = self.model(val_X), self.model(val_X)
                self.ctrl_optim.zero_grad()
                self.loss(first, val_y).backward()
                self.ctrl_optim.step()
                self.loss(second, val_y).backward()
                p = torch.softmax(module.alpha, -1)
                torch.testing.assert_close(self.model(trn_X), (p[0] - 2 * p[1]) * trn_X)
                self.model_optim.zero_grad()
                _, loss = self._logits_and_loss(trn_X, trn_y)
                loss.backward()
                meters.update({"loss": loss.item()})

    trainer = Own(**arguments(num_epochs=3, optimizer=SGD(Net().parameters(), 0.1), arc_learning_rate=0.3))
    trainer.fit()
    assert epochs == [0, 1, 2]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_second_order_of_retiariis_loop_is_exact(momentum):
    """L_trn = (w - a)^2 / 2 for w = p_0 w_0 + p_1 w_1 on x = 1: against autograd through the virtual step."""

    class Same(DartsTrainer):
        def _logits_and_loss(self, X, y):
            return super()._logits_and_loss(X, y)

    model = Net(1.0, -2.0).double()
    trainer = Same(
        **arguments(model, unrolled=True, optimizer=SGD(model.parameters(), 0.1, momentum, weight_decay=0.2))
    )
    module = trainer.nas_modules[0][1]
    module.alpha.data = torch.tensor([0.3, -0.4], dtype=torch.float64)
    one, a, b = (torch.full((1, 1), value, dtype=torch.float64) for value in (1.0, 2.0, 0.5))
    trainer._unrolled_backward(one, a, one, b)
    alpha = module.alpha.detach().clone().requires_grad_()
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    p = torch.softmax(alpha, -1)
    (g,) = torch.autograd.grad((p @ w - 2) ** 2 / 2, w, create_graph=True)
    virtual = w - 0.1 * (g + 0.2 * w)
    (exact,) = torch.autograd.grad((p @ virtual - 0.5) ** 2 / 2, alpha)
    torch.testing.assert_close(module.alpha.grad, exact, rtol=1e-6, atol=0)
    assert [c.w.item() for c in module.candidates.values()] == [1.0, -2.0]


def test_loaders_optimizer_and_loss_that_a_subclass_sets_itself_are_what_trains():
    seen = []

    class Own(DartsTrainer):
        def _init_dataloader(self):
            self.train_loader, self.valid_loader = loader(4), loader(8, 8)
            self.model_optim = SGD(self.model.parameters(), 0.0)

        def _backward(self, val_X, val_y):
            seen.append(len(val_X))
            super()._backward(val_X, val_y)

    trainer = Own(**arguments(optimizer=None, loss=None, dataset=None, num_epochs=2))
    with pytest.raises(TrainingError, match=r"loss of Own is None; give it, or set self.loss before fit\(\)"):
        trainer.fit()
    trainer.loss = squares
    seen.clear()
    trainer.fit()
    assert seen == [8, 8]
    assert sorted(p.item() for p in trainer.model.parameters()) == [-2, 1]  # alphas are not among them


def test_what_is_assigned_to_a_trainer_of_ours_before_fit_is_what_trains():
    class Plain(DartsTrainer):
        def __init__(self, **given):
            super().__init__(**given)
            self.train_loader = DataLoader(TensorDataset(torch.ones(6, 1), torch.ones(6, 1)), 2)
            self.valid_loader = DataLoader(TensorDataset(2 * torch.ones(6, 1), torch.ones(6, 1)), 3)
            self.model_optim = SGD(self.model.parameters(), 0.0, momentum=0.5)
            self.ctrl_optim = SGD([module.alpha for _, module in self.nas_modules], 0.0)
            self.metrics = lambda output, target: {"mean": output.shape[0]}

    trainer = Plain(**arguments())
    alpha = trainer.nas_modules[0][1].alpha
    before = alpha.detach().clone()
    trainer.num_epochs = 2
    trainer.loss = lambda output, target: squares(output, target) + 100
    trainer.fit()
    assert trainer.is_ours
    assert [record["train_mean"] for record in trainer.history] == [2, 2]
    assert trainer.history[0]["valid_mean"] == 3
    assert trainer.history[0]["train_loss"] > 100
    assert torch.equal(alpha, before)
    assert sorted(p.item() for p in trainer.model.parameters()) == [-2, 1]
    assert trainer.model_optim.param_groups[0]["momentum"] == 0.5
    torch.testing.assert_close(
        trainer.model(torch.ones(1, 1)), torch.softmax(alpha, -1)[None] @ torch.tensor([[1.0], [-2]])
    )
    with pytest.raises(TrainingError, match=r"a loss with parameters or buffers .* give it to the constructor"):
        trainer.loss = nn.CrossEntropyLoss(torch.ones(2))
    with pytest.raises(TrainingError, match="nas_modules are what stands in the choices' places"):
        trainer.nas_modules = []
    with pytest.raises(TrainingError, match="alpha of choice 'op' is the trainer's; assign it in place"):
        trainer.nas_modules[0][1].alpha = nn.Parameter(torch.zeros(2))


def test_a_subclass_that_does_not_call_the_constructor_runs():
    class Bare(DartsTrainer):
        def __init__(self, model, loss, metrics, optimizer, num_epochs, dataset):
            self.model, self.loss, self.metrics, self.num_epochs = model, loss, metrics, num_epochs
            self.dataset, self.batch_size, self.workers = dataset, 4, 0
            self.device, self.log_frequency = torch.device("cpu"), None
            self.nas_modules = []
            replace_layer_choice(self.model, DartsLayerChoice, self.nas_modules)
            self.model_optim = optimizer
            self.ctrl_optim = Adam([module.alpha for _, module in self.nas_modules], 0.1)
            self.unrolled, self.grad_clip = False, 5.0
            self._init_dataloader()

    given = arguments(Net(3.0, -3.0), num_epochs=4)
    trainer = Bare(*(given[name] for name in ("model", "loss", "metrics", "optimizer", "num_epochs", "dataset")))
    before = trainer.nas_modules[0][1].alpha.detach().clone()
    trainer.fit()
    moved = trainer.nas_modules[0][1].alpha.detach() - before
    assert moved[0] > 0 > moved[1]  # y = 3 x
    assert json.loads(json.dumps(trainer.export())) == {"op": "0"}


def test_modules_of_ones_own_may_take_alpha_from_a_network_and_more_arguments_than_the_choice():
    """As hyper-networks do: alpha is deleted, another stands for it, and the model hands its condition on."""

    class Conditioned(DartsLayerChoice):
        def __init__(self, layer_choice):
            super().__init__(layer_choice)
            delattr(self, "alpha")
            self.network = nn.Linear(1, len(self.op_choices))
            self.alpha = self.network.parameters()

        def forward(self, x, condition):
            weights = torch.softmax(self.network(condition), -1)
            return sum(weight * op(x) for weight, op in zip(weights, self.op_choices.values(), strict=True))

        def export(self, condition):
            return list(self.op_choices.keys())[int(self.network(condition).argmax())]

    class Model(Net):
        def forward(self, x, condition):
            return self.op(x, condition)

    class Own(DartsTrainer):
        def __init__(self, **given):
            self.__dict__.update(given, device=torch.device("cpu"), unrolled=False, grad_clip=0.0, log_frequency=None)
            self.nas_modules = replace_layer_choice(self.model, Conditioned)
            self.model_optim = given["optimizer"]
            self.ctrl_optim = Adam(list(self.nas_modules[0][1].alpha), 0.5)
            self._init_dataloader()

        def _logits_and_loss(self, X, y):
            logits = self.model(X, torch.ones(1))
            return logits, self.loss(logits, y)

        def export(self, condition):
            return {name: module.export(condition) for name, module in self.nas_modules}

    trainer = Own(**arguments(Model(3.0, -3.0), num_epochs=3))
    trainer.fit()
    assert trainer.export(torch.ones(1)) == {"op": "0"}  # y = 3 x


def test_an_export_with_an_argument_of_its_own_is_not_called_by_fit():
    class Batched(DartsTrainer):
        def export(self, batch):
            return {name: (module.export(), len(batch)) for name, module in self.nas_modules}

    trainer = Batched(**arguments())
    trainer.fit()
    assert trainer.export(torch.ones(3))["op"][1] == 3


def test_a_fit_of_ones_own_calls_the_parts_of_retiariis_loop_and_one_that_calls_super_keeps_ours(tmp_path):
    class Own(DartsTrainer):
        def fit(self):
            for epoch in range(self.num_epochs):
                self._train_one_epoch(epoch)

    class Announced(DartsTrainer):
        def fit(self):
            super().fit()

    own, announced = Own(**arguments()), Announced(**arguments(), run_dir=tmp_path)
    for trainer in (own, announced):
        before = {name: p.clone() for name, p in trainer.model.named_parameters()}
        trainer.fit()
        assert all(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert (own.is_ours, announced.is_ours) == (False, True)
    assert (tmp_path / "metrics.jsonl").exists()


# --- ENAS ----------------------------------------------------------------------------------------------------


def test_loaders_that_are_assigned_after_construction_are_read_where_their_hook_does_nothing():
    class Assigned(EnasTrainer):
        def __init__(self, *args, train_loader, valid_loader, **kwargs):
            super().__init__(*args, **kwargs)
            self.train_loader, self.valid_loader = train_loader, valid_loader

        def init_dataloader(self):
            pass

    part = [(torch.ones(2, 1), torch.ones(2, 1))] * 3
    trainer = Assigned(**arguments(dataset=None), **ENAS, train_loader=part, valid_loader=part, num_samples=4)
    trainer.fit()
    assert trainer.baseline != 0
    assert trainer.export() == {"op": "0"}  # y = x


def test_an_enas_script_trains_model_and_controller_by_loops_of_its_own():
    calls = []

    class Own(EnasTrainer):
        def init_dataloader(self):
            self.optimizer = SGD(self.model.parameters(), 0.0)
            self.train_loader = self.valid_loader = [torch.ones(2, 1)] * 30  # batches without a target

        def _train_model(self, epoch):
            self.model.train()
            self.controller.eval()
            for x in self.train_loader:
                self.optimizer.zero_grad()
                self._resample()
                calls.append(self.nas_modules[0][1].sampled)
                assert self.model(x)[0].item() == (1.0, -2.0)[calls[-1]]
                self.model(x).mean().backward()
                self.optimizer.step()

        def _train_controller(self, epoch):
            self.model.eval()
            self.ctrl_optim.zero_grad()
            for step, x in enumerate(self.valid_loader):
                self._resample()
                reward = self.model(x).mean().item()
                reward += self.entropy_weight * self.controller.sample_entropy.item()
                self.baseline = self.baseline * 0.9 + reward * 0.1
                loss = self.controller.sample_log_prob * (reward - self.baseline)
                loss += self.skip_weight * self.controller.sample_skip_penalty
                loss /= self.ctrl_steps_aggregate
                loss.backward()
                if (step + 1) % self.ctrl_steps_aggregate == 0:
                    self.ctrl_optim.step()
                    self.ctrl_optim.zero_grad()

        def fit(self):
            for epoch in range(self.num_epochs):
                self._train_model(epoch)
                self._train_controller(epoch)

    torch.manual_seed(0)
    given = arguments(optimizer=None, loss=None, dataset=None, reward_function=None, num_epochs=8)
    trainer = Own(**given, ctrl_steps_aggregate=2, ctrl_lr=0.05)
    trainer.fit()
    assert set(calls[:30]) == {0, 1}
    assert calls[-30:].count(0) > 25  # the candidate of the greater reward
    assert trainer.export() == {"op": "0"}


def test_a_controller_is_made_from_fields_as_a_constructor_of_ones_own_does():
    fields = [ReinforceField("a.b", 3, True), ReinforceField("skip", 2, False), ReinforceField("a.b", 3, True)]
    controller = ReinforceController(fields, lstm_size=8, seed=1)
    torch.manual_seed(0)
    for _ in range(5):
        drawn = controller.resample()
        assert set(drawn) == {"a.b", "skip"}
        assert drawn["a.b"] in range(3)
        assert set(drawn["skip"]) <= {0, 1}
    log_prob = controller({"a.b": str(drawn["a.b"]), "skip": drawn["skip"]}).log_prob
    torch.testing.assert_close(controller.sample_log_prob, -log_prob)  # descending it times a reward raises the reward


def test_one_part_of_enas_may_be_overridden_and_the_other_is_retiariis():
    class Half(EnasTrainer):
        def _train_model(self, epoch):
            pass

    torch.manual_seed(0)
    given = arguments(num_epochs=10, dataset=data(64), batch_size=2)
    trainer = Half(**given, **ENAS, ctrl_steps_aggregate=3, ctrl_lr=0.1, baseline_decay=0.9, entropy_weight=0.0)
    trainer.fit()
    assert sorted(p.item() for p in trainer.model.parameters()) == [-2, 1]
    with torch.no_grad():
        drawn = [trainer._resample()["op"] for _ in range(20)]
    assert drawn.count("0") > 16  # y = 3 x, so 1.0 is nearer than -2.0


def test_an_overridden_draw_is_what_is_trained():
    class First(EnasTrainer):
        def _resample(self):
            self.controller.resample()
            for _, module in self.nas_modules:
                module.sampled = 0

    trainer = First(**arguments(), **ENAS)
    trainer.fit()
    assert trainer.model.op.candidates["0"].w.item() != 1
    assert trainer.model.op.candidates["1"].w.item() == -2
    assert trainer.export() == {"op": "0"}


# --- ProxylessNAS, single path -------------------------------------------------------------------------------


def test_proxyless_gates_give_alpha_the_whole_gradient_in_retiariis_loop():
    """dL/dalpha_i = sum_j <dL/dy, o_j(x)> p_j (delta_ij - p_i), of the arXiv paper 1812.00332."""

    class Own(ProxylessTrainer):
        def _train_one_epoch(self, epoch):
            x, y = self.valid_loader.dataset[:]
            for _, module in self.nas_modules:
                module.resample()
            self.ctrl_optim.zero_grad()
            _, loss = self._logits_and_loss_for_arch_update(x, y)
            loss.backward()
            for _, module in self.nas_modules:
                module.finalize_grad()

    trainer = Own(**arguments())
    trainer.fit()
    module = trainer.nas_modules[0][1]
    x, y = trainer.valid_loader.dataset[:]
    outputs, p = [x, -2 * x], torch.softmax(module.alpha.detach(), -1)
    upstream = (outputs[module.sampled] - y) / len(x)
    gates = torch.stack([(upstream * output).sum() for output in outputs])
    torch.testing.assert_close(module.alpha.grad, p * (gates - (p * gates).sum()))


def test_proxyless_trains_one_path_and_its_alphas_by_an_overridden_loss():
    class Penalized(ProxylessTrainer):
        def _logits_and_loss(self, X, y):
            logits = self.model(X)
            return logits, self.loss(logits, y) + 100 * self.nas_modules[0][1].alpha[1]

    trainer = Penalized(**arguments(num_epochs=2, arc_learning_rate=0.1))
    before = trainer.nas_modules[0][1].alpha.detach().clone()
    trainer.fit()
    assert (trainer.nas_modules[0][1].alpha.detach() - before)[1] == pytest.approx(-0.2, abs=0.01)
    assert trainer.export() == {"op": "0"}


def test_single_path_scripts_draw_by_a_rule_of_their_own_and_need_no_data_for_it():
    class ByNumber(SinglePathTrainer):
        def _resample(self, number):
            for _, module in self.nas_modules:
                module.sampled = number % len(module)
            return {name: module.sampled for name, module in self.nas_modules}

    trainer = ByNumber(Net(), None, None, None, None, None, None, 64, 4, None, None)
    assert trainer.batch_size == 64  # the order of the versions that had no mutator
    assert trainer._resample(3) == {"op": 1}
    assert trainer.model(torch.ones(1)).item() == -2


@pytest.mark.parametrize("trainer_class", [SinglePathTrainer, RandomTrainer])
def test_path_trainers_call_their_overridden_epochs_and_export_what_evaluates_best(trainer_class, caplog):
    class Own(trainer_class):
        def _validate_one_epoch(self, epoch):
            validated.append(epoch)

    class Drawing(trainer_class):
        def _resample(self):
            return super()._resample()

    validated = []
    trainer = Own(**paths(num_epochs=2))
    trainer.fit()
    assert validated == [0, 1]
    assert trainer.export()["op"] in ("0", "1")
    assert "Own.export() draws one path and evaluates none" in caplog.text
    model = Net(3.0, -3.0)
    trainer = Drawing(**{**paths(), "model": model, "optimizer": SGD(model.parameters(), 0.01)})
    trainer.fit()
    assert trainer.export() == {"op": "0"}  # y = 3 x


def test_parts_of_retiariis_loop_run_in_a_trainer_of_ours_too_when_they_are_called():
    trainer = DartsTrainer(**arguments())
    trainer._train_one_epoch(0)
    alpha = trainer.nas_modules[0][1].alpha
    assert sorted(p.item() for p in trainer.model.parameters()) != [-2, 1]
    logits, loss = trainer._logits_and_loss(torch.ones(1, 1), torch.ones(1, 1))
    p, w = torch.softmax(alpha, -1), torch.stack([c.w for c in trainer.nas_modules[0][1].candidates.values()])
    assert logits.item() == pytest.approx((p @ w).item())
    assert loss.item() == pytest.approx((logits.item() - 1) ** 2 / 2)
    single = SinglePathTrainer(**paths())
    drawn = single._resample()
    assert single.model(torch.ones(1)).item() == {"0": 1, "1": -2}[drawn["op"]]
    with pytest.raises(TrainingError, match=r"_train_controller is of Retiarii's loop, .* call fit\(\)"):
        EnasTrainer(**arguments(), **ENAS)._train_controller(0)


# --- what cannot be honoured ---------------------------------------------------------------------------------


def test_a_name_that_would_never_be_called_is_an_error_when_the_class_is_made():
    with pytest.raises(TrainingError, match="Wrong defines _train_one_epoch, which EnasTrainer never calls; it calls "):

        class Wrong(EnasTrainer):
            def _train_one_epoch(self, epoch):
                pass

    with pytest.raises(
        TrainingError, match=r"defines _compute_hessian, which DartsTrainer never calls; .*_unrolled_backward"
    ):

        class Hessian(DartsTrainer):
            def _compute_hessian(self, backup_params, dw, trn_X, trn_y):
                pass

    with pytest.raises(TrainingError, match="overrides _backward of Retiarii's loop and train_step of supernet's"):

        class Both(DartsTrainer):
            def _backward(self, val_X, val_y):
                pass

            def train_step(self, *batches):
                pass


def test_what_retiariis_loop_does_not_know_is_refused(tmp_path, monkeypatch):
    class Own(DartsTrainer):
        def _backward(self, val_X, val_y):
            pass

    with pytest.raises(
        TrainingError, match="Own runs in Retiarii's loop, for it overrides _backward; that knows no run_dir"
    ):
        Own(**arguments(), run_dir=tmp_path)
    with pytest.raises(TrainingError, match="which cannot be resumed"):
        Own(**arguments()).fit(resume="auto")
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="which knows one process only"):
        patch.setenv("WORLD_SIZE", "2")
        Own(**arguments()).fit()
    with pytest.raises(TrainingError, match="optimizer of DartsTrainer is None; give it"):
        DartsTrainer(**arguments(optimizer=None))
    trainer = DartsTrainer(**arguments())
    trainer._backward = lambda val_X, val_y: None
    with pytest.raises(TrainingError, match="_backward of this trainer was assigned; override it in a subclass"):
        trainer.fit()
    with pytest.raises(AttributeError, match="Own has no train_loader yet; assign it, or override _init_dataloader"):
        Own(**arguments(dataset=None)).train_loader  # noqa: B018


def test_halves_are_shuffled_anew_each_epoch_and_share_no_sample():
    epochs = []

    class Own(DartsTrainer):
        def _train_one_epoch(self, epoch):
            epochs.append([[x.item() for X, _ in part for x in X] for part in (self.train_loader, self.valid_loader)])

    Own(**arguments(dataset=data(40), num_epochs=2)).fit()
    (train, valid), (train_again, _) = epochs
    assert train != train_again
    assert sorted(train) == sorted(train_again)
    assert len({*train, *valid}) == 40


def test_alphas_stay_float32_where_a_model_is_cast():
    model = nn.Sequential(Net())
    ((_, module),) = replace_layer_choice(model, DartsLayerChoice)
    model.to(torch.bfloat16)
    assert module.alpha.dtype == torch.float32
    assert model(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
