"""What a run's outcome follows from: all of it is compared, nothing else is, and differences are named."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import datasets
import pytest

from modeling_sit import SiTConfig, SiTForPreTraining
from modeling_sit.data.sources import ImageDatasets, load_images
from modeling_sit.data.views import ViewArguments
from modeling_sit.pretraining import resume_check as run_settings
from modeling_sit.pretraining.arguments import (
    CorruptionArguments,
    ModelArguments,
    PretrainingArguments,
    create_config,
    create_processor,
)
from modeling_sit.pretraining.resume_check import (
    FORM_OF_CHECKPOINTS,
    FORM_OF_STREAMS,
    check_resume_compatible,
    fingerprint,
    run_fingerprint,
)
from modeling_sit.pretraining.schedules import plan_schedules
from modeling_sit.runtime.errors import SiTError

TINY = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,decoder_hidden_size=16,projection_hidden_size=16"
# Flags that a run may have others of when it goes on: where and how it runs, what it says, what starts it.
HARMLESS = {
    *("dataset", "dataset_config_name", "image_column", "label_column", "validation_split"),  # seen by the fingerprint
    *("output_dir", "overwrite_output_dir", "export", "dataloader_num_workers", "on_bad_image", "logging_steps"),
    *("preview_steps", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "report_to"),
    *("allow_changed_settings", "dry_run", "model_name_or_path", "attn_implementation", "gradient_checkpointing"),
    *("license", "model_size", "config_overrides", "network"),  # in the configuration's fields
}
# Flags that go into the outcome by what is made of them.
DERIVED = {"num_train_epochs": "max_train_steps", "warmup_epochs": "warmup_steps"}

PLAIN = {"streaming": False}


def images_of(train: datasets.Dataset) -> ImageDatasets:
    return ImageDatasets("user/images", train, None, None, ["train"], num_train=len(train))


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture
def settings_of(digits):
    """The settings of a run with these flags."""

    def settings(
        num_processes=1,
        mixed_precision="no",
        is_fsdp2=False,
        shuffle_buffer_size=None,
        images=digits,
        overrides="",
        **flags,
    ):
        groups = []
        flags = {"dataset": "digits", "output_dir": "out", "image_size": 16, "patch_size": 8, **flags}
        flags["config_overrides"] = f"{TINY},num_channels=1,{overrides}"
        for group in (PretrainingArguments, ModelArguments, CorruptionArguments, ViewArguments):
            names = {field.name for field in dataclasses.fields(group)}
            groups.append(group(**{name: value for name, value in flags.items() if name in names}))
        arguments, model_arguments, corruption_arguments, view_arguments = groups
        config = create_config(model_arguments, images.num_train)
        processor = create_processor(config, model_arguments, corruption_arguments)
        schedules = plan_schedules(arguments, images.num_train, num_processes)
        accelerator = SimpleNamespace(num_processes=num_processes, mixed_precision=mixed_precision, is_fsdp2=is_fsdp2)
        return run_fingerprint(
            arguments,
            view_arguments,
            config,
            processor,
            schedules,
            images,
            accelerator,
            shuffle_buffer_size,
        )

    return settings


class TestDeterminingSettings:
    def test_survive_json(self, settings_of):
        settings = settings_of(noise_ratio=(0.1, 0.2))
        assert json.loads(json.dumps(settings)) == settings == settings_of(noise_ratio=[0.1, 0.2])

    @pytest.mark.parametrize(
        ("changed", "names"),
        [
            ({"per_device_train_batch_size": 32}, {"per_device_train_batch_size", "max_train_steps", "warmup_steps"}),
            ({"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps", "max_train_steps", "warmup_steps"}),
            ({"num_train_epochs": 10}, {"max_train_steps", "warmup_steps"}),
            ({"max_train_steps": 7}, {"max_train_steps", "warmup_steps"}),
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
            ({"num_processes": 2}, {"num_processes", "max_train_steps", "warmup_steps"}),
            ({"mixed_precision": "bf16"}, {"mixed_precision"}),
            ({"torch_compile": True}, {"torch_compile"}),
            ({"tf32": True}, {"tf32"}),
            ({"is_fsdp2": True}, {"engine"}),
            ({"shuffle_buffer_size": 10}, {"shuffle_buffer_size"}),
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

    def test_every_flag_is_among_them_or_known_to_change_nothing(self, settings_of):
        """Who adds a flag: does the outcome hang on it? Then it belongs into the settings, else into HARMLESS above."""
        groups = (PretrainingArguments, ModelArguments, CorruptionArguments, ViewArguments)
        flags = {field.name for group in groups for field in dataclasses.fields(group)}
        settings = settings_of()
        assert flags - set(settings) - HARMLESS == set(DERIVED)
        assert set(DERIVED.values()) <= set(settings)
        assert not HARMLESS & set(settings)

    def test_every_field_of_the_configuration_is_among_them(self, settings_of):
        assert {field.name for field in dataclasses.fields(SiTConfig)} & set(SiTConfig.__annotations__) <= set(
            settings_of()
        )
        assert set(settings_of()) >= FORM_OF_CHECKPOINTS | FORM_OF_STREAMS

    def test_of_other_images(self, settings_of, tmp_path, save_images):
        images = load_images(str(save_images(tmp_path, 70)))
        before, after = settings_of(max_train_steps=5), settings_of(max_train_steps=5, images=images)
        assert {name for name in before if before[name] != after[name]} == {"images", "num_images"}


class TestFingerprint:
    @staticmethod
    def of(folder) -> str:
        return fingerprint(load_images(str(folder)))

    def test_is_the_same_again_and_after_a_move(self, tmp_path, save_images):
        folder = save_images(tmp_path / "a", 5)
        before = self.of(folder)
        assert before == self.of(folder) == self.of(f"{folder}/")
        folder.rename(tmp_path / "b")
        assert self.of(tmp_path / "b") == before

    def test_of_one_more_one_less_or_another_name(self, tmp_path, save_images):
        folder = save_images(tmp_path / "a", 5)
        seen = [self.of(folder)]
        (folder / "04.png").rename(folder / "05.png")
        seen.append(self.of(folder))
        (folder / "05.png").unlink()
        seen.append(self.of(folder))
        save_images(folder, 6)
        seen.append(self.of(folder))
        assert len(set(seen)) == 4

    def test_of_other_images_of_the_same_names(self, tmp_path, save_images):
        """Two datasets that number their images; only the sizes of the files tell them apart."""
        one, two = save_images(tmp_path / "one", 5), save_images(tmp_path / "two", 5)
        assert self.of(one) == self.of(two)
        (two / "03.png").write_bytes((two / "03.png").read_bytes() + b" ")
        assert self.of(one) != self.of(two)

    def test_of_classes(self, tmp_path, save_images):
        """The same names in other folders are other images."""
        for name in ("cat", "dog"):
            save_images(tmp_path / "a" / name, 2)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        assert self.of(tmp_path / "a") == self.of(tmp_path / "b")
        (tmp_path / "b" / "dog").rename(tmp_path / "b" / "fox")
        assert self.of(tmp_path / "a") != self.of(tmp_path / "b")

    def test_of_images_in_memory(self):
        """As parquet files give them, and with a row that has none."""

        def of(*sizes):
            rows = [None if size is None else {"bytes": b"x" * size, "path": None} for size in sizes]
            features = datasets.Features({"image": datasets.Image(decode=False)})
            return fingerprint(images_of(datasets.Dataset.from_dict({"image": rows}, features=features)))

        assert of(3, 4) == of(3, 4)
        assert len({of(3, 4), of(4, 3), of(3, 5), of(3, 4, 4), of(3), of(3, None)}) == 6

    def test_reads_some_of_many(self, monkeypatch):
        """Evenly spread over all of them."""
        monkeypatch.setattr(run_settings, "NUM_FINGERPRINTED_ROWS", 5)
        features = datasets.Features({"image": datasets.Image(decode=False)})
        sizes = list(range(1, 48))

        def of(sizes):
            rows = [{"bytes": b"x" * size, "path": None} for size in sizes]
            return fingerprint(images_of(datasets.Dataset.from_dict({"image": rows}, features=features)))

        noticed = [index for index in range(47) if of([*sizes[:index], 200, *sizes[index + 1 :]]) != of(sizes)]
        assert noticed == list(range(0, 47, 10))

    def test_of_a_file_that_is_gone_is_left_to_the_decoder(self, tmp_path, save_images):
        folder = save_images(tmp_path / "a", 3)
        images = load_images(str(folder))
        (folder / "01.png").unlink()
        assert len(fingerprint(images)) == 16


class TestCheckSettings:
    def test_the_same(self, tmp_path):
        assert check_resume_compatible({"seed": 1, **PLAIN}, {"seed": 1, **PLAIN}, tmp_path, False) == []

    def test_differences_are_named(self, tmp_path):
        saved = {"seed": 0, "base_learning_rate": 0.1, "crop_scale": [0.2, 1.0], **PLAIN}
        current = {"seed": 1, "base_learning_rate": 0.1, "crop_scale": [0.5, 1.0], **PLAIN}
        with pytest.raises(SiTError) as error:
            check_resume_compatible(saved, current, tmp_path, allow_changes=False)
        assert str(tmp_path) in str(error.value) and "--allow_changed_settings" in str(error.value)
        assert "seed: 1 (the checkpoint: 0); crop_scale: [0.5, 1.0] (the checkpoint: [0.2, 1.0])" in str(error.value)
        assert "base_learning_rate" not in str(error.value)
        assert check_resume_compatible(saved, current, tmp_path, allow_changes=True) == [
            "seed: 1 (the checkpoint: 0)",
            "crop_scale: [0.5, 1.0] (the checkpoint: [0.2, 1.0])",
        ]

    @pytest.mark.parametrize("allow_changes", [False, True])
    @pytest.mark.parametrize("name", sorted(FORM_OF_CHECKPOINTS - {"streaming"}))
    def test_another_model_is_never_allowed(self, tmp_path, name, allow_changes):
        with pytest.raises(SiTError, match=rf"in another form: {name}: 2 \(the checkpoint: 1\)$"):
            check_resume_compatible(
                {name: 1, **PLAIN, "seed": 0}, {name: 2, **PLAIN, "seed": 1}, tmp_path, allow_changes
            )

    @pytest.mark.parametrize("name", sorted(FORM_OF_STREAMS))
    def test_what_a_stream_hangs_on_is_allowed_without_one(self, tmp_path, name):
        for streaming in (False, True):
            saved, current = {"streaming": streaming, name: 1}, {"streaming": streaming, name: 2}
            if streaming:
                with pytest.raises(SiTError, match=f"in another form: {name}"):
                    check_resume_compatible(saved, current, tmp_path, True)
            else:
                assert len(check_resume_compatible(saved, current, tmp_path, True)) == 1

    @pytest.mark.parametrize(("before", "after"), [("no", "fp16"), ("fp16", "bf16")])
    def test_a_gradient_scaler_does_not_come_or_go(self, tmp_path, before, after):
        saved, current = ({**PLAIN, "mixed_precision": precision} for precision in (before, after))
        with pytest.raises(SiTError, match=f"mixed_precision: {after}"):
            check_resume_compatible(saved, current, tmp_path, True)
        assert check_resume_compatible(
            {**saved, "mixed_precision": "no"}, {**current, "mixed_precision": "bf16"}, tmp_path, True
        )

    @pytest.mark.parametrize("name", ["reconstruction_weight", "contrastive_weight", "rotation_weight"])
    def test_a_task_does_not_come_or_go(self, tmp_path, name):
        """Its head would be new, or nothing would train it; another weight above 0 is safe."""
        for before, after in ((0.0, 1.0), (1.0, 0.0)):
            with pytest.raises(SiTError, match=f"in another form: {name}"):
                check_resume_compatible({**PLAIN, name: before}, {**PLAIN, name: after}, tmp_path, True)
        assert len(check_resume_compatible({**PLAIN, name: 1.0}, {**PLAIN, name: 2.0}, tmp_path, True)) == 1

    def test_a_stream_does_not_go_on_where_another_reading_stopped(self, tmp_path):
        with pytest.raises(SiTError, match="streaming: True"):
            check_resume_compatible({"streaming": False}, {"streaming": True}, tmp_path, True)

    def test_a_setting_that_the_checkpoint_does_not_know(self, tmp_path):
        """It was written by an older version: what it had is not known."""
        assert check_resume_compatible(PLAIN, {**PLAIN, "new_flag": 3}, tmp_path, True) == [
            "new_flag: 3 (the checkpoint: None)"
        ]
        with pytest.raises(SiTError, match="new_flag"):
            check_resume_compatible(PLAIN, {**PLAIN, "new_flag": 3}, tmp_path, False)

    def test_a_checkpoint_of_before_there_were_other_heads(self, tmp_path):
        """It has those that are the default: a run of then goes on, but not with others."""
        heads = {"decoder_num_hidden_layers": 2, "projection_first_act": "gelu"}
        assert check_resume_compatible(PLAIN, {**PLAIN, **heads}, tmp_path, False) == []
        with pytest.raises(SiTError, match=r"projection_first_act: relu \(the checkpoint: gelu\)"):
            check_resume_compatible(PLAIN, {**PLAIN, **heads, "projection_first_act": "relu"}, tmp_path, True)

    def test_5_is_5(self, tmp_path):
        assert check_resume_compatible({"weight": 5, **PLAIN}, {"weight": 5.0, **PLAIN}, tmp_path, False) == []


def test_sizes_are_what_the_trained_weights_hang_on(tiny_config):
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
        assert (shapes(**{name: value}) != before) == (name in sizes) == (name in FORM_OF_CHECKPOINTS), name
