"""A corpus at scale, on one machine: the same vectors, kills, many nodes, a large collection.

    python -m tests.corpus_scale same --model DIR     2,000 images, 20 of them bad, two encoders
    python -m tests.corpus_scale throughput --model DIR    against two processes that only encode
    python -m tests.corpus_scale kills                driver, actor and raylet killed at random
    python -m tests.corpus_scale nodes                eight nodes, one of which is lost
    python -m tests.corpus_scale collection           100,000 rows become a collection
    python -m tests.corpus_scale checkpoint           Ray Data's own checkpoint, on 2 and 3 cores

Each prints its figures as JSON, and ends with an error where a promise is broken. `make corpus`
runs all; tests/corpus/test_ray.py runs short forms. Needs the extra `corpus`, but for the last.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from build.corpus_plan import About, Block
from build.corpus_rows import schema
from sidecar import quantised
from sidecar.collection import Collection, Vectors
from sidecar.errors import SidecarError
from sidecar.vision_encoder import VisionEncoder
from tests.client import ROOT
from tests.corpus import stand_in
from tests.waiting import until

PATIENCE = 300.0  # seconds: for a busy machine
Figures = dict[str, Any]


# same: real encoders


def pictures(folder: Path, count: int, bad: int, seed: int = 0) -> list[str]:
    """PNG and JPEG files of photographs' crops; `bad` of them are broken in several ways. The ids
    of those.
    """
    from PIL import Image
    from skimage import data

    draws = np.random.default_rng(seed)
    photographs = [data.astronaut(), data.coffee(), data.chelsea()]
    folder.mkdir(parents=True)
    wrong = set(draws.choice(count, bad, replace=False).tolist())
    ids = []
    for number in range(count):
        photograph = photographs[number % 3]
        side = int(draws.integers(120, 260))
        top, left = (int(draws.integers(0, length - side)) for length in photograph.shape[:2])
        picture = Image.fromarray(photograph[top : top + side, left : left + side])
        suffix = ".png" if number % 2 else ".jpg"
        path = folder / f"{number:05}{suffix}"
        picture.save(path)
        if number in wrong:
            ids.append(path.name)
            _break(path, len(ids))
    return ids


def _break(path: Path, kind: int) -> None:
    content = path.read_bytes()
    match kind % 5:
        case 0:
            path.write_bytes(b"")
        case 1:
            path.write_bytes(content[: len(content) // 2])
        case 2:
            path.write_bytes(b"no image at all")
        case 3:  # a header that promises more pixels than are allowed
            path.write_bytes(_huge_png())
        case _:
            path.write_bytes(content[:4])


def _huge_png() -> bytes:
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    crc = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + crc


def same(model: Path, work: Path, count: int, bad: int, resolution: int) -> Figures:
    """The vectors of two encoders of one core, bit for bit, and a row with a code for each bad
    file, or an AssertionError.
    """
    source, out = work / "images", work / "out"
    wrong = pictures(source, count, bad)
    _timed_corpus(model, source, out, resolution)
    rows = {row["id"]: row for row in pq.read_table(out).to_pylist()}
    assert len(rows) == count, len(rows)
    codes = {id: row["error"] for id, row in rows.items() if row["error"]}
    assert sorted(codes) == sorted(wrong), set(codes) ^ set(wrong)
    return {
        "images": count,
        "errors": dict(Counter(codes.values())),
        "equal bit for bit": compare(model, source, rows, resolution, work),
    }


def throughput(model: Path, work: Path, count: int, resolution: int, rounds: int) -> Figures:
    """Images a second of two encoders of one core, and of two processes that do nothing else."""
    source = work / "images"
    pictures(source, count, 0)
    found = []
    for number in range(rounds):
        plain = count / _plain(model, source, resolution)
        ours = count / _timed_corpus(model, source, work / f"out-{number}", resolution)
        found.append({"plain": plain, "corpus": ours, "ratio": ours / plain})
    return {"images": count, "images a second": found}


def _plain(model: Path, source: Path, resolution: int) -> float:
    """Seconds that two processes take which do nothing but encode, half each, once loaded."""
    words = [sys.executable, "-m", "tests.corpus_scale", "plain", "--model", str(model)]
    words += ["--resolution", str(resolution), "--source", str(source)]
    children = [
        subprocess.Popen(
            [*words, "--part", str(part)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for part in range(2)
    ]
    pipes = [(child.stdin, child.stdout) for child in children]
    for _, stdout in pipes:
        assert stdout is not None
        assert stdout.readline() == b"ready\n"
    begun = time.monotonic()
    for stdin, _ in pipes:
        assert stdin is not None
        stdin.write(b"go\n")
        stdin.flush()
    assert [child.wait() for child in children] == [0, 0]
    return time.monotonic() - begun


def plain(model: Path, source: Path, resolution: int, part: int) -> None:
    """One of the two: read a file, encode, keep the vectors."""
    files = sorted(source.iterdir())[part::2]
    with VisionEncoder(model, threads=1) as encoder:
        print("ready", flush=True)
        sys.stdin.readline()
        kept = []
        for file in files:
            try:
                encoding = encoder.encode(file.read_bytes(), resolution=resolution)
            except SidecarError:
                continue
            kept.append(encoding.pooled_embedding)


def _timed_corpus(model: Path, source: Path, out: Path, resolution: int) -> float:
    """Seconds of the whole job's encoding: what its last line says."""
    words = [sys.executable, "-m", "build.corpus", str(source), "--model", str(model)]
    words += ["--out", str(out), "--resolution", str(resolution), "--actors", "2", "--cores", "1"]
    words += ["--block", "32"]
    # Ray lets its workers yield to all others; the plain processes do not.
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, env=environment)
    # From the first image that was begun to the last block that is written: as for the others,
    # the loading of the model and of Ray is left out.
    parts = sorted(out.glob("part-*"), key=lambda part: part.stat().st_mtime_ns)
    first = pq.read_table(parts[0], columns=["milliseconds"])["milliseconds"].to_numpy()
    seconds = (parts[-1].stat().st_mtime_ns - parts[0].stat().st_mtime_ns) / 1e9
    return float(seconds + first.sum() / 1e3)


def compare(model: Path, source: Path, rows: dict[str, Any], resolution: int, work: Path) -> int:
    """How many vectors are those of `sidecar encode`, bit for bit: all, or an AssertionError."""
    good = [id for id, row in rows.items() if row["error"] is None]
    encoded = work / "encoded"
    words = [sys.executable, "-m", "sidecar", "encode", "--threads", "1", "--model", str(model)]
    words += ["--out", str(encoded), "--resolution", str(resolution)]
    halves = [[str(source / id) for id in good[part::2]] for part in range(2)]
    children = [
        subprocess.Popen([*words, *half], cwd=ROOT, stdout=subprocess.DEVNULL) for half in halves
    ]
    assert [child.wait() for child in children] == [0, 0]
    for id in good:
        with np.load(encoded / f"{Path(id).stem}.npz") as arrays:
            pooled, tokens = arrays["pooled_embedding"][0], arrays["projected_embeddings"][0]
        assert np.float32(rows[id]["pooled_embedding"]).tobytes() == pooled.tobytes(), id
        regions = quantised.pack(Vectors.of(pooled, tokens).regions)
        assert rows[id]["regions"] == regions, id
    return len(good)


# kills and nodes: an encoder that sleeps, in a cluster of this machine


@dataclass(frozen=True)
class Cluster:
    """A job on `nodes` simulated machines of one core, in a process of its own (`drive`)."""

    source: Path
    out: Path
    log: Path
    nodes: int
    seconds: float  # an image
    block: int

    def start(self) -> "Running":
        words = [sys.executable, "-m", "tests.corpus_scale", "drive"]
        words += ["--cluster", json.dumps({**asdict(self)}, default=str)]
        return Running(self, subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True))

    def encodes(self) -> list[tuple[float, str, str]]:
        """Time, name and process of each encode so far, in order."""
        found = []
        for file in self.log.iterdir():
            for line in file.read_text().splitlines():
                if line.count(" ") == 1 and line.endswith(".png"):  # whole
                    when, name = line.split()
                    found.append((float(when), name, file.name))
        return sorted(found)

    def ids(self) -> list[str]:
        return list(pq.read_table(self.out, columns=["id"])["id"].to_pylist())


def drive(cluster: Cluster) -> None:
    """The driver: a cluster whose head has no core, and the job."""
    import ray
    from ray.cluster_utils import Cluster as Simulated

    from build import corpus_ray

    # A node that is killed is to be missed within seconds, not within half a minute.
    system = {"health_check_initial_delay_ms": 2000, "health_check_period_ms": 1000}
    system |= {"health_check_failure_threshold": 3}
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    simulated = Simulated(
        initialize_head=True, head_node_args={"num_cpus": 0, **small, "_system_config": system}
    )
    for _ in range(cluster.nodes):
        simulated.add_node(num_cpus=1, memory=4 * 2**30, object_store_memory=80 * 2**20)
    ray.init(address=simulated.address, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        job, folder = stand_in.prepared(cluster.source, cluster.out, cluster.block)
        sizes = folder.blocks(cluster.block)
        done = folder.done()
        todo = [(block, count) for block, count in sizes if block not in done]
        load = stand_in.Load(cluster.seconds, str(cluster.log))
        print("begin", flush=True)
        corpus_ray.run(job, folder, todo, load=load, verify=stand_in.no_check)
        print("end", flush=True)
    finally:
        ray.shutdown()
        simulated.shutdown()


class Running:
    """The process of `drive`, and all that it started."""

    def __init__(self, cluster: Cluster, process: subprocess.Popen[str]) -> None:
        self.cluster, self.process = cluster, process

    def until_encoded(self, count: int) -> None:
        """Wait until that many images were encoded, over all runs."""
        until(
            lambda: self.process.poll() is not None or len(self.cluster.encodes()) >= count,
            PATIENCE,
            f"{count} images were encoded",
        )
        assert self.process.poll() is None, "the job ended before"

    def finish(self) -> None:
        """Wait for the end of the job, which must have gone well."""
        try:
            assert self.process.wait(PATIENCE) == 0
        finally:
            self.end()

    def kill_driver(self) -> None:
        """As the system does where memory is short; then what it leaves behind."""
        children = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        _end(children)

    def end(self) -> None:
        """End what is left."""
        children = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        _end(children)

    def raylets(self) -> list[int]:
        """Of the nodes, without the head's."""
        own = [pid for pid in descendants(self.process.pid) if _name(pid) == "raylet"]
        return sorted(own)[1:]

    def busy(self) -> list[int]:
        """The processes that encode."""
        alive = set(descendants(self.process.pid))
        return [int(pid) for *_, pid in self.cluster.encodes()[-20:] if int(pid) in alive]


def descendants(pid: int) -> list[int]:
    """From /proc: the processes below one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _end(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    until(lambda: not any(_alive(pid) for pid in pids), PATIENCE, "the processes ended")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def cluster_of(
    work: Path, images: int, nodes: int, seconds: float, block: int
) -> Iterator[Cluster]:
    """A job that has not begun."""
    names = [f"{number:06}.png" for number in range(images)]
    source = stand_in.folder_of(work / "images", names)
    (work / "log").mkdir()
    yield Cluster(source, work / "out", work / "log", nodes, seconds, block)


def kills(work: Path, images: int, block: int, seed: int) -> Figures:
    """Driver, actor and raylet killed, each at a random moment; then to the end. Asserts that every
    id is there once, and that a kill costs no encoder more than the block that it was at.
    """
    draws = random.Random(seed)
    nodes = 2
    moments = sorted(draws.sample(range(block, images - 3 * block), 3))
    with cluster_of(work, images, nodes, 0.05, block) as cluster:
        running = cluster.start()
        try:
            running.until_encoded(moments[0])
            running.kill_driver()
            after_driver = _again(cluster)
            running = cluster.start()
            running.until_encoded(moments[1])
            os.kill(running.busy()[-1], signal.SIGKILL)
            running.until_encoded(moments[2])
            os.kill(draws.choice(running.raylets()), signal.SIGKILL)
            running.finish()
        finally:
            running.end()
        ids = cluster.ids()
        assert len(ids) == len(set(ids)) == images, (len(ids), len(set(ids)))
        again = _again(cluster)
        # A driver takes all encoders with it; an actor and a raylet take one each.
        allowed = (nodes + 1 + 1) * block
        assert again <= allowed, (again, allowed)
        times = Counter(name for _, name, _ in cluster.encodes())
        return {
            "images": images,
            "block": block,
            "kills after": moments,
            "encoded twice": again,
            "allowed": allowed,
            "most encodes of an image": max(times.values()),
            "encoded twice before the second kill": after_driver,
        }


def _again(cluster: Cluster) -> int:
    encodes = cluster.encodes()
    return len(encodes) - len({name for _, name, _ in encodes})


def nodes(work: Path, images: int, count: int, seconds: float, block: int) -> Figures:
    """Work on `count` nodes, spread; then one of them is lost in the middle. Asserts that the
    spread is within 10 %, and that the loss costs its block only.
    """
    with cluster_of(work / "spread", images, count, seconds, block) as cluster:
        running = cluster.start()
        running.finish()
        ids = cluster.ids()
        assert len(ids) == len(set(ids)) == images
        spread = _spread(cluster.encodes())
        assert len(spread) == count, spread
        mean = sum(spread) / count
        widest = max(abs(share - mean) for share in spread) / mean
        assert widest <= 0.1, spread
        assert _again(cluster) == 0
    with cluster_of(work / "loss", images, count, seconds, block) as cluster:
        running = cluster.start()
        try:
            running.until_encoded(images // 2)
            os.kill(running.raylets()[count // 2], signal.SIGKILL)
            running.finish()
        finally:
            running.end()
        ids = cluster.ids()
        assert len(ids) == len(set(ids)) == images
        lost = _again(cluster)
        assert lost <= block, (lost, block)
    return {
        "images": images,
        "nodes": count,
        "images of each while all work": spread,
        "furthest from the mean": round(widest, 4),
        "block": block,
        "encoded twice after the loss of a node": lost,
    }


def _spread(encodes: list[tuple[float, str, str]]) -> list[int]:
    """Images of each encoder while all of them worked: they start one after another, and towards
    the end some find no block left.
    """
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for when, _, process in encodes:
        first.setdefault(process, when)
        last[process] = when
    begin, end = max(first.values()), min(last.values())
    return sorted(Counter(p for when, _, p in encodes if begin <= when <= end).values())


# checkpoint: what Ray Data's own one does with the same job


def checkpoint(work: Path, images: int, cpus: int, seconds: float) -> Figures:
    """`read_parquet → map_batches → write_parquet` with a CheckpointConfig: two actors of one core
    on a machine of `cpus` cores, killed after `seconds`. No promise of ours: it says why blocks
    are their own checkpoints here.
    """
    names = [f"{number:06}.png" for number in range(images)]
    work.mkdir(exist_ok=True)
    (work / "log").mkdir()
    pq.write_table(pa.table({"id": names}), work / "list.parquet", row_group_size=20)
    words = [sys.executable, "-m", "tests.corpus_scale", "checkpointed", "--source", str(work)]
    child = subprocess.Popen([*words, "--cpus", str(cpus)], cwd=ROOT, text=True)
    until((work / "begun").exists, PATIENCE, "Ray began")
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        Running(Cluster(work, work, work / "log", 0, 0, 0), child).kill_driver()
    encoded = sum(len(file.read_text().splitlines()) for file in (work / "log").iterdir())
    written = sum(pq.read_metadata(file).num_rows for file in (work / "rows").glob("*.parquet"))
    return {"cores": cpus, "seconds": seconds, "encoded": encoded, "written": written}


def checkpointed(work: Path, cpus: int) -> None:
    """The driver of that job."""
    import ray
    from ray.data.checkpoint import CheckpointConfig

    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    (work / "begun").touch()
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig("id", str(work / "checkpoint"))

    class Sleeper:
        def __call__(self, batch: Any) -> Any:
            encoder = stand_in.StandIn(0.05, str(work / "log"))
            for name in batch["id"].to_pylist():
                encoder.encode(name.encode(), resolution=(448, 448))
            return batch

    rows = ray.data.read_parquet(str(work / "list.parquet"), num_cpus=0.01)
    pool = ray.data.ActorPoolStrategy(size=2)
    rows = rows.map_batches(
        Sleeper, batch_size=20, batch_format="pyarrow", compute=pool, num_cpus=1
    )
    rows.write_parquet(str(work / "rows"), ray_remote_args={"num_cpus": 0.01})


# collection


def collection(work: Path, count: int, dims: int) -> Figures:
    """Rows of random vectors become a collection in a process of its own; its peak, and a search.
    Asserts that the peak is below 500 MB.
    """
    out = work / "rows"
    rows_of_noise(out, count, dims)
    file = work / "large.cases"
    words = [sys.executable, "-m", "build.collection", str(out), "--out", str(file)]
    begun = time.monotonic()
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < 500e6, peak
    opened = Collection.open(file, None, read_only=True)
    assert opened.count == count
    vectors = noise(7, dims)
    cost = opened.store.size / count
    opened.search(vectors)
    begun = time.process_time()
    matches = opened.search(vectors)
    searched = time.process_time() - begun
    opened.close()
    assert matches[0].id == "7", matches[0]
    return {
        "rows": count,
        "seconds": round(seconds, 1),
        "peak MB": round(peak / 1e6, 1),
        "bytes a case": round(cost),
        "search, CPU seconds": round(searched, 3),
    }


def noise(number: int, dims: int) -> Vectors:
    """Of a picture that nobody took: regions from a few directions, as real ones are."""
    draws = np.random.default_rng(number)
    weights = draws.standard_normal((16, 32), np.float32)
    regions = weights @ directions(dims)
    regions += np.float32(0.3) * draws.standard_normal((16, dims), np.float32)
    return Vectors(regions.mean(0), regions)


@cache
def directions(dims: int) -> Any:
    """[32, dims]"""
    return np.random.default_rng(10**9).standard_normal((32, dims), np.float32)


def rows_of_noise(out: Path, count: int, dims: int, block: int = 500) -> None:
    """A corpus as `build.corpus` writes one."""
    resolution = (448, 448)
    about = About("", "m" * 64, "default", "projector", resolution, dims, "1", False, block)
    columns = schema(about)
    out.mkdir(parents=True)
    for first in range(0, count, block):
        rows = []
        for number in range(first, min(first + block, count)):
            vectors = noise(number, dims)
            row: dict[str, Any] = {
                "id": str(number),
                "metadata": "{}",
                "pooled_embedding": vectors.pooled,
            }
            row |= {"regions": quantised.pack(vectors.regions), "norms": (1.0, 2.0), "flat": False}
            row |= {"model": about.model, "recipe": "default", "projection": "projector"}
            rows.append({**row, "resolution": resolution, "error": None})
        table = pa.Table.from_pylist(rows, columns)
        pq.write_table(table, out / Block(0, first // block).name, use_dictionary=False)


def main() -> None:
    """Run one, and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus_scale", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    own = ("drive", "plain", "checkpointed")  # processes of the others
    for name in ("same", "throughput", "kills", "nodes", "collection", "checkpoint", *own):
        command = commands.add_parser(name)
        command.add_argument("--model", type=Path)
        command.add_argument("--resolution", type=int, default=224)
        command.add_argument("--images", type=int)
        command.add_argument("--rounds", type=int, default=1)
        command.add_argument("--dims", type=int, default=2560)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--cluster")
        command.add_argument("--source", type=Path)
        command.add_argument("--part", type=int)
        command.add_argument("--cpus", type=int)
    options = parser.parse_args()
    if options.command == "drive":
        values = json.loads(options.cluster)
        places = {name: Path(values[name]) for name in ("source", "out", "log")}
        drive(Cluster(**{**values, **places}))
        return
    if options.command == "plain":
        plain(options.model, options.source, options.resolution, options.part)
        return
    if options.command == "checkpointed":
        checkpointed(options.source, options.cpus)
        return
    work = Path(tempfile.mkdtemp(prefix="corpus-scale-"))
    images = options.images
    runs: dict[str, Callable[[], Figures]] = {
        "same": lambda: same(options.model, work, images or 2000, 20, options.resolution),
        "throughput": lambda: throughput(
            options.model, work, images or 2000, options.resolution, options.rounds
        ),
        "kills": lambda: kills(work, images or 1000, 20, options.seed),
        "nodes": lambda: nodes(work, images or 6400, 8, 0.05, 20),
        "collection": lambda: collection(work, images or 100_000, options.dims),
        "checkpoint": lambda: {
            "runs": [checkpoint(work / str(cpus), images or 600, cpus, 90) for cpus in (2, 3)]
        },
    }
    try:
        print(json.dumps(runs[options.command](), indent=1), flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
