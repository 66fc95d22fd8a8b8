"""DARTS: Differentiable Architecture Search (arXiv 1806.09055)."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.optim import Adam

from supernet.checks import check_numbers
from supernet.relaxations import Softmax
from supernet.trainers.bilevel import BilevelTrainer

__all__ = ["DartsTrainer"]


class DartsTrainer(BilevelTrainer):
    """DARTS (arXiv 1806.09055), first and second order.

    Every candidate runs; their outputs are mixed by softmax(alpha). Alphas and weights are trained in turn,
    on two halves of the data. An InputChoice is a mixture of its inputs by the same rule; where it may choose more or
    fewer of them, each is chosen on its own, with probability sigmoid(alpha).

    Departs from the paper: architecture steps do not move BatchNorm's running statistics.

    Args:
        model, loss, metrics, optimizer, num_epochs, dataset: The same as `SupernetTrainer` takes by these names.
        arc_learning_rate: Learning rate of Adam(betas (0.5, 0.999), weight decay 1e-3), which trains the alphas.
            Default: 3e-4.
        terms, limit_penalty, limit_strength, warmup_epochs, unrolled, memory: The same as `BilevelTrainer`
            takes by these names.
        batch_size, seed, run_dir, config: Like all other arguments by name, the same as `SupernetTrainer` takes.

    Raises:
        TrainingError, AlreadyReplacedError, DataError, SpaceError: As `BilevelTrainer`.
        ChoiceError: Candidates' outputs differ in shape, or a reduction is one that a mixture cannot stand for.

    >>> model = nn.Sequential(LayerChoice({"linear": nn.Linear(2, 2), "tanh": nn.Tanh()}, label="op"))
    >>> x = torch.randn(64, 2)
    >>> task = model, nn.MSELoss(), None, SGD(model.parameters(), 0.1), 5, TensorDataset(x, -x)
    >>> trainer = DartsTrainer(*task, batch_size=8, arc_learning_rate=0.1)
    >>> trainer.fit()
    >>> trainer.export()
    {'op': 'linear'}
    """

    def __init__(self, *task: Any, arc_learning_rate: float = 3e-4, **config: Any) -> None:
        check_numbers(arc_learning_rate=arc_learning_rate)
        optimizer = partial(Adam, lr=arc_learning_rate, betas=(0.5, 0.999), weight_decay=1e-3)
        super().__init__(*task, relaxation=Softmax, architecture_optimizer=optimizer, **config)
