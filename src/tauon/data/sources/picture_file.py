"""Decode one file into an image array: upright according to EXIF, in one mode and one size. Needs Pillow.

8-bit images stay bytes. Deeper images (16 and 32 bits, float) keep their values: which values are black and white is decided for the whole
data set (`data/pixel_range.py`), not per image.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PICTURE_SUFFIXES", "decode_content", "decode_picture", "import_pillow"]

PICTURE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".jp2", ".j2k", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga",
)  # fmt: skip
"""File suffixes that are read as images."""
_MOST_PIXELS = 178_956_970
"""Pillow's own limit, beyond which an image is a decompression bomb."""
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of more than 8 bits a channel."""


def import_pillow() -> Any:
    """Return the module `PIL.Image`. Raises `MissingExtra`."""
    try:
        from PIL import Image
    except ImportError as err:
        raise MissingExtra("reading images", "images") from err
    return Image


def decode_picture(path: Path, size: tuple[int, int] | None, fit: str, colours: str | None) -> NDArray[Any] | str:
    """Return the image in a file, or a text that says why it cannot be read.

    Args:
        path: the file.
        size: (height, width) to resize to; None: no resizing.
        fit: `crop`, `stretch` or `pad`, used if the aspect ratio differs.
        colours: `rgb`, `grey`, or None for the mode that loses nothing.

    Returns:
        (H, W, 1 or 3) uint8; (H, W, 1) uint16, int32 or float32 for deeper images; or a text with the reason.
    """
    try:
        content = path.read_bytes()
    except OSError as err:
        return "cannot be read: permission denied" if isinstance(err, PermissionError) else f"damaged or not an image ({err})"
    return decode_content(content, path.suffix, size, fit, colours)


def decode_content(raw: bytes, suffix: str, size: tuple[int, int] | None, fit: str, colours: str | None) -> NDArray[Any] | str:
    """`decode_picture` for the content of a file, whose suffix says what it should be."""
    from PIL import Image, ImageOps

    try:
        content = io.BytesIO(raw)
        if suffix.lower() in (".png", ".apng"):
            with Image.open(content) as file:
                file.verify()  # its checksums: decoding alone does not verify them
            content.seek(0)
        with Image.open(content) as file:
            if file.width * file.height > _MOST_PIXELS:
                return f"{file.width:,} x {file.height:,} pixels are more than the limit of {_MOST_PIXELS:,}"
            if size is not None and file.format == "JPEG":
                file.draft(None, (2 * size[1], 2 * size[0]))  # decode at 1/2 or 1/4 of the size if that is still twice the target
            file.load()
            picture: Image.Image = ImageOps.exif_transpose(file)
        if picture.mode in _DEEP:
            return _deep(picture, size, fit, netpbm=file.format == "PPM")
        picture = _in_mode(picture, colours)
        if size is not None:
            picture = _at_size(picture, size, fit)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as err:
        return f"damaged or not an image ({str(err).partition(chr(10))[0]})"
    pixels = np.asarray(picture, np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _deep(picture: Image, size: tuple[int, int] | None, fit: str, *, netpbm: bool) -> NDArray[Any] | str:
    """Return the values without scaling; resized as float32, which represents each 16-bit value exactly. `netpbm`: Pillow scales these to 16 bits."""
    from PIL import Image as images

    values = np.asarray(picture)
    kind: Any = np.float32 if values.dtype.kind == "f" else np.uint16 if values.dtype.itemsize == 2 or netpbm else np.int32
    if not np.isfinite(values).all():
        return f"{int((~np.isfinite(values)).sum()):,} of its values are NaN or infinite"
    if size is not None and values.shape != size:
        values = np.asarray(_at_size(images.fromarray(values.astype(np.float32)), size, fit))
    values = values if kind is np.float32 else np.rint(values)
    out: NDArray[Any] = values.astype(kind)[:, :, None]
    return out


def _in_mode(picture: Image, colours: str | None) -> Image:
    """Convert to RGB or L. If `colours` is None, to the mode that loses nothing."""
    from PIL import Image as images

    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        over = images.new("RGBA", picture.size, (0, 0, 0, 255))
        over.alpha_composite(picture.convert("RGBA"))
        grey = picture.mode in ("LA", "La")
        picture = over.convert("L" if grey else "RGB")
    if colours is not None:
        return picture.convert("L" if colours == "grey" else "RGB")
    return picture if picture.mode in ("L", "RGB") else picture.convert("L" if picture.mode == "1" else "RGB")


def _at_size(picture: Image, size: tuple[int, int], fit: str) -> Image:
    """Resize to height and width `size`, bilinear with antialiasing."""
    from PIL import Image as images
    from PIL import ImageOps

    at = (size[1], size[0])
    how = images.Resampling.BILINEAR
    if fit == "stretch":
        return picture.resize(at, how)
    return ImageOps.fit(picture, at, how) if fit == "crop" else ImageOps.pad(picture, at, how)
