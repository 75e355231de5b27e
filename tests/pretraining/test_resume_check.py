"""What a run's outcome follows from: all of it is compared, nothing else is, and differences are named."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from modeling_sit import SiTConfig, SiTForPreTraining
from modeling_sit.configuration_sit import DENSE_FIELDS
from modeling_sit.pretraining.methods.sit import SiT
from modeling_sit.pretraining.model_setup import create_config, create_processor
from modeling_sit.pretraining.resume_check import (
    FIXED,
    FIXED_OF_STREAMS,
    check_resume_compatible,
    run_fingerprint,
)
from modeling_sit.pretraining.schedules import plan_schedules
from modeling_sit.runtime.errors import SiTError

TINY = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,decoder_hidden_size=16,projection_hidden_size=16"
# Arguments that a run may have others of when it goes on: where and how it runs, what it logs, what starts it.
HARMLESS = {
    *("dataset", "dataset_config_name", "image_column", "label_column", "validation_split"),  # seen by the fingerprint
    *("output_dir", "overwrite_output_dir", "export", "dataloader_num_workers", "on_bad_image", "logging_steps"),
    "dataloader_timeout",
    *("preview_steps", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "report_to"),
    *(
        "allow_changed_settings",
        "dry_run",
        "export_steps",
        "model_name_or_path",
        "attn_implementation",
        "gradient_checkpointing",
    ),
    *("preset", "time_budget"),  # in the values that they give
    *("license", "model_size", "config_overrides", "network"),  # in the configuration's fields
}
# Arguments that go into the outcome by what is made of them.
DERIVED = {"num_train_epochs": "max_steps", "warmup_epochs": "warmup_steps"}

PLAIN = {"streaming": False}
THE_PAPERS = SimpleNamespace(fixed=SiT.fixed, loss_weights=SiT.loss_weights)


@pytest.fixture
def settings_of(flags_of):
    """The settings of a run on 1,437 images with these arguments."""

    def settings(
        num_processes=1,
        mixed_precision="no",
        is_fsdp2=False,
        num_images=1437,
        images="0123",
        is_streamed=False,
        overrides="",
        **arguments,
    ):
        arguments = {"image_size": 16, "patch_size": 8, **arguments}
        flags = flags_of(config_overrides=f"{TINY},num_channels=1,{overrides}", **arguments)
        config = create_config(flags.model, num_images)
        method = SiT(config, create_processor(config, flags.model, flags.corruption), flags)
        schedules = plan_schedules(flags.run, num_images, num_processes, is_streamed)
        data = SimpleNamespace(num_images=num_images, is_streamed=is_streamed, fingerprint=lambda: images)
        accelerator = SimpleNamespace(num_processes=num_processes, mixed_precision=mixed_precision, is_fsdp2=is_fsdp2)
        return run_fingerprint(flags, method, schedules, data, accelerator)

    return settings


class TestDeterminingSettings:
    def test_survive_json(self, settings_of):
        settings = settings_of(noise_ratio=(0.1, 0.2))
        assert json.loads(json.dumps(settings)) == settings == settings_of(noise_ratio=[0.1, 0.2])

    @pytest.mark.parametrize(
        ("changed", "names"),
        [
            ({"per_device_train_batch_size": 32}, {"per_device_train_batch_size", "max_steps", "warmup_steps"}),
            ({"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps", "max_steps", "warmup_steps"}),
            ({"num_train_epochs": 10}, {"max_steps", "warmup_steps"}),
            ({"max_steps": 7}, {"max_steps", "warmup_steps"}),
            ({"warmup_epochs": 1}, {"warmup_steps"}),
            ({"base_learning_rate": 0.1}, {"base_learning_rate"}),
            ({"min_learning_rate": 0.1}, {"min_learning_rate"}),
            ({"weight_decay": 0.1}, {"weight_decay"}),
            ({"weight_decay_end": 0.1}, {"weight_decay_end"}),
            ({"adam_beta1": 0.1}, {"adam_beta1"}),
            ({"adam_beta2": 0.1}, {"adam_beta2"}),
            ({"max_grad_norm": 0.1}, {"max_grad_norm"}),
            ({"teacher_momentum": 0.1}, {"teacher_momentum"}),
            ({"seed": 1}, {"seed"}),
            ({"train_split": "test"}, {"train_split"}),
            ({"reconstruction_weight": 1.0}, {"reconstruction_weight"}),
            ({"contrastive_weight": 2.0}, {"contrastive_weight"}),
            ({"rotation_weight": 2.0}, {"rotation_weight"}),
            ({"image_size": 32}, {"image_size"}),
            ({"patch_size": 4}, {"patch_size"}),
            ({"overrides": "drop_path_rate=0.5"}, {"drop_path_rate"}),
            ({"overrides": "use_teacher=false"}, {"use_teacher"}),
            ({"overrides": "reconstruction_norm=l2"}, {"reconstruction_norm"}),
            ({"image_mean": [0.1]}, {"image_mean"}),
            ({"image_std": [0.1]}, {"image_std"}),
            ({"corruption": "zeros"}, {"corruption"}),
            ({"zeros_ratio": [0.1, 0.2]}, {"zeros_ratio"}),
            ({"align_to_patches": True}, {"align_to_patches"}),
            ({"crop_scale": [0.5, 1.0]}, {"crop_scale"}),
            ({"solarize_threshold": 0.25}, {"solarize_threshold"}),
            ({"num_processes": 2}, {"num_processes", "max_steps", "warmup_steps"}),
            ({"mixed_precision": "bf16"}, {"mixed_precision"}),
            ({"torch_compile": True}, {"torch_compile"}),
            ({"tf32": True}, {"tf32"}),
            ({"is_fsdp2": True}, {"engine"}),
            ({"streaming": True, "shuffle_buffer_size": 10}, {"shuffle_buffer_size"}),
        ],
    )
    def test_say_what_changed(self, settings_of, changed, names):
        before, after = settings_of(), settings_of(**changed)
        assert {name for name in before if before[name] != after[name]} == names

    @pytest.mark.parametrize(
        "changed",
        [
            {"output_dir": "elsewhere", "logging_steps": 3, "preview_steps": 0, "checkpointing_steps": "epoch"},
            {"dataloader_num_workers": 4, "gradient_checkpointing": True, "attn_implementation": "eager"},
            {"export": "student", "report_to": ["tensorboard"], "checkpoints_total_limit": 0},
            {"resume_from_checkpoint": "auto", "allow_changed_settings": True, "dry_run": True},
        ],
    )
    def test_leave_out_what_changes_nothing(self, settings_of, changed):
        assert settings_of(**changed) == settings_of()

    def test_every_argument_is_among_them_or_known_to_change_nothing(self, settings_of, flags_of):
        """Who adds an argument: does the outcome depend on it? Then it belongs into the settings, else into HARMLESS."""
        flags = flags_of()
        groups = (flags.run, flags.model, flags.corruption, flags.views)
        flags = {field.name for group in groups for field in dataclasses.fields(group)}
        settings = settings_of()
        assert flags - set(settings) - HARMLESS == set(DERIVED)
        assert set(DERIVED.values()) <= set(settings)
        assert not HARMLESS & set(settings)

    def test_every_field_of_the_configuration_is_among_them(self, settings_of):
        of_all_tasks = {name for name in SiTConfig.__annotations__ if name.removeprefix("_") not in DENSE_FIELDS}
        assert {field.name for field in dataclasses.fields(SiTConfig)} & of_all_tasks <= set(settings_of())
        # Checkpoints of before there was detection go on.
        assert not {*DENSE_FIELDS, "_out_features", "_out_indices"} & set(settings_of())
        assert set(settings_of()) >= FIXED | SiT.fixed | FIXED_OF_STREAMS | set(SiT.loss_weights)

    def test_of_other_images(self, settings_of):
        before = settings_of(max_steps=5)
        after = settings_of(max_steps=5, num_images=70, images="4567")
        assert {name for name in before if before[name] != after[name]} == {"images", "num_images"}

    def test_of_a_stream(self, settings_of):
        before, after = settings_of(max_steps=5), settings_of(max_steps=5, is_streamed=True)
        assert {name for name in before if before[name] != after[name]} == {"streaming"}


def compare(saved: dict, current: dict, checkpoint: Path, allow_changes: bool, method=THE_PAPERS) -> list[str]:
    return check_resume_compatible(saved, current, checkpoint, method, allow_changes)


class TestCheckSettings:
    def test_the_same(self, tmp_path):
        assert compare({"seed": 1, **PLAIN}, {"seed": 1, **PLAIN}, tmp_path, False) == []

    def test_differences_are_named(self, tmp_path):
        saved = {"seed": 0, "base_learning_rate": 0.1, "crop_scale": [0.2, 1.0], **PLAIN}
        current = {"seed": 1, "base_learning_rate": 0.1, "crop_scale": [0.5, 1.0], **PLAIN}
        with pytest.raises(SiTError) as error:
            compare(saved, current, tmp_path, allow_changes=False)
        assert error.value.argument == "resume_from_checkpoint"
        assert str(tmp_path) in str(error.value) and "`allow_changed_settings`" in str(error.value)
        assert "seed: 1 (the checkpoint: 0), crop_scale: [0.5, 1.0] (the checkpoint: [0.2, 1.0])" in str(error.value)
        assert "base_learning_rate" not in str(error.value)
        assert compare(saved, current, tmp_path, allow_changes=True) == [
            "seed: 1 (the checkpoint: 0)",
            "crop_scale: [0.5, 1.0] (the checkpoint: [0.2, 1.0])",
        ]

    @pytest.mark.parametrize("allow_changes", [False, True])
    @pytest.mark.parametrize("name", sorted((FIXED | SiT.fixed) - {"streaming", "method"}))
    def test_another_model_is_never_allowed(self, tmp_path, name, allow_changes):
        with pytest.raises(SiTError, match=rf"in another form: {name}: 2 \(the checkpoint: 1\)$"):
            compare({name: 1, **PLAIN, "seed": 0}, {name: 2, **PLAIN, "seed": 1}, tmp_path, allow_changes)

    @pytest.mark.parametrize("name", sorted(FIXED_OF_STREAMS))
    def test_what_a_stream_depends_on_is_allowed_without_one(self, tmp_path, name):
        for streaming in (False, True):
            saved, current = {"streaming": streaming, name: 1}, {"streaming": streaming, name: 2}
            if streaming:
                with pytest.raises(SiTError, match=f"in another form: {name}"):
                    compare(saved, current, tmp_path, True)
            else:
                assert len(compare(saved, current, tmp_path, True)) == 1

    @pytest.mark.parametrize(("before", "after"), [("no", "fp16"), ("fp16", "bf16")])
    def test_a_gradient_scaler_does_not_come_or_go(self, tmp_path, before, after):
        saved, current = ({**PLAIN, "mixed_precision": precision} for precision in (before, after))
        with pytest.raises(SiTError, match=f"mixed_precision: {after}"):
            compare(saved, current, tmp_path, True)
        assert compare({**saved, "mixed_precision": "no"}, {**current, "mixed_precision": "bf16"}, tmp_path, True)

    @pytest.mark.parametrize("name", ["reconstruction_weight", "contrastive_weight", "rotation_weight"])
    def test_a_task_does_not_come_or_go(self, tmp_path, name):
        """Its head would be new, or nothing would train it; another weight above 0 is safe."""
        for before, after in ((0.0, 1.0), (1.0, 0.0)):
            with pytest.raises(SiTError, match=f"in another form: {name}"):
                compare({**PLAIN, name: before}, {**PLAIN, name: after}, tmp_path, True)
        assert len(compare({**PLAIN, name: 1.0}, {**PLAIN, name: 2.0}, tmp_path, True)) == 1

    def test_a_stream_does_not_go_on_where_another_reading_stopped(self, tmp_path):
        with pytest.raises(SiTError, match="streaming: True"):
            compare({"streaming": False}, {"streaming": True}, tmp_path, True)

    def test_a_setting_that_the_checkpoint_does_not_know(self, tmp_path):
        """It was written by an older version: what it had is not known."""
        assert compare(PLAIN, {**PLAIN, "new_flag": 3}, tmp_path, True) == ["new_flag: 3 (the checkpoint: None)"]
        with pytest.raises(SiTError, match="new_flag"):
            compare(PLAIN, {**PLAIN, "new_flag": 3}, tmp_path, False)

    def test_a_checkpoint_of_before_there_were_other_heads(self, tmp_path):
        """It has those that are the default: a run of then goes on, but not with others."""
        heads = {"decoder_num_hidden_layers": 2, "projection_first_act": "gelu"}
        assert compare(PLAIN, {**PLAIN, **heads}, tmp_path, False) == []
        with pytest.raises(SiTError, match=r"projection_first_act: relu \(the checkpoint: gelu\)"):
            compare(PLAIN, {**PLAIN, **heads, "projection_first_act": "relu"}, tmp_path, True)

    def test_a_checkpoint_of_before_there_were_other_methods_is_of_sit(self, tmp_path):
        assert compare(PLAIN, {**PLAIN, "method": "sit"}, tmp_path, False) == []
        with pytest.raises(SiTError, match=r"in another form: method: mine \(the checkpoint: sit\)"):
            compare(PLAIN, {**PLAIN, "method": "mine"}, tmp_path, True)

    def test_a_checkpoint_of_before_max_steps_had_its_name(self, tmp_path):
        saved = {**PLAIN, "max_train_steps": 7}
        assert compare(saved, {**PLAIN, "max_steps": 7}, tmp_path, False) == []
        assert compare(saved, {**PLAIN, "max_steps": 9}, tmp_path, True) == ["max_steps: 9 (the checkpoint: 7)"]

    def test_a_method_says_what_its_weights_are_made_for(self, tmp_path):
        method = SimpleNamespace(fixed=frozenset({"num_prototypes"}), loss_weights=("center_weight",))
        for name in ("num_prototypes", "center_weight"):
            with pytest.raises(SiTError, match=f"in another form: {name}"):
                compare({**PLAIN, name: 0}, {**PLAIN, name: 1}, tmp_path, True, method)
        assert len(compare({**PLAIN, "hidden_size": 1}, {**PLAIN, "hidden_size": 2}, tmp_path, True, method)) == 1

    def test_a_checkpoint_of_before_there_was_a_choice_of_first_weights(self, tmp_path):
        assert compare(PLAIN, {**PLAIN, "initialization": "normal"}, tmp_path, False) == []
        with pytest.raises(SiTError, match=r"initialization: xavier \(the checkpoint: normal\)"):
            compare(PLAIN, {**PLAIN, "initialization": "xavier"}, tmp_path, False)

    def test_5_is_5(self, tmp_path):
        assert compare({"weight": 5, **PLAIN}, {"weight": 5.0, **PLAIN}, tmp_path, False) == []


def test_sizes_are_what_the_trained_weights_depend_on(tiny_config):
    """By trial: what changes a shape or the set of the trained weights is a size, and what changes none is not."""

    def shapes(**fields):
        student = SiTForPreTraining(tiny_config(intermediate_size=32, **fields))
        return {name: weight.shape for name, weight in student.named_parameters() if weight.requires_grad}

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "image_size": 32, "patch_size": 4, "num_channels": 1}
    sizes |= {"qkv_bias": False, "position_embedding_type": "sincos", "decoder_hidden_size": 8}
    sizes |= {"projection_hidden_size": 8, "projection_size": 8, "decoder_num_hidden_layers": 3}
    others = {"drop_path_rate": 0.5, "pooling": "mean", "temperature": 0.5, "reconstruction_weight": 2.0}
    others |= {"contrastive_weight": 2.0, "reconstruction_norm": "l2", "reconstruction_region": "all"}
    before = shapes()
    for name, value in {**sizes, **others}.items():
        assert (shapes(**{name: value}) != before) == (name in sizes) == (name in SiT.fixed), name
