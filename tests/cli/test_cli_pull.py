"""``specx pull``, and what any command shows of a download."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from rich.console import Console

from specx.checkpoints import download
from specx.checkpoints.download import Download
from specx.cli.progress import LogProgress, TerminalProgress
from tests.cli.support import Outcome, Workplace, specx
from tests.helpers import PairDirs, edit_json, preset_for, save_pair, story, tiny_config
from tests.hubserver import COMMIT, HubServer, point_client_at, serving, sha256

WEIGHTS = "model.safetensors"
STOPPED = "stopped in a download; what has arrived is kept, and the same command goes on from there"
Cli = Callable[..., Outcome]


@pytest.fixture
def server(
    tiny_pair: PairDirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    folders = {"owner/big": tiny_pair.target, "owner/small": tiny_pair.draft}
    with serving(folders) as running:
        point_client_at(running.url, tmp_path / "cache", monkeypatch)
        yield running
    huggingface_hub.close_session()


@pytest.fixture
def preset(tiny_pair: PairDirs, tmp_path: Path) -> Path:
    changes = {"target.repo": "owner/big", "draft.repo": "owner/small"}
    path = tmp_path / "tiny.yaml"
    path.write_text(preset_for(tiny_pair, changes).to_yaml(), encoding="utf-8")
    return path


def fresh_cache() -> None:
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE, ignore_errors=True)


def interrupted(server: HubServer, cache: Path, *words: str | Path) -> Outcome:
    """A command as a process that gets SIGINT once a part of the weights is on the disk."""
    weights = server.folders["owner/big"] / WEIGHTS
    partial = cache / "models--owner--big" / "blobs" / f"{sha256(weights)}.incomplete"
    env = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    running = subprocess.Popen(
        specx(*words),
        stdin=subprocess.DEVNULL,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests may ignore it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        end = time.monotonic() + 60
        while not (partial.is_file() and partial.stat().st_size):
            assert time.monotonic() < end, "nothing has arrived"
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    return Outcome(running.returncode, out, err)


def download_lines(text: str) -> list[int]:
    """The tenths that were shown, in per cent."""
    return [int(found) for found in re.findall(r"^download (\d+) % of ", text, re.MULTILINE)]


class TestDryRun:
    def test_says_what_would_travel(self, cli: Cli, server: HubServer, preset: Path) -> None:
        done = cli("pull", preset, "--dry-run")
        assert done.code == 0
        header, *rows = [line.split("\t") for line in done.out.splitlines()]
        assert header == ["model", "repository", "file", "size", "here"]
        here = {(role, file): is_here for role, _, file, _, is_here in rows}
        assert here["target", WEIGHTS] == here["draft", WEIGHTS] == "no"
        assert here["target", "config.json"] == here["target", "tokenizer.json"] == "yes"
        assert re.search(r"tiny: 1 MiB, to download 1 MiB · [\d,.]+ [GM]iB free", done.err)
        assert WEIGHTS not in server.names

    def test_as_json(self, cli: Cli, server: HubServer, preset: Path) -> None:
        found = json.loads(cli("pull", preset, "--dry-run", "-o", "json").out)
        assert found["schema"] == "specx.pull/1"
        sizes = {
            model["repo"]: {file["name"]: file["bytes"] for file in model["files"]}
            for model in found["models"]
        }
        for repo, files in sizes.items():
            for name, size in files.items():
                assert (server.folders[repo] / name).stat().st_size == size
        weights = [files[WEIGHTS] for files in sizes.values()]
        assert found["total_bytes"] - found["cached_bytes"] == sum(weights)
        assert found["downloaded_bytes"] == 0
        assert {model["commit"] for model in found["models"]} == {COMMIT}
        assert [model["role"] for model in found["models"]] == ["target", "draft"]

    def test_what_comes_with_specx(self, cli: Cli) -> None:
        done = cli("pull", "pocket", "--dry-run", "--offline")
        assert done.code == 0
        assert "comes with specx" in done.out
        assert "nothing to download" in done.err


class TestPull:
    def test_downloads_once(self, cli: Cli, server: HubServer, preset: Path) -> None:
        done = cli("pull", preset)
        assert done.code == 0
        assert server.names.count(WEIGHTS) == 2
        tenths = download_lines(done.err)
        assert tenths[0] == 0
        assert tenths[-1] == 100
        assert tenths == sorted(set(tenths))
        first, second = done.out.splitlines()[1:]
        assert first.split("\t")[:2] == ["target", "owner/big"]
        for line in (first, second):
            assert (Path(line.split("\t")[3]) / WEIGHTS).is_file()
        server.fetched.clear()
        again = cli("pull", preset)
        assert again.code == 0
        assert server.fetched == []
        assert download_lines(again.err) == []
        server.folders.clear()
        assert cli("pull", preset, "--offline").code == 0

    def test_as_json(self, cli: Cli, preset: Path, server: HubServer) -> None:
        found = json.loads(cli("pull", preset, "-o", "json", "-q").out)
        assert found["downloaded_bytes"] == sum(
            (folder / WEIGHTS).stat().st_size for folder in server.folders.values()
        )

    def test_a_wrong_pair_costs_no_weights(
        self, cli: Cli, server: HubServer, preset: Path, tmp_path: Path
    ) -> None:
        other = save_pair(tmp_path / "other", draft_changes={"vocab_size": 300})
        server.folders["owner/small"] = other.draft
        done = cli("pull", preset)
        assert done.code == 5
        assert WEIGHTS not in server.names

    def test_no_room(
        self, cli: Cli, server: HubServer, preset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cli("pull", preset, "--dry-run")
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        done = cli("pull", preset, "-o", "json")
        assert done.code == 6
        assert json.loads(done.out)["code"] == "resources"
        assert "need 0.1 GiB, have 0.0 GiB" in done.err
        assert "HF_HOME" in done.err
        assert WEIGHTS not in server.names

    def test_gated(self, cli: Cli, server: HubServer, preset: Path) -> None:
        server.gated["owner/big"] = (403, "GatedRepo")
        done = cli("pull", preset)
        assert done.code == 4
        for said in ("is gated", "https://huggingface.co/owner/big", "hf auth login", "qwen3-8b"):
            assert said in done.err

    def test_damaged_weights_are_told(
        self, cli: Cli, server: HubServer, preset: Path, tiny_pair: PairDirs, tmp_path: Path
    ) -> None:
        """Their digest is right: they were uploaded so."""
        server.folders["owner/big"] = Path(shutil.copytree(tiny_pair.target, tmp_path / "bad"))
        edit_json(tmp_path / "bad" / "config.json", num_hidden_layers=3)
        done = cli("pull", preset)
        assert done.code == 4
        assert "9 tensors are not there" in done.err

    @pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
    def test_a_head(
        self, cli: Cli, server: HubServer, tiny_pair: PairDirs, tmp_path: Path, name: str
    ) -> None:
        """A config and one file of weights, which is fetched without being a model."""
        head = tmp_path / "head"
        tiny_config(num_hidden_layers=1).save_pretrained(head)
        torch.save({"fc.weight": torch.ones(64, 128)}, head / name)
        server.folders["owner/head"] = head
        fields = {"target.repo": "owner/big", "draft.repo": "owner/head", "draft.kind": "eagle"}
        path = tmp_path / "tiny.yaml"
        path.write_text(preset_for(tiny_pair, fields).to_yaml(), encoding="utf-8")
        done = cli("pull", path)
        assert done.code == 0, done.err
        assert {"config.json", name} <= set(server.names)
        assert ("owner/head has no safetensors" in done.err) == name.endswith(".bin")

    def test_interrupted_it_keeps_what_has_arrived(
        self, cli: Cli, server: HubServer, preset: Path, tmp_path: Path
    ) -> None:
        """A real Ctrl-C in the middle of a file, and the same command once more."""
        server.faults[WEIGHTS] = ["stall"]
        cache = tmp_path / "cache"
        done = interrupted(server, cache, "pull", preset)
        assert done.code == 130
        assert done.out == ""
        said = [line for line in done.err.splitlines() if not line.startswith("download ")]
        assert said == [STOPPED]
        assert not list(cache.rglob(WEIGHTS)), "no half file under its final name"
        (partial,) = cache.rglob("*.incomplete")
        kept_bytes = partial.stat().st_size
        whole = server.folders["owner/big"] / WEIGHTS
        assert partial.read_bytes() == whole.read_bytes()[:kept_bytes]
        assert not partial.with_suffix("").exists()
        server.fetched.clear()
        done = cli("pull", preset)
        assert done.code == 0, done.err
        assert [each for each in server.fetched if each[0] == WEIGHTS] == [
            (WEIGHTS, kept_bytes),
            (WEIGHTS, 0),  # the draft's
        ]
        fetched = {path.read_bytes() for path in cache.rglob(WEIGHTS)}
        assert fetched == {(each / WEIGHTS).read_bytes() for each in server.folders.values()}
        assert not list(cache.rglob("*.incomplete"))

    def test_of_what_there_is_not(self, cli: Cli) -> None:
        done = cli("pull", "no-such-pair")
        assert done.code == 2


class TestOtherCommands:
    def test_generate_shows_the_download(
        self, cli: Cli, server: HubServer, preset: Path, tiny_pair: PairDirs, tmp_path: Path
    ) -> None:
        from safetensors.torch import load_file

        pickled = Path(shutil.copytree(tiny_pair.target, tmp_path / "pickled"))
        torch.save(load_file(pickled / WEIGHTS), pickled / "pytorch_model.bin")
        (pickled / WEIGHTS).unlink()
        server.folders["owner/big"] = pickled
        words = ("generate", "-m", preset, "-n", "4", "--ignore-eos")
        done = cli(*words, stdin=b"The harbour")
        assert done.code == 0, done.err
        assert download_lines(done.err)[0] == 0
        assert done.err.count("owner/big has no safetensors: pickles are read") == 1
        again = cli(*words, stdin=b"The harbour")
        assert download_lines(again.err) == []
        assert again.out == done.out
        fresh_cache()
        assert download_lines(cli(*words, "-q", stdin=b"The harbour").err) == []


class TestInterrupted:
    """Ctrl-C in a download that another command needs: it ends at once, and the user reads how."""

    @pytest.fixture
    def document(self, tmp_path: Path) -> Path:
        path = tmp_path / "story.txt"
        path.write_text(story(300), encoding="utf-8")
        return path

    @pytest.mark.parametrize("command", ["generate", "bench"])
    def test_as_a_process(
        self, server: HubServer, preset: Path, tmp_path: Path, document: Path, command: str
    ) -> None:
        server.faults[WEIGHTS] = "stall"
        words = ("--data", document, "--lengths", "64") if command == "bench" else (document,)
        done = interrupted(server, tmp_path / "cache", command, "-m", preset, "-n", "4", *words)
        assert done.code == 130
        assert done.out == ""
        assert done.err.splitlines().count(STOPPED) == 1
        assert "Traceback" not in done.err
        (partial,) = (tmp_path / "cache").rglob("*.incomplete")
        assert partial.stat().st_size > 0
        assert server.names.count(WEIGHTS) == 1, "neither tried again nor the draft's begun"

    @pytest.fixture
    def ctrl_c(self, server: HubServer) -> Iterator[None]:
        """SIGINT as soon as the first weights arrive."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        server.faults[WEIGHTS] = "interrupt"
        yield
        signal.signal(signal.SIGINT, before)

    @pytest.mark.parametrize(
        "words",
        [
            ("summarize", "FILE"),
            ("compare", "FILE"),
            ("bench", "--data", "FILE", "--lengths", "64"),
            ("pull",),
        ],
        ids=" ".join,
    )
    def test_every_command(
        self,
        cli: Cli,
        server: HubServer,
        preset: Path,
        document: Path,
        ctrl_c: None,
        words: tuple[str, ...],
    ) -> None:
        named = (preset,) if words == ("pull",) else ("-m", preset)
        done = cli(*(document if word == "FILE" else word for word in words), *named)
        assert (done.code, done.out) == (130, "")
        assert done.err.splitlines().count(STOPPED) == 1
        assert server.names.count(WEIGHTS) == 1

    @pytest.mark.usefixtures("quick_floors")
    def test_a_bench_shows_what_it_has(
        self, cli: Cli, server: HubServer, preset: Path, workplace: Workplace, ctrl_c: None
    ) -> None:
        """The first preset is here and measured when the download for the second one ends."""
        far = preset.with_name("far.yaml")
        text = preset.read_text(encoding="utf-8")
        far.write_text(text.replace("name: tiny", "name: far"), encoding="utf-8")
        plan = ("--data", workplace.document, "--lengths", "64", "--samples", "1", "-n", "4")
        modes = ("--modes", "plain", "-o", "json")
        done = cli("bench", "-m", workplace.preset, "-m", far, *plan, *modes)
        assert done.code == 130
        assert STOPPED in done.err
        assert "stopped (interrupted); --resume" in done.err
        found = json.loads(done.out)
        assert [cell["preset"] for cell in found["cells"]] == ["tiny"]
        assert [each["cell"]["preset"] for each in found["missing"]] == ["far"]


class TestDisplays:
    def events(self, total: int, pieces: int) -> list[Download]:
        done = [total * i // pieces for i in range(pieces + 1)]
        return [Download("owner/big", WEIGHTS, each, total) for each in done]

    def test_a_log_has_a_line_for_each_tenth(self) -> None:
        lines: list[str] = []
        progress = LogProgress(lines.append, "")
        for event in self.events(15 << 30, 1000):
            progress.download(event)
        assert len(lines) == 11
        assert lines[0] == "download 0 % of 15.0 GiB · owner/big"
        assert lines[-1] == "download 100 % of 15.0 GiB · owner/big"

    def test_a_download_that_goes_on_says_where(self) -> None:
        lines: list[str] = []
        progress = LogProgress(lines.append, "")
        for event in self.events(100, 100)[57:]:
            progress.download(event)
        assert lines[0].startswith("download 50 % of")
        assert len(lines) == 6

    def test_a_terminal_has_a_bar_that_leaves_no_trace(self) -> None:
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=True, width=100)
        progress = TerminalProgress(console, "")
        progress.busy("loading tiny")
        for event in self.events(3 << 30, 7):
            progress.download(event)
        progress.close()
        text = shown.getvalue()
        assert "downloading owner/big" in text
        assert "/3.0 GiB" in text
        assert text.rindex("loading tiny") > text.rindex("downloading owner/big")
        assert text.endswith(("\x1b[2K", "\x1b[?25h"))
