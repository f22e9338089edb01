"""The classic troubles: what a person sees, what is behind it, which check finds it.

The table of docs/guides/troubleshooting.md is made of this one; each row has a test with the trouble planted.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """A row: `name` is what findings carry, `ask` the command that looks for it."""

    name: str
    seen: str
    causes: str
    ask: str
    mend: str


TROUBLES = (
    Trouble(
        "out of memory",
        '`sd35 generate` ends with "need N GiB with the smallest plan", or a program is killed',
        "no plan fits the card's free memory at this size; host memory is smaller than weights that move or "
        "that a CPU draws with",
        "sd35 doctor CHECKPOINT --size 1536 --max-vram 7.2GiB",
        "the largest square that fits, as `--width` and `--height`; FP8 weights; a smaller variant",
    ),
    Trouble(
        "blurred or off-colour",
        "noise, blur, blocks, wrong colours or contrast",
        "a flipped byte or a half file; a VAE with another model's `scaling_factor` or `shift_factor`; an "
        "FP8 file without its scales; a card that multiplies wrongly",
        "sd35 doctor CHECKPOINT",
        "`sd35 doctor CHECKPOINT --fix`; the original file; for the card, `--activations 16bit`",
    ),
    Trouble(
        "prompt ignored",
        "pictures that have little to do with the prompt, objects mixed up",
        "a text encoder or a tokenizer of another model: other ids, other special tokens, other padding",
        "sd35 doctor CHECKPOINT",
        "encoder and tokenizer from one checkpoint; `sd35 doctor CHECKPOINT --fix` where it was fetched",
    ),
    Trouble(
        "attention library missing",
        '`--attention fa3` or `xformers` ends with "can\'t run here"',
        "the package is not installed, or it is for another card",
        "sd35 doctor --attention fa3",
        "`pip install 'sd35-fp8[hopper]'`; `--attention auto` always runs",
    ),
    Trouble(
        "card not used",
        'all is slow and the card is idle; "no kernel image is available"; "Failed to find C compiler"',
        "PyTorch built without CUDA; a driver older than PyTorch's CUDA; a build without code for this card; "
        "no C compiler or Python headers for Triton",
        "sd35 doctor",
        "the build of torch, the driver or the packages that the finding names",
    ),
    Trouble(
        "checkpoint missing or refused",
        '"is not on this machine", "is not finished", "is refused"',
        "never fetched, or the fetch was cut off; a broken record, an index or a file that no checkpoint has",
        "sd35 doctor CHECKPOINT",
        "`sd35 fetch NAME`: it goes on where it stopped; else what the finding names",
    ),
    Trouble(
        "fetch refused",
        '"is gated", "does not know the token"',
        "no token, a wrong one, or the licence is not accepted",
        "sd35 doctor CHECKPOINT --online",
        "accept the licence on the page that is named; `hf auth login`",
    ),
    Trouble(
        "token readable by others",
        "nothing, until somebody uses it",
        "the token's file is open to other users of the machine",
        "sd35 doctor",
        "`sd35 doctor --fix`, or `chmod 600` of the file",
    ),
    Trouble(
        "disk full",
        "fetch and quantize stop for want of room",
        "less than 1 GiB free where `SD35_HOME` is",
        "sd35 doctor",
        "free the disk, or `export SD35_HOME=/another/disk`",
    ),
)


def troubleshooting_table() -> str:
    """The table for people, in Markdown."""
    head = ["| what you see | what may be behind it | ask | mend |", "|---|---|---|---|"]
    rows = [f"| **{one.name}**: {one.seen} | {one.causes} | `{one.ask}` | {one.mend} |" for one in TROUBLES]
    return "\n".join([*head, *rows])
