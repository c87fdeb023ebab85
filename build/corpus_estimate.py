"""What a corpus of N images would cost: measured on a few of them here, and multiplied."""

import itertools
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from build.corpus_rows import COMPRESSION, Asked, BlockEncoder
from build.corpus_source import items
from build.errors import BuildError
from sidecar.case_store import PADDING, REGION_BLOCK
from sidecar.places import BASIS_DIMS, REGIONS
from sidecar.quantised import packed_size

SAMPLE = 64  # images at most
SAMPLE_S = 30.0
LEAST = 8  # images
SECONDS = 3600
# US dollars for an hour of a core (two vCPUs) with 4 GiB, from Google's spot price of C2D machines
# (https://cloud.google.com/spot-vms/pricing) to AWS's example of c5 machines on demand (its guide's
# page "weights-spot-price-per-unit-hour-example"). Prices change, and others ask for others.
PRICE = (0.0187, 0.085)
CASE_BYTES = 24  # CRC, scale, norm, the row of a case


def estimate(
    asked: Asked, count: int, price: tuple[float, float], tell: Callable[[str], None]
) -> None:
    """Tell what `count` images like those of the source take.

    Raises BuildError, ModelInvalid, RequestMalformed.
    """
    job = asked.job("", SAMPLE)
    about = job.about
    encoder = BlockEncoder(job)
    rows = []
    begun = time.perf_counter()
    for item in itertools.islice(items(asked.source), SAMPLE):
        rows.append(encoder.row(item))
        if len(rows) >= LEAST and time.perf_counter() - begun > SAMPLE_S:
            break
    spent = time.perf_counter() - begun
    good = sum(row["error"] is None for row in rows)
    if not good:
        raise BuildError(f"none of the first images of {asked.source} could be encoded.")
    table = pa.Table.from_pylist(rows, encoder.schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=COMPRESSION)
    rate = len(rows) / spent * SECONDS / asked.cores
    hours = count / rate
    metadata = sum(len(row["id"]) + len(row["metadata"]) for row in rows) / len(rows)
    case = (
        about.dims
        + packed_size(REGIONS, min(BASIS_DIMS, about.dims))
        + PADDING / REGION_BLOCK
        + CASE_BYTES
        + metadata
    )
    low, high = sorted(price)
    side, _ = about.resolution
    tell(f"measured    {len(rows)} images at {side} pixels, {asked.cores} cores: {spent:.1f} s")
    tell(f"speed       {rate:,.0f} images a core and hour, on this machine")
    tell(f"time        {hours:,.1f} core-hours for {count:,} images, {hours / 24:,.1f} core-days")
    tell(f"disk        {_size(count * sink.tell() / len(rows))} of Parquet")
    tell(f"collection  {_size(count * case)}")
    tell(
        f"price       {hours * low:,.2f} to {hours * high:,.2f}, at {low:g} to {high:g} a core-hour"
    )


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
