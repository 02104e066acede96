"""Draw one segmented image: the image, its labels, what models make of it, where those differ, and a legend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from optin_cli.tasks.schema import Colour

Pixels = NDArray[np.uint8]
PANEL_WIDTH = 480
"""Pixels; images are scaled to it."""
COLUMNS = 3
MARGIN, LINE, SWATCH, NUMBERS = 12, 20, 14, 84
"""Pixels around panels, of a line of text, of a colour's square, and of a column of numbers."""
INK, SOFT, PAPER = (20, 20, 20), (95, 95, 95), (255, 255, 255)
TITLE_SIZE, TEXT_SIZE = 20, 14
DIMMED = 0.45
"""How much of a grey image is left under the marks of differing pixels."""


@dataclass(frozen=True)
class Legend:
    """What colours mean: rows of a colour and texts, under headings of their columns."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Colour, tuple[str, ...]], ...]


def draw_picture(
    title: str, facts: Sequence[str], panels: Sequence[tuple[str, Pixels]], legends: Sequence[Legend]
) -> Image.Image:
    """Lay out panels (height, width, 3) of one size in rows of three, with a heading above and the legends last.

    title, facts: lines of the heading, the first large. panels: each with its caption.
    """
    height, width = panels[0][1].shape[:2]
    size = (PANEL_WIDTH, max(1, round(PANEL_WIDTH * height / width)))
    top = MARGIN + TITLE_SIZE + 6 + LINE * len(facts) + MARGIN // 2
    cell = (size[0] + MARGIN, size[1] + LINE + MARGIN)
    written = _draw_legends(legends, PANEL_WIDTH)
    rows = -(-(len(panels) + 1) // COLUMNS)
    last = max(cell[1], written.height + MARGIN)
    sheet = Image.new("RGB", (MARGIN + COLUMNS * cell[0], top + (rows - 1) * cell[1] + last), PAPER)
    pen = ImageDraw.Draw(sheet)
    room = sheet.width - 2 * MARGIN
    pen.text((MARGIN, MARGIN), _short(title, room, TITLE_SIZE), INK, font=_font(TITLE_SIZE))
    for number, fact in enumerate(facts):
        pen.text((MARGIN, MARGIN + TITLE_SIZE + 6 + LINE * number), _short(fact, room), SOFT, font=_font(TEXT_SIZE))
    for number, (caption, pixels) in enumerate(panels):
        x, y = MARGIN + number % COLUMNS * cell[0], top + number // COLUMNS * cell[1]
        pen.text((x, y), _short(caption, PANEL_WIDTH), INK, font=_font(TEXT_SIZE))
        smooth = Image.Resampling.LANCZOS if number == 0 else Image.Resampling.NEAREST
        sheet.paste(Image.fromarray(pixels).resize(size, smooth), (x, y + LINE))
    place = len(panels)
    sheet.paste(written, (MARGIN + place % COLUMNS * cell[0], top + place // COLUMNS * cell[1]))
    return sheet


def _draw_legends(legends: Sequence[Legend], width: int) -> Image.Image:
    """The legends below each other; the first column of each takes what the others leave."""
    lines = sum(len(legend.rows) + 1 for legend in legends)
    sheet = Image.new("RGB", (width, lines * LINE + MARGIN * len(legends)), PAPER)
    pen, font, y = ImageDraw.Draw(sheet), _font(TEXT_SIZE), 0
    for legend in legends:
        for colour, texts in ((None, legend.headings), *legend.rows):
            if colour is not None:
                pen.rectangle((0, y + 2, SWATCH, y + 2 + SWATCH), fill=colour, outline=SOFT)
            room = width - NUMBERS * (len(legend.headings) - 1)
            pen.text((SWATCH + 8, y), _short(texts[0], room - SWATCH - 8), INK if colour else SOFT, font=font)
            for number, text in enumerate(texts[1:], start=1):
                pen.text((room + NUMBERS * number, y), text, INK if colour else SOFT, font=font, anchor="ra")
            y += LINE
        y += MARGIN
    return sheet


def paint(classes: NDArray[np.integer], palette: NDArray[np.uint8], ignored: Colour) -> Pixels:
    """Colours of a map of classes, (height, width, 3); ignored: of pixels below 0. palette: (classes, 3)."""
    table = np.vstack([palette, np.array([ignored], np.uint8)])
    return table[np.where(classes < 0, len(palette), classes)]


def mark(image: Pixels, marks: Mapping[Colour, NDArray[np.bool_]]) -> Pixels:
    """A dimmed grey image with coloured pixels, (height, width, 3); masks (height, width)."""
    grey = (255 - (255 - image.mean(axis=-1, keepdims=True)) * DIMMED).astype(np.uint8)
    marked: Pixels = np.repeat(grey, 3, axis=-1)
    for colour, mask in marks.items():
        marked[mask] = colour
    return marked


def spread_palette(classes: int) -> NDArray[np.uint8]:
    """Distinct colours for any number of classes, (classes, 3).

    Those of the PASCAL VOC development kit without its black: bits of class number + 1 are dealt to the highest bits of
    red, green and blue in turn.
    """
    numbers = np.arange(1, classes + 1)
    colours = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _short(text: str, width: int, size: int = TEXT_SIZE) -> str:
    """A text that fits, its middle left out where it is too long."""
    font = _font(size)
    kept = len(text)
    while kept > 4 and font.getlength(_cut(text, kept)) > width:
        kept -= 1
    return _cut(text, kept)


def _cut(text: str, kept: int) -> str:
    head = (kept - 3) // 2
    return text if kept >= len(text) else f"{text[:head]}...{text[len(text) - (kept - 3 - head) :]}"
