"""Mend a checkpoint: bring the files again that something is wrong with, and no others."""

from pathlib import Path

from sd35.checkpoints.fetch.fetch import refetch
from sd35.checkpoints.manifest import FILE_NAME, read_manifest
from sd35.checkpoints.progress import Show
from sd35.errors import CheckpointError


def mend(path: Path, damaged: list[str], show: Show | None = None) -> list[str]:
    """Fetch those of the damaged files that the folder's manifest lists, and name them.

    `path` is the folder, or the single file in one; CheckpointError where the manifest lists none of them.
    """
    folder = path if path.is_dir() else path.parent
    manifest = read_manifest(folder)
    recorded = [name for name in damaged if manifest is not None and name in manifest.files]
    if not recorded:
        raise CheckpointError(
            f"{path} can't be mended: {folder / FILE_NAME} lists none of what is wrong with it; fetch it "
            "anew with sd35 fetch, or make it anew if quantize or convert made it."
        )
    refetch(folder, recorded, show=show)
    return recorded
