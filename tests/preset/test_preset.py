"""Presets: what a file may say, where it is found, how settings are changed."""

import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from specx.core.config import MODES, Mode, Parts, RetrievalConfig, SamplingConfig, TreeConfig
from specx.errors import UsageError
from specx.preset.preset import (
    MAX_PRESET_BYTES,
    Preset,
    available_presets,
    find_preset,
    load_preset,
    preset_json_schema,
    preset_keys,
)

MINIMAL = {
    "schema": 1,
    "name": "mine",
    "target": {"repo": "owner/big"},
    "draft": {"kind": "lm", "repo": "owner/small"},
    "context_tokens": 8192,
}


EAGLE = {"kind": "eagle", "repo": "owner/head", "head": {"rope_theta": 10000.0}}
PAPER = {"source": "Table 2", "data": "pg19", "mode": "spec", "tokens_per_step": 2.0, "tok_s": 9.0}


def head(**settings: Any) -> dict[str, Any]:
    return {"draft": EAGLE | {"head": settings}}


def write(directory: Path, name: str = "mine", **changes: Any) -> Path:
    """A preset file whose name fits; a change to ``...`` leaves the key out."""
    directory.mkdir(parents=True, exist_ok=True)
    data = MINIMAL | {"name": name} | changes
    path = directory / f"{name}.yaml"
    kept = {key: value for key, value in data.items() if value is not ...}
    path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def user_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECX_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config" / "presets"


def test_the_shipped_preset_is_the_bundled_pair() -> None:
    """``-m pocket`` must work from any directory without a file of the user's."""
    preset = load_preset("pocket")
    assert (preset.target.repo, preset.draft.repo) == ("pocket/target", "pocket/draft")
    assert preset.tree == TreeConfig(nodes=32, depth=8, threshold=0.7, size="measured")
    assert preset.retrieval == RetrievalConfig(32, 16, 1, 12, 1)
    assert preset.sampling == SamplingConfig()
    assert not preset.requires.gated


def test_every_shipped_preset_loads_and_says_what_it_is() -> None:
    entries = available_presets()
    assert "pocket" in [entry.name for entry in entries]
    for entry in entries:
        assert entry.problem == ""
        assert entry.about
        assert entry.origin == "shipped"


def test_importing_presets_does_not_import_torch() -> None:
    """``specx --help`` and ``presets list`` must answer at once."""
    code = "import sys, specx.preset.preset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_small_file_gets_the_defaults_of_the_core(tmp_path: Path) -> None:
    preset = load_preset(str(write(tmp_path)))
    assert preset.tree == TreeConfig()
    assert preset.retrieval == RetrievalConfig()
    assert dict(preset.parts) == {}
    assert preset.mode == "auto"


def test_a_preset_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_preset("pocket").mode = "plain"


class TestWrongFiles:
    """Each mistake has been made by somebody; each must be named, never be a traceback."""

    @pytest.mark.parametrize(
        ("changes", "said", "hint"),
        [
            ({"tree": {"nodse": 8}}, "tree.nodse is not a known key", "did you mean tree.nodes?"),
            ({"targt": {}}, "targt is not a known key", "did you mean target?"),
            ({"parts": {"draftcache": "full"}}, "parts.draftcache", "parts.draft_cache"),
            ({"mode": "spexc"}, "mode must be", "did you mean spec"),
            ({"tree": {"threshold": "1e-3"}}, "tree.threshold must be", "YAML reads 1e-3 as a"),
            ({"tree": {"nodes": "8"}}, "tree.nodes must be", "leave them out"),
            ({"about": False}, "about must be", "put the word in quotes"),
            ({"target": {"repo": "a/b", "revision": 12}}, "target.revision must be", "in quotes"),
            ({"tree": {"nodes": 0}}, "tree.nodes must be between 1 and 512, not 0", ""),
            ({"sampling": {"temperature": -1}}, "temperature must be", ""),
            ({"target": "owner/big"}, "target must be a mapping", ""),
            ({"target": ...}, "target is missing", ""),
            ({"draft": {"kind": "lm"}}, "draft.repo is missing", ""),
            ({"draft": {"kind": "eagle3"}}, "a draft of kind eagle3 needs one", ""),
            ({"draft": EAGLE | {"kind": "lm"}}, "belong to the kinds eagle and eagle3", ""),
            ({"draft": EAGLE | {"head": {"rope_thet": 9}}}, "rope_thet", "draft.head.rope_theta"),
            (head(rope_theta=1.0), "draft.head.rope_theta must", ""),
            (head(rope_scaling={"factor": 2.0}), "needs either type or rope_type", ""),
            (head(rope_scaling={"type": "yarn"}), "rope_scaling.factor is missing", ""),
            (head(rope_scaling={"type": "yran", "factor": 2.0}), "rope_scaling.type must", "yarn"),
            (head(feature_layers=[2, 2, 9]), "must be rising layer numbers", ""),
            ({"draft": EAGLE, "parts": {"drafter": "lm"}}, "but draft.kind is eagle", ""),
            ({"draft": EAGLE, "retrieval": {"top_chunks": 60}}, "trained on 2048", ""),
            ({"paper": [PAPER | {"suspect": True}]}, "must give its reason", ""),
            ({"paper": [PAPER | {"mode": "auto"}]}, "paper.0.mode must be", ""),
            ({"draft": {"kind": "none"}, "parts": {"drafter": "lm"}}, "draft.kind is none", ""),
            ({"prompt": {"ask": "{document}"}}, "{instruction} exactly once", ""),
            ({"max_new_tokens": 8192}, "must be less than context_tokens", ""),
            ({"retrieval": {"top_chunks": 99}}, "trained on 2048", ""),
            ({"schema": 2}, "has schema 2; this specx reads schema 1", ""),
            ({"schema": ...}, "has no schema number", ""),
            ({"name": "other"}, "calls itself other", "write name: mine"),
            ({"name": "Mine"}, "name must match pattern", ""),
        ],
    )
    def test_names_the_key_and_the_remedy(
        self, tmp_path: Path, changes: dict[str, Any], said: str, hint: str
    ) -> None:
        path = write(tmp_path)
        data = {k: v for k, v in (MINIMAL | changes).items() if v is not ...}
        path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        with pytest.raises(UsageError) as caught:
            load_preset(str(path))
        assert said in str(caught.value)
        assert hint in " ".join(caught.value.hints)

    def test_names_the_line(self, tmp_path: Path) -> None:
        path = write(tmp_path)
        path.write_text(path.read_text() + "tree:\n  nodes: 8\n  dept: 3\n", encoding="utf-8")
        line = path.read_text().splitlines().index("  dept: 3") + 1
        with pytest.raises(UsageError, match=f"line {line}: tree.dept is not a known key"):
            load_preset(str(path))

    def test_a_huge_file_is_refused_before_it_is_parsed(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("#" * (MAX_PRESET_BYTES + 1), encoding="utf-8")
        with pytest.raises(UsageError, match="too large"):
            load_preset(str(path))

    def test_not_text_and_not_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_bytes("schema: 1".encode("utf-16"))
        for value in (str(path), str(tmp_path) + "/", "./no-such.yaml", "a\0b.yaml"):
            with pytest.raises(UsageError, match="cannot read preset file"):
                load_preset(value)


class TestLookup:
    def test_the_current_directory_is_never_searched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A cloned repository must not slip its own preset, and so its own models, to a user."""
        write(tmp_path, "evil")
        write(tmp_path / "presets", "evil")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match="no preset named 'evil'"):
            load_preset("evil")
        assert load_preset("./evil.yaml").name == load_preset("evil.yaml").name == "evil"

    def test_the_users_preset_comes_before_the_shipped_one(self, user_dir: Path) -> None:
        write(user_dir, "pocket")
        assert load_preset("pocket").target.repo == "owner/big"
        assert find_preset("pocket").origin == "user"
        assert [entry.origin for entry in available_presets() if entry.name == "pocket"] == ["user"]

    def test_an_unknown_name_lists_what_there_is(self, user_dir: Path) -> None:
        write(user_dir, "vicuna-7b")
        with pytest.raises(UsageError) as caught:
            load_preset("vicuna-7")
        hints = " ".join(caught.value.hints)
        assert "did you mean vicuna-7b?" in hints
        assert "available: llama3.1-8b, llama3.1-8b-eagle, " in hints

    def test_a_broken_user_file_does_not_break_the_list(self, user_dir: Path) -> None:
        write(user_dir, "broken").write_text("tree: [", encoding="utf-8")
        problems = {entry.name: entry.problem for entry in available_presets()}
        assert "not valid YAML" in problems["broken"]
        assert problems["pocket"] == ""

    def test_relative_directories_belong_to_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A preset beside its checkpoints must work from any directory."""
        path = write(
            tmp_path / "here", target={"repo": "./big"}, draft={"kind": "lm", "repo": "../small"}
        )
        monkeypatch.chdir("/")
        preset = load_preset(str(path))
        assert preset.target.repo == str(tmp_path / "here" / "big")
        assert preset.draft.repo == str(tmp_path / "small")


class TestExtends:
    def test_lays_one_file_over_another(self, user_dir: Path) -> None:
        write(user_dir, "base", tree={"nodes": 8, "depth": 4})
        child = {"target": ..., "draft": {"trained_context_tokens": 4096}, "context_tokens": ...}
        write(user_dir, "child", extends="base", tree={"nodes": 9}, **child)
        preset = load_preset("child")
        assert (preset.tree.nodes, preset.tree.depth, preset.name) == (9, 4, "child")
        assert preset.draft.repo == "owner/small"
        assert preset.draft.trained_context_tokens == 4096

    def test_works_over_one_level_only(self, user_dir: Path) -> None:
        write(user_dir, "b", extends="pocket")
        write(user_dir, "a", extends="b")
        write(user_dir, "loop", extends="loop")
        for name in ("a", "loop"):
            with pytest.raises(UsageError, match="must not extend another"):
                load_preset(name)
        write(user_dir, "c", extends="pokcet")
        with pytest.raises(UsageError, match="no preset named 'pokcet'"):
            load_preset("c")

    def test_measurements_are_not_inherited(self, user_dir: Path) -> None:
        """Numbers taken with other settings would be a lie."""
        entry = {"device": "H100", "date": "2026-01-02", "prompt_tokens": 9, "speedup": 2.0}
        write(user_dir, "base", measured=[entry | {"tokens_per_step": 2.5}])
        write(user_dir, "child", extends="base")
        assert len(load_preset("base").measured) == 1
        assert load_preset("child").measured == ()


class TestOverrides:
    def test_strings_are_read_as_yaml_reads_them(self) -> None:
        preset = load_preset(
            "pocket",
            {
                "tree.nodes": "8",
                "tree.threshold": "0.5",
                "requires.gated": "yes",
                "parts.draft_cache": "window",
                "target.revision": "123",
                "prompt.summarize": "Sum it up: no",
                "draft.revision": "null",
                "max_new_tokens": 12,
            },
        )
        assert (preset.tree.nodes, preset.tree.threshold, preset.max_new_tokens) == (8, 0.5, 12)
        assert preset.requires.gated is True
        assert dict(preset.parts) == {"draft_cache": "window"}
        assert (preset.target.revision, preset.draft.revision) == ("123", None)
        assert preset.prompt.summarize == "Sum it up: no"

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("tree.nodse", "8", "did you mean tree.nodes?"),
            ("nodes", "8", "did you mean tree.nodes?"),
            ("tree", "8", "set one of tree.nodes"),
            ("tree", "null", "tree must be a mapping"),
            ("colour", "8", "known: schema, name"),
            ("name", "x", "belongs to the preset file"),
            ("tree.nodes", "many", 'tree.nodes must be a valid integer, not "many"'),
            ("tree.nodes", "9" * 5000, "tree.nodes must be"),
            ("tree.nodes", "", "not null"),
            ("tree.threshold", "1e-3", "write the number out"),
            ("tree.threshold", ".inf", "must be a valid number"),
            ("tree.threshold", float("nan"), "not JSON compliant"),
            ("tree.threshold", object(), "not valid"),
            ("tree.nodes", "[[[[", "must be a valid integer"),
            ("tree.nodes", "!!timestamp x", "must be a valid integer"),
        ],
    )
    def test_wrong_ones_are_usage_errors(self, key: str, value: object, said: str) -> None:
        with pytest.raises(UsageError) as caught:
            load_preset("pocket", {key: value})
        assert said in " ".join([str(caught.value), *caught.value.hints])

    @given(
        nodes=st.integers(1, 512),
        threshold=st.floats(0.0, 1.0),
        temperature=st.floats(0.0, 10.0),
        gated=st.booleans(),
        text=st.text(min_size=1).filter(lambda text: text.isprintable()),
    )
    def test_round_trip(
        self, nodes: int, threshold: float, temperature: float, gated: bool, text: str
    ) -> None:
        """What is set is what stands in the preset, in its YAML, and in what is read back."""
        wanted = {
            "tree.nodes": nodes,
            "tree.threshold": threshold,
            "sampling.temperature": temperature,
            "requires.gated": gated,
            "prompt.summarize": text,
        }
        preset = load_preset("pocket").with_overrides(wanted)
        assert preset.tree.nodes == nodes
        assert preset.tree.threshold == threshold
        assert preset.sampling.temperature == temperature
        assert preset.prompt.summarize == text
        again = Preset.model_validate(yaml.safe_load(preset.to_yaml()))
        assert again == preset
        assert again.fingerprint == preset.fingerprint

    @given(st.dictionaries(st.sampled_from(preset_keys()), st.text(), max_size=3))
    def test_any_text_is_a_value_or_a_usage_error(self, overrides: dict[str, str]) -> None:
        try:
            preset = load_preset("pocket", overrides)
        except UsageError:
            return
        assert preset.with_overrides({}) == preset

    def test_a_group_that_the_file_leaves_out_can_be_set(self) -> None:
        sizes = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16}
        sizes |= {"mlp": 96, "vocabulary": 512}
        wanted = {f"draft.shape.{name}": str(size) for name, size in sizes.items()}
        preset = load_preset("pocket", wanted)
        assert preset.target.shape is None
        assert preset.draft.shape is not None
        assert preset.draft.shape.kv_heads == 2
        del wanted["draft.shape.vocabulary"]
        with pytest.raises(UsageError, match="vocabulary"):
            load_preset("pocket", wanted)

    def test_what_a_preset_knows_of_a_head_can_be_set(self) -> None:
        preset = load_preset(
            "llama3.1-8b-eagle3",
            {
                "draft.head.rope_theta": "10000",
                "draft.head.rope_scaling.rope_type": "yarn",
                "draft.head.rope_scaling.factor": "32",
                "draft.head.feature_layers": "2, 16, 29",
                "draft.head.norm_before_residual": "true",
            },
        )
        assert preset.draft.head is not None
        assert preset.draft.head.rope_theta == 10000.0
        assert preset.draft.head.rope_scaling == {"rope_type": "yarn", "factor": 32.0}
        assert preset.draft.head.feature_layers == (2, 16, 29)
        assert preset.with_overrides({"draft.head.feature_layers": "[2, 16, 29]"}) == preset
        cleared = preset.with_overrides({"draft.head.feature_layers": "null"})
        assert "feature_layers: null" in cleared.to_yaml()
        assert preset.draft.is_head
        assert preset.draft.has_weights
        assert not preset.with_overrides({"draft.kind": "lookup"}).draft.has_weights

    def test_documentation_does_not_change_the_fingerprint(self) -> None:
        """Two runs of the same settings are comparable, whatever was written about them since."""
        preset, changes = load_preset("pocket"), {"requires.gated": True, "paper": [PAPER]}
        assert preset.with_overrides(changes).fingerprint == preset.fingerprint

    def test_the_fingerprint_tells_settings_apart(self) -> None:
        preset = load_preset("pocket")
        assert preset.fingerprint == load_preset("pocket").fingerprint
        assert preset.fingerprint != preset.with_overrides({"tree.nodes": 9}).fingerprint


class TestInStepWithTheCore:
    """Modes and parts are the core's: a preset takes each, and nothing else."""

    def test_modes_and_parts(self) -> None:
        assert set(typing.get_args(Mode)) == set(MODES)
        for part, kind in typing.get_type_hints(Parts).items():
            for value in typing.get_args(kind):
                preset = load_preset("vicuna-7b", {"draft.kind": "lm", "mode": "spec"})
                if part == "drafter" and value in ("eagle", "eagle3"):
                    continue  # must be the draft's kind
                assert dict(preset.with_overrides({f"parts.{part}": value}).parts) == {part: value}
            with pytest.raises(UsageError, match=f"parts.{part}"):
                load_preset("pocket", {f"parts.{part}": "other"})

    def test_keys_and_schema_name_every_setting(self) -> None:
        assert {"tree.nodes", "sampling.seed", "parts.drafter", "schema"} <= set(preset_keys())
        schema = preset_json_schema()
        for entry in available_presets():
            data = yaml.safe_load(entry.path.read_text(encoding="utf-8"))
            jsonschema.validate(data, schema)
            if not data.get("extends"):  # one that does may leave out anything but its name
                data_alone = {k: v for k, v in data.items() if k != "draft"}
                assert not jsonschema.Draft202012Validator(schema).is_valid(data_alone)
            for group in ("tree", "parts", "target"):
                wrong = data.get(group, {}) | {"x": 1}
                with pytest.raises(jsonschema.ValidationError):
                    jsonschema.validate(data | {group: wrong}, schema)
