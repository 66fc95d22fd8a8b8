"""Two checkouts of the library side by side: one process each, whose steps take turns, for a shared machine drifts.

`python -m benchmarks.versions ../other-checkout` prints, for each subject, the median over the rounds of this
checkout's seconds as a share of the other's in the same round. Only names that both know are used.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = {"mixture step": 40, "gates step": 40, "path step": 60, "small model's step": 300, "10,000 samples": 10}
BUILDING_ROUNDS = 7  # each in a fresh process, since what is learnt of candidates stays for the process


def subject(name: str) -> tuple[Callable[[], object], Callable[[], float]]:
    """Return what is timed, and a function that gives the MiB which autograd saves in it."""
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset

    from benchmarks.networks import DartsNetwork
    from supernet import DartsTrainer, LayerChoice, ProxylessTrainer, SearchSpace, SinglePathTrainer

    torch.set_num_threads(2)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    X, y = torch.randn(16, 3, 32, 32, generator=generator), torch.randint(10, (16,), generator=generator)

    def network(cells: int) -> nn.Module:
        return DartsNetwork(lambda label, candidates: LayerChoice(candidates, label=label), cells, 16)

    def trainer(cls: Any, model: nn.Module) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        options: dict[str, Any] = {"valid_dataset": TensorDataset(X, y), "batch_size": 16, "device": "cpu"}
        dataset = TensorDataset(X, y)
        made = cls(model, nn.CrossEntropyLoss(), None, optimizer, 1, dataset, progress=False, **options)
        made.model.train()
        return made

    def saved_by(run: Callable[[], object]) -> float:
        storages: dict[int, int] = {}

        def pack(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run()
        return sum(storages.values()) / 2**20

    if name == "mixture step":
        darts = trainer(DartsTrainer, network(3))
        return lambda: darts.train_step(X, y, X, y), lambda: saved_by(lambda: darts.train_model_weight(X, y))
    if name == "gates step":
        gates = trainer(ProxylessTrainer, network(3))

        def step() -> None:
            gates.generator.manual_seed(0)  # the same gates each time
            gates.train_step(X, y, X, y)

        return step, lambda: saved_by(step)
    if name == "path step":
        single = trainer(SinglePathTrainer, network(8))
        path = SearchSpace(network(8)).sample(torch.Generator().manual_seed(0))
        single.sample = lambda: path
        return lambda: single.train_model_weight(X, y), lambda: saved_by(lambda: single.train_model_weight(X, y))
    if name == "small model's step":
        X = torch.randn(8, 4, generator=generator)  # next to no work: what is left is Python
        y = torch.randint(4, (8,), generator=generator)
        choices = [LayerChoice({"a": nn.Linear(4, 4), "b": nn.Tanh()}, label=str(n)) for n in range(8)]
        small = trainer(DartsTrainer, nn.Sequential(*choices))
        return lambda: small.train_step(X, y, X, y), lambda: 0.0
    space = SearchSpace(network(8))
    generator = torch.Generator().manual_seed(0)
    return lambda: [space.sample(generator) for _ in range(10_000)], lambda: 0.0


def serve(name: str) -> None:
    """Time one run for each line that comes in; the first answer is of the bytes saved, and warms up."""
    run, saved = subject(name)
    run()
    print(json.dumps(saved()), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        run()
        print(json.dumps(time.perf_counter() - began), flush=True)


def in_turns(name: str, checkouts: list[Path]) -> tuple[list[list[float]], list[float]]:
    """Return the seconds of each round and the MiB saved, for each checkout."""
    workers = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", name],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{checkout}/src:{checkout}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for checkout in checkouts
    ]
    answers = []
    for worker in workers:
        assert worker.stdin is not None and worker.stdout is not None
        answers.append((worker.stdin, worker.stdout))
    saved = [json.loads(out.readline()) for _, out in answers]
    seconds: list[list[float]] = [[], []]
    for number in range(ROUNDS[name]):
        for which in (0, 1) if number % 2 else (1, 0):
            into, out = answers[which]
            into.write("\n")
            into.flush()
            seconds[which].append(json.loads(out.readline()))
    for worker in workers:
        worker.communicate()
    return seconds, saved


BUILDING = """
import time; import torch
began = time.perf_counter(); import supernet; import_s = time.perf_counter() - began
import lightning_fabric
from torch import nn
from torch.utils.data import TensorDataset
from benchmarks.networks import DartsNetwork
torch.set_num_threads(2); torch.manual_seed(0)
model = DartsNetwork(lambda label, candidates: supernet.LayerChoice(candidates, label=label), 8, 16)
data = TensorDataset(torch.randn(32, 3, 32, 32), torch.randint(10, (32,)))
optimizer = torch.optim.SGD(model.parameters(), 0.01)
began = time.perf_counter()
supernet.DartsTrainer(
    model, nn.CrossEntropyLoss(), None, optimizer, 1, data, batch_size=16, progress=False, device="cpu"
)
print(import_s, time.perf_counter() - began)
"""


def building(checkouts: list[Path]) -> dict[str, list[list[float]]]:
    """Return the seconds of importing the library after torch, and of making a trainer, in fresh processes."""
    found: dict[str, list[list[float]]] = {"import beside torch": [[], []], "making a trainer": [[], []]}
    for number in range(BUILDING_ROUNDS):
        for which in (0, 1) if number % 2 else (1, 0):
            env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{checkouts[which]}/src:{checkouts[which]}"}
            command = [sys.executable, "-c", BUILDING]
            out = subprocess.check_output(command, cwd=checkouts[which], env=env, text=True)
            for seconds, value in zip(found.values(), out.split(), strict=True):
                seconds[which].append(float(value))
    return found


def main() -> None:
    """Measure all subjects in both checkouts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", nargs="?", type=Path, help="another checkout of this repository")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    from benchmarks import measuring

    checkouts = [arguments.other.resolve(), Path(__file__).resolve().parents[1]]
    rows: list[dict[str, Any]] = []

    def add(name: str, seconds: list[list[float]], saved: list[float]) -> None:
        other, this = map(statistics.median, seconds)
        ratio = measuring.ratio(seconds[1], seconds[0])
        rows.append({"what": name, "other s": other, "this s": this, "ratio": ratio})
        if all(saved):
            rows[-1]["saved"] = saved[1] / saved[0]
        print(rows[-1], flush=True)

    for name in ROUNDS:
        add(name, *in_turns(name, checkouts))
    for name, seconds in building(checkouts).items():
        add(name, seconds, [0.0])
    measuring.report("versions", f"This checkout beside {arguments.other}", rows)


if __name__ == "__main__":
    main()
