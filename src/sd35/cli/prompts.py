"""Prompts from a file, one a line, or the demo model's own."""

from pathlib import Path

from sd35.errors import MissingError, RequestError


def read_prompts(path: str | None, count: int) -> list[str]:
    """The first `count` prompts of a text file; without one, the demo's, half of never trained pairs."""
    if path is None:
        from sd35.demo.prompts import held_out_prompts, trained_prompts

        trained, held_out = trained_prompts(count - count // 2), held_out_prompts(count // 2)
        return [prompt.text for prompt in [*trained, *held_out]]
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"{path} can't be read ({error}): give a text file in UTF-8.") from error
    prompts = [line.strip() for line in lines if line.strip()][:count]
    if not prompts:
        raise RequestError(f"{path} holds no prompts: write one on each line.")
    return prompts
