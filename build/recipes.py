"""The whole pipeline in one screen: per recipe, the steps from a checkpoint to a model directory.

A new recipe is one more function in RECIPES. Nothing outside this file knows a recipe by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from build.artifacts import Artifact, BuildError, Projection, Step
from build.calibrate import Calibrate, Folder
from build.compact import Compact
from build.export import Export
from build.flat import MeasureFlat
from build.images import VALIDATION
from build.package import Golden, Package, Zip
from build.quantise import Quantise, Seed
from build.reference_outputs import Reference
from build.testset import Unseen
from build.validate import Bars, Validate

FAITHFUL = Bars(
    token_cosine_mean=0.9995,
    token_cosine_p1=0.995,
    pooled_cosine_min=0.999,
    heatmap_r_mean=0.995,
    heatmap_r_min=0.985,
    clear_neighbours_kept=1.0,
    kendall_tau=0.97,
)

COMPACT = Bars(
    token_cosine_mean=0.996,
    token_cosine_p1=0.985,
    pooled_cosine_min=0.99,
    heatmap_r_mean=0.995,
    heatmap_r_min=0.985,
)


@dataclass(frozen=True)
class Choice:
    """What the person at the terminal may choose; None leaves it to the recipe."""

    projection: Projection | None = None
    calibrate: Folder | None = None
    bars: tuple[tuple[str, float], ...] = ()  # in place of the recipe's, by name
    no_bars: bool = False
    images: tuple[str, ...] = VALIDATION
    test: Unseen | None = None  # the finished model is measured on it too

    @classmethod
    def parse(
        cls,
        projection: Projection | None,
        calibrate: Path | None,
        bars: Sequence[str],
        no_bars: bool,
        images: int | None = None,
        test: bool = False,
    ) -> "Choice":
        """From what was typed; `bars` are NAME=VALUE, `images` how many to validate on.

        `test` measures on the test set too.

        Raises BuildError, OSError.
        """
        known = [field.name for field in fields(Bars)]
        parsed = []
        for text in bars:
            name, _, value = text.partition("=")
            try:
                parsed.append((name, float(value)))
            except ValueError as error:
                raise BuildError(f"expected --bar NAME=VALUE, found {text}.") from error
            if name not in known:
                raise BuildError(f"expected --bar with one of {', '.join(known)}, found {name}.")
        folder = Folder.at(calibrate) if calibrate else None
        every = len(VALIDATION)
        if images is not None and not 2 <= images <= every:
            raise BuildError(f"expected --images from 2 to {every}, found {images}.")
        count = images or every
        chosen = tuple(VALIDATION[number * every // count] for number in range(count))
        tested = Unseen.here() if test else None
        return cls(projection, folder, tuple(parsed), no_bars, chosen, tested)

    @property
    def share(self) -> str:
        """On how many of the images it validates: "4 of 16", or empty for all."""
        used, every = len(self.images), len(VALIDATION)
        return "" if used == every else f"{used} of {every}"

    def hold(self, recipe: Bars) -> Bars:
        """The recipe's bars, changed as chosen. Rankings are only held to them on all images."""
        if self.no_bars:
            return Bars()
        if self.share:
            recipe = replace(
                recipe, neighbours_kept=None, clear_neighbours_kept=None, kendall_tau=None
            )
        return replace(recipe, **dict(self.bars))


def default(choice: Choice) -> Sequence[Step]:
    """As small as `seed`, faster, and faithful."""
    projection = choice.projection or "projector"
    return (
        Calibrate(folder=choice.calibrate),
        Export(projection),
        Quantise(),
        Golden(),
        MeasureFlat(),
        Reference(projection, images=choice.images),
        Validate(bars=choice.hold(FAITHFUL)),
        *measured(choice, projection),
        Package("default", projection, test=choice.test is not None),
    )


def compact(choice: Choice) -> Sequence[Step]:
    """`default` with weights that compress: the same graphs, speed and memory, and a zip file.

    Its report shows the figures of `default` too, for comparison.
    """
    projection = choice.projection or "projector"
    return (
        Export(projection),
        Reference(projection, images=choice.images),
        Calibrate(folder=choice.calibrate),
        Quantise(),
        Validate(report=Artifact.COMPARISON),
        Compact(folder=choice.calibrate, projection=projection),
        Quantise(),
        Golden(),
        MeasureFlat(),
        Validate(bars=choice.hold(COMPACT)),
        *measured(choice, projection),
        Package("compact", projection, test=choice.test is not None, compared="default"),
        Zip(),
    )


def seed(choice: Choice) -> Sequence[Step]:
    """The original recipe, to the letter, for comparison."""
    projection = choice.projection or "linear"
    return (
        Export(projection, fused=False, half=True),
        Seed(),
        Golden(dynamic=False),
        MeasureFlat(dynamic=False),
        Reference(projection, dynamic=False, images=choice.images),
        Validate(bars=choice.hold(Bars())),
        *measured(choice, projection, dynamic=False),
        Package("seed", projection, dynamic=False, test=choice.test is not None),
    )


def unquantised(choice: Choice) -> Sequence[Step]:
    """`default` before it is quantised."""
    projection = choice.projection or "projector"
    graphs = Artifact.FLOAT_GRAPH
    return (
        Export(projection),
        Golden(graphs),
        MeasureFlat(graphs),
        Reference(projection, images=choice.images),
        Validate(graphs, bars=choice.hold(Bars(token_cosine_min=0.9999))),
        *measured(choice, projection, graphs),
        Package("float", projection, graphs, test=choice.test is not None),
    )


def measured(
    choice: Choice,
    projection: Projection,
    graphs: Artifact = Artifact.QUANTISED_GRAPHS,
    dynamic: bool = True,
) -> Sequence[Step]:
    """The finished model on the test set, if that was chosen: no bar is held against it."""
    if choice.test is None:
        return ()
    return (
        Reference(projection, dynamic, test=choice.test),
        Validate(graphs, report=Artifact.TEST_REPORT, test=choice.test),
    )


RECIPES: dict[str, Callable[[Choice], Sequence[Step]]] = {
    "default": default,
    "compact": compact,
    "seed": seed,
    "float": unquantised,
}
