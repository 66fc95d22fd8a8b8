"""A result's digests are of all that there is, whatever it is made of."""

import json

import pytest
import torch
from searches import PathTrainer, search
from torch import nn

from supernet.files.digests import bits, digest_of
from supernet.rerun import differences
from supernet.training.run_directory import read_description

ONES = torch.ones(2, 3)
TENSORS = {
    "scalar": torch.tensor(1.5),
    "empty": torch.empty(0, 3),
    "expanded": torch.arange(3.0).expand(2, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "negative": torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
    "bool": torch.tensor([True, False]),
    "bf16": ONES.bfloat16(),
    "float8": ONES.to(torch.float8_e4m3fn),
    "uint16": ONES.to(torch.uint16),
    "parameter": nn.Parameter(ONES.clone()),
    "computed": nn.Parameter(ONES.clone()) * 2,
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_the_bits_of_a_tensor_are_those_of_its_elements_in_their_order(tensor):
    plain = tensor.detach().clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()
    assert bits(tensor).tobytes() == bytes(plain.untyped_storage())[: plain.numel() * plain.element_size()]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_the_bits_of_a_sparse_tensor_are_those_of_its_indices_and_values(layout):
    one, other, elsewhere = (
        torch.tensor(rows).to_sparse(layout=layout)
        for rows in ([[0.0, 1], [0, 0]], [[0, 2.0], [0, 0]], [[0, 0.0], [0, 1]])
    )
    assert bits(one).tobytes() == bits(one.clone()).tobytes()
    assert len({bits(one).tobytes(), bits(other).tobytes(), bits(elsewhere).tobytes()}) == 3


def test_bits_on_the_cpu_are_not_copied():
    tensor = torch.zeros(3)
    bits(tensor)[:] = 255
    assert tensor.isnan().all()


def test_equal_sets_have_one_digest_in_whatever_order_they_are():
    one, other = {str(n) for n in range(50)}, {str(n) for n in reversed(range(50))}
    assert list(one) != list(other)
    assert digest_of({"of": one, "w": [one, {frozenset(one): b"x"}]}) == digest_of(
        {"of": other, "w": [other, {frozenset(other): b"x"}]}
    )
    assert digest_of(one) != digest_of(one - {"7"})


# --- of the state that a trainer names ---------------------------------------------------------------------


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr("supernet.trainers.SupernetTrainer._write_plots", lambda self, run: None)


def test_the_digest_is_of_each_weight_of_a_controller_and_each_number():
    trainer = search("enas")
    found = [trainer.named_state.digest()]
    for p in trainer.controller.parameters():
        with torch.no_grad():
            p.view(-1)[-1] += 1
        found.append(trainer.named_state.digest())
    trainer.entropy_weight += 1e-9
    found.append(trainer.named_state.digest())
    assert len(set(found)) == len(found)
    assert search("enas").named_state.digest() == found[0]


class SparseTrainer(PathTrainer):
    """A trainer of somebody else that counts in a sparse tensor."""

    def stateful(self):
        return {**super().stateful(), "sparse": self.sparse}

    def __init__(self, *args, **options):
        self.sparse = torch.eye(3).to_sparse()
        super().__init__(*args, **options)


def test_a_search_with_a_sparse_tensor_in_its_state_ends_with_a_result(tmp_path, no_plots, monkeypatch):
    monkeypatch.setitem(search.__globals__["KINDS"], "sparse", (SparseTrainer, {}))
    search("sparse", tmp_path, num_epochs=1).fit()
    description = read_description(tmp_path)
    assert description["status"] == "finished"
    assert description["result"].keys() == {"weights", "named_state"}


def test_state_that_no_digest_can_be_of_costs_no_result(tmp_path, no_plots, caplog):
    trainer = search("path", tmp_path, num_epochs=1)
    trainer.named_state.digest = lambda: 1 / 0
    trainer.fit()
    assert read_description(tmp_path)["result"].keys() == {"weights"}
    assert "run.json has no digest of the trainer's state" in caplog.text


def test_a_rerun_compares_the_state_that_is_named_and_old_runs_without_it(tmp_path, no_plots):
    for name in ("first", "second"):
        search("path", tmp_path / name, num_epochs=1).fit()
    assert differences(tmp_path / "first", tmp_path / "second") == []

    def with_result(result):
        content = read_description(tmp_path / "second")
        (tmp_path / "second" / "run.json").write_text(json.dumps({**content, "result": result}))
        return differences(tmp_path / "first", tmp_path / "second")

    result = read_description(tmp_path / "first")["result"]
    assert with_result({**result, "named_state": "0"}) == [
        "architecture parameters or other state of the trainer differ"
    ]
    assert with_result({"weights": result["weights"], "state": "of tensors alone"}) == []
    assert with_result({**result, "weights": "0"}) == ["weights differ"]
    assert with_result(None) == ["weights differ"]
