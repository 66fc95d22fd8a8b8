"""Small searches that are killed, resumed and run in several processes: `python searches.py NAME RUN_DIR ...`.

Kept in a file of its own, since other processes run it.
"""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import SGD
from torch.utils.data import Dataset

from supernet import (
    DartsTrainer,
    EnasTrainer,
    InputChoice,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    SinglePathTrainer,
    SupernetTrainer,
    accuracy,
)
from supernet.execution import InputSlot, LayerSlot
from supernet.trainers import Checkpointing, SampledTrainer
from supernet.training.snapshot import digest


class Net(nn.Module):
    """Convolutions, BatchNorm, dropout, a nested choice and a choice of inputs."""

    def __init__(self, norm=True):
        super().__init__()
        deep = nn.Sequential(nn.Conv2d(1, 4, 1), LayerChoice([nn.ReLU(), nn.Tanh()], label="act"))
        self.stem = LayerChoice({"conv": nn.Conv2d(1, 4, 3, padding=1), "deep": deep}, label="stem")
        self.norm = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.2)) if norm else nn.Identity()
        self.skip = InputChoice(2, 1, label="skip")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.stem(x))
        return self.head(self.skip([x, x.relu()]).mean((2, 3)))


class Augmented(Dataset):
    """Images of three classes, each changed by random numbers of all three kinds whenever it is read."""

    def __init__(self, count=48, noise=True):
        import numpy

        self.numpy = numpy
        generator = torch.Generator().manual_seed(0)
        self.y = torch.randint(3, (count,), generator=generator)
        self.X = torch.randn(count, 1, 5, 5, generator=generator) + self.y[:, None, None, None]
        self.noise = noise

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        if not self.noise:
            return self.X[index], self.y[index]
        change = 0.1 * random.random() + 0.1 * self.numpy.random.random() + 0.1 * torch.rand(1)
        return (self.X[index] + change).float(), self.y[index]


class PathTrainer(SupernetTrainer):
    """A trainer of somebody else: one uniformly drawn path a step, and the candidate drawn most often wins."""

    leaves_parameters_unused = True

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.generator = torch.Generator().manual_seed(self.seed)  # the same in all processes
        self.counts = {}
        self.build_supernet(LayerSlot, InputSlot, self.decisions())

    def stateful(self):
        return {**super().stateful(), "generator": self.generator, "counts": self.counts}

    def decisions(self):
        return self.space.draw(self.generator)

    def train_step(self, trn_X, trn_y, val_X, val_y):
        path = self.decisions()
        self.counts[path["stem"]] = self.counts.get(path["stem"], 0) + 1
        loss = self.compute_loss("train", self.forward(trn_X, path), trn_y)
        self.optimizer_step(loss, self.optimizer, clip=self.grad_clip)

    def export(self):
        return {"stem": max(sorted(self.counts), key=self.counts.get), "act": 0, "skip": 0}


def negative_loss(output, target):
    return -loss(output, target)


class Tempered(nn.Module):
    """A loss that learns its temperature, and counts the batches that it is trained on."""

    def __init__(self):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, output, target):
        self.batches += 1
        return nn.functional.cross_entropy(output * self.log_temperature.exp(), target)


KINDS = {
    "first order": (DartsTrainer, {"arc_learning_rate": 0.05}),
    "second order": (DartsTrainer, {"arc_learning_rate": 0.05, "unrolled": True}),
    "lean": (DartsTrainer, {"arc_learning_rate": 0.05, "memory": "lean"}),
    "learned loss": (DartsTrainer, {"arc_learning_rate": 0.05, "loss": Tempered}),
    "path": (PathTrainer, {}),
    "enas": (
        EnasTrainer,
        {"reward_function": negative_loss, "ctrl_steps_aggregate": 4, "ctrl_lr": 0.01, "num_samples": 3},
    ),
    "proxyless": (
        ProxylessTrainer,
        {"warmup_epochs": 1, "arc_learning_rate": 0.05, "cost": {"stem": {"conv": 1.0, "deep": 0.5}}},
    ),
    "reinforce": (ProxylessTrainer, {"estimator": "reinforce", "arc_learning_rate": 0.05}),
    "single path": (SinglePathTrainer, {"num_evaluations": 6, "population": 3, "num_parents": 2}),
    "random": (RandomTrainer, {"num_samples": 5, "num_finalists": 2}),
}


def loss(output, target):
    return nn.functional.cross_entropy(output, target)


def search(kind, run_dir=None, *, norm=True, noise=True, slow=0.0, one_path=False, **options):
    torch.manual_seed(0)
    model = Net(norm)
    trainer_class, its_own = KINDS[kind]
    its_own = {**its_own, "loss": its_own["loss"]()} if "loss" in its_own else its_own
    of_loss = its_own["loss"].parameters() if "loss" in its_own else []
    optimizer = SGD([*model.parameters(), *of_loss], 0.1, momentum=0.9, weight_decay=1e-3)
    options = {
        "num_epochs": 3,
        "batch_size": 4,
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]),
        "metrics": accuracy,
        "loss": loss,
        "device": "cpu",
        "run_dir": run_dir,
        **its_own,
        **options,
    }
    if callable(options["scheduler"]):
        options["scheduler"] = options["scheduler"](optimizer)
    trainer = trainer_class(model, optimizer=optimizer, dataset=Augmented(noise=noise), **options)
    if one_path:
        trainer.decisions = lambda: {"stem": "deep", "act": "1", "skip": [0]}
    if slow:
        before_each_step(trainer, lambda: time.sleep(slow))
    return trainer


def before_each_step(trainer, do):
    """Let `do` run before each step of the search, whichever method takes it."""

    def preceded(inner):
        def step(*batches):
            do()
            inner(*batches)

        return step

    of_paths = isinstance(trainer, SampledTrainer)
    for name in ("train_model_weight", "use_validation_batch") if of_paths else ("train_step",):
        setattr(trainer, name, preceded(getattr(trainer, name)))


class Stop(Exception):
    pass


def stopped_after(trainer, steps):
    """Let the trainer raise after that many steps: an error is as good as a kill to what is on the disk."""
    done = []

    def count():
        if len(done) == steps:
            raise Stop
        done.append(1)

    before_each_step(trainer, count)
    try:
        trainer.fit(resume="auto")
    except Stop:
        return
    raise AssertionError(f"the search has ended within {steps} steps")


def result(trainer):
    """What two runs of one search must have in common, bit for bit."""
    alphas = getattr(trainer, "alphas", {})
    controller = getattr(trainer, "controller", None)
    return {
        "controller": None if controller is None else digest(controller.parameters()),
        "weights": digest([*trainer.model.parameters(), *trainer.model.buffers(), *state_of_loss(trainer).values()]),
        "alphas": digest(alphas.values()),
        "architecture": trainer.export(),
        "history": [{k: v for k, v in record.items() if k != "cost"} for record in trainer.history],
    }


def state_of_loss(trainer):
    return trainer.loss.state_dict() if isinstance(trainer.loss, nn.Module) else {}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("run_dir")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--every-steps", type=int, default=1)
    parser.add_argument("--pause-in-save", action="store_true")
    parser.add_argument("--raise-on-rank", type=int)
    parser.add_argument("--options", type=json.loads, default={}, help="more of them, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.pause_in_save:  # so that many kills fall into one
        import supernet.space.files as files

        flush = files.flush

        def slowly(file):
            time.sleep(0.05)
            flush(file)

        files.flush = slowly
    trainer = search(
        options.kind,
        options.run_dir,
        slow=options.slow,
        workers=options.workers,
        checkpointing=Checkpointing(every_steps=options.every_steps),
        **options.options,
    )
    rank = int(os.environ.get("RANK", 0))
    if options.raise_on_rank == rank:

        def break_down():
            raise ValueError("broken on purpose")

        before_each_step(trainer, break_down)
    print("ready", flush=True)
    trainer.fit(resume="auto")
    Path(options.run_dir, f"result-{rank}.json").write_text(json.dumps(result(trainer)))
    tensors = {f"weights.{name}": p.detach() for name, p in trainer.model.named_parameters()}
    tensors |= {f"loss.{name}": value for name, value in state_of_loss(trainer).items()}
    tensors |= {f"alphas.{label}": alpha.detach() for label, alpha in getattr(trainer, "alphas", {}).items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, Path(options.run_dir, f"result-{rank}.safetensors"))


if __name__ == "__main__":
    sys.exit(main())
