"""Text of other programs, made safe for a terminal and for a log."""

from __future__ import annotations

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""Controls of the terminal (C0, DEL, C1), and of the lines and the direction of a text."""

_ALL_BUT_LINES = {code: text for code, text in _CONTROLS.items() if chr(code) not in "\n\t"}


def escape_controls(text: str, *, lines: bool = True) -> str:
    """Show control characters as `\\x1b` or `\\u202e`; with `lines`, line ends and tabs stay."""
    return text.translate(_ALL_BUT_LINES if lines else _CONTROLS)
