"""What a user's loader gives, and nothing else, trains; in any number of processes, wherever a run is entered."""

import contextlib
import random

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from supernet import DartsTrainer, LayerChoice, SinglePathTrainer, accuracy, evaluate
from supernet.data.loaders import first_batch, loader_of, loaders_of_two_parts
from supernet.data.split import DataSplit
from supernet.errors import DataError
from supernet.files.checkpoint import read_checkpoint, write_checkpoint
from supernet.trainers import Callback, Checkpointing

NUMPY = numpy.random  # its global numbers, which users' datasets draw from


class Indices(Dataset):
    """Gives its indices, and so shows which samples went where."""

    def __init__(self, count=40):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor(index), torch.tensor(index)


def as_it_is(batch):
    return batch


def rounds(loader, *numbers):
    """The batches of each of these rounds, as lists of indices."""
    part = DataSplit(loader, as_it_is)
    return [[X.reshape(-1).tolist() for X, _ in part.batches(number)] for number in numbers]


def halves(loader, seed=0):
    return loaders_of_two_parts(loader, None, batch_size=64, workers=0, seed=seed)


def seen(loader, number=0):
    return [index for batch in rounds(loader, number)[0] for index in batch]


# --- halves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "given"),
    [
        (SubsetRandomSampler(range(5, 25)), range(5, 25)),
        (SubsetRandomSampler(torch.arange(5, 25)), range(5, 25)),
        (SequentialSampler(range(20)), range(20)),  # shorter than the dataset
        (BatchSampler(SubsetRandomSampler(range(5, 25)), 4, drop_last=False), range(5, 25)),
    ],
)
def test_the_halves_of_a_loader_hold_all_that_its_sampler_gives_and_nothing_else(sampler, given):
    is_batched = isinstance(sampler, BatchSampler)
    loader = DataLoader(
        Indices(), **({"batch_sampler": sampler} if is_batched else {"batch_size": 4, "sampler": sampler})
    )
    first, second = halves(loader)
    assert sorted(seen(first) + seen(second)) == list(given)
    assert set(seen(first)).isdisjoint(seen(second, 1))
    assert {len(batch) for batch in rounds(first, 0)[0]} == {4, 2}
    assert rounds(first, 0) != rounds(first, 1)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_halves_of_a_weighted_loader_are_drawn_by_its_weights_and_share_no_sample(replacement):
    """Samples 0 to 9 weigh nothing, 10 to 19 weigh 1, and 20 to 39 weigh 9."""
    weights = torch.tensor([0.0] * 10 + [1.0] * 10 + [9.0] * 20)
    loader = DataLoader(Indices(), 5, sampler=WeightedRandomSampler(weights, 20 if replacement else 9, replacement))
    drawn = [[i for number in range(100) for i in seen(half, number)] for half in halves(loader)]
    assert [len(indices) for indices in drawn] == ([1000, 1000] if replacement else [400, 500])
    assert set(drawn[0]).isdisjoint(drawn[1])
    assert set(drawn[0]) | set(drawn[1]) == set(range(10, 40))
    if replacement:
        for indices in drawn:
            heavy, light = (len([i for i in set(indices) if (i >= 20) is which]) for which in (True, False))
            share = sum(i >= 20 for i in indices) / len(indices)
            assert share == pytest.approx(9 * heavy / (9 * heavy + light), abs=0.05)


def test_the_halves_of_a_loader_that_draws_with_replacement_do_so_too():
    first, second = halves(DataLoader(Indices(), 5, sampler=RandomSampler(range(40), True, 30)))
    assert len(seen(first)) == len(seen(second)) == 15
    assert any(len(set(seen(first, number))) < 15 for number in range(3))
    assert set(seen(first)).isdisjoint(seen(second))


class Buckets(Sampler):
    def __iter__(self):
        return iter([[i, i + 1] for i in range(0, 40, 2)])

    def __len__(self):
        return 20


class OwnIteration(DataLoader):
    def __iter__(self):
        return (batch for batch in super().__iter__() if batch[0][0] < 20)


@pytest.mark.parametrize(
    ("loader", "named"),
    [
        (DataLoader(Indices(), batch_sampler=Buckets()), "Buckets as sampler"),
        (DataLoader(Indices(), sampler=[3, 4]), "list as sampler"),
        (DataLoader(Indices(), sampler=SubsetRandomSampler([1, 1, 2, 3])), "SubsetRandomSampler as sampler"),
        (OwnIteration(Indices()), r"its own iteration \(OwnIteration\)"),
    ],
)
def test_a_loader_whose_samples_are_not_known_is_not_halved(loader, named):
    with pytest.raises(DataError, match=rf"{named} cannot be split in two halves .* give valid_dataset too, .*sampler"):
        halves(loader)


def test_a_loader_that_iterates_in_a_way_of_its_own_is_taken_as_it_is():
    loader = OwnIteration(Indices(), 4)
    assert loader_of(loader, batch_size=64, workers=0, seed=0) is loader


def test_where_each_sample_is_a_batch_each_half_gives_single_samples():
    for shuffle in (False, True):
        loader = DataLoader(Indices(9), batch_size=None, shuffle=shuffle)
        first, second = halves(loader)
        assert [len(part) for part in (first, second)] == [4, 5]
        assert all(X.dim() == 0 for part in (first, second) for X, _ in DataSplit(part, as_it_is).batches(0))
        assert sorted(seen(first) + seen(second)) == list(range(9))
        made = loader_of(loader, batch_size=64, workers=0, seed=0)
        assert (seen(made) == list(range(9))) is not shuffle
        assert sorted(seen(made)) == list(range(9))
        assert seen(DataSplit(made, as_it_is).unsharded(shuffle=False).loader) == list(range(9))


class Graphs(Dataset):
    """Samples of different sizes, which no collation can stack."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        X = torch.full((3 + index, 2), float(index))
        return X, torch.zeros(len(X), dtype=torch.long)


@pytest.mark.parametrize("trainer_class", [DartsTrainer, SinglePathTrainer])
def test_a_search_on_samples_that_are_batches_sees_each_whole(trainer_class):
    sizes = set()
    model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Identity()], label="a"), nn.Linear(2, 2))
    model.register_forward_pre_hook(lambda module, inputs: sizes.add(tuple(inputs[0].shape)))
    options = {} if trainer_class is DartsTrainer else {"num_evaluations": 2, "population": 2, "num_parents": 1}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = DataLoader(Graphs(), batch_size=None)
    trainer_class(model, nn.functional.cross_entropy, None, optimizer, 2, loader, **options).fit()
    assert sizes == {(3 + index, 2) for index in range(6)}


# --- options -----------------------------------------------------------------------------------------------


def first_of_each(samples):
    return default_collate(samples)


def no_seed(worker):
    pass


OPTIONS = {
    "num_workers": 2,
    "timeout": 7.0,
    "prefetch_factor": 3,
    "pin_memory": True,
    "persistent_workers": True,
    "worker_init_fn": no_seed,
    "multiprocessing_context": "spawn",
    "generator": torch.Generator().manual_seed(3),
}


@pytest.mark.parametrize(
    "how",
    [
        {"shuffle": True},
        {},
        {"sampler": WeightedRandomSampler([1.0] * 40, 40)},
        {"sampler": SubsetRandomSampler([1, 2, 3])},
    ],
    ids=["shuffled", "in order", "weighted", "subset"],
)
def test_every_option_of_a_loader_survives_wherever_one_is_made_of_it(how):
    given = DataLoader(Indices(), 4, collate_fn=first_of_each, **how, **OPTIONS)
    train, valid = loaders_of_two_parts(given, given, batch_size=64, workers=0, seed=0)
    made = {
        "for training": train,
        "for validation": valid,
        "first half": halves(given)[0],
        "second half": halves(given)[1],
        "for evaluation": loader_of(given, batch_size=64, workers=0, seed=0, shuffle=False),
        "whole": DataSplit(train, as_it_is).unsharded(shuffle=True).loader,
        "whole, in order": DataSplit(train, as_it_is).unsharded(shuffle=False).loader,
    }
    for name, loader in made.items():
        for option in OPTIONS:
            found = getattr(loader, option)
            found = found.args[0] if option == "worker_init_fn" else found  # which stands in one of ours
            assert found == getattr(given, option), (name, option)
        assert loader.dataset.collate is first_of_each, name


def test_a_loader_that_keeps_its_last_batch_keeps_it_in_each_half():
    for drop_last in (True, False):
        loader = DataLoader(Indices(22), 4, shuffle=True, drop_last=drop_last)
        for half in halves(loader):
            assert [len(batch) for batch in rounds(half, 0)[0]] == ([4, 4] if drop_last else [4, 4, 3])


def test_the_seed_of_a_loaders_generator_decides_the_order_beside_the_trainers():
    def order(seed, sampler=None):
        generator = torch.Generator().manual_seed(seed)
        state = generator.get_state()
        how = {"shuffle": True} if sampler is None else {"sampler": sampler(generator)}
        made = loader_of(DataLoader(Indices(), 8, generator=generator, **how), batch_size=64, workers=0, seed=0)
        result = rounds(made, 0, 1, 0)
        assert result[0] == result[2] != result[1]
        if sampler is not None:
            generator.set_state(state)  # whatever was drawn from it meanwhile
            assert rounds(made, 0) == result[:1]
        return result

    def weighted(generator):
        return WeightedRandomSampler([1.0] * 40, 40, generator=generator)

    for sampler in (None, weighted):
        assert order(1, sampler) == order(1, sampler) != order(2, sampler)


@pytest.mark.parametrize(
    "how", [{"shuffle": True}, {"sampler": RandomSampler(range(40), True)}, {"shuffle": True, "num_workers": 2}]
)
def test_whoever_reads_a_loader_of_a_part_on_his_own_gets_one_round_after_the_other(how):
    loader = loader_of(DataLoader(Indices(), 8, **how), batch_size=64, workers=0, seed=0)
    first_batch(loader)
    assert [[X.tolist() for X, _ in loader] for _ in range(3)] == rounds(loader, 0, 1, 2)


# --- evaluation --------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __init__(self, X, y):
        self.samples = list(zip(X, y, strict=True))

    def __iter__(self):
        return iter(self.samples)


def test_evaluation_measures_every_sample_whatever_a_loader_drops():
    torch.manual_seed(0)
    X, y = torch.randn(23, 4), torch.randint(3, (23,))
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    data = TensorDataset(X, y)
    network.eval()
    with torch.no_grad():
        output = network(X)
    kept = slice(0, 17)
    for loader, used in [
        (DataLoader(data, 10, drop_last=True), slice(None)),
        (DataLoader(data, 10, drop_last=True, shuffle=True), slice(None)),
        (DataLoader(Stream(X, y), 10, drop_last=True), slice(None)),
        (DataLoader(data, 5, drop_last=True, sampler=SubsetRandomSampler(range(17))), kept),  # the user's own choice
        (DataLoader(data, batch_sampler=BatchSampler(range(17), 5, drop_last=True)), kept),
        (DataLoader(data, batch_size=None), slice(None)),
    ]:
        if loader.batch_size is None and loader.batch_sampler is None:
            loader = DataLoader([(X[i : i + 1], y[i : i + 1]) for i in range(23)], batch_size=None)
        found = evaluate(network, nn.functional.cross_entropy, accuracy, loader)
        assert found["loss"] == pytest.approx(nn.functional.cross_entropy(output[used], y[used]).item(), abs=1e-5)
        assert found["accuracy"] == pytest.approx(accuracy(output[used], y[used]).item(), abs=1e-5)


# --- random numbers ----------------------------------------------------------------------------------------


class Noisy(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), NUMPY.random(), torch.rand(()).item()]), index


def mixed_up(samples):
    X, y = default_collate(samples)
    return X + torch.rand(len(X), 1) + random.random() + NUMPY.random(), y


class Drawn(Sampler):
    """Draws batches by the global numbers, some of which come when it is half through."""

    def __iter__(self):
        for _ in range(6):
            yield [random.randrange(24) for _ in range(3)] + torch.randint(24, (1,)).tolist()

    def __len__(self):
        return 6


@pytest.mark.parametrize(
    "how",
    [
        {"batch_size": 4, "shuffle": True},
        {"batch_sampler": Drawn()},
        {"batch_size": 4, "sampler": RandomSampler(range(24), True)},
    ],
    ids=["shuffled", "own batches", "own sampler"],
)
def test_what_samples_and_batches_draw_depends_on_seed_and_round_and_batch_alone(how):
    def part(seed, workers):
        loader = DataLoader(Noisy(), collate_fn=mixed_up, num_workers=workers, **how)
        return DataSplit(loader_of(loader, batch_size=64, workers=0, seed=seed), as_it_is)

    def batches(part, round, start=0):
        return [X for X, _ in part.batches(round, start)]

    expected = batches(part(0, 0), 1)
    torch.manual_seed(5)
    random.seed(5)
    for workers in (0, 2):
        again = part(0, workers)
        before = torch.get_rng_state(), random.getstate(), NUMPY.get_state()[1].tolist()
        assert all(map(torch.equal, batches(again, 1), expected))
        assert all(map(torch.equal, batches(again, 1, 4), expected[4:]))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), NUMPY.get_state()[1].tolist()) == before[1:]
    assert not torch.equal(batches(part(0, 0), 2)[0], expected[0])
    assert not torch.equal(batches(part(1, 0), 1)[0], expected[0])
    shifts = [(X[:, 1:] - X[:, 1:].floor()).tolist() for X in expected]
    assert len({str(shift) for shift in shifts}) == len(shifts)


# --- the validation part from epoch to epoch ---------------------------------------------------------------


class Read(Indices):
    def __init__(self, count):
        super().__init__(count)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return torch.full((2,), float(index)), index % 2


class ReadStream(IterableDataset):
    def __init__(self, count):
        self.data = Read(count)

    def __iter__(self):
        return (self.data[index] for index in range(self.data.count))


class Stop(Callback):
    def __init__(self, epoch, step):
        self.at = epoch, step

    def step_ended(self, trainer):
        if (trainer.epoch, trainer.step) == self.at:
            raise KeyboardInterrupt


def read_by_a_search(validation, run_dir=None, callbacks=(), resume=None, **options):
    """The samples of each step's validation batch, in four epochs of three steps; and the trainer."""
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Identity()], label="a"), nn.Linear(2, 2))
    trainer = DartsTrainer(
        model,
        nn.functional.cross_entropy,
        None,
        torch.optim.SGD(model.parameters(), 0.001),
        4,
        DataLoader(Read(12), 4),
        valid_dataset=validation,
        run_dir=run_dir,
        callbacks=callbacks,
        checkpointing=Checkpointing(every_steps=1),
        **options,
    )
    batches, inner = [], trainer.train_architecture
    trainer.train_architecture = lambda X, y: (batches.append(X[:, 0].int().tolist()), inner(X, y))
    with contextlib.suppress(KeyboardInterrupt):
        trainer.fit(resume=resume)
    return batches, trainer


@pytest.fixture
def without_plots(monkeypatch):
    """Leave out what takes the most time of a small search."""
    for name in ("plot_architecture", "plot_probabilities"):
        monkeypatch.setattr(f"supernet.training.run_directory.{name}", lambda *arguments: None)


VALIDATION = {
    "in order": lambda: DataLoader(Read(28), 4),
    "with workers": lambda: DataLoader(Read(28), 4, num_workers=1, persistent_workers=True),
    "own batches": lambda: DataLoader(Read(28), batch_sampler=[list(range(i, i + 4)) for i in range(0, 28, 4)]),
    "stream": lambda: DataLoader(ReadStream(28), 4),
}


@pytest.mark.parametrize("kind", VALIDATION)
def test_each_epoch_takes_up_the_validation_part_where_the_last_one_left_it(kind):
    batches, _ = read_by_a_search(VALIDATION[kind]())
    passes = [list(range(i, i + 4)) for i in range(0, 28, 4)] * 2
    assert batches == passes[:12]


@pytest.mark.parametrize(
    ("kind", "at"),  # within a round, at an epoch's end, or where the round ends
    [("in order", (2, 0)), ("with workers", (1, 1)), ("own batches", (1, 2)), ("stream", (2, 0)), ("shuffled", (1, 1))],
)
def test_a_resumed_search_takes_up_the_validation_part_where_it_was_left(tmp_path, without_plots, kind, at):
    new = VALIDATION.get(kind, lambda: DataLoader(Read(28), 4, shuffle=True))
    expected, whole = read_by_a_search(new())
    first, _ = read_by_a_search(new(), tmp_path, [Stop(*at)])
    rest, resumed = read_by_a_search(new(), tmp_path, resume="auto")
    assert len(first) == 3 * at[0] + at[1] + 1
    assert first[:-1] + rest == expected  # the step that was broken off is taken again
    assert torch.equal(resumed.alphas["a"], whole.alphas["a"])


def test_a_checkpoint_without_the_place_in_the_validation_part_still_loads(tmp_path, without_plots):
    read_by_a_search(DataLoader(Read(12), 4), tmp_path, [Stop(1, 1)])
    path = max((tmp_path / "checkpoints").iterdir())
    state = read_checkpoint(path)
    assert state.pop("validation") == [1, 1]
    write_checkpoint(path, state)
    rest, _ = read_by_a_search(DataLoader(Read(12), 4), tmp_path, resume="auto")
    assert rest == [[4, 5, 6, 7], [8, 9, 10, 11], *[list(range(i, i + 4)) for i in (0, 4, 8)] * 2]
