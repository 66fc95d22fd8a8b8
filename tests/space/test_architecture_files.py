"""Architectures in files: round trips, and files that are broken, foreign or tampered with."""

import json
import random

import pytest
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace, load_architecture, save_architecture
from supernet.errors import ArchitectureError, FileFormatError
from supernet.space.files import digest_of_json


def space(n=3):
    return SearchSpace(nn.Sequential(LayerChoice({"a": nn.ReLU(), "ü": nn.Tanh()}, label="op"), InputChoice(n, None)))


ARCHITECTURE = {"op": "ü", "1": [0, 2]}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "architecture.json"
    save_architecture({"op": 1, "1": (2, 0)}, path, space())
    return path


def test_every_architecture_comes_back(tmp_path):
    for architecture in space().enumerate():
        save_architecture(architecture, tmp_path / "a.json", space())
        assert load_architecture(tmp_path / "a.json", space()) == architecture


def test_a_file_is_plain_json_with_version_and_fingerprint(saved):
    content = json.loads(saved.read_text())
    assert content.pop("digest") == digest_of_json(content)
    assert content == {
        "format": "supernet/architecture",
        "version": 1,
        "space": space().fingerprint,
        "architecture": ARCHITECTURE,
    }


def test_another_space_s_file_is_refused(saved):
    with pytest.raises(FileFormatError) as raised:
        load_architecture(saved, space(4))
    assert str(raised.value) == (
        f"{saved} holds an architecture of another space (fingerprint {space().fingerprint[:12]}, this space has "
        f"{space(4).fingerprint[:12]}); load it with the space of the model that it was searched in"
    )


def test_a_file_cut_at_any_byte_is_refused(saved):
    whole = saved.read_bytes().rstrip()
    for length in range(len(whole)):
        saved.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"architecture\.json is not a whole JSON file"):
            load_architecture(saved, space())


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"[1, 2]", "is not an architecture's file"),
        (b'{"op": "a"}', "does not say format 'supernet/architecture'"),
        (b"\xff\xfe\x00", "is not a whole JSON file"),
        (b"[" * 100_000, "is not a whole JSON file"),
        (b"1" * 5000, "is not"),
    ],
)
def test_foreign_files_are_refused(saved, content, match):
    saved.write_bytes(content)
    with pytest.raises(FileFormatError, match=match):
        load_architecture(saved, space())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "has format version 2; this library reads 1"),
        ({"version": "1"}, "has format version '1'"),
        ({"space": None}, "another space"),
        ({"architecture": None}, "no architecture of this space: an architecture is a dict"),
        ({"architecture": {"op": "b", "1": []}}, "'op' has no candidate 'b'"),
        ({"architecture": {"op": "a"}}, "leaves '1' open"),
        ({"architecture": {"op": ["a"], "1": {}}}, "'op' has no candidate"),
    ],
)
def test_tampered_files_are_refused(saved, change, match):
    content = {**json.loads(saved.read_text()), **change}
    saved.write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match=match if "version" in change else "does not have the digest"):
        load_architecture(saved, space())
    del content["digest"]  # as older files have none
    saved.write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match=match):
        load_architecture(saved, space())


def test_no_mutated_file_gets_anything_else_out_than_an_architecture_or_our_error(saved):
    whole, rng, this = saved.read_bytes(), random.Random(0), space()
    refused = 0
    for _ in range(2000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            where = rng.randrange(len(content))
            if rng.random() < 0.3:
                del content[where : where + rng.randint(1, 9)]
            else:
                content[where] = rng.choice([rng.randrange(256), *b'{}[]",:0-e'])
        saved.write_bytes(content)
        try:
            this.validate(load_architecture(saved, this))
        except FileFormatError:
            refused += 1
    assert refused > 1000


def test_a_failed_save_leaves_the_old_file_whole_and_nothing_beside_it(saved, monkeypatch):
    before = saved.read_bytes()
    with pytest.raises(ArchitectureError):
        save_architecture({"op": "b"}, saved, space())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_architecture(ARCHITECTURE, saved, space())
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_architecture(tmp_path / "none.json", space())
