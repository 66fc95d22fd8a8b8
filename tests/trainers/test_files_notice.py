"""What is read of a run is what was written, or an error of ours that names the file."""

import copy
import functools
import io
import json
import random
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from equality import same
from rich.console import Console
from searches import Net, search

from supernet import SearchSpace, freeze, load_architecture, load_runs, load_weights, save_architecture
from supernet.errors import FileFormatError, SupernetError
from supernet.files.checkpoint import read_checkpoint
from supernet.files.safetensors_file import read_safetensors, write_safetensors
from supernet.rerun import differences
from supernet.runs import print_runs
from supernet.space.files import digest_of_json
from supernet.training.run_directory import read_description, read_metrics
from supernet.training.snapshot import load_state

OLD = Path(__file__).parent / "checkpoints"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        for plot in ("plot_architecture", "plot_probabilities"):
            patch.setattr(f"supernet.training.run_directory.{plot}", lambda *_: [])
        search("first order", path, num_epochs=3).fit()
    (path / "checkpoint.safetensors").write_bytes(max((path / "checkpoints").iterdir()).read_bytes())
    return path


SPACE = SearchSpace(Net())


@functools.cache
def network(run_dir):
    return freeze(Net(), load_architecture(run_dir / "architecture.json", SPACE))


def weights(directory):
    load_weights(network(directory), directory / "network.safetensors")
    return {name: value.clone() for name, value in network(directory).state_dict().items()}


READERS = {
    "checkpoint.safetensors": lambda directory: read_checkpoint(directory / "checkpoint.safetensors"),
    "network.safetensors": weights,
    "architecture.json": lambda directory: load_architecture(directory / "architecture.json", SPACE),
    "run.json": read_description,
    "metrics.jsonl": read_metrics,
}


@pytest.fixture
def mutated(run_dir, tmp_path):
    """Files of a run of which the test changes one."""
    for name in READERS:
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    return tmp_path


@contextmanager
def within(seconds):
    """Fail where something takes longer, as what never ends does."""

    def fail(*_):
        raise AssertionError("takes too long")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(read, directory, name, content):
    """What is read of a changed file: "refused", or what it says."""
    (directory / name).write_bytes(content)
    with within(20):
        try:
            return read(directory)
        except FileFormatError as error:
            assert name in str(error)
            return "refused"


def is_start_of(read, whole):
    """Whether lines are a log that a kill has cut off, whose last line is left out."""
    return isinstance(read, list) and len(read) == len(whole) - 1 and same(read, whole[:-1])


@pytest.mark.parametrize("name", READERS)
def test_each_bit_that_flips_is_noticed(name, mutated):
    read, content, rng = READERS[name], bytearray((mutated / name).read_bytes()), random.Random(0)
    whole = read(mutated)
    flips = rng.sample(range(len(content) * 8), 2000) if "safetensors" in name else range(len(content) * 8)
    if name in ("run.json", "metrics.jsonl", "architecture.json"):
        flips = rng.sample(flips, 2000)
    for bit in flips:
        content[bit // 8] ^= 1 << bit % 8
        found = outcome(read, mutated, name, bytes(content))
        content[bit // 8] ^= 1 << bit % 8
        if found != "refused":  # white space in JSON says nothing, and the end of the last line says that it is whole
            assert name.endswith(("json", "jsonl"))
            at_the_end = name == "metrics.jsonl" and bit // 8 == len(content) - 1 and is_start_of(found, whole)
            assert same(found, whole) or at_the_end


def changed_bytes(content, rng):
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at, kind = rng.randrange(len(content) or 1), rng.random()
        at = min(at, rng.randrange(3000)) if rng.random() < 0.5 else at
        if kind < 0.5 and content:
            content[at] = rng.choice([rng.randrange(256), *b'{}[]",:0-9e'])
        elif kind < 0.7:
            del content[at : at + rng.randint(1, 9)]
        elif kind < 0.95:
            content[at:at] = content[at : at + rng.randint(1, 9)]
        else:
            del content[at:]
    return bytes(content)


WEIRD = [None, True, -1, 0, 10**40, 10**400, 1e308, float("nan"), "", "x", "\ud800", [], {}, [[]], {"a": [1]}, "9" * 50]


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def changed_tree(tree, rng):
    """A copy of JSON in which something, somewhere, is another thing."""
    tree = copy.deepcopy(tree)
    places = []

    def walk(value):
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    walk(tree)
    for _ in range(rng.randint(1, 2)):
        holder, key = rng.choice(places)
        kind = rng.random()
        if (isinstance(holder, list) and key >= len(holder)) or (isinstance(holder, dict) and key not in holder):
            continue
        if kind < 0.2:
            del holder[key]
        elif kind < 0.3:
            other, name = rng.choice(places)
            if (isinstance(other, dict) and name in other) or (isinstance(other, list) and name < len(other)):
                holder[key] = copy.deepcopy(other[name])
        elif kind < 0.4 and isinstance(holder, dict):
            holder[rng.choice(["x", "", "digest", "format", str(key) * 2])] = holder.pop(key)
        elif kind < 0.5 and isinstance(holder, list):
            holder.insert(key, holder[key])
        elif kind < 0.6 and type(holder[key]) in (int, float):
            holder[key] += rng.choice([-1, 1, 2**31, 2**63])
        elif kind < 0.65:
            holder[key] = deep(rng.choice([50, 300]))
        else:
            holder[key] = copy.deepcopy(rng.choice(WEIRD))
    return tree


# --- bytes -------------------------------------------------------------------------------------------------


def check_bytes(name, mutated, count):
    rng, content, whole = random.Random(1), (mutated / name).read_bytes(), READERS[name](mutated)
    refused = 0
    for _ in range(count):
        found = outcome(READERS[name], mutated, name, changed_bytes(content, rng))
        refused += found == "refused"
        if found != "refused" and not same(found, whole):
            # A log may have been cut off by a kill, in the last line or between two.
            assert name == "metrics.jsonl"
            assert same(found, whole[: len(found)])
    assert refused > 0.8 * count


def check_bytes_of_version_1(tmp_path, count):
    rng, trainer, refused = random.Random(2), search("first order"), 0
    for number in range(count):
        file = ("darts", "single_path")[number % 2]
        content = changed_bytes((OLD / f"{file}.safetensors").read_bytes(), rng)
        refused += is_refused(trainer, outcome(lambda d: read_checkpoint(d / "old"), tmp_path, "old", content))
    assert refused > 0.8 * count


def is_refused(trainer, state):
    """Whether a trainer refuses the state by an error of ours; any other is raised."""
    if state == "refused":
        return True
    with torch.random.fork_rng(), within(20):
        try:
            load_state(trainer, state, "this file")
        except SupernetError as error:
            assert "this file" in str(error)
            return True
    return False


# --- structure ---------------------------------------------------------------------------------------------


def check_structure_of_json(name, mutated, count):
    """With the old digest, one that fits, or none: ours, and what is read goes through all that reads it."""
    rng, text, whole = random.Random(3), (mutated / name).read_text(), READERS[name](mutated)
    lines = [json.loads(line) for line in text.splitlines()] if name == "metrics.jsonl" else json.loads(text)
    for number in range(count):
        tree = changed_tree(lines, rng)
        if number % 3 == 0 or not isinstance(tree, dict | list):
            written, before = tree, None
        else:
            written, before = [], ""
            for record in tree if isinstance(tree, list) else [tree]:
                record = {k: v for k, v in record.items() if k != "digest"} if isinstance(record, dict) else record
                if number % 3 == 1 and isinstance(record, dict):
                    digest = digest_of_json(record, before)
                    before = digest[:16] if name == "metrics.jsonl" else before
                    record["digest"] = before or digest
                written.append(record)
            written = written if isinstance(tree, list) else written[0]
        dumped = [json.dumps(line) + "\n" for line in written] if isinstance(written, list) else [json.dumps(written)]
        found = outcome(READERS[name], mutated, name, "".join(dumped).encode())
        has_lost_its_digest = (
            name == "run.json" and "digest" not in tree
        )  # as files have none from before there were any
        if number % 3 == 0 and found != "refused" and not has_lost_its_digest:
            assert same(found, whole) or (name == "metrics.jsonl" and same(found, whole[: len(found)]))
        for read in (lambda d: print_runs(load_runs([d]), Console(file=io.StringIO())), lambda d: differences(d, d)):
            outcome(read, mutated, name, "".join(dumped).encode())


def check_structure_of_checkpoints(mutated, count):
    """Trees and headers that say other things, with digests that fit."""
    name, rng, trainer = "checkpoint.safetensors", random.Random(4), search("first order")
    refused = 0
    metadata, tensors = read_safetensors(mutated / name)
    del metadata["digest"]
    tree = json.loads(bytes(tensors["tree"].tolist()))
    for number in range(count):
        header, content = dict(metadata), dict(tensors)
        if number % 10:
            content["tree"] = torch.frombuffer(
                bytearray(json.dumps(changed_tree(tree, rng)).encode()), dtype=torch.uint8
            )
        else:
            changed = rng.choice(list(content))
            content[changed] = rng.choice(
                [torch.ones(3), content[changed].double(), content[rng.choice(list(content))], torch.empty(0)]
            )
            header |= rng.choice([{}, {"version": "1", "tree": json.dumps(changed_tree(tree, rng))}])
        write_safetensors(mutated / "written", content, header)
        state = outcome(READERS[name], mutated, name, (mutated / "written").read_bytes())
        refused += is_refused(trainer, state)
    assert refused > 0.5 * count


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_changed_bytes_is_refused_or_says_the_same(name, mutated):
    check_bytes(name, mutated, 300)


def test_an_old_checkpoint_of_changed_bytes_leads_to_no_error_but_ours(tmp_path):
    check_bytes_of_version_1(tmp_path, 200)


@pytest.mark.parametrize("name", ["architecture.json", "run.json", "metrics.jsonl"])
def test_json_of_another_structure_is_refused_or_read_by_all_that_read_it(name, mutated):
    check_structure_of_json(name, mutated, 150)


def test_a_checkpoint_of_another_structure_leads_to_no_error_but_ours(mutated, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    check_structure_of_checkpoints(mutated, 150)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_files_of_changed_bytes_are_refused_or_say_the_same(name, mutated):
    check_bytes(name, mutated, 10_000)


@pytest.mark.slow
def test_ten_thousand_old_checkpoints_of_changed_bytes_lead_to_no_error_but_ours(tmp_path):
    check_bytes_of_version_1(tmp_path, 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["architecture.json", "run.json", "metrics.jsonl"])
def test_three_thousand_structures_of_json_are_refused_or_read_by_all_that_read_them(name, mutated):
    check_structure_of_json(name, mutated, 3_000)


@pytest.mark.slow
def test_three_thousand_structures_of_checkpoints_lead_to_no_error_but_ours(mutated, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    check_structure_of_checkpoints(mutated, 3_000)


# --- particular ones ---------------------------------------------------------------------------------------


def test_files_from_before_there_were_digests_are_read(mutated):
    description, records = read_description(mutated), read_metrics(mutated)
    architecture, network = READERS["architecture.json"](mutated), weights(mutated)
    for name in ("run.json", "architecture.json"):
        content = json.loads((mutated / name).read_text())
        del content["digest"]
        (mutated / name).write_text(json.dumps(content))
    (mutated / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    from safetensors.torch import load_file, save_file

    save_file(load_file(mutated / "network.safetensors"), mutated / "network.safetensors")
    assert read_description(mutated) == description
    assert read_metrics(mutated) == records
    assert READERS["architecture.json"](mutated) == architecture
    assert same(weights(mutated), network)


@pytest.mark.parametrize("lines", [(1, 2), (0, 2), (1, 0, 2), (0, 0, 1, 2)])
def test_lines_that_are_missing_doubled_or_swapped_are_noticed(mutated, lines):
    whole = (mutated / "metrics.jsonl").read_text().splitlines(keepends=True)
    (mutated / "metrics.jsonl").write_text("".join(whole[number] for number in lines))
    with pytest.raises(FileFormatError, match=r"metrics\.jsonl, line \d does not have the digest"):
        read_metrics(mutated)


def test_other_libraries_read_the_weights_of_a_run(mutated):
    from safetensors import safe_open
    from safetensors.torch import load_file

    read = load_file(mutated / "network.safetensors")
    assert same(dict(sorted(read.items())), dict(sorted(weights(mutated).items())))
    with safe_open(mutated / "network.safetensors", "pt") as file:
        assert len(file.metadata()["digest"]) == 64


def test_weights_of_another_network_are_refused(mutated):
    with pytest.raises(FileFormatError, match=r"network\.safetensors does not hold the weights of this network"):
        load_weights(torch.nn.Linear(1, 1), mutated / "network.safetensors")


def test_an_architecture_s_file_may_be_laid_out_in_another_way(tmp_path):
    space = SearchSpace(Net())
    (architecture, *_) = space.enumerate()
    save_architecture(architecture, tmp_path / "a.json", space)
    (tmp_path / "a.json").write_text(json.dumps(json.loads((tmp_path / "a.json").read_text()), indent=7))
    assert load_architecture(tmp_path / "a.json", space) == architecture
