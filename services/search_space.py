"""Search spaces: the ten hyper-parameters of the paper's Table 1, and spaces that users define.

A space is a mapping from a parameter to its options (a list) or its range (`low`, `high`), in JSON or YAML:

    activation: [ReLU, ELU]
    dropout: {low: 0.0, high: 0.5}
    learning_rate: {low: 0.00001, high: 0.001, log: true}

A parameter that is not in a space keeps its default: for the ten of Table 1 the paper's best configuration
on CK+ (Table 2), for the others the study's `training` settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from services.errors import InvalidInput, NotFound
from services.replies import extra_fields
from services.yaml_text import parse_yaml

ParameterValue = bool | int | float | str
Value = StrictBool | StrictInt | StrictFloat | StrictStr

FLOAT_DIGITS = 4
"""Decimals of dropout (paper: 0.2511), and significant digits of other floats; rounding lets equal folds be
recognised."""


class Hyperparameters(BaseModel):
    """One configuration of Table 1; the defaults are the paper's best on CK+ (Table 2)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimization: Literal["Lookahead+Adam", "Adam"] = Field("Adam", title="Optimization")
    clahe: bool = Field(True, title="CLAHE")
    normalization: bool = Field(False, title="Normalization")
    activation: Literal["ReLU", "ELU", "pReLU", "leaky ReLU", "Mish"] = Field("ReLU", title="Activation")
    loss_weights: bool = Field(False, title="Loss weights")
    temporal_size: Literal[1, 3, 5, 7, 9] = Field(3, title="Temporal size")
    initializer: Literal["Xavier uniform", "Xavier normal"] = Field("Xavier uniform", title="Initializer")
    pooling_layer: Literal["AvgPooling", "MaxPooling"] = Field("AvgPooling", title="Pooling layer")
    second_conv_layer: bool = Field(False, title="Second ConvLayer")
    dropout: float = Field(0.2511, ge=0.0, le=1.0, title="Dropout")


class TunableSettings(BaseModel):
    """Settings beyond Table 1 that a space may also search; otherwise they are fixed for a study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(64, ge=1, le=256, title="Width", description="filters of the first group (paper: 64)")
    batch_size: int = Field(
        30, ge=2, le=4096, title="Batch size", description="clips per batch; batch norm needs two"
    )
    learning_rate: float = Field(1e-4, gt=0.0, le=1.0, title="Learning rate")
    epochs: int = Field(16, ge=1, le=1000, title="Epochs", description="maximum training epochs per fold")
    bn_momentum: float = Field(0.1, gt=0.0, le=1.0, title="BN momentum")


class Range(BaseModel):
    """All values from `low` to `high`, both included; `log` searches the exponent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low}) must be above 0 if log is true")
        return self


class SearchSpace(RootModel[dict[str, tuple[Value, ...] | Range]]):
    """The parameters that a study searches, in the order given."""

    model_config = ConfigDict(frozen=True)

    @field_validator("root", mode="before")
    @classmethod
    def _well_formed(cls, root: Any, info: ValidationInfo) -> Any:
        # Checked here, to name parameter and value: pydantic's errors for a union describe the wrong branch.
        for name, domain in root.items() if isinstance(root, Mapping) else ():
            if isinstance(domain, Mapping):
                try:
                    Range.model_validate(domain, extra=extra_fields(info))
                except ValidationError as error:
                    raise ValueError(f"{name} = {domain!r}: {first_problem(error)}") from error
            elif isinstance(domain, list | tuple):
                for option in domain:
                    if not isinstance(option, ParameterValue):
                        raise ValueError(f"unknown option {option!r} of {name}; give text, numbers or booleans")
            elif not isinstance(domain, Range):
                raise ValueError(f"{name} = {domain!r}: give a list of options, or a range with low and high")
        return root

    @field_validator("root")
    @classmethod
    def _known(cls, root: dict[str, tuple[Value, ...] | Range]) -> dict[str, tuple[Value, ...] | Range]:
        if not root:
            raise ValueError("a space needs at least one parameter")
        for name, domain in root.items():
            if name not in PARAMETERS:
                raise ValueError(f"unknown parameter {name!r}; known are {', '.join(PARAMETERS)}")
            if isinstance(domain, Range):
                if not _is_number(name):
                    raise ValueError(f"{name} takes a list of options, not a range")
                check_value(name, _as_declared_type(name, domain.low))
                check_value(name, _as_declared_type(name, domain.high))
            else:
                if not domain:
                    raise ValueError(f"{name} has no options")
                for index, option in enumerate(domain):
                    check_value(name, option)
                    if option in domain[:index]:
                        raise ValueError(f"{name} lists the option {option!r} twice; remove one")
        return root

    def items(self) -> Iterator[tuple[str, tuple[Value, ...] | Range]]:
        """Parameters and their domains, in order."""
        return iter(self.root.items())

    def __len__(self) -> int:
        return len(self.root)

    def complete(self, parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters, with a value for each one of the space that they do not name.

        That value is the space's only option if it has one, otherwise the default.

        Args:
            parameters: part of a configuration; values are not checked.
            defaults: a value for each parameter of the space.

        Raises:
            InvalidInput: the default of a parameter that is not named is outside the space.
        """
        added = {}
        for name, domain in self.items():
            if name in parameters:
                continue
            value = domain[0] if not isinstance(domain, Range) and len(domain) == 1 else defaults[name]
            if _fit(name, value, domain) is None:
                raise InvalidInput(
                    f"{name} is not named, and its default {value!r} is outside the study's space; name it",
                    field=f"parameters.{name}",
                )
            added[name] = value
        return {**parameters, **added}

    def canonicalize(self, parameters: Mapping[str, Any]) -> dict[str, ParameterValue]:
        """The parameters as they are stored and trained: in the space's order, rounded, whole numbers as int.

        Raises:
            InvalidInput: a parameter is missing, unknown or outside its domain.
        """
        unknown = set(parameters) - set(self.root)
        if unknown:
            raise InvalidInput(f"unknown parameter {sorted(unknown)[0]!r}", field="parameters")
        canonical: dict[str, ParameterValue] = {}
        for name, domain in self.items():
            if name not in parameters:
                raise InvalidInput(f"parameter {name!r} is missing", field=f"parameters.{name}")
            value = parameters[name]
            fitting = _fit(name, value, domain)
            if fitting is None:
                raise InvalidInput(
                    f"{name} = {value!r} is outside the study's space", field=f"parameters.{name}"
                )
            canonical[name] = fitting
        return canonical


def paper_space() -> SearchSpace:
    """Table 1 of the paper: ten parameters with their options in the paper's order."""
    return SearchSpace.model_validate(
        {
            "optimization": ["Lookahead+Adam", "Adam"],
            "clahe": [True, False],
            "normalization": [True, False],
            "activation": ["ReLU", "ELU", "pReLU", "leaky ReLU", "Mish"],
            "loss_weights": [True, False],
            "temporal_size": [1, 3, 5, 7, 9],
            "initializer": ["Xavier uniform", "Xavier normal"],
            "pooling_layer": ["AvgPooling", "MaxPooling"],
            "second_conv_layer": [True, False],
            "dropout": {"low": 0.0, "high": 1.0},
        }
    )


def load_space(path: Path) -> SearchSpace:
    """Read a space from a YAML or JSON file.

    Raises:
        NotFound: no such file.
        InvalidInput: not YAML or JSON, or not a space; the message names the parameter.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFound(f"cannot read the space file {path}: {error.strerror}", field="space") from error
    try:
        return SearchSpace.model_validate(parse_yaml(content.decode("utf-8"), str(path), "space"))
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not text in UTF-8", field="space") from error
    except ValidationError as error:
        raise InvalidInput(f"{path}: {first_problem(error)}", field="space") from error


def check_value(name: str, value: Any) -> None:
    """Check that the parameter can have this value.

    Raises:
        ValueError: it cannot; the message names the parameter and its possible values.
    """
    options = getattr(PARAMETERS[name].annotation, "__args__", None)
    if options:
        # Types are compared too, because True and 1.0 equal 1 in Python.
        if not any(value == option and type(value) is type(option) for option in options):
            raise ValueError(f"unknown option {value!r} of {name}; known are {', '.join(map(str, options))}")
        return
    try:
        _ADAPTERS[name].validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(f"unknown option {value!r} of {name}; {first_problem(error)}") from error


def title_of(name: str) -> str:
    """The name of a parameter as the paper prints it, such as `Second ConvLayer`."""
    return PARAMETERS[name].title or name


def first_problem(error: ValidationError) -> str:
    """The first problem of a pydantic error in one line: where, then what."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def _is_number(name: str) -> bool:
    return PARAMETERS[name].annotation in (int, float)


def _as_declared_type(name: str, value: Any) -> Any:
    if PARAMETERS[name].annotation is int:
        return int(value) if float(value).is_integer() else value
    return float(value)


def _fit(name: str, value: Any, domain: tuple[Value, ...] | Range) -> ParameterValue | None:
    """The canonical value; None if it is outside the domain."""
    return _in_range(name, value, domain) if isinstance(domain, Range) else _option(value, domain)


def _option(value: Any, options: tuple[Value, ...]) -> Value | None:
    return next((o for o in options if o == value and isinstance(o, bool) == isinstance(value, bool)), None)


def _in_range(name: str, value: Any, domain: Range) -> int | float | None:
    """The canonical value; None if it is no number of this range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not domain.low <= value <= domain.high:
        return None
    number = _as_declared_type(name, value)
    if PARAMETERS[name].annotation is int:
        return number if isinstance(number, int) else None
    return _round(name, number, domain)


def _round(name: str, value: float, domain: Range) -> float:
    # Decimals only for dropout: a learning rate of 0.00012345 would become 0.0001.
    by_decimals = name == "dropout"
    rounded = round(value, FLOAT_DIGITS) if by_decimals else float(f"{value:.{FLOAT_DIGITS}g}")
    return min(max(rounded, domain.low), domain.high)


PARAMETERS = {**Hyperparameters.model_fields, **TunableSettings.model_fields}
_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(field.rebuild_annotation())
    for model in (Hyperparameters, TunableSettings)
    for name, field in model.model_fields.items()
}
