"""What the networks of a space are made of, taken apart so that each part depends on few choices.

A network of twenty blocks has millions of siblings, but each of its layers only some tens of forms. Which choices a
part depends on is found by changing them one at a time; each form is recorded once, and all networks are put together
from these. Wherever a network that is recorded later has a part in another form than was foretold, the choice that
makes the difference is looked for, and the part depends on it from then on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn

from supernet.cost.joint import completed
from supernet.cost.recording import Part, Recorder
from supernet.cost.terms import key_of
from supernet.errors import CostError
from supernet.execution.state import derive_seed
from supernet.nn import Choice, Mutable
from supernet.space import Architecture, SearchSpace
from supernet.space.original import original_branches, original_children

__all__ = ["Parts"]

Scope = tuple[str, ...]
Key = tuple[Any, ...]

NUM_BASES = 2  # architectures around which choices are changed
NUM_CHECKED = 20  # random ones that must all be foretold before it is believed which choices a part depends on
MAX_CHECKED = 200
NUM_SURE = 5  # of them that are run without anything remembered
MAX_FORMS = 1_024  # of one part, that are all recorded in advance
MAX_RECORDED = 300  # networks that are


class Parts:
    """The parts of a model's networks, each known by the decisions of the few choices that it depends on.

    Args:
        model: A module with choices, as written or replaced, or a `Supernet`. It stays as it is.
        example: What the model is called with, such as a batch of one sample: a tuple of arguments, a dict of keyword
            arguments, or one argument. Default: nothing is run, and parts have no calls.
        seed: Seed of the architectures that are looked at. Default: 0.

    Attributes:
        model: The model as it was given.
        space: The space of the model.
        example: What the model is called with; None if nothing is run.
        scopes: Path in the model -> labels of the choices on which it depends what stands there.
        generator: What draws the architectures that are looked at.
        version: Changes when a scope does, so that what was made of these is made anew.
    """

    recorder: type[Recorder] = Recorder

    def __init__(self, model: nn.Module, example: Any = None, *, seed: int = 0) -> None:
        self._recorder, self.model, self.example = self.recorder(model, example), model, example
        self.space: SearchSpace = self._recorder.space
        self.generator = torch.Generator().manual_seed(derive_seed(seed, 5))
        self.version = 0
        self._structural = _structural_scopes(self._recorder._model, self._recorder._paths)
        self._order = {label: i for i, label in enumerate(self.space)}
        self._known_decisions: dict[str, list[Any]] = {}
        self._some = {label: next(iter(domain)) for label, domain in self.space.items()}
        if not self._find_scopes():  # what it remembers of modules does not hold
            self._recorder.remembers = False
            self._find_scopes()

    def of(self, architecture: Mapping[str, Any]) -> Iterator[tuple[str, Part]]:
        """Yield path and part of each that the network of an architecture has.

        Args:
            architecture: An architecture in the form that the space writes.
        """
        for path in self.scopes:
            part = self.part(path, architecture)
            if part is not None:
                yield path, part

    def part(self, path: str, architecture: Mapping[str, Any]) -> Part | None:
        """Return what stands at a path in the network of an architecture; None where nothing does."""
        key = self.key(self.scopes[path], architecture)
        if key not in self._forms[path]:
            self._record(dict(architecture))
            key = self.key(self.scopes[path], architecture)  # which the record may have made longer
        return self._forms[path][key][0]

    def key(self, scope: Scope, architecture: Mapping[str, Any]) -> Key:
        """Return the decisions of some choices, None for those that are not reached."""
        return key_of(scope, architecture)

    def _decisions(self, label: str) -> list[Any]:
        if label not in self._known_decisions:
            self._known_decisions[label] = list(self.space[label])
        return self._known_decisions[label]

    # --- finding out -------------------------------------------------------------------------------------------

    def _find_scopes(self) -> bool:
        """Record networks until all are foretold; say whether the recorder was right to remember modules."""
        self.scopes: dict[str, Scope] = {}
        self._forms: dict[str, dict[Key, tuple[Part | None, Architecture]]] = {}
        self._recorded: list[Architecture] = []
        self._missing: dict[Scope, dict[Key, Architecture]] = {}
        self.version += 1
        for path in self._structural:  # for what is rare may be in none of the networks that are recorded now
            self._begin(path)
        first = self.space.draw(self.generator)
        self._record(self.space.follow(first.__getitem__))
        if not self.space:
            return True
        for base in [first, *(self.space.draw(self.generator) for _ in range(NUM_BASES - 1))]:
            self._record(self.space.follow(base.__getitem__))
            for label in self.space:
                for decision in self._others(label, base):
                    changed = self.space.follow({**base, label: decision}.__getitem__)
                    if self.space.allows(changed):
                        self._record(changed)
                    elif (repaired := completed(self.space, {label: decision}, self.generator)) is not None:
                        self._record(repaired)
        self._fill()
        clean = 0
        for _ in range(MAX_CHECKED):
            before, sampled = self.version, self.space.sample(self.generator)
            if self._recorder.remembers and clean < NUM_SURE and not self._recorder.is_sure_of(sampled):
                return False
            self._record(sampled)
            clean = clean + 1 if self.version == before else 0
            if clean == NUM_CHECKED:
                break
        return True

    def _others(self, label: str, base: Mapping[str, Any]) -> list[Any]:
        """Return decisions to try in the place of that of a base: the first and the last, or one that is drawn."""
        domain = self.space[label]
        if domain.size > MAX_FORMS:
            return [decision for decision in [self.space.draw(self.generator)[label]] if decision != base[label]]
        decisions = self._decisions(label)
        return [d for i, d in enumerate(decisions) if i in (0, len(decisions) - 1) and d != base[label]]

    def _fill(self) -> None:
        """Record networks until each part is known in all its forms, or in many: one network has one of each part."""
        for _ in range(MAX_RECORDED):
            chosen = self._next_missing()
            if chosen is None:
                return
            self._record(chosen)

    def _next_missing(self) -> Architecture | None:
        """Return an architecture that has as many parts in forms not yet known as are found; None if all are known."""
        decided: Architecture = {}
        found: Architecture | None = None
        for scope, path in {scope: path for path, scope in self.scopes.items()}.items():
            missing, known = self._missing_of(scope), self._forms[path]
            for key, form in list(missing.items()):
                if key in known:
                    del missing[key]
                elif all(decided.get(label, decision) == decision for label, decision in form.items()):
                    if found is None:
                        found = completed(self.space, form, self.generator)
                        if found is None:  # constraints rule it out
                            del missing[key]
                            continue
                    elif self.space.rules_out({**decided, **form}):
                        continue
                    decided |= form
                    break
        if found is None:
            return None
        return completed(self.space, decided, self.generator) or found

    def _missing_of(self, scope: Scope) -> dict[Key, Architecture]:
        """Return the forms that a scope may have, each with what decides it, but for those that were found since.

        Where there are too many, there are none.
        """
        if scope not in self._missing:
            missing = self._missing[scope] = {}
            around = {outer for label in scope for outer in self.space.around(label)}
            labels = [label for label in self.space if label in around.union(scope)]
            if self.num_forms(labels) <= MAX_FORMS:
                for chosen in product(*map(self._decisions, labels)):
                    full = {**self._some, **dict(zip(labels, chosen, strict=True))}
                    architecture = self.space.follow(full.__getitem__)
                    form = {label: architecture[label] for label in labels if label in architecture}
                    missing.setdefault(self.key(scope, architecture), form)
        return self._missing[scope]

    def num_forms(self, scope: Sequence[str]) -> int:
        """Return how many decisions some choices have together."""
        return math.prod(self.space[label].size for label in scope)

    def _record(self, architecture: Architecture) -> None:
        """Take in what the network of an architecture is made of."""
        found = self._recorder.record(architecture)
        self._tried: dict[str, dict[str, Part] | None] = {}  # what stands between this network and earlier ones
        for path in found.keys() - self.scopes.keys():  # met for the first time: nothing stood there before
            self._begin(path)
            self._earlier(path)
            self.version += 1
        keys = {scope: self.key(scope, architecture) for scope in set(self.scopes.values())}
        for path, scope in self.scopes.items():
            part, forms, key = found.get(path), self._forms[path], keys[scope]
            known = forms.get(key)  # there are thousands of paths, so this does next to nothing for each
            if known is None:
                forms[key] = (part, architecture)
            elif known[0] is not part and not _alike(known[0], part):
                self._take(path, architecture, part)
        self._recorded.append(architecture)

    def _begin(self, path: str) -> None:
        """Let a part depend on the choices inside which it stands, and on those that decide its own numbers."""
        structural = self._structural.get(path, frozenset())
        self.scopes[path] = tuple(sorted(structural, key=self._order.__getitem__))
        self._forms[path] = {}

    def _earlier(self, path: str) -> None:
        """Note of the networks that were recorded before a part was first met that they do not have it."""
        for architecture in self._recorded:
            self._take(path, architecture, None)

    def _take(self, path: str, architecture: Architecture, part: Part | None) -> None:
        while True:
            key = self.key(self.scopes[path], architecture)
            known = self._forms[path].setdefault(key, (part, architecture))
            if _alike(known[0], part):
                return
            label = self._difference(path, known[1], known[0], architecture)
            self._widen(path, label)

    def _widen(self, path: str, label: str) -> None:
        """Let a part depend on one more choice; what is known of it stays known, by longer keys."""
        scope = tuple(sorted({*self.scopes[path], label}, key=self._order.__getitem__))
        known, self.scopes[path] = self._forms[path], scope
        self._forms[path] = {
            self.key(scope, architecture): (part, architecture) for part, architecture in known.values()
        }
        self.version += 1

    def _difference(self, path: str, one: Architecture, part: Part | None, other: Architecture) -> str:
        """Return a choice outside of a part's scope that makes a difference between two architectures."""
        differing = [label for label in self.space if one.get(label) != other.get(label)]
        outside = [label for label in differing if label not in self.scopes[path]]
        if not outside:
            raise CostError(
                f"the network of one architecture is not always the same: {path or 'the model'!r} has other sizes in "
                "two passes; its cost cannot be told from the architecture"
            )
        # With the first `alike` of these as in the other the part is as in the one; with the first `unlike`, it is not.
        changed = [label for label in outside if label in other]
        alike, unlike = 0, len(changed)
        untried = list(range(1, unlike))
        while untried:
            middle = untried.pop(len(untried) // 2)
            found = self._between(one, other, changed[:middle])
            if found is None:
                continue
            if _alike(found.get(path), part):
                alike = middle
            else:
                unlike = middle
            untried = [number for number in untried if alike < number < unlike]
        return changed[unlike - 1]

    def _between(self, one: Architecture, other: Architecture, changed: Sequence[str]) -> dict[str, Part] | None:
        """Return the parts of one architecture's network with some decisions as in another; None if it does not run."""
        decisions = {**self._some, **one, **{label: other[label] for label in changed}}
        architecture = self.space.follow(decisions.__getitem__)
        key = repr(architecture)
        if key not in self._tried:
            try:
                self._tried[key] = self._recorder.record(architecture)
            except Exception:  # a network that nobody asked for may be none that runs
                self._tried[key] = None
        return self._tried[key]


def _alike(one: Part | None, other: Part | None) -> bool:
    return (one is None) == (other is None) and (one is None or other is None or one.signature == other.signature)


def _structural_scopes(model: nn.Module, paths: Mapping[int, str]) -> dict[str, frozenset[str]]:
    """Return path -> labels of the choices inside which a module stands, and of those that decide its own numbers."""
    scopes: dict[str, frozenset[str]] = {}
    seen: set[tuple[int, frozenset[str]]] = set()

    def walk(module: nn.Module, around: frozenset[str]) -> None:
        if (id(module), around) in seen:
            return
        seen.add((id(module), around))
        if isinstance(module, Choice):
            inside = around | {str(module.label)}
            for branch in original_branches(module):
                for child in branch:
                    walk(child, inside)
            return
        own = around | {str(c.label) for c in module.choices()} if isinstance(module, Mutable) else around
        path = paths.get(id(module), "")
        scopes[path] = scopes.get(path, frozenset()) | own
        for _, child in original_children(module):
            walk(child, own)

    walk(model, frozenset())
    return scopes
