"""From a space of networks to three ONNX files under limits of parameters and of measured latency, on Fashion-MNIST.

    python examples/fashion_mnist.py fashion_mnist.npz

The file holds `train_image` (60000, 28, 28) and `test_image` as bytes, and `train_label`, `test_label`. On a CPU of 2
cores it takes 10 to 20 minutes; `--train 512 --valid 256 --test 256 --epochs 1 --evaluations 4` only tries it.

1. A space of inverted residuals: width, kernel, expansion and depth are chosen.
2. Latency on this machine: the layers of its networks are measured, each once, and 50 whole networks beside their sums.
3. A supernet is trained within the largest limits, and searched under each; the best few are trained alone.
4. What is found is trained from new weights, beside random networks under the same limits and random search in equal
   time, and measured on test images that nothing has seen.
5. The found networks become ONNX files, which are run back and compared.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

import supernet.nn as snn
from supernet import Repeat, SearchSpace, SinglePathTrainer, ValueChoice, accuracy, evaluate, freeze, train
from supernet.compare import compare_under_limits
from supernet.cost import Latency
from supernet.deploy import export_network
from supernet.search import RandomSearcher, search_front

# The least budget is for the smallest device. Latency is a share of the largest network's, since machines differ.
BUDGETS = [
    {"parameters": 4_000, "latency_ms": "60%"},
    {"parameters": 8_000, "latency_ms": "70%"},
    {"parameters": 16_000, "latency_ms": "80%"},
]


# --- the space ---------------------------------------------------------------------------------------------


class InvertedResidual(nn.Module):
    """MobileNetV2's block (arXiv 1801.04381): it widens, convolves each channel, and narrows again."""

    def __init__(self, before, width, name):
        super().__init__()
        kernel = ValueChoice([3, 5], label=f"{name}_kernel")
        inside = before * ValueChoice([2, 3, 4], label=f"{name}_expansion")
        self.body = nn.Sequential(
            snn.Conv2d(before, inside, 1, bias=False),
            snn.BatchNorm2d(inside),
            nn.ReLU6(),
            snn.Conv2d(inside, inside, kernel, padding=kernel // 2, groups=inside, bias=False),
            snn.BatchNorm2d(inside),
            nn.ReLU6(),
            snn.Conv2d(inside, width, 1, bias=False),
            snn.BatchNorm2d(width),
        )
        self.is_residual = before is width

    def forward(self, x):
        """Return (N, width, H, W) of x (N, before, H, W)."""
        return x + self.body(x) if self.is_residual else self.body(x)


class Network(nn.Module):
    """A stem and three stages, each after the image is halved: one block that sets the width, then up to two more."""

    def __init__(self):
        super().__init__()
        stages, before = [], 8
        for number, widths in enumerate(([8, 12, 16], [12, 16, 24], [16, 24, 32])):
            width = ValueChoice(widths, label=f"width_{number}")
            blocks = [InvertedResidual(width, width, f"block_{number}_{i}") for i in (1, 2)]
            stages += [
                nn.MaxPool2d(2),
                InvertedResidual(before, width, f"block_{number}_0"),
                Repeat(blocks, (0, 2), label=f"depth_{number}"),
            ]
            before = width
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.stages = nn.Sequential(*stages)
        self.head = snn.Linear(before, 10)

    def forward(self, x):
        """Return logits (N, 10) of images (N, 1, 28, 28)."""
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


# --- the data ----------------------------------------------------------------------------------------------


def parts(path, sizes):
    """Return as many images as asked for to train on, to choose by, and to test on."""
    with np.load(path) as arrays:

        def dataset(split, first, last):
            images = torch.from_numpy(arrays[f"{split}_image"][first:last])[:, None].float() / 255
            return TensorDataset(
                (images - 0.286) / 0.353, torch.from_numpy(arrays[f"{split}_label"][first:last]).long()
            )

        num_train, num_valid, num_test = sizes
        return (
            dataset("train", 0, num_train),
            dataset("train", num_train, num_train + num_valid),
            dataset("test", 0, num_test),
        )


# --- the search and the comparison -------------------------------------------------------------------------


class Searched:
    """A supernet that is trained within the largest limits, and the front of what is found in it under each.

    After a training this short it knows good networks from bad ones, but not which of the good ones is best. So the
    best few are trained alone before one is taken.
    """

    def __init__(self, seed, *, data, latency, epochs, evaluations, finalists, train_epochs, run_dir):
        self.seed, self.data, self.finalists, self.train_epochs = seed, data, finalists, train_epochs
        self.alone = {}  # what is a finalist under several budgets is trained once
        torch.manual_seed(seed)
        model = Network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
        trainer = SinglePathTrainer(
            model,
            loss=nn.CrossEntropyLoss(),
            metrics=accuracy,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
            num_epochs=epochs,
            dataset=data[0],
            valid_dataset=data[1],
            batch_size=128,
            limits=BUDGETS[-1],
            costs={"latency_ms": latency},
            sandwich=2,
            recalibration_samples=1_000,
            num_evaluations=evaluations,
            seed=seed,
            run_dir=run_dir / f"seed{seed}",
            progress=False,
        )
        trainer.fit()
        # Near a limit networks are better than far below it, by half a point of the mean here.
        near = [{**budget, "parameters": (0.8 * budget["parameters"], budget["parameters"])} for budget in BUDGETS]
        self.front = search_front(
            trainer.evaluator,
            {"accuracy": "max", "parameters": "min"},
            evaluations,
            limits=near,
            costs={"latency_ms": latency},
            searcher=RandomSearcher,  # in so few evaluations, evolution only gets to small networks, the other end
        )
        self.front.save(run_dir / f"front{seed}.json")
        self.front.plot(run_dir / f"front{seed}")

    def best(self, limits):
        """Return the architecture, of the best few within limits in the supernet, that is best alone."""
        within = [entry for entry in self.front.entries if limits(entry.architecture)]
        within.sort(key=lambda entry: entry.metrics["accuracy"], reverse=True)
        return max((entry.architecture for entry in within[: self.finalists]), key=self.accuracy_alone)

    def accuracy_alone(self, architecture):
        """Return the validation accuracy of an architecture's network, trained from new weights by the one recipe."""
        name = str(architecture)
        if name not in self.alone:
            torch.manual_seed(self.seed)
            network = freeze(Network(), architecture)
            train_network(network, self.data[0], self.seed, self.train_epochs)
            self.alone[name] = percent_correct(network, self.data[1])
        return self.alone[name]


def train_network(network, dataset, seed, epochs):
    """Train a network in place: the one recipe of all that is compared."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=3e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    how = {"batch_size": 128, "scheduler": scheduler, "seed": seed, "progress": False}
    train(network, nn.CrossEntropyLoss(), None, optimizer, epochs, dataset, **how)


def percent_correct(network, dataset):
    """Return the accuracy of a network, in percent."""
    return 100 * evaluate(network, None, accuracy, dataset)["accuracy"]


def main():
    """Go the whole way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="fashion_mnist.npz")
    parser.add_argument("--train", type=int, default=6_000, help="images to train on")
    parser.add_argument("--valid", type=int, default=2_000, help="images to choose by")
    parser.add_argument("--test", type=int, default=10_000, help="images to test on")
    parser.add_argument("--epochs", type=int, default=4, help="of a network; a supernet has half as many more")
    parser.add_argument("--evaluations", type=int, default=30, help="in a supernet, under each budget")
    parser.add_argument("--finalists", type=int, default=3, help="of these, that are trained alone under each budget")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="that share seeds and budgets, and the cores")
    parser.add_argument("--random", type=int, default=1, help="random networks under each budget, for each seed")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/fashion_mnist"))
    options = parser.parse_args()
    options.run_dir.mkdir(parents=True, exist_ok=True)

    data = parts(options.data, (options.train, options.valid, options.test))
    print(f"{SearchSpace(Network()).size:,} networks")
    image = data[0][0][0][None]
    # By one thread: as many as there are cores, for one small image, would measure what else the machine does.
    latency = Latency(Network(), image, num_threads=1, cache=options.run_dir / "latencies.json")
    print(f"latency: {latency.trust()}")
    for _ in range(1_000):
        latency.of(latency.space.sample())  # measures each layer now, while nothing else runs

    effort = {"epochs": 3 * options.epochs // 2, "train_epochs": options.epochs}
    effort |= {"evaluations": options.evaluations, "finalists": options.finalists}
    torch.set_num_threads(max(1, torch.get_num_threads() // options.processes))
    comparison = compare_under_limits(
        Network,
        BUDGETS,
        partial(Searched, data=data, latency=latency, run_dir=options.run_dir, **effort),
        partial(train_network, epochs=options.epochs),
        percent_correct,
        data,
        seeds=range(options.seeds),
        num_random=options.random,
        costs={"latency_ms": latency},
        processes=options.processes,
        on_progress=print,
    )
    Console(width=140).print(comparison.table())
    comparison.save(options.run_dir / "comparison.json")
    comparison.plot(options.run_dir / "comparison")

    for number, budget in enumerate(BUDGETS):
        found = comparison.row(budget, "found").contestants[0]
        card = export_network(
            found.network,
            data[2][:8][0],
            options.run_dir / f"network{number}.onnx",
            architecture=found.architecture,
            costs={"latency_ms": found.costs["latency_ms"]},
            metrics={"test_accuracy": found.score},
        )
        print(f"network{number}.onnx, run back and compared: {card['costs']}")


if __name__ == "__main__":
    main()
