"""Collections, measured: what whitening gains, what 8 bits keep, where places lie, and the peers.

    python -m bench.retrieval MODEL [--sizes 1000 10000 100000] [--engines ours …] [--resume]

Draws and crops over a thousand images (bench.retrieval_images), encodes them once with MODEL, and
prints two tables; all figures go to out/retrieval.json. `make bench-retrieval` installs the peers.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import machine, retrieval_engines
from bench.retrieval_engines import ENGINES, QUERIES, whiten
from bench.retrieval_vectors import Set, has_tokens, load
from sidecar.case_store import About
from sidecar.collection import Collection, Vectors
from sidecar.places import Box, Pair
from sidecar.quantised import Floats
from sidecar.whitening import FIT_AT, Whitening

OUT = Path("out/retrieval.json")
PEERS = ("sqlite-vec", "apsw", "usearch", "lancedb", "qdrant-edge-py")
UNRELATED = 1000  # pairs of photographs
VIEWS = 7  # of a source, where vectors are made


def quality(found: Set) -> dict[str, dict[str, float]]:
    """hit@1, recall@10 and mAP of each way to compare, for photographs and ECG pages."""
    pooled = found.pooled
    sources = np.array([view.source for view in found.views])
    draws = np.random.default_rng(0)
    named = np.unique(sources)
    half = np.isin(sources, draws.choice(named, len(named) // 2, replace=False))
    rows = {
        "cosine": scores(found, pooled, all_of(found)),
        "less the mean": scores(found, pooled - pooled.mean(0), all_of(found)),
        "shrunk whitening": scores(found, whitener(pooled, draws).apply(pooled), all_of(found)),
        "held out: cosine": scores(found, pooled, ~half),
        "held out: shrunk whitening": scores(
            found, whitener(pooled[half], draws).apply(pooled), ~half
        ),
    }
    for size in FIT_AT[:-1]:
        few = whitener(pooled, draws, size).apply(pooled)
        rows[f"whitening fitted on {size}"] = scores(found, few, all_of(found))
    return rows


def all_of(found: Set) -> NDArray[np.bool_]:
    return np.ones(len(found.views), bool)


def whitener(pooled: Floats, draws: np.random.Generator, size: int = FIT_AT[-1]) -> Whitening:
    return Whitening.fit(pooled[draws.permutation(len(pooled))[:size]])


def scores(found: Set, vectors: Floats, asked: NDArray[np.bool_]) -> dict[str, float]:
    """Among the images `asked`, each is a query for the others of its group."""
    chosen = np.flatnonzero(asked)
    groups = np.array([found.views[i].group for i in chosen])
    kinds = np.array([found.views[i].kind for i in chosen])
    unit = vectors[chosen] / np.linalg.norm(vectors[chosen], axis=1, keepdims=True)
    similarities = unit @ unit.T
    np.fill_diagonal(similarities, -np.inf)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :-1]
    right = groups[order] == groups[:, None]
    ranks = np.arange(1, right.shape[1] + 1)
    precision = np.where(right, np.cumsum(right, axis=1) / ranks, 0).sum(1) / right.sum(1)
    row = {}
    for kind in ("photo", "ecg"):
        of = kinds == kind
        row[f"{kind} hit@1"] = float(right[of, 0].mean())
        row[f"{kind} recall@10"] = float((right[of, :10].sum(1) / right[of].sum(1)).mean())
        row[f"{kind} mAP"] = float(precision[of].mean())
    return row


def stored(found: Set, folder: Path) -> dict[str, Any]:
    """A collection of all views: what it keeps of the exact order, and where places lie."""
    about = About("0" * 64, "projector", (448, 448), found.pooled.shape[1])
    collection = Collection.open(folder / "cases", about, create=True)
    order = np.random.default_rng(1).permutation(len(found.views))
    with collection.store.writing():
        for i in order:
            collection.add(found.views[i].name, of(found, int(i)), {})
    names = [found.views[i].name for i in order]
    exact = whiten(found.pooled[order])
    kept: dict[str, list[float]] = {"photo": [], "ecg": []}
    for place, i in enumerate(order):
        matches = collection.search(of(found, int(i)), k=11)
        ours = [match.id for match in matches if match.id != names[place]][:10]
        similarities = exact @ exact[place]
        similarities[place] = -np.inf
        best = {names[j] for j in np.argsort(-similarities, kind="stable")[:10]}
        kept[found.views[i].kind].append(len(best & set(ours)) / 10)
    row = {f"overlap, {kind}": float(np.mean(values)) for kind, values in kept.items()}
    row["overlap"] = float(np.mean([*kept["photo"], *kept["ecg"]]))
    row["fitted on"] = collection.info()["fitted"]
    row |= places_of_crops(found, collection) | places_of_strangers(found, collection)
    collection.close()
    return row


def of(found: Set, i: int) -> Vectors:
    return Vectors(found.pooled[i], found.regions[i].astype(np.float32))


def with_tokens(found: Set, i: int) -> Vectors:
    return Vectors.of(found.pooled[i], found.tokens(i))


def places_of_crops(found: Set, collection: Collection) -> dict[str, float]:
    """Each view of a photograph against a crop of it, and each crop against its whole view."""
    at = {view.name: i for i, view in enumerate(found.views)}
    crops = [i for i, view in enumerate(found.views) if view.box and view.kind == "photo"]
    row: dict[str, float] = {"crops": len(crops)}
    for what, whole_asks in (("of a crop of it", True), ("of the whole of it", False)):
        shown = inside = mostly = pairs = 0
        for crop in crops:
            view = found.views[crop]
            whole = at[f"{view.group}-plain"]
            asks, answers = (whole, crop) if whole_asks else (crop, whole)
            regions = pairs_of(found, collection, asks, answers)
            box = view.box
            assert box is not None
            within = [in_cut(box, pair.query if whole_asks else pair.match) for pair in regions]
            pairs += len(within)
            if within:
                shown += 1
                inside += all(within)
                mostly += sum(within) > len(within) / 2
        row |= {
            f"places {what}": shown / len(crops),
            f"places {what}, all in the cut": inside / max(shown, 1),
            f"places {what}, most in the cut": mostly / max(shown, 1),
        }
    return row


def pairs_of(found: Set, collection: Collection, query: int, match: int) -> tuple[Pair, ...]:
    where = collection.store.find(found.views[match].name)
    assert where is not None
    (regions,) = collection._pairs(with_tokens(found, query), [where.slot])
    return regions


def in_cut(cut: Box, box: Box) -> bool:
    """By its middle, with half a region of grace: one at the cut's edge lies in it in part."""
    y, x = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return cut[0] - 0.125 <= y <= cut[2] + 0.125 and cut[1] - 0.125 <= x <= cut[3] + 0.125


def places_of_strangers(found: Set, collection: Collection) -> dict[str, float]:
    """Photographs against views of other photographs."""
    draws = np.random.default_rng(2)
    photos = [i for i, view in enumerate(found.views) if view.kind == "photo"]
    asking = [i for i, view in enumerate(found.views) if has_tokens(view)]
    without = tried = 0
    while tried < UNRELATED:
        i, j = int(draws.choice(asking)), int(draws.choice(photos))
        one, two = found.views[i], found.views[j]
        if one.source.split("_")[0] == two.source.split("_")[0]:  # motorcycle_left, _right
            continue
        without += not pairs_of(found, collection, i, j)
        tried += 1
    return {"unrelated photographs without places": without / tried}


def cost(name: str, found: Set, size: int, work: Path) -> dict[str, Any]:
    """One engine at one size, in processes of its own."""
    if not (work / f"{size}.npz").exists():
        raw = more_vectors(found, size + QUERIES)
        raw, asked = raw[:size], raw[size:]
        whitened = whiten(raw)
        white, nearest = retrieval_engines.nearest(raw, whitened, asked)
        np.save(work / "regions.npy", found.regions)
        np.save(work / "raw.npy", raw)
        np.save(work / "whitened.npy", whitened)
        np.savez(work / "queries.npz", raw=asked, whitened=white, nearest=nearest)
        for other in work.glob("*0.npz"):
            other.unlink()
        (work / f"{size}.npz").touch()
    row: dict[str, Any] = {"engine": name, "cases": size}
    for step in ("build", "search"):
        words = [sys.executable, "-m", "bench.retrieval_engines", step, name]
        words += [str(work), str(work / "engine")]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode:
            row["failed"] = done.stderr.strip().splitlines()[-1]
            break
        row |= json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(work / "engine", ignore_errors=True)
    return row


def more_vectors(found: Set, count: int) -> Floats:
    """As many as wanted, in groups of views as the real ones are: sources with the real vectors'
    mean and covariance, and views that differ from their source as real views of a group do.
    """
    draws = np.random.default_rng(3)
    pooled, groups = found.pooled, np.array([view.group for view in found.views])
    mean = pooled.mean(0)
    weights = draws.normal(size=(count // VIEWS + 1, len(pooled))) / np.sqrt(len(pooled))
    sources = mean + weights.astype(np.float32) @ (pooled - mean)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    made = np.empty((count, pooled.shape[1]), np.float32)
    for number in range(count):
        one, two = draws.choice(members[draws.integers(len(members))], 2, replace=False)
        difference = (pooled[one] - pooled[two]) / np.float32(np.sqrt(2))
        made[number] = sources[draws.integers(len(sources))] + difference
    return made


def tables(figures: dict[str, Any]) -> str:
    """Markdown."""
    lines = []
    if "quality" in figures:
        heads = list(next(iter(figures["quality"].values())))
        lines += [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
        for name, row in figures["quality"].items():
            cells = " | ".join(f"{row[head]:.3f}" for head in heads)
            lines.append(f"| {name} | {cells} |")
        lines += ["", "| as stored | |", "|---|---:|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in figures["stored"].items()]
        lines.append("")
    columns = [
        "engine",
        "cases",
        "search ms",
        "least",
        "CPU ms",
        "first ms",
        "MB",
        "bytes a case",
        "overlap",
    ]
    lines += [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for row in figures["costs"]:
        if "failed" in row:
            lines.append(f"| {row['engine']} | {row['cases']} | {row['failed']} |")
            continue
        values = [f"{row['cases']:,}", f"{row['search_ms']:.1f}", f"{row['search_ms_least']:.1f}"]
        values.append(f"{row['cpu_ms']:.1f}")
        values += [f"{row['open_ms'] + row['first_ms']:.0f}", f"{row['memory_mb']:.0f}"]
        values += [f"{row['bytes_a_case']:,.0f}", f"{row['overlap']:.3f}"]
        lines.append(f"| {row['engine']} | {' | '.join(values)} |")
    share = figures.get("others_share") or 0
    lines += ["", f"{figures['images']} images; {json.dumps(figures['machine'])}"]
    lines.append(f"{json.dumps(figures['peers'])}; others used {share:.0%} of the cores")
    return "\n".join(lines)


def peer_versions() -> dict[str, str]:
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Measure, write the figures, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.retrieval", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--resolution", type=int, default=448)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--engines", nargs="*", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--resume", action="store_true", help="keep the figures that are there")
    options = parser.parse_args()
    found = load(options.model, options.resolution)
    neighbours = machine.Neighbours()
    figures: dict[str, Any] = {"costs": []}
    if options.resume and OUT.exists():
        figures = json.loads(OUT.read_text())
    figures |= {
        "images": len(found.views),
        "machine": machine.describe(1),
        "peers": peer_versions(),
    }
    with tempfile.TemporaryDirectory(dir=".work") as scratch:
        work = Path(scratch)
        if "stored" not in figures:
            figures["quality"] = quality(found)
            figures["stored"] = stored(found, work)
            _save(figures)
        for size in options.sizes:
            for name in options.engines:
                known = [(row["engine"], row["cases"]) for row in figures["costs"]]
                if (name, size) not in known:
                    figures["costs"].append(cost(name, found, size, work))
                    figures["others_share"] = neighbours.share()
                    _save(figures)
    print(tables(figures))
    return 0


def _save(figures: dict[str, Any]) -> None:
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
