"""Labelled texts for the probes of SmolLM2, written by this project: sentences, and templates filled from lists of words.

Each list of sentences, templates or words is divided into three parts: "fit", "choose" and "held". A text of one part is made of
sentences, templates and words of that part only, so that held-out text differs in wording and not only in combination.
"""
