"""The EAGLE-3 head: cached or not, its layouts on disk, and the files it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightstride.errors import ConfigError, ModelError
from lightstride.smash.model.eagle3 import Eagle3Config, Eagle3Head, default_taps
from lightstride.smash.model.eagle3_files import read_head, write_head

SMALL = Eagle3Config(
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    num_channels=48,
    vocab_size=260,
    draft_vocab_size=40,
    taps=(2, 4, 5),
    max_positions=128,
)
PUBLISHED = {
    "as trained here": {},
    "speculators": {"norm_before_residual": True},
    "norm before fc": {"norm_before_fc": True},
    "EAGLE 3.1": {"fc_norm": True, "norm_output": True},
    "own embedding": {"own_embedding": True},
    "window": {"window": 4},
    "llama 3 rope": {
        "rope": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


def random_head(**changes: object) -> Eagle3Head:
    head = Eagle3Head(replace(SMALL, **changes))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    head.set_vocabulary(torch.randperm(260)[:40].sort().values)
    return head.eval()


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )


class Keeping:
    """Attention over all keys given so far: what a decoder does with a cache."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.keys.append(key)
        self.values.append(value)
        return torch.nn.functional.scaled_dot_product_attention(
            query, torch.cat(self.keys, 2), torch.cat(self.values, 2), enable_gqa=True
        )


@pytest.mark.parametrize("changes", PUBLISHED.values(), ids=PUBLISHED)
def test_place_by_place_is_all_at_once(changes: dict[str, object]) -> None:
    head = random_head(**changes)
    states = head.fuse(torch.randn(2, 7, 3, 32))
    embeddings, places = torch.randn(2, 7, 32), torch.arange(7).expand(2, 7)
    whole = head.logits(head(embeddings, states, places, causal))
    keeping = Keeping()
    pieces = [
        head.logits(
            head(embeddings[:, i : i + 1], states[:, i : i + 1], places[:, i : i + 1], keeping)
        )
        for i in range(7)
    ]
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


def test_attention_depends_on_distance_alone() -> None:
    head = random_head()
    states, embeddings = head.fuse(torch.randn(1, 6, 3, 32)), torch.randn(1, 6, 32)
    places = torch.arange(6)[None]
    near = head(embeddings, states, places, causal)
    torch.testing.assert_close(head(embeddings, states, places + 50, causal), near)


def test_a_row_stands_for_its_token_plus_the_offset() -> None:
    head = random_head()
    tokens = torch.tensor([0, 3, *range(10, 48)])
    head.set_vocabulary(tokens)
    assert head.d2t_M[:3].tolist() == [0, 2, 8]
    assert head.tokens_of_rows().tolist() == tokens.tolist()


@pytest.mark.parametrize("layout", ["flat", "speculators"])
@pytest.mark.parametrize("changes", PUBLISHED.values(), ids=PUBLISHED)
def test_a_written_head_is_read_again(
    tmp_path: Path, layout: str, changes: dict[str, object]
) -> None:
    head = random_head(**changes)
    write(head, tmp_path / "head", layout)
    again = read_head(tmp_path / "head", num_blocks=8)
    assert replace(again.config, rope=head.config.rope) == head.config
    assert again.config.rope["rope_theta"] == head.config.rope["rope_theta"]
    for name, tensor in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    states, embeddings = head.fuse(torch.randn(1, 5, 3, 32)), torch.randn(1, 5, 32)
    places = torch.arange(5)[None]
    ours, theirs = (h(embeddings, states, places, causal) for h in (head, again))
    torch.testing.assert_close(ours, theirs)


def write(head: Eagle3Head, folder: Path, layout: str) -> None:
    write_head(
        head,
        folder,
        layout=layout,  # type: ignore[arg-type]
        base="base",
        architectures=["LlamaForCausalLM"],
        num_blocks=8,
    )


def test_default_taps_are_left_out_and_others_counted_as_each_layout_counts(tmp_path: Path) -> None:
    assert default_taps(8) == (2, 4, 5)
    write(random_head(), tmp_path / "default", "flat")
    assert "layer_ids" not in (tmp_path / "default" / "config.json").read_text()
    head = random_head(taps=(1, 3, 6))
    for layout, read_ids in (("flat", flat_ids), ("speculators", nested_ids)):
        write(head, tmp_path / layout, layout)
        document = json.loads((tmp_path / layout / "config.json").read_text())
        assert read_ids(document) == ([0, 2, 5] if layout == "flat" else [1, 3, 6])
        assert read_head(tmp_path / layout, num_blocks=8).config.taps == (1, 3, 6)


def flat_ids(document: dict[str, dict[str, object]]) -> object:
    return document["eagle_config"]["eagle_aux_hidden_state_layer_ids"]


def nested_ids(document: dict[str, object]) -> object:
    return document["eagle_aux_hidden_state_layer_ids"]


def test_a_shallow_base_has_no_default_taps() -> None:
    with pytest.raises(ConfigError, match="needs 8"):
        default_taps(5)


def spoiled(folder: Path, **config: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2; it must be 1"),
        ({"model_type": "qwen3"}, "model_type is 'qwen3'; it must be 'llama'"),
        ({"architectures": ["Other"]}, r"architectures are \['Other'\]"),
        ({"hidden_size": 16}, r"embed|midlayer|fc|norm"),
        ({"hidden_size": "x"}, "no EAGLE-3 head"),
        ({"draft_vocab_size": 300}, "more than the base's 260"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 40]}}, "8 blocks"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": "x"}}, "not a list of numbers"),
        ({"num_key_value_heads": 3}, "they must divide"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    write(random_head(), tmp_path / "head", "flat")
    with pytest.raises(ModelError, match=message):
        read_head(spoiled(tmp_path / "head", **config), num_blocks=8)


def test_missing_and_surplus_tensors_are_named(tmp_path: Path) -> None:
    write(random_head(), tmp_path / "head", "flat")
    path = tmp_path / "head" / "model.safetensors"
    tensors = load_file(path)
    save_file({n: t for n, t in tensors.items() if n != "fc.weight"}, path)
    with pytest.raises(ModelError, match=r"lacks fc\.weight"):
        read_head(tmp_path / "head", num_blocks=8)
    save_file({**tensors, "more.weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"more\.weight"):
        read_head(tmp_path / "head", num_blocks=8)
    save_file({**tensors, "d2t": torch.full((40,), 1000)}, path)
    with pytest.raises(ModelError, match="outside"):
        read_head(tmp_path / "head", num_blocks=8)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged"):
        read_head(tmp_path / "head", num_blocks=8)
    path.rename(tmp_path / "head" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle"):
        read_head(tmp_path / "head", num_blocks=8)
