"""The files of a run: safe to read whatever is in them, and enough to run it again."""

import json
import random
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import search

from supernet.cli import main
from supernet.errors import FileFormatError, TrainingError
from supernet.files.checkpoint import read_checkpoint, write_checkpoint
from supernet.rerun import differences, rerun
from supernet.training.run_directory import read_description, read_metrics

# --- checkpoints -------------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(TREES)
def test_a_state_of_plain_values_comes_back_as_it_was(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("checkpoint") / "state.safetensors"
    write_checkpoint(path, {"tree": tree})
    assert read_checkpoint(path) == {"tree": tree}


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    tensor = torch.randn(3, 4).mul(10).to(dtype)
    shared = {"t": tensor, "view": tensor[1], "transposed": tensor.T, "scalar": tensor[0, 0], "empty": tensor[:0]}
    write_checkpoint(tmp_path / "c.safetensors", {**shared, "nan": torch.tensor(float("nan")), "of": Counter([1, 1])})
    state = read_checkpoint(tmp_path / "c.safetensors")
    assert all(torch.equal(state[name], value) and state[name].dtype == dtype for name, value in shared.items())
    assert torch.isnan(state["nan"])
    assert state["of"] == Counter({1: 2})
    assert isinstance(state["of"], Counter)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"a": [1, object()]}, r"state\.a\[1\] is an object, which a checkpoint cannot hold"),
        ({"a": {object: 0}}, r"state\.a's key is a type, which a checkpoint cannot hold"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named(tmp_path, state, match):
    with pytest.raises(TrainingError, match=match):
        write_checkpoint(tmp_path / "c.safetensors", state)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    search("first order", path, num_epochs=2).fit()
    return path


def mutations(content, count, seed=0):
    """Mutated contents: bytes changed, cut out, doubled, and the file cut short."""
    rng = random.Random(seed)
    for _ in range(count):
        mutated = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            at, kind = rng.randrange(len(mutated)), rng.random()
            # Most of a checkpoint's bytes are weights, any value of which is one: aim at the header.
            at = min(at, rng.randrange(3000)) if rng.random() < 0.8 else at
            at = min(at, len(mutated) - 1)
            if kind < 0.5:
                mutated[at] = rng.choice([rng.randrange(256), *b'{}[]",:0-9e'])
            elif kind < 0.7:
                del mutated[at : at + rng.randint(1, 9)]
            elif kind < 0.9:
                mutated[at:at] = mutated[at : at + rng.randint(1, 9)]
            else:
                del mutated[max(1, at) :]
        yield bytes(mutated)


def test_no_mutated_checkpoint_gets_anything_else_out_than_our_error(run_dir, tmp_path):
    (source, *_) = (run_dir / "checkpoints").iterdir()
    path, trainer = tmp_path / "mutated.safetensors", search("first order")
    refused = 0
    for content in mutations(source.read_bytes(), 300):
        path.write_bytes(content)
        try:
            state = read_checkpoint(path)
        except FileFormatError as error:
            assert "mutated.safetensors" in str(error)
            refused += 1
            continue
        try:
            from supernet.training.snapshot import load_state

            with torch.random.fork_rng():
                load_state(trainer, state, path)
        except (FileFormatError, TrainingError) as error:
            assert "mutated.safetensors" in str(error)
            refused += 1
    assert refused > 140


@pytest.mark.parametrize(("name", "reader"), [("run.json", read_description), ("metrics.jsonl", read_metrics)])
def test_no_mutated_text_file_gets_anything_else_out_than_our_error(run_dir, tmp_path, name, reader):
    refused = 0
    for content in mutations((run_dir / name).read_bytes(), 300):
        (tmp_path / name).write_bytes(content)
        try:
            reader(tmp_path)
        except FileFormatError as error:
            assert name in str(error)
            refused += 1
    assert refused > 140


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 8, b"\xff" * 64, b'{"format": 1}', b"\x80\x02}q\x00.", b"PK\x03\x04" + b"\x00" * 60]
)
def test_foreign_files_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"foreign\.safetensors is not a whole safetensors file"):
        read_checkpoint(path)


def test_a_safetensors_file_of_another_kind_or_version_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(FileFormatError, match=r"other\.safetensors is not a checkpoint"):
        read_checkpoint(path)
    save_file({"w": torch.ones(1)}, path, metadata={"format": "supernet/checkpoint", "version": "3", "tree": "1"})
    with pytest.raises(FileFormatError, match="has format version '3'; this library reads 1 to 2"):
        read_checkpoint(path)
    for tree in ("", "{}", '["dict", [["a", ["tensor", "missing"]]]]', '["what", 1]', "[" * 100_000, "7"):
        save_file({"w": torch.ones(1)}, path, metadata={"format": "supernet/checkpoint", "version": "1", "tree": tree})
        with pytest.raises(FileFormatError, match=r"other\.safetensors"):
            read_checkpoint(path)


# --- run.json, and running it again ------------------------------------------------------------------------


def test_run_json_says_what_was_run_and_with_what(run_dir):
    description = read_description(run_dir)
    assert description["status"] == "finished"
    assert description["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert description["command"][0] == sys.orig_argv[0]
    assert description["device"]["kind"] == "cpu"
    assert {"directory", "git", "seed", "space", "data", "precision", "optimizer", "seconds", "result"} <= set(
        description
    )
    assert description["hyperparameters"]["num_epochs"] == 2
    assert description["hyperparameters"]["optimizer"][0]["weight_decay"] == 1e-3


def test_the_digest_of_the_data_tells_splits_apart():
    def data(**options):
        return search("first order", **options).identity()["data"]

    assert data() == data()
    assert data() != data(seed=1)


SCRIPT = """
    import sys, torch
    sys.path.insert(0, {tests!r})
    from searches import search
    import supernet.training.run_directory as files
    torch.set_num_threads(1)
    files.plot_architecture = files.plot_probabilities = lambda *_: []
    search("first order", "runs/mine", num_epochs=2, seed={seed}).fit()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run made by a script of its own, in a directory of its own."""
    directory = tmp_path_factory.mktemp("made")
    tests = str(Path(__file__).parent)
    (directory / "script.py").write_text(textwrap.dedent(SCRIPT.format(tests=tests, seed=0)))
    subprocess.run([sys.executable, "script.py"], cwd=directory, check=True, capture_output=True)
    return directory / "runs" / "mine", directory / "script.py", tests


@pytest.fixture
def finished(made):
    """The same, whose script and description are brought back after a test."""
    run, script, _ = made
    before = {path: path.read_bytes() for path in (script, run / "run.json")}
    yield made
    for path, content in before.items():
        path.write_bytes(content)


@pytest.mark.slow
def test_a_rerun_of_the_same_command_is_the_same(finished, capfd):
    run, *_ = finished
    assert main(["rerun", str(run)]) == 0
    assert "the same as" in capfd.readouterr().out
    assert (run.parent / "mine-rerun-1").exists()


@pytest.mark.slow
def test_a_rerun_of_a_changed_script_says_what_differs(finished, capfd):
    run, script, tests = finished
    script.write_text(textwrap.dedent(SCRIPT.format(tests=tests, seed=1)))
    assert main(["rerun", str(run)]) == 1
    assert (
        "script.py is not the file that made it; to run what stands there now, give --trust" in capfd.readouterr().err
    )
    assert main(["rerun", "--trust", str(run), "--into", str(run.parent / "second")]) == 1
    text = capfd.readouterr().out
    assert "weights differ" in text
    assert "from epoch 1 on, figures differ: train_loss" in text


def test_what_cannot_be_run_again_says_why(run_dir, finished, tmp_path, capsys):
    run, script, _ = finished
    assert main(["rerun", str(tmp_path)]) == 1
    assert "is no run directory: it has no run.json" in capsys.readouterr().err
    script.write_text("raise SystemExit(3)")
    with pytest.raises(TrainingError, match="failed with exit status 3"):
        rerun(run, trust=True)
    script.write_text("")
    with pytest.raises(TrainingError, match="made no run directory in the place of"):
        rerun(run, trust=True)
    content = json.loads((run / "run.json").read_text())
    del content["digest"]  # as whoever changes it on purpose does
    for change, match in (
        ({"status": "interrupted"}, "has not finished"),
        ({"command": ["python", "-c", "1"]}, "python -c"),
        ({"command": ["python"]}, "interactive session"),
    ):
        (run / "run.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(TrainingError, match=match):
            rerun(run)


def test_runs_of_different_length_differ(run_dir, tmp_path):
    search("first order", tmp_path, num_epochs=1).fit()
    assert "2 and 1 epochs were run" in differences(run_dir, tmp_path)
    assert differences(run_dir, run_dir) == []
