"""What a kind of choice promises."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from supernet.errors import ArchitectureError, SupernetError
from supernet.execution import Supernet, restore
from supernet.execution.slot import weighted_sum
from supernet.nn import Choice, Domain
from supernet.space import Architecture, SearchSpace, freeze, load_architecture, save_architecture
from supernet.testing.comparing import differences, flat, in_words, promised

__all__ = ["check_choice"]

MOST = 64  # decisions and architectures that are tried, of more a random part


def check_choice(make: Callable[[], Choice], *inputs: Any) -> None:
    """Check that a kind of choice holds what spaces, files, supernets and `freeze` rely on.

    - Its domain is a `Domain` under its own label, the same each time; it has a branch for each option, or none, and
      what it has in branches is registered as its children.
    - Each decision is distinct, goes through JSON, and is written as the domain writes it.
    - What is no decision is refused by `ArchitectureError`, by the domain and by `resolve`.
    - Each decision resolves to a module whose parameters are the choice's own, so that they are trained.
    - Two that are made alike, copies, and the choice in a supernet give spaces of one fingerprint, and an architecture
      that is saved is loaded again.
    - `freeze` gives a network without choices, which computes what the supernet computes on the same path; so does
      the frozen network of a copy.
    - A kind that says it is a sequence gives, mixed, the weighted sum of what its decisions give.
    - A supernet's `state_dict` has the keys of the model as written, which loads it.

    Args:
        make: Returns a new choice each time it is called, of the same kind and size.
        inputs: Arguments that the choice is called with in a model.

    Raises:
        AssertionError: A promise is not held; says which, and what was seen.

    >>> check_choice(lambda: LayerChoice([nn.Linear(4, 4), nn.Identity()], label="op"), torch.ones(2, 4))
    """
    host = host_of(make, Choice)
    domain = _check_domain(host.part)
    decisions = some_of(domain, domain.size, domain)
    _check_decisions(domain, decisions)
    _check_resolves(host.part, domain, decisions)
    space = SearchSpace(host)
    architectures = some_of(space.enumerate(), space.size, space)
    check_space(host, host_of(make, Choice), space, architectures)
    if host.part.is_sequence:
        _check_sequence(host, domain, space, inputs)
    check_runs(host, host_of(make, Choice), architectures, lambda _: inputs)


class Host(nn.Module):
    """A model that is one choice, or one module that depends on some."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: Any) -> Any:
        """Run it."""
        return self.part(*args)


def host_of(make: Callable[[], nn.Module], kind: type[nn.Module]) -> Host:
    """Return a model that is what `make` returns, if that is of this kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        host = Host(make())
    seen = f"it returned a {type(host.part).__name__}"
    promised(f"make() returns a {kind.__name__}", isinstance(host.part, kind), seen)
    SearchSpace(host)  # which gives a choice without a label the name of its place
    return host.eval()


def some_of(values: Any, count: int, source: Any) -> list[Any]:
    """Return all values, or of many a random part."""
    if count <= MOST:
        return list(islice(values, MOST))
    generator = torch.Generator().manual_seed(0)
    if isinstance(source, Domain):
        draws = (torch.rand(source.num_random_numbers, generator=generator, dtype=torch.float64) for _ in range(MOST))
        drawn = [source.draw(uniforms.tolist()) for uniforms in draws]
    else:
        drawn = [source.sample(generator) for _ in range(MOST)]
    return list({json.dumps(one): one for one in drawn}.values())


def _check_domain(choice: Choice) -> Domain:
    domain = choice.domain()
    promised("domain() returns a Domain", isinstance(domain, Domain), f"it returned {domain!r}")
    promised(
        "a domain is under the label of its choice",
        domain.label == str(choice.label),
        f"the label is {choice.label!r}, and the domain's {domain.label!r}",
    )
    again = choice.domain()
    promised("domain() returns the same each time", domain == again, f"it returned {domain!r}, then {again!r}")
    branches = choice.branches()
    promised(
        "there is a branch for each option, or none",
        len(branches) in (0, len(domain.options)),
        f"there are {len(branches)} branches for the {len(domain.options)} options {', '.join(domain.options)}",
    )
    inside = set(choice.modules())
    lost = [domain.options[i] for i, branch in enumerate(branches) if not inside.issuperset(branch)]
    promised("what is in branches is registered as children", not lost, f"that of {in_words(lost)} is not")
    return domain


def _check_decisions(domain: Domain, decisions: Sequence[Any]) -> None:
    texts = [json.dumps(decision) for decision in decisions]
    promised("all decisions are distinct", len(set(texts)) == len(texts), f"they are {', '.join(texts[:MOST])}")
    for decision, text in zip(decisions, texts, strict=True):
        read = domain.normalized(json.loads(text))
        promised("a decision goes through JSON", json.dumps(read) == text, f"{decision!r} was written, {read!r} read")
        again = domain.decision(domain.positions(decision))
        promised(
            "a decision is that of the positions it chooses", again == decision, f"{decision!r} came back as {again!r}"
        )


def _check_resolves(choice: Choice, domain: Domain, decisions: Sequence[Any]) -> None:
    own = {id(p) for p in choice.parameters()}
    for decision in decisions:
        module = choice.resolve(decision)
        promised(f"resolve({decision!r}) returns a module", isinstance(module, nn.Module), f"it returned {module!r}")
        foreign = [name for name, p in module.named_parameters() if id(p) not in own]
        promised(
            f"the parameters of resolve({decision!r}) are those of the choice, which a search trains",
            not foreign,
            f"{in_words(foreign)} were made anew",
        )
    for refuses, what in ((domain.positions, "the domain"), (choice.resolve, "resolve")):
        for wrong in ("no such option", None, [-1]):
            try:
                refuses(wrong)
            except ArchitectureError:
                continue
            except Exception as error:
                seen = f"it raised {type(error).__name__}: {error}"
            else:
                seen = "it did not"
            raise AssertionError(f"{what} refuses {wrong!r}, which is no decision, by ArchitectureError; but {seen}")


def check_space(host: Host, alike: Host, space: SearchSpace, architectures: Sequence[Architecture]) -> None:
    """Check spaces, and files of architectures, of a host and of another that is made alike."""
    for what, other in {"another that is made alike": alike, "a copy": copy.deepcopy(host)}.items():
        promised(
            f"{what} gives a space of the same fingerprint",
            SearchSpace(other).fingerprint == space.fingerprint,
            f"the spaces are {space.to_json()} and {SearchSpace(other).to_json()}",
        )
    with TemporaryDirectory() as directory:
        for architecture in [*architectures[:2], *architectures[-1:]]:
            path = Path(directory, "architecture.json")
            save_architecture(architecture, path, space)
            loaded = load_architecture(path, space)
            promised(
                "an architecture that is saved is loaded again",
                json.dumps(loaded) == json.dumps(architecture),
                f"{architecture} was saved, and {loaded} loaded",
            )


def _check_sequence(host: Host, domain: Domain, space: SearchSpace, inputs: Sequence[Any]) -> None:
    label, decided = domain.label, space.draw(torch.Generator().manual_seed(0))
    weights = torch.linspace(1, 2, len(domain.options), dtype=torch.float64)
    with torch.no_grad():
        outputs = {
            str(decision): frozen_network(host, space.canonical({**decided, label: decision}))(*inputs)
            for decision in domain
        }
        expected = weighted_sum(outputs, weights, label)
        with told("a sequence, mixed, gives the weighted sum of what its decisions give"):
            found = Supernet(host).eval()(*inputs, {**decided, label: weights})
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    restore(host)


def check_runs(
    host: Host,
    alike: Host,
    architectures: Sequence[Architecture],
    arguments: Callable[[Architecture], Sequence[Any]],
) -> None:
    """Check that a supernet runs what frozen networks compute, and has the state of the model as written."""
    keys, duplicate = list(host.state_dict()), copy.deepcopy(host)
    networks = [frozen_network(host, architecture) for architecture in architectures]
    with torch.no_grad():
        expected = [network(*arguments(one)) for network, one in zip(networks, architectures, strict=True)]
    supernet = Supernet(host).eval()
    for architecture, output in zip(architectures, expected, strict=True):
        inputs = arguments(architecture)
        with torch.no_grad(), told(f"the supernet runs the path {architecture} as its frozen network does"):
            torch.testing.assert_close(supernet(*inputs, architecture), output, rtol=1e-5, atol=1e-6)
        with torch.no_grad(), told(f"the network of {architecture}, frozen from the supernet, is that of the model"):
            torch.testing.assert_close(frozen_network(host, architecture)(*inputs), output, rtol=1e-5, atol=1e-6)
        with torch.no_grad(), told(f"the network of {architecture}, frozen from a copy, is that of the model"):
            torch.testing.assert_close(frozen_network(duplicate, architecture)(*inputs), output, rtol=1e-5, atol=1e-6)
    fingerprint = SearchSpace(host).fingerprint
    promised("a supernet has the space of the model", fingerprint == SearchSpace(duplicate).fingerprint, "it differs")
    state = supernet.state_dict()
    moved = differences(dict.fromkeys(keys, ""), dict.fromkeys(state, ""))
    promised("the keys of a supernet's state are those of the model as written", not moved, f"{in_words(moved)} differ")
    alike.load_state_dict(state)
    supernet.load_state_dict(duplicate.state_dict())
    now = differences(flat(dict(alike.state_dict())), flat(dict(restore(host).state_dict())))
    promised("a model as written loads a supernet's state, and the other way round", not now, f"{in_words(now)} differ")


def frozen_network(host: nn.Module, architecture: Architecture) -> nn.Module:
    """Return the network of an architecture, in eval form, which must have no choices."""
    try:
        network = freeze(host, architecture)
    except SupernetError as error:
        raise AssertionError(f"freeze makes a network of {architecture}; but {error}") from error
    left = [name for name, module in network.named_modules() if isinstance(module, Choice)]
    promised(f"the network of {architecture} has no choices", not left, f"{in_words(left)} are left")
    return network.eval()


@contextmanager
def told(promise: str) -> Iterator[None]:
    """Say what was promised where an assertion fails in this context."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{promise}; but {error}") from error
