"""The driver of a corpus: Ray Data places encoders, hands them blocks, and repeats what is lost.
The only file that imports Ray.

Ray Data's own job checkpoint is not used; LOG.md says why. A block's file is its checkpoint.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Before Ray is imported: it reports its usage to its makers, unless it is told not to.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
import ray.data
import ray.util.scheduling_strategies

from build import corpus_rows
from build.corpus_plan import Block, Folder
from build.corpus_rows import BlockEncoder, Encodes, Job
from build.errors import BuildError
from sidecar import manifest, model_files, priority
from sidecar.errors import SidecarError
from sidecar.library import duration

OBJECT_STORE = 100 * 2**20  # bytes; only the numbers of blocks pass through it
WAITING = 2  # blocks that an actor has been given: one to encode, and the next
ENCODER_BYTES = 2**30  # of an actor, beside the model's files: Python, activations, decoders
PROGRESS_S = 5.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job runs. `actors` 0: as many as there is room for."""

    address: str | None = None
    actors: int = 0


# What Ray runs on the machines


class Actor:
    """One encoder in one process."""

    def __init__(self, job: Job, load: Callable[[Job], Encodes]) -> None:
        self._encode = BlockEncoder(job, load)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Blocks to what was done, as JSON."""
        blocks = zip(batch["list"].tolist(), batch["number"].tolist(), strict=True)
        done = [self._encode(Block(*block)) for block in blocks]
        return {"done": [json.dumps(asdict(block)) for block in done]}


def verify(job: Job) -> str:
    """What is wrong with the model directory of a machine; "" if nothing is."""
    try:
        digest = model_files.load(Path(job.model)).digest
    except SidecarError as error:
        return str(error)
    if digest != job.about.model:
        return f"the model there has the digest {digest[:12]}, not {job.about.model[:12]}."
    return ""


# The driver


def run(
    job: Job,
    folder: Folder,
    todo: Sequence[tuple[Block, int]],
    place: Place = Place(),
    tell: Tell = lambda _: None,
    *,
    load: Callable[[Job], Encodes] = corpus_rows.load,
    verify: Callable[[Job], str] = verify,
) -> int:
    """Have the blocks encoded. How many errors they have. Raises BuildError where the job cannot go
    on; the blocks that are done stay done.
    """
    if not todo:
        return 0
    started = not ray.is_initialized()
    if started:
        _connect(job, place)
    try:
        _verify(job, verify)
        memory = ENCODER_BYTES + _model_bytes(job)
        room = sum(
            min(int(has.get("CPU", 0)) // job.cores, int(has.get("memory", 0)) // memory)
            for node in ray.nodes()
            if node["Alive"]
            for has in [node["Resources"]]
        )
        if not room and not place.actors:
            raise BuildError(
                f"no machine has {job.cores} cores and {memory / 2**30:.1f} GiB for an encoder. "
                "Choose fewer --cores, or larger machines."
            )
        actors = min(place.actors or room, len(todo))
        ready = max(1, min(actors, room))
        tell(f"{actors} encoders; for each {job.cores} cores and {memory / 2**30:.1f} GiB")
        blocks = [{"list": block.list, "number": block.number} for block, _ in todo]
        dataset = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
            Actor,
            fn_constructor_args=(job, load),
            batch_size=None,
            batch_format="numpy",
            num_cpus=job.cores,
            memory=memory,
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=actors,
                initial_size=ready,
                max_tasks_in_flight_per_actor=WAITING,
            ),
        )
        progress = Progress(sum(count for _, count in todo), tell)
        for batch in dataset.iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=0
        ):
            for text in batch["done"]:
                done = json.loads(text)
                progress.step(done["images"], done["errors"])
        progress.end()
    except (ray.exceptions.RayError, ConnectionError) as error:
        cause = getattr(error, "cause", None) or error
        raise BuildError(
            f"the job stopped: {type(cause).__name__}: {str(cause).strip().splitlines()[-1]}. Run "
            "it again: it goes on with the blocks that are not done."
        ) from error
    finally:
        if started:
            ray.shutdown()
    left = {block for block, _ in todo} - folder.done()
    if left:
        raise BuildError(f"{len(left)} blocks were lost. Run the job again: it encodes them.")
    return progress.errors


def _connect(job: Job, place: Place) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if place.address is None:
        cores = max(place.actors * job.cores, priority.physical_cores())
        quiet |= {
            "num_cpus": cores,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
        }
    try:
        ray.init(address=place.address or "local", **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BuildError(
            f"there is no Ray cluster at {place.address or 'this machine'}: {error}"
        ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _verify(job: Job, verify: Callable[[Job], str]) -> None:
    """Once on each machine, before any encoder is loaded. Raises BuildError."""
    check = ray.remote(num_cpus=0)(verify)
    on = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    nodes = [node for node in ray.nodes() if node["Alive"]]
    runs = [
        check.options(scheduling_strategy=on(node["NodeID"], soft=False)).remote(job)
        for node in nodes
    ]
    for node, wrong in zip(nodes, ray.get(runs), strict=True):
        if wrong:
            raise BuildError(f"the machine {node['NodeManagerAddress']} cannot encode: {wrong}")


def _model_bytes(job: Job) -> int:
    """Of the weights, which each encoder holds."""
    try:
        described = manifest.read(Path(job.model))
    except SidecarError:
        return 0
    return sum(file.bytes for file in described.files.values())


class Progress:
    """One line every few seconds: how far, how fast, how long still."""

    def __init__(self, total: int, tell: Tell) -> None:
        self.total, self.done, self.errors = total, 0, 0
        self._tell = tell
        self._begun = self._told = time.monotonic()

    def step(self, images: int, errors: int) -> None:
        """A block is done."""
        self.done += images
        self.errors += errors
        if time.monotonic() - self._told >= PROGRESS_S:
            self._told = time.monotonic()
            spent = self._told - self._begun
            left = duration(spent / self.done * (self.total - self.done))
            self._tell(
                f"{self.done} of {self.total}, {self.errors} bad, {self.done / spent:.2f} images a "
                f"second, about {left} left"
            )

    def end(self) -> None:
        """Of all blocks."""
        spent = max(time.monotonic() - self._begun, 1e-9)
        self._tell(
            f"{self.done} images in {duration(spent)}, {self.done / spent:.2f} a second; "
            f"{self.errors} bad, whose rows say why"
        )
