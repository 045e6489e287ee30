"""Train the tokenizer of the bundled pair: byte-level BPE, 8192 tokens, single digits.

In: the corpus files. Out: `tokenizer.json` and `tokenizer_config.json` in Hugging Face's form.
Run as `python -m training.tokenizer --corpus DIR --out specx/pocket/target`.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.corpus import read_rows
from training.text import clean

VOCABULARY = 8192
SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", *(f"<|reserved{i}|>" for i in range(4)))
BOS, EOS, USER, ASSISTANT = range(4)

# Words take one space before them, digits stand alone, and a run of line breaks is one piece,
# so that no piece depends on what follows a sentence.
SPLIT = (
    r"'(?:[sdmt]|ll|ve|re)(?!\p{L})| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# A system message has no marker of its own: it opens the first user turn.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ '<|user|>' + ns.system + message['content'] }}{% set ns.system = '' %}"
    "{% else %}{{ '<|assistant|>' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def sample(corpus: Path, chars: int) -> Iterator[str]:
    """Up to `chars` characters of text, shared out evenly over the categories."""
    rows = [row for row in read_rows(corpus) if row.kind != "abstract_tldr"]
    left: dict[str, int] = defaultdict(lambda: chars // len({row.category for row in rows}))
    for row in sorted(rows, key=lambda row: row.key):
        text = clean(row.text)[: min(60_000, left[row.category])]
        left[row.category] -= len(text)
        if text:
            yield text
    for run in (" ", "-", "=", "_", ".", "*"):  # tables and rulers, which the corpus lost
        yield from ("x" + run * 33 + "\n" for _ in range(200_000))


def train(corpus: Path, chars: int) -> Tokenizer:
    """The trained tokenizer. It adds no special token by itself: the chat template does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(corpus, chars), trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write both files of the Hugging Face form into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "pad_token": SPECIAL[EOS],
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Command line: train on `--corpus`, save into `--out`."""
    parser = argparse.ArgumentParser(description="Train the tokenizer of the pocket pair.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with *.jsonl.zst")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chars", type=int, default=60_000_000, help="characters to learn from")
    arguments = parser.parse_args()
    save(train(arguments.corpus, arguments.chars), arguments.out)


if __name__ == "__main__":
    main()
