"""The extras of the package: what each installs, and the check that names what is missing before work begins.

`EXTRAS` and `INCLUDES` repeat `pyproject.toml` in import names, since an installed package cannot read that file;
`tests/install/test_extras.py` compares the two.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from actscope.errors import MissingExtra

#: Import names of what is installed without extras.
BASE = ("numpy", "msgspec", "safetensors", "typer", "rich", "httpx")
#: Import names of the packages that each extra adds to the extras that it includes. The first extra with a package is the one
#: that its install line names.
EXTRAS: dict[str, tuple[str, ...]] = {
    "record": ("crc32c", "lz4", "mcap", "zstandard"),
    "gateway": (
        "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "aiohttp", "prometheus_client", "tokenizers",
    ),
    "probes": ("sklearn", "skops"),
    "hf": ("torch", "transformers", "tokenizers", "jinja2"),
    "gguf": ("accelerate", "gguf"),
    "smollm2": (),
    "vllm": (),
    "export": ("pyarrow", "zarr"),
    "analyze": ("matplotlib", "networkx", "perfetto", "scipy"),
    "client": ("openai", "pydantic"),
    "gpu": ("pynvml",),
    "otel": ("opentelemetry",),
    "feed": ("datasets",),
    "harvest": ("obstore",),
    "ray": ("ray",),
    "all": (),
}  # fmt: skip
#: Extras that an extra includes.
INCLUDES: dict[str, tuple[str, ...]] = {
    "hf": ("gateway", "record", "probes"),
    "gguf": ("hf",),
    "smollm2": ("gguf",),
    "vllm": ("gateway", "record"),
    "export": ("record",),
    "analyze": ("record",),
    "feed": ("hf",),
    "harvest": ("feed",),
    "ray": ("harvest",),
    "all": ("gguf", "export", "analyze", "client", "gpu", "harvest", "otel"),
}
#: What reads and writes a recording.
RECORDING = EXTRAS["record"]
#: What serves HTTP.
SERVER = EXTRAS["gateway"]
#: What runs a model of transformers.
MODEL = EXTRAS["hf"]


def extra_of(module: str) -> str | None:
    """Return the extra that installs a module, such as `torch.nn`; "" if none is needed, None for a module of another package."""
    package = module.partition(".")[0]
    if package in BASE:
        return ""
    return next((extra for extra, packages in EXTRAS.items() if package in packages), None)


def missing(*packages: str) -> list[str]:
    """Return those of the packages (import names) that are not installed. Nothing is imported."""
    return [package for package in packages if package not in sys.modules and find_spec(package) is None]


def require(extra: str, *packages: str) -> None:
    """Check that packages are installed, without importing them. Called before work begins.

    Args:
        extra: Extra for the install line. It installs all of `packages`. Several are separated by commas.
        packages: Import names. None: those that the extra adds itself.

    Raises:
        MissingExtra: Packages are not installed. Names all of them.
    """
    absent = missing(*(packages or EXTRAS[extra]))
    if absent:
        raise MissingExtra(extra, *dict.fromkeys(absent))
