"""Sizes of images in pixels. Height comes before width, as in the shape of an array, and one number is a square."""

from collections.abc import Sequence

from diffuse.system.errors import check

AnySize = int | Sequence[int]
LARGEST = 1 << 16  # pixels


def height_width(size: AnySize, argument: str = "size", least: int = 1, most: int = LARGEST) -> tuple[int, int]:
    """The height and the width that are meant, each from `least` to `most`. Raises Refused, about the argument.

    A checkpoint or a file may hold anything, so the types are checked too.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    check(len(pair) == 2 and all(type(side) is int for side in pair), argument, "a number or [height,width]", size)
    check(all(least <= side <= most for side in pair), argument, f"between {least} and {most} pixels", size)
    return pair[0], pair[1]


def in_words(height: int, width: int) -> str:
    """The size for a message, height first."""
    return f"{height} x {width}"
