"""What a slice of an elastic layer costs beside the plain layer of that size, and a path of many beside its network.

python -m benchmarks.elastic
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import supernet
from benchmarks import measuring
from supernet import Supernet, ValueChoice, freeze

SHARES = (0.75, 0.5)


def depthwise(width: ValueChoice) -> nn.Module:
    kernel = ValueChoice([3, 5], label="kernel")
    return supernet.nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)


Layer = tuple[Callable[[ValueChoice], nn.Module], int, Callable[[int, int], tuple[int, ...]]]

# Name -> how the layer is made, its largest width, and the shape of its input for a batch and a width.
LAYERS: dict[str, Layer] = {
    "Linear, 49 tokens": (lambda w: supernet.nn.Linear(w, w), 512, lambda n, w: (n, 49, w)),
    "Linear, one token": (lambda w: supernet.nn.Linear(w, 1000), 1280, lambda n, w: (n, w)),
    "Conv1d 3": (lambda w: supernet.nn.Conv1d(w, w, 3, padding=1), 256, lambda n, w: (n, w, 64)),
    "Conv2d 3x3": (lambda w: supernet.nn.Conv2d(w, w, 3, padding=1), 128, lambda n, w: (n, w, 14, 14)),
    "Conv2d 1x1": (lambda w: supernet.nn.Conv2d(w, w, 1), 256, lambda n, w: (n, w, 14, 14)),
    "Conv2d 3x3 of 5x5, depthwise": (depthwise, 256, lambda n, w: (n, w, 14, 14)),
    "Conv3d 3x3x3": (lambda w: supernet.nn.Conv3d(w, w, 3, padding=1), 32, lambda n, w: (n, w, 8, 14, 14)),
    "ConvTranspose2d 2x2": (lambda w: supernet.nn.ConvTranspose2d(w, w, 2, 2), 128, lambda n, w: (n, w, 14, 14)),
    "BatchNorm2d": (lambda w: supernet.nn.BatchNorm2d(w), 128, lambda n, w: (n, w, 28, 28)),
    "GroupNorm": (lambda w: supernet.nn.GroupNorm(8, w), 128, lambda n, w: (n, w, 28, 28)),
    "LayerNorm": (lambda w: supernet.nn.LayerNorm(w), 512, lambda n, w: (n, 49, w)),
    "RMSNorm": (lambda w: supernet.nn.RMSNorm(w), 512, lambda n, w: (n, 49, w)),
}


def pass_of(
    run: Callable[[Any], torch.Tensor], module: nn.Module, given: Any, gradient: torch.Tensor
) -> Callable[[], None]:
    """Return what runs a module forward and backward, as a training step does, and forgets the gradients."""
    moved = [*module.parameters(), *([given] if isinstance(given, torch.Tensor) else [])]

    def forward_and_backward() -> None:
        run(given).backward(gradient)
        for tensor in moved:
            tensor.grad = None

    return forward_and_backward


def layer_rows(names: list[str], batch: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each layer: seconds of a slice of it, beside those of the plain layer of that size."""
    rows = []
    for name in names:
        make, widest, shape = LAYERS[name]
        row: dict[str, Any] = {"layer": name, "widest": widest, "batch": batch}
        for share in SHARES:
            width = int(share * widest)
            architecture = {"width": width, "kernel": 3}
            model = nn.Sequential(make(ValueChoice([int(s * widest) for s in (*SHARES, 1)], label="width")))
            running = Supernet(model)
            architecture = {label: value for label, value in architecture.items() if label in running.space}
            plain, x = freeze(model, architecture)[0], torch.randn(shape(batch, width), requires_grad=True)
            gradient = torch.randn_like(running(x, architecture))
            with running.following(architecture):
                runs = {
                    "plain": pass_of(plain, plain, x, gradient),
                    "elastic": pass_of(model[0], model[0], x, gradient),
                }
                seconds = measuring.interleaved(runs, rounds)
            row |= {
                f"plain ms, {share} of the width": 1e3 * min(seconds["plain"]),
                f"elastic / plain, {share}": measuring.ratio(seconds["elastic"], seconds["plain"]),
            }
        rows.append(row)
    return rows


class Block(nn.Module):
    """A residual block of four elastic layers."""

    def __init__(self, width: ValueChoice) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            supernet.nn.Conv2d(width, width, 1, bias=False),
            supernet.nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            supernet.nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            supernet.nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def path_rows(batch: int, rounds: int, num_blocks: int = 25) -> list[dict[str, Any]]:
    """Return a row for each width of a path of 101 elastic layers, forward and backward, beside its plain network."""
    widths = [48, 64]
    width = ValueChoice(widths, label="width")
    model = nn.Sequential(supernet.nn.Conv2d(3, width, 3, padding=1), *(Block(width) for _ in range(num_blocks)))
    running, x, rows = Supernet(model), torch.randn(batch, 3, 16, 16), []
    for chosen in widths:
        architecture = {"width": chosen}
        plain, gradient = freeze(model, architecture), torch.randn_like(running(x, architecture))
        runs = {
            "plain": pass_of(plain, plain, x, gradient),
            "path": pass_of(partial(running, x), running, architecture, gradient),
        }
        seconds = measuring.interleaved(runs, rounds)
        rows.append(
            {
                "layers": 1 + 4 * num_blocks,
                "batch": batch,
                "width": f"{chosen} of {max(widths)}",
                "plain ms": 1e3 * min(seconds["plain"]),
                "path / plain (median)": measuring.ratio(seconds["path"], seconds["plain"]),
                "path / plain (minima)": min(seconds["path"]) / min(seconds["plain"]),
            }
        )
    return rows


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", nargs="+", default=list(LAYERS), choices=LAYERS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(measuring.THREADS)
    measuring.report(
        "elastic",
        "A slice of an elastic layer, forward and backward",
        layer_rows(options.layer, options.batch, options.rounds),
    )
    measuring.report("elastic_path", "A path of many elastic layers", path_rows(options.batch, options.rounds))


if __name__ == "__main__":
    main()
