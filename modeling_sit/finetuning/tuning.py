"""The peak learning rate and the number of steps of a run, chosen on images that are held out of training.

[`tune`] trains the run's model on a part of the training images with several rates and lengths, and measures each on the
rest: on the validation split, if there is one, else on a random part of every class of the training split. Test images
choose nothing.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.prepare import TASKS
from modeling_sit.finetuning.splits import held_out_draws
from modeling_sit.finetuning.training_arguments import AUTO, FinetuningTrainingArguments
from modeling_sit.finetuning.trials import Trial, Trials
from modeling_sit.hub.provenance import describe_duration
from modeling_sit.interop.convert_in import range_of
from modeling_sit.runtime.errors import SiTError

# Between two rates that are tried.
FACTOR = 3
# Rates that are tried beyond the first ones.
MAX_EXTENSIONS = 2
MAX_DOUBLING = 8


@dataclass(frozen=True)
class Tuning:
    """
    What was chosen.

    Args:
        learning_rate (`float`): Peak learning rate.
        max_steps (`int`): Number of steps.
        per_device_train_batch_size (`int`): Images in a batch of a device, in all trials.
        metric (`str`): Name of the metric that chose them, such as `accuracy`.
        chosen_on (`str`): What was held out, such as `20 % of train, 144 images`.
        still_rises (`bool`): Whether the number of steps was searched, and the metric still rose at the largest one that was
            allowed.
        trials (`list` of [`Trial`]): All of them, in the order in which they ran.
    """

    learning_rate: float
    max_steps: int
    per_device_train_batch_size: int
    metric: str
    chosen_on: str
    still_rises: bool
    trials: list[Trial]


def tune(arguments: FinetuningArguments, training_arguments: FinetuningTrainingArguments) -> Tuning:
    """Choose the learning rate and the number of steps of a run, each of them where it is `auto`.

    With `learning_rate="auto"` it tries [`FinetuningArguments.tuning_learning_rates`], and more beyond them if the best
    is at the edge. With `max_steps="auto"` it then doubles the number of steps, with the best rate, from
    [`FinetuningArguments.tuning_steps`] on, until the metric on the held-out images no longer rises, and tries the next
    smaller rate at that length. A rise has to be larger than half a standard error, and than what one image is worth, or for
    detection and segmentation one object, or a class in one image. Of rates that differ by less, the one with the smallest
    held-out loss is taken. Trials are in `tuning.json` in the output folder; those that are there are not run again. All
    processes of a run call this.

    Args:
        arguments, training_arguments: The run's arguments. They stay as they are.

    Returns:
        [`Tuning`]: Its rate and length are for a run on all the training images.

    Raises:
        [`SiTError`]: If the dataset, the model or an argument is wrong, no image can be held out, or no trial had a
            finite loss.
        [`TrainingInterrupted`]: If a signal ended a trial.
    """
    splits = TASKS[arguments.task].load_splits(arguments, training_arguments.seed, evaluates=False)
    splits.tell(range_of(arguments.model_name_or_path, arguments.intensity_range))
    draws, chosen_on = held_out_draws(splits, arguments.validation_fraction, training_arguments.seed)
    num_held_out = sum(draw.num_measured() for draw in draws)
    if num_held_out == 0:
        raise SiTError(
            f"nothing chooses a learning rate or a length: {chosen_on} have no objects",
            argument="validation_fraction",
            remedy="give a larger one, or a `validation_split` with objects",
        )
    trials = Trials(arguments, training_arguments, draws, len(splits.train))
    usual = trials.usual
    rate, steps = training_arguments.learning_rate, training_arguments.max_steps
    sweeps, doubles = rate == AUTO, steps == AUTO
    rates = [usual["learning_rate"] if rate is None else rate]
    if sweeps:
        rates = arguments.tuning_learning_rates or [
            _rounded(usual["learning_rate"] * factor) for factor in (1 / FACTOR, 1, FACTOR)
        ]
    first = (doubles and arguments.tuning_steps) or usual.num_steps
    limit = arguments.max_tuning_steps or MAX_DOUBLING * first
    if doubles and limit < first:
        first = limit
    limit = limit if doubles else first
    if trials.prints:
        print(f"choosing by {trials.metric_name} on {chosen_on}", flush=True)
    goes_on = bool(trials.runs)

    def measure(rate: float, steps: int) -> Trial:
        trial = trials.measure(rate, steps)
        if trials.prints and not goes_on and len(trials.finished) == 1 and math.isfinite(trial.metric):
            least, most = remaining_steps(len(rates), first, sweeps=sweeps, limit=limit)
            if most:
                remedy = "; a smaller max_tuning_steps makes it shorter" if limit > first else ""
                print(_estimate(trial, least, most) + remedy, flush=True)
        return trial

    best = search(rates, first, measure, num_held_out, sweeps=sweeps, limit=limit)
    if not math.isfinite(best.metric):
        raise SiTError(
            "no trial had a finite loss", argument="learning_rate", remedy="give lower `tuning_learning_rates`"
        )
    trials.write(best, chosen_on)
    if trials.prints:
        print(f"chosen: {best.describe(trials.metric_name)}", flush=True)
    rises = doubles and best.max_steps >= limit and is_rise(best, trials.finished, num_held_out)
    batch_size = usual["per_device_train_batch_size"]
    return Tuning(
        best.learning_rate, best.max_steps, batch_size, trials.metric_name, chosen_on, rises, trials.finished
    )


def search(
    rates: Sequence[float],
    steps: int,
    measure: Callable[[float, int], Trial],
    num_held_out: int,
    *,
    sweeps: bool,
    limit: int,
) -> Trial:
    """Find the best rate and length, as [`tune`] does.

    Args:
        rates (sequence of `float`): Rates to try first, in rising order.
        steps (`int`): Number of steps to try first.
        measure (callable): Runs a trial with a rate and a number of steps.
        num_held_out (`int`): Number of images, or what else the metric is a mean over, that each trial is measured on.
        sweeps (`bool`): Whether other rates than these may be tried.
        limit (`int`): Largest number of steps.

    Returns:
        [`Trial`]: The best one.
    """
    tried = {rate: measure(rate, steps) for rate in rates}
    best = _best(tried.values(), num_held_out)
    for _ in range(MAX_EXTENSIONS if sweeps else 0):
        rate = best.learning_rate
        if rate == max(tried):
            beyond = _rounded(rate * FACTOR)
        elif rate == min(tried):
            beyond = _rounded(rate / FACTOR)
        else:
            break
        tried[beyond] = measure(beyond, steps)
        best = _best(tried.values(), num_held_out)
    current = best
    while math.isfinite(current.metric) and current.max_steps < limit:
        longer = measure(current.learning_rate, min(limit, 2 * current.max_steps))
        # Where the metric is the same, the shorter one is as good.
        best = longer if longer.metric > best.metric else best
        if longer.metric <= current.metric + worth_noticing(current.metric, num_held_out):
            break
        current = longer
    if sweeps and best.max_steps > steps:
        lower = measure(_rounded(best.learning_rate / FACTOR), best.max_steps)
        best = _best((best, lower), num_held_out)
    return best


def remaining_steps(num_rates: int, steps: int, *, sweeps: bool, limit: int) -> tuple[int, int]:
    """How many steps [`search`] trains after its first trial, at least and at most, if every loss is finite.

    Args:
        num_rates (`int`): Number of rates to try first.
        steps, sweeps, limit: As of [`search`].
    """
    least, most = (num_rates - 1) * steps, (num_rates - 1 + (MAX_EXTENSIONS if sweeps else 0)) * steps
    longer = steps
    while longer < limit:
        is_first = longer == steps
        longer = min(limit, 2 * longer)
        least, most = least + longer * is_first, most + longer
    return least, most + (limit if sweeps and limit > steps else 0)


def _estimate(trial: Trial, least: int, most: int) -> str:
    """How long the rest of a search takes after its first trial, in words."""
    shortest, longest = (describe_duration(trial.seconds * steps / trial.max_steps) for steps in (least, most))
    if shortest == longest:
        return f"the rest of the search takes about {shortest}"
    return (
        f"the rest of the search takes about {shortest} at least, and up to {longest} if other rates or longer runs turn "
        "out better"
    )


def worth_noticing(metric: float, num_held_out: int) -> float:
    """The smallest rise of a metric, a fraction, that is taken for one: of one image in `num_held_out`, and of half the
    standard error. Both trials are measured on the same images, so their difference varies less than each of them."""
    standard_error = math.sqrt(max(0.0, metric * (1 - metric)) / num_held_out)
    return max(1 / num_held_out, standard_error / 2)


def is_rise(best: Trial, trials: Iterable[Trial], num_held_out: int) -> bool:
    """Whether a trial is better than every shorter one by more than noise; true if there is none."""
    shorter = [trial.metric for trial in trials if trial.max_steps < best.max_steps]
    return all(best.metric > metric + worth_noticing(metric, num_held_out) for metric in shorter)


def _best(trials: Iterable[Trial], num_held_out: int) -> Trial:
    """Of trials of one length. Among those whose metric is hardly less than the best one, the smallest loss decides: it says
    more than the few images on which they differ."""
    trials = list(trials)
    top = max(trial.metric for trial in trials)
    if not math.isfinite(top):
        return trials[0]
    least = top - worth_noticing(top, num_held_out)
    return min((trial for trial in trials if trial.metric >= least), key=lambda trial: (trial.loss, -trial.metric))


def _rounded(rate: float) -> float:
    return float(f"{rate:.1e}")
