"""Conjugation of the verbs that the stories use."""

from __future__ import annotations

import re

_IRREGULAR = {
    "be": "was", "have": "had", "do": "did", "go": "went", "come": "came", "see": "saw", "run": "ran", "sit": "sat",
    "eat": "ate", "drink": "drank", "sing": "sang", "swim": "swam", "sleep": "slept", "find": "found", "lose": "lost",
    "meet": "met", "say": "said", "tell": "told", "give": "gave", "take": "took", "make": "made", "feel": "felt",
    "hear": "heard", "hold": "held", "keep": "kept", "know": "knew", "fall": "fell", "fly": "flew", "stand": "stood",
    "think": "thought", "bring": "brought", "catch": "caught", "build": "built", "write": "wrote", "read": "read",
    "hide": "hid", "shine": "shone", "blow": "blew", "grow": "grew", "begin": "began", "break": "broke", "get": "got",
    "wake": "woke", "rise": "rose", "leave": "left", "ride": "rode", "draw": "drew", "dig": "dug", "fight": "fought",
    "throw": "threw", "put": "put", "let": "let", "shake": "shook", "win": "won", "forget": "forgot", "sail": "sailed",
    "lie": "lay", "steal": "stole", "understand": "understood", "creep": "crept", "spend": "spent", "show": "showed",
    "forgive": "forgave", "stop": "stopped", "hug": "hugged", "clap": "clapped", "chat": "chatted", "teach": "taught",
    "buy": "bought", "hit": "hit", "cut": "cut", "light": "lit", "stay": "stayed", "play": "played", "dream": "dreamed",
    "smell": "smelled", "shut": "shut", "freeze": "froze", "grab": "grabbed", "hum": "hummed", "wear": "wore",
    "can": "could", "hurt": "hurt", "tear": "tore", "ring": "rang", "slip": "slipped",
}  # fmt: skip

_IRREGULAR_THIRD = {"be": "is", "have": "has", "can": "can"}
_VERB = re.compile(r"(~~\+|~~|~\+|~)([a-z]+)")


def past(verb: str) -> str:
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + "ed"


def third(verb: str) -> str:
    """Return the present tense after he, she or it."""
    if verb in _IRREGULAR_THIRD:
        return _IRREGULAR_THIRD[verb]
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "sh", "ch", "x", "o")) else "s")


def _form(mark: str, verb: str, tense: str) -> str:
    plural, chained = mark.startswith("~~"), mark.endswith("+")
    if tense == "past":
        return "[past]" + ("were" if plural and verb == "be" else past(verb))
    if tense == "future":
        return verb if chained else "[future]will " + verb
    if plural:
        return "are" if verb == "be" else verb
    return third(verb)


def conjugate(template: str, tense: str) -> str:
    """Put the verbs of a template into `past`, `present` or `future`, and mark past and future.

    `~walk` has a subject in the singular, `~~walk` in the plural; `~+walk` and `~~+walk` follow another verb ("will sit
    and look").
    """
    return _VERB.sub(lambda m: _form(m[1], m[2], tense), template)
