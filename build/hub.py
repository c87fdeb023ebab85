"""A hub id becomes a local directory in Hugging Face format that holds the vision tower alone.

huggingface_hub does the talking, so tokens, mirrors (HF_ENDPOINT), offline mode and its cache
behave as its users know them. Of each shard we ask for the header, then for the bytes that hold our
tower. They are kept in the hub's assets cache; a partial file's length says how far we came.
"""

import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import (
    cached_assets_path,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    WeakFileLock,
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
    tqdm,
)

from build import tower
from build.artifacts import BuildError
from build.tower import ADAPTER, CONFIG, INDEX, PREFIX, PROCESSORS, SINGLE, Piece, Tensor

LIBRARY = "vision-sidecar"
PATIENCE = 5  # attempts in a row that bring nothing, before we give up
PAUSE = 1.0  # seconds between them
GB = 1e9


def fetch(model_id: str, revision: str | None = None) -> tuple[str, Path]:
    """Return the commit that `revision` names, and a directory with what the build needs of it.

    Fetches only what is in no cache yet. Raises BuildError.
    """
    with _explained(model_id, revision):
        snapshot, online = _resolve(model_id, revision or constants.DEFAULT_REVISION)
        commit = snapshot.name
        place = cached_assets_path(LIBRARY, namespace=model_id, subfolder=commit)
        repository = _Repository(model_id, commit, place, online)
        for name in PROCESSORS:
            repository.small(name)
        config = tower.read_config((snapshot / CONFIG).read_bytes(), model_id)
        with WeakFileLock(place / ".lock"):  # two builds at once fetch once
            if not (place / SINGLE).exists():
                headers = repository.headers()
                if all(repository.cached(file) for file in headers):
                    return commit, snapshot
                _collect(repository, tower.select(headers, config))
        for name in (CONFIG, *PROCESSORS):
            if (snapshot / name).exists():
                shutil.copyfile(snapshot / name, place / name)
        return commit, place


class _NoRanges(Exception):
    """The server sends whole files only."""


@dataclass(frozen=True)
class _Repository:
    """One commit of a model on the hub: what its files hold, from the cache or over the network."""

    model_id: str
    commit: str
    place: Path  # ours, for headers and tensors
    online: bool  # else small files come from the cache alone

    def cached(self, file: str) -> Path | None:
        """Where the hub's own cache has the whole file."""
        path = try_to_load_from_cache(self.model_id, file, revision=self.commit)
        return Path(path) if isinstance(path, str) else None

    def small(self, file: str) -> Path | None:
        """A file that need not exist, by way of the hub's own cache."""
        try:
            path = hf_hub_download(
                self.model_id, file, revision=self.commit, local_files_only=not self.online
            )
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError:
            if self.online:  # the network went away: what it would have said is not known
                raise
            return None
        return Path(path)

    def headers(self) -> dict[str, dict[str, Tensor]]:
        """The header of every shard that holds tensors of ours."""
        index = None if self.cached(SINGLE) else self.small(INDEX)
        files = [SINGLE] if index is None else tower.shard_names(index.read_bytes())
        try:
            return {file: self._header(file) for file in files}
        except RemoteEntryNotFoundError as error:
            if adapter := self.small(ADAPTER):
                raise tower.adapter_error(adapter.read_bytes(), self.model_id) from error
            raise BuildError(
                f"{self.model_id} lacks {' or '.join(files)}; expected weights in safetensors "
                "format. Look for another revision, or save it again with Transformers."
            ) from error

    def read(self, file: str, start: int, stop: int) -> Iterator[bytes]:
        """Those bytes of the file; the whole file comes into the hub's cache where it must."""
        path = self.cached(file)
        if path is None:
            try:
                for chunk in self._ranges(file, start, stop):
                    start += len(chunk)
                    yield chunk
            except _NoRanges:
                path = Path(hf_hub_download(self.model_id, file, revision=self.commit))
        if path is not None:
            yield from tower.read(path, start, stop)

    def _header(self, file: str) -> dict[str, Tensor]:
        kept = self.place / f"{file}.header"
        if self.cached(file) is None and not kept.exists():
            base = tower.header_size(b"".join(self.read(file, 0, PREFIX)), file)
            text = b"".join(self.read(file, PREFIX, base))
            if self.cached(file) is None:
                partial = kept.with_name(kept.name + ".partial")
                partial.write_bytes(self._size(file).to_bytes(PREFIX, "little") + text)
                partial.replace(kept)
        if path := self.cached(file):
            return tower.read_header(path)
        content = kept.read_bytes()
        size = int.from_bytes(content[:PREFIX], "little")
        return tower.parse(content[PREFIX:], size or None, file)

    def _size(self, file: str) -> int:
        """The file's size, or 0 where the server, some mirror, does not tell."""
        url = hf_hub_url(self.model_id, file, revision=self.commit)
        return get_hf_file_metadata(url).size or 0

    def _ranges(self, file: str, start: int, stop: int) -> Iterator[bytes]:
        """Ask again from where we are whenever the connection breaks."""
        url = hf_hub_url(self.model_id, file, revision=self.commit)
        headers = build_hf_headers(headers={"Accept-Encoding": "identity"})
        patience = PATIENCE
        while start < stop:
            if patience < PATIENCE:
                time.sleep(PAUSE)
            patience -= 1
            try:
                # Its own retries end at the first byte; those in mid-file are ours.
                with http_stream_backoff(
                    "GET",
                    url,
                    headers=headers | {"Range": f"bytes={start}-{stop - 1}"},
                    timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                    retry_on_exceptions=(),
                ) as response:
                    hf_raise_for_status(response)
                    span = response.headers.get("Content-Range", "")
                    if not span.startswith(f"bytes {start}-{stop - 1}/"):
                        raise _NoRanges
                    for chunk in response.iter_bytes():  # as they come, so that none is lost
                        start += len(chunk)
                        patience = PATIENCE
                        yield chunk
                if start < stop and not patience:
                    raise httpx2.RemoteProtocolError("the server keeps sending less than asked for")
            except httpx2.TransportError:
                if not patience:
                    raise


def _resolve(model_id: str, revision: str) -> tuple[Path, bool]:
    """The commit's directory in the hub's cache, and whether the hub answered."""
    online = True
    try:
        # Asked first because hf_hub_download tries for half a minute where there is no network.
        get_hf_file_metadata(hf_hub_url(model_id, CONFIG, revision=revision))
        config = hf_hub_download(model_id, CONFIG, revision=revision)
    except RemoteEntryNotFoundError as error:
        try:
            adapter = Path(hf_hub_download(model_id, ADAPTER, revision=revision)).read_bytes()
        except EntryNotFoundError:
            raise BuildError(
                f"{model_id} has no {CONFIG}; expected a model in Hugging Face format. "
                f"Look at its files on {constants.ENDPOINT}/{model_id}."
            ) from error
        raise tower.adapter_error(adapter, model_id) from error
    except (HfHubHTTPError, httpx2.HTTPError, OfflineModeIsEnabled) as error:
        try:
            config = hf_hub_download(model_id, CONFIG, revision=revision, local_files_only=True)
        except LocalEntryNotFoundError:
            raise error from None
        online = False
    return Path(config).parent, online


def _collect(repository: _Repository, pieces: Mapping[str, Piece]) -> None:
    """Fetch the pieces into one safetensors file, going on where an earlier attempt ended."""
    ordered = sorted(pieces.items(), key=lambda item: (item[1].file, item[1].tensor.start))
    head = tower.header({name: piece.tensor for name, piece in ordered})
    runs = _runs([piece for _, piece in ordered])
    total = len(head) + sum(stop - start for _, start, stop in runs)
    partial = repository.place / f"{SINGLE}.partial"
    with partial.open("a+b") as target:
        target.seek(0)
        if target.read(len(head)) != head:
            target.truncate(0)
            target.write(head)
        done = target.seek(0, os.SEEK_END)
        _check_space(repository.place, total - done)
        bar = _progress(repository, total, done)
        skip = done - len(head)
        for file, start, stop in runs:
            skipped = min(skip, stop - start)
            skip -= skipped
            for chunk in repository.read(file, start + skipped, stop):
                target.write(chunk)
                bar.update(len(chunk))
        bar.close()
        target.flush()
        os.fsync(target.fileno())
    partial.replace(repository.place / SINGLE)
    for kept in repository.place.glob("*.header*"):
        kept.unlink()


def _runs(pieces: list[Piece]) -> list[tuple[str, int, int]]:
    """Neighbours in one shard come with one request: file, start, stop."""
    runs: list[tuple[str, int, int]] = []
    for piece in pieces:
        start, stop = piece.tensor.start, piece.tensor.stop
        if runs and runs[-1][0] == piece.file and runs[-1][2] == start:
            start = runs.pop()[1]
        runs.append((piece.file, start, stop))
    return runs


def _progress(repository: _Repository, total: int, done: int) -> tqdm:
    known = f", {done / GB:.2f} GB of it here already" if done > total // 100 else ""
    print(
        f"Fetching the vision tower of {repository.model_id} at {repository.commit[:12]}: "
        f"{total / GB:.2f} GB{known}",
        file=sys.stderr,
    )
    # With size, speed and time to go; a line every ten seconds where nobody watches a terminal.
    return tqdm(
        total=total,
        initial=done,
        unit="B",
        unit_scale=True,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )


def _check_space(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if free < needed:
        raise BuildError(
            f"the disk of {place} has {free / GB:.2f} GB free, expected {needed / GB:.2f} GB. Make "
            "room, or point HF_HOME at another disk; what was fetched so far is kept."
        )


@contextmanager
def _explained(model_id: str, revision: str | None) -> Iterator[None]:
    """Turn whatever goes wrong on the way into a BuildError."""
    try:
        yield
    except (OSError, httpx2.HTTPError, HFValidationError) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
        raise BuildError(_reason(cause or error, model_id, revision)) from error


def _reason(error: BaseException, model_id: str, revision: str | None) -> str:
    page = f"{constants.ENDPOINT}/{model_id}"
    match error:
        case GatedRepoError() if error.response.status_code == httpx2.codes.UNAUTHORIZED:
            return (
                f"{model_id} is gated and no token came with the request. Accept its licence on "
                f"{page}, then sign in with `hf auth login` or set HF_TOKEN."
            )
        case GatedRepoError():
            return (
                f"{model_id} is gated and your account has no access to it yet. Accept its licence "
                f"on {page} with the account that the token belongs to, then run this again."
            )
        case RepositoryNotFoundError():
            return (
                f"{constants.ENDPOINT} knows no model {model_id}, or it is private. Check the "
                "spelling; for a private model sign in with `hf auth login` or set HF_TOKEN."
            )
        case RevisionNotFoundError():
            return f"{model_id} has no revision {revision}. Choose one from {page}/commits/main."
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return (
                f"{model_id} is not in the cache and HF_HUB_OFFLINE is set. Unset it, or run once "
                "with a network."
            )
        case HfHubHTTPError() if error.response.status_code == httpx2.codes.UNAUTHORIZED:
            return f"{constants.ENDPOINT} refused the token. Sign in again with `hf auth login`."
        case HfHubHTTPError():
            said = f" ({error.server_message})" if error.server_message else ""
            return (
                f"{constants.ENDPOINT} answered {error.response.status_code}{said} for {model_id}. "
                "Try again later; what was fetched so far is kept."
            )
        case httpx2.HTTPError():
            return (
                f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}). Check the "
                "network and run this again; what was fetched so far is kept."
            )
        case HFValidationError():
            return (
                f"{model_id!r} is neither a directory nor a hub id such as google/medgemma-4b-it."
            )
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk of {constants.HF_HOME} is full. Make room, or point HF_HOME at another "
                "disk, and run this again; what was fetched so far is kept."
            )
    return f"{model_id} could not be fetched: {error}"
