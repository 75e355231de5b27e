"""The arguments of sharing: none is silently ignored, and none takes a token; the license is one of the Hub's identifiers."""

from dataclasses import fields

import pytest

from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.hub.arguments import CardArguments, HubArguments
from modeling_sit.runtime.errors import SiTError


@pytest.mark.parametrize(
    "argument", [{"hub_model_id": "ada/vit"}, {"hub_private_repo": True}, {"hub_strategy": "checkpoint"}]
)
def test_arguments_that_do_nothing_are_refused(argument):
    with pytest.raises(SiTError, match="push_to_hub") as error:
        HubArguments(**argument)
    assert error.value.argument in argument
    assert HubArguments(**argument, push_to_hub=True).push_to_hub


@pytest.mark.parametrize("license", ["apache-2.0", "cc-by-nc-4.0", "other", None])
def test_license(license):
    assert CardArguments(license=license).license == license


@pytest.mark.parametrize("license", ["Apache 2.0", "", "-mit", "MIT", "a\nb"])
def test_no_license(license):
    with pytest.raises(SiTError) as error:
        CardArguments(license=license)
    assert error.value.argument == "license"


@pytest.mark.parametrize(
    "flags", [["--hub_model_id", "ada/vit"], ["--hub_private_repo"], ["--hub_strategy", "checkpoint"]]
)
def test_flags_that_do_nothing_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        RecipeArgumentParser((HubArguments,)).parse(flags)
    assert flags[0] in capsys.readouterr().err
    (arguments,) = RecipeArgumentParser((HubArguments,)).parse([*flags, "--push_to_hub"])
    assert arguments.push_to_hub


class TestFinetuning:
    """Fine-tuning's flags are those of transformers' `Trainer` too, which has others of its own for the Hub."""

    def parse(self, *flags):
        groups = (FinetuningArguments, FinetuningTrainingArguments, HubArguments)
        return RecipeArgumentParser(groups).parse(
            ["--model_name_or_path", "m", "--dataset", "d", "--output_dir", "o", "--use_cpu", *flags]
        )

    def test_trainer_never_pushes(self):
        flags = ("--push_to_hub", "--hub_model_id", "ada/vit", "--hub_strategy", "checkpoint", "--hub_private_repo")
        _, training, hub = self.parse(*flags)
        assert (hub.push_to_hub, hub.hub_model_id, hub.hub_strategy, hub.hub_private_repo) == (
            True,
            "ada/vit",
            "checkpoint",
            True,
        )
        assert not training.push_to_hub
        assert training.hub_model_id is None

    @pytest.mark.parametrize("flag", ["--hub_token", "--hub_always_push", "--hub_revision", "--push_to_hub_token"])
    def test_trainers_other_flags_are_unknown(self, flag, capsys):
        with pytest.raises(SystemExit):
            self.parse(flag, "True")
        assert f"unknown flag {flag}" in capsys.readouterr().err

    def test_all_of_trainers_are_accounted_for(self):
        """A release that adds one of its own must not add a flag that does nothing, or a place for tokens."""
        own = {field.name for field in fields(HubArguments)}
        flags = {field.name for field in fields(FinetuningTrainingArguments) if field.init}
        assert {name for name in flags if "hub" in name or "token" in name} <= own | {
            "average_tokens_across_devices",
            "include_num_input_tokens_seen",
            "trackio_static_space_id",
        }
