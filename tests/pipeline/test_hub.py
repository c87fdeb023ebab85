import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from build import tower
from build.checkpoint import locate
from build.pipeline import Inputs
from build.tower import canonical
from tests.pipeline import odd
from tests.pipeline.hub_server import COMMIT, MEMBER, STRANGER, Hub

ID = "someone/medgemma-odd"
LOST_AT_MOST = 1 << 17  # bytes on their way when a build is killed: one piece sent, one received
DRIVER = """
import json, sys
from build.checkpoint import locate
from build.artifacts import BuildError
from build.pipeline import Inputs
try:
    step = locate(sys.argv[1], *sys.argv[2:])
    step(Inputs(), __import__("pathlib").Path("out"))
except BuildError as error:
    sys.exit(f"error: {error}")
print(json.dumps([step.model_id, step.revision, str(step.directory)]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return odd.write(tmp_path_factory.mktemp("hub") / "model", shards=3)


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with Hub({ID: model}).running() as hub:
        yield hub


@dataclass
class User:
    """Someone with a cache of their own, who builds from `hub`."""

    hub: Hub
    home: Path
    env: dict[str, str]

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        out = self.home / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, *(args or (ID,))],
            cwd=self.home,
            env=self.env | {"HF_ENDPOINT": self.hub.endpoint} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def build(self, *args: str, **env: str) -> tuple[int, str, str]:
        process = self.start(*args, **env)
        stdout, stderr = process.communicate(timeout=120)
        return process.returncode, stdout, stderr

    def succeeds(self, *args: str, **env: str) -> bytes:
        code, _, stderr = self.build(*args, **env)
        assert code == 0, stderr
        return (self.home / "out" / "weights.safetensors").read_bytes()

    def fails(self, *args: str, **env: str) -> str:
        """The one sentence that it ends with."""
        code, _, stderr = self.build(*args, **env)
        assert code == 1
        assert "Traceback" not in stderr
        assert not list((self.home / "out").iterdir())
        last = stderr.splitlines()[-1]
        assert last.startswith("error: ")
        return last

    def kept(self, name: str) -> Path:
        place = self.home / "hf" / "assets" / "vision-sidecar" / ID.replace("/", "--") / COMMIT
        return place / name


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> User:
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(Path.cwd()), "NO_PROXY": "*"}
    return User(hub, tmp_path, env)


@pytest.fixture(scope="module")
def weights(model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a build from the directory itself extracts."""
    out = tmp_path_factory.mktemp("out")
    locate(str(model))(Inputs(), out)
    return (out / "weights.safetensors").read_bytes()


def needed(model: Path) -> int:
    """Bytes of our tensors and of the headers of the shards that hold them."""
    total = 0
    for path in model.glob("*.safetensors"):
        entries = tower.read_header(path)
        ours = [tensor for key, tensor in entries.items() if canonical(key)]
        if ours:
            base = min(tensor.start for tensor in entries.values())
            total += base + sum(tensor.size for tensor in ours)
    return total


def shard_bytes(hub: Hub) -> int:
    return sum(count for file, count in hub.served.items() if file.endswith(".safetensors"))


def test_only_the_towers_bytes_and_the_headers_are_fetched(
    user: User, hub: Hub, model: Path, weights: bytes
) -> None:
    assert user.succeeds() == weights
    assert shard_bytes(hub) == needed(model)
    assert shard_bytes(hub) < sum(path.stat().st_size for path in model.glob("*.safetensors")) / 1.3


def test_the_commit_is_pinned_where_a_branch_was_asked_for(user: User) -> None:
    _, stdout, _ = user.build(ID, "main")
    assert json.loads(stdout)[:2] == [ID, COMMIT]
    source = json.loads((user.home / "out" / "source.json").read_text())
    assert source == {"model_id": ID, "revision": COMMIT}


def test_nothing_is_fetched_twice(user: User, hub: Hub, weights: bytes) -> None:
    user.succeeds()
    hub.served.clear()
    assert user.succeeds() == weights
    assert sum(hub.served.values()) == 0


def test_what_was_fetched_once_builds_offline_and_without_a_network(
    user: User, hub: Hub, weights: bytes
) -> None:
    user.succeeds()
    assert user.succeeds(HF_HUB_OFFLINE="1") == weights
    assert user.succeeds(HF_ENDPOINT="http://127.0.0.1:9") == weights


def test_shards_that_the_hubs_own_cache_has_are_used_from_there(
    user: User, hub: Hub, weights: bytes
) -> None:
    script = "import sys; from huggingface_hub import hf_hub_download as get\n"
    script += "for name in sys.argv[2:]: get(sys.argv[1], name)"
    names = [path.name for path in hub.repositories[ID].iterdir()]
    env = user.env | {"HF_ENDPOINT": hub.endpoint}
    subprocess.run([sys.executable, "-c", script, ID, *names], env=env, check=True)
    hub.served.clear()
    assert user.succeeds() == weights
    assert sum(hub.served.values()) == 0
    assert not user.kept("model.safetensors").exists()


def test_a_server_without_ranges_gives_whole_shards_to_the_hubs_cache(
    user: User, hub: Hub, weights: bytes
) -> None:
    hub.ranges = False
    assert user.succeeds() == weights
    assert list((user.home / "hf" / "hub").glob("models--*/snapshots/*/*.safetensors"))
    hub.served.clear()
    assert user.succeeds(HF_HUB_OFFLINE="1") == weights


def test_a_connection_cut_in_mid_file_goes_on_from_there(
    user: User, hub: Hub, model: Path, weights: bytes
) -> None:
    hub.cut_after, hub.cuts_left = 100_000, 2
    assert user.succeeds() == weights
    assert hub.cuts_left == 0
    assert shard_bytes(hub) == needed(model)


def test_a_build_killed_while_fetching_goes_on_where_it_was(
    user: User, hub: Hub, model: Path, weights: bytes
) -> None:
    partial = user.kept("model.safetensors.partial")
    hub.stall_after = 300_000
    process = user.start()
    # Not before the hub stalls: what is on its way when a build is killed is lost as well.
    while shard_bytes(hub) < hub.stall_after or (
        not partial.exists() or partial.stat().st_size < shard_bytes(hub) - LOST_AT_MOST // 2
    ):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    hub.stall_after = None
    assert user.succeeds() == weights
    assert needed(model) <= shard_bytes(hub) <= needed(model) + LOST_AT_MOST
    assert not list(user.kept("").glob("*.partial"))


def test_two_builds_at_once_fetch_once(user: User, hub: Hub, model: Path, weights: bytes) -> None:
    other = User(hub, user.home / "other", user.env)
    other.home.mkdir()
    process = other.start()
    assert user.succeeds() == weights
    process.communicate()
    assert process.returncode == 0
    assert shard_bytes(hub) == needed(model)


def test_the_token_is_never_sent_to_the_cdn(user: User, hub: Hub) -> None:
    user.succeeds(HF_TOKEN=MEMBER)
    assert not hub.token_at_cdn


def test_a_gated_model_comes_with_the_token_of_a_member(
    user: User, hub: Hub, weights: bytes
) -> None:
    hub.gated = True
    assert user.succeeds(HF_TOKEN=MEMBER) == weights


def test_progress_says_how_much_there_is(user: User) -> None:
    _, _, stderr = user.build()
    assert f"Fetching the vision tower of {ID} at {COMMIT[:12]}: 0.00 GB" in stderr
    assert "100%" in stderr


# --- what goes wrong -------------------------------------------------------------------------


def test_a_gated_model_without_a_token_says_how_to_get_one(user: User, hub: Hub) -> None:
    hub.gated = True
    said = user.fails()
    assert f"{ID} is gated and no token" in said
    assert "hf auth login" in said


def test_a_licence_not_accepted_says_where_to_accept_it(user: User, hub: Hub) -> None:
    hub.gated = True
    said = user.fails(HF_TOKEN=STRANGER)
    assert f"Accept its licence on {hub.endpoint}/{ID}" in said


def test_a_token_that_the_hub_does_not_know_is_named(user: User) -> None:
    assert "refused the token" in user.fails(HF_TOKEN="hf_forged")


def test_an_unknown_id_is_named(user: User) -> None:
    assert "knows no model someone/else" in user.fails("someone/else")
    assert "knows no model someone/else" in user.fails("someone/else", HF_TOKEN=MEMBER)


def test_an_unknown_revision_is_named(user: User) -> None:
    assert f"{ID} has no revision v9" in user.fails(ID, "v9")


def test_no_network_is_said_at_once(user: User) -> None:
    assert "cannot be reached" in user.fails(HF_ENDPOINT="http://127.0.0.1:9")


def test_offline_mode_without_the_model_is_said(user: User) -> None:
    assert "HF_HUB_OFFLINE is set" in user.fails(HF_HUB_OFFLINE="1")


def test_a_connection_that_keeps_breaking_ends_with_a_sentence(user: User, hub: Hub) -> None:
    hub.cut_after, hub.cuts_left = 0, 1000
    assert "what was fetched so far is kept" in user.fails()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_is_named(user: User) -> None:
    user.kept("").mkdir(parents=True)
    for number in (1, 2, 3):
        user.kept(f"model-0000{number}-of-00003.safetensors.header.partial").symlink_to("/dev/full")
    assert "is full" in user.fails()


def test_a_lora_adapter_says_how_to_merge_it(user: User, hub: Hub, tmp_path: Path) -> None:
    hub.repositories["someone/lora"] = tmp_path / "lora"
    (tmp_path / "lora").mkdir()
    adapter = {"base_model_name_or_path": "google/medgemma-4b-it"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(adapter))
    said = user.fails("someone/lora")
    assert "someone/lora is a LoRA adapter for google/medgemma-4b-it" in said
    assert "merge_and_unload" in said


def test_another_architecture_is_named_before_any_weights_are_fetched(
    user: User, hub: Hub, tmp_path: Path
) -> None:
    llava = odd.edit_config(odd.write(tmp_path / "llava"), model_type="llava")
    hub.repositories["someone/llava"] = llava
    assert "someone/llava is a llava model" in user.fails("someone/llava")
    assert shard_bytes(hub) == 0


def test_a_missing_tensor_is_named_before_any_weights_are_fetched(
    user: User, hub: Hub, tmp_path: Path
) -> None:
    lost = "vision_tower.encoder.layers.4.mlp.fc2.bias"
    hub.repositories["someone/cut"] = odd.write(tmp_path / "cut", change={lost: None})
    said = user.fails("someone/cut")
    assert lost in said
    assert "[96]" in said
    assert shard_bytes(hub) < 100_000


def test_a_truncated_shard_is_named(user: User, hub: Hub, tmp_path: Path) -> None:
    directory = odd.write(tmp_path / "cut", "plain")
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[:-1000])
    hub.repositories["someone/cut"] = directory
    assert "model.safetensors is cut short or corrupt" in user.fails("someone/cut")


def test_a_shard_that_is_damaged_in_the_hubs_own_cache_is_named_with_its_place(
    user: User, hub: Hub, weights: bytes
) -> None:
    hub.ranges = False
    user.succeeds()
    cached = sorted((user.home / "hf" / "hub").glob("models--*/snapshots/*/*.safetensors"))
    damaged = cached[-1].resolve()
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    said = user.fails()
    assert f"{cached[-1].name} at {damaged} is cut short or corrupt" in said
    assert "Delete it" in said
    damaged.unlink()
    assert user.succeeds() == weights


def test_the_command_line_says_one_sentence_and_writes_nothing(user: User, hub: Hub) -> None:
    hub.gated = True
    done = subprocess.run(
        [sys.executable, "-m", "build", ID, "--out", str(user.home / "model")],
        env=user.env | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": STRANGER},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"build: {ID} is gated")
    assert not (user.home / "model").exists()
