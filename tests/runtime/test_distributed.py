"""Failing, taking turns and agreeing, with two processes that are threads of this one."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from modeling_sit.runtime import distributed
from modeling_sit.runtime.distributed import broadcast_from_main, main_process_first, sync_errors
from modeling_sit.runtime.errors import SiTError

SECONDS = 20


@pytest.fixture
def in_processes(monkeypatch):
    """Call a function with the accelerator of each of two (or more) processes; gives what they return or raise."""

    def run(function, count: int = 2, processes_per_machine: int | None = None) -> list:
        barrier, given, process = threading.Barrier(count), [None] * count, threading.local()

        def exchange(value) -> list:
            given[process.index] = value
            barrier.wait(SECONDS)
            values = list(given)
            barrier.wait(SECONDS)
            return values

        def gather_object(values: list) -> list:
            # As pickles, which each process makes its own objects of.
            return [value for pickled in exchange(pickle.dumps(values)) for value in pickle.loads(pickled)]

        monkeypatch.setattr(distributed, "gather_object", gather_object)
        monkeypatch.setattr(distributed, "broadcast_object_list", lambda values: exchange(values)[0])

        def call(index: int):
            process.index = index
            accelerator = SimpleNamespace(
                num_processes=count,
                process_index=index,
                is_main_process=index == 0,
                is_local_main_process=index % (processes_per_machine or count) == 0,
            )
            try:
                return function(accelerator)
            except Exception as problem:
                return problem

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(call, range(count)))

    return run


def failing_in(*indices):
    def function(accelerator):
        with sync_errors(accelerator):
            if accelerator.process_index in indices:
                raise SiTError(f"process {accelerator.process_index} has a mistake", argument="seed", remedy="mend it")
        return "went on"

    return function


class TestSyncErrors:
    def test_all_go_on(self, in_processes):
        assert in_processes(failing_in()) == ["went on", "went on"]

    @pytest.mark.parametrize("failing", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
    def test_all_raise_the_first_mistake(self, in_processes, failing):
        for index, error in enumerate(in_processes(failing_in(*failing), count=3)):
            assert str(error) == f"seed: process {failing[0]} has a mistake; mend it"
            assert isinstance(error, SiTError) and error.argument == "seed" and error.is_shared
            if index in failing:  # what a process raised itself is not lost
                assert str(error.__cause__) == f"seed: process {index} has a mistake; mend it"

    def test_shared_once_more(self, in_processes):
        """A block within a block."""

        def function(accelerator):
            with sync_errors(accelerator):
                failing_in(1)(accelerator)

        for error in in_processes(function):
            assert str(error) == "seed: process 1 has a mistake; mend it" and error.is_shared

    def test_one_process_raises_what_was_raised(self):
        problem = SiTError("a mistake")
        with pytest.raises(SiTError) as error, sync_errors(Accelerator(cpu=True)):
            raise problem
        assert error.value is problem and not problem.is_shared

    def test_one_process_does_not_wait_for_others(self, monkeypatch):
        monkeypatch.setattr(distributed, "gather_object", None)
        with sync_errors(Accelerator(cpu=True)):
            pass

    def test_other_errors_are_not_waited_with(self, monkeypatch):
        """A bug has its traceback at once; the launcher ends the other processes."""
        monkeypatch.setattr(distributed, "gather_object", None)
        accelerator = SimpleNamespace(num_processes=2, is_main_process=True)
        with pytest.raises(ZeroDivisionError), sync_errors(accelerator):
            1 / 0  # noqa: B018


class TestMainProcessFirst:
    @pytest.mark.parametrize(("count", "processes_per_machine"), [(2, 2), (4, 2)])
    def test_on_each_machine(self, in_processes, count, processes_per_machine):
        order = []

        def function(accelerator):
            index = accelerator.process_index
            return main_process_first(accelerator, lambda: order.append(index) or f"result {index}")

        results = in_processes(function, count, processes_per_machine)
        assert results == [f"result {index}" for index in range(count)]
        num_machines = count // processes_per_machine
        assert sorted(order[:num_machines]) == list(range(0, count, processes_per_machine))
        assert sorted(order) == list(range(count))

    @pytest.mark.parametrize("failing", [0, 1])
    def test_mistakes_end_all(self, in_processes, failing):
        called = []

        def function(accelerator):
            def load():
                called.append(accelerator.process_index)
                if accelerator.process_index == failing:
                    raise SiTError("no such folder")

            return main_process_first(accelerator, load)

        for error in in_processes(function):
            assert isinstance(error, SiTError) and str(error) == "no such folder" and error.is_shared
        assert called == ([0] if failing == 0 else [0, 1])  # what fails in the first is not tried by the others

    def test_one_process_calls_once(self):
        calls = []
        assert main_process_first(Accelerator(cpu=True), lambda: calls.append(1) or "result") == "result"
        assert calls == [1]


class TestBroadcastFromMain:
    def test_all_have_what_the_main_one_has_found(self, in_processes):
        called = []

        def function(accelerator):
            index = accelerator.process_index
            return broadcast_from_main(accelerator, lambda: called.append(index) or {"found by": index})

        assert in_processes(function, count=3) == [{"found by": 0}] * 3
        assert called == [0]

    def test_its_mistake_ends_all(self, in_processes):
        def function(accelerator):
            def find():
                raise SiTError("no room")

            return broadcast_from_main(accelerator, find)

        for error in in_processes(function):
            assert isinstance(error, SiTError) and str(error) == "no room"

    def test_one_process(self):
        assert broadcast_from_main(Accelerator(cpu=True), lambda: None) is None
        assert broadcast_from_main(Accelerator(cpu=True), lambda: 3) == 3
