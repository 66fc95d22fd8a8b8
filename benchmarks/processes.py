"""What control messages cost: steps a second of two processes with them, and with none, in one run.

`python -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.processes`

Epochs take turns, so that both meet the same machine. Pickles after each step, as they once were, stand beside them.
"""

import statistics

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import measuring
from supernet import DartsTrainer, LayerChoice

ROUNDS = 5
STEPS = 60


class Bench(DartsTrainer):
    """A search whose epochs send messages in another way each."""

    def train_epoch(self):
        """Go through an epoch in the way whose turn it is."""
        way = WAYS[self.epoch % len(WAYS)]
        between_steps = type(self.processes).between_steps
        self.processes.between_steps = {
            "none": lambda number, wish, place: (0, False),
            "as it is": lambda *told: between_steps(self.processes, *told),
            "a tensor each step": lambda *told: (self.processes.speak_next(), between_steps(self.processes, *told))[1],
            "a pickle each step": lambda number, wish, place: (pickled((number, wish)), (0, False))[1],
        }[way]
        super().train_epoch()


WAYS = ("none", "as it is", "a tensor each step", "a pickle each step")


def pickled(value):
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)


def block(width):
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(width))


def main() -> None:
    """Measure all ways."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    choices = [LayerChoice([block(8), nn.Identity()], label=str(n)) for n in range(3)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *choices, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    count = 2 * 2 * 8 * STEPS
    trainer = Bench(
        model,
        nn.functional.cross_entropy,
        None,
        torch.optim.SGD(model.parameters(), 0.01),
        len(WAYS) * (ROUNDS + 1),
        TensorDataset(torch.randn(count, 3, 16, 16), torch.randint(10, (count,))),
        batch_size=8,
        device="cpu",
        progress=False,
    )
    trainer.fit()
    speeds = [record["cost"]["steps_per_second"] for record in trainer.history][len(WAYS) :]
    rows = []
    for position, way in enumerate(WAYS):
        mine, none = speeds[position :: len(WAYS)], speeds[:: len(WAYS)]
        lost = statistics.median(1 - a / b for a, b in zip(mine, none, strict=True))
        rows.append({"messages": way, "steps a second": statistics.median(mine), "share of time lost": lost})
    if trainer.fabric.is_global_zero:
        measuring.report("processes", "Control messages of two processes", rows)


if __name__ == "__main__":
    main()
