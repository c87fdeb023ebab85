"""The whole pipeline in one screen: per recipe, the steps from a checkpoint to a model directory.

A new recipe is one more function in RECIPES. Nothing outside this file knows a recipe by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from build.artifacts import Artifact, BuildError, Projection, Step
from build.calibrate import Calibrate, Folder
from build.export import Export
from build.flat import MeasureFlat
from build.images import VALIDATION
from build.package import Golden, Package
from build.quantise import Quantise, Seed
from build.reference_outputs import Reference
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


@dataclass(frozen=True)
class Choice:
    """What the person at the terminal may choose; None leaves it to the recipe."""

    projection: Projection | None = None
    calibrate: Folder | None = None
    bars: tuple[tuple[str, float], ...] = ()  # in place of the recipe's, by name
    no_bars: bool = False
    images: tuple[str, ...] = VALIDATION

    @classmethod
    def parse(
        cls,
        projection: Projection | None,
        calibrate: Path | None,
        bars: Sequence[str],
        no_bars: bool,
        images: int | None = None,
    ) -> "Choice":
        """From what was typed; `bars` are NAME=VALUE, `images` how many to validate on.

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
        return cls(projection, folder, tuple(parsed), no_bars, chosen)

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
        Package("default", projection),
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
        Package("seed", projection, dynamic=False),
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
        Package("float", projection, graphs),
    )


RECIPES: dict[str, Callable[[Choice], Sequence[Step]]] = {
    "default": default,
    "seed": seed,
    "float": unquantised,
}
