"""Text for terminals: characters that would steer them, or turn the order of letters, are shown as escapes."""

import re

STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but tab and newline, separators of lines, marks of writing direction, and halves of characters."""


def escaped(text: str) -> str:
    """The text with escapes, as Python and JSON write them, in place of what steers terminals."""
    return STEERING.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x20 else f"\\u{number:04x}"
