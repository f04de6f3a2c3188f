"""Records what speculators' own `Eagle3DraftModel` computes, for `test_eagle3_files.py`.

    PYTHONPATH=DIR_WITH_SPECULATORS:tests:src python tests/helpers/record_speculators.py

writes, for each published kind, the folder that speculators itself saves and the logits of its
chains.  speculators 0.9.0 is pure Python; it and what it imports (hs-connectors, loguru,
pydantic-settings, typer) fit a folder of their own: `pip install --no-deps --target DIR …`.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from speculators import SpeculatorsConfig, VerifierConfig
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig

RECORDED = Path(__file__).parents[1] / "smash" / "model" / "recorded"
DRAFTED = (1, 3, 7, 8, 11, 20, 21, 30, 33, 35, 38, 39)
VOCAB_SIZE, SIZE, STEPS, TAPS = 40, 16, 3, (2, 4, 5)
LENGTHS = (9, 5)
"""Tokens of two packed documents."""
KINDS = {
    "plain": {},
    "norm-before-residual": {"norm_before_residual": True},
    "norm-before-fc": {"norm_before_fc": True},
    "eagle-3.1": {"fc_norm": True, "norm_output": True},
    "window": {"window": 4},
}


def config_of(
    norm_before_residual: bool = False, window: int | None = None, **switches: bool
) -> Eagle3SpeculatorConfig:
    """A small head in speculators' words."""
    layer = LlamaConfig(
        hidden_size=SIZE,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
        tie_word_embeddings=False,
        **({} if window is None else {"sliding_window": window}),
    )
    if window is not None:
        layer.layer_types = ["sliding_attention"]
    return Eagle3SpeculatorConfig(
        transformer_layer_config=layer,
        draft_vocab_size=len(DRAFTED),
        norm_before_residual=norm_before_residual,
        eagle_aux_hidden_state_layer_ids=list(TAPS),
        speculators_config=SpeculatorsConfig(
            algorithm="eagle3",
            proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=STEPS)],
            default_proposal_method="greedy",
            verifier=VerifierConfig(name_or_path="base", architectures=["LlamaForCausalLM"]),
        ),
        **switches,
    )


def seeded(config: Eagle3SpeculatorConfig) -> Eagle3DraftModel:
    """The model with seeded weights, none of them neutral."""
    torch.manual_seed(0)
    model = Eagle3DraftModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + (parameter.dim() == 1))
    offsets = torch.tensor(DRAFTED) - torch.arange(len(DRAFTED))
    model.d2t.copy_(offsets)
    model.t2d.zero_()
    model.t2d[list(DRAFTED)] = True
    return model.eval()


def inputs() -> dict[str, torch.Tensor]:
    """Features and tokens of two packed documents."""
    torch.manual_seed(1)
    length = sum(LENGTHS)
    return {
        "taps": torch.randn(1, length, len(TAPS), SIZE),
        "tokens": torch.randint(0, VOCAB_SIZE, (1, length)),
        "documents": torch.repeat_interleave(torch.arange(2), torch.tensor(LENGTHS))[None],
    }


@torch.no_grad()
def chain_logits(model: Eagle3DraftModel, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of every step of the chains, (J, L, M); the text's own tokens are fed."""
    found: list[torch.Tensor] = []
    hook = model.lm_head.register_forward_hook(lambda *parts: found.append(parts[-1][0]))
    following = torch.cat([given["tokens"][:, 1:], torch.zeros(1, 1, dtype=torch.long)], dim=1)
    model(
        hidden_states=given["taps"].flatten(-2),
        input_ids=following,
        document_ids=given["documents"],
        ttt_steps=STEPS,
    )
    hook.remove()
    return torch.stack(found)


def main() -> None:
    """Write all kinds."""
    for name, switches in KINDS.items():
        model, given = seeded(config_of(**switches)), inputs()
        folder = RECORDED / name
        model.save_pretrained(folder)
        (folder / "config.py").unlink(missing_ok=True)  # their code, which nobody needs here
        seen = {**given, "logits": chain_logits(model, given)}
        save_file(seen, folder / "seen.safetensors")
        print(name, sorted(path.name for path in folder.iterdir()), seen["logits"].std())


if __name__ == "__main__":
    main()
