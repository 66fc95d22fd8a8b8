"""The main job, whole: the best small networks under three budgets, from one supernet, and how good the search was.

A supernet of small convolutional networks for handwritten digits is trained once, and searched for the best networks of
at most 600, 1,000 and 2,000 parameters; the best of each are trained on for a few epochs, the best of these alone, and
the one that validates best is found. It is trained from new weights, and so are random networks under the same limits
and what random search finds in the time that the search took; all by one recipe, and for several seeds. They are
measured on a test set that no search and no training has seen. What was found is written as ONNX files.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

import torch
from rich.console import Console
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.data import Dataset, TensorDataset

from supernet.compare import Comparison, compare_under_limits
from supernet.cost import CostBins, Limits, Parameters
from supernet.deploy import export_network
from supernet.errors import MissingExtraError
from supernet.execution import Supernet
from supernet.nn import BatchNorm2d, Conv2d, LayerChoice, Linear, Repeat, ValueChoice
from supernet.search import RandomSearcher, SupernetEvaluator, search_front
from supernet.space import Architecture, SearchSpace, freeze
from supernet.training.evaluation import evaluate, train
from supernet.training.metrics import accuracy

__all__ = ["Network", "Searched", "digits", "run_demo"]

BATCH_SIZE, MOMENTUM, WEIGHT_DECAY = 64, 0.9, 3e-4
TUNING_EPOCHS = 4
NEAR = 0.8  # of a limit, from which on networks are searched: what is far below it is hardly ever the best
BUDGETS = tuple({"parameters": most} for most in (600, 1_000, 2_000))

Parts: TypeAlias = tuple[TensorDataset, TensorDataset, TensorDataset]


# --- the data ----------------------------------------------------------------------------------------------


def digits() -> Parts:
    """Return scikit-learn's 1,797 handwritten digits (1, 8, 8): 898 to train on, 300 to choose by, 599 to test on."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtraError("the demo's data needs scikit-learn: pip install 'supernet[demo]'") from error
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    known, test = train_test_split(range(len(labels)), test_size=1 / 3, stratify=data.target, random_state=0)
    training, valid = train_test_split(known, test_size=300, stratify=data.target[known], random_state=0)
    parts = (TensorDataset(images[rows], labels[rows]) for rows in (training, valid, test))
    return next(parts), next(parts), next(parts)


# --- the space ---------------------------------------------------------------------------------------------


def layer(before: Any, width: Any, name: str, stride: int = 1) -> LayerChoice:
    """Return a choice between a full convolution and a depthwise one, of a kernel that is chosen."""
    kernel = ValueChoice([1, 3, 5], label=f"{name}_kernel")
    depthwise = conv_norm(before, before, kernel, stride, groups=before)
    return LayerChoice(
        {
            "full": conv_norm(before, width, kernel, stride),
            "depthwise": nn.Sequential(*depthwise, *conv_norm(before, width, 1)),
        },
        label=name,
    )


def conv_norm(before: Any, width: Any, kernel: Any, stride: int = 1, groups: Any = 1) -> nn.Sequential:
    """Return a convolution that keeps the image's size but for the stride, BatchNorm and ReLU."""
    convolution = Conv2d(before, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, BatchNorm2d(width), nn.ReLU())


class Network(nn.Module):
    """Two stages of one to three layers, with the image halved between, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (ValueChoice(range(4, 25, 2), label=f"width_{stage}") for stage in (1, 2))
        self.body = nn.Sequential(
            conv_norm(1, first, ValueChoice([1, 3, 5], label="stem_kernel")),
            Repeat(lambda i: layer(first, first, f"layer_1_{i + 1}"), (0, 2), label="depth_1"),
            layer(first, second, "layer_2_0", stride=2),
            Repeat(lambda i: layer(second, second, f"layer_2_{i + 1}"), (0, 2), label="depth_2"),
        )
        self.head = Linear(second, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10) of images (N, 1, 8, 8)."""
        return self.head(self.body(x).mean((2, 3)))


# --- the search --------------------------------------------------------------------------------------------


class Searched:
    """A supernet that is trained once, and then searched for the best network under any limits.

    Args:
        seed: Seed of weights, paths and batches.
        data: What it is trained on, what architectures are measured on, and what it does not look at.
        num_epochs: Number of epochs in which the supernet is trained.
        num_evaluations: Number of architectures that a search measures in it.
        num_tuned: How many of the best of these are trained on from the supernet's weights, for a few epochs.
        num_finalists: How many of the best of those are trained alone from new weights, to choose among.
        train_epochs: Number of epochs in which these are trained.
    """

    def __init__(
        self,
        seed: int,
        *,
        data: Parts,
        num_epochs: int,
        num_evaluations: int,
        num_tuned: int,
        num_finalists: int,
        train_epochs: int,
    ) -> None:
        self.seed, self.data, self.num_evaluations = seed, data, num_evaluations
        self.num_tuned, self.num_finalists, self.train_epochs = num_tuned, num_finalists, train_epochs
        train_set, valid_set, _ = data
        torch.manual_seed(seed)
        self.supernet = Supernet(Network())
        optimizer = SGD(self.supernet.parameters(), 0.05, MOMENTUM, weight_decay=WEIGHT_DECAY)
        scheduler = CosineAnnealingLR(optimizer, num_epochs)
        # Most networks of the space are above all budgets, and few are under the least: each bin is trained as often.
        bins = CostBins(Parameters(self.supernet.model), [0, *(budget["parameters"] for budget in BUDGETS)])
        generator = torch.Generator().manual_seed(seed)
        images, labels = train_set.tensors
        for _ in range(num_epochs):
            # Each step trains one of many networks, so many small ones serve better than few that are exact.
            for rows in torch.randperm(len(labels), generator=generator).split(BATCH_SIZE // 2):
                optimizer.zero_grad()
                logits = self.supernet(images[rows], bins.sample(generator))
                nn.functional.cross_entropy(logits, labels[rows]).backward()
                optimizer.step()
            scheduler.step()
        self.evaluator = SupernetEvaluator(
            self.supernet, (train_set, valid_set), loss=nn.CrossEntropyLoss(), metrics=accuracy, batch_size=300
        )

    def best(self, limits: Limits) -> Architecture:
        """Return the architecture that is best within limits: of the best in the supernet, the best alone.

        Networks this small do not share weights well: the supernet knows good ones from bad, but cannot order the good
        ones. So only networks near the limits are measured in it, the few that it takes for the best are trained on,
        each for itself, and the best of these from new weights (both by the idea of successive halving, arXiv
        1502.07943).
        """
        bounds = limits.bounds.items()
        near = {name: (max(least, NEAR * most if most < math.inf else least), most) for name, (least, most) in bounds}
        found = search_front(
            self.evaluator,
            {"loss": "min"},
            self.num_evaluations,
            limits=Limits(limits.space, near, costs=limits.costs),
            searcher=RandomSearcher,  # what evolution breeds is alike, and the supernet errs for all of it
            generator=torch.Generator().manual_seed(self.seed),
        )
        best = [entry.architecture for entry in sorted(found.entries, key=lambda entry: entry.metrics["loss"])]
        tuned = sorted(best[: self.num_tuned], key=self._loss_when_tuned)
        return min(tuned[: self.num_finalists], key=self._loss_alone)

    def _loss_when_tuned(self, architecture: Architecture) -> float:
        return self._loss_of(freeze(self.supernet.model, architecture), TUNING_EPOCHS)

    def _loss_alone(self, architecture: Architecture) -> float:
        torch.manual_seed(self.seed)
        return self._loss_of(freeze(Network(), architecture), self.train_epochs)

    def _loss_of(self, network: nn.Module, num_epochs: int) -> float:
        train_set, valid_set, _ = self.data
        train_network(network, train_set, self.seed, num_epochs=num_epochs)
        return evaluate(network, nn.CrossEntropyLoss(), None, valid_set)["loss"]

    def estimate(self, architectures: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return each one's validation accuracy in the supernet, in percent."""
        return [100 * measured["accuracy"] for measured in self.evaluator.evaluate_many(architectures)]


# --- the comparison ----------------------------------------------------------------------------------------


def train_network(network: nn.Module, dataset: Dataset[Any], seed: int, *, num_epochs: int) -> None:
    """Train a network in place: the one recipe of all that is compared."""
    optimizer = SGD(network.parameters(), 0.3, MOMENTUM, weight_decay=WEIGHT_DECAY)
    # Without its warm-up, networks this small differ more by their seeds than by their architectures.
    scheduler = OneCycleLR(optimizer, 0.3, total_steps=num_epochs, cycle_momentum=False)
    how: dict[str, Any] = {"batch_size": BATCH_SIZE, "scheduler": scheduler, "seed": seed, "progress": False}
    train(network, nn.CrossEntropyLoss(), None, optimizer, num_epochs, dataset, **how)


def percent_correct(network: nn.Module, dataset: Dataset[Any]) -> float:
    """Return the accuracy of a network, in percent."""
    return 100 * evaluate(network, None, accuracy, dataset)["accuracy"]


def run_demo(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    num_random: int = 2,
    search_epochs: int = 20,
    num_evaluations: int = 100,
    num_tuned: int = 12,
    num_finalists: int = 3,
    train_epochs: int = 24,
    processes: int = 1,
    runs: Path = Path("runs"),
    console: Console | None = None,
) -> Comparison:
    """Search, compare what was found, print a table, write pictures and files, and return what was compared.

    Args:
        seeds: Seeds, each of a supernet, of searches, draws and trainings of its own.
        num_random: Number of random networks under each budget, for each seed.
        search_epochs: Number of epochs in which a supernet is trained.
        num_evaluations: Number of architectures that are measured in a supernet under each budget.
        num_tuned: How many of the best of these are trained on from the supernet's weights, for a few epochs.
        num_finalists: How many of the best of those are trained alone, to choose among.
        train_epochs: Number of epochs in which every network is trained.
        processes: Number of processes that share the seeds.
        runs: Directory in which a new run directory is made.
        console: Console to print on. Default: standard output.
    """
    # Whoever reads from a pipe wants whole lines.
    console = console or Console(width=None if sys.stdout.isatty() else 140)
    data = digits()
    sizes = [len(part) for part in data]
    run_dir = _new_directory(runs)
    console.print(
        f"{sizes[0]} digits to train on, {sizes[1]} to choose by, {sizes[2]} to test on; "
        f"{SearchSpace(Network()).size:,} networks"
    )
    recipe = partial(train_network, num_epochs=train_epochs)
    effort = {"num_epochs": search_epochs, "num_evaluations": num_evaluations, "num_tuned": num_tuned}
    effort |= {"num_finalists": num_finalists, "train_epochs": train_epochs}
    comparison = compare_under_limits(
        Network,
        BUDGETS,
        partial(Searched, data=data, **effort),
        recipe,
        percent_correct,
        data,
        seeds=seeds,
        num_random=num_random,
        processes=processes,
        on_progress=console.print,
    )
    console.print(comparison.table())
    if taus := comparison.rank_correlations():
        console.print(
            f"Kendall's tau between a supernet's accuracies and those of {num_random * len(BUDGETS)} random networks, "
            f"mean of {len(taus)} seeds: {mean(taus):.2f}"
        )
    comparison.save(run_dir / "comparison.json")
    comparison.plot(run_dir / "front")
    images = data[-1].tensors[0][:16]
    for budget in BUDGETS:
        one = comparison.row(budget, "found").contestants[0]
        assert one.network is not None
        path = run_dir / f"at_most_{budget['parameters']}.onnx"
        metrics = {comparison.score: one.score}
        export_network(
            one.network, images, path, architecture=one.architecture, limits=budget, metrics=metrics
        )  # which runs the file, and compares
        console.print(f"{path.name} gives what the network gives: {one.architecture}", markup=False, emoji=False)
    console.print(f"Rows, pictures and networks: {run_dir}", markup=False, emoji=False)
    return comparison


def _new_directory(runs: Path) -> Path:
    """Return a directory that is not there yet: demo-1, demo-2, ..."""
    path = next(path for n in itertools.count(1) if not (path := runs / f"demo-{n}").exists())
    path.mkdir(parents=True)
    return path
