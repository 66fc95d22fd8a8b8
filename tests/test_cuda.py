"""What runs on a CPU runs on a GPU, and gives the same there."""

import copy
import json
import os
import statistics
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from searches import Net as NoisyNet
from searches import result, search, stopped_after
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import supernet.nn as elastic_nn
from supernet import (
    BilevelTrainer,
    DartsTrainer,
    Distillation,
    EnasTrainer,
    InputChoice,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    SearchSpace,
    SinglePathTrainer,
    Supernet,
    ValueChoice,
    WithLogits,
    accuracy,
    elastic,
    evaluate,
    export_network,
    freeze,
    load_network,
    recalibrate,
    sort_channels,
    store_logits,
    train,
)
from supernet.cost import Latency, Macs, Parameters, PeakMemory
from supernet.errors import TrainingError
from supernet.execution import LayerSlot, Slot
from supernet.hub.darts import darts_candidates, darts_operation
from supernet.relaxations import Relaxation
from supernet.search import ProcessWorkers, SupernetEvaluator, search_front
from supernet.trainers import Checkpointing

DEVICE = "cuda"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which deterministic sums need, before the first of them

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device, or not asked for by make test-cuda"
)


@pytest.fixture(autouse=True)
def _in_float32():
    """Compute in float32, not in TF32; and let cuBLAS find a context, for which its first backward pass warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 has other names for it, too
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        torch.ones(2, 2, device=DEVICE, requires_grad=True).matmul(torch.ones(2, 2, device=DEVICE)).sum().backward()
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def deterministic():
    """Let sums come in the same order each time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


OPERATIONS = ("sep_conv_3x3", "dil_conv_5x5", "max_pool_3x3", "skip_connect", "none")


class Net(nn.Module):
    """Candidates that run the fast way, BatchNorm and a choice of inputs; nothing draws random numbers."""

    def __init__(self, channels=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.first = LayerChoice({name: darts_operation(name, channels) for name in OPERATIONS}, label="first")
        self.second = LayerChoice({name: darts_operation(name, channels, 2) for name in OPERATIONS}, label="second")
        self.norm = nn.BatchNorm2d(channels)
        self.skip = InputChoice(2, 1, label="skip")
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        x = self.stem(x)
        x = self.norm(self.second(x + self.first(x)))
        return self.head(self.skip([x, x.relu()]).mean((2, 3)))


class Wide(nn.Module):
    """Elastic width and kernel, and a choice of layers."""

    def __init__(self):
        super().__init__()
        width, kernel = ValueChoice([4, 8, 16], label="width"), ValueChoice([3, 5], label="kernel")
        self.stem = elastic_nn.Conv2d(3, width, kernel, padding=kernel // 2)
        self.norm = elastic_nn.BatchNorm2d(width)
        self.op = LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="op")
        self.head = elastic_nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.op(self.norm(self.stem(x))).mean((2, 3)))


def images(count=16, size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator)


def data(count=16):
    return TensorDataset(images(count), torch.arange(count) % 3)


def made(network=Net):
    torch.manual_seed(0)
    return network()


def close(a, b, tolerance=1e-4):
    """Hold two tensors together by their norms, on whatever device."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    assert a.shape == b.shape and a.isfinite().all()
    assert (a - b).norm() <= tolerance * a.norm() + 1e-9, f"{(a - b).norm():.3g} of {a.norm():.3g}"


def is_on(module, kind=DEVICE):
    return all(tensor.device.type == kind for tensor in (*module.parameters(), *module.buffers()))


# --- trainers ------------------------------------------------------------------------------------------------


class Gumbel(Relaxation):
    """Gumbel noise, drawn on the CPU as `drawing` says, so that it is the same on each device."""

    def plan(self, progress):
        with self.drawing():
            noise = {label: -torch.empty(len(logits)).exponential_().log() for label, logits in self.logits.items()}
        return {label: torch.softmax(logits + noise[label].to(logits), -1) for label, logits in self.logits.items()}


TRAINERS = {
    "darts": DartsTrainer,
    "darts of second order": partial(DartsTrainer, unrolled=True),
    "lean darts": partial(DartsTrainer, memory="lean"),
    "darts within limits": partial(DartsTrainer, limits={"parameters": "60%", "macs": "80%"}),
    "gumbel": partial(BilevelTrainer, relaxation=Gumbel),
    "proxyless": ProxylessTrainer,
    "proxyless by REINFORCE": partial(ProxylessTrainer, estimator="reinforce"),
    "enas": partial(EnasTrainer, reward_function=accuracy, num_samples=2, ctrl_steps_aggregate=2),
    "single path": partial(SinglePathTrainer, num_evaluations=4, population=2, num_parents=1),
    "random": partial(RandomTrainer, num_samples=2, num_finalists=1),
    "sandwich": partial(SinglePathTrainer, sandwich=1, num_evaluations=4, population=2, num_parents=1),
    "cost bins": partial(SinglePathTrainer, cost_bins=3, num_evaluations=4, population=2, num_parents=1),
}


def trainer_of(kind, device, network=Net, num_epochs=1, **options):
    model = made(network)
    optimizer = SGD(model.parameters(), 0.05, momentum=0.9)
    task = {"loss": cross_entropy, "metrics": accuracy, "optimizer": optimizer, "num_epochs": num_epochs}
    options = {"dataset": data(), "batch_size": 8, "device": device, "progress": False, **options}
    return TRAINERS[kind](model, **task, **options)


@pytest.mark.parametrize("kind", TRAINERS)
def test_the_first_step_has_the_losses_that_it_has_on_the_cpu(kind):
    trainers = [trainer_of(kind, device) for device in ("cpu", DEVICE)]
    for trainer in trainers:
        trainer.fit()
    expected, found = (trainer.history[0] for trainer in trainers)
    losses = [name for name in ("train_loss", "valid_loss") if name in expected]
    assert losses and is_on(trainers[1].model)
    for name in losses:
        assert found[name] == pytest.approx(expected[name], rel=1e-3), name
    architecture = trainers[1].export()
    trainers[1].space.validate(architecture)
    network = trainers[1].network(architecture)
    assert is_on(network) and network(images().to(DEVICE)).isfinite().all()
    # Trained weights, on the other device.
    given = trainers[1].evaluate(architecture)
    assert given["loss"] == pytest.approx(evaluate(network, cross_entropy, None, validation_of(trainers[1]))["loss"])


def validation_of(trainer):
    X, y = zip(*trainer.evaluator.valid_batches(), strict=True)
    return TensorDataset(torch.cat(X).cpu(), torch.cat(y).cpu())


PRECISIONS = {
    "bf16-mixed": [kind for kind in TRAINERS if kind != "darts of second order"],
    "16-mixed": ["darts", "proxyless", "enas", "single path"],
    "bf16-true": ["darts", "proxyless", "enas", "single path"],
}


@pytest.mark.parametrize(("precision", "kind"), [(name, kind) for name, kinds in PRECISIONS.items() for kind in kinds])
def test_lower_precisions_have_nearly_the_losses_of_float32(precision, kind):
    exact, trainer = trainer_of(kind, DEVICE), trainer_of(kind, DEVICE, precision=precision)
    for each in (exact, trainer):
        each.fit()
    assert trainer.history[0]["train_loss"] == pytest.approx(exact.history[0]["train_loss"], rel=0.05)
    trainer.space.validate(trainer.export())


def test_second_order_runs_under_autocast():
    trainer = trainer_of("darts of second order", DEVICE, precision="bf16-mixed")
    trainer.fit()
    trainer.space.validate(trainer.export())


KINDS = [
    "first order",
    "second order",
    "lean",
    "learned loss",
    "enas",
    "proxyless",
    "reinforce",
    "single path",
    "random",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_that_was_stopped_ends_bit_equal_to_one_that_never_was(tmp_path, kind, deterministic):
    whole = search(kind, device=DEVICE)
    whole.fit()
    options = {"device": DEVICE, "checkpointing": Checkpointing(every_steps=1)}
    stopped_after(search(kind, tmp_path, **options), 8)
    resumed = search(kind, tmp_path, **options)
    resumed.fit(resume="auto")
    assert is_on(resumed.model)
    assert result(resumed) == result(whole)


@pytest.mark.parametrize(("written_on", "read_on"), [(DEVICE, "cpu"), ("cpu", DEVICE)])
@pytest.mark.parametrize("kind", ["first order", "second order", "enas", "proxyless", "single path"])
def test_a_checkpoint_is_read_on_the_other_device(tmp_path, kind, written_on, read_on):
    metrics = MulticlassAccuracy(3) if kind == "second order" else accuracy  # one whose state is in checkpoints
    options = {"checkpointing": Checkpointing(every_steps=1), "metrics": metrics}
    stopped = search(kind, tmp_path, device=written_on, **options)
    stopped_after(stopped, stopped.train_part.length * 2 + 1)  # with ENAS, after the first epoch of both
    resumed = search(kind, tmp_path, device=read_on, **options)
    resumed.fit(resume="auto")
    assert is_on(resumed.model, read_on) and len(resumed.history) == 3
    assert resumed.history[: len(stopped.history)] == stopped.history != []
    resumed.space.validate(resumed.export())


def test_more_processes_than_gpus_are_refused_in_all_of_them(monkeypatch):
    count = torch.cuda.device_count()
    told = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": count + 1, "LOCAL_WORLD_SIZE": count + 1, "GROUP_RANK": 0}
    told |= {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(TrainingError, match=rf"{count + 1} processes .* torch sees {count} .* device='cpu'"):
        trainer_of("darts", None)


def test_a_run_with_all_its_files_is_written_and_says_its_gpu(tmp_path):
    trainer = trainer_of("darts", DEVICE, run_dir=tmp_path, num_epochs=2)
    trainer.fit()
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["device"]["kind"] == torch.device(DEVICE).type
    assert trainer.history[-1]["cost"]["peak_memory_mib"] > 0


# --- mixtures ------------------------------------------------------------------------------------------------


class Textbook(nn.Module):
    """A mixture as papers write it."""

    def __init__(self, candidates, label, weights):
        super().__init__()
        self.candidates, self.label, self.weights = nn.ModuleDict(candidates), label, weights

    def forward(self, x):
        outputs = [candidate(x) for candidate in self.candidates.values()]
        return sum(weight * output for weight, output in zip(self.weights[self.label], outputs, strict=True))


MIXED = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "none")


def mixed(channels, stride, affine):
    """Return candidates; without affine norms as DARTS searches, where pools have norms too."""
    if affine:
        return {name: darts_operation(name, channels, stride) for name in MIXED}
    candidates = darts_candidates(channels, stride)
    return {name: candidates[name] for name in MIXED}


class Cells(nn.Module):
    """Cells of three edges each; every second one halves the image. Norms within candidates scale and shift, or not."""

    def __init__(self, choice, depth=2, channels=8, affine=True):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.cells = nn.ModuleList()
        for cell in range(depth):
            strides = [1 + cell % 2, 1, 1]
            edges = [mixed(channels, stride, affine) for stride in strides]
            self.cells.append(nn.ModuleList(choice(edge, f"{cell}.{i}") for i, edge in enumerate(edges)))

    def forward(self, x):
        x = self.stem(x)
        for first, second, third in self.cells:
            h = first(x)
            x = second(h) + third(h)
        return x.mean((2, 3))


def mixture_weights(depth, dtype):
    generator = torch.Generator().manual_seed(1)
    labels = [f"{cell}.{i}" for cell in range(depth) for i in range(3)]
    return {
        label: torch.randn(len(MIXED), generator=generator, dtype=torch.float64).softmax(0).to(DEVICE, dtype)
        for label in labels
    }


def cells(way, x, depth=2, channels=8, training=True, layout=torch.contiguous_format, affine=True):
    """Return the input, the weights of mixtures, the cells, and what runs them on the input."""
    dtype = x.dtype
    weights = {label: w.requires_grad_() for label, w in mixture_weights(depth, dtype).items()}
    torch.manual_seed(0)
    if way == "textbook":
        model = Cells(partial(Textbook, weights=weights), depth, channels, affine)
        run = model
    else:
        model = Cells(lambda candidates, label: LayerChoice(candidates, label=label), depth, channels, affine)
    model = model.to(DEVICE, dtype).to(memory_format=layout).train(training)
    x = x.to(DEVICE).to(memory_format=layout).requires_grad_()
    if way != "textbook":
        running = Supernet(model, (x, weights), layer=partial(LayerSlot, lean=way == "lean"))
        slots = [module for module in model.modules() if isinstance(module, Slot)]
        assert all(slot.fast for slot in slots), running.explain()
        for slot in slots:
            slot.fast = way != "plain"

        def run(x):
            return running(x, weights)

    return x, weights, model, run


def passed(way, x, channels=8, seconds=False, around=nullcontext, **options):
    """Return output, gradients and running statistics of one pass of cells, by the names that modules have."""
    x, weights, model, run = cells(way, x, channels=channels, **options)
    sought = [x, *weights.values(), *model.parameters()]
    target = torch.linspace(-1, 1, len(x) * channels, device=DEVICE, dtype=x.dtype).view(len(x), channels)
    with around():
        output = run(x)
        gradients = torch.autograd.grad((output * target).sum(), sought, create_graph=seconds)
    if seconds:
        loss = sum(gradient.square().sum() for gradient in gradients)
        gradients = [g for g in torch.autograd.grad(loss, sought, allow_unused=True) if g is not None]
    return output, list(gradients), list(model.buffers())


def same(expected, found, tolerance):
    close(expected[0], found[0], tolerance)
    for kind in (1, 2):
        assert len(expected[kind]) == len(found[kind])
        whole = sum(float(t.detach().double().square().sum()) for t in expected[kind]) ** 0.5
        for a, b in zip(expected[kind], found[kind], strict=True):
            a, b = a.detach().double(), b.detach().double()
            assert (a - b).norm() <= tolerance * (a.norm() + 0.01 * whole)


WAYS = pytest.mark.parametrize("way", ["fast", "lean", "plain"])
FORMS = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
AFFINE = pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


@WAYS
@AFFINE
@FORMS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float64, 1e-9)], ids=["32", "64"])
def test_mixtures_are_the_textbook_sum(way, affine, training, layout, dtype, tolerance):
    x, options = images(8, 12).to(dtype), {"training": training, "layout": LAYOUTS[layout], "affine": affine}
    same(passed("textbook", x, **options), passed(way, x, **options), tolerance)


@WAYS
@AFFINE
@FORMS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_a_mixture_can_be_differentiated_again(way, affine, training, layout):
    x = images(4, 8).double()
    options = {"seconds": True, "training": training, "layout": LAYOUTS[layout], "affine": affine}
    same(passed("textbook", x, **options), passed(way, x, **options), 1e-9)


@contextmanager
def on_waits(what):
    """Let what waits for the GPU warn or raise in this context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says, once, that it does not notice everything that waits
        torch.cuda.set_sync_debug_mode(what)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@WAYS
@AFFINE
def test_a_pass_of_mixtures_and_its_gradients_never_wait_for_the_gpu(way, affine):
    passed(way, images(), affine=affine)  # makes what is made once
    passed(way, images(), affine=affine, around=partial(on_waits, "error"))


@pytest.mark.parametrize("kind", ["darts", "lean darts", "darts of second order", "darts within limits"])
def test_a_step_of_darts_never_waits_for_the_gpu(kind):
    trainer = trainer_of(kind, DEVICE)
    trainer.fit()
    X, y = images(8).to(DEVICE), (torch.arange(8) % 3).to(DEVICE)
    trainer.train_step(X, y, X, y)
    with on_waits("error"):
        trainer.train_step(X, y, X, y)


def test_a_step_of_gates_waits_for_the_gpu_but_where_decisions_are_drawn():
    trainer = trainer_of("proxyless", DEVICE)
    trainer.fit()
    X, y = images(8).to(DEVICE), (torch.arange(8) % 3).to(DEVICE)
    trainer.train_step(X, y, X, y)
    with on_waits("warn"), warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        trainer.train_step(X, y, X, y)
    assert len(waits) <= 3, [str(each.message) for each in waits]  # two candidates; which is active; a path of weights


def peak_of(run):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_lean_memory_holds_less_than_the_fast_way_and_that_less_than_the_textbook():
    held = {}
    for way in ("textbook", "fast", "lean"):
        x, _, _, run = cells(way, images(64, 32), depth=6, channels=16)
        run(x)  # makes what is made once
        # Between the two passes: at the peak, what kernels need to work may be more than what is held.
        before = torch.cuda.memory_allocated()
        output = run(x)
        held[way] = torch.cuda.memory_allocated() - before
        del output
    assert held["lean"] < 0.5 * held["fast"] and held["fast"] < 0.5 * held["textbook"], held


def test_a_dropped_path_draws_the_same_when_lean_memory_computes_it_again(deterministic):
    """Its candidates draw from the GPU's generator."""
    torch.manual_seed(0)
    candidates = {"drop": nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), "skip": nn.Identity()}
    found = []
    for lean in (True, False):
        model = nn.Sequential(LayerChoice(copy.deepcopy(candidates), label="op")).to(DEVICE)
        running = Supernet(model, layer=partial(LayerSlot, lean=lean))
        weights = torch.tensor([0.3, 0.7], device=DEVICE, requires_grad=True)
        x = torch.ones(4, 8, device=DEVICE)
        running(x, {"op": weights})  # its trial
        torch.manual_seed(3)
        output = running(x, {"op": weights})
        found.append([output, *torch.autograd.grad(output.square().sum(), [weights, *model.parameters()])])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


# --- elastic layers ------------------------------------------------------------------------------------------


def width():
    return ValueChoice([8, 16], label="width")


def padded(kind):
    kernel = ValueChoice([3, 5], label="kernel")
    return kind(8, width(), kernel, padding=kernel // 2)


LAYERS = {
    "Linear": (lambda: elastic_nn.Linear(8, width()), (4, 8)),
    "Linear of an elastic input": (
        lambda: nn.Sequential(elastic_nn.Linear(8, width()), elastic_nn.Linear(width(), 3)),
        (4, 8),
    ),
    "Conv1d": (lambda: padded(elastic_nn.Conv1d), (2, 8, 9)),
    "Conv2d": (lambda: padded(elastic_nn.Conv2d), (2, 8, 9, 9)),
    "Conv3d": (lambda: elastic_nn.Conv3d(8, width(), 3), (2, 8, 5, 5, 5)),
    "ConvTranspose2d": (lambda: elastic_nn.ConvTranspose2d(8, width(), 3, 2), (2, 8, 5, 5)),
    "depthwise": (
        lambda: nn.Sequential(elastic_nn.Conv2d(8, width(), 1), elastic_nn.Conv2d(width(), width(), 3, groups=width())),
        (2, 8, 9, 9),
    ),
    "BatchNorm2d": (
        lambda: nn.Sequential(elastic_nn.Conv2d(8, width(), 1), elastic_nn.BatchNorm2d(width())),
        (4, 8, 5, 5),
    ),
    "GroupNorm": (
        lambda: nn.Sequential(elastic_nn.Conv2d(8, width(), 1), elastic_nn.GroupNorm(4, width())),
        (4, 8, 5, 5),
    ),
    "LayerNorm": (lambda: nn.Sequential(elastic_nn.Linear(8, width()), elastic_nn.LayerNorm(width())), (4, 8)),
    "RMSNorm": (lambda: nn.Sequential(elastic_nn.Linear(8, width()), elastic_nn.RMSNorm(width())), (4, 8)),
    "Attention": (
        lambda: elastic_nn.Attention(16, ValueChoice([2, 4], label="heads"), ValueChoice([4, 8], label="head_dim")),
        (2, 6, 16),
    ),
    "MultiheadAttention": (lambda: SelfAttention(), (2, 6, 16)),
}


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = elastic_nn.MultiheadAttention(16, ValueChoice([2, 4], label="heads"), batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("name", LAYERS)
def test_each_path_of_an_elastic_layer_is_its_frozen_layer(name):
    build, shape = LAYERS[name]
    model = made(build).to(DEVICE)
    on_cpu, running = copy.deepcopy(model).cpu(), Supernet(model)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for architecture in running.space.enumerate():
        network = freeze(model, architecture)
        assert is_on(network)
        output, expected = running(x.to(DEVICE), architecture), network(x.to(DEVICE))
        close(expected, output, 1e-5)
        gradients = torch.autograd.grad(output.square().sum(), [*model.parameters()], allow_unused=True)
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
        close(freeze(on_cpu, architecture)(x), expected, 1e-4)


@pytest.mark.parametrize(
    "name", [name for name in LAYERS if name not in ("GroupNorm", "MultiheadAttention", "Attention")]
)
def test_a_mixture_of_sizes_is_what_it_is_on_the_cpu(name):
    build, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    outputs = []
    for device in ("cpu", DEVICE):
        model = made(build).double().to(device)
        plan = {
            label: torch.linspace(1, 2, domain.size, dtype=torch.float64, device=device).softmax(0)
            for label, domain in SearchSpace(model).items()
        }
        outputs.append(Supernet(model)(x.to(device), plan))
    close(*outputs, 1e-9)


def test_an_embedding_of_elastic_width_is_its_frozen_layer():
    model = nn.Sequential(elastic_nn.Embedding(10, width())).to(DEVICE)
    running, x = Supernet(model), torch.arange(10, device=DEVICE)
    for architecture in running.space.enumerate():
        assert torch.equal(running(x, architecture), freeze(model, architecture)(x))


def test_a_network_of_others_is_made_elastic_and_its_channels_sorted():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).to(DEVICE)
    x = images().to(DEVICE)
    expected = model.eval()(x)
    sort_channels(model, data=iter([x]))
    close(expected, model(x))
    elastic(model, ratios=[0.5, 1.0], example=x)
    space = SearchSpace(model)
    running = Supernet(model)
    for architecture in (space.sample(torch.Generator().manual_seed(seed)) for seed in range(3)):
        network = freeze(model, architecture, verify=x)
        close(network(x), running(x, architecture))


# --- searching, training, teaching ---------------------------------------------------------------------------


def evaluator_of(device=DEVICE, worker=0):
    model = made(Wide).to(device)
    return SupernetEvaluator(Supernet(model), (data(), data()), loss=cross_entropy, metrics=accuracy, batch_size=8)


def test_architectures_are_evaluated_as_on_the_cpu_and_searched_within_limits(tmp_path):
    on_cpu, on_gpu = evaluator_of("cpu"), evaluator_of()
    for architecture in on_gpu.supernet.space.enumerate():
        assert on_gpu(architecture)["loss"] == pytest.approx(on_cpu(architecture)["loss"], rel=1e-4)
    fronts = [
        search_front(
            evaluator,
            {"loss": "min", "parameters": "min"},
            8,
            limits={"parameters": "70%", "macs": "90%", "peak_memory": "95%"},
            example=example,
            directory=tmp_path / evaluator.device.type,
        )
        for evaluator, example in ((on_cpu, images(1)), (on_gpu, images(1).to(DEVICE)))
    ]
    costs = [{json.dumps(entry.architecture): entry.costs for entry in front.entries} for front in fronts]
    assert costs[0] == costs[1] != {}


def test_workers_of_this_machine_evaluate_on_the_gpu_though_this_process_uses_it_too():
    architectures = list(SearchSpace(made(Wide)).enumerate())[:3]
    expected = [evaluator_of()(architecture) for architecture in architectures]
    with ProcessWorkers(partial(evaluator_of, DEVICE), 1) as workers:
        found = workers(architectures)
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=5e-3)  # there in TF32


@pytest.mark.parametrize("network", [Net, Wide])
def test_a_frozen_network_is_verified_trained_recalibrated_and_evaluated(network):
    model = made(network).to(DEVICE)
    architecture = SearchSpace(model).sample(torch.Generator().manual_seed(0))
    frozen = freeze(model, architecture, verify=images().to(DEVICE), recalibrate=data())
    assert is_on(frozen)
    on_cpu = freeze(made(network), architecture, verify=images())
    for each, device in ((frozen, DEVICE), (on_cpu, "cpu")):
        train(
            each,
            cross_entropy,
            accuracy,
            SGD(each.parameters(), 0.01),
            1,
            data(),
            batch_size=16,
            device=device,
            progress=False,
        )
        recalibrate(each, data(), device=device)
    found, expected = (
        evaluate(each, cross_entropy, accuracy, data(), device=device)
        for each, device in ((frozen, DEVICE), (on_cpu, "cpu"))
    )
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert evaluate(frozen, cross_entropy, accuracy, data(), device="cpu")["loss"] == pytest.approx(
        found["loss"], rel=1e-3
    )


def test_a_frozen_network_is_verified_where_convolutions_are_in_tf32():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = True
    model, x = made(Wide).to(DEVICE), images(16, 32).to(DEVICE)
    for architecture in SearchSpace(model).enumerate():
        freeze(model, architecture, verify=x)
    trainer = trainer_of("darts", DEVICE)
    trainer.fit()
    assert "as they are" not in trainer.supernet.explain(), trainer.supernet.explain()


def test_every_teacher_teaches_as_on_the_cpu(tmp_path):
    def teacher():
        torch.manual_seed(5)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    store_logits(teacher(), data(), tmp_path / "logits.safetensors", device=DEVICE)
    cases = {
        "module": lambda: {"distillation": Distillation(teacher())},
        "in place": lambda: {"distillation": Distillation("largest"), "sandwich": 1},
        "stored": lambda: {
            "distillation": Distillation("stored"),
            "dataset": WithLogits(data(), tmp_path / "logits.safetensors"),
        },
    }
    for name, options in cases.items():
        losses = []
        for device in ("cpu", DEVICE):
            trainer = trainer_of("single path", device, Wide, **options())
            trainer.fit()
            losses.append(trainer.history[0]["train_loss"])
        assert losses[1] == pytest.approx(losses[0], rel=1e-3), name


# --- costs ---------------------------------------------------------------------------------------------------


def test_costs_of_a_model_on_the_gpu_are_those_on_the_cpu():
    costs = []
    for device, example_device in (("cpu", "cpu"), (DEVICE, DEVICE), (DEVICE, "cpu")):
        model, example = made(Wide).to(device), images(2).to(example_device)
        each = [Parameters(model), Macs(model, example), PeakMemory(model, example)]
        costs.append([[cost.of(architecture) for cost in each] for architecture in each[0].space.enumerate()])
    assert costs[0] == costs[1] == costs[2]


class ReadsValues(nn.Module):
    """Needs the values of its input, which the device "meta" has not."""

    def __init__(self):
        super().__init__()
        self.linear = elastic_nn.Linear(4, width())

    def forward(self, x):
        return self.linear(x) * (2 if x.sum().item() > 0 else 1)


def test_a_model_that_needs_values_is_counted_wherever_it_and_the_example_are():
    for device, example_device in ((DEVICE, DEVICE), (DEVICE, "cpu"), ("cpu", DEVICE)):
        model = made(ReadsValues).to(device)
        assert Macs(model, torch.ones(2, 4, device=example_device)).of({"width": 8}) == 2 * 4 * 8


def test_a_pass_takes_at_least_the_peak_of_memory_that_is_counted():
    model = made(lambda: nn.Sequential(elastic_nn.Conv2d(3, width(), 3), nn.ReLU(), elastic_nn.Conv2d(width(), 32, 3)))
    x = images(64, 64)
    cost = PeakMemory(model, x)
    for architecture in cost.space.enumerate():
        network, on_gpu = freeze(model, architecture).to(DEVICE).eval(), x.to(DEVICE)

        def run(network=network, on_gpu=on_gpu):
            with torch.no_grad():
                network(on_gpu)

        run()
        measured = peak_of(run) + on_gpu.numel() * on_gpu.element_size()
        assert measured >= 0.999 * cost.of(architecture)


def by_events(network, x, rounds=15):
    """Return milliseconds of a pass by CUDA events: the median of rounds of ten passes."""
    times = []
    with torch.inference_mode():
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(10):
                network(x)
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 10)
    return statistics.median(times[3:])


def test_latencies_are_those_of_a_gpu_that_was_waited_for(tmp_path):
    kernel = ValueChoice([3, 7], label="kernel")
    model = nn.Sequential(elastic_nn.Conv2d(64, 64, kernel, padding=kernel // 2)).to(DEVICE)
    example = torch.randn(64, 64, 64, 64, device=DEVICE)
    cost = Latency(model, example, device=DEVICE, cache=tmp_path / "latencies.json")
    found = {size: cost.of({"kernel": size}) for size in (3, 7)}
    for size, milliseconds in found.items():
        expected = by_events(freeze(model, {"kernel": size}).eval(), example)
        assert expected / 2 < milliseconds < 2 * expected, (size, milliseconds, expected)
    assert 0 < found[3] < found[7]
    content = json.loads((tmp_path / "latencies.json").read_text())["measured"]
    assert {one["device"] for one in content.values()} == {torch.cuda.get_device_name()}
    again = Latency(model, example, device=DEVICE, cache=tmp_path / "latencies.json")
    assert again.of({"kernel": 3}) == found[3]
    trust = cost.trust(num_networks=4)
    assert min(trust.measured) > 0 and trust.error < 1, str(trust)


# --- files and compiling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "suffix"), [("onnx", "onnx"), ("torch.export", "pt2"), ("safetensors", "safetensors")]
)
def test_a_network_on_the_gpu_is_exported_and_read_on_the_cpu(tmp_path, format, suffix):
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    architecture = {"width": 8, "kernel": 5, "op": "tanh"}
    network = freeze(made(Wide).to(DEVICE), architecture).eval()
    path, x = tmp_path / f"network.{suffix}", images()
    card = export_network(network, x.to(DEVICE), path, format, architecture=architecture)
    assert card["costs"]["parameters"] == sum(p.numel() for p in network.parameters()) and is_on(network)
    read = load_network(path, *([Wide()] if format == "safetensors" else []))
    close(network(x.to(DEVICE)), read(x), 1e-4)


@pytest.mark.filterwarnings("ignore")  # of torch's own, about what it deprecates inside
def test_a_frozen_network_compiles_as_any_other():
    network = freeze(made(Wide).to(DEVICE), {"width": 8, "kernel": 5, "op": "tanh"}).eval()
    x = images().to(DEVICE)
    with torch.no_grad():
        close(network(x), torch.compile(network, backend="aot_eager")(x), 1e-4)


def test_the_net_of_resumed_searches_draws_on_the_gpu():
    """So that what goes on exactly is shown for random numbers of the GPU, too."""
    model, x = NoisyNet().to(DEVICE).train(), torch.ones(2, 1, 5, 5, device=DEVICE)
    before = torch.cuda.get_rng_state()
    Supernet(model)(x, {"stem": "conv", "act": "0", "skip": [0]})
    assert not torch.equal(before, torch.cuda.get_rng_state())
