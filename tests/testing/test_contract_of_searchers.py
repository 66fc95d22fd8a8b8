"""Our searchers hold what every searcher promises, and one that breaks a promise is refused by that promise."""

import random
import re
from functools import partial

import pytest

from supernet.search import (
    EvolutionSearcher,
    ExhaustiveSearcher,
    NsgaSearcher,
    RandomSearcher,
    RegularizedEvolutionSearcher,
    Scored,
    TpeSearcher,
)
from supernet.testing import check_searcher

SEARCHERS = {
    "random": RandomSearcher,
    "evolution": partial(EvolutionSearcher, population=4, num_parents=2),
    "evolution of a large generation": EvolutionSearcher,
    "exhaustive": ExhaustiveSearcher,
    "regularized evolution": partial(RegularizedEvolutionSearcher, population=8),
    "regularized evolution of batches": partial(RegularizedEvolutionSearcher, population=5, batch_size=4),
    "TPE": partial(TpeSearcher, num_first=6),
    "TPE of batches": partial(TpeSearcher, num_first=6, batch_size=4),
    "NSGA-II": partial(NsgaSearcher, population=6),
    "allowed": partial(RandomSearcher, constraint=lambda architecture: architecture["layer0"] != "0"),
}


@pytest.mark.parametrize("kind", SEARCHERS)
def test_each_of_our_searchers_holds_what_searchers_promise(kind):
    if kind.startswith(("TPE", "NSGA")):
        pytest.importorskip("optuna")
    check_searcher(SEARCHERS[kind])


class AsksForMore(RandomSearcher):
    """ask(6) returns at most 6 architectures"""

    def ask(self, count):
        return super().ask(count + 1)


class AsksForAnotherSpace(RandomSearcher):
    """what is asked for are architectures of the space"""

    def ask(self, count):
        return [{**architecture, "layer0": "none"} for architecture in super().ask(count)]


class WritesInAnotherForm(RandomSearcher):
    """what is asked for is in the form that the space writes"""

    def ask(self, count):
        return [{**architecture, "layer0": int(architecture["layer0"])} for architecture in super().ask(count)]


class AsksTwice(RandomSearcher):
    """no architecture is asked for twice"""

    def ask(self, count):
        self._known.clear()
        self.generator.manual_seed(0)
        return super().ask(count)


class AsksByChance(RandomSearcher):
    """two searchers that are made alike and told the same ask for the same"""

    def ask(self, count):
        self.generator.manual_seed(random.SystemRandom().randrange(2**32))
        return super().ask(count)


class DrawsFromGlobalNumbers(RandomSearcher):
    """a searcher draws from a generator of its own; but random"""

    def ask(self, count):
        random.random()
        return super().ask(count)


class SavesWhatCannotBe(RandomSearcher):
    """a checkpoint can hold what state_dict() returns"""

    def state_dict(self):
        return {**super().state_dict(), "ask": self.ask}


class SavesWhatChanges(RandomSearcher):
    """a state that was returned stays as it is"""

    def state_dict(self):
        return {**super().state_dict(), "of": self._scored}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._scored = state["of"]


class ForgetsWhereItIs(RandomSearcher):
    """a searcher that has loaded the state of another goes on as that one"""

    def load_state_dict(self, state):
        super().load_state_dict({**state, "generator": self.generator.get_state()})


class ForgetsScores(RandomSearcher):
    """a searcher that has loaded the state of another goes on as that one"""

    def load_state_dict(self, state):
        super().load_state_dict({**state, "scored": []})


class RanksTheWorstFirst(RandomSearcher):
    """what is ranked is what was told, best first"""

    def ranked(self):
        return super().ranked()[::-1]


class RanksNanWhereAllAre(RandomSearcher):
    """where the score of each architecture is NaN, ranked() raises NonFiniteError"""

    def ranked(self):
        return (
            list(self._scored.values()) if all(s.score != s.score for s in self._scored.values()) else super().ranked()
        )


class RanksNan(RandomSearcher):
    """an architecture whose score is NaN is never ranked"""

    def ranked(self):
        best = super().ranked()
        return best + [Scored(*one) for one in self._scored.values() if one.score != one.score and len(best) == 1]


FAULTY = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, RandomSearcher)]


@pytest.mark.parametrize("kind", [kind for kind in FAULTY if kind is not RandomSearcher])
def test_a_searcher_that_breaks_a_promise_is_refused_by_that_promise(kind):
    with pytest.raises(AssertionError, match=re.escape(kind.__doc__)):
        check_searcher(kind)
