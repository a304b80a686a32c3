"""Capture in the user's own process: any transformers model, and any torch module, while the user's own code runs it.

`actscope.capture` is both this package and the function that users call. Python binds a package to its name in the parent
as soon as any module of it is imported, so the package itself is made callable: the name means the same in every order of
imports.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

from actscope._lazy import attach

__getattr__, __dir__ = attach(__name__, {"capture": "actscope.capture.session:capture"})


class _CallablePackage(ModuleType):
    """The package, called as `actscope.capture.session.capture`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.capture(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.capture)


sys.modules[__name__].__class__ = _CallablePackage
