"""The config of a smashed model on disk: fields of other types or out of range are refused."""

import pytest

from lightstride.errors import ModelError
from lightstride.smash.model.config_file import check_fields

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
        {"adapter_rank": -1},
        {"gist": "yes"},
    ],
    ids=str,
)
def test_other_types_and_ranges_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"^config\.json: "):
        check_fields({**SOUND, **changes}, "config.json")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ModelError, match="hidden_size"):
        check_fields({"base": "x", "vocab_size": 3, "num_hidden_layers": 1}, "config.json")
