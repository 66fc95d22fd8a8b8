"""Which samples are in which batch of which process: in an order of ours, or by a sampler that was given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from supernet.data.seeding import SeededIterator, derive_seed
from supernet.errors import DataError

__all__: list[str] = []

_WITHOUT_STATE = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Key(NamedTuple):
    """One sample of a round, which is one pass over the data.

    Attributes:
        index: Index of the sample in the dataset.
        numbers: Numbers that its random numbers depend on beside the seed; no other sample of the round has these.
    """

    index: Any
    numbers: tuple[int, ...]


def is_stateful(value: Any) -> bool:
    """Say whether something keeps torchdata's convention: what it gives next can be saved and brought back."""
    return all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict"))


def set_epoch(epoch: int, *owners: Any) -> None:
    """Tell those which pass over the data begins that want to know it, as `DistributedSampler` does."""
    for owner in owners:
        if callable(getattr(owner, "set_epoch", None)):
            owner.set_epoch(epoch)


class Rounds(Sampler[Any]):
    """Batches of keys, from any one of a round on; where there is no batch size, keys.

    All processes' k-th batches together are one group. A group that is too small for all processes is shared by them:
    some have fewer samples, and one without any is given some of another's, with a share of 0.

    Attributes:
        batched: Whether it gives lists of keys.
        round: Pass over the data that is read next, from 0 on; whoever reads without setting it gets round after round.
        start: First of its batches that is given.
        seed_of: Round -> the number that stands for it in seeds.
    """

    batched: bool
    round = start = 0

    def __init__(self) -> None:
        self.seed_of: Callable[[int], int] = int

    def __iter__(self) -> Iterator[Any]:
        # In a generator, for a DataLoader with workers asks for two iterators, and reads one.
        round, start = self.round, self.start
        self.round, self.start = round + 1, 0
        yield from self.keys_of(round, start)

    def keys_of(self, round: int, start: int) -> Iterator[Any]:
        """Yield what the batches of one round are made of, from one of them on."""
        raise NotImplementedError

    def share_of(self, batch: int) -> float:
        """Return by what this process's mean over a batch that was given counts in the mean over all processes.

        It is the number of its samples over the mean number of the processes', so that the plain mean of what they
        have times this is the mean over all samples.
        """
        raise NotImplementedError

    def beginning(self) -> str:
        """Return what shows that all processes have the same batches."""
        return ""

    def unsharded(self, *, shuffle: bool) -> Rounds:
        """Return the batches of all processes, each as large as one of this process's.

        Args:
            shuffle: Whether in the order of the first round; else in the dataset's where this is ours to say, and
                nothing is dropped.
        """
        raise NotImplementedError


class Batches(Rounds):
    """The batches of this process, in an order of ours.

    All processes' k-th batches together are the k-th batch of one process with as many times the batch size.

    Args:
        batch_size: Number of samples in a batch of this process. None: each sample is a batch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int | None,
        *,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.batched, self._given_size, self._batch_size = batch_size is not None, batch_size, batch_size or 1
        self._count, self._seed, self._shuffle = count, seed, shuffle
        self._drop_last = drop_last and count >= self._batch_size
        self._rank, self._world_size, self._together = rank, world_size, self._batch_size * world_size
        whole, rest = divmod(count, self._together)
        self._length = whole + (1 if rest and not drop_last else 0)

    def unsharded(self, *, shuffle: bool) -> Batches:
        """See `Rounds`."""
        shuffled, dropped = shuffle and self._shuffle, shuffle and self._drop_last
        return Batches(self._count, self._given_size, seed=self._seed, shuffle=shuffled, drop_last=dropped)

    def __len__(self) -> int:
        return self._length

    def keys_of(self, round: int, start: int) -> Iterator[Any]:
        """See `Rounds`."""
        number = self.seed_of(round)
        if self._shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, number))
            order = torch.randperm(self._count, generator=generator).tolist()
        else:
            order = list(range(self._count))
        for batch in range(start, self._length):
            mine, _ = self._dealt(batch)
            keys = [Key(index, (number, index)) for index in order[mine]]
            yield keys if self.batched else keys[0]

    def share_of(self, batch: int) -> float:
        """See `Rounds`."""
        return self._dealt(batch)[1]

    def _dealt(self, batch: int) -> tuple[slice, float]:
        first = batch * self._together
        count = min(self._together, self._count - first)
        mine, share = _dealt(count, self._batch_size, self._rank, self._world_size)
        return slice(first + mine.start, first + mine.stop), share


def share_of(samples: int, of_all: int, world_size: int) -> float:
    """Return by what a process's mean over its samples counts in the plain mean of the processes': see `Rounds`."""
    return samples * world_size / of_all


def _dealt(count: int, batch_size: int, rank: int, world_size: int) -> tuple[slice, float]:
    """Return which samples of a group are this process's, and its share: see `Rounds`.

    A process with one sample alone is avoided where there are more, for BatchNorm does not bear it.
    """
    sharing = min(world_size, count if batch_size == 1 else max(1, count // 2))
    turn = rank if rank < sharing else 0
    mine = slice(count * turn // sharing, count * (turn + 1) // sharing)
    return mine, share_of(mine.stop - mine.start if rank < sharing else 0, count, world_size)


class GivenBatches(Rounds):
    """The batches of a sampler that was given, whose random numbers are a function of the seed and the round.

    Every process draws all batches, and has the k-th of each group of as many as there are processes. A sampler of a
    class of its own may keep a state from round to round: for any round that does not follow the one before, it is
    brought back to how it was given and read through the rounds before, unless it says itself how it is brought back
    (`state_dict`), or is told which round it is (`set_epoch`).

    Args:
        given: A sampler of indices; or of lists of them, which are the batches then.
        batched: Whether batches are lists of samples; else each sample is one.
        batch_size: Number of the indices in a batch. None: `given` makes the batches, or each sample is one.
        drop_last: Whether indices that do not fill the batches of all processes are left out.
        seed: Seed of what it draws, from torch's `generator` too if it has one.
        dataset: Dataset of the samples, which a sampler that is copied shares with its copy.
        records: Whether batches are drawn before they are used, as workers want it.

    Raises:
        DataError: It gives its samples once, or is one that cannot be brought back.
    """

    def __init__(
        self,
        given: Iterable[Any],
        *,
        batched: bool,
        batch_size: int | None = None,
        drop_last: bool = False,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        dataset: Any = None,
        records: bool = False,
    ) -> None:
        super().__init__()
        self.batched, self.batch_size, self._drop_last = batched, batch_size, drop_last
        self.given, self._seed, self._rank, self._world_size = given, seed, rank, world_size
        self._dataset, self._records = dataset, records
        self._shares: dict[int, float] = {}
        self._owners = [owner for owner in (given, getattr(given, "sampler", None)) if owner is not None]
        self._done = 0  # rounds that the sampler as it is now has been read through
        self._is_midway = False
        self._iterator: SeededIterator | None = None
        self._states: dict[int, dict[str, Any]] = {}  # after which batch -> state of the sampler and its numbers
        self._entered: Mapping[str, Any] | None = None
        self._as_given: dict[str, Any] | None = None
        if isinstance(given, Iterator) and not hasattr(given, "__dict__"):
            raise DataError(
                f"the loader's sampler is a {type(given).__name__}, which gives its samples once, and none to the next "
                "epoch; give a list of them, or a Sampler whose __iter__ begins anew"
            )
        knows_its_round = any(callable(getattr(owner, "set_epoch", None)) for owner in self._owners)
        if is_stateful(given):
            self._as_given = copy.deepcopy(given.state_dict())  # type: ignore[attr-defined]
        elif type(given) not in _WITHOUT_STATE and not knows_its_round:
            self._as_given = self._copied(vars(given)) if hasattr(given, "__dict__") else None

    def _copied(self, attributes: dict[str, Any]) -> dict[str, Any]:
        shared = [*self._owners[:1], self._dataset]  # what is only referred to: data may be large
        for owner in self._owners:
            values = getattr(owner, "__dict__", {})
            shared += [v for n, v in values.items() if isinstance(v, Dataset) or n in ("data_source", "generator")]
        try:
            return copy.deepcopy(attributes, {id(value): value for value in shared})
        except Exception as error:
            raise DataError(
                f"a {type(self.given).__name__} as sampler cannot be copied ({type(error).__name__}: {error}), so "
                "that no resumed search could bring it back; give it state_dict and load_state_dict, or set_epoch"
            ) from error

    def unsharded(self, *, shuffle: bool) -> GivenBatches:
        """See `Rounds`."""
        given = self._copy()
        drops = shuffle and self._drop_last
        how: dict[str, Any] = {"batched": self.batched, "batch_size": self.batch_size, "dataset": self._dataset}
        return GivenBatches(given, drop_last=drops, seed=self._seed, **how)

    def use_a_copy(self) -> None:
        """Leave the sampler to another reader."""
        self.given = self._copy()
        self._owners = [owner for owner in (self.given, getattr(self.given, "sampler", None)) if owner is not None]

    def _copy(self) -> Any:
        """Return a copy of the sampler as it was given; the same one where nothing is kept by reading it."""
        if self._as_given is None:
            return self.given
        given = copy.copy(self.given)
        vars(given).update(self._copied(vars(self.given) if is_stateful(given) else self._as_given))
        return given

    def __len__(self) -> int:
        length = len(self.given)  # type: ignore[arg-type]  # a TypeError says that it is not known
        together = (self.batch_size or 1) * self._world_size
        return length // together if self._drop_last else -(-length // together)

    def keys_of(self, round: int, start: int) -> Iterator[Any]:
        """See `Rounds`."""
        number, skipped = self.seed_of(round), 0
        entered, self._entered = self._entered, None
        if entered is None:
            self._come_to(round)
            given: Iterator[Any] = self._begun(round)
        elif entered["batch"] is None:
            given = self._begun(round)
            first = list(islice(given, 1))
            # After the state of a round's end there may be none until it begins once more.
            given = chain(first, given) if first else self._begun(round)
        else:
            given, skipped = self._begun(round, entered["numbers"]), entered["batch"]
        world_size, size = self._world_size, self.batch_size or 1
        batch, records = skipped, self._records and is_stateful(self.given)
        if records:
            self._states[batch] = self._state_now()
        while group := list(islice(given, size * world_size)):
            if self._drop_last and len(group) < size * world_size:
                break
            if self.batched and self.batch_size is None:  # a group of batches
                turn = self._rank if self._rank < len(group) else 0
                samples = len(group[turn]) if self._rank < len(group) else 0
                share = share_of(samples, sum(len(indices) for indices in group), world_size)
                numbers = (number, batch * world_size + turn)
                keys = [Key(index, (*numbers, place)) for place, index in enumerate(group[turn])]
            else:
                mine, share = _dealt(len(group), size, self._rank, world_size)
                # By place and not by index: a sampler may give a sample twice, and each time it is augmented otherwise.
                keys = [
                    Key(group[i], (number, batch, i) if self.batched else (number, batch * world_size + i))
                    for i in range(mine.start, mine.stop)
                ]
            if world_size > 1:
                self._shares[batch] = share
            batch += 1
            if records:
                self._states[batch] = self._state_now()
            if batch > start:
                yield keys if self.batched else keys[0]
        self._is_midway, self._done = False, round + 1

    def _come_to(self, round: int) -> None:
        """Let the sampler be as it is after the rounds before."""
        if self._as_given is None or (round == self._done and not self._is_midway):
            return
        if is_stateful(self.given):
            if round == 0:
                self.given.load_state_dict(copy.deepcopy(self._as_given))  # type: ignore[attr-defined]
            return
        vars(self.given).clear()
        vars(self.given).update(self._copied(self._as_given))
        for earlier in range(round):
            for _ in self._begun(earlier):
                pass

    def _begun(self, round: int, numbers: Mapping[str, Any] | None = None) -> SeededIterator:
        generators = [g for g in (getattr(owner, "generator", None) for owner in self._owners) if g is not None]
        set_epoch(round, *self._owners)  # before `iter`, which may draw the order of the whole round
        self._is_midway, self._shares, self._states = True, {}, {}
        self._iterator = SeededIterator(self.given, derive_seed(self._seed, self.seed_of(round)), generators, numbers)
        return self._iterator

    def beginning(self) -> str:
        """See `Rounds`."""
        self._come_to(0)
        return str([str(item) for item in islice(self._begun(0), self._world_size)])[:100]

    def share_of(self, batch: int) -> float:
        """See `Rounds`."""
        # For workers, batches are drawn ahead of their use; nobody asks for a state before this batch's.
        for passed in [number for number in self._states if number <= batch]:
            del self._states[passed]
        return self._shares.pop(batch, 1.0)

    def state_after(self, batch: int | None) -> dict[str, Any] | None:
        """Return the state of a stateful sampler after so many batches of the round that is read; None of any other.

        Args:
            batch: Number of batches. None: the whole round.
        """
        if not is_stateful(self.given) or self._iterator is None:
            return None
        return self._state_now() if batch is None else self._states.get(batch) or self._state_now()

    def enter(self, batch: int | None, state: Mapping[str, Any]) -> None:
        """Let the round that is read next begin with the state that `state_after` returned for the same batch."""
        self.given.load_state_dict(copy.deepcopy(state["sampler"]))  # type: ignore[attr-defined]
        self._entered = {"batch": batch, "numbers": state["numbers"]}

    def _state_now(self) -> dict[str, Any]:
        assert self._iterator is not None
        state = copy.deepcopy(self.given.state_dict())  # type: ignore[attr-defined]
        return {"sampler": state, "numbers": self._iterator.numbers()}
