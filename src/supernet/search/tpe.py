"""Tree-structured Parzen estimators, by Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supernet.search.optuna_study import OptunaSearcher
from supernet.space import SearchSpace

if TYPE_CHECKING:
    import optuna

__all__ = ["TpeSearcher"]


class TpeSearcher(OptunaSearcher):
    """Tree-structured Parzen estimators (Bergstra and others, 2011), as Optuna has them; needs `supernet[optuna]`.

    Two densities are estimated, of the decisions of good architectures and of the others', and what is likely under
    the first rather than the second is asked for. Choices that only some architectures reach have densities of their
    own. Of several objectives the good ones are those that few others beat.

    Args:
        space: The space that is searched.
        num_first: Number of architectures that are drawn by the priors first. Default: 10.
        batch_size, storage, study_name, generator, constraint: The same as `OptunaSearcher` takes.

    Raises:
        MissingExtraError: Optuna is not installed.

    >>> space = SearchSpace(nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"act{i}") for i in range(3))))
    >>> searcher = TpeSearcher(space, num_first=4)
    >>> search(searcher, lambda architectures: [sum(map(int, a.values())) for a in architectures], budget=8)[0].score
    3.0
    """

    def __init__(self, space: SearchSpace, *, num_first: int = 10, **options: Any) -> None:
        super().__init__(space, num_first=num_first, **options)

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return a new sampler."""
        from optuna.samplers import TPESampler

        return TPESampler(n_startup_trials=1, multivariate=True, group=True, seed=seed)
