"""Numbers as tables show them, and the files of a report."""

import csv
import json

import pytest
from matplotlib.figure import Figure

from modeling_sit.experiments.report import mean_and_std, over_seeds, with_interval, write_report
from modeling_sit.runtime.errors import SiTError


def test_numbers():
    assert mean_and_std([0.5]) == "50.0 %"
    assert mean_and_std([0.5, 0.7]) == "60.0 ± 14.1 %"
    assert with_interval(0.5, (0.4, 0.66)) == "50.0 % (40.0 to 66.0)"
    assert over_seeds(1) == "one seed" and "3 seeds" in over_seeds(3)


def test_files(tmp_path, capsys):
    lines = [{"cell": "a, b", "value": 0.1 + 0.2}, {"cell": "c"}]
    write_report(tmp_path, ["first", "second"], {"values": [1]}, {"results.png": Figure()}, lines)
    assert (tmp_path / "results.md").read_text() == "first\n\nsecond\n"
    assert json.loads((tmp_path / "results.json").read_text()) == {"values": [1]}
    assert (tmp_path / "results.png").stat().st_size > 100
    with (tmp_path / "results.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert (
        [row["cell"] for row in read] == ["a, b", "c"]
        and float(read[0]["value"]) == 0.1 + 0.2
        and read[1]["value"] == ""
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert "first\n\nsecond" in capsys.readouterr().out
    with pytest.raises(SiTError, match="nowhere") as error:
        write_report(tmp_path / "nowhere", ["first"], {}, {"results.png": Figure()})
    assert error.value.argument == "output_dir"
