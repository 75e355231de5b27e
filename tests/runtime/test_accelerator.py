"""Engines that work are let through, others refused with a reason; whole weights out of and into any engine."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, DynamoBackend
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

from modeling_sit import SiTForPreTraining
from modeling_sit.runtime.accelerator import (
    check_launch,
    check_supported,
    choose_device,
    clip_gradients,
    create_accelerator,
    full_state_dict,
    join_cpu_processes,
    load_full_state_dict,
    patient_processes,
    prepare_student,
    shard_like,
)
from modeling_sit.runtime.errors import SiTError

CONFIGS = Path(__file__).parents[2] / "scripts" / "accelerate_configs"


def launch_environment(config: str, *flags: str) -> dict[str, str]:
    """What `accelerate launch` sets for the programs it starts."""
    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIGS / config), *flags, "program.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    return prepare_multi_gpu_env(arguments)


def engine(
    distributed_type=DistributedType.NO, num_processes=1, mixed_precision="no", device="cuda", **plugin
) -> SimpleNamespace:
    """A stand-in for the accelerator of this engine, with these settings of its FSDP plugin."""
    defaults = {
        "cpu_offload": None,
        "cpu_ram_efficient_loading": False,
        "activation_checkpointing": False,
        "ignored_modules": None,
    }
    backend = plugin.pop("dynamo_backend", DynamoBackend.NO)
    state = SimpleNamespace(
        fsdp_plugin=SimpleNamespace(**{**defaults, **plugin}), dynamo_plugin=SimpleNamespace(backend=backend)
    )
    return SimpleNamespace(
        distributed_type=distributed_type,
        num_processes=num_processes,
        mixed_precision=mixed_precision,
        device=torch.device(device),
        state=state,
    )


@pytest.fixture
def without_launcher(monkeypatch):
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


class TestConfigurations:
    @pytest.mark.parametrize(
        ("config", "engine"), [("multi_gpu", "MULTI_GPU"), ("multi_node", "MULTI_GPU"), ("fsdp2", "FSDP")]
    )
    def test_accelerate_reads_them(self, config, engine):
        loaded = load_config_from_file(str(CONFIGS / f"{config}.yaml"))
        assert loaded.distributed_type == engine
        assert loaded.num_machines == (2 if config == "multi_node" else 1)

    def test_none_is_left_out_here(self):
        assert sorted(path.name for path in CONFIGS.iterdir()) == ["fsdp2.yaml", "multi_gpu.yaml", "multi_node.yaml"]

    @pytest.mark.parametrize("config", ["multi_gpu.yaml", "multi_node.yaml", "fsdp2.yaml"])
    def test_what_they_launch_is_let_through(self, config, without_launcher):
        environment = launch_environment(config)
        check_launch(environment)
        assert ("FSDP_VERSION" in environment) == (config == "fsdp2.yaml")

    def test_fsdp2s_settings_reach_accelerates_plugin(self, monkeypatch, without_launcher):
        environment = launch_environment("fsdp2.yaml")
        for name, value in environment.items():
            if name.startswith("FSDP_"):
                monkeypatch.setenv(name, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.transformer_cls_names_to_wrap == ["SiTLayer"]
        assert plugin.reshard_after_forward
        settings = ("cpu_offload", "cpu_ram_efficient_loading", "activation_checkpointing", "ignored_modules")
        given = {name: getattr(plugin, name) for name in settings}
        check_supported(engine(DistributedType.FSDP, 2, "bf16", **given), environment)


class TestRefuseLaunch:
    def test_plain(self):
        check_launch({})

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed.*teacher.*fsdp2.yaml"),
            ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM.*fsdp2.yaml"),
            ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism_config.*fsdp2.yaml"),
        ],
    )
    def test_engines_with_loops_of_their_own(self, name, reason):
        with pytest.raises(SiTError, match=reason):
            check_launch({name: "true"})
        check_launch({name: "false"})

    def test_fsdp1(self):
        for environment in ({"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}):
            with pytest.raises(SiTError, match=r"FSDP1.*fsdp_version: 2"):
                check_launch(environment)

    def test_before_accelerate_looks_for_the_engine(self, monkeypatch, without_launcher):
        """DeepSpeed is not installed here: Accelerate would end with a traceback."""
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        with pytest.raises(SiTError, match="DeepSpeed"):
            create_accelerator()


class TestJoinCPUProcesses:
    """`test_two_processes.py` has real ones."""

    @pytest.fixture
    def join(self, monkeypatch):
        """What the environment variable is, by the number of processes and the accelerator of the machine."""

        def join(world_size: str | None, device: str | None) -> str | None:
            with monkeypatch.context() as patch:
                patch.delenv("WORLD_SIZE", raising=False)
                patch.setenv("ACCELERATE_USE_CPU", "False")  # as `accelerate launch` does
                if world_size is not None:
                    patch.setenv("WORLD_SIZE", world_size)
                patch.setattr(torch.accelerator, "is_available", lambda: device is not None)
                patch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(device))
                join_cpu_processes()
                return os.environ["ACCELERATE_USE_CPU"]

        return join

    @pytest.mark.parametrize("device", [None, "mps"])
    def test_several_without_an_accelerator(self, join, device):
        assert join("2", device) == "true"

    @pytest.mark.parametrize(
        ("world_size", "device"), [("2", "cuda"), ("2", "xpu"), ("1", None), (None, None), (None, "cuda")]
    )
    def test_others_are_left_alone(self, join, world_size, device):
        assert join(world_size, device) == "False"


class TestRefuseEngine:
    @pytest.mark.parametrize("distributed_type", ["NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "MULTI_XPU", "MULTI_NPU"])
    def test_those_that_work(self, distributed_type):
        environment = {"WORLD_SIZE": "2"}
        check_supported(engine(DistributedType(distributed_type), num_processes=2), environment)

    @pytest.mark.parametrize("distributed_type", ["XLA", "MULTI_NEURON"])
    def test_those_that_do_not(self, distributed_type):
        with pytest.raises(SiTError, match="use GPUs or CPUs"):
            check_supported(engine(DistributedType(distributed_type)), {})

    def test_processes_that_do_not_know_each_other(self):
        """Where something has made Accelerate's state before."""
        with pytest.raises(SiTError, match=r"2 processes.*ACCELERATE_USE_CPU=true"):
            check_supported(engine(num_processes=1), {"WORLD_SIZE": "2"})

    def test_fsdp_that_accelerate_would_leave_out(self):
        with pytest.raises(SiTError, match=r"GPUs only.*multi_gpu\.yaml"):
            check_supported(engine(DistributedType.MULTI_CPU, 2), {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})

    def test_fp16_on_a_cpu(self):
        """Accelerate would compute in float32, and the run would say fp16."""
        with pytest.raises(SiTError) as error:
            check_supported(engine(mixed_precision="fp16", device="cpu"), {})
        assert error.value.argument == "mixed_precision"
        check_supported(engine(mixed_precision="fp16"), {})
        check_supported(engine(mixed_precision="bf16", device="cpu"), {})

    def test_fp8(self):
        with pytest.raises(SiTError, match=r"fp8.*bf16"):
            check_supported(engine(DistributedType.MULTI_GPU, 2, "fp8"), {})

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"mixed_precision": "fp16"}, "fp16.*bf16"),
            ({"cpu_offload": CPUOffloadPolicy()}, "fsdp_offload_params"),
            ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading"),
            ({"activation_checkpointing": True}, "gradient_checkpointing"),
            ({"ignored_modules": "decoder"}, "fsdp_ignored_modules"),
            ({"dynamo_backend": DynamoBackend.INDUCTOR}, "dynamo_config"),
        ],
    )
    def test_ways_to_shard_that_do_not_work(self, settings, reason):
        with pytest.raises(SiTError, match=reason):
            check_supported(engine(DistributedType.FSDP, 2, **settings), {})
        check_supported(engine(DistributedType.FSDP, 2), {})

    def test_every_reason_is_one_line(self):
        with pytest.raises(SiTError) as error:
            check_launch({"ACCELERATE_USE_DEEPSPEED": "true"})
        assert "\n" not in str(error.value)


class TestWholeWeights:
    """In one process; `test_two_processes.py` has several."""

    def test_are_the_plain_models_state(self, tiny_config):
        model = SiTForPreTraining(tiny_config())
        state = full_state_dict(model)
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())

    def test_come_back(self, tiny_config):
        torch.manual_seed(0)
        model, other = SiTForPreTraining(tiny_config()), SiTForPreTraining(tiny_config())
        state = full_state_dict(model)
        load_full_state_dict(other, state)
        assert all(torch.equal(other.state_dict()[name], value) for name, value in state.items())
        with torch.no_grad():
            other.vit.layernorm.weight.zero_()
        assert model.vit.layernorm.weight.all()  # a copy

    def test_of_another_model_are_refused(self, tiny_config):
        state = full_state_dict(SiTForPreTraining(tiny_config()))
        for other in ({"hidden_size": 32}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}):
            model = SiTForPreTraining(tiny_config(**other))
            before = {name: value.clone() for name, value in model.state_dict().items()}
            with pytest.raises(ValueError, match="weights do not fit the model, such as "):
                load_full_state_dict(model, state)
            assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


class TestDevice:
    def test_by_name(self):
        assert choose_device("cpu") == torch.device("cpu")
        assert choose_device(None).type in ("cpu", "cuda")

    @pytest.mark.parametrize("name", ["cuda:99", "toaster"])
    def test_that_is_not_there(self, name):
        with pytest.raises(SiTError, match=name) as error:
            choose_device(name)
        assert error.value.argument == "device" and "\n" not in str(error.value)


def test_clipping_is_pytorchs(tiny_config):
    model = SiTForPreTraining(tiny_config())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    accelerator = Accelerator(cpu=True)
    torch.testing.assert_close(clip_gradients(accelerator, model, 3.0), norm)
    clipped = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    torch.testing.assert_close(clipped, torch.tensor(3.0))
    torch.testing.assert_close(clip_gradients(accelerator, model, float("inf")), clipped)


def test_sharded_students_keep_float32_weights_and_losses(tiny_config):
    """Accelerate's own policy would round the clean images and the losses to 16 bits."""
    plugin = SimpleNamespace(mixed_precision_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    accelerator = SimpleNamespace(
        is_fsdp2=True,
        state=SimpleNamespace(fsdp_plugin=plugin),
        prepare=lambda student, optimizer: (student, optimizer),
    )
    student = SiTForPreTraining(tiny_config())
    assert prepare_student(accelerator, student, None) == (student, None)
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy()
    accelerator.is_fsdp2, accelerator.state = False, None
    assert prepare_student(accelerator, student, None) == (student, None)


def test_nothing_is_sharded_like_a_plain_model(tiny_config):
    model = SiTForPreTraining(tiny_config())
    parameters = list(model.parameters())
    assert shard_like(model, SiTForPreTraining(tiny_config())) is model
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize(("seconds", "expected"), [(600, 1800), (7200, 7500)])
def test_processes_wait_longer_than_one_of_them_for_its_images(seconds, expected):
    """Or the others would give up first, with an error that says nothing of images."""
    assert patient_processes(seconds).timeout.total_seconds() == expected
