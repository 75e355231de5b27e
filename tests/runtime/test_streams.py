"""Output that cannot be written is dropped, and the program goes on to its end."""

import io
import os
import signal
import sys
import time

import pytest

from modeling_sit.runtime import streams


def in_a_child(function, seconds: float = 120) -> int:
    """The exit code of a process of its own, as a program ends: its buffers are written at the end. One that waits for a
    lock, which a thread had that it has not, is killed after so many seconds."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            function()
            sys.stdout.flush()
            code = 0
        finally:
            os._exit(code)
    started = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - started > seconds:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])


def process_streams(target: int, **settings) -> None:
    """Python's own streams, on this descriptor."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(target, number)
        file = io.FileIO(number, "w", closefd=False)
        buffer = file if settings.get("write_through") else io.BufferedWriter(file)
        stream = io.TextIOWrapper(buffer, encoding="utf-8", errors="replace", **settings)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def say_much() -> None:
    for number in range(5000):
        print("step", number)
        print("step", number, file=sys.stderr, flush=True)
    sys.stdout.buffer.write(b"bytes")
    sys.stdout.write("the end")


@pytest.mark.parametrize("settings", [{}, {"line_buffering": True}, {"write_through": True}])
@pytest.mark.parametrize("target", ["closed pipe", "full disk"])
def test_a_program_goes_on(settings, target):
    def program(survives: bool):
        process_streams(closed_pipe() if target == "closed pipe" else os.open("/dev/full", os.O_WRONLY), **settings)
        if survives:
            streams.survive_closed_output()
        say_much()

    assert in_a_child(lambda: program(survives=True)) == 0
    assert in_a_child(lambda: program(survives=False)) == 9


def test_what_can_be_written_is(tmp_path):
    def program():
        process_streams(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT))
        print("before")
        streams.survive_closed_output()
        assert (sys.stdout.encoding, sys.stdout.errors, sys.stdout.fileno()) == ("utf-8", "replace", 1)
        print("after \xe9")

    assert in_a_child(program) == 0
    assert (tmp_path / "log").read_text(encoding="utf-8") == "before\nafter \xe9\n"


def test_streams_that_were_closed_before():
    def program():
        sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None
        streams.survive_closed_output()
        say_much()

    assert in_a_child(program) == 0


def test_streams_of_others_stay(monkeypatch):
    """Such as a notebook's."""
    other = io.StringIO()
    monkeypatch.setattr(sys, "stdout", other)
    monkeypatch.setattr(sys, "stderr", other)
    streams.survive_closed_output()
    assert sys.stdout is sys.stderr is other


@pytest.mark.parametrize("command", ["pretrain", "finetune", "evaluate"])
def test_commands_with_nobody_to_read_go_on_to_the_end(command, run_program, save_tiny_sit, tmp_path):
    """As before `| head -1`."""
    model, out = save_tiny_sit(tmp_path / "model", num_channels=1), tmp_path / "out"
    given = ["--dataset", "digits", "--output_dir", out]
    if command == "pretrain":
        given += ["--image_size", 16, "--patch_size", 8, "--max_steps", 2, "--preview_steps", 0, "--monitor_steps", 0]
        given += ["--config_overrides", OVERRIDES, "--per_device_train_batch_size", 8]
    elif command == "finetune":
        given += [
            "--model_name_or_path",
            model,
            "--max_steps",
            2,
            "--per_device_train_batch_size",
            8,
            "--use_cpu",
            True,
        ]
        given += ["--report_to", "none", "--eval_strategy", "no", "--save_strategy", "no"]
    else:
        given += ["--model_name_or_path", model, "--protocols", "knn", "--device", "cpu"]

    def program():
        process_streams(closed_pipe())
        assert run_program(command, *given) == 0

    assert in_a_child(program) == 0
    assert (out / ("eval_results.json" if command == "evaluate" else "model.safetensors")).exists()


OVERRIDES = (
    "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,num_channels=1,decoder_hidden_size=16,"
    "projection_hidden_size=16,projection_size=16"
)
