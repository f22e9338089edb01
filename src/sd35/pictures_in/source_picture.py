"""A picture to start from, as pixels: what is left of an upload once it has been decoded.

Equal pixels are equal pictures, whatever file they came in: `sha256` is over the size and the pixels, so a
JPEG and the PNG made of it have the same one. Pillow is imported when a picture is fitted.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

from sd35.errors import RequestError


@dataclass(frozen=True)
class SourcePicture:
    """`rgb` is [height, width, 3], 8 bits each, sRGB."""

    width: int
    height: int
    rgb: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 1 or len(self.rgb) != 3 * self.width * self.height:
            raise RequestError(
                f"A source picture of {self.width} x {self.height} has 3 bytes for each pixel, not "
                f"{len(self.rgb)} in all: decode the file with sd35.pictures_in.decode."
            )

    @cached_property
    def sha256(self) -> str:
        """Of `WIDTHxHEIGHT`, a line feed, and the pixels, in hexadecimal."""
        found = hashlib.sha256(f"{self.width}x{self.height}\n".encode())
        found.update(self.rgb)  # in place: a joined copy would keep a server's other threads waiting
        return found.hexdigest()

    def fitted(self, width: int, height: int) -> "SourcePicture":
        """Resized (Lanczos) until it covers this size; what hangs over is cut off, equally on both sides."""
        if (self.width, self.height) == (width, height):
            return self
        from PIL import Image, ImageOps

        image = Image.frombytes("RGB", (self.width, self.height), self.rgb)
        covering = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        return SourcePicture(width, height, covering.tobytes())
