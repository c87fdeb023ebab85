"""The image recipe and the job file of a cluster, which nobody has run yet: what linters see."""

import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.client import ROOT

FOLDER = ROOT / "packaging" / "corpus"
DOCKERFILE = (FOLDER / "Dockerfile").read_text("utf-8")
RAYJOB = (FOLDER / "rayjob.yaml").read_text("utf-8")
KUBERNETES = "1.34"


def locked(package: str) -> str:
    text = (ROOT / "requirements" / "corpus-cluster.txt").read_text("utf-8")
    (version,) = re.findall(rf"^{package}==([^ ]+)", text, re.M)
    return str(version)


def test_image_and_job_name_the_ray_that_is_locked_and_the_version_of_the_package() -> None:
    from sidecar import __version__

    assert f'rayVersion: "{locked("ray")}"' in RAYJOB
    assert f"vision-corpus:{__version__}" in RAYJOB
    assert f"vision-corpus:{__version__}" in DOCKERFILE


def test_what_the_image_copies_is_there_and_its_packages_have_hashes() -> None:
    for source in re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE, re.M):
        assert (ROOT / source).exists(), source
    assert "--require-hashes" in DOCKERFILE
    assert all(":" in image for image in re.findall(r"^FROM (\S+)", DOCKERFILE, re.M))


def test_the_job_runs_a_command_line_that_is_understood() -> None:
    from build import corpus

    (words,) = re.findall(r"python -m build\.corpus (.*)", RAYJOB)
    options = corpus.arguments(words.split())
    assert (options.source, options.out) == ("/archive/images", "/archive/rows")
    assert (options.model, options.address) == (Path("/models/medgemma"), "auto")


@pytest.mark.skipif(find_spec("yamllint") is None, reason="yamllint is not installed: make corpus")
def test_yamllint_finds_nothing() -> None:
    words = ["-m", "yamllint", "--strict", "-c", str(FOLDER / "yamllint.yaml"), str(FOLDER)]
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.skipif(
    find_spec("kubernetes_validate") is None,
    reason="kubernetes-validate is not installed: make corpus",
)
def test_the_pods_are_what_kubernetes_takes() -> None:
    yaml: Any = import_module("yaml")
    validate: Any = import_module("kubernetes_validate").validate
    cluster = yaml.safe_load(RAYJOB)["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        validate(pod, KUBERNETES, strict=True)
