"""Whether pictures can begin with an image: some checkpoints leave out the VAE's encoder.

Only names in headers are read, and no heavy library is needed, so a server can say no beforehand.
"""

from pathlib import Path

from sd35.checkpoints.header import read_header
from sd35.checkpoints.keys import PREFIXES

ENCODER = "encoder."
NO_ENCODER = (
    "The VAE of this checkpoint has no encoder, so no picture can begin with an image: leave the image out, "
    "or take a checkpoint with a whole VAE."
)


def lacks_encoder(place: Path) -> bool:
    """Whether this folder or file has a VAE without an encoder; CheckpointError if it is damaged."""
    if place.is_dir():
        files, prefix = list((place / "vae").glob("*.safetensors")), ""
    else:
        files, prefix = [place], PREFIXES["vae"]
    names = [name for file in files for name in read_header(file).entries if name.startswith(prefix)]
    return bool(names) and not any(name.startswith(prefix + ENCODER) for name in names)
