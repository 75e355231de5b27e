"""Errors, turns and shared results, with processes that are threads of this one; gathers, with two real processes."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from two_processes import BATCH_SIZE, loss_weights_of, projections_of, random_batch, share_of

from modeling_sit.losses import contrastive_loss
from modeling_sit.runtime import distributed
from modeling_sit.runtime.distributed import (
    any_process,
    broadcast_from_main,
    gather_projections,
    main_process_first,
    mean_num_corrupted_pixels,
    sync_errors,
    views_first,
)
from modeling_sit.runtime.errors import SiTError

SECONDS = 20
ALONE = SimpleNamespace(num_processes=1, process_index=0, reduce=lambda tensor, reduction: tensor)


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
                reduce=lambda value, reduction: {"sum": sum}[reduction](exchange(value)),
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


class TestAnyProcess:
    @pytest.mark.parametrize("flags", [[False, False, False], [False, True, False], [True, True, True]])
    def test_is_the_same_in_all(self, in_processes, flags):
        found = in_processes(lambda each: any_process(each, torch.tensor(flags[each.process_index])), len(flags))
        assert found == [any(flags)] * len(flags)

    @pytest.mark.parametrize("flag", [False, True])
    def test_alone_nothing_is_exchanged(self, flag):
        assert any_process(SimpleNamespace(num_processes=1), torch.tensor(flag)) is flag


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


def random_projections(num_processes: int, batch_size: int = 3, size: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2 * batch_size, size, generator=generator) for _ in range(num_processes)]


def together(parts: list[torch.Tensor]) -> torch.Tensor:
    batch_size = len(parts[0]) // 2
    return torch.cat([part[:batch_size] for part in parts] + [part[batch_size:] for part in parts])


class TestGather:
    """Projections of all processes, by view and with gradients, and the place of a process's own."""

    def test_one_process_keeps_its_own(self):
        (mine,) = random_projections(1)
        mine.requires_grad_()
        gathered, offset = gather_projections(ALONE, mine)
        assert torch.equal(gathered, mine)
        assert offset == 0
        gathered.sum().backward()
        assert torch.equal(mine.grad, torch.ones_like(mine))

    @pytest.mark.parametrize("num_processes", [1, 2, 3])
    def test_view_1_of_all_processes_comes_first(self, num_processes):
        parts = random_projections(num_processes)
        assert torch.equal(views_first(torch.stack(parts)), together(parts))

    def test_two_processes_have_the_same_and_know_their_own(self, replicated):
        expected = together([projections_of(process) for process in range(2)])
        for process, results in enumerate(replicated):
            gathered, offset = results["gather"]["gathered"], int(results["gather"]["offset"])
            assert torch.equal(gathered, expected)
            assert offset == process * BATCH_SIZE
            mine = torch.cat([view[offset : offset + BATCH_SIZE] for view in gathered.chunk(2)])
            assert torch.equal(mine, projections_of(process))

    def test_gradients_come_from_both_processes_losses(self, replicated):
        """Against one process that has all projections, and whose loss is the sum of both."""
        parts = [projections_of(process).requires_grad_() for process in range(2)]
        gathered = together(parts)
        sum((gathered * loss_weights_of(process)).sum() for process in range(2)).backward()
        for part, results in zip(parts, replicated, strict=True):
            torch.testing.assert_close(results["gather"]["gradient"], part.grad)

    def test_16_bits_are_gathered_in_32(self, replicated):
        expected = together([projections_of(process).half().float() for process in range(2)])
        assert torch.equal(replicated[0]["gather"]["half_gathered"], expected)

    def test_losses_of_processes_average_to_that_of_one_process_with_all_images(self):
        students, teachers = random_projections(4)[:2], random_projections(4)[2:]
        gathered = views_first(torch.stack(teachers))
        losses = [contrastive_loss(student, gathered, 0.2, 3 * process) for process, student in enumerate(students)]
        torch.testing.assert_close(
            torch.stack(losses).mean(), contrastive_loss(together(students), together(teachers))
        )

    def test_mean_number_of_corrupted_pixels(self, replicated):
        batch = random_batch(0)
        counts = [int(share_of(batch, process)["corruption_mask"].sum()) for process in range(2)]
        assert counts[0] > 2 * counts[1]
        for results in replicated:
            assert results["gather"]["mean_num_corrupted_pixels"] == sum(counts) / 2
        mask = share_of(batch, 1)["corruption_mask"]
        assert mean_num_corrupted_pixels(ALONE, mask) == counts[1]
