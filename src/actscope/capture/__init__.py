"""In-process capture: record activations of a transformers model or torch module while the user's code runs it.

`actscope.capture` is both this package and a public function. Importing any module of a package binds the package to its
name in the parent. The package is therefore callable, and `actscope.capture(...)` works in every import order.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

from actscope._lazy import attach

__getattr__, __dir__ = attach(__name__, {"capture": "actscope.capture.session:capture"})


class _CallablePackage(ModuleType):
    """Module type whose call forwards to `actscope.capture.session.capture`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.capture(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.capture)


sys.modules[__name__].__class__ = _CallablePackage
