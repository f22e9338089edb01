"""The process that decodes one picture for `decode.py`: a stranger's file on stdin, pixels on stdout.

Decoders are old C code that strangers aim at, so this process has little to lose: it limits its own memory,
seconds and output before it looks at the first byte, knows three formats, and ends. It is run by its path and
in isolation (`python -I -S`), so it imports nothing of ours, nothing from the current folder, and of what is
installed Pillow alone.

macOS refuses a bound on address space, and Windows has none of these limits: there the parent's clock, the
count of pixels and the measure of the answer are what holds.

Arguments: the folder that Pillow is in, most pixels, bytes of address space, seconds of CPU, bytes of output.
The first line of stdout is JSON: {"width": w, "height": h}, with w * h * 3 bytes behind it, or {"refused":
why}. Any other ending says that the file is damaged, or worse.
"""

import io
import json
import sys
from typing import TYPE_CHECKING

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
WHITE = (255, 255, 255, 255)


def limit(address_space: int, cpu_s: int, output: int) -> None:
    """From here on: so much memory, so many seconds, so much output, and no file but those that are open."""
    if sys.platform != "win32":
        if sys.platform != "darwin":
            resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # SIGXCPU, which says why, then SIGKILL
        resource.setrlimit(resource.RLIMIT_FSIZE, (output, output))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def decoded(data: bytes, most_pixels: int) -> "Image | str":
    """The picture as 8-bit sRGB, the way up that its camera was held; or why not, for the parent's words."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # ours, below, is exact and refuses
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        return "format"
    width, height = image.size  # from the header: no pixel has been decoded yet
    if width * height > most_pixels:
        return f"pixels {width}x{height}"
    image.load()  # of an animation, the first frame
    profile = image.info.get("icc_profile")
    return in_srgb(on_white(upright(image)), profile)


def upright(image: "Image") -> "Image":
    """Turned as EXIF says; EXIF that can't be read says nothing."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, OverflowError, OSError):
        return image


def on_white(image: "Image") -> "Image":
    """Without transparency: what shines through is white."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, WHITE), seen).convert("RGB")


def in_srgb(image: "Image", profile: bytes | None) -> "Image":
    """By the file's own colour profile; a missing one means sRGB, and one that doesn't fit is passed over."""
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 256).convert("L")
    if profile:
        from PIL import ImageCms

        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            return image.convert("RGB")
        if converted is not None:
            return converted
    return image.convert("RGB")


def main() -> None:
    """Read, decode, answer."""
    sys.path.append(sys.argv[1])
    most_pixels, address_space, cpu_s, output = map(int, sys.argv[2:])
    limit(address_space, cpu_s, output)
    data = sys.stdin.buffer.read()
    try:
        found = decoded(data, most_pixels)
        pixels = b"" if isinstance(found, str) else found.tobytes()
    except MemoryError:
        found, pixels = "memory", b""
    answer = {"refused": found} if isinstance(found, str) else {"width": found.width, "height": found.height}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.write(pixels)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
