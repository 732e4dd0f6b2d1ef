"""Text generation with a run's language model: loads model, tokenizer and chat template from its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tauon.artifacts import Checkpoint
from tauon.data import Message, PromptEncoder, Tokenizer
from tauon.errors import DataError, RunError
from tauon.generate import Sampling, generate
from tauon.models import GPT
from tauon.stages.context import Context
from tauon.stages.load import load_model

__all__ = ["TextGenerator"]


class TextGenerator:
    """The language model of a run, ready to generate. `RunError` if the run trained another kind of model.

    It computes in float32, the precision of the stored weights, also where training multiplied in bf16: so does the engine of `tauon serve`, and
    greedy texts of both are equal.
    """

    def __init__(self, ctx: Context, checkpoint: Checkpoint | None = None) -> None:
        """`checkpoint`: default: the run's last."""
        checkpoint, recipe = checkpoint or ctx.final_checkpoint, ctx.recipe
        self.name, self.version = recipe.name, checkpoint.hash[:12]
        model, _ = load_model(checkpoint, recipe, weights=recipe.evaluate.weights)
        if not isinstance(model, GPT):
            folder = ctx.run.folder
            raise RunError(f"{folder} trained a {recipe.model.kind_}, which cannot generate text. Use a run with task language-modelling.")
        self.model = model
        self.preprocess: dict[str, Any] = checkpoint.state["preprocess"]
        self.tokenizer = Tokenizer.from_json(self.preprocess["tokenizer"])
        self._encode: PromptEncoder | None = None

    def answers(self, *, plain: bool) -> bool:
        """Return whether the model answers a prompt (a chat model) instead of continuing it."""
        return self.preprocess.get("kind") in ("chat", "pairs") and not plain

    def write(
        self, prompt: str, *, max_tokens: int = 200, samples: int = 1, sampling: Sampling | None = None, plain: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> list[str]:  # fmt: skip
        """Return the generated texts, one for each sample.

        Args:
            prompt: a text to continue, or a question to a chat model.
            max_tokens: most tokens to generate.
            samples: number of texts.
            sampling: how tokens are sampled; default: temperature 0.8, top_p 0.95.
            plain: continue the prompt as plain text, without the chat template.
            on_text: called with each new piece of text, if `samples` is 1.

        Raises:
            DataError: the prompt of a chat model is empty.
        """
        ids, stops = self.begin(prompt, plain)
        tokens: list[int] = []
        shown = ""

        def stream(_: int, token: int) -> None:
            nonlocal shown
            tokens.append(token)
            text = self.tokenizer.decode(tokens)
            if not text.endswith("�") and on_text is not None:  # an incomplete character: wait for the rest
                on_text(text[len(shown) :])
                shown = text

        live = samples == 1 and on_text is not None
        out = generate(
            self.model, ids, max_tokens=max_tokens, samples=samples, sampling=sampling or Sampling(top_p=0.95), stop_id=stops,
            on_token=stream if live else None,
        )  # fmt: skip
        texts = [self.tokenizer.decode(new) for new in out]
        if live and on_text is not None:
            on_text(texts[0][len(shown) :])
        return texts

    def begin(self, text: str, plain: bool = False) -> tuple[list[int], set[int]]:
        """Return (tokens of the prompt, tokens that end the text)."""
        stops = {self.tokenizer.bos, self.tokenizer.eos}
        if not self.answers(plain=plain):
            return [self.tokenizer.bos, *self.tokenizer.encode(text).tolist()], stops
        if not text.strip():
            raise DataError(
                "this is a chat model, and the prompt is empty. Give a question with --prompt, or generate plain text with --plain."
            )
        return self.begin_chat([Message("user", text)])

    def begin_chat(self, messages: Sequence[Message]) -> tuple[list[int], set[int]]:
        """Return (tokens of the conversation, tokens that end the answer)."""
        if self._encode is None:
            self._encode = PromptEncoder(self.preprocess)
        return self._encode(messages), {self.tokenizer.bos, self.tokenizer.eos, self._encode.end}
