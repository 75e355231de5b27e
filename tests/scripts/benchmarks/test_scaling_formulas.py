"""What a run needs, in cases that can be computed by hand."""

from dataclasses import replace

import pytest
import scaling_formulas as scaling
from scaling_formulas import StageCosts, TrainingPlan, scaling_table

COSTS = StageCosts(
    images_per_second_per_core=50,
    images_per_second_per_device=1000,
    encoded_bytes=100_000,
    decoded_bytes=600_000,
    crop_bytes=300_000,
    num_parameters=40_000_000,
    teacher_parameters=30_000_000,
    projection_size=256,
    process_bytes=3e9,
    worker_bytes=1e9,
    overhead=0.0,
)
PLAN = TrainingPlan(num_images=3_600_000, num_epochs=10, num_devices=4, per_device_batch_size=100)


def test_by_hand():
    # 36 M images by four GPUs of 1,000 a second are 9,000 seconds; 4,000 a second want 80 cores of 50.
    assert scaling.num_steps(COSTS, PLAN) == 90_000
    assert scaling.device_hours(COSTS, PLAN) == pytest.approx(10)
    assert scaling.wall_hours(COSTS, PLAN) == pytest.approx(2.5)
    assert scaling.images_per_second(COSTS, PLAN) == 4000
    assert scaling.cpu_cores(COSTS, PLAN) == 80
    assert scaling.read_bytes_per_second(COSTS, PLAN) == pytest.approx(400e6)
    assert scaling.device_copy_bytes_per_second(COSTS, PLAN) == pytest.approx(300e6)
    # 10 steps a second; in a ring of four each sends 6/4 of 160 MB, and to three others 200 projections of 1 kB.
    assert scaling.all_reduce_bytes_per_second(COSTS, PLAN) == pytest.approx(10 * (240e6 + 3 * 200 * 1024))
    assert scaling.dataset_bytes(COSTS, PLAN) == pytest.approx(360e9)
    assert scaling.decoded_bytes(COSTS, PLAN) == pytest.approx(2.16e12)
    # Three checkpoints of 4 bytes for three times 40 M numbers, and once 30 M.
    assert scaling.checkpoint_bytes(COSTS, PLAN) == pytest.approx(3 * 600e6)
    # Of 80 workers each has two batches of 30 MB ready.
    assert scaling.host_memory_bytes(COSTS, PLAN) == pytest.approx(4 * 3e9 + 80 * (1e9 + 60e6))


def test_one_device_sends_nothing():
    assert scaling.all_reduce_bytes_per_second(COSTS, replace(PLAN, num_devices=1)) == 0


def test_ring_of_very_many_devices_sends_each_gradient_twice():
    costs = replace(COSTS, projection_size=0)
    sent = scaling.all_reduce_bytes_per_second(costs, replace(PLAN, num_devices=10**9))
    assert sent == pytest.approx(10 * 2 * 160e6)


def test_cost_is_of_images_seen_and_time_of_devices():
    twice = replace(PLAN, num_devices=8)
    assert scaling.device_hours(COSTS, twice) == scaling.device_hours(COSTS, PLAN)
    assert scaling.wall_hours(COSTS, twice) == scaling.wall_hours(COSTS, PLAN) / 2
    swapped = replace(PLAN, num_images=PLAN.num_images * 10, num_epochs=1)
    assert scaling.device_hours(COSTS, swapped) == scaling.device_hours(COSTS, PLAN)
    assert scaling.host_memory_bytes(COSTS, swapped) == scaling.host_memory_bytes(COSTS, PLAN)


def test_larger_batches_send_gradients_less_often():
    costs = replace(COSTS, projection_size=0)
    sent = [
        scaling.all_reduce_bytes_per_second(costs, replace(PLAN, per_device_batch_size=size)) for size in (100, 200)
    ]
    assert sent[1] == pytest.approx(sent[0] / 2)


def test_overhead_is_a_share_of_the_whole_time():
    assert scaling.device_hours(replace(COSTS, overhead=0.2), PLAN) == pytest.approx(10 / 0.8)
    assert scaling.cpu_cores(replace(COSTS, overhead=0.2), PLAN) == 80


def test_what_does_not_come_out_even():
    """The last part of an epoch that fills no batch is left out, and of a core there is no half."""
    assert scaling.num_steps(COSTS, replace(PLAN, num_images=799)) == 10
    assert scaling.cpu_cores(replace(COSTS, images_per_second_per_core=50.1), PLAN) == 80
    assert scaling.cpu_cores(replace(COSTS, images_per_second_per_core=49.9), PLAN) == 81


def test_table():
    lines = scaling_table(COSTS, [PLAN, replace(PLAN, num_images=10**9)]).splitlines()
    assert lines[0] == "|  | 3.6 M images | 1,000 M images |"
    cells = dict(line.strip("| ").split(" | ", 1) for line in lines[2:])
    assert cells["GPU hours"] == "10 | 2,778"
    assert cells["hours"] == "2.5 | 694"
    assert cells["disk for the images"] == "360 GB | 100 TB"
    assert cells["CPU cores to decode and crop"] == "80 | 80"
    assert all(line.count("|") == 4 for line in lines)
