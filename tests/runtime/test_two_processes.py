"""Two processes learn what one learns from all their images, replicated or sharded, and go on where they were."""

import pytest
import torch
from measures_on_two_processes import compute_evaluation, compute_measures
from methods_on_two_processes import compute_method
from two_processes import CONFIG, GRADIENT_CASES, compute_gradients, create_models, random_batch

from modeling_sit.pretraining.methods import METHODS

SYNCHRONizED = [case for case, (_, synchronized) in GRADIENT_CASES.items() if synchronized is not False]


def joined(case: str) -> dict[str, torch.Tensor]:
    """What one process computes that has the images of both."""
    return compute_gradients(None, case, random_batch(0))


class TestGradients:
    @pytest.mark.parametrize("case", SYNCHRONizED)
    def test_equal_those_of_one_process_with_the_joined_batch(self, replicated, case):
        expected = joined(case)
        found = [results[f"gradients.{case}"] for results in replicated]
        assert found[0].keys() == found[1].keys() == expected.keys()
        torch.testing.assert_close((found[0]["loss"] + found[1]["loss"]) / 2, expected["loss"])
        for name in expected.keys() - {"loss"}:
            # DDP gives both processes the same gradients; so are running statistics where batch norm knows of both.
            assert torch.equal(found[0][name], found[1][name]), name
        torch.testing.assert_close({**found[0], "loss": expected["loss"]}, expected, rtol=1e-4, atol=1e-5)

    def test_without_synchronized_batch_norm_they_do_not(self, replicated):
        """The check above can fail."""
        expected, found = joined("unsynchronized"), replicated[0]["gradients.unsynchronized"]
        name = "gradient.projection_head.mlp.0.weight"
        assert (found[name] - expected[name]).abs().max() > 0.1 * expected[name].abs().max()

    def test_every_loss_and_layer_takes_part(self):
        gradients = joined("all_losses")
        for part in (
            "decoder.projection",
            "projection_head.mlp.0",
            "rotation_head",
            "vit.embeddings.patch_embeddings",
        ):
            assert any(name.startswith(f"gradient.{part}") and value.any() for name, value in gradients.items()), part


class TestMethods:
    @pytest.mark.parametrize("engine", ["replicated", "sharded"])
    @pytest.mark.parametrize("name", METHODS)
    def test_gradients_and_state_equal_those_of_one_process_with_the_joined_batch(self, engine, name, request):
        expected = compute_method(None, name)
        found = [results[f"methods.{name}"] for results in request.getfixturevalue(engine)]
        assert found[0].keys() == found[1].keys() == expected.keys()
        assert any(value.any() for key, value in expected.items() if key.startswith("gradient."))
        torch.testing.assert_close((found[0]["loss"] + found[1]["loss"]) / 2, expected["loss"], rtol=1e-4, atol=1e-5)
        for key in expected.keys() - {"loss"}:
            assert torch.equal(found[0][key], found[1][key]), key
            torch.testing.assert_close(found[0][key], expected[key], rtol=1e-3, atol=1e-5, msg=key)


class TestMeasures:
    def test_of_two_processes_equal_those_of_one_with_all_images(self, replicated):
        expected = compute_measures(None)
        assert 0 < expected["map"] < 1 and 0 < expected["mask_map"] < 1 and 0 < expected["mean_iou"] < 1
        for results in replicated:
            torch.testing.assert_close(results["measures"], expected, rtol=0, atol=0, equal_nan=True)

    def test_a_trainer_on_two_processes_measures_what_it_does_on_one(self, replicated, tmp_path):
        expected = compute_evaluation(None, tmp_path)
        assert 0 < expected["mar_100"] < 1 and expected["loss"] > 0
        for results in replicated:
            torch.testing.assert_close(results["evaluation"], expected, rtol=1e-6, atol=0, equal_nan=True)


class TestRuns:
    @pytest.mark.parametrize("engine", ["replicated", "sharded"])
    def test_resumed_is_uninterrupted_bit_for_bit(self, engine, request):
        runs = request.getfixturevalue(engine)[0]["runs"]
        names = {name.removeprefix("weights.") for name in runs if name.startswith("weights.")}
        assert names
        for name in names:
            assert torch.equal(runs[f"resumed.{name}"], runs[f"weights.{name}"]), name

    def test_sharded_learns_what_replicated_learns(self, replicated, sharded):
        expected, found = replicated[0]["runs"], sharded[0]["runs"]
        assert found.keys() == expected.keys()
        torch.testing.assert_close({**found, "local_values": 0}, {**expected, "local_values": 0}, rtol=1e-4, atol=1e-5)

    def test_both_processes_clip_by_the_same_norm(self, replicated, sharded):
        for results in (replicated, sharded):
            assert torch.equal(results[0]["runs"]["norms"], results[1]["runs"]["norms"])

    def test_weights_are_whole_and_named_as_the_plain_models(self, sharded):
        runs = sharded[0]["runs"]
        student, teacher = create_models(seed=0)
        for role, model in (("student", student), ("teacher", teacher.model)):
            for name, value in model.state_dict().items():
                assert runs[f"weights.{role}.{name}"].shape == value.shape
        assert not any(name.startswith("weights.") for name in sharded[1]["runs"])  # on the main process only

    def test_student_and_teacher_learn(self, replicated):
        start, _ = create_models(seed=0)
        runs = replicated[0]["runs"]
        name = "vit.encoder.layer.0.attention.attention.query.weight"
        student, teacher = (runs[f"weights.{role}.{name}"] for role in ("student", "teacher"))
        assert not torch.equal(student, start.state_dict()[name])
        assert not torch.equal(student, teacher)

    def test_each_process_holds_half_of_student_and_teacher(self, replicated, sharded):
        whole, _ = replicated[0]["runs"]["local_values"]
        held = torch.stack([results["runs"]["local_values"] for results in sharded])
        assert (held.sum(dim=0) == whole).all()
        assert (held < 0.6 * whole).all()


class TestLaunches:
    @pytest.mark.parametrize(
        ("results", "engine"),
        [
            ("replicated", "MULTI_CPU"),
            ("sharded", "FSDP"),
            ("on_two_machines", "MULTI_CPU"),
            ("without_gpus", "MULTI_CPU"),
        ],
    )
    def test_each_configuration_starts_two_processes_that_know_each_other(self, results, engine, request):
        for process in request.getfixturevalue(results):
            assert process["engine"] == engine
            assert process["num_processes"] == 2

    @pytest.mark.parametrize("results", ["on_two_machines", "without_gpus"])
    def test_they_share_their_projections(self, replicated, results, request):
        for expected, found in zip(replicated, request.getfixturevalue(results), strict=True):
            for name, value in expected["gather"].items():
                assert torch.equal(found["gather"][name], value), name

    def test_they_know_each_other_in_later_runs_of_a_program(self, without_gpus):
        for process in without_gpus:
            assert process["later_runs"] == [1 + 2] * 20


def test_default_heads_are_what_is_checked():
    """The output norm and both hidden norms: the configuration leaves the heads' defaults alone but for their widths."""
    student, _ = create_models(seed=0)
    assert sum(isinstance(module, torch.nn.BatchNorm1d) for module in student.projection_head.mlp) == 3
    assert CONFIG["drop_path_rate"] == 0.0
