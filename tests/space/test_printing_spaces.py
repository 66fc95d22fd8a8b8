"""A space of many choices is printed short, and whole by `describe`."""

import pytest
from torch import nn

from supernet import LayerChoice, SearchSpace


def space_of(count):
    return SearchSpace(nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"c{i}") for i in range(count))))


@pytest.mark.parametrize("count", [1, 20, 48])
def test_a_space_of_up_to_48_lines_is_printed_whole(count):
    space = space_of(count)
    assert str(space) == repr(space) == space.describe()
    assert len(str(space).splitlines()) == 1 + count


@pytest.mark.parametrize("count", [49, 512])
def test_a_larger_space_is_printed_without_its_middle_and_says_how_much_is_left_out(count):
    space = space_of(count)
    whole, shown = space.describe().splitlines(), str(space).splitlines()
    assert len(whole) == 1 + count
    assert len(shown) == 50
    assert shown[:41] == whole[:41]
    assert shown[-8:] == whole[-8:]
    assert shown[41] == f"  ... {count - 48} more line{'s' * (count > 49)}, which print(space.describe()) shows ..."
    assert whole[-1] == f"  c{count - 1}: {space[f'c{count - 1}']}"
