"""A collection of cases: add, search, remove. Vectors in, matches out; the file is `case_store`'s.

`similarity` is the cosine of two vectors after shrunk whitening, over all cases, without an index:
a search over 100,000 takes a fraction of what encoding the query does.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar import places, quantised
from sidecar.case import Metadata, check_id, holds, json_text, metadata_text
from sidecar.case_store import BLOCK, About, Case, CaseStore
from sidecar.errors import (
    CollectionExists,
    CollectionMismatch,
    CollectionNotFound,
    CollectionReadOnly,
    TensorNotFinite,
    TensorShape,
)
from sidecar.places import BACKGROUND, BASIS_AT, LEAST_CASES, REGIONS, Basis, Pair, Usual
from sidecar.quantised import Codes, Floats
from sidecar.whitening import FIT_AT, TINY, Whitening

MAX_OPEN = 8
LARGEST = 1e6  # a region's scale is a float16
# The arrays of a collection that are fitted on its own cases.
STATISTICS = (
    *("whitening.mean", "whitening.components", "whitening.gains", "whitening.cases"),
    *("basis.mean", "basis.axes", "positions", "places.whitening"),
)


@dataclass(frozen=True, slots=True)
class Match:
    """`similarity` from -1 to 1 is for ranking: it is no percentage and no probability."""

    id: str
    similarity: float
    metadata: str  # a JSON object
    regions: tuple[Pair, ...] | None = None  # None where they were not asked for


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Of one image: pooled [dims], regions [16, dims], and its tokens [256, dims] where they are
    known: a query with tokens finds places that a query with regions only does not.
    """

    pooled: Floats
    regions: Floats
    tokens: Floats | None = None

    @classmethod
    def of(cls, pooled: Floats, tokens: Floats) -> Self:
        """From pooled [dims] and tokens [256, dims]. Raises TensorShape."""
        if tokens.shape != (places.GRID**2, *pooled.shape):
            raise TensorShape(
                f"expected {places.GRID**2} projected embeddings, as long as the pooled one."
            )
        return cls(pooled, places.regions(tokens), tokens)

    def check(self, dims: int) -> None:
        """Raises TensorShape, TensorNotFinite."""
        if self.pooled.shape != (dims,) or self.regions.shape != (REGIONS, dims):
            raise TensorShape(
                f"expected embeddings of length {dims}; those of length {len(self.pooled)} came."
            )
        # NaN fails too.
        if not (np.abs(self.pooled).max() < LARGEST and np.abs(self.regions).max() < LARGEST):
            raise TensorNotFinite(
                f"the embeddings hold NaN, infinity or numbers beyond {LARGEST:g}."
            )


class Collection:
    """An open collection. For one thread at a time."""

    def __init__(self, store: CaseStore) -> None:
        self.store = store
        self._whitening: Whitening | None = None
        self._basis: Basis | None = None
        self._usual: Usual | None = None
        self._fitted = -1  # cases; -1: not read yet

    @classmethod
    def open(
        cls, path: Path, about: About | None, read_only: bool = False, create: bool = False
    ) -> Self:
        """`about` None takes a collection of any origin.

        Raises the errors of CaseStore.open, and CollectionMismatch.
        """
        store = CaseStore.open(path, read_only, about if create else None)
        try:
            check_same(store.about, about)
        except BaseException:
            store.close()
            raise
        return cls(store)

    def close(self) -> None:
        self.store.close()

    @property
    def count(self) -> int:
        return self.store.count

    def info(self) -> dict[str, Any]:
        about = self.store.about
        return {
            "count": self.store.count,
            "model": about.model,
            "projection": about.projection,
            "resolution": list(about.resolution),
            "bytes": self.store.size,
            "fitted": max(self._fit_size(), 0),
            "read_only": self.store.read_only,
        }

    # Adding and removing

    def add(self, id: str, vectors: Vectors, metadata: Metadata, replace: bool = False) -> bool:
        """Whether anything was written: the same case again is a success and changes nothing.

        Raises CollectionExists where the id holds another case, CollectionReadOnly,
        CollectionDiskFull, RequestMalformed, TensorShape, TensorNotFinite.
        """
        check_id(id)
        text = metadata_text(metadata)
        vectors.check(self.store.about.dims)
        scale, codes = quantised.quantise(vectors.pooled, self.store.about.precision)
        there = self.store.find(id)
        if there is not None and not replace:
            if there.metadata == text and self._same(there.slot, float(scale), codes):
                return False
            raise CollectionExists(
                "the id belongs to another case, or to this one with other metadata. Use another "
                "id, or set replace."
            )
        with self.store.writing():
            slot = self.store.free_slot() if there is None else there.slot
            vector = float(scale) * codes.astype(np.float32)
            whitening = self._fitted_whitening()
            norm = 0.0 if whitening is None else float(whitening.norms(vector[None], scale)[0])
            self.store.put(Case(slot, id, text), float(scale), norm, codes)
            self._put_regions(slot, vectors.regions)
            refitted = self._refit()
        if refitted:
            self._forget()
        return True

    def remove(self, id: str) -> None:
        """Raises CollectionNotFound where there is no such case, CollectionReadOnly."""
        check_id(id)
        there = self.store.find(id)
        if there is None:
            if self.store.read_only:
                raise CollectionReadOnly("the collection is open for reading only.")
            self.store.scrub()  # of an earlier removal, if that could not be ended
            raise CollectionNotFound("the collection has no case of that id.")
        basis = self._known_basis()
        size = 0 if basis is None else quantised.packed_size(REGIONS, basis.dims)
        with self.store.writing():
            self.store.delete(there.slot, size)
        self.store.scrub()

    def _same(self, slot: int, scale: float, codes: Codes) -> bool:
        """As equal as two encodes of one image are: within a step of 8 bits."""
        record = self.store.vector(slot)
        there, new = record["scale"] * record["codes"].astype(np.float32), scale * codes
        step = max(np.abs(there).max(), np.abs(new).max(), TINY) / quantised.LARGEST
        return bool(np.abs(there - new).max() <= 1.01 * step)

    def _put_regions(self, slot: int, regions: Floats) -> None:
        basis = self._known_basis()
        if basis is None:
            self.store.put_early_regions(slot, quantised.pack(regions))
        else:
            self.store.put_regions(slot, quantised.pack(basis.apply(regions)))

    def _refit(self) -> bool:
        """Fit again where the collection has grown to one of the sizes for it."""
        count, fitted = self.store.count, self._fit_size()
        if not any(fitted < size <= count for size in FIT_AT):
            return False
        self._fit_whitening()
        if count >= BASIS_AT:
            self._fit_places()
        return True

    def adopt_statistics(self, other: "Collection") -> None:
        """Take all that is fitted from another collection while this one is empty. So
        similarities of the two compare: they are shards of one.
        """
        if self.count or not other._fit_size():
            return
        with self.store.writing():
            for name in STATISTICS:
                array = other.store.array(name)
                if array is not None:
                    self.store.put_array(name, array)
        self._forget()

    def _fit_whitening(self) -> None:
        slots, scales, codes = self._all_vectors()
        vectors = scales[:, None] * codes
        whitening = Whitening.fit(vectors)
        norms = whitening.norms(vectors, scales)
        for slot, scale, norm, code in zip(slots, scales, norms, codes, strict=True):
            self.store.put_vector(int(slot), float(scale), float(norm), code)
        self.store.put_array("whitening.mean", whitening.mean)
        self.store.put_array("whitening.components", whitening.components)
        self.store.put_array("whitening.gains", whitening.gains)
        self.store.put_array("whitening.cases", np.array(len(slots)))

    def _fit_places(self) -> None:
        basis = self._known_basis()
        if basis is None:
            slots, early = self._early_regions()
            basis = Basis.fit(early.reshape(-1, early.shape[-1]))
            self.store.put_array("basis.mean", basis.mean)
            self.store.put_array("basis.axes", basis.axes)
            for slot, regions in zip(slots, early, strict=True):
                self.store.put_regions(slot, quantised.pack(basis.apply(regions)))
            self.store.drop_early_regions()
        usual = Usual.fit(self._regions(int(slot), basis) for slot in self.store.slots)
        self.store.put_array("positions", usual.positions)
        self.store.put_array("places.whitening", usual.whitening)

    # Searching

    def search(
        self,
        vectors: Vectors,
        k: int = 10,
        regions: bool = False,
        where: Mapping[str, Any] | None = None,
    ) -> list[Match]:
        """The `k` most similar cases, best first; equal ones in the order of their slots.

        `where`: only cases whose metadata have these values under these keys, at the top level.
        """
        vectors.check(self.store.about.dims)
        allowed = None if not where else self._where(where)
        slots, similarities = self._similarities(vectors.pooled, allowed)
        if k < len(slots):
            edge = np.partition(similarities, len(slots) - k)[len(slots) - k]
            keep = similarities >= edge
            slots, similarities = slots[keep], similarities[keep]
        order = np.lexsort((slots, -similarities))[:k]
        cases = [self.store.case(int(slots[i])) for i in order]
        pairs: Sequence[tuple[Pair, ...] | None] = [None] * len(cases)
        if regions:
            pairs = self._pairs(vectors, [case.slot for case in cases])
        return [
            Match(case.id, float(similarities[i]), case.metadata, found)
            for case, i, found in zip(cases, order, pairs, strict=True)
        ]

    def whitening(self) -> Whitening:
        """What a search compares with: as fitted, or below 32 cases the mean of those there are."""
        fitted = self._fitted_whitening()
        if fitted is not None:
            return fitted
        _, scales, codes = self._all_vectors()
        return Whitening.centring(scales[:, None] * codes)

    def whitened(self) -> Iterator[tuple[Case, Floats]]:
        """Each case with its vector [dims], whitened and of unit length: the cosine of two is
        their similarity, whatever computes it.
        """
        whitening = self.whitening()
        for first, records in self.store.blocks():
            for place in np.flatnonzero(records["scale"]):
                vector = records["scale"][place] * records["codes"][place].astype(np.float32)
                white = whitening.apply(vector[None])[0]
                case = self.store.case(first + int(place))
                yield case, white / np.float32(max(float(np.linalg.norm(white)), TINY))

    def _similarities(
        self, query: Floats, allowed: NDArray[np.intp] | None
    ) -> tuple[NDArray[np.intp], Floats]:
        whitening = self._fitted_whitening()
        if whitening is None:
            return self._early_similarities(query, allowed)
        p, b = whitening.query(query)
        slots, similarities = [], []
        floats = np.empty((BLOCK, len(query)), np.float32)
        for first, records in self.store.blocks():
            np.copyto(floats, records["codes"])
            used = np.flatnonzero(records["scale"])
            if allowed is not None:
                used = np.intersect1d(used, allowed - first, assume_unique=True)
            found = (floats @ p)[used] * records["scale"][used] - b
            slots.append(used + first)
            similarities.append(found / np.maximum(records["norm"][used], TINY))
        if not slots:
            return np.zeros(0, np.intp), np.zeros(0, np.float32)
        return np.concatenate(slots), np.concatenate(similarities).clip(-1, 1)

    def _early_similarities(
        self, query: Floats, allowed: NDArray[np.intp] | None
    ) -> tuple[NDArray[np.intp], Floats]:
        slots, scales, codes = self._all_vectors()
        vectors = scales[:, None] * codes
        if not len(slots):
            return slots, scales
        centring = Whitening.centring(vectors)
        p, b = centring.query(query)
        norms = np.maximum(centring.norms(vectors, scales), TINY)
        similarities = ((vectors @ p - b) / norms).clip(-1, 1)
        keep = slice(None) if allowed is None else np.isin(slots, allowed)
        return slots[keep], similarities[keep]

    def _where(self, where: Mapping[str, Any]) -> NDArray[np.intp]:
        fragments = []
        for key, value in where.items():
            # As `metadata_text` writes it; equal numbers may be written in two ways.
            exact = value is None or isinstance(value, bool | str)
            fragments.append(f"{json_text(key)}:{json_text(value) if exact else ''}")
        slots = [
            case.slot
            for case in self.store.cases(fragments)
            if holds(json.loads(case.metadata), where)
        ]
        return np.array(sorted(slots), np.intp)

    def _pairs(self, vectors: Vectors, slots: Sequence[int]) -> list[tuple[Pair, ...]]:
        if self.store.count < LEAST_CASES:
            return [() for _ in slots]
        basis, of = self._region_space()
        # Not the matches themselves, where there are enough other cases.
        others = np.setdiff1d(self.store.slots, slots)
        if len(others) < BACKGROUND:
            others = self.store.slots
        others = places.spread(others, BACKGROUND)
        background = np.stack([of(int(slot)) for slot in others])
        usual = self._known_usual() or Usual.fit(background)
        tokens = vectors.tokens
        if tokens is None:
            tokens = places.tokens_of(vectors.regions)
        query = places.Query(basis.apply(tokens), background, usual)
        return [tuple(query.pairs(of(slot), slot in others)) for slot in slots]

    def _region_space(self) -> tuple[Basis, Callable[[int], Floats]]:
        """The basis, and the regions of a slot."""
        basis = self._known_basis()
        if basis is not None:
            return basis, lambda slot: self._regions(slot, basis)
        slots, early = self._early_regions()
        basis = Basis.fit(early.reshape(-1, early.shape[-1]))
        cases = dict(zip(slots, basis.apply(early), strict=True))
        return basis, cases.__getitem__

    # Reading the store

    def _all_vectors(self) -> tuple[NDArray[np.intp], Floats, Codes]:
        slots, scales, codes = [], [], []
        for first, records in self.store.blocks():
            used = np.flatnonzero(records["scale"])
            slots.append(used + first)
            scales.append(records["scale"][used])
            codes.append(records["codes"][used])
        if not slots:
            dims = self.store.about.dims
            empty = np.zeros((0, dims), np.int8)
            return np.zeros(0, np.intp), np.zeros(0, np.float32), empty
        return np.concatenate(slots), np.concatenate(scales), np.concatenate(codes)

    def _early_regions(self) -> tuple[list[int], Floats]:
        dims = self.store.about.dims
        cases = [(slot, quantised.unpack(data, dims)) for slot, data in self.store.early_regions()]
        return [slot for slot, _ in cases], np.stack([regions for _, regions in cases])

    def _regions(self, slot: int, basis: Basis) -> Floats:
        size = quantised.packed_size(REGIONS, basis.dims)
        return quantised.unpack(self.store.regions(slot, size), basis.dims)

    def _fit_size(self) -> int:
        if self._fitted < 0:
            size = self.store.array("whitening.cases")
            self._fitted = 0 if size is None else int(size)
        return self._fitted

    def _fitted_whitening(self) -> Whitening | None:
        if self._whitening is None and self._fit_size():
            arrays = (
                self.store.array(f"whitening.{name}") for name in ("mean", "components", "gains")
            )
            mean, components, gains = arrays
            if mean is not None and components is not None and gains is not None:
                self._whitening = Whitening(mean, components, gains)
        return self._whitening

    def _known_basis(self) -> Basis | None:
        if self._basis is None and self._fit_size() >= BASIS_AT:
            mean, axes = self.store.array("basis.mean"), self.store.array("basis.axes")
            if mean is not None and axes is not None:
                self._basis = Basis(mean, axes)
        return self._basis

    def _known_usual(self) -> Usual | None:
        if self._usual is None:
            positions = self.store.array("positions")
            whitening = self.store.array("places.whitening")
            if positions is not None and whitening is not None:
                self._usual = Usual(positions, whitening)
        return self._usual

    def _forget(self) -> None:
        self._whitening, self._basis, self._usual, self._fitted = None, None, None, -1


def check_same(there: About, wanted: About | None) -> None:
    """Raises CollectionMismatch, which names both."""
    if wanted is None:
        return
    for what, found, ours in (
        ("model", there.model, wanted.model),
        ("projection", there.projection, wanted.projection),
        ("resolution", _sides(there.resolution), _sides(wanted.resolution)),
        ("vectors of length", str(there.dims), str(wanted.dims)),
    ):
        if found != ours:
            raise CollectionMismatch(
                f"the collection belongs to {what} {found}; the request is of {what} {ours}. "
                "Vectors of the two do not compare: use another collection, or add its images anew."
            )


def _sides(resolution: tuple[int, int]) -> str:
    return f"{resolution[0]} x {resolution[1]}"


Identity = tuple[int, int]  # of a file, whatever its name


@dataclass(slots=True)
class OpenCollections:
    """The collections that this process has open.

    A file is never open twice: with POSIX locks, closing one of two handles would drop the lock of
    the other.
    """

    _open: OrderedDict[Identity, Collection] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(
        self, path: Path, about: About | None, read_only: bool = False, writes: bool = False
    ) -> Collection:
        """With `about` and `writes`, a collection that does not exist is made.

        Raises the errors of `Collection.open`.
        """
        with self._lock:
            identity = _identity(path)
            for known, collection in list(self._open.items()):
                if collection.store.path == path and known != identity:  # moved, or deleted
                    self._drop(known)
            there = None if identity is None else self._open.get(identity)
            if there is not None and identity is not None:
                if not (writes and there.store.read_only):
                    check_same(there.store.about, about)
                    self._open.move_to_end(identity)
                    return there
                self._drop(identity)
            while len(self._open) >= MAX_OPEN:
                self._drop(next(iter(self._open)))
            opened = Collection.open(path, about, read_only, create=writes and about is not None)
            identity = _identity(path)
            if identity is None:
                opened.close()
                raise CollectionNotFound("the collection was deleted while it was opened.")
            self._open[identity] = opened
            return opened

    @property
    def any(self) -> bool:
        """Whether one is open."""
        return bool(self._open)

    def close(self) -> None:
        """Close all of them: each is one file again."""
        with self._lock:
            for identity in list(self._open):
                self._drop(identity)

    def _drop(self, identity: Identity) -> None:
        self._open[identity].close()  # `any` is true until this is done
        del self._open[identity]


def _identity(path: Path) -> Identity | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
