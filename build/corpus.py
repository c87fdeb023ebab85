"""The command line of a corpus: images by the million become Parquet, with the sidecar's encoder.

`python -m build.corpus SOURCE --model DIR --out DIR`, on this machine or on a Ray cluster. See
docs/corpus.md.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from build.console import exit_code, tell
from build.corpus_estimate import PRICE, estimate
from build.corpus_plan import Block, Folder
from build.corpus_rows import Asked, Job
from build.corpus_source import file_system, items
from build.errors import BuildError

BLOCK = 64  # images: what a kill costs at most, for each encoder
OUTPUTS = ("pooled_embedding", "projected_embeddings")

Tell = Callable[[str], None]


def encode(
    asked: Asked,
    out: str,
    *,
    block: int | None = None,
    address: str | None = None,
    actors: int = 0,
    tell: Tell = lambda _: None,
) -> int:
    """Write the rows of all images that have none yet. How many of them are errors. `address` is of
    a Ray cluster, None for this machine; `actors` 0: as many encoders as there is room for.

    Raises BuildError, ModelInvalid, RequestMalformed, OSError.
    """
    job, folder, todo = prepare(asked, out, block, tell)
    try:
        from build.corpus_ray import Place, run
    except ImportError as error:
        raise BuildError(
            "expected Ray, which is not installed. Install the extra: pip install '.[corpus]'."
        ) from error
    return run(job, folder, todo, Place(address, actors), tell)


def prepare(
    asked: Asked, out: str, block: int | None, tell: Tell
) -> tuple[Job, Folder, list[tuple[Block, int]]]:
    """The job, its folder with the list of all images in it, and the blocks that are not done."""
    folder = Folder(out)
    there = folder.about()
    job = asked.job(out, block or (there.block if there else BLOCK))
    found = items(asked.source)
    folder.begin(job.about)
    new = folder.add(found)
    blocks = folder.blocks(job.about.block)
    done = folder.done()
    todo = [(block, count) for block, count in blocks if block not in done]
    images = sum(count for _, count in blocks)
    left = sum(count for _, count in todo)
    tell(f"{images} images, {new} of them new; {images - left} are done, {left} to do")
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
    asked = Asked(
        options.source,
        options.model,
        options.resolution,
        options.cores,
        options.kernels,
        tokens=OUTPUTS[1] in options.outputs,
    )

    def work() -> None:
        file_system(options.source)
        if options.estimate:
            estimate(asked, options.estimate, tuple(options.price), tell)
        else:
            encode(
                asked,
                options.out,
                block=options.block,
                address=options.address,
                actors=options.actors,
                tell=tell,
            )

    return exit_code("corpus", work, resumes=True)


if __name__ == "__main__":
    sys.exit(main())
