"""Small searches on loaders of a user's own, all in one process or in each of several: `python ... RESULT`.

Kept in a file of its own, since other processes run it. One process has loaders of twice the batch size.
"""

import os
import sys

import torch
from safetensors.torch import save_file
from searches import KINDS, Augmented, Net, loss
from torch.optim import SGD
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from supernet import accuracy
from supernet.training.evaluation import NetworkTrainer

PROCESSES = int(os.environ.get("WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0))
B = 8 // PROCESSES


class Stream(IterableDataset):
    def __init__(self, count, of_this_process_alone=False):
        self.samples, self.alone = Augmented(count, noise=False), of_this_process_alone

    def __iter__(self):
        indices = range(RANK, len(self.samples), PROCESSES) if self.alone else range(len(self.samples))
        return (self.samples[index] for index in indices)


class Buckets(Sampler):
    """Batches of unequal sizes, of which there are half as many where each is twice as large."""

    def __iter__(self):
        sizes, batches, first = (3, 4, 2, 5, 4, 1, 3), [], 0
        for size in sizes:
            batches.append(list(range(first, first + size)))
            first += size
        if PROCESSES == 1:
            batches = [[*a, *b] for a, b in zip(batches[::2], [*batches[1::2], []], strict=True)]
        return iter(batches)

    def __len__(self):
        return 4 if PROCESSES == 1 else 7


class Turning(Sampler):
    def __init__(self, count):
        self.count, self.rounds = count, 0

    def __iter__(self):
        self.rounds += 1
        return iter([(index * 2 + self.rounds) % self.count for index in range(self.count)])

    def __len__(self):
        return self.count


def images(count):
    return Augmented(count, noise=False)


def shuffled(count, **how):
    return DataLoader(images(count), B, shuffle=True, **how)


def weighted(count):
    return DataLoader(images(count), B, sampler=WeightedRandomSampler([1.0, 2.0] * (count // 2), count))


def distributed(count):
    if PROCESSES == 1:
        return shuffled(count)
    return DataLoader(images(count), B, sampler=DistributedSampler(images(count), PROCESSES, RANK))


# name -> (training loader, validation loader); the last group of 25 is one sample, which one of two processes has.
SOURCES = {
    "shuffled": lambda: (shuffled(25), shuffled(21)),
    "in order": lambda: (DataLoader(images(25), B), DataLoader(images(11), B)),
    "dropping": lambda: (shuffled(25, drop_last=True), shuffled(21, drop_last=True)),
    "split in halves": lambda: (shuffled(45), None),
    "drawn": lambda: (weighted(26), DataLoader(images(21), B, sampler=RandomSampler(range(21), True))),
    "subset": lambda: (DataLoader(images(25), B, sampler=SubsetRandomSampler(range(2, 23))), shuffled(21)),
    "own sampler": lambda: (DataLoader(images(25), B, sampler=Turning(25)), shuffled(21)),
    "own batches": lambda: (DataLoader(images(25), batch_sampler=Buckets()), shuffled(21)),
    "distributed": lambda: (distributed(25), distributed(21)),
    "stream": lambda: (DataLoader(Stream(25), B), DataLoader(Stream(21), B)),
    "workers": lambda: (shuffled(25, num_workers=1), DataLoader(images(21), B, sampler=Turning(21), num_workers=1)),
    "fewer than a batch": lambda: (images(7), images(3)),
}


def negative_loss(output, target):
    return -loss(output, target)


def whole_loss(model, batch):
    output = model(batch[0])
    return loss(output, batch[1]), output, batch[1]


def run(kind, source, **options):
    torch.manual_seed(0)
    model = Net(norm=False)
    trainer_class, its_own = KINDS[kind]
    its_own = {**its_own, "loss": its_own["loss"]()} if "loss" in its_own else its_own
    of_loss = its_own["loss"].parameters() if "loss" in its_own else []
    options = {"loss": loss, "metrics": accuracy, "num_epochs": 2, "batch_size": B, **its_own, **options}
    options |= dict(zip(("dataset", "valid_dataset"), SOURCES[source](), strict=True))
    optimizer = SGD([*model.parameters(), *of_loss], 0.1, momentum=0.9)
    trainer = trainer_class(model, optimizer=optimizer, device="cpu", seed=0, **options)
    trainer.fit()
    return result(trainer)


def train_a_network(source):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(36, 3))
    optimizer = SGD(network.parameters(), 0.1)
    data, valid = SOURCES[source]()
    trainer = NetworkTrainer(
        network, loss, accuracy, optimizer, 2, data, valid_dataset=valid, device="cpu", accumulate=3
    )
    trainer.fit()
    return result(trainer)


def result(trainer):
    tensors = {f"weights.{name}": p.detach() for name, p in trainer.model.named_parameters()}
    tensors |= {f"alphas.{label}": alpha.detach() for label, alpha in getattr(trainer, "alphas", {}).items()}
    if hasattr(trainer, "controller"):
        tensors |= {f"controller.{name}": p.detach() for name, p in trainer.controller.named_parameters()}
    for record in trainer.history:
        numbers = {n: v for n, v in record.items() if n.startswith(("train_", "valid_")) or n == "reward"}
        tensors |= {f"epoch {record['epoch']}.{name}": torch.tensor(float(v)) for name, v in numbers.items()}
    return {name: value.float().contiguous() for name, value in tensors.items()}


CASES = {
    **{kind: lambda kind=kind: run(kind, "shuffled") for kind in KINDS},
    **{source: lambda source=source: run("path", source) for source in SOURCES if source != "shuffled"},
    "second order on a stream": lambda: run("second order", "stream"),
    "enas on own batches": lambda: run("enas", "own batches"),
    "accumulate": lambda: run("first order", "in order", accumulate=3),
    "skip": lambda: run("first order", "shuffled", on_nonfinite="skip"),
    "loss_fn": lambda: run("first order", "shuffled", loss=None, loss_fn=whole_loss),
    "bf16": lambda: run("first order", "in order", precision="bf16-mixed"),
    "a network": lambda: train_a_network("shuffled"),
    "a network on a stream": lambda: train_a_network("stream"),
}


def refused(loader):
    """Return the error with which a loader is refused."""
    SOURCES["bad"] = lambda: (loader, shuffled(21))
    try:
        run("path", "bad")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "not refused"


def main():
    torch.set_num_threads(1)
    results = {f"{case}/{name}": value for case, do in CASES.items() for name, value in do().items()}
    save_file(results, f"{sys.argv[1]}-{PROCESSES}-{RANK}.safetensors")
    if PROCESSES > 1:
        sharded = refused(DataLoader(Stream(24, of_this_process_alone=True), B))
        others = refused(DataLoader(images(24), B, sampler=DistributedSampler(images(24), 3, RANK)))
        sys.stdout.write(f"\nSHARDED {sharded}\nOTHERS {others}\n")  # at once, or lines of two processes mix


if __name__ == "__main__":
    sys.exit(main())
