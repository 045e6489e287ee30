"""A bench in which every name that a file could bring tries to get out of its place."""

from typing import Any

from specx.bench.schema import Bench
from tests.bench.objects import bench_object, edited

NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script></style>",
    "\x1b[31mred\x1b[0m \u202e<!-- \x1b]8;;http://x\x07link\x1b]8;;\x07 \x9b1m",
    "a|b\nc\r\td \u2066 \u200b \u2028",
    "' onmouseover='alert(3) `code` *bold* _it_ ![i](http://x/y.png) [l](x) \\ ~~s~~ &lt;b&gt;",
)
PRESET = NAMES[1]
#: The first 40 characters of what is left of it are shown.
MODE = "$\\frac{<script>&|\x1b[31m _x` ![i](x) '=b'"


def hostile_bench() -> Bench:
    usual = bench_object(warnings=[("x", name) for name in NAMES], documents=len(NAMES))
    return edited(usual, _rename)


def _rename(bench: dict[str, Any]) -> None:
    plan = bench["plan"]
    plan["presets"][0] |= {"name": PRESET, "kernels": NAMES[4]}
    plan["presets"][0]["draft"]["repo"] = NAMES[3]
    plan["modes"] = [*plan["modes"][:-1], MODE]
    plan["data"]["name"] = NAMES[5]
    bench["specx"]["version"] = bench["env"]["os"] = NAMES[2]
    bench["env"]["cpu"] = NAMES[4] + NAMES[3]
    for document, name in zip(plan["data"]["documents"], NAMES, strict=True):
        document["name"] = name
    for item in (*bench["cells"], *bench["floors"]):
        item["preset"] = PRESET
    for cell in bench["cells"]:
        cell["mode"] = MODE if cell["mode"] == "specx" else cell["mode"]
        for run in cell["samples"]:
            run["cell"] |= {"preset": PRESET, "mode": cell["mode"]}
            run["mode_reason"] = NAMES[3]
