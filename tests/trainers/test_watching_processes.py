"""What a process tells the others of itself stays true until they have read it."""

import itertools
import signal
from types import SimpleNamespace

import pytest
from torch import distributed

from supernet.processes import watch
from supernet.processes.watch import Watch


@pytest.fixture
def new_watch(monkeypatch):
    store = distributed.HashStore()
    monkeypatch.setattr(distributed.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(watch, "_watches", itertools.repeat(0))  # as in processes of their own

    def new(rank):
        processes = SimpleNamespace(rank=rank, count=2, state=lambda: {"waits for": None}, is_leaving=False)
        return Watch(processes, lambda: "step 1", 0.01, 1.0)

    return new


def test_a_failure_that_was_told_stays_told_in_the_beats_after_it(new_watch):
    first, second = new_watch(0), new_watch(1)
    second.tell(failure="ValueError: broken")
    second.tell()
    assert first.of_others() == "process 1 has ended: ValueError: broken"


def test_the_store_is_used_by_one_thread_at_a_time(new_watch):
    first, second = new_watch(0), new_watch(1)
    used = []

    class Store:
        def set(self, *_):
            used.append(second._lock_of_store.locked())

        def multi_get(self, keys):
            used.append(second._lock_of_store.locked())
            return [first._store.get(key) for key in keys]

    second._store = Store()
    second.tell()
    assert "process 0 is alive" in second.of_others() or "process 0 has ended or is stopped" in second.of_others()
    assert used
    assert all(used)


def test_a_handler_that_python_does_not_know_is_left_where_it_is(new_watch, monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: pytest.fail("it could not be put back"))
    with new_watch(0).interrupting():
        pass
