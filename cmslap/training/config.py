"""The training configuration: a TOML file, read strictly into dataclasses.

An unknown key, a wrong type or an impossible value is one line that names the key; nothing is ignored silently.
"""

import dataclasses
import datetime
import inspect
import json
import math
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmslap.devices import PRECISIONS
from cmslap.errors import UserError, nearest
from cmslap.models import NETWORKS, Network
from cmslap.training import SHIPPED, shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


WORD = {int: "an integer", float: "a number", str: "a string", bool: "true or false", list: "an array", dict: "a table"}


class ConfigError(UserError, ValueError):
    """A training configuration that cannot be read or cannot be run."""


@dataclass
class DataConfig:
    train: list[str] = field(default_factory=list)  # folders, searched recursively
    resize: list[float] = field(default_factory=lambda: [0.5, 1.0])  # range of the random resize factor
    rotate: bool = True  # by multiples of 90 degrees
    flip: bool = True

    def check(self) -> None:
        _require(self.train, "data.train", self.train, "at least one folder of images")
        ordered = len(self.resize) == 2 and 0 < self.resize[0] <= self.resize[1] <= 1
        _require(ordered, "data.resize", self.resize, "[low, high] with 0 < low <= high <= 1")


@dataclass
class LossConfig:
    name: str = "charbonnier"
    eps: float = 1e-3  # charbonnier: sqrt(x² + eps²), in units of the [0, 1] range
    level_weights: list[float] = field(default_factory=list)  # of the HR-sized output, of the next smaller, ...

    def check(self) -> None:
        _one_of("loss.name", self.name, ("charbonnier", "l1"))
        _require(self.eps > 0, "loss.eps", self.eps, "a positive number")
        _require(all(w >= 0 for w in self.level_weights), "loss.level_weights", self.level_weights, "no negative one")


@dataclass
class OptimizerConfig:
    name: str = "adam"
    lr: float = 1e-3  # the schedule's peak
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # muon: the first is its momentum, too
    eps: float = 1e-8
    weight_decay: float = 0.0  # adam: L2 in the gradient; adamw, muon: decoupled
    clip: float = 0.0  # largest norm of the gradient; 0: no clipping

    def check(self) -> None:
        _one_of("optimizer.name", self.name, ("adam", "adamw", "muon"))
        _require(self.lr > 0, "optimizer.lr", self.lr, "a positive number")
        betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(betas, "optimizer.betas", self.betas, "two numbers in [0, 1)")
        _require(self.eps > 0, "optimizer.eps", self.eps, "a positive number")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        _require(self.clip >= 0, "optimizer.clip", self.clip, "0 (off) or a norm")


@dataclass
class ScheduleConfig:
    name: str = "cosine"
    warmup: int = 0  # steps of linear warmup; onecycle: of its rise
    final: float = 0.0  # cosine, onecycle: last learning rate as a share of the peak
    every: int = 0  # step: multiply by gamma every so many steps
    gamma: float = 0.5

    def check(self, steps: int) -> None:
        _one_of("schedule.name", self.name, ("constant", "step", "cosine", "onecycle"))
        _require(0 <= self.warmup < steps, "schedule.warmup", self.warmup, f"0 to steps - 1 = {steps - 1}")
        _require(0 <= self.final <= 1, "schedule.final", self.final, "a share of the peak, 0 to 1")
        _require(0 < self.gamma <= 1, "schedule.gamma", self.gamma, "a factor in (0, 1]")
        if self.name == "step":
            _require(self.every > 0, "schedule.every", self.every, "the number of steps between two drops")
        if self.name == "onecycle":
            _require(self.warmup > 0, "schedule.warmup", self.warmup, "for onecycle, the number of steps it rises")


@dataclass
class ValidationConfig:
    data: list[str] = field(default_factory=list)  # folders; none: no validation
    scales: list[int] = field(default_factory=list)  # none: those of the training
    every: int = 1000  # steps

    def check(self) -> None:
        _require(self.every > 0, "validation.every", self.every, "a number of steps")


@dataclass
class Config:
    """Everything a run depends on besides the files it reads."""

    out: str  # the run's directory, made by the run
    steps: int
    batch: int  # images a step over all scales and processes
    patch: int  # side of the HR patch in pixels, the same for every scale
    model: dict[str, Any]  # name, and the arguments of that network's constructor except scale
    data: DataConfig
    scales: list[int] = field(default_factory=lambda: [2, 4, 8])
    shares: list[int] = field(default_factory=list)  # of a batch's images, for each of scales; none: equal ones
    seed: int = 0
    init: str = ""  # weights to start from: a file, or the name of shipped ones
    device: str = "auto"  # cuda where there is one; or cpu, cuda, cuda:1, ...
    precision: str = "float32"  # or bfloat16 (bf16), float16 (fp16): autocast
    channels_last: bool = True
    compile: bool = False
    graph: bool = False  # forward and backward as CUDA graphs, one a scale; only on a GPU
    ema: float = 0.999  # decay of the averaged weights, which are what is validated and exported
    log_every: int = 100  # steps
    checkpoint_every: int = 1000  # steps
    tensorboard: bool = False  # events for TensorBoard too (extra "tensorboard")
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def check(self) -> None:
        _require(self.out, "out", self.out, "a directory")
        for name in ("steps", "patch", "log_every", "checkpoint_every"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "an integer of at least 1")
        network = self.network()
        for name, scales in (("scales", self.scales), ("validation.scales", self.validation_scales)):
            served = all(scale in network.scales for scale in scales)
            distinct = len(set(scales)) == len(scales) > 0
            _require(served and distinct, name, scales, f"distinct {network.scales_in_words}")
        _require(self.batch >= len(self.scales), "batch", self.batch, f"at least one image a scale: {len(self.scales)}")
        fitting = sum(self.shares) == self.batch and min(self.shares) > 0 and len(self.shares) == len(self.scales)
        expected = f"for each of {self.scales} a number of images, in all the batch of {self.batch}"
        _require(not self.shares or fitting, "shares", self.shares, expected)
        top, unit = max(self.scales), math.lcm(*self.scales)
        which = "the largest scale" if unit == top else "every scale"
        _require(self.patch % unit == 0, "patch", self.patch, f"a multiple of {which}, {unit}")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "an integer from 0 to 2^63 - 1")
        _require(0 <= self.ema < 1, "ema", self.ema, "a decay in [0, 1)")
        _one_of("precision", self.precision, tuple(PRECISIONS))
        self.data.check()
        self.loss.check()
        self.optimizer.check()
        self.schedule.check(self.steps)
        self.validation.check()
        levels = len(self.build_model().output_scales(top))
        given = self.loss.level_weights
        _require(len(given) in (0, levels), "loss.level_weights", given, f"one weight for each of {levels} levels")

    @property
    def counts(self) -> dict[int, int]:
        """Images a step of each scale: ``shares``, or equal ones, what is left over going to the largest scales."""
        if self.shares:
            return dict(zip(self.scales, self.shares, strict=True))
        share, rest = divmod(self.batch, len(self.scales))
        ordered = sorted(self.scales, reverse=True)
        return {scale: share + (ordered.index(scale) < rest) for scale in self.scales}

    @property
    def validation_scales(self) -> list[int]:
        return self.validation.scales or self.scales

    def network(self) -> type[Network]:
        """The network's class."""
        name = self.model.get("name")
        _one_of("model.name", name, tuple(NETWORKS))
        return NETWORKS[name]

    def build_model(self) -> Network:
        """A freshly initialised network; one that is made for a scale, for the largest in use."""
        network = self.network()
        arguments = {key: value for key, value in self.model.items() if key != "name"}
        parameters = list(inspect.signature(network).parameters)
        accepted = [key for key in parameters if key != "scale"]
        _check_keys(arguments, "model", accepted)
        if "scale" in parameters:
            arguments["scale"] = max(*self.scales, *self.validation_scales)
        try:
            return network(**arguments)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error


def _require(condition: object, key: str, value: object, accepted: str) -> None:
    if not condition:
        raise ConfigError(f"{key} = {value!r}: expected {accepted}")


def _one_of(key: str, value: object, accepted: Sequence[str]) -> None:
    near = nearest(str(value), accepted)
    _require(value in accepted, key, value, f"one of {', '.join(accepted)}{near}")


def _check_keys(table: dict[str, Any], name: str, accepted: Sequence[str]) -> None:
    where = f"table [{name}]" if name else "the top level"
    for key in table:
        if key not in accepted:
            hint = nearest(key, accepted) or f"; it takes {', '.join(accepted)}"
            raise ConfigError(f"unknown key {key!r} in {where}{hint}")


def _typed(value: Any, wanted: Any, key: str) -> Any:  # noqa: ANN401 - a TOML value
    """``value`` as ``wanted`` (a field's annotation); an integer passes for a float and nothing else converts."""
    is_table = dataclasses.is_dataclass(wanted)
    kind = dict if is_table else typing.get_origin(wanted) or wanted
    if type(value) is datetime.date:
        value = value.isoformat()  # out=2026-01-31 names a folder
    if wanted == list[str] and type(value) is str:
        value = [value]  # data.train=DIR is easier to type than data.train='["DIR"]'
    if kind is float and type(value) is int:
        value = float(value)
    _require(type(value) is kind, key, value, WORD[kind])
    _require(kind is not float or math.isfinite(value), key, value, "a finite number")
    if kind is list:
        (element,) = typing.get_args(wanted)
        return [_typed(item, element, key) for item in value]
    return _table(wanted, value, key) if is_table else value


def _table(cls: type, table: dict[str, Any], name: str) -> Any:  # noqa: ANN401 - an instance of cls
    hints = typing.get_type_hints(cls)
    prefix = f"{name}." if name else ""
    _check_keys(table, name, list(hints))
    for item in dataclasses.fields(cls):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in table:
            raise ConfigError(f"{prefix}{item.name} is missing")
    return cls(**{key: _typed(value, hints[key], prefix + key) for key, value in table.items()})


def from_dict(table: dict[str, Any]) -> Config:
    """A checked :class:`Config` from TOML-like tables."""
    config = _table(Config, table, "")
    config.check()
    return config


def flat(table: dict[str, Any], prefix: str = "", dot: str = ".") -> dict[str, Any]:
    """Nested tables as one with dotted keys, as they are typed on the command line."""
    pairs: dict[str, Any] = {}
    for key, value in table.items():
        pairs |= flat(value, f"{prefix}{key}{dot}", dot) if isinstance(value, dict) else {prefix + key: value}
    return pairs


def _apply(table: dict[str, Any], override: str) -> None:
    """Set ``a.b=value`` in nested tables; the value is TOML, or a bare string where it is not."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{override!r}: expected key=value, for example optimizer.lr=1e-3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    _set(table, key, value)


def _set(table: dict[str, Any], key: str, value: object) -> None:
    *tables, last = key.split(".")
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"'{key}={value}': {name!r} is not a table")
    table[last] = value


def find(name: str) -> Path:
    """The file of ``name``: a path, or the name of a configuration that comes with the package."""
    path = Path(name)
    if path.is_file():
        return path
    if name in shipped():
        return SHIPPED / f"{name}.toml"
    raise ConfigError(
        f"no configuration {name!r}: expected a TOML file, a record.json, or one of {', '.join(shipped())}"
    )


def _read(path: Path, begun: bool) -> dict[str, Any]:
    """The tables of a TOML file, or the configuration in a record: the run's last or, if ``begun``, its first."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return tomllib.loads(text)
        record = json.loads(text)
        table = dict(record["config"])
        for part in reversed(record.get("resumed", []) if begun else []):
            for key, (before, _) in part["changes"].items():
                _set(table, key, before)
        return table
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a training record, a JSON object with the key 'config'") from error


def load(name: str, overrides: Sequence[str] = (), begun: bool = False) -> Config:
    """Read a TOML file, a shipped configuration's or a record's, and apply ``key=value`` overrides.

    Of a run that was resumed with other settings, ``begun`` takes those it began with. Raises :class:`ConfigError`.
    """
    path = find(name)
    table = _read(path, begun)
    for override in overrides:
        _apply(table, override)
    try:
        return from_dict(table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
