"""How a command of the build ends."""

import pytest

from build.console import exit_code


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("resumes", "sentence"),
    [
        (True, "build: interrupted. Run it again to go on where it stopped.\n"),
        (False, "build: interrupted.\n"),
    ],
)
def test_only_what_can_go_on_is_said_to(
    capsys: pytest.CaptureFixture[str], resumes: bool, sentence: str
) -> None:
    assert exit_code("build", interrupted, resumes=resumes) == 130
    assert capsys.readouterr().err == sentence
