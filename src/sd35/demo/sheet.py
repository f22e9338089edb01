"""Pictures for people: the contact sheet of 64 prompts, and the loss curve.

Both are drawn with Pillow alone. The prompts are fixed and chosen before the model was trained: plain
ones, ones with style and colour, colour words in names, two subjects, odd capitals, no words at all.
"""

from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLUMNS = 8
SIDE = 152
LINE = 12
CAPTION_LINES = 3

SHEET_PROMPTS = [
    "a fox",
    "a cute penguin in glossy style",
    "a red apple, flat style, on a blue background",
    "an icon of a fox on green",
    "a cat on the left and a guitar on the right, flat style, on a yellow background",
    "a rocket, cartoon style, on a purple background",
    "a castle in glossy style, pink background",
    "an orange on a blue background",
    "a black cat on a white background, flat style",
    "A Panda, Cartoon Style, On A Red Background",
    "a burger, glossy style, on a gray background",
    "an owl and a mushroom, cartoon style, on green",
    "sunflower, flat style, on a black background",
    "a green apple on a red background, glossy style",
    "a robot on a yellow background",
    "a sailboat, flat style, on an orange background",
    "a blue book on a pink background, cartoon style",
    "a violin in cartoon style, white background",
    "a picture of a pineapple on purple",
    "a puppy",
    "a fire truck, flat style, on a white background",
    "a unicorn, glossy style, on a pink background",
    "a pizza next to a beer, flat style, on a blue background",
    "a snowman on a blue background, cartoon style",
    "a red heart on a green background, glossy style",
    "a happy face, flat style, on a purple background",
    "a cactus on the left and a camel on the right, cartoon style, on an orange background",
    "a soccer ball, glossy style, on a green background",
    "a helicopter, cartoon style, on a gray background",
    "a cup of coffee",
    "strawberry, glossy style, black background",
    "a red lantern on a yellow background, flat style",
    "an elephant, flat style, on a pink background",
    "a tiger, cartoon style, on a blue background",
    "a lighthouse",
    "a house on the left and a tree on the right, flat style, on a blue background",
    "an ice cream, glossy style, on a yellow background",
    "a trophy on a red background, cartoon style",
    "a bicycle, flat style, on a green background",
    "a diamond, glossy style, on black",
    "a frog, glossy style, on a white background",
    "a watermelon in flat style, orange background",
    "a ghost, cartoon style, on a purple background",
    "a crown on a pink background, flat style",
    "a bunny and a carrot, glossy style, on a green background",
    "a turtle on a yellow background, cartoon style",
    "a cactus, glossy style, on a white background",
    "a telephone, flat style, on a gray background",
    "a donut",
    "a dragon, flat style, on a red background",
    "a guitar on the left and a drum on the right",
    "a green salad on a purple background, flat style",
    "a taxi, cartoon style, on a blue background",
    "a whale, glossy style, on an orange background",
    "A LION ON A BLUE BACKGROUND",
    "a rainbow, flat style, on a black background",
    "a teddy bear, cartoon style, on a pink background",
    "a volcano, glossy style, on a gray background",
    "a red envelope on a green background, cartoon style",
    "sushi, flat style, on a white background",
    "a butterfly on a yellow background, glossy style",
    "a kitten in cartoon style",
    "",
    "",
]


def contact_sheet(pictures: Tensor, captions: list[str]) -> Image.Image:
    """Pictures [N, H, W, 3] in a grid of eight columns, each over its caption."""
    font = ImageFont.load_default(10)
    cell = SIDE + CAPTION_LINES * LINE + 6
    rows = -(-len(captions) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 4) + 4, rows * cell + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, text) in enumerate(zip(pictures, captions, strict=True)):
        left, top = 4 + index % COLUMNS * (SIDE + 4), 4 + index // COLUMNS * cell
        small = Image.fromarray(np.asarray(picture)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(small, (left, top))
        for line, words in enumerate(textwrap.wrap(text or "(empty prompt)", 30)[:CAPTION_LINES]):
            draw.text((left, top + SIDE + 1 + line * LINE), words, fill="black", font=font)
    return sheet


def loss_curve(steps: list[float], losses: list[float], title: str) -> Image.Image:
    """The training loss over steps, both axes linear."""
    width, height, margin = 900, 420, 56
    chart = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(chart)
    font = ImageFont.load_default(12)
    low, high = min(losses) * 0.98, sorted(losses)[int(len(losses) * 0.97)] * 1.05
    for tick in range(6):
        value = low + (high - low) * tick / 5
        y = height - margin - (height - 2 * margin) * tick / 5
        draw.line((margin, y, width - margin / 2, y), fill=(225, 225, 225))
        draw.text((8, y - 7), f"{value:.3f}", fill="black", font=font)
        x = margin + (width - 1.5 * margin) * tick / 5
        draw.text((x - 14, height - margin + 8), f"{steps[-1] * tick / 5:.0f}", fill="black", font=font)
    points = [
        (
            margin + (width - 1.5 * margin) * step / steps[-1],
            height - margin - (height - 2 * margin) * (min(loss, high) - low) / (high - low),
        )
        for step, loss in zip(steps, losses, strict=True)
    ]
    draw.line(points, fill=(40, 90, 180), width=2)
    draw.text((margin, 16), title, fill="black", font=font)
    draw.text((width / 2 - 20, height - 24), "step", fill="black", font=font)
    return chart
