"""Probes on disk and in memory: a direction with everything that is needed to interpret its scores.

Two formats are read:

* ours: one `.safetensors` file with tensors `weight` [d], `test_inputs` [k, d], `test_scores` [k], and the other fields as JSON
  in its metadata. The test vectors are scored at load, so a wrong convention is an error, never a plausible number;
* the field's plain JSON, `enc_<layer>_<name>.json`, with at least `{"vector": [...]}`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from actscope.errors import ProbeError, SiteError
from actscope.near_miss import hinted
from actscope.probes.checkpoint import PICKLES, read_safetensors, refuse_pickle
from actscope.probes.hooks import hooked_site
from actscope.probes.score import ACTIVATIONS, score
from actscope.runtime.decoding import as_own_error, decode_json
from actscope.runtime.printable import one_line
from actscope.runtime.publish import publish_file, publish_files
from actscope.runtime.regular_files import read_regular
from actscope.sites import Site

MAX_WIDTH = 1 << 17  # wider than any model; a cap before allocation
MAX_FILE_BYTES = 64 << 20
TEST_TOLERANCE = 1e-3

log = logging.getLogger("actscope.probes")

#: Largest relative rounding of a number that is stored in half precision (half a unit in the last place).
_ROUNDING = {"F16": 2**-11, "BF16": 2**-8}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ID_RULE = "an id is 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
_METADATA_KEY = "actscope_probe"


class ProbeInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metadata of a probe: everything but its vector. Clients see all of it. Unknown keys are refused.

    Attributes:
        id: 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit.
        site: Site whose rows the probe reads, such as `layers.12.resid_post`.
        activation: A key of ACTIVATIONS.
        bias: Added before the activation.
        jump: Threshold of the jumprelu activation.
        label: Name for people.
        description: One or more sentences for people.
        threshold: Score from which the label counts as present, or None.
        fpr: Share of held-out negatives at or above `threshold`.
        range: Fixed scale (low, high) on which scores are displayed; None: not stated (see `display_range`).
        token_mask: "special" if scores on special tokens are meaningless, else "none".
        model: Name of the model that it was made for; None fits any.
        revision: Revision of that model; None fits any.
        auroc: AUROC on held-out text, if measured.
        control_auroc: AUROC of the same training on shuffled labels, if measured.
    """

    id: str
    site: str
    activation: str = "relu"
    bias: float = 0.0
    jump: float = 0.0
    label: str = ""
    description: str = ""
    threshold: float | None = None
    fpr: float | None = None
    range: tuple[float, float] | None = None
    token_mask: str = "none"
    model: str | None = None
    revision: str | None = None
    auroc: float | None = None
    control_auroc: float | None = None

    @property
    def layer(self) -> int | None:
        """The layer of `site`, or None if the site has no layer."""
        return Site.parse(self.site).layer

    @property
    def display_range(self) -> tuple[float, float] | None:
        """`range`; if none is stated, (0, 1) for sigmoid, whose scores lie there, else None: the gateway learns one."""
        return (0.0, 1.0) if self.range is None and self.activation == "sigmoid" else self.range

    @property
    def signed(self) -> bool:
        """Whether the display range is known and includes negative scores."""
        scale = self.display_range
        return scale is not None and scale[0] < 0


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A linear probe: `score = act(row @ weight + bias)`.

    Attributes:
        info: Metadata, including bias and activation.
        weight: float32 [d], finite.
        test_inputs: float32 [k, d]; rows with known scores. May be empty.
        test_scores: float32 [k]; the scores of `test_inputs`.
        stored: dtype of the weight in its file, as safetensors names it: F32, or F16, BF16 or F64, which were converted.

    Raises:
        ProbeError: A shape, dtype or value is invalid, or the metadata is.
    """

    info: ProbeInfo
    weight: np.ndarray
    test_inputs: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    test_scores: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    stored: str = "F32"

    def __post_init__(self) -> None:
        _check_info(self.info)
        _check_weight(self.info.id, self.weight)
        _check_examples(self)

    @property
    def id(self) -> str:
        """The probe's id, `info.id`."""
        return self.info.id

    @property
    def d(self) -> int:
        """Width of the rows that it reads."""
        return int(self.weight.shape[0])

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Return the scores of rows.

        Args:
            rows: [n, d], any floating dtype.

        Returns:
            float32 [n].

        Raises:
            ValueError: The rows are not `d` wide.
        """
        info = self.info
        precision = np.float64 if rows.dtype == np.float64 else np.float32
        bias, jump = np.array([info.bias], precision), np.array([info.jump], precision)
        return score(rows, self.weight[:, None], bias, [info.activation], jump)[:, 0]

    def verify(self) -> None:
        """Score the test vectors.

        Raises:
            ProbeError: A score differs by more than TEST_TOLERANCE (relative), and by more than the rounding of a weight that
                is stored in half precision explains.
        """
        if not len(self.test_scores):
            return
        found = self.score(self.test_inputs)
        rounding = np.abs(self.test_inputs) @ np.abs(self.weight) * _ROUNDING.get(self.stored, 0.0)
        beyond = np.maximum(np.abs(found - self.test_scores) - rounding, 0)
        worst = float(np.max(beyond / (np.abs(self.test_scores) + 1.0)))
        if not worst <= TEST_TOLERANCE:
            raise ProbeError(
                f"probe {self.id!r}: its own test vectors score {found[:3]} where {self.test_scores[:3]} was expected "
                f"(worst relative difference {worst:.2g}); the file is damaged or was made for another convention"
            )

    def renamed(self, probe_id: str) -> Probe:
        """Return a copy with another id."""
        return replace(self, info=msgspec.structs.replace(self.info, id=probe_id))


def is_id(text: str) -> bool:
    """Return whether a text can be the id of a probe (`ID_RULE`)."""
    return _ID.fullmatch(text) is not None


def _check_info(info: ProbeInfo) -> None:
    where = f"probe {info.id!r}"
    if not is_id(info.id):
        raise ProbeError(f"{where}: {ID_RULE}")
    if info.activation not in ACTIVATIONS:
        raise ProbeError(f"{where}: activation {info.activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if info.token_mask not in ("none", "special"):
        raise ProbeError(f"{where}: token_mask {info.token_mask!r} is not 'none' or 'special'")
    low, high = info.range or (0.0, 1.0)
    numbers = [info.bias, info.jump, low, high, info.threshold or 0.0]
    if not np.all(np.isfinite(numbers)) or low >= high:
        raise ProbeError(f"{where}: bias, jump and threshold must be finite and range must rise, found {numbers}")
    try:
        Site.parse(info.site)
    except SiteError as error:
        raise ProbeError(f"{where}: {error}") from error


def _check_examples(probe: Probe) -> None:
    k = len(probe.test_scores)
    if probe.test_scores.ndim != 1 or (k and probe.test_inputs.shape != (k, probe.d)):
        raise ProbeError(
            f"probe {probe.id!r}: its {k} test scores need test inputs of shape [{k}, {probe.d}], "
            f"found {list(probe.test_inputs.shape)}"
        )


def _check_weight(probe_id: str, weight: np.ndarray) -> None:
    if weight.ndim != 1 or not 0 < len(weight) <= MAX_WIDTH or weight.dtype != np.float32:
        raise ProbeError(
            f"probe {probe_id!r}: expected a float32 vector of 1 to {MAX_WIDTH} numbers, "
            f"found {weight.dtype} of shape {weight.shape}"
        )
    if not np.all(np.isfinite(weight)):
        raise ProbeError(f"probe {probe_id!r}: its vector holds NaN or infinity")


@hinted
def save_probe(probe: Probe, path: Path) -> None:
    """Write a probe in our format, atomically. Missing parent directories are created.

    Args:
        probe: The probe.
        path: Target file, usually `<id>.safetensors`. An existing file is replaced.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_file(path, _as_file(probe))


def save_probes(probes: Iterable[Probe], directory: Path) -> None:
    """Write probes as `<id>.safetensors` into a directory, which is created if it does not exist: all of them, or none.

    Raises:
        OSError: A file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    publish_files({directory / f"{probe.id}.safetensors": _as_file(probe) for probe in probes})


def _as_file(probe: Probe) -> bytes:
    from safetensors.numpy import save

    tensors = {"weight": probe.weight, "test_inputs": probe.test_inputs, "test_scores": probe.test_scores}
    metadata = {_METADATA_KEY: msgspec.json.encode(probe.info).decode()}
    return save({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, metadata)


@hinted
def load_probe(path: Path, site: str = "") -> Probe:
    """Read a probe file, check it and score its test vectors.

    Args:
        path: A `.json` file in the field's format; any other file is read in our format.
        site: Site of a `.json` file that names none, neither inside nor by its name. Empty: such a file is an error.

    Returns:
        The probe.

    Raises:
        ProbeError: The file cannot be read, is invalid, exceeds 64 MiB, or its test vectors do not match. The message names the
            file.
    """
    try:
        with as_own_error(ProbeError, "not a probe"), np.errstate(over="ignore", invalid="ignore"):
            _check_suffix(path)
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ProbeError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB")
            probe = _load_json_vector(path, site) if path.suffix == ".json" else _load_safetensors(path)
            probe.verify()
            return probe
    except ProbeError as error:
        raise ProbeError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _check_suffix(path: Path) -> None:
    """Raise ProbeError, with the remedy, for a file of a kind that has to be imported or converted first."""
    if path.suffix in (".gguf", ".skops"):
        raise ProbeError(f"not a probe, but a file to make probes of: actscope probe import {path.name}")
    if path.suffix in PICKLES:
        raise refuse_pickle(path.name)


def _load_safetensors(path: Path) -> Probe:
    metadata, tensors, dtypes = read_safetensors(path, ("weight", "test_inputs", "test_scores"), "is not a probe")
    raw = metadata.get(_METADATA_KEY)
    if raw is None or "weight" not in tensors:
        raise ProbeError(f"not a probe: expected metadata {_METADATA_KEY!r} and a tensor 'weight'")
    stored = dtypes["weight"]
    if stored != "F32":
        log.warning("%s: its weight is stored as %s and is used as float32", path, stored)
    empty = {"test_inputs": np.empty((0, 0), np.float32), "test_scores": np.empty(0, np.float32)}
    return Probe(
        _decode_info(raw.encode()), tensors["weight"], **{n: tensors.get(n, e) for n, e in empty.items()}, stored=stored
    )


def _decode_info(raw: bytes) -> ProbeInfo:
    return decode_json(raw, ProbeInfo, ProbeError, "its metadata cannot be read")


def _load_json_vector(path: Path, site: str) -> Probe:
    data = decode_json(read_regular(path, MAX_FILE_BYTES, ProbeError), object, ProbeError, "not JSON")
    match = re.match(r"enc_(\d{1,9})(?!\d)_?(.*)", path.stem)
    if isinstance(data, dict):
        data = {**data, "site": _site_of_json(data, f"layers.{int(match[1])}.resid_post" if match else site)}
    return probe_from_json((match[2] if match else "") or path.stem, data)


#: The field's names for a point, after the layer number, in "layer" and "hookName".
_FIELD_POINTS = {
    "": "resid_post", "resid-pre": "resid_pre", "resid-post": "resid_post", "attn-out": "attn_out", "mlp-out": "mlp_out",
    "hook_resid_pre": "resid_pre", "hook_resid_post": "resid_post", "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out",
}  # fmt: skip


def _site_of_json(data: Mapping[str, object], otherwise: str) -> str:
    """Return the site that a JSON probe states: `site`, else `hookName` and `layer`, else `otherwise`.

    Raises ProbeError if they contradict each other or name a point that is not read here. A vector is never moved to another
    site.
    """
    if "site" in data:
        return str(data["site"])
    said = {
        _field_site(str(data[key]), key)
        for key in ("hookName", "layer")
        if data.get(key) is not None and not (key == "layer" and str(data[key]).isdigit() and "hookName" in data)
    }
    if len(said) > 1:
        raise ProbeError(
            f'"hookName" and "layer" name different places: {", ".join(sorted(said))}; put "site" in the file'
        )
    if said:
        return said.pop()
    if not otherwise:
        raise ProbeError('which layer? name the file enc_<layer>_<name>.json, or put "site" in it')
    return otherwise


def _field_site(text: str, key: str) -> str:
    if key == "hookName" and not text[:1].isdigit():
        return hooked_site(text)
    match = re.fullmatch(r"(?:blocks\.)?(\d{1,9})[-.]?(.*)", text)
    if match is None or match[2] not in _FIELD_POINTS:
        raise ProbeError(
            f'"{key}": {text!r} is not a place that is read here; put "site" in the file, e.g. "site": "layers.12.resid_post"'
        )
    return f"layers.{int(match[1])}.{_FIELD_POINTS[match[2]]}"


#: Keys of plain JSON vectors that are aliases of ours.
_JSON_ALIASES = {"encoder_bias": "bias", "vectorName": "label"}
_JSON_IGNORED = {"vector", "layer", "index", "max_activation", "maxActApprox", "id", "modelId", "source", "hookName"}


def probe_from_json(probe_id: str, data: object) -> Probe:
    """Return a probe from its JSON object.

    Args:
        probe_id: Id of the probe. An `id` in `data` is ignored.
        data: Object with at least `vector` (list of d numbers) and `site`. Other keys are fields of ProbeInfo or their aliases.

    Returns:
        The probe, with a float32 vector and without test vectors.

    Raises:
        ProbeError: A key is unknown (the message names it) or a value is invalid.
    """
    if not isinstance(data, dict) or not isinstance(data.get("vector"), list) or "site" not in data:
        raise ProbeError(f'probe {probe_id!r}: expected an object with "vector": [numbers] and "site"')
    if len(data["vector"]) > MAX_WIDTH:
        raise ProbeError(f"probe {probe_id!r}: its vector has {len(data['vector'])} numbers, more than {MAX_WIDTH}")
    if not all(isinstance(number, int | float) for number in data["vector"]):
        raise ProbeError(f'probe {probe_id!r}: "vector" must hold numbers only')
    try:
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, and is refused by Probe
            weight = np.array(data["vector"], np.float64).astype(np.float32)
    except (OverflowError, ValueError) as error:
        raise ProbeError(f'probe {probe_id!r}: "vector" has a number beyond float32: {error}') from error
    fields = {_JSON_ALIASES.get(k, k): v for k, v in data.items() if k not in _JSON_IGNORED}
    highest = data.get("max_activation")
    if highest is not None and not (isinstance(highest, int | float) and highest > 0):
        raise ProbeError(f'probe {probe_id!r}: "max_activation" must be a number above 0, found {highest!r}')
    if "range" not in fields and highest:
        fields["range"] = [0.0, float(highest)]
    with as_own_error(ProbeError, f"probe {probe_id!r}: its metadata cannot be read"):
        info = msgspec.convert({**fields, "id": probe_id}, ProbeInfo)
    return Probe(info, weight)


@hinted
def find_probes(directory: Path) -> Iterator[Path]:
    """Yield the probe files of a directory, sorted by name; none if it does not exist."""
    if directory.is_dir():
        yield from sorted(p for p in directory.iterdir() if p.suffix in (".json", ".safetensors") and p.name[0] != ".")


def _warn_of_others(directory: Path) -> None:
    """Log the files of a directory that only become probes when they are imported."""
    if directory.is_dir():
        for path in sorted(p for p in directory.iterdir() if p.suffix in (".gguf", ".skops", *PICKLES)):
            log.warning("%s is not loaded: make probes of it first: actscope probe import %s", path, path.name)


@hinted
def load_probes(directory: Path, left_out: Callable[[ProbeError], None] | None = None, site: str = "") -> list[Probe]:
    """Load every probe of a directory.

    Args:
        directory: Directory of `.json` and `.safetensors` files. It may be absent. A file to import is named in a warning.
        left_out: Called with the error of each file that is invalid, or has the id of another; such a file is left out. None:
            the first such error is raised. Servers pass `log_left_out`, so that one bad file does not keep them from starting.
        site: Site of `.json` files that name none, as in `load_probe`.

    Returns:
        The probes, sorted by file name.

    Raises:
        ProbeError: The directory cannot be listed; or, without `left_out`, a file is invalid, or two files have the same id.
    """
    probes: dict[str, Probe] = {}
    with as_own_error(ProbeError, str(directory)):
        _warn_of_others(directory)
        paths = list(find_probes(directory))
    for path in paths:
        try:
            probe = load_probe(path, site)
            if probe.id in probes:
                raise ProbeError(f"{path}: a second probe with id {probe.id!r} in {directory}; rename one")
            probes[probe.id] = probe
        except ProbeError as error:
            if left_out is None:
                raise
            left_out(error)
    return list(probes.values())


def log_left_out(error: ProbeError) -> None:
    """Log a probe file that is left out, and what is wrong with it."""
    log.error("a probe is left out: %s", one_line(str(error)))
