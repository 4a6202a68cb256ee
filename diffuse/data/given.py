"""Image files that a key of the command line names, decoded and sized like the images of a data set."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffuse.data.decoding import Shape, describe_failure
from diffuse.system.errors import UsageError


def read_given(shape: Shape, path: str, key: str, exact: bool = False) -> np.ndarray:
    """The image in a file, uint8 [C, size, size]. Raises UsageError, with the key, where it cannot be read.

    exact: refuse another size than the shape's instead of cropping and resizing.
    """
    file = Path(path).expanduser()
    try:
        if exact:
            with Image.open(file) as image:
                found = image.size
            if found != (shape.size, shape.size):
                raise UsageError(f"{key}={path} is {found[0]} x {found[1]}, and must be {shape.size} x {shape.size}")
        return np.array(shape.read(str(file)))  # its own memory, which torch may write to
    except UsageError:
        raise
    except Exception as error:  # decoders raise anything from OSError to struct.error
        raise UsageError(f"{key}={path} cannot be read: {describe_failure(error)}") from error
