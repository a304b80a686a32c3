"""Keys and roles of the messages of a request: those that the prompt contains, those that cannot change it, and the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from actscope.engines.hf.api.fields import means_nothing
from actscope.errors import RequestRefused

#: Keys of messages that a template gets as they are, and that label a message where it does not read them.
_LABELS = frozenset(
    {
        "annotations", "cache_control", "citations", "created_at", "id", "index", "logprobs", "metadata", "model", "name",
        "object", "phase", "prompt_cache_breakpoint", "provider_specific_fields", "status", "tool_call_id", "type", "usage",
        "weight",
    }
)  # fmt: skip
#: Keys that every message may have. Their values are checked where the message is rendered.
_CONTENTS = frozenset({"content", "role", "tool_calls"})
#: What to do instead of a key that the template does not read.
_INSTEAD: Mapping[str, str] = {
    "audio": "this engine takes text only",
    "function_call": "send the call in tool_calls, and its result as a message of the role tool",
    "images": "this engine takes text only",
    "is_error": "say it in the content",
    "partial": "send continue_final_message true and add_generation_prompt false",
    "prefix": "send continue_final_message true and add_generation_prompt false",
    "refusal": "send its text as content",
}
#: Roles of chats. What a template does not tell apart, it writes as one of them.
_ROLES = frozenset({"assistant", "developer", "system", "tool", "user"})
#: A template that writes the role of any message: an output with the word role.
_WRITES_ROLES = re.compile(r"\{\{[^}]*\brole\b")


class TemplateKeys:
    """What a chat template reads of messages, found by the names in its text.

    Args:
        template: The template.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self._writes_roles = _WRITES_ROLES.search(template) is not None

    def reads(self, key: str) -> bool:
        """Return whether the template reads a key of messages: as an attribute, or by its name in quotation marks."""
        return re.search(rf"[.'\"]{re.escape(key)}\b", self._template) is not None

    def check(self, where: str, message: Mapping[str, object]) -> None:
        """Check the role and the keys of a message.

        Args:
            where: Name of the message in errors: `messages[3]`.
            message: The message.

        Raises:
            RequestRefused: A key has a value that the prompt would not contain, or the template does not know the role.
        """
        role = message.get("role")
        if not isinstance(role, str):
            raise RequestRefused(f"{where}.role: expected a string, found {role!r:.100}", param=_param(where))
        if (
            role not in _ROLES
            and not self._writes_roles
            and not re.search(rf"['\"]{re.escape(role)}['\"]", self._template)
        ):
            raise RequestRefused(
                f"{where}.role: the model's chat template does not know {role!r:.100}; it is for {', '.join(sorted(_ROLES))}",
                param=_param(where),
            )
        refuse_unknown(where, message, _CONTENTS, self)


def refuse_unknown(
    where: str, given: Mapping[str, object], known: Iterable[str], template: TemplateKeys | None = None
) -> None:
    """Raise RequestRefused for a key that is neither `known`, nor a label, nor read by the template, and means something.

    Args:
        where: Name of the message or of the part in errors.
        given: The message or the part.
        known: Keys that the prompt contains.
        template: The template, if it gets the keys as they are.
    """
    for key in sorted(given.keys() - set(known) - _LABELS):
        if means_nothing(given[key]) or (template is not None and template.reads(key)):
            continue
        reason = _INSTEAD.get(key, "the prompt would not contain it. Leave it out")
        raise RequestRefused(f"{where}.{key:.100}: not supported: {reason}.", param=_param(where))


def _param(where: str) -> str:
    return where.partition("[")[0]
