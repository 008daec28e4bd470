"""What was found, as Markdown and as the JSON line at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Record:
    """One part: what it is about, and what it found, or why it found nothing (`failed`, `skipped`)."""

    part: str
    about: dict[str, object]
    found: dict[str, Any]
    seconds: float

    @property
    def name(self) -> str:
        """For lists, such as `plan: bf16, compiled`."""
        about = ", ".join(str(value) for value in self.about.values())
        return f"{self.part}: {about}" if about else self.part

    @property
    def reason(self) -> str | None:
        """Why there is no result; None if there is one."""
        reason: str | None = self.found.get("failed") or self.found.get("skipped")
        return reason

    def as_json(self) -> dict[str, Any]:
        """The line of `gpu.jsonl`; without the predictions that are compared across processes."""
        found = {key: value for key, value in self.found.items() if key != "first"}
        return {"part": self.part, **self.about, **found, "part_seconds": round(self.seconds, 1)}

    def line(self) -> str:
        """For the terminal."""
        numbers = {
            key: f"{value:.4g}" if isinstance(value, float) else value
            for key, value in self.as_json().items()
            if key not in {"part", "kernels", *self.about}
        }
        return f"{self.name}: " + ", ".join(f"{key} {value}" for key, value in numbers.items())


def summary(records: Sequence[Record], *, plan: str, seconds: float) -> dict[str, Any]:
    """The last line; see the docstring of the program."""
    machine = _one(records, "machine")
    speed = next((speed for speed in speeds(records) if speed.plan == plan), None)
    fold = _one(records, "fold")
    equal, across, differs = _repeats(records, plan)
    memory = _one(records, "out of memory")
    return {
        "device": machine.get("device"),
        "torch": machine.get("torch"),
        "plan": plan,
        "clips_per_second": None if speed is None else round(speed.clips_per_second, 1),
        "ratio": None if speed is None or speed.ratio is None else round(speed.ratio, 2),
        "mfu": None if speed is None or speed.mfu is None else round(speed.mfu, 3),
        "fold_seconds": None if "seconds" not in fold else round(fold["seconds"], 1),
        "repeat_equal": equal,
        "replay_equal": across,
        "differs": differs,
        "out_of_memory": None if "said" not in memory else _survives(memory),
        "not_measured": {record.name: record.reason for record in records if record.reason},
        "seconds": round(seconds, 1),
    }


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a plan trains, beside the baseline around it and the device's peak."""

    plan: str
    clips_per_second: float
    ratio: float | None
    mfu: float | None
    found: dict[str, Any]


def speeds(records: Sequence[Record]) -> Iterator[Speed]:
    """The plans that were timed; the baseline of each is the mean of the runs just before and after it."""
    flops = _one(records, "machine").get("useful_flops")
    peaks = {
        record.about["precision"]: record.found["tflops"] * 1e12
        for record in records
        if record.part == "peak" and "tflops" in record.found
    }
    timed = [record for record in records if record.part in {"plan", "plain loop"}]
    for index, record in enumerate(timed):
        rate = record.found.get("clips_per_second")
        if record.part != "plan" or rate is None:
            continue
        beside = [
            near.found["clips_per_second"]
            for near in timed[max(0, index - 1) : index + 2]
            if near.part == "plain loop" and "clips_per_second" in near.found
        ]
        plan = str(record.about["plan"])
        peak = peaks.get(plan.partition(",")[0])
        yield Speed(
            plan=plan,
            clips_per_second=rate,
            ratio=rate / statistics.mean(beside) if beside else None,
            mfu=None if peak is None or flops is None else rate * flops / peak,
            found=record.found,
        )


def as_markdown(records: Sequence[Record]) -> str:
    """All that was found so far."""
    return "\n".join(_lines(records)) + "\n"


def _lines(records: Sequence[Record]) -> Iterator[str]:
    machine = _one(records, "machine")
    yield f"# {machine.get('device', 'unknown device')}"
    yield ""
    yield ", ".join(f"{key} {value}" for key, value in machine.items() if key not in {"device", "plans"})
    for record in records:
        if record.part == "peak" and "tflops" in record.found:
            yield ""
            yield f"Large matrix product in {record.about['precision']}: {record.found['tflops']:.4g} TFLOP/s."
    yield ""
    yield "| plan | clips/s | ratio to the plain loop | MFU | memory, GiB | sound | error: logits, gradient |"
    yield "|---|---|---|---|---|---|---|"
    for record in records:
        if record.part == "plain loop" and "clips_per_second" in record.found:
            memory = _gib(record.found["memory"])
            yield f"| plain loop | {record.found['clips_per_second']:.4g} | 1 | - | {memory} | - | - |"
    for speed in speeds(records):
        found = speed.found
        errors = (
            f"{found['logits_error']:.2g}, {found['gradient_error']:.2g}" if "logits_error" in found else "-"
        )
        yield (
            f"| {speed.plan} | {speed.clips_per_second:.4g} | {_number(speed.ratio, '.2f')} "
            f"| {_number(speed.mfu, '.1%')} | {_gib(found['memory'])} "
            f"| {found.get('sound', 'is the reference')} | {errors} |"
        )
    yield from _others(records)
    missing = [record for record in records if record.reason]
    if missing:
        yield ""
        yield "Not measured:"
        yield ""
        for record in missing:
            yield f"- {record.name}: {record.reason}"


def _others(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        if record.reason:
            continue
        found = record.found
        match record.part:
            case "fold":
                yield ""
                yield (
                    f"A whole fold in {record.about['plan']}: {found['seconds']:.4g} s for {found['epochs']} "
                    f"epochs, {found['redone_steps']} steps repeated in fp32."
                )
            case "repeat":
                yield ""
                where = "" if found["equal"] else f": {found['differs']}"
                yield (
                    f"Two runs in {record.about['plan']}, process {record.about['process']}: "
                    f"{'equal bits' if found['equal'] else 'other bits' + where}."
                )
            case "out of memory":
                yield ""
                yield (
                    f'A batch that cannot fit: "{found["said"]}" Afterwards the device '
                    f"{'works' if found['works_afterwards'] else 'does not work'}."
                )
            case "kernels":
                yield ""
                yield f"Kernels of a step in {record.about['plan']}, {found['ms_per_step']:.4g} ms in all:"
                yield ""
                yield "| kernel | share |"
                yield "|---|---|"
                for kernel in found["kernels"]:
                    yield f"| `{kernel['name'].replace('|', '/')}` | {kernel['share']:.1%} |"
            case "first convolution":
                yield ""
                yield (
                    "First convolution of gray clips, forward and backward, by the channels it fills up to: "
                    + ", ".join(
                        f"{channels}: {milliseconds:.3g} ms"
                        for channels, milliseconds in found["milliseconds"].items()
                    )
                )


def _repeats(records: Sequence[Record], plan: str) -> tuple[bool | None, bool | None, str | None]:
    found = [
        record.found
        for record in records
        if record.part == "repeat" and record.about["plan"] == plan and not record.reason
    ]
    if not found:
        return None, None, None
    across = None if len(found) < 2 else len({each["first"] for each in found}) == 1
    differs = next((each["differs"] for each in found if "differs" in each), None)
    return all(each["equal"] for each in found), across, differs


def _one(records: Sequence[Record], part: str) -> dict[str, Any]:
    return next((record.found for record in records if record.part == part), {})


def _survives(memory: dict[str, Any]) -> bool:
    return bool(memory["works_afterwards"]) and memory["said"] != "it fitted"


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**30:.1f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
