"""Decoding strangers' files: what is read, what is refused, and in which words."""

import io
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageCms, ImageOps

from sd35.errors import MissingError, RequestError, SourceError
from sd35.pictures_in import decode as decoding
from sd35.pictures_in.decode import Limits, decode, read_picture
from sd35.pictures_in.source_picture import SourcePicture

SMALL = Limits(file_bytes=1 << 20, pixels=100_000)


def drawn(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    """A picture without symmetry: a red corner, a gradient from left to right."""
    image = Image.linear_gradient("L").rotate(90).resize((width, height)).convert("RGB")
    image.paste((255, 0, 0), (0, 0, 8, 8))
    return image.convert(mode)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """As a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def header_of(width: int, height: int) -> bytes:
    """A PNG whose header says so, with next to no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def pixels(picture: SourcePicture) -> Image.Image:
    """To look at."""
    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_files_keep_their_pixels(kind: str) -> None:
    """What was saved without loss comes out byte for byte."""
    image = drawn()
    assert decode(saved(image, kind, lossless=True)) == SourcePicture(48, 32, image.tobytes())


def test_jpeg_is_what_pillow_says() -> None:
    """A JPEG decodes to the pixels that Pillow gives in this process."""
    data = saved(drawn(), "JPEG", quality=90)
    assert decode(data).rgb == Image.open(io.BytesIO(data)).tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    """A photograph stands as its camera was held, in each of EXIF's eight ways."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(drawn(), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decode(data) == SourcePicture(*upright.size, upright.tobytes())
    assert (upright.size == (48, 32)) == (orientation < 5)


def test_broken_exif_says_nothing() -> None:
    """A picture whose EXIF is nonsense is read as it lies."""
    assert decode(saved(drawn(), "PNG", exif=b"Exif\0\0nonsense")).rgb == drawn().tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_shines_through_is_white(mode: str) -> None:
    """Transparency is laid on white, half of it by half."""
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255 if mode == "P" else 128))
    first, second = pixels(decode(saved(image.convert(mode)))).get_flattened_data()
    assert first == (255, 255, 255)
    assert second == ((0, 0, 0) if mode == "P" else (127, 127, 127))


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "L"), ("PNG", "1"), ("JPEG", "L"), ("JPEG", "CMYK")])
def test_other_modes_become_rgb(kind: str, mode: str) -> None:
    """Grey, black and white, and print colours are RGB afterwards, near to what they were."""
    wanted = drawn(mode=mode).convert("RGB")
    found = decode(saved(drawn(mode=mode), kind))
    differences = [abs(a - b) for a, b in zip(found.rgb, wanted.tobytes(), strict=True)]
    assert sum(differences) / len(differences) < 4


def test_sixteen_bits() -> None:
    """A grey value of 16 bits keeps its upper eight."""
    image = Image.new("I;16", (2, 1))
    image.putpixel((1, 0), 0x80FF)
    assert decode(saved(image)).rgb == bytes([0, 0, 0, 0x80, 0x80, 0x80])


def test_colour_profiles_are_converted() -> None:
    """A picture with a profile of its own is told in sRGB: a linear half is a light grey there."""
    lab_free = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = Image.new("RGB", (4, 4), (128, 128, 128))
    assert decode(saved(grey, icc_profile=lab_free)).rgb[:3] == bytes([128] * 3)
    assert decode(saved(grey, icc_profile=_linear(lab_free))).rgb[0] in range(186, 190)
    assert decode(saved(grey, icc_profile=b"no profile at all")).rgb[:3] == bytes([128] * 3)


def _linear(profile: bytes) -> bytes:
    """sRGB's primaries without its curve: each tone curve becomes ICC's identity, `curv` of no entries."""
    data = bytearray(profile)
    for i in range(struct.unpack_from(">I", data, 128)[0]):
        name, offset, _ = struct.unpack_from(">4sII", data, 132 + 12 * i)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            data[offset : offset + 12] = b"curv" + bytes(8)
            struct.pack_into(">I", data, 132 + 12 * i + 8, 12)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    """The first frame is the picture."""
    first, second = drawn(), Image.new("RGB", (48, 32), "green")
    data = saved(first, kind, save_all=True, append_images=[second], duration=50, lossless=True)
    assert decode(data).rgb == first.tobytes()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello", "no PNG, JPEG or WEBP"),
        (SVG, "no PNG, JPEG or WEBP"),
        (saved(drawn(), "GIF"), "no PNG, JPEG or WEBP"),
        (saved(drawn(), "BMP"), "no PNG, JPEG or WEBP"),
        (saved(drawn(), "TIFF"), "no PNG, JPEG or WEBP"),
        (b"GIF89a" + saved(drawn(), "PNG"), "no PNG, JPEG or WEBP"),
        (saved(drawn())[:-40], "damaged"),
        (saved(drawn(), "JPEG")[:-200], "damaged"),
        (saved(drawn(), "WEBP")[:-40], "damaged"),
        (header_of(300, 200), "damaged"),  # claims more than it has
        (header_of(50_000, 50_000), "50000x50000 pixels"),
        (saved(Image.new("L", (400, 400))), "400x400 pixels"),  # small as a file, and large unpacked
        (bytes((1 << 20) + 1), "longer than 1 MiB"),
    ],
)
def test_refusals(data: bytes, words: str) -> None:
    """What is no picture of ours, or too much of one, gets a sentence that names the reason."""
    with pytest.raises(SourceError, match=words) as refusal:
        decode(data, SMALL)
    assert str(refusal.value).endswith(".")
    assert "\n" not in str(refusal.value)


def test_bombs_are_not_unpacked() -> None:
    """A picture beyond the bound is refused by its header: no memory for its pixels is ever needed."""
    bomb = saved(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(SourceError, match="megapixels"):
        decode(bomb, replace(Limits(), address_space=256 << 20))


def test_polyglots_lose_their_other_half() -> None:
    """A PNG that is an archive or a web page as well is its pixels and nothing else."""
    image = drawn()
    data = saved(image) + b"PK\x03\x04<script>alert(1)</script>"
    assert decode(data) == SourcePicture(48, 32, image.tobytes())


def test_memory_is_bounded() -> None:
    """A picture that needs more memory than the child may have is refused, and says so."""
    with pytest.raises(SourceError, match="needs more than 128 MiB"):
        decode(saved(Image.new("RGB", (5000, 5000))), replace(Limits(), address_space=128 << 20))


def test_the_largest_pictures_are_read() -> None:
    """The usual bounds leave room for what they promise: 32 megapixels, transparent, turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.new("RGBA", (8000, 4000), (1, 2, 3, 255)), "PNG", exif=exif, compress_level=1)
    found = decode(data)
    assert (found.width, found.height, found.rgb[:3]) == (4000, 8000, bytes([1, 2, 3]))


def plant(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[str], None]:
    """Have `decode` run a child of ours instead."""

    def run(program: str) -> None:
        child = folder / "child.py"
        child.write_text(program, encoding="utf-8")
        monkeypatch.setattr(decoding, "CHILD", child)

    return run


LIMITED = "import sys; sys.path.insert(0, {folder!r}); from child import limit; limit(1 << 30, 1, 1000)\n"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import time; time.sleep(60)", "took more than 2 s to decode"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("raise SystemExit(3)", "damaged"),
        ("print('no JSON')", "damaged"),
        ("print('{}')", "damaged"),
        ('print(\'{"width": 9, "height": 9}\')', "damaged"),
        ('print(\'{"width": -1, "height": -1}\' + "abc")', "damaged"),
        ('print(\'{"width": 900000, "height": 900000}\')', "damaged"),
    ],
)
def test_children_that_fail(
    program: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A decoder that hangs, is killed, crashes or lies costs one sentence."""
    plant(monkeypatch, tmp_path)(program)
    with pytest.raises(SourceError, match=words):
        decode(saved(drawn()), replace(Limits(), wall_s=2.0))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("while True: pass", "of computing"),
        ("while True: sys.stdout.write('x' * 100); sys.stdout.flush()", "damaged|SIGXFSZ"),
    ],
)
def test_the_child_keeps_its_bounds(
    program: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The bounds that the child sets itself end one that computes, or talks, for ever."""
    limited = LIMITED.format(folder=str(decoding.CHILD.parent))
    plant(monkeypatch, tmp_path)(limited + program)
    with pytest.raises(SourceError, match=words):
        decode(saved(drawn()))


def test_the_child_is_told_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the environment holds is not handed to the process that a stranger's file may take over."""
    monkeypatch.setenv("SD35_PLANTED", "secret")
    answer = 'print(\'{"refused": "format"}\')'
    plant(monkeypatch, tmp_path)(f"import os; assert 'SD35_PLANTED' not in os.environ; {answer}")
    with pytest.raises(SourceError, match="no PNG"):
        decode(saved(drawn()))


def test_several_threads_at_once() -> None:
    """Threads of a server may decode side by side."""
    files = [saved(Image.new("RGB", (16, 16), (i, i, i))) for i in range(8)]
    found: dict[int, SourcePicture] = {}
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, decode(files[i]))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i].rgb[0] for i in range(8)] == list(range(8))


def test_files_are_read_up_to_the_bound(tmp_path: Path) -> None:
    """Of a file that never ends no more is read than may be."""
    with pytest.raises(SourceError, match="longer than 1 MiB"):
        read_picture(Path("/dev/zero"), SMALL)
    for name in ("gone.png", "."):
        with pytest.raises(MissingError, match="can't be read"):
            read_picture(tmp_path / name)
    path = tmp_path / "in.png"
    path.write_bytes(saved(drawn()))
    assert read_picture(path).rgb == drawn().tobytes()


def test_equal_pixels_are_equal_pictures() -> None:
    """A picture is its pixels: equal ones are equal, hash alike and have one SHA-256; others differ."""
    png, webp = decode(saved(drawn())), decode(saved(drawn(), "WEBP", lossless=True))
    assert png == webp
    assert hash(png) == hash(webp)
    assert png.sha256 == webp.sha256
    assert replace(png, rgb=bytes([1, *png.rgb[1:]])).sha256 != png.sha256
    assert SourcePicture(2, 1, bytes(6)).sha256 != SourcePicture(1, 2, bytes(6)).sha256
    with pytest.raises(RequestError, match="3 bytes"):
        SourcePicture(2, 2, bytes(11))


def test_fitted_covers_and_crops_the_middle() -> None:
    """A wide picture loses its left and right equally, and nothing is stretched."""
    image = Image.new("RGB", (300, 100), "white")
    image.paste((0, 0, 255), (100, 0, 200, 100))
    found = SourcePicture(300, 100, image.tobytes()).fitted(50, 50)
    assert (found.width, found.height) == (50, 50)
    middle = pixels(found).crop((6, 0, 44, 50))
    assert middle.get_flattened_data() == ((0, 0, 255),) * (38 * 50)
    assert found.fitted(50, 50) is found
