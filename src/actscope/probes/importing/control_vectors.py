"""Control vectors in GGUF files, as probes: of repeng and of llama.cpp's cvector-generator.

A tensor `direction.N` is a direction of the stream, to be added to the output of block N. As a probe it is read where it was
found:

* repeng 0.4 (`extract.py`, `batched_get_hiddens`) takes `hidden_states[N + 1]`, the output of block N, counted from 0. Of the
  last block transformers has that behind the final norm only, so its direction is read at `final_norm`.
* llama.cpp (`tools/cvector-generator`) numbers its directions from 1, one for each block from the first on
  (`direction.%zu`, il + 1, of l_out-il), and skips the last block. `direction.N` is of the output of block N - 1.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from actscope.errors import ProbeError
from actscope.probes.format import Probe, ProbeInfo
from actscope.probes.importing.gguf import GgufFile, read_gguf
from actscope.runtime.decoding import as_own_error

_ARCHITECTURE = "controlvector"
_COUNT = f"{_ARCHITECTURE}.layer_count"
#: GGUF's code of int32, in which llama.cpp writes the count. repeng and its relatives write uint32.
_INT32 = 5


def read_control_vector(
    path: Path,
    *,
    name: str = "",
    n_layers: int | None = None,
    model: str | None = None,
    revision: str | None = None,
) -> list[Probe]:
    """Read a control vector: each direction is a probe with its scale and sign untouched, no bias and identity scores.

    Args:
        path: A `.gguf` file of architecture `controlvector`.
        name: Beginning of the probes' ids, `<name>-<N>`. By default the file's name.
        n_layers: Number of the model's blocks. By default that of repeng's own default, which has a direction for every block
            but the first.
        model: Name of the model that the probes are for; None fits any.
        revision: Revision of that model.

    Returns:
        The probes, by number of their direction.

    Raises:
        ProbeError: The file is not a control vector, or is malformed. The message names it.
    """
    try:
        with as_own_error(ProbeError, "not a control vector"):
            file = read_gguf(path, _ARCHITECTURE)
        directions = _directions(file)
        found = []
        by_llama_cpp = file.kinds.get(_COUNT) == _INT32
        for number, site in zip(directions, _sites(directions, by_llama_cpp, n_layers), strict=True):
            maker = "llama.cpp's cvector-generator" if by_llama_cpp else "repeng"
            info = ProbeInfo(
                id=f"{name or _id_of(path.stem)}-{number}",
                site=site,
                activation="identity",
                label=f"{name or path.stem} {number}",
                description=(
                    f"direction.{number} of a control vector in {maker}'s form, for a model of type "
                    f"{str(file.values.get(f'{_ARCHITECTURE}.model_hint'))[:100]!r}"
                ),
                model=model,
                revision=revision,
            )
            found.append(Probe(info, np.ascontiguousarray(directions[number])))
        return found
    except ProbeError as error:
        raise ProbeError(f"{path}: {error}") from error
    except OSError as error:
        raise ProbeError(f"{path}: cannot be read: {error.strerror or error}") from error


def _directions(file: GgufFile) -> dict[int, np.ndarray]:
    """Return the directions by number. Raises ProbeError if there are none, or they differ in width."""
    found = {}
    for name, tensor in file.tensors.items():
        if not name.startswith("direction."):
            continue
        match = re.fullmatch(r"direction\.(0|[1-9]\d{0,4})", name)
        if match is None or tensor.ndim != 1:
            raise ProbeError(
                f"tensor {name!r} of shape {list(tensor.shape)}: expected direction.<number> of one dimension"
            )
        found[int(match[1])] = tensor
    widths = {len(tensor) for tensor in found.values()}
    if len(widths) != 1:
        raise ProbeError(f"expected directions of one width, found {len(found)} of widths {sorted(widths)}")
    return dict(sorted(found.items()))


def _sites(directions: dict[int, np.ndarray], by_llama_cpp: bool, n_layers: int | None) -> list[str]:
    numbers = list(directions)
    if n_layers is not None and numbers[-1] >= n_layers:
        raise ProbeError(f"direction.{numbers[-1]} is of no block of a model with {n_layers} layers")
    if by_llama_cpp:
        if numbers[0] == 0:
            raise ProbeError("direction.0: llama.cpp numbers its directions from 1")
        return [f"layers.{number - 1}.resid_post" for number in numbers]
    if n_layers is None and numbers != list(range(1, len(numbers) + 1)):
        raise ProbeError(
            f"its directions are {numbers[0]} to {numbers[-1]}, {len(numbers)} of them: say how many layers the model has "
            "(--layers), since the direction of the last block is of the rows behind the final norm"
        )
    last = numbers[-1] if n_layers is None else n_layers - 1
    return ["final_norm" if number == last else f"layers.{number}.resid_post" for number in numbers]


def _id_of(stem: str) -> str:
    """Return an id from a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")[:50] or "direction"
