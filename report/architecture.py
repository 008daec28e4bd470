"""Drawings of a study's network: as it is searched and as a trial makes it (the paper's Figs. 1, 3, 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from report.figures import PAGE, VERMILLION
from services.contracts import StudySpec, configure
from services.model_config import ModelConfig
from services.network_layers import Convolution, Dense, Layer, Lengths, Pool, layers_of
from services.search_space import Hyperparameters, ParameterValue, Range, SearchSpace, title_of


def trial_layers(parameters: dict[str, ParameterValue], spec: StudySpec, classes: int) -> list[Layer]:
    """The layers of a trial's network in their order."""
    hp, training = configure(parameters, spec.training)
    return layers_of(ModelConfig.of(hp, training, spec.economies, classes=classes))


def draw_searched(spec: StudySpec, classes: int) -> Figure:
    """The architecture as it is searched (Fig. 1); searched parts are coloured and dashed."""
    widest: dict[str, ParameterValue] = (
        {"second_conv_layer": True} if "second_conv_layer" in spec.space.root else {}
    )
    layers = trial_layers(widest, spec, classes)
    return _draw(layers, _Labels.of_space(spec), searched=set(spec.space.root))


def draw_resulting(parameters: dict[str, ParameterValue], spec: StudySpec, classes: int) -> Figure:
    """The architecture that a trial's parameters give (Figs. 3 and 4)."""
    layers = trial_layers(parameters, spec, classes)
    return _draw(layers, _Labels.of_trial(parameters, spec), searched=set())


@dataclass(frozen=True, kw_only=True)
class _Labels:
    """The text in the boxes and below the drawing."""

    before: Sequence[tuple[str, str]]
    """Preprocessing steps of a clip, each with the parameter that decides about it."""

    activation: str
    after_convolution: str
    """Batch normalisation and activation, in their order."""

    pool: str
    frames_of_kernel: str | None
    """The letter that stands for the temporal size if that is searched."""

    dropout: str
    notes: Sequence[tuple[str, str]]
    """Text about settings that have no box, each with its parameter."""

    @staticmethod
    def of_space(spec: StudySpec) -> _Labels:
        space = spec.space
        default = Hyperparameters()
        searched = set(space.root)

        def label(name: str, if_searched: str) -> str:
            return if_searched if name in searched else str(getattr(default, name))

        activation = label("activation", "activation")
        boxed = {"clahe": "CLAHE", "normalization": "Normalization"}
        return _Labels(
            before=[(f"{word}?", name) for name, word in boxed.items() if name in searched]
            + [(word, name) for name, word in boxed.items() if name not in searched and getattr(default, name)],
            activation=activation,
            after_convolution=_after_convolution(activation, spec),
            pool=label("pooling_layer", "Pooling"),
            frames_of_kernel="f" if "temporal_size" in searched else None,
            dropout="Dropout p" if "dropout" in searched else f"Dropout {default.dropout:g}",
            notes=[
                (f"{_SYMBOLS.get(name, '')}{_title(name)}: {_options(space, name)}", name)
                for name in space.root
            ],
        )

    @staticmethod
    def of_trial(parameters: dict[str, ParameterValue], spec: StudySpec) -> _Labels:
        hp, training = configure(parameters, spec.training)
        return _Labels(
            before=[
                (word, name)
                for word, name, shown in (
                    ("CLAHE", "clahe", hp.clahe),
                    ("Pixels to [-1, 1]" if hp.normalization else "Pixels to [0, 1]", "normalization", True),
                )
                if shown
            ],
            activation=hp.activation,
            after_convolution=_after_convolution(hp.activation, spec),
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


def _after_convolution(activation: str, spec: StudySpec) -> str:
    return f"BN, {activation}" if spec.training.batch_norm == "before activation" else f"{activation}, BN"


_SYMBOLS = {"temporal_size": "f = ", "dropout": "p = "}


def _title(name: str) -> str:
    return title_of(name).lower() if name in _SYMBOLS else title_of(name)


def _options(space: SearchSpace, name: str) -> str:
    domain = space.root[name]
    if isinstance(domain, Range):
        return f"{domain.low:g} to {domain.high:g}"
    return ", ".join(str(option).lower() if isinstance(option, bool) else str(option) for option in domain)


# Lengths in the drawing's own unit; the figure is scaled to the width of a page.
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
    """Lines of vertical text from left to right, each with whether it is searched."""

    top: str = ""
    below: str = ""
    optional: bool = False


def _draw(layers: Sequence[Layer], labels: _Labels, *, searched: set[str]) -> Figure:
    boxes = list(_boxes(layers, labels, searched))
    length = sum(box.width for box in boxes) + GAP * (len(boxes) - 1)
    rows = _note_rows(labels.notes, length)
    bottom = -SHAPE_HEIGHT - NOTE_HEIGHT * 1.25 * len(rows)
    figure = plt.figure(figsize=(PAGE, (HEIGHT - bottom + 0.1) * PAGE / length))
    axes = figure.add_axes((0.004, 0.004, 0.992, 0.992))
    axes.set(xlim=(-0.02, length + 0.02), ylim=(bottom, HEIGHT + 0.1), aspect="equal")
    axes.axis("off")
    x = 0.0
    for index, box in enumerate(boxes):
        _draw_box(axes, box, x)
        x += box.width
        if index < len(boxes) - 1:
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


def _boxes(layers: Sequence[Layer], labels: _Labels, searched: set[str]) -> Iterator[_Box]:
    first = layers[0]
    assert isinstance(first, Convolution)  # noqa: S101 - every network starts with one, which keeps the shape
    yield _Box(width=NARROW, kind="other", lines=[("Clip", False)], below=_lengths(first.shape))
    for word, name in labels.before:
        yield _Box(width=NARROW, kind="other", lines=[(word, name in searched)])
    for layer in layers:
        match layer:
            case Convolution():
                kernel = [str(length) for length in layer.kernel]
                if labels.frames_of_kernel is not None:
                    kernel[0] = labels.frames_of_kernel
                yield _Box(
                    width=WIDE,
                    kind="conv",
                    top=str(layer.units),
                    lines=[
                        (f"Conv ({', '.join(kernel)})", "temporal_size" in searched),
                        (labels.after_convolution, "activation" in searched),
                    ],
                    optional=layer.optional and "second_conv_layer" in searched,
                )
            case Pool():
                kernel_text = ", ".join(map(str, layer.kernel))
                yield _Box(
                    width=NARROW,
                    kind="pool",
                    lines=[(f"{labels.pool} ({kernel_text})", "pooling_layer" in searched)],
                    below=_lengths(layer.shape),
                )
            case Dense() if layer is layers[-1]:
                yield _Box(width=WIDE, kind="dense", top=str(layer.units), lines=[("Dense, softmax", False)])
            case Dense():
                yield _Box(
                    width=WIDE,
                    kind="dense",
                    top=str(layer.units),
                    lines=[("Dense", False), (labels.activation, "activation" in searched)],
                )
                yield _Box(width=NARROW, kind="other", lines=[(labels.dropout, "dropout" in searched)])


def _lengths(lengths: Lengths) -> str:
    return " x ".join(map(str, lengths))


def _draw_box(axes: Axes, box: _Box, x: float) -> None:
    only_line_searched = len(box.lines) == 1 and box.lines[0][1]
    _patch(axes, x, 0, box.width, HEIGHT, searched=box.optional or only_line_searched, fill=FILLS[box.kind])
    room = HEIGHT - 0.16 if box.top else HEIGHT
    if box.top:
        size = 6.5 if len(box.top) <= 3 else 5.6
        axes.text(
            x + box.width / 2, HEIGHT - 0.1, box.top, ha="center", va="center", fontsize=size, weight="bold"
        )
    for index, (line, searched) in enumerate(box.lines):
        axes.text(
            x + box.width * (0.5 if len(box.lines) == 1 else (0.29, 0.71)[index]),
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
    """Notes side by side, broken into rows of at most `length`; each is text, parameter, x, width."""
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
