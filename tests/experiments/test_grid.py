"""The folder of an experiment: claimed once, and nothing is run twice."""

import pytest

from modeling_sit.evaluation.results import write_results
from modeling_sit.experiments.grid import claim_folder, results_of
from modeling_sit.runtime.errors import SiTError


class TestClaimFolder:
    def test_other_settings(self, tmp_path):
        claim_folder(tmp_path, {"recipe": {"a": 1}, "dataset": "d"}, ["run-*"])
        claim_folder(tmp_path, {"recipe": {"a": 2}, "dataset": "d"}, ["run-*"])  # no run yet
        (tmp_path / "run-0").mkdir()
        claim_folder(tmp_path, {"recipe": {"a": 2}, "dataset": "d"}, ["run-*"])
        with pytest.raises(SiTError, match="another recipe, another dataset") as error:
            claim_folder(tmp_path, {"recipe": {"a": 1}, "dataset": "e"}, ["run-*"])
        assert error.value.argument == "output_dir"

    def test_overwrites_runs_and_nothing_else(self, tmp_path):
        claim_folder(tmp_path, {"a": 1}, ["run-*"])
        for name in ("run-0", "pretrained"):
            (tmp_path / name).mkdir()
        claim_folder(tmp_path, {"a": 2}, ["run-*"], overwrite=True)
        assert not (tmp_path / "run-0").exists() and (tmp_path / "pretrained").exists()

    def test_runs_without_settings_belong_to_another(self, tmp_path):
        (tmp_path / "run-0").mkdir()
        with pytest.raises(SiTError, match="another a"):
            claim_folder(tmp_path, {"a": 1}, ["run-*"])

    @pytest.mark.parametrize("damaged", [True, False])
    def test_folder_that_cannot_be_used(self, tmp_path, damaged):
        if damaged:
            (tmp_path / "run-0").mkdir()
            (tmp_path / "settings.json").write_text("{")
            folder = tmp_path
        else:
            (tmp_path / "file").write_text("in the way")
            folder = tmp_path / "file" / "out"
        with pytest.raises(SiTError, match=str(folder)) as error:
            claim_folder(folder, {"a": 1}, ["run-*"])
        assert error.value.argument == "output_dir"


def test_what_is_there_is_not_run_again(tmp_path):
    asked = []

    def run(missing):
        asked.append(missing)
        write_results(tmp_path, {name: {"accuracy": len(asked)} for name in missing})

    assert results_of(tmp_path, ["knn"], run) == {"knn": {"accuracy": 1}}
    assert results_of(tmp_path, ["knn", "linear"], run) == {"knn": {"accuracy": 1}, "linear": {"accuracy": 2}}
    assert results_of(tmp_path, ["linear"], run) == {"linear": {"accuracy": 2}}
    assert asked == [["knn"], ["linear"]]
