"""Those who are compared. Each is an adapter: one function that builds a task's network and returns its step.

To add another library, write such a function and enter it in `CONTESTANTS`: it is checked to give the same numbers, and
stands in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import TensorDataset

from benchmarks import networks
from supernet import DartsTrainer, LayerChoice
from supernet.execution import slot
from supernet.execution.fast import segment, tracing
from supernet.execution.fast.shared import Shared

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # trn_X, trn_y, val_X, val_y

# A step of alphas and weights on a batch; returns label -> alphas after it.
Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, CLIP = 0.025, 0.9, 3e-4, 5.0  # DARTS's


@dataclass(frozen=True)
class Task:
    """What is searched, and how.

    Args:
        network: "darts", "nas_bench_201" or "transformer".
        depth: cells; cells a stage; blocks.
        batch: samples.
        second_order: whether the alphas' gradient looks through a step of the weights.
        size: height and width of images; tokens of a text.
        dtype: of weights and images.
        device: such as "cpu" or "cuda".
    """

    network: str
    depth: int
    batch: int
    second_order: bool = False
    size: int = 32
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def build(self, choice: networks.Choice) -> nn.Module:
        """Return the network, with the same weights for every contestant."""
        torch.manual_seed(0)
        network: nn.Module
        if self.network == "darts":
            network = networks.DartsNetwork(choice, self.depth)
        elif self.network == "nas_bench_201":
            network = networks.NasBench201Network(choice, self.depth)
        else:
            network = networks.Transformer(choice, self.depth, tokens=self.size)
        return network.to(self.dtype)

    def alphas(self) -> dict[str, torch.Tensor]:
        """Return label -> initial alphas, the same for every contestant."""
        sizes: dict[str, int] = {}

        def noted(label: str, candidates: dict[str, nn.Module]) -> nn.Module:
            sizes[label] = len(candidates)
            return nn.Identity()

        self.build(noted)
        torch.manual_seed(1)
        return {label: (1e-3 * torch.randn(n, dtype=self.dtype)).to(self.device) for label, n in sizes.items()}

    def batches(self) -> Batch:
        """Return one batch of each part."""
        torch.manual_seed(2)

        def X() -> torch.Tensor:
            if self.network == "transformer":
                return torch.randint(256, (self.batch, self.size))
            return torch.randn(self.batch, 3, self.size, self.size, dtype=self.dtype)

        def y() -> torch.Tensor:
            return torch.randint(10, (self.batch,))

        trn_X, trn_y, val_X, val_y = (make().to(self.device) for make in (X, y, X, y))
        return trn_X, trn_y, val_X, val_y


Adapter = Callable[[Task], Step]


# --- the textbook twin -------------------------------------------------------------------------------------


class StackedMixture(nn.Module):
    """The textbook way: all outputs are stacked, weighted and summed."""

    def __init__(self, label: str, candidates: dict[str, nn.Module], alphas: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.candidates, self.label, self.alphas = nn.ModuleDict(candidates), label, alphas

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = torch.stack([candidate(x) for candidate in self.candidates.values()])
        p = self.alphas[self.label].softmax(0)
        return (p.view(-1, *(1,) * (outputs.dim() - 1)) * outputs).sum(0)


def textbook(task: Task, *, needed_gradients: bool = False, channels_last: bool = False) -> Step:
    """Compute what the papers' code computes: all of it in NCHW, each backward pass to weights and alphas.

    Args:
        task: what is searched.
        needed_gradients: leave out the gradients that a step does not use.
        channels_last: lay images and weights out as N, H, W, C.
    """
    alphas = {label: alpha.requires_grad_() for label, alpha in task.alphas().items()}
    model = task.build(partial(StackedMixture, alphas=alphas)).to(task.device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    loss_of = nn.CrossEntropyLoss()
    weights, logits = list(model.parameters()), list(alphas.values())
    optimizer = SGD(weights, LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    of_alphas = Adam(logits, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    @contextmanager
    def without_gradient(unused: Sequence[torch.Tensor]) -> Iterator[None]:
        held = unused if needed_gradients else ()
        for p in held:
            p.requires_grad_(False)
        yield
        for p in held:
            p.requires_grad_(True)

    def unrolled_gradients(trn_X: Any, trn_y: Any, val_X: Any, val_y: Any) -> list[torch.Tensor]:
        """Return dL_val(w')/dalpha by a virtual step and a central difference."""
        before = [w.detach().clone() for w in weights]
        gradients = torch.autograd.grad(loss_of(model(trn_X), trn_y), weights)
        with torch.no_grad():
            for w, g in zip(weights, gradients, strict=True):
                buffer = optimizer.state[w].get("momentum_buffer") if w in optimizer.state else None
                change = g + WEIGHT_DECAY * w
                w.sub_(LEARNING_RATE * (change if buffer is None else change + MOMENTUM * buffer))
        both = torch.autograd.grad(loss_of(model(val_X), val_y), [*logits, *weights])
        direct, v = both[: len(logits)], both[len(logits) :]
        norm = LEARNING_RATE * torch.cat([g.flatten() for g in v]).norm()
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                for w, old, g in zip(weights, before, v, strict=True):
                    w.copy_(old + sign * 0.01 / norm * LEARNING_RATE * g)
            sides.append(torch.autograd.grad(loss_of(model(trn_X), trn_y), logits))
        with torch.no_grad():
            for w, old in zip(weights, before, strict=True):
                w.copy_(old)
        return [d - (a - b) / (2 * 0.01 / norm) for d, a, b in zip(direct, *sides, strict=True)]

    def step(trn_X: Any, trn_y: Any, val_X: Any, val_y: Any) -> dict[str, torch.Tensor]:
        if channels_last:
            trn_X, val_X = (x.contiguous(memory_format=torch.channels_last) for x in (trn_X, val_X))
        if task.second_order:
            for alpha, g in zip(logits, unrolled_gradients(trn_X, trn_y, val_X, val_y), strict=True):
                alpha.grad = g
        else:
            with without_gradient(weights):
                of_alphas.zero_grad()
                loss_of(model(val_X), val_y).backward()
        of_alphas.step()
        with without_gradient(logits):
            optimizer.zero_grad()
            loss_of(model(trn_X), trn_y).backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        return alphas

    return step


# --- this library ------------------------------------------------------------------------------------------


def supernet(task: Task, **options: Any) -> Step:
    """Run `DartsTrainer` as a user has it.

    Args:
        task: what is searched.
        options: of the trainer.
    """
    model = task.build(lambda label, candidates: LayerChoice(candidates, label=label))
    trn_X, trn_y, _, _ = task.batches()
    data = TensorDataset(trn_X.cpu(), trn_y.cpu())
    optimizer = SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    trainer = DartsTrainer(
        model,
        nn.CrossEntropyLoss(),
        None,
        optimizer,
        1,
        data,
        valid_dataset=data,
        batch_size=task.batch,
        grad_clip=CLIP,
        unrolled=task.second_order,
        device=task.device,
        progress=False,
        **options,
    )
    with torch.no_grad():
        for label, alpha in task.alphas().items():
            trainer.alphas[label].copy_(alpha)
    model.train()

    def step(trn_X: Any, trn_y: Any, val_X: Any, val_y: Any) -> dict[str, torch.Tensor]:
        trainer.train_step(trn_X, trn_y, val_X, val_y)
        return dict(trainer.alphas)

    return step


def without(owner: Any, name: str, value: Any) -> Adapter:
    """Return this library with one of its remedies off, to see what it brings."""

    def adapter(task: Task) -> Step:
        with mock.patch.object(owner, name, value):
            step = supernet(task)

        def patched(*batch: torch.Tensor) -> dict[str, torch.Tensor]:
            with mock.patch.object(owner, name, value):
                return step(*batch)

        return patched

    return adapter


CONTESTANTS: dict[str, Adapter] = {
    "textbook": textbook,
    "supernet": supernet,
    "supernet, lean": partial(supernet, memory="lean"),
}

REMEDIES: dict[str, Adapter] = {
    "textbook": textbook,
    "textbook, needed gradients only": partial(textbook, needed_gradients=True),
    "the same in channels_last": partial(textbook, needed_gradients=True, channels_last=True),
    "supernet, candidate by candidate": without(slot, "can_be_fast", lambda x, p: False),
    "supernet without routes of convolutions": without(segment, "has_fast_routes", lambda x: False),
    "supernet without shared work": without(slot, "shared_now", Shared),
    "supernet without BatchNorm in the mixture": without(tracing, "_can_be_folded", lambda module: False),
    "supernet": supernet,
    "supernet, lean": partial(supernet, memory="lean"),
}
