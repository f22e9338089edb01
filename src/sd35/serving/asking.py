"""From what a client sends to a job: the same checks for every face, before anything is written.

Gaps are filled here, from the model's recommended settings, and the seed is drawn: what is accepted is
complete.
"""

import secrets
import time
from dataclasses import dataclass

from sd35.checkpoints.vae_halves import NO_ENCODER
from sd35.errors import PromptError, RequestError
from sd35.request import STRENGTH, GenerationRequest, check_strength, size_for
from sd35.serving.jobs import Job, Priority, Spec, body_hash
from sd35.serving.keys import Caller
from sd35.serving.offers import begins_with_images
from sd35.serving.outbound import refuse_hidden
from sd35.serving.pictures import FORMATS
from sd35.serving.problems import Problem, ServiceError, of_request
from sd35.serving.seams import PromptPolicy
from sd35.serving.settings import Model, ServerSettings
from sd35.serving.uploads import Upload
from sd35.variants import Variant

MAX_PREVIEWS = 3
LONGEST_DEADLINE_S = 7 * 86_400
NO_MASK = (
    "This server draws whole pictures and can't keep parts of one: leave the mask out, and use strength."
)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request with gaps, from any face; None means: as the model's makers recommend."""

    prompt: str
    negative_prompt: str = ""
    model: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    n: int = 1
    output_format: str = "png"
    output_compression: int | None = None
    previews: int = 0
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None
    webhook_url: str | None = None
    face: str = "native"
    image: Upload | None = None  # to begin with; what `Uploads.accept` gave
    strength: float | None = None  # how much of it may go


def make_job(
    ask: Ask, caller: Caller, settings: ServerSettings, policy: PromptPolicy, client_id: str | None = None
) -> Job:
    """The job that this asks for; ServiceError where it is not acceptable."""
    model = model_named(ask.model, settings)
    _measure(ask)
    _judge(ask, caller, policy)
    _check(ask, settings)
    if ask.image is not None and not begins_with_images(model):
        raise ServiceError(Problem.INVALID_REQUEST, NO_ENCODER, param="image")
    spec = _spec(ask, model)
    try:
        spec.pictures(model)
    except (RequestError, PromptError) as error:
        raise of_request(error) from error
    deadline = None if ask.deadline_s is None else time.time() + ask.deadline_s
    return Job(
        spec=spec,
        client_id=client_id,
        key_id=caller.key_id,
        priority=ask.priority,
        body_hash=body_hash(_asked(ask)),
        face=ask.face,
        webhook_url=ask.webhook_url,
        deadline_at=deadline,
    )


def model_named(name: str | None, settings: ServerSettings) -> Model:
    """The model of this name, the first one without a name; ServiceError where there is none."""
    catalogue = settings.catalogue()
    if name is None:
        return next(iter(catalogue.values()))
    if name not in catalogue:
        names = ", ".join(catalogue)
        raise ServiceError(
            Problem.MODEL_NOT_FOUND, f"There is no model {name!r} here: choose one of {names}.", param="model"
        )
    return catalogue[name]


def _measure(ask: Ask) -> None:
    """Before anybody reads the prompts: a body that may hold a picture may hold a very long one."""
    try:
        GenerationRequest(ask.prompt, negative_prompt=ask.negative_prompt)
    except (RequestError, PromptError) as error:
        raise of_request(error) from error


def _judge(ask: Ask, caller: Caller, policy: PromptPolicy) -> None:
    for text in (ask.prompt, ask.negative_prompt):
        verdict = policy.judge(text, caller.key_id)
        if not verdict.allowed:
            raise ServiceError(
                Problem.PROMPT_BLOCKED,
                f"The prompt is not allowed here (list {verdict.list_name!r}): change its words.",
                param="prompt",
                filter_list=verdict.list_name,
            )


def _check(ask: Ask, settings: ServerSettings) -> None:
    if not 1 <= ask.n <= settings.max_images:
        raise _invalid("n", ask.n, f"give 1 to {settings.max_images}")
    if ask.output_format not in FORMATS:
        raise _invalid("output_format", ask.output_format, f"choose one of {', '.join(FORMATS)}")
    if ask.output_compression is not None and not 0 <= ask.output_compression <= 100:
        raise _invalid("output_compression", ask.output_compression, "give 0 to 100")
    if not 0 <= ask.previews <= MAX_PREVIEWS:
        raise _invalid("previews", ask.previews, f"give 0 to {MAX_PREVIEWS}")
    if ask.strength is not None:
        _check_strength(ask.strength, ask.image)
    if ask.deadline_s is not None and not 0 < ask.deadline_s <= LONGEST_DEADLINE_S:
        raise _invalid("deadline_s", ask.deadline_s, "give seconds above 0, a week at most")
    if ask.webhook_url is not None:
        try:
            refuse_hidden(ask.webhook_url, private_ok=settings.webhook_private)
        except RequestError as error:
            raise ServiceError(Problem.INVALID_REQUEST, str(error), param="webhook_url") from error


def _check_strength(strength: float, image: Upload | None) -> None:
    if image is None:
        raise _invalid("strength", strength, "it says how much of an image may go, so give an image too")
    strength_checked(strength)


def strength_checked(strength: float) -> float:
    """The strength itself; ServiceError where there is none such."""
    try:
        check_strength(strength)
    except RequestError as error:
        raise ServiceError(Problem.INVALID_REQUEST, str(error), param="strength") from error
    return strength


def _asked(ask: Ask) -> dict[str, object]:
    """What makes two requests the same; one without an image hashes as before there were any."""
    begins = ("image", "strength") if ask.image is None else ()
    return {name: value for name, value in vars(ask).items() if name not in begins}


def _invalid(field: str, value: object, remedy: str) -> ServiceError:
    return ServiceError(Problem.INVALID_REQUEST, f"{field} can't be {value!r}: {remedy}.", param=field)


def _spec(ask: Ask, model: Model) -> Spec:
    variant: Variant = model.variant
    shape = None if ask.image is None else (ask.image.width, ask.image.height)
    width, height = size_for(shape, ask.width, ask.height, variant)
    strength = STRENGTH if ask.strength is None else float(ask.strength)
    return Spec(
        prompt=ask.prompt,
        negative_prompt=ask.negative_prompt,
        model=model.name,
        width=width,
        height=height,
        num_inference_steps=(
            variant.num_inference_steps if ask.num_inference_steps is None else ask.num_inference_steps
        ),
        # 4 and 4.0 are the same request, so the recipe in the file has to read the same.
        guidance_scale=float(variant.guidance_scale if ask.guidance_scale is None else ask.guidance_scale),
        seed=secrets.randbelow(2**32) if ask.seed is None else ask.seed,
        n=ask.n,
        output_format=ask.output_format,
        output_compression=ask.output_compression,
        previews=ask.previews,
        image=None if ask.image is None else ask.image.name,
        strength=None if ask.image is None else strength,
    )
