"""One file -> one picture as an array: upright as its EXIF says, in one mode and one size. Needs Pillow.

8 bits stay bytes. Deeper pictures (16 and 32 bits, float) keep their values: what is black and what is white is a matter of the whole set
(`data/pixel_range.py`), not of one picture.
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

__all__ = ["PICTURE_SUFFIXES", "decode_picture", "import_pillow"]

PICTURE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".jp2", ".j2k", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga",
)  # fmt: skip
"""Names of files that are read as pictures."""
_MOST_PIXELS = 178_956_970
"""Pillow's own limit, beyond which a picture is a decompression bomb."""
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of more than 8 bits a channel."""


def import_pillow() -> Any:
    """`PIL.Image`; raises `MissingExtra`."""
    try:
        from PIL import Image
    except ImportError as err:
        raise MissingExtra("reading pictures", "images") from err
    return Image


def decode_picture(path: Path, size: tuple[int, int] | None, fit: str, colours: str | None) -> NDArray[Any] | str:
    """The picture in a file, or why there is none.

    Args:
        path: the file.
        size: (height, width) that it is brought to; None: its own.
        fit: `crop`, `stretch` or `pad`, where its shape is another.
        colours: `rgb`, `grey`, or None for whichever loses nothing.

    Returns:
        (H, W, 1 or 3) uint8; (H, W, 1) uint16, int32 or float32 of a deeper picture; or a text that says what is wrong.
    """
    from PIL import Image, ImageOps

    try:
        content = io.BytesIO(path.read_bytes())
        if path.suffix.lower() in (".png", ".apng"):
            with Image.open(content) as file:
                file.verify()  # its checksums: decoding alone would not look at them
            content.seek(0)
        with Image.open(content) as file:
            if file.width * file.height > _MOST_PIXELS:
                return f"{file.width:,} x {file.height:,} pixels are more than any picture has"
            if size is not None and file.format == "JPEG":
                file.draft(None, (2 * size[1], 2 * size[0]))  # decodes at a half, a quarter, where that is still twice what is wanted
            file.load()
            picture: Image.Image = ImageOps.exif_transpose(file)
        if picture.mode in _DEEP:
            return _deep(picture, size, fit, netpbm=file.format == "PPM")
        picture = _in_mode(picture, colours)
        if size is not None:
            picture = _at_size(picture, size, fit)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as err:
        if isinstance(err, PermissionError):
            return "may not be read by this user (permission denied)"
        return f"not a whole picture ({str(err).partition(chr(10))[0]})"
    pixels = np.asarray(picture, np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _deep(picture: Image, size: tuple[int, int] | None, fit: str, *, netpbm: bool) -> NDArray[Any] | str:
    """Values as they are; resized as float32, which holds each 16-bit value exactly. `netpbm`: Pillow brings these to 16 bits."""
    from PIL import Image as images

    values = np.asarray(picture)
    kind: Any = np.float32 if values.dtype.kind == "f" else np.uint16 if values.dtype.itemsize == 2 or netpbm else np.int32
    if not np.isfinite(values).all():
        return f"{int((~np.isfinite(values)).sum()):,} of its values are not finite numbers"
    if size is not None and values.shape != size:
        values = np.asarray(_at_size(images.fromarray(values.astype(np.float32)), size, fit))
    values = values if kind is np.float32 else np.rint(values)
    out: NDArray[Any] = values.astype(kind)[:, :, None]
    return out


def _in_mode(picture: Image, colours: str | None) -> Image:
    """RGB or L. Of `colours` None, whichever loses nothing."""
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
    """Height and width `size`, bilinear over the whole source area (antialiased)."""
    from PIL import Image as images
    from PIL import ImageOps

    at = (size[1], size[0])
    how = images.Resampling.BILINEAR
    if fit == "stretch":
        return picture.resize(at, how)
    return ImageOps.fit(picture, at, how) if fit == "crop" else ImageOps.pad(picture, at, how)
