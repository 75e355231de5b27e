"""A run from arguments to a model repository: what it writes, how it goes on, and what its folder is refused for."""

import ast
import json
import shutil
import sys

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from pretraining_runs import (
    arguments_of,
    assert_equal,
    checkpoint,
    checkpoints_of,
    lines_of,
    losses_of,
    weights_in,
)
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTModel,
    pipeline,
)

import modeling_sit
from modeling_sit import SiTForPreTraining, SiTImageProcessor, SiTModel
from modeling_sit.data.decoding import decode_image
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.results import read_results, write_results
from modeling_sit.pretraining import checkpoints
from modeling_sit.pretraining.metric_logger import MetricLogger
from modeling_sit.pretraining.run import pretrain as pretrain_images
from modeling_sit.runtime.errors import SiTError


class TestOutput:
    def test_folder_is_a_model_repository(self, pretrain, capsys):
        folder = pretrain(checkpointing_steps=2, max_steps=4, preview_steps=2)
        names = {path.name for path in folder.iterdir()}
        assert {
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "README.md",
            "metrics.jsonl",
            "previews",
            "checkpoints",
        } <= names
        assert {"configuration_sit.py", "modeling_sit.py", "image_processing_sit.py", "gmml.py", "losses.py"} <= names
        assert [path.name for path in sorted((folder / "previews").iterdir())] == [
            "step-00000002.png",
            "step-00000004.png",
        ]
        assert checkpoints_of(folder) == [2, 4]
        out = capsys.readouterr().out
        assert "digits: 1,437 images" in out and str(folder) in out

    def test_auto_classes_load_it(self, pretrain):
        folder = pretrain(checkpointing_steps=2, max_steps=2)
        weights = weights_in(folder)
        model, trouble = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert isinstance(model, SiTModel)
        assert not trouble["missing_keys"] and not trouble["mismatched_keys"]
        assert_equal(
            dict(model.state_dict()),
            {name.removeprefix("vit."): value for name, value in weights.items() if name.startswith("vit.")},
        )
        pretrained = AutoModelForPreTraining.from_pretrained(folder)
        assert isinstance(pretrained, SiTForPreTraining)
        assert_equal(dict(pretrained.state_dict()), weights)
        _, trouble = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
        assert {name.partition(".")[0] for name in trouble["missing_keys"]} == {"classifier"}
        processor = AutoImageProcessor.from_pretrained(folder)
        assert isinstance(processor, SiTImageProcessor)
        assert dict(processor.size) == {"height": 16, "width": 16}
        assert list(processor.image_mean) == [0.5]
        inputs = processor(PIL.Image.new("L", (20, 30)), return_tensors="pt")
        assert model(**inputs).last_hidden_state.shape == (1, 5, 16)

    def test_pipelines_load_it(self, pretrain):
        folder = pretrain(channels=3, max_steps=1)
        image = PIL.Image.new("RGB", (20, 30), "red")
        features = pipeline("image-feature-extraction", model=str(folder))(image)
        assert np.array(features).shape == (1, 5, 16)
        answers = pipeline("image-classification", model=str(folder))(image)
        assert all(0 <= answer["score"] <= 1 for answer in answers)

    def test_plain_vit_loads_it(self, pretrain):
        folder = pretrain(max_steps=1)
        vit, trouble = ViTModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
        assert not trouble["missing_keys"]
        inputs = torch.randn(2, 1, 16, 16)
        with torch.no_grad():
            expected = AutoModel.from_pretrained(folder)(inputs).last_hidden_state
            torch.testing.assert_close(vit.eval()(inputs).last_hidden_state, expected, rtol=1e-4, atol=1e-5)

    def test_code_for_remote_loading_stands_alone(self, pretrain):
        allowed = {"torch", "torchvision", "numpy", "PIL", "transformers"}
        folder = pretrain(max_steps=1)
        for path in folder.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    roots = {alias.name.partition(".")[0] for alias in node.names}
                    assert roots <= allowed | set(sys.stdlib_module_names), path.name
                elif isinstance(node, ast.ImportFrom) and node.level:
                    assert (folder / f"{node.module}.py").exists(), path.name
                elif isinstance(node, ast.ImportFrom):
                    assert node.module.partition(".")[0] in allowed | set(sys.stdlib_module_names), path.name

    def test_model_card(self, pretrain, tmp_path):
        folder = pretrain(name="my run", seed=7, max_steps=2, preview_steps=1)
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == "transformers"
        assert "1,437 images of `digits`" in " ".join(card.text.split())
        assert "- `seed`: `7`" in card.text
        assert "noise_ratio" not in card.text.partition("What was run")[2].partition("```\n\n")[2]
        assert "previews/step-00000002.png" in card.text

    def test_processor_keeps_the_corruption(self, pretrain):
        folder = pretrain(corruption="zeros", zeros_ratio=[0.2, 0.4], align_to_patches=True, max_steps=1)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        assert (settings["corruption"], settings["zeros_ratio"]) == ("zeros", [0.2, 0.4])
        assert (settings["align_to_patches"], settings["patch_size"]) == (True, 8)
        assert not settings.get("do_corrupt", False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for a CPU with a C++ compiler")
def test_compiled(pretrain):
    """A compiled run learns what another one learns, goes on bit for bit, and leaves weights of the same names."""
    arguments = {"checkpointing_steps": 2, "checkpoints_total_limit": 0}
    plain = pretrain(name="plain", **arguments, max_steps=3)
    torch._dynamo.reset()
    compiled = pretrain(name="compiled", **arguments, torch_compile=True, max_steps=3, preview_steps=1)
    for line, other in zip(lines_of(compiled), lines_of(plain), strict=True):
        for name in ("loss", "reconstruction_loss", "contrastive_loss"):
            assert line[name] == pytest.approx(other[name], rel=1e-4)
    # From the checkpoint of step 2, in a folder of its own.
    going_on = {"resume_from_checkpoint": checkpoint(compiled, 2)}
    resumed = pretrain(name="resumed", **arguments, torch_compile=True, **going_on, max_steps=3)
    for name in ("model.safetensors", "teacher.safetensors"):
        assert_equal(weights_in(checkpoint(resumed, 3) / name), weights_in(checkpoint(compiled, 3) / name))
    assert weights_in(compiled).keys() == weights_in(plain).keys()


class TestGoingOn:
    """A run that was stopped and goes on is the run that was not stopped, to the last bit."""

    @staticmethod
    def stop_after(monkeypatch, steps: int):
        """Ctrl-C when so many steps are done."""
        count_step, count = MetricLogger.count_step, iter(range(1, 1000))

        def counting(self):
            count_step(self)
            if next(count) == steps:
                raise KeyboardInterrupt

        monkeypatch.setattr(MetricLogger, "count_step", counting)

    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"dataloader_num_workers": 2},
            {"gradient_accumulation_steps": 2},
            {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1, "mixed_precision": "bf16"},
            {"image_cache": "memory", "dataloader_num_workers": 2},
            {"image_cache": "device", "dataloader_num_workers": 1},
        ],
    )
    def test_bit_for_bit(self, pretrain, monkeypatch, tmp_path, arguments):
        arguments = {"checkpointing_steps": 3, "checkpoints_total_limit": 0, "base_learning_rate": 0.05, **arguments}
        whole = pretrain(name="whole", **arguments, max_steps=7)
        stopped = tmp_path / "stopped"
        with monkeypatch.context() as patch:
            self.stop_after(patch, 5)
            with pytest.raises(KeyboardInterrupt):
                pretrain("stopped", **arguments, max_steps=7)
        assert [line["step"] for line in lines_of(stopped)] == [1, 2, 3, 4]
        assert checkpoints_of(stopped) == [3]
        pretrain(name="stopped", resume_from_checkpoint="auto", **arguments, max_steps=7)

        assert checkpoints_of(stopped) == checkpoints_of(whole) == [3, 6, 7]
        for step in (6, 7):
            for name in ("model.safetensors", "teacher.safetensors"):
                assert_equal(weights_in(checkpoint(stopped, step) / name), weights_in(checkpoint(whole, step) / name))
        assert_equal(weights_in(stopped), weights_in(whole))
        assert losses_of(stopped) == losses_of(whole)
        assert "# going on from step 3:" in (stopped / "README.md").read_text()
        states = [
            torch.load(checkpoint(folder, 7) / "optimizer.bin", weights_only=True) for folder in (stopped, whole)
        ]
        for moments, others in zip(*(state["state"].values() for state in states), strict=True):
            assert all(torch.equal(moments[name], others[name]) for name in moments)

    @pytest.mark.parametrize("arguments", [{}, {"streaming": True, "shuffle_buffer_size": 40}])
    def test_skipped_images_are_not_decoded(self, pretrain, monkeypatch, arguments):
        decoded = []

        def counting(*arguments, **settings):
            decoded.append(1)
            return decode_image(*arguments, **settings)

        for module in ("image_datasets", "streaming"):
            monkeypatch.setattr(f"modeling_sit.data.{module}.decode_image", counting)
        folder = pretrain(checkpointing_steps=5, **arguments, max_steps=6, per_device_train_batch_size=16)
        whole = len(decoded)
        shutil.rmtree(checkpoint(folder, 6))
        pretrain(resume_from_checkpoint="auto", **arguments, max_steps=6, per_device_train_batch_size=16)
        previews = 8
        assert (whole, len(decoded) - whole) == (6 * 16 + previews, 1 * 16 + previews)

    def test_from_a_path_into_another_folder(self, pretrain):
        whole = pretrain(name="whole", checkpointing_steps=2, checkpoints_total_limit=0, max_steps=5)
        other = pretrain(name="other", resume_from_checkpoint=checkpoint(whole, 2), max_steps=5)
        assert_equal(weights_in(other), weights_in(whole))
        assert [line["step"] for line in lines_of(other)] == [3, 4, 5]

    def test_auto_in_a_new_folder_starts(self, pretrain):
        folder = pretrain(name="new", resume_from_checkpoint="auto")
        assert_equal(weights_in(folder), weights_in(pretrain(name="plain")))

    def test_a_run_that_is_done_stays_as_it_is(self, pretrain):
        folder = pretrain(max_steps=3)
        before, log = weights_in(folder), lines_of(folder)
        pretrain(resume_from_checkpoint="auto", max_steps=3)
        assert_equal(weights_in(folder), before)
        assert lines_of(folder) == log

    def test_a_finished_run_into_another_folder_writes_the_model(self, pretrain):
        """What says that it is done leaves a model behind."""
        done = pretrain(name="done", max_steps=2)
        other = pretrain(name="other", resume_from_checkpoint=checkpoint(done, 2), max_steps=2)
        assert_equal(weights_in(other), weights_in(done))

    def test_checkpoints_beyond_do_not_push_out_new_ones(self, pretrain):
        arguments = {"checkpointing_steps": 1}
        folder = pretrain(**arguments, checkpoints_total_limit=0, max_steps=4)
        arguments |= {"resume_from_checkpoint": checkpoint(folder, 1), "seed": 1}
        pretrain(**arguments, checkpoints_total_limit=1, allow_changed_settings=True, max_steps=2)
        assert checkpoints_of(folder) == [2]
        settings = json.loads((checkpoint(folder, 2) / "run_state.json").read_text())["settings"]
        assert settings["seed"] == 1

    def test_betas_on_request(self, pretrain):
        begun = pretrain(name="begun", max_steps=1)
        again = {"resume_from_checkpoint": checkpoint(begun, 1), "allow_changed_settings": True, "max_steps": 2}
        folder = pretrain(name="changed", **again, adam_beta1=0.1, adam_beta2=0.5)
        same = pretrain(name="same", **again)
        changed, same = (
            torch.load(checkpoint(run, 2) / "optimizer.bin", weights_only=False) for run in (folder, same)
        )
        assert {group["betas"] for group in changed["param_groups"]} == {(0.1, 0.5)}
        assert (changed["state"][0]["exp_avg"] != same["state"][0]["exp_avg"]).any()

    @pytest.mark.parametrize("monitor_steps", [0, 4])
    def test_what_was_done_after_its_first_step_is_not_the_runs(self, pretrain, monitor_steps):
        """Another continuation's previews, exports and monitors would be those of the model in the folder."""
        every_step = {"preview_steps": 1, "monitor_steps": 1, "monitor_images": 16, "export_steps": 1}
        folder = pretrain(checkpointing_steps=1, checkpoints_total_limit=0, max_steps=4, **every_step)
        (folder / "previews" / "mine.png").write_text("mine")
        again = {"resume_from_checkpoint": checkpoint(folder, 2), "seed": 1, "allow_changed_settings": True}
        pretrain(checkpointing_steps=1, max_steps=3, **again, monitor_steps=monitor_steps, monitor_images=16)
        assert sorted(path.name for path in (folder / "previews").iterdir()) == [
            *("mine.png", "step-00000001.png", "step-00000002.png")
        ]
        assert sorted(path.name for path in (folder / "exports").iterdir()) == ["step-00000001", "step-00000002"]
        steps = [line["step"] for line in lines_of(folder, "monitors.jsonl")]
        assert steps[:2] == [1, 2] and 4 not in steps
        assert "previews/step-00000002.png" in (folder / "README.md").read_text()

    def test_results_of_the_weights_before_are_not_those_of_the_model(self, pretrain):
        folder = pretrain(max_steps=1)
        write_results(folder, {"knn": {"accuracy": 1.0}, "mine": {"accuracy": 0.5}})
        pretrain(max_steps=1, resume_from_checkpoint="auto")  # it is done, and stays
        assert set(read_results(folder)) == {"knn", "mine"}
        pretrain(max_steps=2, resume_from_checkpoint="auto", allow_changed_settings=True)
        assert set(read_results(folder)) == {"mine"}

    def test_with_another_model_is_refused(self, pretrain, refused):
        folder = pretrain(max_steps=1)
        error = refused(resume_from_checkpoint=checkpoint(folder, 1), overrides={"hidden_size": 32})
        assert error.argument == "resume_from_checkpoint" and str(checkpoint(folder, 1)) in str(error)

    def test_checkpoint_without_the_teacher_is_refused(self, pretrain, refused):
        folder = pretrain(max_steps=1, overrides={"use_teacher": "false"})
        error = refused(resume_from_checkpoint=checkpoint(folder, 1))
        assert error.argument == "resume_from_checkpoint" and str(checkpoint(folder, 1)) in str(error)

    def test_from_a_checkpoint_with_earlier_names(self, pretrain):
        arguments = {"checkpointing_steps": 2, "checkpoints_total_limit": 0, "logging_steps": 3, "max_steps": 4}
        folder = pretrain(**arguments)
        weights, losses = weights_in(folder), losses_of(folder)
        shutil.rmtree(checkpoint(folder, 4))
        path = checkpoint(folder, 2) / "run_state.json"
        state = json.loads(path.read_text())
        del state["digest"], state["exported"], state["determined_by"]["method"]
        for name, earlier in (
            ("num_images", "num_pictures"),
            ("images", "pictures"),
            ("max_steps", "max_train_steps"),
        ):
            state["determined_by"][earlier] = state["determined_by"].pop(name)
        state["window"]["num_pictures"] = state["window"].pop("num_images")
        path.write_text(json.dumps({**state, "digest": checkpoints._state_digest(state)}))
        pretrain(**arguments, resume_from_checkpoint="auto")
        assert_equal(weights_in(folder), weights)
        assert losses_of(folder) == losses


class TestCheckpoints:
    def test_the_newest_stay(self, pretrain):
        folder = pretrain(checkpointing_steps=1, checkpoints_total_limit=2, max_steps=5)
        assert checkpoints_of(folder) == [4, 5]

    def test_every_epoch(self, pretrain, save_images, tmp_path):
        pile = save_images(tmp_path / "pile", 17)
        arguments = {"checkpointing_steps": "epoch", "checkpoints_total_limit": 0}
        folder = pretrain(**arguments, dataset=pile, channels=3, per_device_train_batch_size=8, max_steps=5)
        assert checkpoints_of(folder) == [2, 4, 5]

    def test_none(self, pretrain):
        folder = pretrain(checkpointing_steps="no")
        assert not (folder / "checkpoints").exists()
        assert (folder / "model.safetensors").exists()

    def test_epochs_set_the_length(self, pretrain, save_images, tmp_path):
        pile = save_images(tmp_path / "pile", 17)
        folder = pretrain(num_train_epochs=3, max_steps=None, dataset=pile, channels=3)
        assert [line["epoch"] for line in lines_of(folder)] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]

    def test_previews_ten_in_the_run_by_default(self, pretrain):
        folder = pretrain(max_steps=20, preview_steps=None)
        assert len(list((folder / "previews").iterdir())) == 10


class TestOutputFolder:
    def test_output_folder_that_holds_a_run(self, pretrain, refused):
        folder = pretrain(name="run")
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        error = refused(name="run")
        assert error.argument == "output_dir" and str(folder) in str(error)
        assert "`overwrite_output_dir`" in str(error) and '`resume_from_checkpoint="auto"`' in str(error)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        pretrain(name="run", overwrite_output_dir=True, max_steps=1)
        assert checkpoints_of(folder) == [1]
        assert len(lines_of(folder)) == 1

    @pytest.mark.parametrize(
        ("arguments", "mistake"),
        [
            ({}, {"dataset": "/no/such/folder"}),
            ({}, {"overrides": {"hiden_size": 3}}),
            ({}, {"per_device_train_batch_size": 2000}),
            ({}, {"overrides": {"num_attention_heads": 3}}),
            ({"image_cache": "disk", "image_cache_dir": "/dev/null/cache"}, {}),
        ],
    )
    def test_overwriting_loses_nothing_before_the_new_run_can_start(self, pretrain, refused, arguments, mistake):
        folder = pretrain(name="run")
        before = {path.name for path in folder.iterdir()}
        refused(name="run", overwrite_output_dir=True, **arguments, **mistake)
        assert {path.name for path in folder.iterdir()} == before
        assert checkpoints_of(folder) == [2]

    def test_output_folder_below_a_file(self, refused, tmp_path):
        (tmp_path / "file").write_text("in the way")
        error = refused(name="file/out")
        assert error.argument == "output_dir" and f"{tmp_path}/file/out" in str(error)

    def test_checkpoint_that_is_none(self, refused, tmp_path):
        assert refused(resume_from_checkpoint=tmp_path).argument == "resume_from_checkpoint"


class TestExport:
    def test_a_finished_run_gets_other_weights(self, pretrain):
        """It is finished for the weights that its folder has, and no others."""
        folder = pretrain(base_learning_rate=0.05, max_steps=3)
        log = lines_of(folder)
        assert json.loads((folder / "run_state.json").read_text())["exported"] == "teacher"
        pretrain(resume_from_checkpoint="auto", export="student", base_learning_rate=0.05, max_steps=3)
        assert_equal(weights_in(folder), weights_in(checkpoint(folder, 3) / "model.safetensors"))
        assert json.loads((folder / "run_state.json").read_text())["exported"] == "student"
        assert "| weights in this folder | student |" in (folder / "README.md").read_text()
        assert lines_of(folder) == log

    @pytest.mark.parametrize("name", ["model.safetensors", "README.md", "run_state.json"])
    def test_what_a_finished_run_lacks_is_written_again(self, pretrain, name):
        folder = pretrain(max_steps=2)
        before = weights_in(folder)
        (folder / name).unlink()
        pretrain(resume_from_checkpoint="auto", max_steps=2)
        assert (folder / name).exists()
        assert_equal(weights_in(folder), before)


class TestFunction:
    """`pretrain` as Python calls it."""

    def test_result(self, forget_accelerators, tmp_path):
        result = pretrain_images(**arguments_of(tmp_path / "out"))
        assert result.output_dir == tmp_path / "out"
        assert result.metrics == lines_of(tmp_path / "out")[-1]
        assert isinstance(result.model, SiTForPreTraining) and not result.model.training
        assert_equal(dict(result.model.state_dict()), weights_in(tmp_path / "out"))
        assert isinstance(result.processor, SiTImageProcessor)

    def test_recipe_gives_defaults(self, forget_accelerators, tmp_path):
        arguments = arguments_of(tmp_path / "out")
        recipe = {name: str(value) if name == "output_dir" else value for name, value in arguments.items()}
        del recipe["dataset"], recipe["output_dir"]
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        pretrain_images("digits", tmp_path / "out", recipe=tmp_path / "recipe.yaml", max_steps=3)
        assert len(lines_of(tmp_path / "out")) == 3

    def test_images_in_memory(self, pretrain):
        folder = pretrain(dataset=load_images("digits").train.select(range(20)))
        assert len(lines_of(folder)) == 2

    def test_settings_of_a_process_are_those_of_its_newest_call(self, forget_accelerators, tmp_path):
        """Accelerate keeps precision and device for a whole process: after a run, a dry run, a mistake, other commands."""
        precision = torch.get_float32_matmul_precision()
        rounded = arguments_of(tmp_path / "rounded", mixed_precision="bf16", tf32=True)
        plain = arguments_of(tmp_path / "plain", mixed_precision="no", overwrite_output_dir=True)

        def mistake():
            with pytest.raises(SiTError):
                pretrain_images(**{**rounded, "method": "none"})

        def finetune():
            arguments = {"max_steps": 1, "bf16": True, "use_cpu": True}
            modeling_sit.finetune(tmp_path / "rounded", "digits", tmp_path / "classifier", **arguments)

        for earlier in (
            lambda: pretrain_images(**rounded),
            lambda: pretrain_images(**{**rounded, "dry_run": True, "overwrite_output_dir": True}),
            mistake,
            finetune,
            lambda: modeling_sit.evaluate(tmp_path / "rounded", "digits", protocols=["knn"], device="cpu"),
        ):
            earlier()
            assert torch.get_float32_matmul_precision() == precision
            pretrain_images(**plain)
            assert "| precision | float32 |" in (tmp_path / "plain" / "README.md").read_text()

    def test_unknown_argument(self, pretrain):
        with pytest.raises(TypeError, match=r"'learning_rat'.*did you mean"):
            pretrain(learning_rat=1)

    def test_transformers_logs_as_it_did(self, pretrain):
        """The library leaves the settings of other libraries alone."""
        before = transformers.logging.get_verbosity()
        pretrain()
        assert transformers.logging.get_verbosity() == before
