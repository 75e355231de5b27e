"""The pretraining runs of a comparison of methods: their length by the budget, and the small search of their settings."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from modeling_sit.data.description import told
from modeling_sit.evaluation.encoder import load_encoder
from modeling_sit.evaluation.feature_arguments import POOLINGS, FeatureArguments
from modeling_sit.evaluation.features import extract_features
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.evaluation.protocols import PROTOCOLS
from modeling_sit.evaluation.results import read_results, write_results
from modeling_sit.evaluation.subsets import draw_validation, features_of_rows
from modeling_sit.experiments.budgets import StepSize, steps_within
from modeling_sit.experiments.compared_images import TEST_FRACTION, TEST_SEED, ComparedImages
from modeling_sit.experiments.comparison_runs import Announce
from modeling_sit.experiments.grid import going_on, results_of
from modeling_sit.experiments.methods_arguments import MethodsComparisonArguments
from modeling_sit.experiments.pretraining_runs import (
    DEFAULTS,
    OURS,
    PRETRAINING,
    Diverged,
    PlannedRun,
    check_diverged,
    plan_run,
    pretrain_in,
    read_pretraining_recipe,
)
from modeling_sit.experiments.trials import Trial
from modeling_sit.pretraining.checkpoints import read_output_state
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.model_setup import parse_config_overrides
from modeling_sit.pretraining.resolve import settings_of_others
from modeling_sit.pretraining.run import pretrain
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.arguments import without_replaced
from modeling_sit.runtime.errors import SiTError

# Of the preset's learning rate. The first is the one that is kept where the others are not better.
FACTORS = (1.0, 1 / 3, 3.0)
# The protocols that choose; their mean decides. A linear probe with one penalty: to choose that too would take most of the time.
CHOOSING = ("knn", "linear")
OTHER_WEIGHTS = "other-weights"
# What a recipe says otherwise: the methods and their budget are ours, too.
OURS_OF_METHODS = (*OURS, "method", "max_steps", "num_train_epochs")
SIZES = ("model_size", "per_device_train_batch_size")
NOTED = ("method", "seed", "base_learning_rate")


class MethodRuns:
    """
    The pretraining runs of a comparison.

    Args:
        arguments ([`MethodsComparisonArguments`]): What is compared.
        images ([`ComparedImages`]): Their images. Pretraining reads those of train, without labels.
        announce (callable): Says which run begins.
    """

    def __init__(self, arguments: MethodsComparisonArguments, images: ComparedImages, announce: Announce):
        self.arguments = arguments
        self.images = images
        self.announce = announce
        self.output_dir = Path(arguments.output_dir)
        self.plan = cache(self._plan)

    def pretrained(self, method: str, seed: int) -> Path:
        """The folder of a method's model."""
        return self.output_dir / f"pretrained-{method}-seed{seed}"

    def choose(self, method: str) -> Trial:
        """The settings of a method: the best of the search, or those of the preset."""
        if not self.arguments.tune:
            self.pretrain(method, self.arguments.seeds[0], None)
            return Trial(None, None, self._usual_pooling(method), {})
        trials = self.search(method)
        best = max(trials, key=lambda trial: trial.score)  # the first one of equals
        if best.score < 0:
            raise Diverged("the loss was not finite with any learning rate")
        return best

    def search(self, method: str) -> list[Trial]:
        """All trials of a method: its learning rates, then the other weights (student or teacher) of the best one, each with
        every pooling."""
        usual, *others = FACTORS
        trials = self._measure(method, usual, self.trial_name(usual), {})
        rate = trials[0].base_learning_rate
        for factor in others:
            trials += self._measure(
                method, factor, self.trial_name(factor), {"base_learning_rate": _rounded(rate * factor)}
            )
        best = max(trials, key=lambda trial: trial.score)
        if best.score >= 0 and self.has_choice_of_weights(method):
            factor = next(each for each in FACTORS if _rounded(rate * each) == _rounded(best.base_learning_rate))
            own = {} if factor == usual else {"base_learning_rate": best.base_learning_rate}
            export = "teacher" if best.export == "student" else "student"
            trials += self._measure(method, factor, OTHER_WEIGHTS, {**own, "export": export})
        return trials

    @staticmethod
    def trial_name(factor: float) -> str:
        """Name of the trial with this factor of the learning rate, in results and folders."""
        return f"rate-x{factor:.2g}"

    @staticmethod
    def has_choice_of_weights(method: str) -> bool:
        """Whether a method has a teacher, whose weights may be the better ones."""
        return "export" in METHODS[method].uses

    def pretrain(self, method: str, seed: int, choice: Trial | None) -> Path:
        """The folder of a method's model, pretrained with what was chosen, if that is not done yet."""
        run_dir = self.pretrained(method, seed)
        own = {}
        if choice is not None and choice.base_learning_rate is not None:
            self._take_over(method, seed, choice)
            own["base_learning_rate"] = choice.base_learning_rate
            if self.has_choice_of_weights(method):
                own["export"] = choice.export
        self._run(run_dir, method, seed, own)
        return run_dir

    def _take_over(self, method: str, seed: int, choice: Trial) -> None:
        """The search's run with the chosen rate is the run of the first seed."""
        if seed != self.arguments.seeds[0] or self.pretrained(method, seed).exists():
            return
        for factor in FACTORS:
            run_dir = self._tried(method, factor)
            state = read_output_state(run_dir)
            if state is not None and state.settings["base_learning_rate"] == choice.base_learning_rate:
                run_dir.rename(self.pretrained(method, seed))
                return

    def _tried(self, method: str, factor: float) -> Path:
        return self.output_dir / f"tuned-{method}-{self.trial_name(factor)}"

    def _measure(self, method: str, factor: float, name: str, own: Mapping[str, Any]) -> list[Trial]:
        """Pretrain with a rate, and measure each pooling on held-out images of train."""
        results_dir, run_dir = self.output_dir / f"tuned-{method}", self._tried(method, factor)

        def run(missing: list[str]) -> None:
            try:
                self._run(run_dir, method, self.arguments.seeds[0], own)
            except Diverged as error:
                print(f"{error.problem}: this rate is out", flush=True)
                rate = own.get("base_learning_rate") or self.plan(method).base_learning_rate
                found = {"base_learning_rate": rate, "export": None, "scores": {}}
            else:
                state = read_output_state(run_dir)
                rate = state.settings["base_learning_rate"]
                found = {"base_learning_rate": rate, "export": state.exported, "scores": self.held_out_scores(run_dir)}
            write_results(results_dir, {name: found})

        with going_on(run_dir):
            found = results_of(results_dir, [name], run)[name]
        scores = found.pop("scores") or {POOLINGS[0]: {}}
        return [Trial(**found, pooling=pooling, scores=values) for pooling, values in scores.items()]

    def held_out_scores(self, model: Path) -> dict[str, dict[str, float]]:
        """Of each pooling the values of the protocols that choose: fitted to four fifths of the labeled training images, and
        measured on the others. Empty where the features are not finite."""
        device = choose_device(None)
        encoder, processor = load_encoder(str(model))
        self.arguments.set_intensity_range(processor, encoder.config)
        both = FeatureArguments(pooling="token_mean")
        found = extract_features(encoder, self.images.train, processor, both, device=device, progress=False)
        if not found.features.isfinite().all():
            return {}
        names = self.images.label_names
        rows = draw_validation(found.labels, names, TEST_FRACTION, TEST_SEED)
        settings = ProtocolArguments(
            protocols=list(CHOOSING), linear_c=[1.0], knn_k=min(20, len(rows[0])), bootstrap_resamples=1
        )
        width = encoder.config.hidden_size
        columns = {"token": slice(0, width), "mean": slice(width, None), "token_mean": slice(0, None)}
        scores: dict[str, dict[str, float]] = {}
        for pooling in POOLINGS:
            parts = [features_of_rows(found, each) for each in rows]
            for part in parts:
                part.features = part.features[:, columns[pooling]]
            measured = {name: PROTOCOLS[name](*parts, names, settings, device) for name in CHOOSING}
            scores[pooling] = {name: result.metrics[0].value for name, result in measured.items()}
        return scores

    def _run(self, run_dir: Path, method: str, seed: int, own: Mapping[str, Any]) -> None:
        """Pretrain in a folder, or go on there, unless its model is of these weights already."""
        check_diverged(run_dir)
        state, is_trained = read_output_state(run_dir), PRETRAINING in read_results(run_dir)
        if is_trained and state.exported == own.get("export", state.exported):
            return

        def run(missing: list[str]) -> None:
            rate = (
                f", learning rate {own['base_learning_rate']:g} x batch / 256" if "base_learning_rate" in own else ""
            )
            weights = f", weights of the {own['export']}" if "export" in own else ""
            given = {**self._given(method), **self.length(method), **own, "seed": seed}
            kind, verb = (PRETRAINING, "Pretraining") if missing else (OTHER_WEIGHTS, "Writing other weights of")
            with self.announce(kind, f"{verb} {method}, seed {seed}{rate}{weights}"), told():
                if missing:
                    self._pretrain_in(run_dir, given)
                else:
                    pretrain(**given, output_dir=run_dir, resume_from_checkpoint="auto")

        with going_on(run_dir):
            if is_trained:
                run([])
            else:
                results_of(run_dir, [PRETRAINING], run)

    def _pretrain_in(self, run_dir: Path, given: Mapping[str, Any]) -> None:
        try:
            pretrain_in(run_dir, given, NOTED)
        except Diverged:
            raise
        except SiTError as error:
            raise error.renamed({"time_budget": "budget_value"}) from error

    def length(self, method: str) -> dict[str, Any]:
        """The arguments that say how long a run takes."""
        budget, value = self.arguments.budget, self.arguments.amount
        if budget == "seconds":
            return {"time_budget": f"{value:.3f}".rstrip("0").rstrip(".") + "s"}
        step = StepSize(1, 1, 1) if budget == "steps" else self.plan(method).step
        return {"max_steps": steps_within(budget, value, method, step)}

    def _plan(self, method: str) -> PlannedRun:
        try:
            return plan_run({**self._given(method), "max_steps": 1, "output_dir": self.output_dir})
        except SiTError as error:
            raise SiTError(f"{method}: {error.problem}", argument=error.argument, remedy=error.remedy) from error

    def _given(self, method: str) -> dict[str, Any]:
        """The arguments of every run of a method, but for its length, rate and seed."""
        recipe = self.arguments.pretraining_recipe
        values = {} if recipe is None else recipe_of(recipe, method)
        sizes = {name: value for name in SIZES if (value := getattr(self.arguments, name)) is not None}
        return {
            **DEFAULTS,
            **without_replaced(values, sizes),
            **self.images.arguments,
            **sizes,
            "validation_split": None,
            "method": method,
        }

    def _usual_pooling(self, method: str) -> str:
        """The tokens that the method's loss trains, as its configuration says."""
        config = self.pretrained(method, self.arguments.seeds[0]) / "config.json"
        return json.loads(config.read_text(encoding="utf-8")).get("pooling", POOLINGS[0])


def recipe_of(recipe: str, method: str) -> dict[str, Any]:
    """The values of a pretraining recipe that a method has, without those that a comparison sets itself.

    Raises:
        [`SiTError`]: If there is no such recipe, or it has an unknown key or a value of the wrong type.
    """
    values = read_pretraining_recipe(recipe, OURS_OF_METHODS)
    others = settings_of_others(METHODS[method])
    values = {name: value for name, value in values.items() if name not in others}
    if values.get("config_overrides"):
        overrides = parse_config_overrides(values["config_overrides"])
        own = [f"{name}={json.dumps(value)}" for name, value in overrides.items() if name not in others]
        values["config_overrides"] = ",".join(own)
    return values


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")
