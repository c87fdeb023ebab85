"""The command line of a corpus: images by the million become Parquet, with the sidecar's encoder.

`python -m build.corpus SOURCE --model DIR --out DIR`, on this machine or on a Ray cluster. See
docs/corpus.md.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from build.corpus_estimate import PRICE, estimate
from build.corpus_plan import About, Block, Folder
from build.corpus_rows import Job
from build.corpus_source import file_system, items
from build.errors import BuildError
from sidecar import __version__, manifest
from sidecar.errors import SidecarError

BLOCK = 64  # images: what a kill costs at most, for each encoder
OUTPUTS = ("pooled_embedding", "projected_embeddings")

Tell = Callable[[str], None]


def encode(
    source: str,
    model: Path,
    out: str,
    *,
    resolution: int | None = None,
    block: int | None = None,
    cores: int = 1,
    kernels: str = "auto",
    tokens: bool = False,
    address: str | None = None,
    actors: int = 0,
    tell: Tell = lambda _: None,
) -> int:
    """Write the rows of all images that have none yet. How many of them are errors. `address` is of
    a Ray cluster, None for this machine; `actors` 0: as many encoders as there is room for.

    Raises BuildError, ModelInvalid, OSError.
    """
    job, folder, todo = prepare(source, model, out, resolution, block, cores, kernels, tokens, tell)
    try:
        from build.corpus_ray import Place, run
    except ImportError as error:
        raise BuildError(
            "expected Ray, which is not installed. Install the extra: pip install '.[corpus]'."
        ) from error
    return run(job, folder, todo, Place(address, actors), tell)


def prepare(
    source: str,
    model: Path,
    out: str,
    resolution: int | None = None,
    block: int | None = None,
    cores: int = 1,
    kernels: str = "auto",
    tokens: bool = False,
    tell: Tell = lambda _: None,
) -> tuple[Job, Folder, list[tuple[Block, int]]]:
    """The job, its folder with the list of all images in it, and the blocks that are not done."""
    described = manifest.read(model)
    side = resolution or described.default_resolution
    if side not in described.resolutions:
        allowed = ", ".join(map(str, described.resolutions))
        raise BuildError(f"the resolution must be one of {allowed}; {side} came.")
    folder = Folder(out)
    there = folder.about()
    about = About(
        source=source if "://" in source else str(Path(source).absolute()),
        model=described.digest,
        recipe=described.recipe,
        projection=described.projection,
        resolution=(side, side),
        dims=described.text_hidden,
        encoder=__version__,
        tokens=tokens,
        block=block or (there.block if there else BLOCK),
    )
    found = items(source)
    folder.begin(about)
    new = folder.add(found)
    blocks = folder.blocks(about.block)
    done = folder.done()
    todo = [(block, count) for block, count in blocks if block not in done]
    images = sum(count for _, count in blocks)
    left = sum(count for _, count in todo)
    tell(f"{images} images, {new} of them new; {images - left} are done, {left} to do")
    job = Job(str(model.absolute()), out, about, cores, kernels)
    return job, folder, todo


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Exits with argparse's own message where argv is not a command of ours."""
    parser = argparse.ArgumentParser(prog="python -m build.corpus", description=__doc__)
    parser.add_argument(
        "source", help="a folder, a list (CSV, Parquet), Parquet with images; or URL"
    )
    parser.add_argument("--model", type=Path, required=True, help="the model directory")
    parser.add_argument("--out", help="the folder for the rows, or its URL")
    parser.add_argument("--address", help="of a Ray cluster, or auto; without, this machine")
    parser.add_argument("--resolution", type=int, metavar="PIXELS")
    parser.add_argument("--cores", type=_positive, default=1, help="of each encoder; default: 1")
    parser.add_argument("--actors", type=_positive, default=0, help="encoders; default: all fit")
    parser.add_argument(
        "--block", type=_positive, help=f"images that are written at a time; default: {BLOCK}"
    )
    parser.add_argument("--kernels", choices=("auto", "off"), default="auto")
    parser.add_argument("--outputs", nargs="+", choices=OUTPUTS, default=OUTPUTS[:1])
    parser.add_argument(
        "--estimate", type=_positive, metavar="N", help="what N images would cost; writes nothing"
    )
    parser.add_argument(
        "--price",
        type=float,
        nargs=2,
        default=PRICE,
        metavar=("LOW", "HIGH"),
        help=f"of a core for an hour; default: {PRICE[0]} and {PRICE[1]} US dollars",
    )
    options = parser.parse_args(argv)
    if (options.out is None) == (options.estimate is None):
        parser.error("expected either --out, or --estimate")
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, also with bad images: their rows tell of them. 1 after one clear sentence."""
    options = arguments(argv)
    tokens = OUTPUTS[1] in options.outputs

    def tell(line: str) -> None:
        print(line, flush=True)

    try:
        file_system(options.source)
        if options.estimate:
            args = options.model, options.resolution, options.cores, options.kernels, tokens
            estimate(options.source, options.estimate, *args, tuple(options.price), tell)
            return 0
        encode(
            options.source,
            options.model,
            options.out,
            resolution=options.resolution,
            block=options.block,
            cores=options.cores,
            kernels=options.kernels,
            tokens=tokens,
            address=options.address,
            actors=options.actors,
            tell=tell,
        )
    except (BuildError, SidecarError, OSError) as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("corpus: interrupted. Run it again to go on where it stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
