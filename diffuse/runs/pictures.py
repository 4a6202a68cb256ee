"""Pictures for people: grids of images, the forward process, curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffuse.data.images import to_uint8
from diffuse.mathematics.schedules import Schedule
from diffuse.system.files import atomic_path

SMALLEST_TILE, LARGEST_TILE = 48, 512  # pixels of the shorter and the longer side of an enlarged image
BETWEEN, GREY = 2, 128  # pixels between two images, and their grey
TEXT, MOST_LETTERS = 14, 24  # size and length of titles
LEAST_IN_ROW, MOST_IN_ROW = 2, 24  # images of a title
MOST_CHANNELS = 8


def image_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Images [n, C, H, W], uint8 or in [-1, 1] -> one uint8 picture [3, H', W'] with `columns` (None: about square).

    Small images are enlarged by whole pixels, so that 8 x 8 digits can be seen. Channels that are neither grey nor RGB
    are shown side by side, the first 8 of them.
    """
    height, width = images.shape[-2:]
    factor = max(1, min(-(-SMALLEST_TILE // min(height, width)), LARGEST_TILE // max(height, width)))
    shown = images if images.dtype == torch.uint8 else to_uint8(images)
    shown = in_one_channel(shown.repeat_interleave(factor, -1).repeat_interleave(factor, -2))
    height, width = shown.shape[-2:]
    return tiled(shown, columns or max(1, round((len(images) * height / width) ** 0.5)))


def in_one_channel(images: Tensor) -> Tensor:
    """Grey and RGB images as they are; the channels of others side by side, with a line between them."""
    n, channels, height, _ = images.shape
    if channels in (1, 3):
        return images
    lined = F.pad(images[:, :MOST_CHANNELS], [0, 1], value=GREY)
    return lined.transpose(1, 2).reshape(n, 1, height, -1)[..., :-1]


def tiled(images: Tensor, columns: int) -> Tensor:
    """uint8 images [n, 1 or 3, h, w] row by row in one [3, H, W], with grey between and around; one alone as it is.

    As torchvision's make_grid, whose import takes as long as that of torch, in every command that draws a picture.
    """
    n, _, h, w = images.shape
    if n == 1:
        return images[0].expand(3, -1, -1)
    columns = min(columns, n)
    size = 3, -(-n // columns) * (h + BETWEEN) + BETWEEN, columns * (w + BETWEEN) + BETWEEN
    picture = torch.full(size, GREY, dtype=images.dtype, device=images.device)
    for number, image in enumerate(images):
        top, left = (
            BETWEEN + place * (side + BETWEEN) for place, side in zip(divmod(number, columns), (h, w), strict=True)
        )
        picture[:, top : top + h, left : left + w] = image
    return picture


def grid_by_title(images: Tensor, titles: Sequence[str]) -> Tensor:
    """Images [n, C, H, W] in rows by their titles, which stand on the left; a plain grid where most titles differ.

    A title with many images has several rows.
    """
    found = {title: [i for i, each in enumerate(titles) if each == title] for title in dict.fromkeys(titles)}
    most = max(map(len, found.values()), default=0)
    if most < LEAST_IN_ROW:
        return image_grid(images)
    widest = MOST_IN_ROW if len(found) > 1 else max(1, round(len(images) ** 0.5))
    columns = -(-most // -(-most // widest))  # in as few rows as possible, of equal length
    images = images if images.dtype == torch.uint8 else to_uint8(images)
    white, rows, starts = torch.full_like(images[0], 255), list[Tensor](), [0]
    for places in found.values():
        rows += [images[i] for i in places] + [white] * (-len(places) % columns)
        starts.append(len(rows) // columns)
    picture = image_grid(torch.stack(rows), columns)
    height = (picture.shape[1] - BETWEEN) // starts[-1]
    return torch.cat([words_at([BETWEEN + start * height for start in starts[:-1]], list(found), picture), picture], 2)


def side_by_side(given: Sequence[Tensor], results: Sequence[Tensor]) -> Tensor:
    """Columns of images [rows, C, H, W]: what was given, a gap, and results, whose columns may end early."""
    gap = torch.full_like(given[0], GREY)
    columns = [*given, gap, *(torch.cat([column, gap[len(column) :]]) for column in results)]
    return image_grid(torch.stack(columns, 1).flatten(0, 1), columns=len(columns))


def words_at(tops: Sequence[int], words: Sequence[str], picture: Tensor) -> Tensor:
    """A strip as high as the picture with these words at these heights, uint8 [3, H, W']."""
    font = ImageFont.load_default(TEXT)
    shown = [word if len(word) <= MOST_LETTERS else word[: MOST_LETTERS - 3] + "..." for word in words]
    width = max(round(font.getlength(word)) for word in shown) + 4 * BETWEEN
    strip = Image.new("RGB", (width, picture.shape[1]), "white")
    for top, word in zip(tops, shown, strict=True):
        ImageDraw.Draw(strip).text((2 * BETWEEN, top + BETWEEN), word, "black", font)
    return torch.from_numpy(np.array(strip)).permute(2, 0, 1)


def save_png(path: Path, picture: Tensor, survives_power_cut: bool = False) -> None:
    """Write a uint8 picture [1 or 3, H, W] as PNG, atomically."""
    image = Image.fromarray(picture.cpu().permute(1, 2, 0).squeeze(2).numpy())
    with atomic_path(path, survives_power_cut) as beside:
        image.save(beside, format="PNG")


def save_gif(path: Path, pictures: Sequence[Tensor], seconds: float, last: float) -> None:
    """Write uint8 pictures [3, H, W] as an animated GIF: each is shown for some seconds, the last one longer."""
    frames = [Image.fromarray(picture.cpu().permute(1, 2, 0).numpy()) for picture in pictures]
    times = [*[round(1000 * seconds)] * (len(frames) - 1), round(1000 * last)]
    with atomic_path(path, survives_power_cut=False) as beside:
        frames[0].save(beside, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)


def gif_of_pngs(path: Path, pngs: Sequence[Path], most: int = 60) -> None:
    """An animated GIF of pictures of one size that are PNG files, of many some; none for fewer than two of them."""
    if len(pngs) < 2:
        return
    places = torch.linspace(0, len(pngs) - 1, min(most, len(pngs))).round().int().tolist()
    pictures = [torch.from_numpy(np.array(Image.open(pngs[place]).convert("RGB"))).permute(2, 0, 1) for place in places]
    if len({picture.shape for picture in pictures}) == 1:
        save_gif(path, pictures, 0.3, 1.5)


def forward_process(schedule: Schedule, x0: Tensor, noise: Tensor) -> Tensor:
    """A picture of q(x_t given x0): a row for each image, from x_0 on the left to x_T on the right."""
    steps = [schedule.diffuse(x0, t, noise) for t in torch.linspace(0, schedule.T, 9, dtype=torch.float64).round()]
    return image_grid(torch.stack(steps, dim=1).flatten(0, 1), columns=len(steps))


def accuracy_curve(levels: Sequence[float], shares: Sequence[float], chance: float) -> Tensor:
    """A picture of a classifier's accuracy against the noise level, uint8 [3, H, W]; chance is that of guessing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    axes.plot(levels, shares, "o-")
    axes.axhline(chance, color="gray", linestyle=":")
    axes.text(levels[0], chance, " guessing", color="gray", va="bottom") if levels else None
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="noise level sigma / alpha", ylabel="accuracy on test images")
    axes.grid(alpha=0.3)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).permute(2, 0, 1)


def plot_terms(path: Path, levels: list[float], bits: list[float], title: str) -> None:
    """The bound's terms against their noise level, both on logarithmic axes."""
    from matplotlib.figure import Figure  # a second to import, and only `eval` draws curves

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(levels, bits, marker="." if len(levels) < 100 else None)
    axes.set(xscale="log", yscale="log", xlabel="noise level t", ylabel="bits/dim", title=title)
    axes.grid(alpha=0.3)
    with atomic_path(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
