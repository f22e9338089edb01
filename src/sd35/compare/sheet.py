"""The comparison for eyes: rows of reference, candidate and their difference, eight times amplified."""

from PIL import Image, ImageChops, ImageDraw

from sd35.compare.compare import Comparison

GAP, CAPTION, AMPLIFY = 8, 18, 8


def contact_sheet(comparison: Comparison, rows: int = 8) -> Image.Image:
    """The first `rows` pictures of both drawings side by side, each under its prompt."""
    pairs = list(zip(comparison.reference.images, comparison.candidate.images, strict=True))[:rows]
    width, height = pairs[0][0].size
    sheet = Image.new("RGB", (3 * (width + GAP) + GAP, len(pairs) * (height + CAPTION + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for row, ((reference, candidate), prompt) in enumerate(
        zip(pairs, comparison.reference.prompts, strict=False)
    ):
        top = GAP + row * (height + CAPTION + GAP)
        draw.text((GAP, top), f"{prompt}   [reference | candidate | difference x {AMPLIFY}]", fill="black")
        for column, picture in enumerate((reference, candidate, amplified(reference, candidate))):
            sheet.paste(picture, (GAP + column * (width + GAP), top + CAPTION))
    return sheet


def amplified(reference: Image.Image, candidate: Image.Image) -> Image.Image:
    """|reference - candidate| times eight, what lies beyond white is white."""
    return ImageChops.difference(reference, candidate).point(lambda value: value * AMPLIFY)
