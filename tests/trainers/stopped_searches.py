"""Searches by several processes that are stopped at some step and go on: `torchrun stopped_searches.py ...`.

    cycles RUN_DIR SEED KIND ...       let each be stopped again and again in these processes, by an exception in all
    search RUN_DIR NAME                run one, which goes on where it was stopped; and then one that never was
        --die SIGNAL --before STEP --rank RANK     one process gives itself the signal before that step of its own

Kept in a file of its own, since other processes run it. Each name is that of a kind of search and of a variant of it.
"""

import argparse
import json
import os
import random
import signal
import sys
from pathlib import Path

import torch
import torchmetrics
from searches import KINDS, Augmented, PathTrainer, before_each_step, digest, loss, result, search
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from supernet.errors import TrainingError
from supernet.trainers import Checkpointing
from supernet.training.evaluation import NetworkTrainer

RANK = int(os.environ.get("RANK", 0))
VARIANTS = {
    "plain": {},
    # Of 24 samples in each half, in batches of 4 in each of two processes, three make an epoch.
    "accumulated": {"accumulate": 2, "batch_size": 2},
    "plateau": {"scheduler": lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.05)},
    "bf16": {"precision": "bf16-mixed"},
    "torchmetrics": {"metrics": torchmetrics.classification.MulticlassAccuracy(3)},
}


class OfEach(PathTrainer):
    """A trainer of somebody else, in which each process has statistics of its own, and draws numbers of its own."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.losses, self.mean = [], torch.zeros(3)

    def stateful(self):
        return {**super().stateful(), "losses": self.losses, "mean": self.mean}

    def train_step(self, trn_X, trn_y, val_X, val_y):
        super().train_step(trn_X + 0.1 * random.random(), trn_y, val_X, val_y)
        self.losses.append(random.random())
        self.mean += trn_X.mean()


KINDS["of each"] = (OfEach, {})


def network(run_dir, **options):
    """Train a plain network, whose validation moves no state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Flatten(), nn.Linear(36, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    if callable(options.get("scheduler")):
        options["scheduler"] = options["scheduler"](optimizer)
    options = {"batch_size": 4, "valid_dataset": Augmented(16, noise=False), "run_dir": run_dir, **options}
    metrics = options.pop("metrics", None)
    trainer = NetworkTrainer(model, loss, metrics, optimizer, 3, Augmented(), device="cpu", **options)
    inner = trainer.one_step

    def one_step():
        trainer.before_step()
        return inner()

    trainer.one_step, trainer.before_step = one_step, lambda: None
    return trainer


def new(name, run_dir, before_step=None, every_steps=2):
    kind, variant = name.split("/")
    options = {**VARIANTS[variant], "checkpointing": Checkpointing(every_steps=every_steps)}
    options |= {"log_frequency": 2, "process_timeout": 60}
    trainer = network(run_dir, **options) if kind == "network" else search(kind, run_dir, **options)
    trainer._write_plots = lambda run: None
    if before_step is not None and kind == "network":
        trainer.before_step = before_step
    elif before_step is not None:
        before_each_step(trainer, before_step)
    return trainer


def found(trainer):
    """What two runs of one search must have in common in each process, bit for bit."""
    state = trainer.given_optimizer.state_dict()["state"]
    own = {name: getattr(trainer, name, None) for name in ("losses", "baseline", "counts", "training_steps")}
    mean = getattr(trainer, "mean", None)
    if isinstance(trainer, NetworkTrainer):
        trainer.export = dict
    return {
        **result(trainer),
        "optimizer": digest([t for one in state.values() for t in one.values() if isinstance(t, torch.Tensor)]),
        "rates": [group["lr"] for group in trainer.given_optimizer.param_groups],
        "own": repr(own),
        "mean": None if mean is None else mean.tolist(),
    }


def tell(run_dir, content):
    (run_dir / f"result-{RANK}.json").write_text(json.dumps(content))


class Stop(Exception):
    pass


def cycles(run_dir, names, rng, stops):
    """Stop and go on with each search; print what differs, and how many stops there were."""
    differing, count = [], 0
    for name in names:
        whole = new(name, run_dir / name / "whole")
        whole.fit()
        expected = found(whole)
        for _ in range(stops):
            left = rng.randint(1, 5)  # the same in all processes

            def before_step():
                nonlocal left
                if left == 0:
                    raise Stop
                left -= 1

            trainer = new(name, run_dir / name / "parts", before_step)
            try:
                trainer.fit(resume="auto")
            except (Stop, TrainingError):  # that another one has stopped may be noticed first
                count += 1
            else:
                break
            torch.manual_seed(rng.randint(0, 100))
        trainer = new(name, run_dir / name / "parts")
        trainer.fit(resume="auto")
        now = found(trainer)
        differing += [f"{name}: {what}" for what in expected if now[what] != expected[what]]
    tell(run_dir, {"differing": differing, "stops": count})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["cycles", "search"])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stops", type=int, default=4)
    parser.add_argument("--die", default="SIGTERM")
    parser.add_argument("--before", type=int)
    parser.add_argument("--rank", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "cycles":
        return cycles(options.run_dir, options.names, random.Random(options.seed), options.stops)
    steps = 0

    def before_step():
        nonlocal steps
        steps += 1
        if steps == options.before and options.rank == RANK:
            os.kill(os.getpid(), getattr(signal, options.die))

    trainer = new(options.names[0], options.run_dir, before_step)
    trainer.fit(resume="auto")
    whole = new(options.names[0], options.run_dir / "whole")
    whole.fit()
    now, expected = found(trainer), found(whole)
    tell(options.run_dir, {"differing": [what for what in expected if now[what] != expected[what]]})
    return None


if __name__ == "__main__":
    sys.exit(main())
