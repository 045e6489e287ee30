"""Repositories as ``tests/data/recorded`` knows them, with tokenizers of the real size beside the
configs: the real special tokens under their real ids, and a made-up text for every other id.

A pair check compares ids and texts, so that is what these have; they cannot read a document."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

import specx

BUNDLED = Path(specx.__file__).parent / "pocket"
CONFIGS = Path(__file__).parent / "data" / "recorded"


@dataclass(frozen=True, slots=True)
class Kind:
    """A family's tokenizer: tokens in all, special ones by id, BOS and EOS, its chat form."""

    tokens: int
    special: dict[int, str]
    bos: int | None
    eos: int
    adds_bos: bool
    template: str | None


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_R1 = (
    "{{ bos_token }}{% for m in messages %}<｜User｜>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
_QWEN = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"}
_LLAMA3_IDS = {
    128000: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    128006: "<|start_header_id|>",
    128007: "<|end_header_id|>",
    128008: "<|eom_id|>",
    128009: "<|eot_id|>",
}
_R1_IDS = {
    128000: "<｜begin▁of▁sentence｜>",
    128001: "<｜end▁of▁sentence｜>",
    128011: "<｜User｜>",
    128012: "<｜Assistant｜>",
}
LLAMA2 = Kind(32000, {0: "<unk>", 1: "<s>", 2: "</s>"}, 1, 2, True, None)
LLAMA3 = Kind(128256, _LLAMA3_IDS, 128000, 128009, True, _LLAMA3)
R1 = Kind(128256, _R1_IDS, 128000, 128001, True, _R1)
QWEN25 = Kind(151665, _QWEN, None, 151645, False, _CHATML)
QWEN3 = Kind(151669, _QWEN, None, 151645, False, _CHATML)
SMOLLM2 = Kind(
    49152, {0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>"}, 1, 2, False, _CHATML
)
_KINDS = {
    "lmsys__": LLAMA2,
    "double7__": LLAMA2,
    "JackFram__": LLAMA2,
    "meta-llama__": LLAMA3,
    "deepseek-ai__": R1,
    "Qwen__Qwen2.5": QWEN25,
    "Qwen__Qwen3": QWEN3,
    "HuggingFaceTB__": SMOLLM2,
}


def build(directory: Path) -> Path:
    """All recorded repositories below ``directory``, tokenizers included where they have one."""
    made: dict[str, Path] = {}
    for source in sorted(CONFIGS.iterdir()):
        owner, _, name = source.name.partition("__")
        is_bundled = owner == "pocket" and (BUNDLED / name / "config.json").is_file()
        if is_bundled or not source.is_dir():
            continue
        folder = directory / source.name
        folder.mkdir(parents=True)
        shutil.copy(source / "config.json", folder)
        start = next((name for name in _KINDS if source.name.startswith(name)), None)
        if start is None:  # heads have no tokenizer
            continue
        if start not in made:
            made[start] = directory / "tokenizers" / start
            save_tokenizer(_KINDS[start], made[start])
        for file in made[start].iterdir():
            (folder / file.name).hardlink_to(file)
    return directory


def save_tokenizer(kind: Kind, folder: Path) -> None:
    """Write a word-level tokenizer with the ids of ``kind``, as a checkpoint has it."""
    texts = {i: kind.special.get(i, f"w{i}") for i in range(kind.tokens)}
    unknown = texts[3]
    inner = Tokenizer(models.WordLevel({text: i for i, text in texts.items()}, unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens([AddedToken(text, special=True) for text in kind.special.values()])
    if kind.adds_bos and kind.bos is not None:
        bos = texts[kind.bos]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, kind.bos)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": None if kind.bos is None else texts[kind.bos],
        "eos_token": texts[kind.eos],
        "chat_template": kind.template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
