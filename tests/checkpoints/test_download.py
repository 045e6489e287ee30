"""Downloads, against a Hub on this machine that can misbehave in every way."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from specx.checkpoints import download
from specx.checkpoints import load as hub
from specx.checkpoints.download import Download, Notice
from specx.checkpoints.repository import Source, find
from specx.errors import ModelError, ModelUnavailableError, PairError, ResourceError, SpecxError
from specx.preset.preset import Preset, load_preset
from tests.helpers import PairDirs, save_pair, save_tokenizer, tiny_config
from tests.hubserver import COMMIT, LISTING, HubServer, point_client_at, serving, sha256

REPO = "owner/big"
WEIGHTS = "model.safetensors"
#: The commit would become a path; names, sizes and digests of other types.
HOSTILE = (
    {"id": "x", "sha": "../../x", "siblings": []},
    *(
        {"id": "x", "sha": COMMIT, "siblings": [{"rfilename": "a"} | odd]}
        for odd in ({"rfilename": 7}, {"size": "much"}, {"blobId": 7})
    ),
)


@pytest.fixture
def server(
    tiny_pair: PairDirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """``owner/big`` and ``owner/small`` are the tiny pair; the cache is empty."""
    with serving({REPO: tiny_pair.target, "owner/small": tiny_pair.draft}) as running:
        point_client_at(running.url, tmp_path / "cache", monkeypatch)
        yield running
    huggingface_hub.close_session()


@pytest.fixture
def folder(server: HubServer, tmp_path: Path) -> Path:
    """A repository ``owner/own`` that the test fills; it has a config and a tokenizer."""
    directory = tmp_path / "own"
    tiny_config().save_pretrained(directory)
    save_tokenizer(directory)
    server.folders["owner/own"] = directory
    return directory


def preset(target: str = REPO, draft: str = "owner/small") -> Preset:
    return load_preset(
        "pocket", {"target.repo": target, "draft.repo": draft, "context_tokens": 4096}
    )


def located(repo: str = REPO, revision: str | None = None, *, offline: bool = False) -> Source:
    source = find(repo, revision, offline=offline)
    download.fetch_metadata(source)
    return source


def fetch(repo: str = REPO) -> Path:
    source = located(repo)
    download.fetch([download.plan(source)])
    return source.directory


def refused(repo: str = REPO) -> SpecxError:
    with pytest.raises(SpecxError) as caught:
        fetch(repo)
    return caught.value


def partial_of(source: Source, server: HubServer) -> Path:
    """Where the first bytes of the weights are kept."""
    digest = sha256(server.folders[source.repo] / WEIGHTS)
    return source.folder / "blobs" / f"{digest}.incomplete"


def wanted(repo: str) -> list[str]:
    files = download.plan(located(repo)).files
    return [file.name for file in files if "safetensors" in file.name or "bin" in file.name]


def save_shards(folder: Path, stem: str, suffix: str) -> list[str]:
    names = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    for name in names:
        (folder / name).write_bytes(name.encode())
    index = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return [f"{stem}.{suffix}.index.json", *names]


class TestPlan:
    def test_only_what_is_needed(self, server: HubServer, folder: Path) -> None:
        for name in (
            WEIGHTS,
            "pytorch_model.bin",
            "model.gguf",
            "model.onnx",
            "README.md",
            "consolidated.safetensors",
            "model-00009-of-00009.safetensors",
            "evil.py",
        ):
            (folder / name).write_bytes(b"x" * 100)
        server.listed = [
            "original/model.safetensors",
            "original/tokenizer.model",
            "onnx/config.json",
        ]
        assert wanted("owner/own") == [WEIGHTS]
        fetch("owner/own")
        assert set(server.names) == {
            *(WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"),
            *("chat_template.jinja",),
        }

    def test_shards_are_those_of_the_index(self, folder: Path) -> None:
        names = save_shards(folder, "model", "safetensors")
        (folder / "model-00003-of-00002.safetensors").write_bytes(b"left over")
        save_shards(folder, "pytorch_model", "bin")
        assert wanted("owner/own") == names

    def test_pickles_where_there_is_nothing_else(self, folder: Path) -> None:
        names = save_shards(folder, "pytorch_model", "bin")
        assert wanted("owner/own") == names
        (folder / "pytorch_model.bin").write_bytes(b"x")
        source = located("owner/own")
        assert wanted("owner/own") == ["pytorch_model.bin"]
        assert "owner/own has no safetensors" in download.file_notes(source)[0]

    def test_a_shard_that_is_not_there(self, folder: Path) -> None:
        names = save_shards(folder, "model", "safetensors")
        (folder / names[2]).unlink()
        assert f"names {names[2]}, which is not there" in str(refused("owner/own"))

    def test_an_index_cannot_reach_out(self, server: HubServer, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        for name in ("../x.safetensors", "/etc/passwd", "a\\b", 7, ""):
            index.write_text(json.dumps({"weight_map": {"w": name}}))
            server.listed = [str(name)]
            shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE, ignore_errors=True)
            assert "is no file beside it" in str(refused("owner/own"))

    def test_hostile_names_are_not_wanted(self, server: HubServer, tmp_path: Path) -> None:
        server.listed = ["tokenizer/../../../evil", "tokenizer\\..\\evil", "/tokenizer.json", ""]
        fetch()
        assert all("evil" not in name for name in server.names)
        assert not list(tmp_path.rglob("evil"))

    def test_other_formats_are_named(self, folder: Path) -> None:
        (folder / "model-q4.gguf").write_bytes(b"GGUF")
        error = refused("owner/own")
        assert isinstance(error, ModelError)
        assert error.reason == "it has model-q4.gguf, which specx does not read"

    def test_sizes_before_and_after(self, server: HubServer, tiny_pair: PairDirs) -> None:
        source = located()
        before = download.plan(source)
        size = (tiny_pair.target / WEIGHTS).stat().st_size
        assert WEIGHTS not in server.names
        assert before.source.commit == COMMIT
        assert before.missing_bytes == size
        assert before.total_bytes > size
        download.fetch([before])
        assert download.plan(source).missing_bytes == 0


class TestFetch:
    def test_what_arrives_is_what_was_sent(
        self, server: HubServer, tiny_pair: PairDirs, capfd: pytest.CaptureFixture[str]
    ) -> None:
        directory = fetch()
        for name in set(server.names):
            assert (directory / name).read_bytes() == (tiny_pair.target / name).read_bytes()
        assert len(server.names) == len(set(server.names))
        server.fetched.clear()
        assert fetch() == directory
        assert server.fetched == []
        assert capfd.readouterr() == ("", "")

    def test_nothing_is_hashed_twice(
        self, server: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetch()
        monkeypatch.setattr(hashlib, "file_digest", None)
        fetch()

    def test_the_cache_is_the_hub_clients(self, server: HubServer) -> None:
        """Both ways: neither fetches what the other has."""
        directory = fetch()
        theirs = huggingface_hub.snapshot_download(
            REPO, allow_patterns=[WEIGHTS, "config.json"], local_files_only=True
        )
        assert Path(theirs) == directory
        huggingface_hub.hf_hub_download("owner/small", WEIGHTS, revision=COMMIT)
        fetched = server.names.count(WEIGHTS)
        fetch("owner/small")
        assert server.names.count(WEIGHTS) == fetched

    def test_events(self, server: HubServer) -> None:
        events: list[Download | Notice] = []
        plans = [download.plan(located(repo)) for repo in (REPO, "owner/small")]
        total = sum(plan.missing_bytes for plan in plans)
        began = list(server.names)
        with download.listening(lambda event: events.append(event) or check(event)):  # type: ignore
            first: list[list[str]] = []

            def check(_: object) -> None:
                first.append(list(server.names))

            download.fetch(plans)
        assert first[0] == began, "the size is known before the first byte travels"
        downloads = [event for event in events if isinstance(event, Download)]
        done = [event.done_bytes for event in downloads]
        assert done[0] == 0
        assert done == sorted(done)
        assert done[-1] == total
        assert {event.total_bytes for event in downloads} == {total}
        assert {event.repo for event in downloads} == {REPO, "owner/small"}
        heard = len(events)
        shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
        fetch()
        assert len(events) == heard

    def test_a_mirror_without_digests(self, server: HubServer, tiny_pair: PairDirs) -> None:
        server.tells_digests = False
        directory = fetch()
        assert (directory / WEIGHTS).read_bytes() == (tiny_pair.target / WEIGHTS).read_bytes()

    def test_a_server_that_ignores_ranges(self, server: HubServer) -> None:
        server.faults[WEIGHTS] = ["truncate", "whole"]
        assert sha256(fetch() / WEIGHTS) == sha256(server.folders[REPO] / WEIGHTS)
        assert [begin > 0 for name, begin in server.fetched if name == WEIGHTS] == [False, True]


class TestBrokenConnections:
    @pytest.mark.parametrize("fault", ["truncate", "reset"])
    def test_goes_on_where_it_broke(self, server: HubServer, fault: str) -> None:
        server.faults[WEIGHTS] = [fault, fault]
        size = (server.folders[REPO] / WEIGHTS).stat().st_size
        assert sha256(fetch() / WEIGHTS) == sha256(server.folders[REPO] / WEIGHTS)
        begins = [begin for name, begin in server.fetched if name == WEIGHTS]
        half = size // 2  # of the file is sent before the first break, then half of the rest
        delivered = [0, half, half + (size - half) // 2]
        if fault == "truncate":
            assert begins == delivered, "nothing that has arrived is asked for again"
        else:  # a reset may overtake bytes that are on their way
            assert begins == sorted(set(begins))
            assert all(a <= b for a, b in zip(begins, delivered, strict=True))

    def test_keeps_what_there_is_for_the_next_command(self, server: HubServer) -> None:
        server.faults[WEIGHTS] = "truncate"
        size = (server.folders[REPO] / WEIGHTS).stat().st_size
        error = refused()
        assert error.exit_code == 4
        assert error.message == f"{REPO}/{WEIGHTS} cannot be fetched"
        assert error.reason.startswith("the connection broke 3 times")
        kept = size // 2 + (size - size // 2) // 2
        assert "are kept; the same command goes on from there" in error.hints[0]
        plan = download.plan(located())
        assert kept <= size - plan.missing_bytes < size
        server.faults.clear()
        server.fetched.clear()
        assert sha256(fetch() / WEIGHTS) == sha256(server.folders[REPO] / WEIGHTS)
        assert server.fetched == [(WEIGHTS, size - plan.missing_bytes)]

    def test_a_server_that_is_ill(self, server: HubServer) -> None:
        server.faults = {WEIGHTS: [503, 500], LISTING: [502, 504], "config.json": [503]}
        fetch()
        shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
        server.faults = {WEIGHTS: 503}
        error = refused()
        assert "the connection broke 3 times: " in error.reason
        assert "503" in error.reason
        assert server.names.count(WEIGHTS) == 3 + 3

    def test_what_lies_there_is_not_trusted(self, server: HubServer) -> None:
        """Half a file of something else is found out at the end, and deleted."""
        source = located()
        partial = partial_of(source, server)
        partial.write_bytes(b"\0" * 1000)
        assert "arrived damaged, and was deleted" in refused().message
        assert not partial.exists()
        fetch()
        (source.directory / WEIGHTS).unlink()
        shutil.rmtree(source.folder / "blobs")
        (source.folder / "blobs").mkdir()
        partial.write_bytes(b"\0" * 10_000_000)
        assert sha256(fetch() / WEIGHTS) == sha256(server.folders[REPO] / WEIGHTS)


class TestRefusals:
    """One wording each, exit 4."""

    def expect(self, error: SpecxError, message: str, reason: str, *hints: str) -> None:
        assert isinstance(error, ModelUnavailableError)
        assert error.exit_code == 4
        assert error.message == message
        assert reason in error.reason
        for hint in hints:
            assert hint in " | ".join(error.hints)

    @pytest.mark.parametrize("status", [401, 403])
    def test_gated(self, server: HubServer, status: int) -> None:
        server.gated[REPO] = (status, "GatedRepo")
        self.expect(
            refused(),
            f"{REPO} is gated",
            "accept terms",
            f"https://huggingface.co/{REPO}",
            "hf auth login",
            "-m qwen3-8b",
            "-m pocket",
        )
        assert server.names == []

    @pytest.mark.usefixtures("server")
    def test_not_found(self) -> None:
        self.expect(
            refused("owner/none"),
            "owner/none is not on the Hub",
            "",
            "https://huggingface.co/owner/none",
        )
        with pytest.raises(ModelUnavailableError) as caught:
            find(REPO, "v9", offline=False)
        self.expect(caught.value, f"{REPO} has no revision v9", "", "/commits/main")

    def test_a_revision_that_is_gone_is_not_replaced(self, server: HubServer) -> None:
        """Another commit in its place would be another model."""
        source = find(REPO, None, offline=False)
        download.fetch_metadata(source)
        path = source.folder / "refs" / "v9"
        path.write_text(COMMIT)
        with pytest.raises(ModelUnavailableError, match="has no revision v9"):
            find(REPO, "v9", offline=False)

    @pytest.mark.parametrize("repo", ["owner/--bad--", "bad name"])
    @pytest.mark.parametrize("offline", [True, False])
    @pytest.mark.usefixtures("server")
    def test_no_names(self, repo: str, offline: bool) -> None:
        with pytest.raises(ModelUnavailableError, match="is neither a directory nor a Hub"):
            find(repo, None, offline=offline)

    def test_a_token_that_is_not_valid(self, server: HubServer) -> None:
        server.faults[LISTING] = 403
        error = refused()
        self.expect(error, f"{REPO} cannot be fetched", "the Hub answers 403 Forbidden", "hf auth")

    def test_a_server_that_is_ill(self, server: HubServer) -> None:
        server.faults[LISTING] = 503
        reason = "the Hub answers 503 Service Unavailable"
        self.expect(refused(), f"{REPO} cannot be fetched", reason, "try again later")

    @pytest.mark.parametrize("where", [LISTING, WEIGHTS, "config.json"])
    def test_a_login_page_of_the_network(self, server: HubServer, where: str) -> None:
        server.faults[where] = "page"
        error = refused()
        what = REPO if where == LISTING else f"{REPO}/{where}"
        reason = f"{server.url} does not answer as the Hub does"
        self.expect(error, f"{what} cannot be fetched", reason, "login", "HF_ENDPOINT")
        assert "<html" not in str(error)

    @pytest.mark.parametrize("listing", [[], {}, {"id": "x"}, 7, *HOSTILE])
    def test_json_of_another_kind(
        self, server: HubServer, listing: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw = json.dumps(listing).encode()
        monkeypatch.setattr("tests.hubserver.PAGE", raw)
        server.faults[LISTING] = "page"
        self.expect(refused(), f"{REPO} cannot be fetched", "does not answer as the Hub does")

    @pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
    def test_wrong_checksum(self, server: HubServer, name: str) -> None:
        server.faults[name] = ["wrong"]
        path = server.folders[REPO] / name
        raw = path.read_bytes()
        got = hashlib.sha256(bytes([raw[0] ^ 1]) + raw[1:]).hexdigest()
        error = refused()
        self.expect(error, f"{REPO}/{name} arrived damaged, and was deleted", "its digest is")
        if name == WEIGHTS:
            assert got in error.reason
            assert sha256(path) in error.reason
        cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
        assert not list(cache.rglob("*.incomplete"))
        assert (fetch() / name).read_bytes() == raw

    def test_a_body_longer_than_announced(self, server: HubServer) -> None:
        server.faults[WEIGHTS] = ["long"]
        assert "arrived damaged" in refused().message

    def test_nobody_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving({}) as gone:
            pass
        point_client_at(gone.url, tmp_path / "cache", monkeypatch)
        self.expect(
            refused(),
            f"{REPO} is not in the local cache, and the Hub was not reached",
            "refused",
            "-m pocket",
        )

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("ALL_PROXY", "socks5://127.0.0.1:9", ("socksio", "ALL_PROXY")),
            ("HTTPS_PROXY", "gopher://x", ("no connection can be prepared", "HTTPS_PROXY")),
            ("https_proxy", "http://[::1", ("no connection can be prepared", "https_proxy")),
            ("SSL_CERT_FILE", "/no/such/file", ("no connection can be prepared", "SSL_CERT_FILE")),
            ("HF_TOKEN", "h\u00e9", ("the access token has characters", "HF_TOKEN")),
        ],
    )
    def test_a_client_that_cannot_be_built(
        self, server: HubServer, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: Any
    ) -> None:
        """Regression: a bug in specx, or a hub that sends no JSON, were the words for it; and what
        was in the cache could not be used."""
        directory = fetch()
        huggingface_hub.close_session()
        monkeypatch.setitem(sys.modules, "socksio", None)
        monkeypatch.setenv(name, value)
        self.expect(refused("owner/small"), "owner/small cannot be fetched", *words)
        assert fetch() == directory

    @pytest.mark.parametrize(
        ("name", "value"), [("HF_HUB_DOWNLOAD_TIMEOUT", "abc"), ("HF_ENDPOINT", "http://[bad")]
    )
    def test_a_client_that_does_not_start(self, name: str, value: str) -> None:
        """Its variables are read when it is imported, so each is tried in a process of its own."""
        program = (
            "from specx.checkpoints.repository import find\n"
            "from specx.errors import ModelUnavailableError\n"
            "try: find('owner/big', None, offline=False)\n"
            "except ModelUnavailableError as error: print(error, *error.hints)\n"
        )
        words = [sys.executable, "-c", program]
        done = subprocess.run(
            words, env={**os.environ, name: value}, capture_output=True, text=True
        )
        assert "the Hub's client does not start" in done.stdout, done.stderr
        assert name in done.stdout

    def test_what_is_cached_needs_no_hub(self, server: HubServer) -> None:
        directory = fetch()
        for fault in (503, 404, "page"):
            server.faults[LISTING] = fault
            server.fetched.clear()
            assert fetch() == directory
            assert server.fetched == []


class TestDisk:
    def test_no_room_is_told_before_the_first_weight(
        self, server: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = download.plan(located())
        free = SimpleNamespace(free=plan.missing_bytes)  # not a byte for anything else
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _: free)
        with pytest.raises(ResourceError, match="there is no room for the download") as caught:
            download.fetch([plan])
        assert caught.value.exit_code == 6
        assert caught.value.reason == "need 0.1 GiB, have 0.0 GiB"
        for hint in ("free 64 MiB", "HF_HOME", "-m smollm2-1.7b"):
            assert hint in " ".join(caught.value.hints)
        assert WEIGHTS not in server.names

    def test_both_models_have_to_fit(
        self, server: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plans = [download.plan(located(repo)) for repo in (REPO, "owner/small")]
        spare = 64 << 20
        room = SimpleNamespace(free=spare + plans[0].missing_bytes)
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _: room)
        with pytest.raises(ResourceError):
            download.fetch(plans)
        assert WEIGHTS not in server.names
        download.fetch(plans[:1])

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
    @pytest.mark.usefixtures("server")
    def test_a_cache_that_may_not_be_written(
        self, code: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "mkdir", fails)
        error = refused()
        assert isinstance(error, ModelUnavailableError)
        assert "cannot be stored in" in error.message
        assert "HF_HOME" in error.hints[0]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
    def test_a_disk_that_fills_up(self, server: HubServer) -> None:
        partial_of(located(), server).symlink_to("/dev/full")
        error = refused()
        assert isinstance(error, ResourceError)
        assert error.message == f"the disk is full while fetching {REPO}"
        assert "HF_HOME" in error.hints[0]

    def test_a_cache_that_is_no_directory(
        self, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        cache = tmp_path / "file" / "hub"
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        error = refused()
        assert error.message == f"{REPO} cannot be stored in {cache}"
        assert error.exit_code == 4


class TestPairs:
    def load(self, chosen: Preset, *, offline: bool = False) -> hub.ModelPair:
        return hub.load_pair(chosen, device="cpu", dtype="auto", offline=offline)

    def test_loads_and_then_needs_no_network(self, server: HubServer) -> None:
        pair = self.load(preset())
        assert pair.draft is not None
        assert pair.target.config.shape.vocabulary == 512
        server.folders.clear()
        server.fetched.clear()
        assert self.load(preset(), offline=True).draft is not None
        assert server.fetched == []

    def test_a_wrong_pair_is_refused_before_its_weights_travel(
        self, server: HubServer, tmp_path: Path
    ) -> None:
        other = save_pair(tmp_path / "other", draft_changes={"vocab_size": 300})
        server.folders["owner/small"] = other.draft
        with pytest.raises(PairError):
            self.load(preset())
        assert not [name for name in server.names if name.endswith(".safetensors")]

    def test_pickles_are_fetched_with_a_notice(self, server: HubServer, folder: Path) -> None:
        from safetensors.torch import load_file

        tensors = load_file(server.folders[REPO] / WEIGHTS)
        torch.save(tensors, folder / "pytorch_model.bin")
        heard: list[object] = []
        with download.listening(heard.append):
            pair = self.load(preset(target="owner/own"))
        notices = [event.text for event in heard if isinstance(event, Notice)]
        assert list(pair.notes) == notices
        assert notices == [
            "owner/own has no safetensors: pickles are read, code in them is not run"
        ]
        save_file(tensors, folder / WEIGHTS)
        shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
        server.fetched.clear()
        assert self.load(preset(target="owner/own")).notes == ()
        assert "pytorch_model.bin" not in server.names

    def test_offline_with_half_a_snapshot(self, server: HubServer) -> None:
        hub.find_pair(preset(), offline=False)
        with pytest.raises(ModelUnavailableError, match="is only partly in the local cache"):
            self.load(preset(), offline=True)

    @pytest.mark.usefixtures("server")
    def test_offline_with_nothing(self) -> None:
        with pytest.raises(ModelUnavailableError, match="is not in the local cache") as caught:
            hub.resolve(REPO, None, offline=True)
        assert "-m pocket" in caught.value.hints[1]

    @pytest.mark.usefixtures("server")
    @pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"../../..", b"0" * 39])
    def test_offline_with_a_damaged_branch(self, raw: bytes) -> None:
        """What a branch file says names a folder: only a commit may."""
        source = located()
        (source.folder / "refs" / "main").write_bytes(raw)
        with pytest.raises(ModelUnavailableError, match="is not in the local cache"):
            find(REPO, None, offline=True)
        assert located().directory == source.directory, "the Hub says it again"
        assert find(REPO, None, offline=True).directory == source.directory

    def test_offline_opens_no_connection(self, server: HubServer, tmp_path: Path) -> None:
        """A process of its own, in which a socket that connects ends the process."""
        chosen = preset()
        hub.fetch_weights(*hub.located(chosen, offline=False))
        path = tmp_path / "pocket.yaml"
        path.write_text(chosen.to_yaml(), encoding="utf-8")
        (tmp_path / "home").mkdir()
        (tmp_path / "cache").rename(tmp_path / "home" / "hub")
        done = subprocess.run(
            [sys.executable, "-c", OFFLINE, str(path)],
            env={
                **os.environ,
                "HF_HOME": str(tmp_path / "home"),
                "HF_ENDPOINT": server.url,
                "HF_HUB_OFFLINE": "0",
            },
            input="The harbour was quiet.",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


OFFLINE = """
import os, socket, sys

def blocked(*arguments, **_):
    os.write(2, f"a connection to {arguments[1:]}".encode())
    os._exit(99)

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = blocked
from specx.cli.main import run
words = ["generate", "-m", sys.argv[1], "--offline", "-n", "4", "--ignore-eos"]
sys.exit(run(words))
"""
