"""What a sampled supernet costs beside the plain network of its path, and sampling beside plain data.

python -m benchmarks.sampled
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from benchmarks import measuring
from benchmarks.contestants import CLIP, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Task
from supernet import LayerChoice, SearchSpace, SinglePathTrainer, freeze
from supernet.execution.memory_format import channels_last_inputs

SAMPLES = 10_000


def choices(label: str, candidates: dict[str, nn.Module]) -> LayerChoice:
    return LayerChoice(candidates, label=label)


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def step_rows(task: Task, paths: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each of some sampled paths: a trainer's step on it, and the step of its plain network."""
    trn_X, trn_y, _, _ = task.batches()
    rows = []
    for path in range(paths):
        model = task.build(choices)
        architecture = SearchSpace(model).sample(torch.Generator().manual_seed(path))
        plain = freeze(model, architecture).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        data, loss_of, optimizer = TensorDataset(trn_X, trn_y), nn.CrossEntropyLoss(), sgd(plain)

        class OnePath(SinglePathTrainer):
            def sample(self, architecture: Any = architecture) -> Any:
                super().sample()  # costs what it costs
                return architecture

        trainer = OnePath(
            model, loss_of, None, sgd(model), 1, data, valid_dataset=data, batch_size=task.batch, progress=False
        )
        trainer.model.train()

        def plain_step(plain: Any = plain, optimizer: Any = optimizer, loss_of: Any = loss_of) -> None:
            optimizer.zero_grad()
            loss = loss_of(plain(channels_last_inputs(trn_X)), trn_y)
            if not torch.isfinite(loss):
                raise ArithmeticError
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), CLIP)
            optimizer.step()

        def sampled_step(trainer: Any = trainer) -> None:
            trainer.train_model_weight(trn_X, trn_y)

        runs: dict[str, Callable[[], None]] = {"plain": plain_step, "sampled": sampled_step}
        seconds = measuring.interleaved(runs, rounds)
        saved = {name: measuring.saved_by(run) for name, run in runs.items()}
        rows.append(
            {
                "batch": task.batch,
                "path": path,
                "plain ms": 1e3 * min(seconds["plain"]),
                "sampled / plain (median)": measuring.ratio(seconds["sampled"], seconds["plain"]),
                "sampled / plain (minima)": min(seconds["sampled"]) / min(seconds["plain"]),
                "plain saved MiB": saved["plain"],
                "sampled saved MiB": saved["sampled"],
            }
        )
    return rows


def sampling_rows(task: Task, rounds: int) -> list[dict[str, Any]]:
    """Return what it takes to draw, check and change many architectures of DARTS's space."""
    space, generator = SearchSpace(task.build(choices)), torch.Generator().manual_seed(0)

    def sampled() -> list[Any]:
        return [space.sample(generator) for _ in range(SAMPLES)]

    def all_of_it() -> None:
        for architecture in sampled():
            space.validate(architecture)
            space.canonical(architecture)
            space.mutate(architecture, generator)

    seconds = measuring.interleaved({"sampled": sampled, "also validated, made canonical, mutated": all_of_it}, rounds)
    return [{"what": name, "architectures": SAMPLES, "seconds (min)": min(s)} for name, s in seconds.items()]


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--paths", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(measuring.THREADS)
    rows = [
        row for b in options.batch for row in step_rows(Task("darts", options.depth, b), options.paths, options.rounds)
    ]
    measuring.report("sampled_step", f"A sampled step, DARTS's network of {options.depth} cells", rows)
    measuring.report("sampling", "Drawing architectures", sampling_rows(Task("darts", options.depth, 1), 5))


if __name__ == "__main__":
    main()
