"""Tables of text for a terminal."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], sides: str, widest: Sequence[int] | None = None) -> list[str]:
    """The rows as lines of equal columns, two spaces apart, without spaces at their ends.

    sides   a character for each column: "<" puts its cells to the left, ">" to the right
    widest  the most characters of a cell in each column; longer ones are cut
    """
    columns = [list(column) for column in zip(*rows, strict=True)]
    if widest:
        columns = [[cut(cell, most) for cell in column] for column, most in zip(columns, widest, strict=True)]
    formats = [f"{side}{max(map(len, column))}" for side, column in zip(sides, columns, strict=True)]
    return ["  ".join(map(format, row, formats)).rstrip() for row in zip(*columns, strict=True)]


def without_middle(text: str, room: int) -> str:
    """The beginning and the end of a text, at most `room` characters: paths and lists often differ at their ends."""
    text = " ".join(text.split())
    return text if len(text) <= room else f"{text[: room // 2 - 3]}...{text[-(room - room // 2) :]}"


def cut(text: str, room: int) -> str:
    """The text on one line, at most `room` characters long."""
    text = " ".join(text.split())
    return text if len(text) <= room else f"{text[: room - 3]}..."
