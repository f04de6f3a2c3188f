"""The smashed model as transformers knows it: saved, opened, registered, and with `generate`.

`model.generate(...)` answers in macro steps: transformers prepares processors, criteria and
streamer, `_sample` hands them to our decoder.  Mode, confidence, lookup and tree are attributes of
the generation config (`model.generation_config.mode = "ar"`).

Shapes: B rows, L columns.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer

from lightstride.errors import ConfigError, ModelError
from lightstride.generate import Hooks, Settings
from lightstride.generate.decoder import ALL_AT_ONCE, add_all, run_steps
from lightstride.generate.session import Processor, Stopper
from lightstride.models.end_tokens import end_tokens
from lightstride.models.opening.explain import errors_explained
from lightstride.models.opening.load import load_model
from lightstride.smash.decode.decoder import smash_session
from lightstride.smash.model.body import SmashBody
from lightstride.smash.model.config import SmashConfig
from lightstride.smash.model.graft_files import (
    check_room,
    graft_state,
    read_config,
    read_grafts,
    write_grafts,
)

ADDED_BY_AUTO = ("adapter_kwargs", "_from_auto", "_commit_hash")


class SmashModel(SmashBody, GenerationMixin):
    """A base model and the grafts that let it take macro steps."""

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the grafts and the name of their base; the base itself is not stored again."""
        if is_main_process:
            own = graft_state(self)
            state = own if state_dict is None else {name: state_dict[name] for name in own}
            write_grafts(Path(save_directory), self.config, state)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str | Path,
        *,
        config: SmashConfig | None = None,
        base: PreTrainedModel | None = None,
        dtype: torch.dtype | str | None = None,
        device: str = "cpu",
        trust_remote_code: bool = False,
        **auto: object,
    ) -> Self:
        """The model in a folder or on the hub; `base` spares opening the base it names.

        Without a dtype, or with "auto", weights are float32.  `auto` holds what transformers' Auto
        classes add on their own; what a user set in it is refused.
        """
        unknown = sorted(
            name for name, value in auto.items() if value and name not in ADDED_BY_AUTO
        )
        if unknown:
            raise ModelError(f"a smashed model cannot be opened with {', '.join(unknown)}")
        config = read_config(str(source))
        if base is None:
            wanted = dtype if isinstance(dtype, torch.dtype) else torch.float32
            base = load_model(
                config.base, dtype=wanted, device=device, trust_remote_code=trust_remote_code
            )
        check_room(str(source), config)
        with errors_explained(str(source), "grafts"):
            model = cls(config, base)
        model.load_state_dict(read_grafts(str(source), graft_state(model)), strict=False)
        model.retie_head()
        return model

    def _prepare_cache_for_generation(self, *_: object) -> bool:
        """Prepare nothing: the decoder has a cache of its own."""
        return False

    def _sample(  # type: ignore[override]
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: BaseStreamer | None = None,
        **model_kwargs: object,
    ) -> Tensor:
        """Prompts with their answers, padded at the end, shape (B, L)."""
        check_request(generation_config, synced_gpus, model_kwargs)
        mask_BL = model_kwargs.get("attention_mask")
        prompts = unpadded(input_ids, mask_BL if isinstance(mask_BL, Tensor) else None)
        width = input_ids.shape[1]

        def hooks(row: int) -> Hooks:
            padded_L = input_ids[row]
            return Hooks(
                processing(logits_processor, padded_L), stopping(stopping_criteria, padded_L)
            )

        answers: list[list[int]] = [[] for _ in prompts]
        asked = settings(generation_config, width)
        session = smash_session(
            self, None, frozenset(end_tokens(generation_config)), limits=ALL_AT_ONCE
        )
        keys = add_all(session, prompts, asked, hooks)
        for step in run_steps(session, keys):
            for answer, tokens in zip(answers, step.tokens, strict=True):
                answer.extend(tokens)
            if streamer is not None and step.tokens[0]:
                streamer.put(torch.tensor(step.tokens[0]))
        if streamer is not None:
            streamer.end()
        longest = max(map(len, answers))
        filler = filler_token(generation_config)
        padded = [[*answer, *[filler] * (longest - len(answer))] for answer in answers]
        return torch.cat([input_ids, torch.tensor(padded).to(input_ids)], dim=-1)


def unpadded(input_ids_BL: Tensor, mask_BL: Tensor | None) -> list[list[int]]:
    """Prompts as lists, padding on the left taken off."""
    if mask_BL is None:
        rows: list[list[int]] = input_ids_BL.tolist()
        return rows
    return [ids[mask.bool()].tolist() for ids, mask in zip(input_ids_BL, mask_BL, strict=True)]


def filler_token(config: GenerationConfig) -> int:
    """Token to put behind answers that ended early."""
    named = config.pad_token_id if config.pad_token_id is not None else config.eos_token_id
    token = named[0] if isinstance(named, list) else named
    return token if isinstance(token, int) else 0


def processing(processors: LogitsProcessorList, padded_L: Tensor) -> Processor | None:
    """The processors as our hook: they see the row's prompt and answer up to the token at hand."""
    if not processors:
        return None

    def process(tokens: Sequence[int], logits_V: Tensor) -> Tensor:
        history = row_so_far(padded_L, tokens)
        scores = processors(cast(LongTensor, history), cast(FloatTensor, logits_V[None].float()))
        assert isinstance(scores, Tensor)
        return scores[0]

    return process


def stopping(criteria: StoppingCriteriaList, padded_L: Tensor) -> Stopper | None:
    """The criteria as our hook; length and end tokens are the session's own business.

    They see one row, after every token.
    """
    own = (MaxLengthCriteria, EosTokenCriteria)
    others = StoppingCriteriaList([c for c in criteria if not isinstance(c, own)])
    if not others:
        return None

    def stop(tokens: Sequence[int]) -> bool:
        return bool(others(row_so_far(padded_L, tokens), None).all())

    return stop


def row_so_far(padded_L: Tensor, tokens: Sequence[int]) -> Tensor:
    """A row's prompt, padding included, and its answer, shape (1, L)."""
    answer = torch.tensor(list(tokens), dtype=padded_L.dtype, device=padded_L.device)
    return torch.cat([padded_L, answer])[None]


def settings(config: GenerationConfig, width: int) -> Settings:
    """Ours for a prepared generation config; processors do the filtering."""
    return Settings(
        max_new_tokens=config.max_length - width,
        temperature=1.0 if config.do_sample else 0.0,
        seed=int(torch.randint(2**31, ())) if config.do_sample else 0,
        mode=getattr(config, "mode", None),
        confidence=getattr(config, "confidence", None),
        lookup=getattr(config, "lookup", Settings.lookup),
        tree=getattr(config, "tree", None),
    )


def check_request(
    config: GenerationConfig, synced_gpus: bool, model_kwargs: Mapping[str, object]
) -> None:
    """Refuse what this decoder would have to ignore."""
    cache = model_kwargs.get("past_key_values")
    refused = {
        "return_dict_in_generate": bool(config.return_dict_in_generate),
        "synced_gpus": synced_gpus,
        "past_key_values": cache is not None,
        "inputs_embeds": model_kwargs.get("inputs_embeds") is not None,
        "use_cache=False": config.use_cache is False,
    }
    for name, is_asked in refused.items():
        if is_asked:
            raise ConfigError(f"a smashed model cannot generate with {name}")


AutoConfig.register(SmashConfig.model_type, SmashConfig, exist_ok=True)
AutoModelForCausalLM.register(SmashConfig, SmashModel, exist_ok=True)
