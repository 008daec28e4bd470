"""The network of a trial, read off the module that workers train, and drawn (the paper's Figs. 1, 3, 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

from report.figures import PAGE, VERMILLION
from services.contracts import StudySpec, configure
from services.search_space import Hyperparameters, ParameterValue, Range, SearchSpace, title_of
from worker.training.model import GROUPS, TemporalConv, build_model

Kind = Literal["conv", "pool", "dense"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A box of the drawing."""

    kind: Kind
    units: int
    """Filters of a convolution, units of a dense layer; channels of a pool."""

    kernel: tuple[int, ...]
    """(frames, width, height); empty for a dense layer."""

    optional: bool
    """There only where the second convolution of the first two groups is."""

    shape: tuple[int, ...]
    """(frames, height, width) of what comes out; empty for a dense layer."""


def layers_of(parameters: dict[str, ParameterValue], spec: StudySpec, classes: int) -> list[Layer]:
    """The layers of a configuration's network in their order, with a clip's shape after each."""
    hp, training = configure(parameters, spec.training)
    with torch.device("meta"):
        model = build_model(
            hp,
            width=training.width,
            classes=classes,
            frames=training.frames,
            frame_size=training.frame_size,
            bn_momentum=training.bn_momentum,
        )
    shape: tuple[int, ...] = model.clip_shape
    layers: list[Layer] = []
    group, in_group = 0, 0
    for module in [*model.features, *model.classifier]:
        if isinstance(module, TemporalConv):
            in_group += 1
            layers.append(
                Layer(
                    kind="conv",
                    units=module.out_channels,
                    kernel=tuple(module.kernel_size),
                    optional=group < 2 and in_group == 2,
                    shape=shape,
                )
            )
        elif isinstance(module, nn.AvgPool3d | nn.MaxPool3d):
            kernel, stride, padding = module.kernel_size, module.stride, module.padding
            # The model gives all three lengths of each.
            assert isinstance(kernel, tuple)  # noqa: S101
            assert isinstance(stride, tuple)  # noqa: S101
            assert isinstance(padding, tuple)  # noqa: S101
            shape = tuple(
                (n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True)
            )
            layers.append(
                Layer(
                    kind="pool",
                    units=layers[-1].units,
                    kernel=kernel,
                    optional=False,
                    shape=shape,
                )
            )
            group, in_group = group + 1, 0
        elif isinstance(module, nn.Linear):
            layers.append(Layer(kind="dense", units=module.out_features, kernel=(), optional=False, shape=()))
    assert group == len(GROUPS)  # noqa: S101 - every group ends with a pool
    return layers


def draw_searched(spec: StudySpec, classes: int) -> Figure:
    """The architecture as it is searched (Fig. 1): what is searched is coloured and dashed."""
    widest: dict[str, ParameterValue] = (
        {"second_conv_layer": True} if "second_conv_layer" in spec.space.root else {}
    )
    words = _Words.of_space(spec)
    return _draw(layers_of(widest, spec, classes), words, searched=set(spec.space.root))


def draw_resulting(parameters: dict[str, ParameterValue], spec: StudySpec, classes: int) -> Figure:
    """The architecture that a configuration makes (Figs. 3 and 4)."""
    return _draw(layers_of(parameters, spec, classes), _Words.of_trial(parameters, spec), searched=set())


@dataclass(frozen=True, kw_only=True)
class _Words:
    """What stands in the boxes, and beneath the drawing."""

    before: Sequence[tuple[str, str]]
    """What is done to a clip first, each with the parameter it follows from."""

    activation: str
    pool: str
    frames_of_kernel: str | None
    """A letter where the temporal size is searched."""

    dropout: str
    notes: Sequence[tuple[str, str]]
    """What has no box, each with its parameter."""

    @staticmethod
    def of_space(spec: StudySpec) -> _Words:
        space = spec.space
        usual = Hyperparameters()
        searched = set(space.root)

        def either(name: str, word: str) -> str:
            return word if name in searched else str(getattr(usual, name))

        boxed = {"clahe": "CLAHE", "normalization": "Normalization"}
        return _Words(
            before=[(f"{word}?", name) for name, word in boxed.items() if name in searched]
            + [(word, name) for name, word in boxed.items() if name not in searched and getattr(usual, name)],
            activation=either("activation", "activation"),
            pool=either("pooling_layer", "Pooling"),
            frames_of_kernel="f" if "temporal_size" in searched else None,
            dropout="Dropout p" if "dropout" in searched else f"Dropout {usual.dropout:g}",
            notes=[
                (f"{_SYMBOLS.get(name, '')}{_title(name)}: {_options(space, name)}", name)
                for name in space.root
            ],
        )

    @staticmethod
    def of_trial(parameters: dict[str, ParameterValue], spec: StudySpec) -> _Words:
        hp, training = configure(parameters, spec.training)
        return _Words(
            before=[
                (word, name)
                for word, name, there in (
                    ("CLAHE", "clahe", hp.clahe),
                    ("Pixels to [-1, 1]" if hp.normalization else "Pixels to [0, 1]", "normalization", True),
                )
                if there
            ],
            activation=hp.activation,
            pool=hp.pooling_layer,
            frames_of_kernel=None,
            dropout=f"Dropout {hp.dropout:g}",
            notes=[
                (hp.optimization, "optimization"),
                (f"learning rate {training.learning_rate:g}", "learning_rate"),
                (f"batches of {training.batch_size}", "batch_size"),
                (f"at most {training.epochs} epochs", "epochs"),
                (f"weights {hp.initializer}", "initializer"),
                ("loss weighted by class" if hp.loss_weights else "loss not weighted", "loss_weights"),
            ],
        )


_SYMBOLS = {"temporal_size": "f = ", "dropout": "p = "}


def _title(name: str) -> str:
    return title_of(name).lower() if name in _SYMBOLS else title_of(name)


def _options(space: SearchSpace, name: str) -> str:
    domain = space.root[name]
    if isinstance(domain, Range):
        return f"{domain.low:g} to {domain.high:g}"
    return ", ".join(str(option).lower() if isinstance(option, bool) else str(option) for option in domain)


HEIGHT = 1.3
GAP = 0.07
NARROW, WIDE = 0.2, 0.34
NOTE_HEIGHT = 0.18
SHAPE_HEIGHT = 0.78
INK = "black"
FILLS: dict[str, str] = {"conv": "#DCE9F5", "pool": "#E3F2EC", "dense": "#F3EFE3", "other": "white"}
SEARCHED_FILL, SEARCHED_INK = "#FBE5DA", "#9C3A00"


@dataclass(frozen=True, kw_only=True)
class _Box:
    width: float
    kind: str
    lines: Sequence[tuple[str, bool]]
    """Upright lines from left to right, each with whether it is searched."""

    top: str = ""
    below: str = ""
    optional: bool = False


def _draw(layers: Sequence[Layer], words: _Words, *, searched: set[str]) -> Figure:
    boxes = list(_boxes(layers, words, searched))
    length = sum(box.width for box in boxes) + GAP * (len(boxes) - 1)
    rows = _note_rows(words.notes, length)
    bottom = -SHAPE_HEIGHT - NOTE_HEIGHT * 1.25 * len(rows)
    figure = plt.figure(figsize=(PAGE, (HEIGHT - bottom + 0.1) * PAGE / length))
    axes = figure.add_axes((0.004, 0.004, 0.992, 0.992))
    axes.set(xlim=(-0.02, length + 0.02), ylim=(bottom, HEIGHT + 0.1), aspect="equal")
    axes.axis("off")
    x = 0.0
    for place, box in enumerate(boxes):
        _draw_box(axes, box, x)
        x += box.width
        if place < len(boxes) - 1:
            arrow = {"arrowstyle": "-|>,head_width=0.08,head_length=0.12", "linewidth": 0.5, "color": "#444444"}
            axes.annotate(
                "", (x + GAP, HEIGHT / 2), (x, HEIGHT / 2), arrowprops={**arrow, "shrinkA": 0, "shrinkB": 0}
            )
        x += GAP
    for number, row in enumerate(rows):
        y = -SHAPE_HEIGHT - NOTE_HEIGHT * 1.25 * (number + 1) + 0.04
        for text, name, at, width in row:
            _patch(axes, at, y, width, NOTE_HEIGHT, searched=name in searched, fill=FILLS["other"])
            axes.text(
                at + width / 2,
                y + NOTE_HEIGHT / 2,
                text,
                ha="center",
                va="center",
                fontsize=5.6,
                color=SEARCHED_INK if name in searched else INK,
            )
    return figure


def _boxes(layers: Sequence[Layer], words: _Words, searched: set[str]) -> Iterator[_Box]:
    first = layers[0].shape
    yield _Box(width=NARROW, kind="other", lines=[("Clip", False)], below=_shape(first))
    for word, name in words.before:
        yield _Box(width=NARROW, kind="other", lines=[(word, name in searched)])
    dense = [layer for layer in layers if layer.kind == "dense"]
    for layer in layers:
        kernel = ", ".join(map(str, layer.kernel))
        if layer.kind == "conv":
            if words.frames_of_kernel is not None:
                kernel = ", ".join((words.frames_of_kernel, *map(str, layer.kernel[1:])))
            yield _Box(
                width=WIDE,
                kind="conv",
                top=str(layer.units),
                lines=[
                    (f"Conv ({kernel})", "temporal_size" in searched),
                    (f"BN, {words.activation}", "activation" in searched),
                ],
                optional=layer.optional and "second_conv_layer" in searched,
            )
        elif layer.kind == "pool":
            yield _Box(
                width=NARROW,
                kind="pool",
                lines=[(f"{words.pool} ({kernel})", "pooling_layer" in searched)],
                below=_shape(layer.shape),
            )
        elif layer is dense[-1]:
            yield _Box(width=WIDE, kind="dense", top=str(layer.units), lines=[("Dense, softmax", False)])
        else:
            yield _Box(
                width=WIDE,
                kind="dense",
                top=str(layer.units),
                lines=[("Dense", False), (words.activation, "activation" in searched)],
            )
            yield _Box(width=NARROW, kind="other", lines=[(words.dropout, "dropout" in searched)])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _draw_box(axes: Axes, box: _Box, x: float) -> None:
    alone_searched = len(box.lines) == 1 and box.lines[0][1]
    _patch(axes, x, 0, box.width, HEIGHT, searched=box.optional or alone_searched, fill=FILLS[box.kind])
    room = HEIGHT - 0.16 if box.top else HEIGHT
    if box.top:
        size = 6.5 if len(box.top) <= 3 else 5.6
        axes.text(
            x + box.width / 2, HEIGHT - 0.1, box.top, ha="center", va="center", fontsize=size, weight="bold"
        )
    for place, (line, searched) in enumerate(box.lines):
        axes.text(
            x + box.width * (0.5 if len(box.lines) == 1 else (0.29, 0.71)[place]),
            room / 2,
            line,
            rotation=90,
            ha="center",
            va="center",
            fontsize=6,
            color=SEARCHED_INK if searched or box.optional else INK,
        )
    if box.below:
        axes.text(
            x + box.width / 2, -0.05, box.below, rotation=90, ha="center", va="top", fontsize=5, color="#444444"
        )


def _patch(axes: Axes, x: float, y: float, width: float, height: float, *, searched: bool, fill: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.03",
            facecolor=SEARCHED_FILL if searched else fill,
            edgecolor=VERMILLION if searched else "#444444",
            linewidth=0.6,
            linestyle=(0, (3, 1.5)) if searched else "-",
        )
    )


def _note_rows(notes: Sequence[tuple[str, str]], length: float) -> list[list[tuple[str, str, float, float]]]:
    """Notes side by side, as many in a row as fit: text, parameter, x, width."""
    rows: list[list[tuple[str, str, float, float]]] = [[]]
    x = 0.0
    for text, name in notes:
        width = 0.1 + 0.052 * len(text)
        if x + width > length and rows[-1]:
            rows.append([])
            x = 0.0
        rows[-1].append((text, name, x, width))
        x += width + GAP
    return [row for row in rows if row]
