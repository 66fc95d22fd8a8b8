"""The main job, whole: search a network for handwritten digits, and see how good the search was.

The architecture that DARTS finds is trained from new weights, and so are random architectures of the same space,
in the same way and over the same seeds. All are measured on a test set that no search and no training has seen.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import TensorDataset

from supernet.errors import MissingExtraError
from supernet.hub.darts import darts_candidates, relu_conv_norm
from supernet.nn import InputChoice, LayerChoice
from supernet.space import Architecture, SearchSpace, freeze
from supernet.trainers import DartsTrainer, accuracy
from supernet.training.evaluation import evaluate, train

__all__ = ["Contestant", "Network", "digits", "run_demo"]

BATCH_SIZE = 64


# --- the data ----------------------------------------------------------------------------------------------


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's 1,797 handwritten digits (1, 8, 8) as 1,198 to search and train on, and 599 to test."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtraError("the demo's data needs scikit-learn: pip install 'supernet[demo]'") from error
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    train_rows, test_rows = train_test_split(range(len(labels)), test_size=1 / 3, stratify=data.target, random_state=0)
    return TensorDataset(images[train_rows], labels[train_rows]), TensorDataset(images[test_rows], labels[test_rows])


# --- the space: a cell as in DARTS (arXiv 1806.09055) ------------------------------------------------------


def operations(channels: int) -> dict[str, nn.Module]:
    """Return DARTS's candidates but for `none`, which is what an InputChoice is for."""
    candidates = darts_candidates(channels, affine=True)
    return {name: candidate for name, candidate in candidates.items() if name != "none"}


class Cell(nn.Module):
    """Nodes in a row; each takes an operation of two of those before it, and the two inputs count as such."""

    def __init__(self, in_channels: Sequence[int], channels: int, num_nodes: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(relu_conv_norm(c, channels) for c in in_channels)
        self.edges = nn.ModuleList(
            nn.ModuleList(
                LayerChoice(operations(channels), label=f"node{node}_from{source}") for source in range(2 + node)
            )
            for node in range(num_nodes)
        )
        self.nodes = nn.ModuleList(
            InputChoice(2 + node, n_chosen=2, label=f"node{node}_takes") for node in range(num_nodes)
        )

    def forward(self, before: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Return the nodes' outputs, joined: (N, num_nodes * channels, H, W)."""
        states = [self.inputs[0](before), self.inputs[1](last)]
        for edges, node in zip(self.edges, self.nodes, strict=True):
            assert isinstance(edges, nn.ModuleList)
            states.append(node([edge(state) for edge, state in zip(edges, states, strict=True)]))
        return torch.cat(states[2:], 1)


class Network(nn.Module):
    """A stem, two cells that share their decisions, with the image halved between them, and a linear head."""

    def __init__(self, channels: int = 8, num_nodes: int = 3) -> None:
        super().__init__()
        width = num_nodes * channels
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.first = Cell((channels, channels), channels, num_nodes)
        self.halve = nn.MaxPool2d(2)
        self.second = Cell((channels, width), channels, num_nodes)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10) of images (N, 1, 8, 8)."""
        stem = self.stem(x)
        x = self.first(stem, stem)
        x = self.second(self.halve(stem), self.halve(x))
        return self.head(x.mean((2, 3)))


# --- the comparison ----------------------------------------------------------------------------------------


@dataclass
class Contestant:
    """What was measured of one row of the table; lists have one entry a seed."""

    name: str
    architectures: list[Architecture]
    test_accuracy: list[float]
    parameters: list[int]
    search_seconds: list[float]
    train_seconds: list[float]


def run_demo(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    num_random: int = 8,
    search_epochs: int = 14,
    train_epochs: int = 8,
    channels: int = 8,
    runs: Path = Path("runs"),
    console: Console | None = None,
) -> list[Contestant]:
    """Search, train what was found and random architectures from new weights, print a table, and return its rows.

    Args:
        seeds: Seeds of the searches and of the trainings; each architecture is trained once for each.
        num_random: Number of random architectures to compare with.
        search_epochs: Number of epochs of a search, over half of the training set; the other half trains the
            architecture.
        train_epochs: Number of epochs in which every architecture is trained, over all of the training set.
        channels: Number of channels of a node.
        runs: Directory in which a new run directory is made.
        console: Console to print on. Default: standard output.
    """
    console = console or Console()
    train_set, test_set = digits()
    space = SearchSpace(Network(channels))
    run_dir = _new_directory(runs)
    console.print(
        f"{len(train_set)} digits to search and train on, {len(test_set)} to test; {space.size:,} architectures"
    )

    found = Contestant("found by DARTS", [], [], [], [], [])
    for seed in seeds:
        began = time.perf_counter()
        architecture, valid_accuracy = _search(train_set, seed, search_epochs, channels, run_dir / f"seed{seed}")
        found.architectures.append(architecture)
        found.search_seconds.append(time.perf_counter() - began)
        console.print(
            f"searched with seed {seed} in {found.search_seconds[-1]:.0f} s; "
            f"the supernet's validation accuracy is {100 * valid_accuracy:.1f} %"
        )
    generator = torch.Generator().manual_seed(0)
    rivals = [
        Contestant(f"random {i + 1}", [space.sample(generator)] * len(seeds), [], [], [], []) for i in range(num_random)
    ]
    for contestant in [found, *rivals]:
        for architecture, seed in zip(contestant.architectures, seeds, strict=True):
            _train_from_scratch(contestant, architecture, seed, train_set, test_set, train_epochs, channels)
        console.print(f"trained {contestant.name} from new weights, {len(seeds)} times")

    rows = [found, *sorted(rivals, key=lambda c: -mean(c.test_accuracy))]
    _print_table(console, rows, len(seeds))
    console.print(f"Metrics, architectures, weights and plots of each search: {run_dir}", markup=False, emoji=False)
    return rows


def _search(
    train_set: TensorDataset, seed: int, num_epochs: int, channels: int, run_dir: Path
) -> tuple[Architecture, float]:
    """Return the architecture that first-order DARTS finds, and the supernet's accuracy on the validation half."""
    torch.manual_seed(seed)
    model = Network(channels)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=3e-4)
    trainer = DartsTrainer(
        model,
        loss=nn.CrossEntropyLoss(),
        metrics=accuracy,
        optimizer=optimizer,
        num_epochs=num_epochs,
        dataset=train_set,
        batch_size=BATCH_SIZE,
        scheduler=CosineAnnealingLR(optimizer, num_epochs),
        # The paper's 3e-4 is for 20,000 steps. Adam moves a logit by about its rate a step, and here are 126.
        arc_learning_rate=0.02,
        seed=seed,
        run_dir=run_dir,
    )
    trainer.fit()
    return trainer.export(), trainer.history[-1]["valid_accuracy"]


def _train_from_scratch(
    contestant: Contestant,
    architecture: Architecture,
    seed: int,
    train_set: TensorDataset,
    test_set: TensorDataset,
    num_epochs: int,
    channels: int,
) -> None:
    """Train an architecture from new weights, and take what is measured into its row: one recipe for all."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    network = freeze(Network(channels), architecture)
    optimizer = SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=3e-4)
    scheduler = CosineAnnealingLR(optimizer, num_epochs)
    loss = nn.CrossEntropyLoss()
    train(
        network,
        loss,
        accuracy,
        optimizer,
        num_epochs,
        train_set,
        batch_size=BATCH_SIZE,
        scheduler=scheduler,
        seed=seed,
        progress=False,
    )
    contestant.test_accuracy.append(evaluate(network, loss, accuracy, test_set)["accuracy"])
    contestant.parameters.append(sum(p.numel() for p in network.parameters()))
    contestant.train_seconds.append(time.perf_counter() - began)


def _print_table(console: Console, rows: Sequence[Contestant], num_seeds: int) -> None:
    """Print the rows, and the rank of the first of them."""
    table = Table(title=f"Test accuracy after training from new weights, mean and deviation of {num_seeds} seeds")
    for heading in ("architecture", "test accuracy, %", "parameters", "search, s", "training, s"):
        table.add_column(heading, justify="left" if heading == "architecture" else "right", no_wrap=True)
    for row in rows:
        spread = stdev(row.test_accuracy) if len(row.test_accuracy) > 1 else 0.0
        table.add_row(
            row.name,
            f"{100 * mean(row.test_accuracy):.2f} ± {100 * spread:.2f}",
            f"{mean(row.parameters):,.0f}",
            f"{mean(row.search_seconds):.1f}" if row.search_seconds else "-",
            f"{mean(row.train_seconds):.1f}",
        )
    console.print(table)
    found, *rivals = rows
    if rivals:
        better = sum(mean(rival.test_accuracy) > mean(found.test_accuracy) for rival in rivals)
        of_random = mean(a for rival in rivals for a in rival.test_accuracy)
        console.print(
            f"By mean accuracy the found one is number {better + 1} of {len(rows)}; "
            f"the random ones have {100 * of_random:.2f} % on average."
        )


def _new_directory(runs: Path) -> Path:
    """Return a directory that is not there yet: demo-1, demo-2, ..."""
    path = next(path for n in itertools.count(1) if not (path := runs / f"demo-{n}").exists())
    path.mkdir(parents=True)
    return path
