"""The `actscope` field of a request: what is asked for, and what it means when nothing comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict, cast

from actscope.errors import ScoresError

#: Name of the field in requests, and in the choices of answers.
FIELD = "actscope"


class ScoreOptions(TypedDict, total=False):
    """Options for scores, as in the `actscope` field of a request.

    Attributes:
        probes: Ids of the probes whose scores are sent. By default all.
        prompt: Whether the tokens and scores of the prompt are sent. By default they are.
        features: Whether the features of the engine's SAE are sent. By default they are not.
        full_prompt: vLLM only: compute the whole prompt, even if a prefix of it is cached.
        rows: Whether raw rows go to the recording. With vLLM also sites, such as "0,7,15".
        keep: Reason to keep the request in the recording.
    """

    probes: list[str]
    prompt: bool
    features: bool
    full_prompt: bool
    rows: bool | str
    keep: str


#: Options of one call: True means those of the client, False asks for no scores.
Asked = bool | ScoreOptions | None


def body_with(asked: Asked, defaults: ScoreOptions, extra_body: object) -> dict[str, object]:
    """Return the `extra_body` of a request.

    Args:
        asked: Options of this call. They override single `defaults`.
        defaults: Options of the client.
        extra_body: The caller's own fields. They override the others.
    """
    own = cast(Mapping[str, object], extra_body) if isinstance(extra_body, Mapping) else {}
    options = {**defaults, **(asked if isinstance(asked, Mapping) else {})}
    field = {FIELD: options or True} if asked is not False else {}
    return {**field, **own}


def is_asked(body: Mapping[str, object]) -> bool:
    """Return whether a request with these fields must be answered with scores."""
    return body.get(FIELD) not in (None, False)


def no_scores(server: str) -> ScoresError:
    """Return the error for an answer without scores."""
    return ScoresError(
        f"the answer of {server} has no scores: expected an actscope gateway, found a server that ignores `{FIELD}`. "
        "Set base_url to that of `actscope serve`, or of `actscope gateway --upstream` in front of this server"
    )


def cut_off(server: str) -> ScoresError:
    """Return the error for a stream without its end."""
    return ScoresError(
        f"the stream of {server} ended before the last payload of a choice: scores are missing. "
        "Send the request again, or look up what the gateway has by the response's id"
    )
