"""What the command line said, as values. The only file that reads argv."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sidecar import __version__


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one client may ask of us; `hello` tells them."""

    max_pixels: int = 64_000_000  # of one image, before decoding
    max_frame_bytes: int = 192 * 2**20  # the largest such image as raw RGB
    max_queue: int = 32  # encode requests waiting or running
    max_queue_bytes: int = 384 * 2**20  # of their payloads


@dataclass(frozen=True, slots=True)
class Settings:
    command: str  # serve, stdio, encode, verify, index or search
    model: Path
    threads: int  # 0: one per physical core
    kernels: str  # auto or off
    priority: str  # low or normal
    limits: Limits
    images: tuple[Path, ...] = ()
    out: Path = Path()
    resolution: int | None = None
    sources: tuple[Path, ...] = ()  # of index: images and folders
    collection: Path = Path()
    metadata: Path | None = None
    k: int = 10
    json: bool = False
    folder: Path | None = None  # of search: where the collection's images lie


def parse(argv: Sequence[str]) -> Settings:
    """Exits with argparse's own message and code 2 where argv is not a command of ours."""
    parser = argparse.ArgumentParser(
        prog="vision-sidecar",
        description="Encodes images with a vision model, on this machine only.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="answer the app that started this process (ZeroMQ)")
    stdio = commands.add_parser("stdio", help="answer messages from standard input")
    encode = commands.add_parser("encode", help="encode image files, then exit")
    verify = commands.add_parser("verify", help="check a model directory, then exit")
    index = commands.add_parser("index", help="add images to a collection; goes on where it was")
    search = commands.add_parser("search", help="find the images of a collection that look alike")

    default = Limits()
    for command in (serve, stdio, encode, verify, index, search):
        command.add_argument("--model", type=Path, required=True, metavar="DIR")
        command.add_argument(
            "--threads", type=_natural, default=0, help="default: one per physical core"
        )
        command.add_argument(
            "--kernels",
            choices=("auto", "off"),
            default="auto",
            help="off: onnxruntime's own operators only",
        )
        command.add_argument(
            "--priority",
            choices=("low", "normal"),
            default="low",
            help="low: whatever else wants the processor comes first",
        )
        command.add_argument(
            "--max-pixels", type=_positive, default=default.max_pixels, metavar="N"
        )
    for command in (serve, stdio):
        command.add_argument("--max-queue", type=_positive, default=default.max_queue, metavar="N")
        command.add_argument(
            "--max-queue-bytes", type=_positive, default=default.max_queue_bytes, metavar="N"
        )
    encode.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    encode.add_argument("--out", type=Path, required=True, metavar="DIR")
    index.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="image or folder")
    index.add_argument(
        "--metadata", type=Path, metavar="FILE", help="CSV or JSON lines, with a column id"
    )
    for command in (encode, index):
        command.add_argument("--resolution", type=_positive, default=None, metavar="PIXELS")
    for command in (index, search):
        command.add_argument("--collection", type=Path, required=True, metavar="FILE")
    search.add_argument("images", type=Path, nargs=1, metavar="IMAGE")
    search.add_argument("-k", type=_positive, default=10, metavar="N", help="matches; default: 10")
    search.add_argument("--json", action="store_true", help="print JSON, with the places")
    search.add_argument("--out", type=Path, default=Path(), metavar="FILE.png", help="draw them")
    search.add_argument(
        "--images", dest="folder", type=Path, metavar="DIR", help="where the cases' images lie"
    )

    arguments = parser.parse_args(argv)
    return Settings(
        command=arguments.command,
        model=arguments.model,
        threads=arguments.threads,
        kernels=arguments.kernels,
        priority=arguments.priority,
        limits=Limits(
            max_pixels=arguments.max_pixels,
            max_queue=getattr(arguments, "max_queue", default.max_queue),
            max_queue_bytes=getattr(arguments, "max_queue_bytes", default.max_queue_bytes),
        ),
        images=tuple(getattr(arguments, "images", ())),
        out=getattr(arguments, "out", Path()),
        resolution=getattr(arguments, "resolution", None),
        sources=tuple(getattr(arguments, "sources", ())),
        collection=getattr(arguments, "collection", Path()),
        metadata=getattr(arguments, "metadata", None),
        k=getattr(arguments, "k", 10),
        json=getattr(arguments, "json", False),
        folder=getattr(arguments, "folder", None),
    )


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _positive(text: str) -> int:
    value = _natural(text)
    if value == 0:
        raise ValueError
    return value
