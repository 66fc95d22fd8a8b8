"""A relaxation whose plans are architectures draws them as its `log_prob` says, or is refused."""

import re

import pytest

from supernet.relaxations import DecisionDistribution
from supernet.testing import check_relaxation


class DrawsUniformly(DecisionDistribution):
    def sample(self, generator=None):
        return self.space.sample(self.generator if generator is None else generator)


class DrawsUniformlyInTheEnd(DecisionDistribution):
    def plan(self, progress):
        return self.space.sample(self.generator) if progress == 1.0 else super().plan(progress)


class DrawsTheMostProbable(DecisionDistribution):
    def plan(self, progress):
        return self.derive()


@pytest.mark.parametrize("kind", [DrawsUniformly, DrawsUniformlyInTheEnd, DrawsTheMostProbable])
def test_draws_that_are_not_those_of_log_prob_are_refused(kind):
    promise = "an architecture is drawn as often as log_prob() says; but '"
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_relaxation(kind)
