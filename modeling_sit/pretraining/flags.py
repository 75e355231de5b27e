"""All arguments of a pretraining run, in groups: those of every method, and those that only some methods have."""

from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any, get_type_hints

from modeling_sit.data.caching import ImageCacheArguments
from modeling_sit.data.image_datasets import dataset_name
from modeling_sit.data.streaming import StreamingArguments
from modeling_sit.data.views import ViewArguments
from modeling_sit.hub.arguments import HubArguments
from modeling_sit.pretraining.arguments import CorruptionArguments, ModelArguments, PretrainingArguments
from modeling_sit.pretraining.method import Method
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.model_setup import parse_config_overrides
from modeling_sit.pretraining.monitors import MonitorArguments
from modeling_sit.runtime.arguments import did_you_mean
from modeling_sit.runtime.errors import SiTError


def _arguments_of_methods() -> type:
    """A dataclass of the arguments that methods have of their own. Several methods may share one; each is `None` until it is
    given or chosen."""
    arguments, owners = {}, {}
    for name, method in METHODS.items():
        hints = get_type_hints(method.Arguments)
        for item in fields(method.Arguments):
            owners.setdefault(item.name, []).append(name)
            arguments.setdefault(item.name, (hints[item.name], item.metadata["help"]))
    return make_dataclass(
        "MethodArguments",
        [
            (name, hint, field(default=None, metadata={"help": f"{', '.join(owners[name])}: {text}"}))
            for name, (hint, text) in arguments.items()
        ],
    )


MethodArguments = _arguments_of_methods()


@dataclass
class PretrainingFlags:
    """All arguments of a run, in groups."""

    run: PretrainingArguments
    streaming: StreamingArguments
    cache: ImageCacheArguments
    model: ModelArguments
    corruption: CorruptionArguments
    views: ViewArguments
    monitors: MonitorArguments
    hub: HubArguments
    method: MethodArguments = field(default_factory=MethodArguments)

    @classmethod
    def classes(cls) -> tuple[type, ...]:
        """The argument dataclasses, in the order of the fields."""
        return tuple(get_type_hints(cls)[group.name] for group in fields(cls))

    def settings(self) -> dict[str, Any]:
        """Every argument's value by its name, as JSON knows it."""
        groups = (getattr(self, group.name) for group in fields(self))
        settings = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
        return {**settings, "dataset": dataset_name(self.run.dataset)}


def check_method(flags: PretrainingFlags) -> type[Method]:
    """The method that the user asks for.

    Raises:
        [`SiTError`]: If there is none of this name, or an argument is given that only other methods have, or one of its own is
            out of range.
    """
    name = flags.run.method
    if name not in METHODS:
        raise SiTError(
            f"no method {name!r}, only {', '.join(METHODS)}{did_you_mean(name, METHODS)}", argument="method"
        )
    method = METHODS[name]
    own = method.setting_names()
    for setting in _given(flags):
        owners = [other for other, each in METHODS.items() if setting in each.setting_names()]
        if owners and setting not in own:
            raise SiTError(
                f"is a setting of {', '.join(owners)}, and {name} has none of this name{did_you_mean(setting, own)}",
                argument=setting,
                remedy="leave it out, or choose another `method`",
            )
    method.Arguments(**{item.name: getattr(flags.method, item.name) for item in fields(method.Arguments)})
    return method


def _given(flags: PretrainingFlags) -> list[str]:
    """Names of arguments that differ from their defaults, and of fields of the configuration that are given."""
    given = []
    for group in (getattr(flags, item.name) for item in fields(flags)):
        for item in fields(group):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            if getattr(group, item.name) != default:
                given.append(item.name)
    return [*given, *parse_config_overrides(flags.model.config_overrides)]
