"""The mends that are safe: nothing is lost that can't be had again, and no program is installed.

    damaged files that were fetched     brought again from their origin, as `sd35 verify --fix`
    a damaged FP8 folder of our own     removed; it is made again when it is next needed
    a token that others may read        made the owner's alone

All else is left to the person, with the command.
"""

import shutil
from collections.abc import Iterator

from sd35.checkpoints.fetch import environment
from sd35.checkpoints.fetch.mend import mend
from sd35.checkpoints.verify import verify
from sd35.doctor.checkpoints import Place
from sd35.doctor.finding import Finding
from sd35.errors import Sd35Error


def mend_all(findings: list[Finding], places: list[Place]) -> Iterator[str]:
    """Do what is safe about these findings; a sentence for each deed, and for each that failed."""
    damaged = {finding.check for finding in findings if not finding.ok and finding.about == "checkpoint"}
    for place in places:
        if place.name in damaged:
            yield _mend_checkpoint(place)
    if any(finding.trouble == "token readable by others" for finding in findings):
        path = environment.token_path()
        path.chmod(0o600)
        yield f"made {path} readable by its owner alone"


def _mend_checkpoint(place: Place) -> str:
    if place.is_derived:
        shutil.rmtree(place.path)
        return f"removed {place.path}: it is made again when it is next needed"
    try:
        brought = mend(place.path, verify(place.path).damaged)
    except Sd35Error as error:
        return f"could not mend {place.name}: {error}"
    return f"fetched again for {place.name}: {', '.join(brought)}"
