"""Paths to models: what is said of one that holds none."""

import pytest

from modeling_sit.interop.paths import check_exists
from modeling_sit.runtime.errors import SiTError


def test_a_checkpoint_names_the_folder_of_its_run(tmp_path):
    checkpoint = tmp_path / "out" / "checkpoints" / "step-00000020"
    checkpoint.mkdir(parents=True)
    with pytest.raises(SiTError, match="holds no model") as error:
        check_exists(str(checkpoint))
    assert error.value.remedy is None, "the run has no model yet"
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(SiTError, match="holds no model") as error:
        check_exists(str(checkpoint))
    assert error.value.remedy == f"give {tmp_path / 'out'}, which has the model of the newest checkpoint"
