"""The config of a smashed model on disk: fields of other types or out of range are refused."""

import pytest

from lightstride.errors import ModelError
from lightstride.smash.model.config_file import check_fields, of_today

SOUND = {"base": "x", "hidden_size": 64, "vocab_size": 256, "num_hidden_layers": 2, "more": [1]}


def test_a_sound_config_passes() -> None:
    check_fields(SOUND, "config.json")
    check_fields({**SOUND, "taps": [1, 2], "calibration": [[1, 0.5]]}, "config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"base": 3},
        {"hidden_size": -1},
        {"num_hidden_layers": 2**31},
        {"micro_layers": 2**31},
        {"micro_vocab_size": 257},
        {"micro_rope": [1]},
        {"taps": ["x"]},
        {"taps": []},
        {"calibration": [[None]]},
        {"calibration": [[1e300, 0]]},
        {"stop_head": "other"},
        {"mode": ["ar"]},
        {"mode": "verify"},
        {"embedder_heads": 0},
    ],
    ids=str,
)
def test_other_types_and_ranges_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"^config\.json: "):
        check_fields({**SOUND, **changes}, "config.json")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ModelError, match="hidden_size"):
        check_fields({"base": "x", "vocab_size": 3, "num_hidden_layers": 1}, "config.json")


@pytest.mark.parametrize(
    ("stored", "heads", "mode"),
    [
        ({"gist": True, "adapter_rank": 2, "mode": "lossless"}, None, "lossless"),
        ({"gist": True, "adapter_rank": 0, "mode": "trust"}, None, "lossless"),
        ({"gist": False, "adapter_rank": 8, "mode": "verify"}, None, "lossless"),
        ({"gist": False, "adapter_rank": 0, "mode": "verify"}, 4, "lossless"),
        ({"gist": False, "adapter_rank": 0, "mode": "trust"}, 4, "trust"),
        ({"adapter_alpha": 16.0, "mode": "ar"}, 4, "ar"),
    ],
)  # fmt: skip
def test_grafts_that_merged_into_gists_or_with_adapters_only_draft(
    stored: dict[str, object], heads: int | None, mode: str
) -> None:
    found = of_today({**SOUND, "embedder_heads": 4, **stored})
    assert found == {**SOUND, "embedder_heads": heads, "mode": mode}
    check_fields(found, "config.json")
    assert of_today(found) == found
