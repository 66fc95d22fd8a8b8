"""Whatever data a user has: a search on it that is stopped after any step goes on bit for bit, or it is refused."""

import random
import threading

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
    Subset,
    TensorDataset,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from supernet import LayerChoice, SinglePathTrainer, SupernetTrainer
from supernet.data.loaders import loader_of
from supernet.errors import DataError
from supernet.execution import InputSlot, LayerSlot
from supernet.trainers import Callback, Checkpointing
from supernet.training.snapshot import digest

NUMPY = numpy.random


class Noisy(Dataset):
    """Each sample draws; so what is compared shows the order, and all numbers."""

    def __init__(self, count=12):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor([index, random.random() + NUMPY.random() + torch.rand(()).item()]), int(index) % 2


class Plain(Noisy):
    def __getitem__(self, index):
        return torch.full((2,), float(index)), index % 2


class Stream(IterableDataset):
    """Draws by the global numbers."""

    def __init__(self, count=12):
        self.count = count

    def __iter__(self):
        samples = Noisy()
        return (samples[index] for index in range(self.count))


class Shuffling(Stream):
    """Shuffles by numbers of its own, which go on from round to round."""

    def __init__(self, count=12):
        super().__init__(count)
        self.random = random.Random(0)

    def __iter__(self):
        order = list(range(self.count))
        self.random.shuffle(order)
        return (Noisy()[index] for index in order)


class Growing(Stream):
    """Has other lengths in other rounds, of which it is told."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return (Noisy()[(index + self.epoch) % 12] for index in range(12 - 3 * (self.epoch % 2)))


class WindingBack(Stream):
    """Is its own iterator, and begins anew."""

    def __iter__(self):
        self.at = 0
        return self

    def __next__(self):
        if self.at == self.count:
            raise StopIteration
        self.at += 1
        return Noisy()[self.at - 1]


class Stateful(Stream):
    """Keeps torchdata's convention; its rounds have other orders."""

    def __init__(self, count=12):
        super().__init__(count)
        self.at = self.rounds = 0
        self.read = 0

    def __iter__(self):
        while self.at < self.count:
            self.at += 1
            self.read += 1
            yield Noisy()[(self.at * 5 + self.rounds) % 12]
        self.at, self.rounds = 0, self.rounds + 1

    def state_dict(self):
        return {"at": self.at, "rounds": self.rounds}

    def load_state_dict(self, state):
        self.at, self.rounds = state["at"], state["rounds"]


class Turning(Sampler):
    """An order that is turned on from round to round, by what the sampler keeps itself."""

    def __init__(self, count=12):
        self.count, self.rounds, self.random = count, 0, random.Random(1)

    def __iter__(self):
        self.rounds += 1
        for index in range(self.count):
            yield (index * 5 + self.rounds + self.random.randrange(3)) % self.count

    def __len__(self):
        return self.count


class TurningBatches(Turning):
    """Its batches' number changes from round to round."""

    def __iter__(self):
        self.rounds += 1
        for first in range(0, 12 if self.rounds % 2 else 8, 4):
            yield [(first + i + self.rounds) % 12 for i in range(3)]

    def __len__(self):
        return 3 if self.rounds % 2 else 2


class Told(Sampler):
    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter([(index * 5 + self.epoch) % 12 for index in range(12)])

    def __len__(self):
        return 12


class StatefulSampler(Turning):
    """Its state is known from `state_dict` alone: what it gives depends on what it is told meanwhile, too."""

    def __init__(self):
        super().__init__()
        self.at = self.told = 0
        self.continued = False

    def __iter__(self):
        if not self.continued:
            self.at, self.rounds = 0, self.rounds + 1
        self.continued = False
        while self.at < 12:
            self.at += 1
            yield (self.at * 5 + self.rounds + self.told) % 12

    def state_dict(self):
        return {"at": self.at, "rounds": self.rounds, "told": self.told}

    def load_state_dict(self, state):
        self.at, self.rounds, self.told, self.continued = state["at"], state["rounds"], state["told"], True


class StatefulLoader(DataLoader):
    """What torchdata's StatefulDataLoader does in one process: its state is that of the batches it has given."""

    given, entered, is_over, rounds = 0, None, False, 0

    def __iter__(self):
        entered, self.entered = self.entered, None
        if entered is None or entered["over"]:
            self.given, self.rounds = 0, self.rounds + 1
        self.is_over = False
        batches = list(super().__iter__())  # far ahead of what is consumed
        for batch in batches[self.rounds % 2 :][self.given :]:
            self.given += 1
            yield batch
        self.is_over = True

    def state_dict(self):
        return {"given": self.given, "over": self.is_over, "rounds": self.rounds}

    def load_state_dict(self, state):
        self.given, self.rounds, self.entered = state["given"], state["rounds"], state


class OwnIteration(DataLoader):
    """Gives its batches twice, and counts its rounds."""

    rounds = 0

    def __iter__(self):
        self.rounds += 1
        for batch in super().__iter__():
            yield batch
            yield [batch[0] + self.rounds, batch[1]]


class Transforming(Noisy):
    """A dataset whose samples depend on how far its schedule is."""

    def __init__(self):
        super().__init__()
        self.read = 0

    def __getitem__(self, index):
        self.read += 1
        X, y = super().__getitem__(index)
        return X + self.read, y

    def state_dict(self):
        return {"read": self.read}

    def load_state_dict(self, state):
        self.read = state["read"]


def mixed_up(samples):
    X, y = default_collate(samples)
    return X + torch.rand(()), y


def alone(sample):
    return sample[0][None], torch.tensor([sample[1]])


WORKERS = {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 2}
SOURCES = {
    "dataset": lambda: Noisy(),
    "shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True, collate_fn=mixed_up),
    "last batch kept": lambda: DataLoader(Noisy(10), 4, shuffle=True),
    "with replacement": lambda: DataLoader(Noisy(), 4, sampler=RandomSampler(range(12), True)),
    "own sampler": lambda: DataLoader(Noisy(), 4, sampler=Turning()),
    "own sampler, workers": lambda: DataLoader(Noisy(), 4, sampler=Turning(), **WORKERS),
    "own batches": lambda: DataLoader(Noisy(), batch_sampler=TurningBatches()),
    "batches of an own sampler": lambda: DataLoader(Noisy(), batch_sampler=BatchSampler(Turning(), 5, False)),
    "told sampler": lambda: DataLoader(Noisy(), 4, sampler=Told()),
    "distributed sampler": lambda: DataLoader(Noisy(), 4, sampler=DistributedSampler(Noisy(), 2, 0, drop_last=True)),
    "distributed sampler of all": lambda: DataLoader(Noisy(), 4, sampler=DistributedSampler(Noisy(), 1, 0)),
    "stateful sampler": lambda: DataLoader(Noisy(), 4, sampler=StatefulSampler()),
    "stateful sampler, workers": lambda: DataLoader(Noisy(), 2, sampler=StatefulSampler(), **WORKERS),
    "stateful dataset": lambda: DataLoader(Transforming(), 4),
    "single samples": lambda: DataLoader(Noisy(5), batch_size=None, collate_fn=alone),
    "stream": lambda: DataLoader(Stream(), 4),
    "stream as it is": lambda: Stream(),
    "short stream": lambda: DataLoader(Stream(5), 4),
    "stream, workers": lambda: DataLoader(Stream(), 4, **WORKERS),
    "shuffling stream": lambda: DataLoader(Shuffling(), 4),
    "shuffling stream, workers": lambda: DataLoader(Shuffling(), 4, **WORKERS),
    "growing stream": lambda: DataLoader(Growing(), 4),
    "growing stream, workers": lambda: DataLoader(Growing(), 4, **WORKERS),
    "stream that winds back": lambda: DataLoader(WindingBack(), 4),
    "stateful stream": lambda: DataLoader(Stateful(), 4),
    "stateful stream, workers": lambda: DataLoader(Stateful(), 4, **WORKERS),
    "stateful loader": lambda: StatefulLoader(Plain(), 3),
    "stateful loader, workers": lambda: StatefulLoader(Plain(), 3, **WORKERS),
    "own iteration": lambda: OwnIteration(Noisy(), 4),
}


class OnePath(SupernetTrainer):
    """Trains one path on batches of both parts: as little as there can be beside the data."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.build_supernet(LayerSlot, InputSlot, {"a": "0"})

    def train_step(self, trn_X, trn_y, val_X, val_y):
        for part, X, y in (("valid", val_X, val_y), ("train", trn_X, trn_y)):
            self.optimizer_step(self.compute_loss(part, self.forward(X, {"a": "0"}), y), self.optimizer)

    def export(self):
        return {"a": "0"}


def search(training, validation, trainer_class=OnePath, **options):
    """Return a trainer of three epochs, and what its steps see of the data."""
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Identity()], label="a"), nn.Linear(2, 2))
    trainer = trainer_class(
        model,
        loss=nn.functional.cross_entropy,
        metrics=None,
        optimizer=torch.optim.SGD(model.parameters(), 0.001),
        num_epochs=3,
        batch_size=4,
        device="cpu",
        dataset=SOURCES[training](),
        valid_dataset=SOURCES[validation](),
        **options,
    )
    seen = []
    for name in ("train_part", "valid_part"):
        part = getattr(trainer, name)
        part._split = lambda batch, name=name, inner=part._split: (seen.append((name, str(batch))), inner(batch))[1]
    return trainer, seen


@pytest.fixture(autouse=True)
def without_plots(monkeypatch):
    """Leave out what takes the most time of a small search."""
    for name in ("plot_architecture", "plot_probabilities"):
        monkeypatch.setattr(f"supernet.training.run_directory.{name}", lambda *arguments: None)


def check_each_stop(tmp_path, training, validation, trainer_class=OnePath, every=1, **options):
    """Let one search write a checkpoint after each step, and others go on from each of them."""
    checkpointing = Checkpointing(every_steps=1, keep_last=99)
    whole, seen = search(training, validation, trainer_class, run_dir=tmp_path, checkpointing=checkpointing, **options)
    seen_before, inner = {}, whole._run.save
    whole._run.save = lambda *of, **how: (seen_before.setdefault(whole.global_step, len(seen)), inner(*of, **how))[1]
    whole.fit()
    saved = sorted((tmp_path / "checkpoints").iterdir())
    assert len(saved) == whole.global_step
    for number, checkpoint in reversed(list(enumerate(saved))):
        if number % every == 0 and number + 1 < len(saved):
            random.seed(number)
            torch.manual_seed(number)
            resumed, rest = search(training, validation, trainer_class, **options)
            del rest[:]  # of the trial
            resumed.fit(resume=tmp_path)
            assert rest == seen[seen_before[number + 1] :], checkpoint.name
            assert rest[-1:] == seen[-1:]
            assert digest(resumed.model.parameters()) == digest(whole.model.parameters()), checkpoint.name
        checkpoint.unlink()


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if "workers" not in kind])
def test_a_search_that_goes_on_after_any_step_sees_what_one_that_never_stopped_sees(tmp_path, kind):
    check_each_stop(tmp_path, kind, kind)


@pytest.mark.parametrize(
    "kind", ["own batches", "stateful sampler", "short stream", "stateful stream", "growing stream"]
)
def test_so_does_one_whose_rounds_of_the_validation_part_end_within_an_epoch(tmp_path, kind):
    check_each_stop(tmp_path, "last batch kept", kind, every=2)


WITH_WORKERS = [kind for kind in SOURCES if "workers" in kind]


@pytest.mark.parametrize(
    "kind", [WITH_WORKERS[0], *(pytest.param(k, marks=pytest.mark.slow) for k in WITH_WORKERS[1:])]
)
def test_so_does_one_whose_workers_load_ahead(tmp_path, kind):
    check_each_stop(tmp_path, kind, "dataset", every=4)


@pytest.mark.parametrize("kind", ["own sampler", "shuffling stream", "stateful stream"])
def test_so_does_one_that_goes_over_the_parts_in_turn(tmp_path, kind):
    options = {"num_evaluations": 2, "population": 2, "num_parents": 1}
    check_each_stop(tmp_path, kind, kind, SinglePathTrainer, every=2, **options)


@pytest.mark.parametrize("kind", ["stateful stream", "stateful loader", "stateful sampler", "own sampler"])
def test_an_evaluation_in_the_midst_does_not_move_the_place_in_the_data(kind):
    def evaluated(trainer):
        if trainer.global_step % 2:
            evaluations.append(trainer.evaluate({"a": "0"})["loss"])

    class Evaluating(Callback):
        def step_ended(self, trainer):
            evaluated(trainer)

    evaluations = []
    alone, seen_alone = search(kind, kind)
    alone.fit()
    beside, seen = search(kind, kind, callbacks=[Evaluating()])
    beside.fit()
    assert seen == seen_alone
    assert digest(alone.model.parameters()) == digest(beside.model.parameters())
    assert len(evaluations) >= 4


def test_a_stateful_stream_is_not_read_again_from_its_beginning(tmp_path):
    whole, _ = search("stateful stream", "dataset", run_dir=tmp_path)
    whole.fit()
    (tmp_path / "checkpoints" / f"step-{whole.global_step:012d}.safetensors").unlink()
    resumed, _ = search("stateful stream", "dataset")
    stream = resumed.train_loader.dataset
    before = stream.read
    resumed.fit(resume=tmp_path)
    assert stream.read - before <= 13  # one epoch, and a sample more that says that it is over


# --- what is refused ---------------------------------------------------------------------------------------


class Passing(Stream):
    """Is its own iterator, and does not begin anew."""

    def __init__(self):
        super().__init__()
        self.at = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.at += 1
        return Noisy()[self.at % 12]


class Holding(Stream):
    def __init__(self):
        super().__init__()
        self.samples = (Noisy()[index] for index in range(12))

    def __iter__(self):
        return self.samples


class Locked(Turning):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (lambda: Passing(), "Passing goes on, where it is iterated a second time; let __iter__ begin anew"),
        (lambda: Holding(), "Holding.samples is a generator, which gives what it has once; let __iter__ begin anew"),
        (lambda: DataLoader(Noisy(), 4, sampler=iter(range(12))), "sampler is a range_iterator, which gives its samp"),
        (lambda: DataLoader(Noisy(), batch_sampler=([i] for i in range(12))), "sampler is a generator, which gives"),
        (lambda: DataLoader(Noisy(), 4, sampler=Locked()), r"Locked as sampler cannot be copied .*give it state_dict"),
    ],
)
def test_data_that_could_not_be_read_again_is_refused_before_anything_begins(monkeypatch, source, match):
    monkeypatch.setitem(SOURCES, "bad", source)
    for parts in (("bad", "dataset"), ("dataset", "bad")):
        with pytest.raises(DataError, match=match):
            search(*parts)


def test_one_object_that_keeps_a_place_is_refused_as_both_parts(monkeypatch):
    for made in (DataLoader(Stateful(), 4), StatefulLoader(Plain(), 3)):
        monkeypatch.setitem(SOURCES, "one", lambda made=made: made)
        with pytest.raises(DataError, match=r"read through one Stateful.*, whose state is the place of one reader"):
            search("one", "one")


def test_one_sampler_of_both_parts_is_read_by_each_on_its_own(tmp_path, monkeypatch):
    def new():
        one = DataLoader(Noisy(), 4, sampler=Turning())
        monkeypatch.setitem(SOURCES, "one", lambda: one)
        return "one", "one"

    whole, seen = search(*new())
    whole.fit()
    first, _ = search(*new(), run_dir=tmp_path, checkpointing=Checkpointing(every_steps=1, keep_last=99))
    first.fit()
    for checkpoint in sorted((tmp_path / "checkpoints").iterdir())[4:]:
        checkpoint.unlink()
    resumed, rest = search(*new())
    del rest[:]
    resumed.fit(resume=tmp_path)
    assert rest == seen[-len(rest) :]
    assert len(rest) == 10
    assert digest(resumed.model.parameters()) == digest(whole.model.parameters())


class UsedUp(Stream):
    """Begins with what it has left, which is nothing in the second round; that no look at it shows."""

    def __init__(self):
        super().__init__()
        self.samples = [Noisy()[index] for index in range(12)]

    def __iter__(self):
        while self.samples:
            yield self.samples.pop()


def test_a_validation_part_that_is_used_up_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setitem(SOURCES, "used up", UsedUp)
    trainer, _ = search("dataset", "used up")
    with pytest.raises(DataError, match=r"no batch in round 2, though it did before; let the __iter__ .* begin anew"):
        trainer.fit()


def test_batches_come_in_order_whatever_a_loader_says_about_it(caplog):
    loader = DataLoader(Noisy(), 4, num_workers=2, in_order=False)
    made = loader_of(loader, batch_size=64, workers=0, seed=0)
    assert made.in_order
    assert "in_order=False, which no search could repeat" in caplog.text


class AsSamples(Dataset):
    """Gives the samples of another dataset, one by one."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_of_tensors_come_as_the_batches_that_their_samples_would_make(workers):
    images = torch.randn(2, 20, 3, 4, 4)[1].contiguous(memory_format=torch.channels_last)
    rows = TensorDataset(images, torch.arange(20), torch.randn(20, dtype=torch.float64))
    for dataset in (rows, Subset(Subset(rows, range(1, 20)), [4, 0, 17, 9, 9, 2, 11])):
        options = {"batch_size": 4, "workers": workers, "seed": 3}
        batches, expected = loader_of(dataset, **options), loader_of(AsSamples(dataset), **options)
        for batch, of_samples in zip(batches, expected, strict=True):
            assert type(batch) is type(of_samples) and len(batch) == 3
            for one, other in zip(batch, of_samples, strict=True):
                assert torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()


def test_a_class_of_its_own_between_rows_and_batches_is_asked_for_each_sample():
    class Doubled(TensorDataset):
        def __getitem__(self, index):
            return tuple(2 * tensor for tensor in super().__getitem__(index))

    loader = loader_of(Doubled(torch.arange(4.0)), batch_size=4, workers=0, seed=0)
    assert sorted(next(iter(loader))[0].tolist()) == [0, 2, 4, 6]
