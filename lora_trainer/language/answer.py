"""Generates answers, greedily: the same model gives the same answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lora_trainer.language.tokens import ChatTokenizer
from lora_trainer.training.loop import Abandoned
from lora_trainer.training.validation import evaluating


def answer(
    model: Any,
    tokenizer: ChatTokenizer,
    question: str,
    max_tokens: int,
    stop_asked: Callable[[], bool] = lambda: False,
) -> str:
    """The model's answer, of at most max_tokens tokens, and within the model's context length.
    Raises Abandoned once `stop_asked`.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stop(StoppingCriteria):  # type: ignore[no-any-unimported,misc,unused-ignore]
        def __call__(self, ids: Any, scores: Any, **more: Any) -> Any:
            return torch.full((len(ids),), stop_asked(), device=ids.device)

    prompt = torch.tensor([tokenizer.prompt_ids(question)], device=model.device)
    with torch.no_grad(), evaluating([model]):
        tokens = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=min(max_tokens, _room(model, prompt.shape[1]) or max_tokens),
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=list(tokenizer.stop_ids) or None,
            pad_token_id=tokenizer.pad_id,
            stopping_criteria=StoppingCriteriaList([Stop()]),
        )
    if stop_asked():
        raise Abandoned
    return tokenizer.decode(tokens[0, prompt.shape[1] :].tolist())


def _room(model: Any, used: int) -> int | None:
    """Positions left after `used` tokens, at least 1; None where the model names no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return max(1, positions - used) if isinstance(positions, int) else None
