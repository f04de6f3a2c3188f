"""Seeded toy models, small enough to check everything in seconds, and a byte tokenizer.

Every toy has two to four blocks, hidden size 32, fp32 weights in evaluation mode, and no weight
at its neutral value (biases are not zero, norms are not one), so that a forgotten one shows.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from helpers.expert_toys import tiny_qwen3_moe
from helpers.toy_base import BOS, EOS, PAD, VOCAB_SIZE, build

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def tiny_llama(
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 32,
    num_kv_heads: int = 2,
    queries_per_group: int = 2,
    head_dim: int = 8,
    num_channels: int = 48,
    vocab_size: int = VOCAB_SIZE,
    tied: bool = True,
    bias: bool = False,
) -> PreTrainedModel:
    """A Llama of a few thousand random weights; `bias` gives every linear layer one."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=num_channels,
        num_hidden_layers=num_layers,
        num_attention_heads=num_kv_heads * queries_per_group,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return build(LlamaForCausalLM, config, seed)


def tiny_mistral(
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 32,
    num_kv_heads: int = 2,
    queries_per_group: int = 2,
    head_dim: int = 8,
    num_channels: int = 48,
    vocab_size: int = VOCAB_SIZE,
    tied: bool = False,
    sliding_window: int | None = 16,
) -> PreTrainedModel:
    """A Mistral whose every layer sees only the last `sliding_window` tokens."""
    config = MistralConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=num_channels,
        num_hidden_layers=num_layers,
        num_attention_heads=num_kv_heads * queries_per_group,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        sliding_window=sliding_window,
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return build(MistralForCausalLM, config, seed)


def tiny_qwen2(
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 32,
    num_kv_heads: int = 2,
    queries_per_group: int = 2,
    num_channels: int = 48,
    vocab_size: int = VOCAB_SIZE,
    tied: bool = True,
) -> PreTrainedModel:
    """A Qwen2: biases on q, k and v; its head size is the hidden size over the heads."""
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=num_channels,
        num_hidden_layers=num_layers,
        num_attention_heads=num_kv_heads * queries_per_group,
        num_key_value_heads=num_kv_heads,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return build(Qwen2ForCausalLM, config, seed)


def tiny_qwen3(
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 32,
    num_kv_heads: int = 2,
    queries_per_group: int = 2,
    head_dim: int = 12,
    num_channels: int = 48,
    vocab_size: int = VOCAB_SIZE,
    tied: bool = True,
) -> PreTrainedModel:
    """A Qwen3: norms on q and k, and heads wider together than the hidden size."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=num_channels,
        num_hidden_layers=num_layers,
        num_attention_heads=num_kv_heads * queries_per_group,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return build(Qwen3ForCausalLM, config, seed)


def tiny_gemma3(
    *,
    seed: int = 0,
    num_layers: int = 3,
    hidden_size: int = 32,
    num_kv_heads: int = 2,
    queries_per_group: int = 2,
    head_dim: int = 12,
    num_channels: int = 48,
    vocab_size: int = VOCAB_SIZE,
    tied: bool = True,
    sliding_window: int = 16,
) -> PreTrainedModel:
    """A Gemma 3 (text): every layer but each third slides; four norms a block, scaled embedding."""
    config = Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=num_channels,
        num_hidden_layers=num_layers,
        num_attention_heads=num_kv_heads * queries_per_group,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
        tie_word_embeddings=tied,
        sliding_window=sliding_window,
        layer_types=[
            "sliding_attention" if (block + 1) % 3 else "full_attention"
            for block in range(num_layers)
        ],
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return build(Gemma3ForCausalLM, config, seed)


def tiny_phi3(
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 32,
    num_kv_heads: int = 2,
    queries_per_group: int = 2,
    num_channels: int = 48,
    vocab_size: int = VOCAB_SIZE,
    tied: bool = False,
    sliding_window: int | None = None,
) -> PreTrainedModel:
    """A Phi-3: q, k and v in one layer, gate and up in another."""
    config = Phi3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=num_channels,
        num_hidden_layers=num_layers,
        num_attention_heads=num_kv_heads * queries_per_group,
        num_key_value_heads=num_kv_heads,
        tie_word_embeddings=tied,
        sliding_window=sliding_window,
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return build(Phi3ForCausalLM, config, seed)


def tiny_granite(
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 32,
    num_kv_heads: int = 2,
    queries_per_group: int = 2,
    num_channels: int = 48,
    vocab_size: int = VOCAB_SIZE,
    tied: bool = True,
) -> PreTrainedModel:
    """A Granite: multipliers of embeddings, of what sites add, of scores and of logits."""
    config = GraniteConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=num_channels,
        num_hidden_layers=num_layers,
        num_attention_heads=num_kv_heads * queries_per_group,
        num_key_value_heads=num_kv_heads,
        tie_word_embeddings=tied,
        embedding_multiplier=3.0,
        residual_multiplier=0.6,
        attention_multiplier=0.25,
        logits_scaling=1.5,
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return build(GraniteForCausalLM, config, seed)


def tiny_olmo2(
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 32,
    num_kv_heads: int = 2,
    queries_per_group: int = 2,
    num_channels: int = 48,
    vocab_size: int = VOCAB_SIZE,
    tied: bool = False,
) -> PreTrainedModel:
    """An OLMo 2: norms after the sites, and over all heads of q and of k."""
    config = Olmo2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=num_channels,
        num_hidden_layers=num_layers,
        num_attention_heads=num_kv_heads * queries_per_group,
        num_key_value_heads=num_kv_heads,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return build(Olmo2ForCausalLM, config, seed)


def tiny_opt(
    *,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 32,
    num_heads: int = 4,
    num_channels: int = 48,
    vocab_size: int = VOCAB_SIZE,
    tied: bool = True,
    norm_before: bool = True,
) -> PreTrainedModel:
    """An OPT: biases everywhere, no gate, one query head a KV head, learned positions.

    Without `norm_before` it is of the kind of OPT-350m: norms after each site, and an embedding
    narrower than the hidden size.
    """
    config = OPTConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        ffn_dim=num_channels,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        tie_word_embeddings=tied,
        do_layer_norm_before=norm_before,
        word_embed_proj_dim=hidden_size if norm_before else hidden_size // 2,
        init_std=0.2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return build(OPTForCausalLM, config, seed)


TINY: Mapping[str, Callable[..., PreTrainedModel]] = MappingProxyType(
    {
        "llama": tiny_llama,
        "mistral": tiny_mistral,
        "qwen2": tiny_qwen2,
        "qwen3": tiny_qwen3,
        "qwen3_moe": tiny_qwen3_moe,
        "gemma3": tiny_gemma3,
        "phi3": tiny_phi3,
        "granite": tiny_granite,
        "olmo2": tiny_olmo2,
        "opt": tiny_opt,
    }
)
"""A toy of every family, by the family's name."""

CHANGED_ANSWERS = ("gemma3", "granite", "olmo2")
"""Families whose blocks do not add what a site answers as it is, but normalized or scaled."""


WITH_EXPERTS = ("qwen3_moe",)
"""Families that are opened, and saved, in a layout of ours whatever their widths."""


def byte_tokenizer(*, add_bos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are the text's UTF-8 bytes, with four special tokens after them."""
    letters = bytes_to_unicode()
    tokenizer = Tokenizer(models.BPE({letters[byte]: byte for byte in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<pad>", "<unk>"])
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="left",
    )
