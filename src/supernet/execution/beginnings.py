"""Modules one after another, of which several beginnings are wanted: each module runs once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from supernet.errors import ChoiceError
from supernet.execution.apart import Apart
from supernet.execution.structure import mapped

__all__: list[str] = []


class Beginnings:
    """Runs the branches of a choice that is a sequence, see `Choice.is_sequence`.

    Args:
        branches: What runs one after another where each option is chosen.
        label: Label of the choice, for errors.

    Raises:
        ChoiceError: A branch is no beginning of the longest.
    """

    def __init__(self, branches: Sequence[Sequence[nn.Module]], label: str) -> None:
        self._modules, self._lengths = max(map(list, branches), key=len), [len(branch) for branch in branches]
        for branch in branches:
            if any(ours is not theirs for ours, theirs in zip(branch, self._modules, strict=False)):
                raise ChoiceError(
                    f"choice {label!r} is a sequence, so each branch is to be a beginning of the longest, but one is "
                    "not; leave is_sequence False, and each branch runs on its own"
                )
        # What runs inside some may be another path each time.
        changeable = [i for i, m in enumerate(self._modules) if any(hasattr(inner, "plan") for inner in m.modules())]
        self._apart = Apart(label, [str(i) for i in changeable])

    def outputs(self, positions: Sequence[int], num_active: int, x: Any) -> list[Any]:
        """Return what the branches at some positions give.

        Args:
            positions: Positions of the branches.
            num_active: How many of the first are wanted for their gradients too; the others for their outputs only.
            x: The input.
        """
        lengths = [self._lengths[position] for position in positions]
        with_gradients, wanted = max(lengths[:num_active]), frozenset(lengths)
        after = {0: x}
        for i, module in enumerate(self._modules[: max(lengths)]):
            with nullcontext() if i < with_gradients else torch.no_grad():
                # Modules may work in place, but not on what is weighted.
                after[i + 1] = self._apart.run(str(i), module, (after[i],), {}) if i in wanted else module(after[i])
        outputs = [after[length] for length in lengths]
        return outputs[:num_active] + mapped(outputs[num_active:], torch.Tensor.detach)
