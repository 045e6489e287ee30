"""Documents and wishes as prompts, by a preset's pattern and its target's chat template.

In: a tokenizer, a preset's prompt settings, texts. Out: token ids. It does not know models, so a
plan can be made without reading weights.
"""

from transformers import PreTrainedTokenizerBase

from specx.preset.sections import PromptSpec
from specx.prompts import Prompt, count_tokens, encode_prompt


class Prompter:
    """Makes prompts for one target."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSpec) -> None:
        self.tokenizer, self._settings = tokenizer, settings

    def prompt(
        self,
        document: str,
        instruction: str | None = None,
        *,
        system: str | None = None,
        raw: bool = False,
    ) -> Prompt:
        """Token ids of a request about ``document``.

        ``instruction`` None asks for the preset's summary. An empty document leaves the
        instruction alone; ``raw`` continues the document verbatim, without a chat template.
        """
        settings = self._settings
        if raw:
            content = "\n\n".join(text for text in (document, instruction) if text)
        else:
            wish = settings.summarize if instruction is None else instruction
            content = _fill(settings.ask, document, wish) if document else wish
        template = not raw and settings.template == "auto"
        tokens = encode_prompt(self.tokenizer, content, system=system, use_template=template)
        return Prompt(tuple(tokens), count_tokens(self.tokenizer, document))


def _fill(pattern: str, document: str, instruction: str) -> str:
    """Put both into the preset's pattern literally: neither is a format string."""
    head, mark, tail = pattern.partition("{document}")
    filled = [part.replace("{instruction}", instruction) for part in (head, tail)]
    return filled[0] + (document if mark else "") + filled[1]
