"""The whole pipeline in one screen: per recipe, the steps from a checkpoint to a model directory.

A new recipe is one more function in RECIPES. Nothing outside this file knows a recipe by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from build.calibrate import Calibrate
from build.export import Export
from build.images import Folder
from build.kernels import Kernels
from build.package import Package
from build.pipeline import Step
from build.quantise import Quantise, Seed
from build.reference import Projection
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

    def hold(self, recipe: Bars) -> Bars:
        """The recipe's bars, changed as chosen."""
        return Bars() if self.no_bars else replace(recipe, **dict(self.bars))


def default(choice: Choice) -> Sequence[Step]:
    """As small as `seed`, faster, and faithful."""
    projection = choice.projection or "projector"
    return (
        Calibrate(folder=choice.calibrate),
        Export(projection),
        Quantise(),
        Kernels(),
        Validate(projection, bars=choice.hold(FAITHFUL)),
        Package("default", projection, dynamic=True),
    )


def seed(choice: Choice) -> Sequence[Step]:
    """The original recipe, to the letter, for comparison."""
    projection = choice.projection or "linear"
    return (
        Export(projection, fused=False, half=True),
        Seed(),
        Validate(projection, dynamic=False, bars=choice.hold(Bars())),
        Package("seed", projection, dynamic=False),
    )


def unquantised(choice: Choice) -> Sequence[Step]:
    """`default` before it is quantised."""
    projection = choice.projection or "projector"
    return (
        Export(projection),
        Validate(projection, bars=choice.hold(Bars(token_cosine_min=0.9999))),
        Package("float", projection, dynamic=True),
    )


RECIPES: dict[str, Callable[[Choice], Sequence[Step]]] = {
    "default": default,
    "seed": seed,
    "float": unquantised,
}
