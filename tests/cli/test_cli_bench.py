"""``specx bench`` on a tiny pair: what it prints, writes and refuses, and how it resumes."""

import csv
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from specx.cli.help import read_schema
from specx.cli.main import run
from tests.cli.support import Outcome, Workplace, process, specx
from tests.helpers import story

pytestmark = pytest.mark.usefixtures("quick_floors")
Bench = Callable[..., Outcome]

#: ``python -m specx`` with what ``quick_floors`` does.
QUICK = """\
from specx.bench import roofline as floor
from specx.cli.main import main
floor._BANDWIDTH_S, floor._RATE_S, floor._PRODUCTS = 0.02, 0.02, floor._PRODUCTS[:1]
main()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three documents, and lines that are none."""
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    rows = [json.dumps({"text": story(400, seed=seed), "name": f"story-{seed}"}) for seed in (1, 2)]
    rows += ["{broken", json.dumps({"title": "no text"}), json.dumps({"text": "short"})]
    rows.append(json.dumps({"text": story(400, seed=3)}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def bench(cli: Callable[..., Outcome], workplace: Workplace, data: Path) -> Bench:
    """``bench("--reps", "2")`` with a small plan around it."""

    def call(*words: str | Path, **settings: Any) -> Outcome:
        return cli(*_plan(workplace, data), *words, **settings)

    return call


def _plan(workplace: Workplace, data: Path) -> tuple[str | Path, ...]:
    return (
        *("bench", "-m", workplace.preset, "--data", data, "--lengths", "96,160"),
        *("-n", "6", "--samples", "2"),
    )


def _started(words: tuple[str | Path, ...], state: Path) -> "subprocess.Popen[str]":
    """A bench as a process of its own that tells of every cell."""
    return subprocess.Popen(
        [specx()[0], "-c", QUICK, *map(str, words), "-v"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SPECX_STATE_DIR": str(state)},
        text=True,
    )


@pytest.fixture
def journals() -> Callable[[], list[Path]]:
    return lambda: sorted(Path(os.environ["SPECX_STATE_DIR"], "bench").glob("*.jsonl"))


def test_a_pipe_gets_markdown_and_stderr_the_rest(bench: Bench) -> None:
    done = bench()
    assert done.code == 0, done.err
    assert done.out.startswith("# specx bench: tiny\n\n- floor 96:")
    assert "| specx |" in done.out
    assert "2/2" in done.out
    assert "\x1b" not in done.out
    assert done.out.endswith("\n")
    assert "journal: " in done.err


def test_json_fits_its_schema_and_holds_every_sample(bench: Bench) -> None:
    done = bench("-o", "json", "--reps", "2", "--modes", "plain,specx,lookup,standard+window,auto")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    schema = json.loads(read_schema("bench"))
    jsonschema.Draft202012Validator(schema).validate(found)
    assert found["finished"]
    assert len(found["cells"]) == 2 * 5
    assert all(len(cell["samples"]) == 4 for cell in found["cells"])
    assert all(cell["summary"]["equal"] is None for cell in found["cells"] if _is_plain(cell))
    equal = [cell["summary"]["equal"] for cell in found["cells"] if not _is_plain(cell)]
    assert equal == [{"checked": 4, "equal": 4}] * 8
    reasons = [row["reason"] for row in found["plan"]["data"]["skipped"]]
    assert len(reasons) >= 2, "bad lines are counted, with their numbers"
    assert {cell["summary"]["prompt_tokens"] for cell in found["cells"]} == {96, 160}


def _is_plain(cell: dict[str, Any]) -> bool:
    return bool(cell["mode"] == "plain")


def test_witnesses_give_the_same_text(bench: Bench) -> None:
    done = bench("-o", "json", "--modes", "plain,witnesses", "--lengths", "96", "--samples", "1")
    assert done.code == 0, done.err
    rows = {cell["mode"]: cell["summary"] for cell in json.loads(done.out)["cells"]}
    assert rows["hf"]["equal"] == {"checked": 1, "equal": 1}
    assert rows["hf-assisted"]["equal"] == {"checked": 1, "equal": 1}
    assert rows["hf"]["profile_ms"] is None


def test_every_export_is_written_and_can_be_shown_again(bench: Bench, cli, tmp_path: Path) -> None:
    names = [tmp_path / f"run{suffix}" for suffix in (".json", ".jsonl", ".csv", ".md", ".html")]
    drawn = [tmp_path / "run.png", tmp_path / "run.svg"]
    words = [word for name in (*names, *drawn) for word in ("--export", name)]
    done = bench(*words, "--profile")
    assert done.code == 0, done.err
    assert all(name.stat().st_size > 100 for name in (*names, *drawn))
    assert not list(tmp_path.glob(".specx-*"))
    assert (tmp_path / "run.md").read_text("utf-8") == done.out
    assert len(list(csv.reader(io.StringIO((tmp_path / "run.csv").read_text("utf-8"))))) == 13
    again = cli("bench", "--from", tmp_path / "run.json", "--profile")
    assert again.code == 0
    assert again.out == done.out


def test_an_export_that_exists_is_refused_before_anything_runs(bench, journals, tmp_path) -> None:
    (tmp_path / "old.json").write_text("precious")
    before = journals()
    done = bench("--export", tmp_path / "old.json")
    assert done.code == 2
    assert "the file exists" in done.err
    assert "--force" in done.err
    assert (tmp_path / "old.json").read_text() == "precious"
    assert journals() == before
    assert bench("--export", tmp_path / "old.json", "--force").code == 0
    assert json.loads((tmp_path / "old.json").read_text())["schema"] == "specx.bench/1"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--lengths", "16k..1k"), 2, "^"),
        (("--lengths", "1g"), 2, "^"),
        (("--modes", "plian"), 2, "plain"),
        (("--modes", "specx+windw"), 2, "window"),
        (("--baseline", "nothing"), 2, "unknown mode"),
        (("-m", "poket"), 2, "did you mean pocket"),
        (("--samples", "0"), 2, "--samples must be ≥ 1"),
        (("-n", "1"), 2, "--max-tokens must be ≥ 2"),
        (("--budget", "soon"), 2, "--budget takes a time"),
        (("--fail-if", "speed<1"), 2, "speedup"),
        (("--resume", "nowhere.jsonl"), 2, "cannot resume"),
        (("--from", "nowhere.json"), 3, "nowhere.json"),
        (("--export", "run.pdf"), 2, "the suffix says the format"),
        (("--export", "nowhere/run.json"), 2, "there is no directory"),
        (("--data", "nowhere.jsonl"), 3, "nowhere.jsonl"),
        (("--lengths", "64k"), 7, "--skip-unfit"),
        (("--lengths", "3000"), 3, "no document"),
        (("--modes", "hf", "-t", "0.5"), 2, "witnesses"),
    ],
)
def test_bad_input_is_refused_with_a_way_out(bench: Bench, words, code: int, says: str) -> None:
    done = bench(*words)
    assert done.code == code, done.err
    assert says in done.err
    assert done.out == ""
    assert "Traceback" not in done.err


def test_conditions_decide_the_exit_code(bench: Bench) -> None:
    assert bench("--fail-if", "speedup<0.000001").code == 0
    done = bench("--fail-if", "tokens_per_step<100@specx@96")
    assert done.code == 9
    assert "--fail-if: tokens_per_step" in done.err
    assert bench("--fail-if", "speedup<1@auto").code == 2, "no such mode was measured"


def test_a_budget_ends_cleanly_and_marks_what_is_missing(bench: Bench) -> None:
    done = bench("-o", "json", "--budget", "0.001s")
    assert done.code == 10
    assert "nothing was measured" in done.err
    assert "--resume" in done.err


def test_a_dry_run_runs_nothing(bench: Bench, journals) -> None:
    before = journals()
    done = bench("--dry-run")
    assert done.code == 0, done.err
    assert "18 runs: 3 modes" in done.out
    assert "time: at least" in done.out
    assert journals() == before
    found = json.loads(bench("--dry-run", "-o", "json").out)
    assert found["schema"] == "specx.bench-plan/1"


def test_a_resumed_journal_of_another_configuration_is_refused(bench, journals) -> None:
    assert bench().code == 0
    done = bench("--resume", journals()[-1], "--reps", "2")
    assert done.code == 2
    assert "another bench" in done.err
    assert "reps: 1 → 2" in done.err


def test_a_finished_journal_resumes_to_the_same_result(bench, journals) -> None:
    first = bench("-o", "json")
    again = bench("-o", "json", "--resume", "last")
    assert again.code == 0, again.err
    assert json.loads(again.out)["cells"] == json.loads(first.out)["cells"]


def test_killed_in_mid_run_and_resumed_gives_the_same_cells(
    bench, workplace: Workplace, data: Path, tmp_path: Path
) -> None:
    """SIGKILL leaves no time to tidy up: what is on disk is all there is."""
    state = tmp_path / "state"
    words = (*_plan(workplace, data), "--reps", "3", "-o", "json")
    running = _started(words, state)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("7 of 36"):
            running.send_signal(signal.SIGKILL)
            break
    running.wait(timeout=60)
    (journal,) = (state / "bench").glob("*.jsonl")
    kept = [json.loads(line) for line in journal.read_bytes().splitlines(keepends=True)[:-1]]
    kept = [line["sample"] for line in kept if line["kind"] == "sample"]
    assert 6 <= len(kept) < 36
    done = bench("--reps", "3", "-o", "json", "--resume", journal)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["finished"]
    cells = [sample["cell"] for cell in found["cells"] for sample in cell["samples"]]
    assert len(cells) == 36
    assert len({json.dumps(cell) for cell in cells}) == 36
    samples = {json.dumps(s["cell"]): s for cell in found["cells"] for s in cell["samples"]}
    for sample in kept:
        now = samples[json.dumps(sample["cell"])]
        assert now["decode_s"] == sample["decode_s"], "what was measured is not measured again"


def test_interrupted_it_shows_what_there_is_and_can_be_resumed(
    workplace: Workplace, data: Path, tmp_path: Path
) -> None:
    running = _started((*_plan(workplace, data), "--reps", "30"), tmp_path)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("5 of 360"):
            running.send_signal(signal.SIGINT)
            break
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "# specx bench: tiny" in out
    assert "missing" in out
    assert "--resume" in err


def test_two_presets_are_measured_side_by_side(bench, workplace: Workplace, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    text = workplace.preset.read_text(encoding="utf-8")
    other.write_text(text.replace("name: tiny", "name: other"), encoding="utf-8")
    done = bench("-m", other, "-o", "json", "--samples", "1", "--modes", "specx")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [(cell["preset"], cell["mode"]) for cell in found["cells"]] == [
        *[("tiny", "plain"), ("tiny", "specx")] * 2,
        *[("other", "plain"), ("other", "specx")] * 2,
    ]
    assert "plain is measured too" in done.err


def test_help_fits_a_screen_and_loads_no_torch() -> None:
    done = process("bench", "--help", env={"COLUMNS": "80"})
    lines = done.stdout.decode().splitlines()
    assert len(lines) <= 46
    assert max(map(len, lines)) <= 80
    began = time.perf_counter()
    code = "import sys; from specx.cli.main import run; run(['bench', '-h']); " + (
        "assert not {'torch', 'numpy', 'matplotlib', 'plotext'} & set(sys.modules)"
    )
    subprocess.run([specx()[0], "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - began < 30


def test_plot_is_text(bench: Bench) -> None:
    done = bench("--plot")
    assert done.code == 0, done.err
    assert "```" in done.out
    assert "\x1b" not in done.out


def test_what_is_gone_says_where_it_went(cli) -> None:
    done = cli("bench", "--micro", "-m", "pocket")
    assert (done.code, done.out) == (2, "")
    assert "tools/profile_step.py" in done.err


def test_unknown_option_is_a_usage_error() -> None:
    assert run(["bench", "--lenghts", "1k"]) == 2
