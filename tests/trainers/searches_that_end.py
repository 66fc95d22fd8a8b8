"""Searches of several processes in which something goes wrong: `torchrun searches_that_end.py MODES DIRECTORY`.

Each process writes JSON: for each of the modes, which are run one after another, its error and how long it took.
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from supernet import DartsTrainer, LayerChoice, SinglePathTrainer, accuracy, evaluate
from supernet.trainers import Callback, Checkpointing

BY_TORCHRUN = "TORCHELASTIC_RUN_ID" in os.environ  # else Fabric launches the second process
RANK = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
DIFFERS = RANK == 1
TIMEOUT = 3.0  # of searches that hang; others end at once
HANG = ("hangs", "is stopped", "shorter", "skips a step")


class Hook(Callback):
    def __init__(self, **hooks):
        for name, hook in hooks.items():
            setattr(self, name, hook)


def new_trainer(mode, run_dir):
    """A small search; in process 1, or by its nature in the first, something is as the mode says."""
    here = {mode: True} if DIFFERS else {}
    torch.manual_seed(RANK if "initial weights" in here else 0)
    width = 3 if "shape" in here else 4
    model = nn.Sequential(
        nn.Linear(4, width),
        LayerChoice([nn.Linear(width, width), nn.ReLU()] + [nn.Tanh()] * ("space" in here), label="body"),
        nn.Linear(width, 2),
    )
    if mode == "buffers of any dtype":
        for dtype in (torch.int16, torch.uint16, torch.bool, torch.float8_e4m3fn, torch.complex64):
            model[0].register_buffer(str(dtype).split(".")[1], torch.full((2, 3), RANK).to(dtype))
    generator = torch.Generator().manual_seed(7 if "samples" in here else 0)
    count = 60 if "length" in here else 64
    X = torch.randn(count, 4, generator=generator)
    dataset = TensorDataset(X, (X.sum(1) > 0).long())
    options = {
        "loss": nn.functional.cross_entropy,
        "metrics": accuracy,
        "optimizer": torch.optim.SGD(model.parameters(), 0.2 if "learning rate" in here else 0.1),
        "num_epochs": 3 if "epochs" in here else 2,
        "dataset": dataset,
        "batch_size": 4,
        "seed": 1 if "seed" in here else 0,
        "device": "cpu",
        "devices": 2,
        "run_dir": run_dir,
        "process_timeout": TIMEOUT if mode in HANG else 60.0,
        "checkpointing": Checkpointing(every_epochs=1),
    }
    if mode == "own run_dir":
        options["run_dir"] = f"{run_dir}-{RANK}"
    if "no run_dir" in here:
        options["run_dir"] = None
    if mode == "metrics" and DIFFERS:
        options["metrics"] = named_metrics
    if "metric names" in mode:
        options["metrics"] = names_that_differ
    if mode == "clock":
        options["stop_when"] = [lambda record: "late" if record["epoch"] == 1 and RANK == 0 else None]
    if mode == "score":
        steps = iter(range(10_000))
        options |= {"num_evaluations": 6, "population": 2, "num_parents": 1}
        options["score"] = lambda measured: next(steps) * (-1) ** RANK
        return SinglePathTrainer(model, **options)
    if mode == "constraint":
        options |= {"num_evaluations": 4, "population": 2, "constraint": lambda a: RANK == 0 or a["body"] != "0"}
        return SinglePathTrainer(model, **options)
    if mode == "callback of all":
        options |= {"num_evaluations": 4, "population": 2}
        options["callbacks"] = [Hook(epoch_ended=lambda trainer, record: trainer.export())]
        return SinglePathTrainer(model, **options)
    if mode == "callbacks in one":
        options["callbacks"] = [Hook()] if RANK == 0 else []
    if mode == "callback raises":
        options["callbacks"] = [Hook(epoch_ended=lambda trainer, record: 1 / 0)]
    return DartsTrainer(model, **options)


def named_metrics(output, target):
    return {"one": accuracy(output, target)}


def names_that_differ(output, target):
    return {f"of process {RANK}": accuracy(output, target)}


def spoil(trainer, mode):
    """Let something happen in the third step of the second process, or where the first writes."""
    step = trainer.train_step

    def third_step(*batches):
        if trainer.step == 2 and trainer.epoch == 0 and DIFFERS:
            if mode == "raises":
                raise ValueError("broken on purpose")
            if mode == "dies":
                os._exit(0)
            if mode == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if mode == "is stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if mode == "hangs":
                time.sleep(1_000)
            if mode == "leaves":
                raise SystemExit(0)
            if mode == "skips a step":
                return
            if mode == "diverges":
                with torch.no_grad():
                    trainer.model[0].weight += 0.1
            if mode == "learning rate moves":
                trainer.given_optimizer.param_groups[0]["lr"] = 0.5
        step(*batches)

    if hasattr(trainer, "train_architecture"):
        trainer.train_step = third_step
    if mode == "shorter":  # a loader that has fewer batches than it says
        batches = trainer.train_part.batches
        trainer.train_part.batches = lambda *where: list(batches(*where))[: 3 if DIFFERS else None]
    if mode == "full disk" and RANK == 0:
        trainer._run.directory.write_checkpoint = full
    if mode == "signal" and DIFFERS:
        trainer.train_step = lambda *batches: (
            os.kill(os.getpid(), signal.SIGTERM) if trainer.step == 2 else None,
            step(*batches),
        )


def full(*_):
    raise OSError(28, "No space left on device")


def outcome(mode, run_dir):
    began = time.monotonic()
    told = {"error": None}
    try:
        trainer = new_trainer(mode, run_dir)
        spoil(trainer, mode)
        trainer.fit()
        told |= {"stopped": trainer.stopped, "architecture": trainer.export(), "losses": losses(trainer)}
        if mode == "buffers of any dtype":
            network = nn.Linear(4, 2)
            network.register_buffer("odd", torch.zeros(2, dtype=torch.int16))
            dataset = TensorDataset(torch.zeros(4, 4), torch.zeros(4).long())
            evaluate(network, loss=nn.functional.cross_entropy, metrics=None, dataset=dataset)
        told["buffers"] = [str(buffer.tolist()) for buffer in trainer.model.buffers()]
    except BaseException as raised:
        told["error"] = f"{type(raised).__name__}: {raised}"
        told["code"] = raised.code if isinstance(raised, SystemExit) else 1
    return {**told, "seconds": time.monotonic() - began}


def losses(trainer):
    return [record["train_loss"] for record in trainer.history]


def main():
    logging.getLogger("supernet").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    modes, directory = sys.argv[1:]
    if BY_TORCHRUN:
        torch.distributed.init_process_group(
            "gloo"
        )  # by torch's own timeout: how long imports take is not what is tested
    outcomes = {}
    for mode in modes.split(","):
        outcomes[mode] = outcome(mode, f"{directory}/{mode}")
        Path(directory, f"process-{RANK}.json").write_text(json.dumps(outcomes))
    if code := outcomes[mode].get("code", 0):
        time.sleep(0.5)  # else torchrun may end another process before it has told
    sys.exit(code)


if __name__ == "__main__":
    main()
