"""How well supernets rank small networks, by how they were trained.

python -m benchmarks.ranking

The space: small CNNs on handwritten digits, of 270 to 41,506 parameters. Supernets are trained for the same number
of passes over a batch, by each way of sampling paths; then they rank architectures of few parameters, and of all, and
that is compared with training each of these from new weights.
"""

import argparse
import json
import sys
import time
from itertools import product
from statistics import mean, stdev

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import ConcatDataset

import supernet.nn
from benchmarks import measuring
from supernet import (
    Distillation,
    Repeat,
    SearchSpace,
    SinglePathTrainer,
    ValueChoice,
    accuracy,
    evaluate,
    freeze,
    train,
)
from supernet.cost import CostBins, Parameters
from supernet.demo import digits
from supernet.ranking import kendall_tau

PASSES_OF_A_SANDWICH = 4
REPORTED = ("tau", "accuracy", "regret")
WAYS = {
    "uniform paths": {},
    "bins of cost": {"cost_bins": 6},
    "sandwich": {"sandwich": 2},
    "sandwich, in place": {"sandwich": 2, "distillation": Distillation("largest", weight=1.0)},
    "sandwich, in place, bins": {"sandwich": 2, "cost_bins": 6, "distillation": Distillation("largest", weight=1.0)},
}


class Network(nn.Module):
    """Two stages of convolutions, whose widths, kernels and depths are chosen."""

    def __init__(self) -> None:
        super().__init__()
        widths = [ValueChoice([4, 8, 16, 24], label=f"width{stage}") for stage in range(2)]
        self.stem = self.layer(1, widths[0], ValueChoice([3, 5], label="kernel_of_stem"))
        self.stages = nn.ModuleList()
        for stage, width in enumerate(widths):
            before = widths[max(stage - 1, 0)]
            kernel = ValueChoice([3, 5] if stage else [1, 3], label=f"kernel{stage}")
            change = self.layer(before, width, kernel, stride=1 + stage)
            depth = ValueChoice([0, 1, 2], label=f"depth{stage}")
            blocks = Repeat([self.layer(width, width, 3) for _ in range(2)], depth)
            self.stages.append(nn.Sequential(change, blocks))
        self.head = supernet.nn.Linear(widths[1], 10)

    @staticmethod
    def layer(before, width, kernel, stride=1) -> nn.Module:
        """Return a convolution that keeps the size but for its stride, with norm and ReLU."""
        padding = kernel // 2
        conv = supernet.nn.Conv2d(before, width, kernel, stride=stride, padding=padding, bias=False)
        return nn.Sequential(conv, supernet.nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


def trained(way: str, passes: int, seed: int, train_set, valid_set) -> SinglePathTrainer:
    """Return a trainer whose supernet has been trained by so many passes over a batch."""
    torch.manual_seed(seed)
    model = Network()
    steps = passes // (PASSES_OF_A_SANDWICH if "sandwich" in way else 1)
    epochs = max(1, steps // (len(train_set) // 64))
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    trainer = SinglePathTrainer(
        model,
        nn.CrossEntropyLoss(),
        accuracy,
        optimizer,
        epochs,
        train_set,
        valid_dataset=valid_set,
        scheduler=CosineAnnealingLR(optimizer, epochs),
        seed=seed,
        progress=False,
        device="cpu",
        num_evaluations=1,
        population=1,
        num_parents=1,
        recalibration_samples=len(train_set),
        **WAYS[way],
    )
    trainer.fit()
    return trainer


def alone(architecture, seed: int, data, test) -> float:
    """Return the test accuracy of an architecture's network that was trained from new weights, in percent."""
    torch.manual_seed(seed)
    network = freeze(Network(), architecture)
    optimizer = SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    how = {"scheduler": CosineAnnealingLR(optimizer, 15), "seed": seed, "progress": False, "device": "cpu"}
    train(network, nn.CrossEntropyLoss(), None, optimizer, 15, data, **how)
    return 100 * evaluate(network, None, accuracy, test, device="cpu")["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=4_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--truth-seeds", type=int, default=2)
    parser.add_argument("--networks", type=int, default=40, help="of each of the two samples")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_set, valid_set, test = digits()
    data = ConcatDataset([train_set, valid_set])
    space, cost = SearchSpace(Network()), Parameters(Network())
    generator, known = torch.Generator().manual_seed(0), {}
    edges = CostBins(cost, 1).edges[0]
    small = CostBins(cost, [edges[0], 1_200])
    for name, sample in {"small": small.sample, "all": space.sample}.items():
        known[name] = []
        while len(known[name]) < options.networks:
            if (one := sample(generator)) not in known[name]:
                known[name].append(one)
    print(f"{space.size:,} architectures of {edges[0]:,.0f} to {edges[1]:,.0f} parameters", flush=True)
    truth = {
        name: [mean(alone(one, seed, data, test) for seed in range(options.truth_seeds)) for one in architectures]
        for name, architectures in known.items()
    }
    for name, accuracies in truth.items():
        parameters = [cost.of(one) for one in known[name]]
        spread = f"{min(parameters):,.0f} to {max(parameters):,.0f} parameters"
        tau = kendall_tau(parameters, accuracies)
        print(
            f"{name}: {spread}, {mean(accuracies):.1f} +- {stdev(accuracies):.1f} %, tau of size {tau:.2f}", flush=True
        )
    rows = []
    for way, seed in product(WAYS, range(options.seeds)):
        began = time.perf_counter()
        trainer = trained(way, options.passes, seed, train_set, valid_set)
        row = {"way": way, "seed": seed, "seconds": time.perf_counter() - began}
        for name, architectures in known.items():
            measured = trainer.evaluated(architectures)
            row[f"tau, {name}"] = kendall_tau([-one["loss"] for one in measured], truth[name])
            row[f"accuracy, {name}"] = 100 * mean(one["accuracy"] for one in measured)
            best = max(range(len(measured)), key=lambda i: -measured[i]["loss"])
            row[f"regret, {name}"] = max(truth[name]) - truth[name][best]
        rows.append(row)
        print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}), flush=True)
    means = []
    for way in WAYS:
        of_way = [row for row in rows if row["way"] == way]
        means.append(
            {"way": way} | {key: mean(row[key] for row in of_way) for key in of_way[0] if key.startswith(REPORTED)}
        )
    measuring.report("ranking", f"Means of {options.seeds} supernets, {options.passes:,} passes each", means)


if __name__ == "__main__":
    sys.exit(main())
