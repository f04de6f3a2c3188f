"""A causal language model that emits several tokens per forward.

Paper: HAMburger (arXiv 2505.20438); the parts are described in `modules.py`.  The base stays as
it is, frozen; `forward(input_ids)` is the base, so scoring works unchanged.  The grafts around it
are `micro` and `stop`, which draft, and where a step's tokens are merged, as published, `embedder`.

Shapes: B rows, L tokens, S slots, K tokens of a segment, N segments to predict, J tokens after
the first of their segments, Q columns, T taps, D hidden size, V vocabulary, M micro vocabulary.
"""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lightstride.errors import ModelError
from lightstride.generate.batch.masks import slot_positions
from lightstride.generate.batch.packed import packed_product
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import fingerprint
from lightstride.models.head_logits import head_logits
from lightstride.smash.model.config import SmashConfig
from lightstride.smash.model.modules import Embedder, MicroCache, MicroDecoder, stop_head
from lightstride.smash.model.reading import read_states
from lightstride.smash.model.slots import SlotBatch, causal_mask, slot_tokens

IGNORED = -100
"""Answer of `micro_ids` outside the micro vocabulary; cross entropy skips it."""


class SmashBody(PreTrainedModel):
    """A base model and the grafts that let it take macro steps: all that is computed with them."""

    config_class = SmashConfig
    config: SmashConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = False

    micro_vocabulary_M: Tensor | None
    micro_head_MD: Tensor
    micro_bias_M: Tensor | None

    def __init__(self, config: SmashConfig, base: PreTrainedModel) -> None:
        super().__init__(config)
        check_base(config, base)
        self.base = base.requires_grad_(False)
        self.embedder = build_embedder(config)
        self.micro = build_micro(config)
        self.stop = stop_head(config.stop_head, config.hidden_size)
        vocabulary_M = None
        if config.micro_vocab_size is not None:
            vocabulary_M = torch.arange(config.micro_vocab_size, device=base.device)
        self.register_buffer("micro_vocabulary_M", vocabulary_M)
        self.generation_config = copy.deepcopy(base.generation_config)
        self.all_tied_weights_keys: dict[str, str] = {}
        for graft in self.grafts():
            graft.to(device=base.device, dtype=base.dtype)
        self.retie_head()
        self.train(False)

    @property
    def taps(self) -> list[int]:
        """Which of the base's hidden states the micro decoder sees."""
        taps = self.config.taps
        assert taps is not None
        return taps

    def grafts(self) -> list[nn.Module]:
        """The modules that are ours, not the base's."""
        grafts: list[nn.Module] = [self.micro, self.stop]
        return grafts if self.embedder is None else [self.embedder, *grafts]

    @classmethod
    def graft(
        cls,
        base: PreTrainedModel,
        config: SmashConfig | None = None,
        *,
        name: str = "",
        micro_vocabulary: Tensor | None = None,
    ) -> Self:
        """New grafts on a base, by default thin ones, which only draft; `name` is where the base
        can be found."""
        geometry = adapter_for(base.config).geometry(base.config)
        config = config or SmashConfig.thin(base.config, geometry)
        config.base = name or config.base or base.name_or_path or ""
        config.base_fingerprint = fingerprint(base)
        if micro_vocabulary is not None:
            config.micro_vocab_size = len(micro_vocabulary)
        model = cls(config, base)
        if micro_vocabulary is not None:
            model.set_micro_vocabulary(micro_vocabulary)
        return model

    def set_micro_vocabulary(self, tokens_M: Tensor) -> None:
        """Let micro steps draft these tokens."""
        assert self.micro_vocabulary_M is not None
        assert tokens_M.shape == self.micro_vocabulary_M.shape
        self.micro_vocabulary_M = tokens_M.to(self.micro_vocabulary_M)
        self.retie_head()

    def retie_head(self) -> None:
        """Take the micro head's rows from the base's head, which it is tied to."""
        self.register_buffer("micro_bias_M", None, persistent=False)
        for name, rows in self.head_rows().items():
            self.register_buffer(name, rows, persistent=False)

    def head_rows(self) -> dict[str, Tensor]:
        """The rows of the base's head, and of its bias, that the micro head is made of."""
        head = self.base.get_output_embeddings()
        chosen = slice(None) if self.micro_vocabulary_M is None else self.micro_vocabulary_M
        rows = {"micro_head_MD": head.weight.detach()[chosen]}
        if head.bias is not None:
            rows["micro_bias_M"] = head.bias.detach()[chosen]
        return rows

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """The base model's own output: nothing is merged here."""
        output = self.base(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            output_hidden_states=output_hidden_states,
        )
        assert isinstance(output, CausalLMOutputWithPast)
        return output

    def embed(self, tokens: Tensor) -> Tensor:
        """The base's embeddings of tokens of any shape, one more dimension D."""
        embeddings = self.base.get_input_embeddings()(tokens)
        assert isinstance(embeddings, Tensor)
        return embeddings

    def merge(self, tokens_NK: Tensor, lengths_N: Tensor) -> Tensor:
        """One embedding a segment, shape (N, D)."""
        assert self.embedder is not None
        merged_ND = self.embedder(self.embed(tokens_NK), lengths_N)
        assert isinstance(merged_ND, Tensor)
        return merged_ND

    def first_micro_step(self, taps_NTD: Tensor, tokens_N: Tensor) -> tuple[Tensor, MicroCache]:
        """The vector that predicts token 2, given the first; shape (N, D), and a cache."""
        inputs = torch.cat([taps_NTD, self.embed(tokens_N)[:, None]], dim=1)
        outputs_N1D, cache = self.micro(inputs, None, 1)
        return outputs_N1D[:, 0], cache

    def next_micro_step(self, tokens_N: Tensor, cache: MicroCache) -> tuple[Tensor, MicroCache]:
        """The vector that predicts the token after `tokens`, and the longer cache."""
        outputs_N1D, cache = self.micro(self.embed(tokens_N)[:, None], cache)
        return outputs_N1D[:, 0], cache

    def base_logits(self, first_ND: Tensor) -> Tensor:
        """Logits of first tokens, over the whole vocabulary."""
        return self.finish_logits(self.base.get_output_embeddings()(first_ND))

    def micro_logits(self, later_JD: Tensor) -> Tensor:
        """Logits of later tokens, over the micro vocabulary, shape (J, M)."""
        if torch.is_inference_mode_enabled():
            multiply = packed_product(self, self.micro_head_MD, self.micro_bias_M)
            return self.finish_logits(multiply(later_JD))
        return self.finish_logits(
            nn.functional.linear(later_JD, self.micro_head_MD, self.micro_bias_M)
        )

    def stop_logits(self, vectors_ND: Tensor) -> Tensor:
        """Logits of "stop after the token this vector predicts", shape (N,)."""
        logits_N1 = self.stop(vectors_ND)
        assert isinstance(logits_N1, Tensor)
        return logits_N1[..., 0]

    def finish_logits(self, logits: Tensor) -> Tensor:
        """Logits as the base's own forward scales or limits them."""
        return head_logits(self.base.config, logits)

    def vocabulary_ids(self, micro_ids: Tensor) -> Tensor:
        """Tokens that ids of the micro vocabulary stand for."""
        return micro_ids if self.micro_vocabulary_M is None else self.micro_vocabulary_M[micro_ids]

    def micro_ids(self, tokens_J: Tensor) -> Tensor:
        """Ids in the micro vocabulary, IGNORED for tokens that are not in it."""
        if self.micro_vocabulary_M is None:
            return tokens_J
        ids_V = torch.full((self.config.vocab_size,), IGNORED, device=tokens_J.device)
        ids_V[self.micro_vocabulary_M] = torch.arange(
            len(self.micro_vocabulary_M), device=tokens_J.device
        )
        return ids_V[tokens_J]

    def read_packed(self, batch: SlotBatch) -> tuple[Tensor, ...]:
        """Hidden states at the taps, each (B, S, D), of rows whose segments are merged."""
        first_BS = slot_tokens(batch.tokens_BL, batch.lengths_BS, grid(batch.lengths_BS), 1).view(
            batch.lengths_BS.shape
        )
        embeddings_BSD = self.embed(first_BS)
        rows_N, slots_N = (batch.lengths_BS > 1).nonzero(as_tuple=True)
        if len(rows_N):
            width = self.config.max_segment
            tokens_NK = slot_tokens(batch.tokens_BL, batch.lengths_BS, (rows_N, slots_N), width)
            merged_ND = self.merge(tokens_NK, batch.lengths_BS[rows_N, slots_N])
            embeddings_BSD = embeddings_BSD.index_put((rows_N, slots_N), merged_ND)
        positions_BS = slot_positions(batch.lengths_BS, documents_BS=batch.documents_BS)
        sees_BSS = causal_mask(batch.lengths_BS, batch.documents_BS)
        return read_states(
            self.base, embeddings_BSD, positions_BS.clamp(min=0), sees_BSS, self.taps
        )

    def get_decoder(self) -> nn.Module:
        decoder = self.base.get_decoder()
        assert isinstance(decoder, nn.Module)
        return decoder

    def get_input_embeddings(self) -> nn.Module:
        embeddings = self.base.get_input_embeddings()
        assert isinstance(embeddings, nn.Module)
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        head = self.base.get_output_embeddings()
        assert isinstance(head, nn.Module)
        return head


def build_embedder(config: SmashConfig) -> Embedder | None:
    """An embedder of the configured sizes; None where nothing is merged."""
    if config.embedder_heads is None:
        return None
    return Embedder(
        hidden_size=config.hidden_size,
        num_heads=config.embedder_heads,
        max_segment=config.max_segment,
    )


def build_micro(config: SmashConfig) -> MicroDecoder:
    """A micro decoder of the configured sizes."""
    assert config.taps is not None
    assert config.micro_rope is not None
    return MicroDecoder(
        hidden_size=config.hidden_size,
        num_layers=config.micro_layers,
        num_heads=config.micro_heads,
        num_kv_heads=config.micro_kv_heads,
        head_dim=config.micro_head_dim,
        num_channels=config.micro_channels,
        num_slots=len(config.taps) + config.max_segment,
        rope=config.micro_rope,
        epsilon=config.micro_epsilon,
        has_norm=config.micro_norm,
    )


def grid(lengths_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Row and slot indices of all slots."""
    rows_BS, slots_BS = torch.meshgrid(
        torch.arange(lengths_BS.shape[0], device=lengths_BS.device),
        torch.arange(lengths_BS.shape[1], device=lengths_BS.device),
        indexing="ij",
    )
    return rows_BS.flatten(), slots_BS.flatten()


def check_base(config: SmashConfig, base: PreTrainedModel) -> None:
    """Refuse a base that these grafts were not made for."""
    given = fingerprint(base)
    if config.base_fingerprint and given != config.base_fingerprint:
        raise ModelError(
            f"the grafts belong to the base {config.base!r} ({config.base_fingerprint}); "
            f"{base.name_or_path or 'the given model'!r} is another ({given})"
        )
    width = next(base.get_input_embeddings().parameters()).shape[1]
    if width != base.config.hidden_size:
        raise ModelError(
            f"embeddings of {width} values for a hidden size of {base.config.hidden_size}: "
            "a model that projects its embeddings cannot be smashed"
        )


def choose_vocabulary(counts_V: Tensor, size: int, always: Sequence[int]) -> Tensor:
    """The `size` most frequent tokens, end tokens always among them; ties go to lower ids."""
    ranked_V = counts_V.clone().double()
    ranked_V[list(always)] = torch.inf
    best_M = ranked_V.sort(descending=True, stable=True).indices[:size]
    return best_M.sort().values
