"""The ops on collections: a request and the embeddings of its image in, arrays and fields out."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.case_store import About
from sidecar.collection import Collection, Match, OpenCollections, Vectors
from sidecar.encoder import Encoding
from sidecar.errors import TensorShape
from sidecar.job import Embeddings, Job, Tensor
from sidecar.manifest import Manifest
from sidecar.places import Pair
from sidecar.protocol import (
    CASE_OUTPUTS,
    CollectionAdd,
    CollectionInfo,
    CollectionRemove,
    CollectionRequest,
    CollectionSearch,
)


class CollectionOps:
    """Opens collections as requests name them, and keeps them open for the next. One thread."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._open = OpenCollections()

    @property
    def any_open(self) -> bool:
        """Whether a file is open, and so closed to other programs."""
        return self._open.any

    def open(self, request: CollectionRequest) -> Collection:
        """Before any inference: what must be refused is refused at once.

        Raises the errors of `Collection.open`, and TensorShape.
        """
        match request:
            case CollectionAdd():
                about = self._about(request.job, request.embeddings)
                return self._open.get(request.collection, about, writes=True)
            case CollectionSearch():
                about = self._about(request.job, request.embeddings)
                return self._open.get(request.collection, about, request.read_only)
            case CollectionRemove():  # the vectors of a model that is gone can be removed too
                return self._open.get(request.collection, None, writes=True)
            case CollectionInfo():
                return self._open.get(request.collection, None, request.read_only)

    def perform(
        self, request: CollectionRequest, collection: Collection, encoding: Encoding | None
    ) -> tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]:
        """Arrays and fields for the reply. `encoding` is that of the request's job, if it has one;
        of its arrays those are taken out that only the case needs.

        Raises the errors of `Collection`, and TensorShape.
        """
        match request:
            case CollectionAdd():
                vectors = _vectors(request, encoding)
                metadata = json.loads(request.metadata)
                added = collection.add(request.case, vectors, metadata, request.replace)
                return {}, {"added": added, "count": collection.count}
            case CollectionSearch():
                vectors = _vectors(request, encoding)
                found = collection.search(vectors, request.k, request.regions, request.where)
                return {"matches": _json_array(found)}, {"count": collection.count}
            case CollectionRemove():
                collection.remove(request.case)
                return {}, {"count": collection.count}
            case CollectionInfo():
                return {}, collection.info()

    def close(self) -> None:
        """Close all files: each is one file that may be copied."""
        self._open.close()

    def _about(self, job: Job | None, embeddings: Embeddings | None) -> About:
        side = self._manifest.default_resolution
        resolution = (side, side)
        if embeddings is not None:
            resolution = embeddings.resolution
        elif job is not None and isinstance(job.input, Tensor):
            shape = job.input.pixel_values.shape
            if len(shape) != 4 or shape[0] != 1:
                raise TensorShape(
                    "a case is one image: expected pixel_values of shape [1, 3, height, width]."
                )
            resolution = (int(shape[2]), int(shape[3]))
        elif job is not None and job.resolution is not None:
            resolution = job.resolution
        return about(self._manifest, resolution)


def about(manifest: Manifest, resolution: tuple[int, int]) -> About:
    """What a collection of this model's vectors belongs to."""
    return About(
        manifest.digest,
        manifest.projection,
        resolution,
        manifest.text_hidden,
        manifest.collections,
    )


def as_json(matches: list[Match]) -> list[dict[str, Any]]:
    """The matches as the wire and the command line tell them."""
    return [
        {
            "id": match.id,
            "similarity": round(match.similarity, 6),
            "metadata": json.loads(match.metadata),
            **({} if match.regions is None else {"regions": [_pair(of) for of in match.regions]}),
        }
        for match in matches
    ]


def _vectors(request: CollectionAdd | CollectionSearch, encoding: Encoding | None) -> Vectors:
    if encoding is not None:
        pooled, projected = (encoding.arrays[name] for name in CASE_OUTPUTS)
        for name in CASE_OUTPUTS:
            if name not in request.outputs:
                del encoding.arrays[name]
    else:
        assert request.embeddings is not None
        pooled, projected = request.embeddings.pooled, request.embeddings.projected
    if pooled.ndim != 2 or projected.ndim != 3 or len(pooled) != 1 or len(projected) != 1:
        raise TensorShape(
            "expected the embeddings of one image: pooled_embedding [1, text_hidden] and "
            "projected_embeddings [1, 256, text_hidden]."
        )
    return Vectors.of(pooled[0], projected[0])


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "query": list(pair.query),
        "match": list(pair.match),
        "similarity": round(pair.similarity, 6),
    }


def _json_array(matches: list[Match]) -> NDArray[np.uint8]:
    # As a payload: metadata may be larger than a header, and hold keys like __proto__.
    text = json.dumps(as_json(matches), ensure_ascii=False, separators=(",", ":"))
    return np.frombuffer(text.encode(), np.uint8)
