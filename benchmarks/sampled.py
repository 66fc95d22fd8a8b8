"""What a sampled supernet costs beside the plain network of its path, and sampling beside plain data.

python -m benchmarks.sampled
python -m benchmarks.sampled --network darts --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from benchmarks import measuring
from benchmarks.contestants import CLIP, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Task
from supernet import LayerChoice, SearchSpace, SinglePathTrainer, freeze
from supernet.execution.memory_format import channels_last_inputs
from supernet.hub import MobileNetV3

SAMPLES = 10_000

Case = tuple[Callable[[], nn.Module], torch.Tensor, torch.Tensor]


def choices(label: str, candidates: dict[str, nn.Module]) -> LayerChoice:
    return LayerChoice(candidates, label=label)


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def darts(depth: int, batch: int) -> Case:
    """Return what makes DARTS's network of some cells, and a batch."""
    task = Task("darts", depth, batch)
    trn_X, trn_y, _, _ = task.batches()
    return partial(task.build, choices), trn_X, trn_y


def mobilenetv3(batch: int) -> Case:
    """Return what makes Once-for-All's MobileNetV3 for 10 classes, and a batch of images of 96 x 96."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 96, 96, generator=generator)
    return partial(MobileNetV3, 10, dropout=0.0), images, torch.randint(10, (batch,), generator=generator)


def step_rows(name: str, case: Case, paths: int, rounds: int, device: str) -> list[dict[str, Any]]:
    """Return a row for each of some sampled paths: a trainer's step on it, and the step of its plain network."""
    make, trn_X, trn_y = case
    trn_X, trn_y = trn_X.to(device), trn_y.to(device)
    batch = len(trn_X)
    rows = []
    for path in range(paths):
        torch.manual_seed(0)
        model = make().to(device)
        architecture = SearchSpace(model).sample(torch.Generator().manual_seed(path))
        plain = freeze(model, architecture).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        data, loss_of, optimizer = TensorDataset(trn_X.cpu(), trn_y.cpu()), nn.CrossEntropyLoss(), sgd(plain)

        class OnePath(SinglePathTrainer):
            def sample(self, architecture: Any = architecture) -> Any:
                super().sample()  # costs what it costs
                return architecture

        options: dict[str, Any] = {"valid_dataset": data, "batch_size": batch, "device": device, "progress": False}
        trainer = OnePath(model, loss_of, None, sgd(model), 1, data, **options)
        trainer.model.train()

        def plain_step(plain: Any = plain, optimizer: Any = optimizer, loss_of: Any = loss_of) -> None:
            optimizer.zero_grad()
            loss = loss_of(plain(channels_last_inputs(trn_X)), trn_y)
            if device == "cpu" and not torch.isfinite(loss):  # on a GPU a trainer does not wait for that either
                raise ArithmeticError
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), CLIP)
            optimizer.step()

        def sampled_step(trainer: Any = trainer) -> None:
            trainer.train_model_weight(trn_X, trn_y)

        runs: dict[str, Callable[[], None]] = {"plain": plain_step, "sampled": sampled_step}
        seconds = measuring.interleaved(runs, rounds, device)
        saved = {name: measuring.saved_by(run) for name, run in runs.items()}
        rows.append(
            {
                "network": name,
                "batch": batch,
                "path": path,
                "plain ms": 1e3 * min(seconds["plain"]),
                "sampled / plain (median)": measuring.ratio(seconds["sampled"], seconds["plain"]),
                "sampled / plain (minima)": min(seconds["sampled"]) / min(seconds["plain"]),
                "plain saved MiB": saved["plain"],
                "sampled saved MiB": saved["sampled"],
            }
        )
    return rows


def sampling_rows(name: str, make: Callable[[], nn.Module], rounds: int) -> list[dict[str, Any]]:
    """Return what it takes to make a network, and to draw, check and change many architectures of its space."""
    space, generator = SearchSpace(make()), torch.Generator().manual_seed(0)

    def sampled() -> list[Any]:
        return [space.sample(generator) for _ in range(SAMPLES)]

    def all_of_it() -> None:
        for architecture in sampled():
            space.validate(architecture)
            space.canonical(architecture)
            space.mutate(architecture, generator)

    runs = {"network made": make, "sampled": sampled, "also validated, made canonical, mutated": all_of_it}
    seconds = measuring.interleaved(runs, rounds)
    return [{"network": name, "what": what, "seconds (min)": min(s)} for what, s in seconds.items()]


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=["darts", "mobilenetv3"], default=["darts", "mobilenetv3"])
    parser.add_argument("--depth", type=int, default=8, help="cells of DARTS's network")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--paths", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(measuring.THREADS)
    steps, drawn = [], []
    if "darts" in options.network:
        for batch in options.batch:
            steps += step_rows("DARTS", darts(options.depth, batch), options.paths, options.rounds, options.device)
        drawn += sampling_rows("DARTS", darts(options.depth, 1)[0], 5)
    if "mobilenetv3" in options.network:
        for batch in options.batch:
            steps += step_rows("MobileNetV3", mobilenetv3(batch), options.paths, options.rounds, options.device)
        drawn += sampling_rows("MobileNetV3", mobilenetv3(1)[0], 5)
    measuring.report("sampled_step", "A sampled step", steps, options.device)
    measuring.report("sampling", f"Drawing {SAMPLES:,} architectures", drawn)


if __name__ == "__main__":
    main()
