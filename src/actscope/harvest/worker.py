"""Worker: holds the model, and computes units into published shards and receipts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from actscope.errors import SettingsError
from actscope.extraction.contract import Reader, Texts
from actscope.extraction.cutting import Cutter, tokenizer_of
from actscope.extraction.opening import open_reader
from actscope.extraction.texts import open_texts
from actscope.harvest import commit as receipts
from actscope.harvest import layout
from actscope.harvest import plan as plans
from actscope.harvest.commit import Receipt, ShardFile
from actscope.harvest.cutting import Apart, OwnedPiece, Packed, UnitPieces, separator_of
from actscope.harvest.plan import HarvestPlan, Proposal, Unit
from actscope.harvest.settings import HarvestSettings
from actscope.harvest.shards.contract import PendingShard
from actscope.harvest.statistics import SiteSums, added, sums_of
from actscope.harvest.storage import Storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("actscope.harvest")

#: Size of the sample that estimates the rows of a text: if it decides the number of texts, and if it is only reported.
_SAMPLE, _GLANCE = 1024, 64
#: Number of forward passes whose tokens are read together, so that pieces of similar length share a pass.
_FORWARDS = 8
#: A context longer than any text.
_WHOLE = 1 << 30


class UnitWorker:
    """Worker that reads texts, runs the model and writes shards to the storage. It holds the rows of one unit in memory.

    Raises:
        SettingsError, SiteError, EngineError: The dataset or the model cannot be opened as the settings say.
    """

    def __init__(self, settings: HarvestSettings, storage: Storage) -> None:
        self._settings = settings
        self._storage = storage
        self._texts: Texts = open_texts(settings.dataset, split=settings.split, column=settings.column)
        self._tokenizer = tokenizer_of(settings.model, trust_remote_code=settings.trust_remote_code)
        self._cutting = _cutting(settings, self._tokenizer)  # refuses a tokenizer before the model is loaded
        self._reader = _open(settings)
        self._accepted = ""

    def propose(self) -> Proposal:
        """Return the plan for the settings with this model, dataset and environment. Runs no forward pass.

        Raises:
            SettingsError: The dataset has no texts, or `tokens` is set and a sample of the texts gives no row.
        """
        n = len(self._texts)
        self._warn_of_separator()
        sample = self._plan(min(n, _SAMPLE if self._settings.tokens else _GLANCE))
        counted = self._cut(sample.text_numbers(Unit(0, 0, sample.texts, sample.id)))
        rows = (counted.n_rows + counted.left_over) / sample.texts
        plan = self._plan(self._texts_for(n, rows))
        return Proposal(plan=plan, rows_per_text=rows, tokens_per_text=counted.n_tokens / sample.texts)

    def run(self, plan: HarvestPlan, number: int) -> Receipt:
        """Compute a unit, publish its shard, and commit its receipt. Idempotent.

        Args:
            plan: Plan of the harvest.
            number: Number of the unit.

        Returns:
            The receipt that counts. It is another worker's if that one committed the unit first.

        Raises:
            SettingsError: This worker differs from the plan, and might compute other bytes.
            EngineError: The model failed.
            HarvestError: The storage failed.
        """
        self._accept(plan)
        unit = plan.unit(number)
        cut = self._cut(plan.text_numbers(unit))
        receipt = self._computed(plan, unit, cut)
        name = layout.receipt(number)
        if not self._storage.put_new(name, receipts.encode(receipt)):
            held = self._storage.get(name)
            assert held is not None
            return receipts.decode(held, f"{self._storage.url}/{name}")  # another worker was first: its receipt counts
        return receipt

    def close(self) -> None:
        """Free the model."""
        self._reader.close()

    def _computed(self, plan: HarvestPlan, unit: Unit, cut: UnitPieces) -> Receipt:
        rows = cut.n_rows
        shard = _shard(plan, unit, rows)
        sums: dict[str, list[SiteSums]] = {site: [] for site in plan.sites}
        for pieces in _groups(cut.pieces, plan):
            values = self._reader.read([owned.piece for owned in pieces]).values
            shard.add(pieces, values)
            for site, parts in sums.items():
                parts.append(sums_of(values[site]))
        return Receipt(
            unit=unit.number,
            id=unit.id,
            texts=unit.stop - unit.start,
            tokens=cut.n_tokens,
            left_over=cut.left_over,
            rows=rows,
            files=(self._published(unit, shard),) if rows else (),
            sums={site: added(parts) for site, parts in sums.items()},
        )

    def _published(self, unit: Unit, shard: PendingShard) -> ShardFile:
        data = shard.finish()
        digest = hashlib.sha256(data).hexdigest()
        name = layout.shard(unit.number, digest, shard.suffix)
        if self._storage.size(name) != len(data):
            self._storage.put(name, data)
        return ShardFile(name=name, bytes=len(data), sha256=digest)

    def _cut(self, numbers: list[int]) -> UnitPieces:
        return self._cutting.cut(numbers, self._texts.read(numbers))

    def _texts_for(self, n: int, rows_per_text: float) -> int:
        settings = self._settings
        if settings.tokens is None:
            return min(n, settings.texts or n)
        if not rows_per_text:
            raise SettingsError(
                f"{settings.dataset}: the first {min(n, _SAMPLE)} texts give no row; check mask and column"
            )
        return max(1, min(n, round(settings.tokens / rows_per_text)))

    def _warn_of_separator(self) -> None:
        """Log it if texts are separated by another token than the settings name."""
        asked = self._settings.separator
        if self._settings.is_packed and (given := separator_of(self._tokenizer, asked)).role != asked:
            assert given.token_id is not None  # a fallback is always a token
            text = self._tokenizer.convert_ids_to_tokens(given.token_id)
            log.warning(
                "%s: its tokenizer has no %s, so packed texts are separated by %s (%s), as the plan and the manifest say",
                self._settings.model, asked.upper(), given.role.upper(), text,
            )  # fmt: skip

    def _accept(self, plan: HarvestPlan) -> None:
        """Raise SettingsError unless this worker would make the same plan."""
        if self._accepted != plan.id:
            plans.check_same(plan, self._plan(plan.texts), f"{self._storage.url}/{layout.PLAN}")
            self._accepted = plan.id

    def _plan(self, texts: int) -> HarvestPlan:
        asked, facts = self._settings, self._reader.facts
        if not texts:
            raise SettingsError(f"{asked.dataset}: has no texts")
        return HarvestPlan(
            model=asked.model,
            revision=facts.revision,
            reader=facts.engine,
            tokenizer=fingerprint_of(self._tokenizer),
            dataset=asked.dataset,
            split=asked.split,
            column=asked.column,
            dataset_fingerprint=self._texts.fingerprint,
            dataset_texts=len(self._texts),
            texts=texts,
            seed=asked.seed,
            shuffle=asked.shuffle,
            unit_texts=asked.unit_texts,
            sites=facts.sites,
            d_model=facts.d_model,
            dtype=facts.dtype,
            model_dtype=asked.model_dtype,
            context=asked.context,
            mask=asked.masked,
            pack=asked.is_packed,
            separator=separator_of(self._tokenizer, asked.separator).role if asked.is_packed else "none",
            shard_format=asked.format,
            columns=asked.columns if asked.format == "arrow" else "sites",
            device=_device_kind(asked.device),
            threads=asked.threads,
            batch_tokens=asked.batch_tokens,
            torch=version("torch"),
            transformers=version("transformers"),
        )


def fingerprint_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything that decides the ids of a fast tokenizer, and which of them are special: 16 hex digits."""
    parts = [
        tokenizer.backend_tokenizer.to_str(),
        repr(sorted(tokenizer.all_special_ids)),
        repr(tokenizer.bos_token_id),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _open(settings: HarvestSettings) -> Reader:
    is_hf = settings.reader == "hf"
    return open_reader(
        settings.reader,  # it says itself which readers there are
        settings.model,
        settings.sites,
        dtype=settings.dtype,
        batch_tokens=settings.batch_tokens,
        context=settings.context,
        device=settings.device if is_hf else "auto",
        model_dtype=settings.model_dtype if is_hf else "auto",
        threads=settings.threads if is_hf else 0,
        trust_remote_code=settings.trust_remote_code,
    )


def _cutting(settings: HarvestSettings, tokenizer: PreTrainedTokenizerBase) -> Apart | Packed:
    mask: Any = settings.masked  # one of Mask: HarvestSettings has checked it
    if not settings.is_packed:
        return Apart(Cutter(tokenizer, context=settings.context, mask=mask))
    whole = Cutter(tokenizer, context=_WHOLE, mask="none")
    return Packed(whole, tokenizer, context=settings.context, separator=settings.separator, mask=mask)


def _shard(plan: HarvestPlan, unit: Unit, rows: int) -> PendingShard:
    if plan.shard_format == "arrow":
        from actscope.harvest.shards.arrow import ArrowShard

        return ArrowShard(plan)
    from actscope.harvest.shards.safetensors import SafetensorsShard

    return SafetensorsShard(plan, unit, rows)


def _groups(pieces: Sequence[OwnedPiece], plan: HarvestPlan) -> Iterator[list[OwnedPiece]]:
    """Group the pieces, in order, by the tokens of some forward passes. Arrow counts the values of a group in 31 bits."""
    most = min(_FORWARDS * plan.batch_tokens, ((1 << 31) - 1) // plan.d_model)
    group: list[OwnedPiece] = []
    tokens = 0
    for owned in pieces:
        length = len(owned.piece.token_ids)
        if group and tokens + length > most:
            yield group
            group, tokens = [], 0
        group.append(owned)
        tokens += length
    if group:
        yield group


def _device_kind(device: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device.partition(":")[0]
