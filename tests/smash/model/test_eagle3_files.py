"""Our head's logits are those of speculators' own `Eagle3DraftModel`.

The folders in `recorded` were written by speculators 0.9.0 (`helpers/record_speculators.py`), so
what it computed is known where it is not installed; where it is, it also reads what we write.
A window is compared at the first step alone: in training speculators lets it stand still while a
chain goes on, and here it moves on with the chain, as it does where tokens are drafted.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers.headed_toys import KINDS, random_head
from lightstride.smash.model.eagle3 import Eagle3Head
from lightstride.smash.model.eagle3_files import read_head, write_head
from lightstride.smash.train.eagle3_loss import chain_states

RECORDED = Path(__file__).parent / "recorded"
BLOCKS = 8
HAS_SPECULATORS = find_spec("speculators") is not None


def compared(head: Eagle3Head, seen: dict[str, Tensor], embeddings: Tensor) -> int:
    """Hold our chains against theirs wherever a chain stays in its document; logits compared."""
    num_steps, length = len(seen["logits"]), seen["tokens"].shape[1]
    states = chain_states(head, seen["taps"], embeddings, seen["documents"], num_steps)
    count = 0
    for step, each in enumerate(states if head.config.window is None else states[:1]):
        logits = head.logits(each)[0]
        for place in range(length - 1 - step):
            documents = seen["documents"][0, [place, place + 1 + step]].tolist()
            if documents[0] == documents[1]:
                theirs = seen["logits"][step, place]
                torch.testing.assert_close(logits[place], theirs, rtol=1e-4, atol=1e-4)
                count += len(theirs)
    return count


@torch.no_grad()
@pytest.mark.parametrize("folder", sorted(RECORDED.iterdir()), ids=lambda path: path.name)
def test_logits_are_those_that_speculators_computed(folder: Path) -> None:
    head, seen = read_head(folder, num_blocks=BLOCKS), load_file(folder / "seen.safetensors")
    assert head.embedding is not None
    places = 12 if head.config.window else 12 + 10 + 8
    assert compared(head, seen, head.embedding(seen["tokens"])) == 12 * places


@torch.no_grad()
@pytest.mark.skipif(not HAS_SPECULATORS, reason="speculators is not installed")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "own embedding"])
def test_speculators_reads_what_we_write(kind: str, tmp_path: Path) -> None:
    from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig

    from helpers.record_speculators import chain_logits

    head = random_head(**KINDS[kind])
    write_head(
        head,
        tmp_path / "head",
        layout="speculators",
        base="base",
        architectures=["LlamaForCausalLM"],
        num_blocks=BLOCKS,
    )
    config = Eagle3SpeculatorConfig.from_pretrained(tmp_path / "head")
    config.transformer_layer_config._attn_implementation = "eager"
    model = Eagle3DraftModel(config).eval()
    state = load_file(tmp_path / "head" / "model.safetensors")
    missing, surplus = model.load_state_dict(state, strict=False)
    assert surplus == []
    assert {*missing} <= {"embed_tokens.weight", "verifier_norm.weight", "verifier_lm_head.weight"}
    torch.manual_seed(2)
    model.embed_tokens.weight.copy_(torch.randn(260, 32))
    seen = {
        "taps": torch.randn(1, 12, 3, 32),
        "tokens": torch.randint(0, 260, (1, 12)),
        "documents": torch.tensor([[0] * 7 + [1] * 5]),
    }
    seen["logits"] = chain_logits(model, seen)
    assert compared(head, seen, model.embed_tokens(seen["tokens"])) > 90
