"""scripts/benchmarks/transformers_steps.py: the classes of transformers have the methods' sizes, and it says what it measured."""

import json
import statistics

import pytest
import torch
from method_steps import prepare_runs
from transformers_steps import TWINS


@pytest.mark.parametrize("name", list(TWINS))
def test_twins_have_as_many_parameters(name, tmp_path):
    """Beside positions, which are parameters in some of the classes only, and mask tokens."""

    def count(model: torch.nn.Module) -> int:
        return sum(
            value.numel()
            for key, value in model.named_parameters()
            if "position" not in key and "pos_embed" not in key and "mask_token" not in key
        )

    method = prepare_runs([name], 2, 64, str(tmp_path))[name].method
    assert count(TWINS[name](method)) == count(method.student)


def test_it_prints_and_writes_what_it_measured(run_program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    output = tmp_path / "figures.json"
    assert run_program("benchmarks/transformers_steps", "--batch_size", 2, "--steps", 2, "--output", output) == 0
    results = json.loads(output.read_text())["results"]
    assert [each["method"] for each in results] == list(TWINS)
    for each in results:
        ratios = [own / other for own, other in zip(*each["seconds"].values(), strict=True)]
        assert each["ratio"] == pytest.approx(statistics.median(ratios)) and len(ratios) == 2
    assert f"| {results[-1]['ratio']:.2f} |" in capsys.readouterr().out.splitlines()[-1]
