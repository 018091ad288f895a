"""The table of which card is enough, made of counted rows."""

import pytest

from tools.bench_memory import card, table


def row(checkpointing, peak, lora="D3PO", offloaded=False):
    return {
        "family": "SDXL, 1024 px",
        "options": dict(checkpointing=checkpointing, lora=lora, weights="bf16", offloaded=offloaded),
        "weights_gib": 4.78,
        "peak_gib": peak,
        "tflop": 23.6 + 12 * checkpointing,
    }


@pytest.mark.parametrize("peak, size", [(6.8, "8 GB"), (6.9, "12 GB"), (22.5, "24 GB"), (90.0, "none")])
def test_a_card_has_what_is_needed_and_something_for_the_system(peak, size):
    assert card(row(False, peak)) == f"{peak} GiB: {size}"


def test_a_model_is_a_line_with_all_kept_and_with_checkpointing_as_the_pack_has_it():
    rows = [row(False, 18.0), row(True, 6.5), row(False, 24.0, "PEFT"), row(True, 7.0, "PEFT")]
    (line,) = table([*rows, row(True, 1.7, offloaded=True)]).splitlines()[2:]
    assert line == (
        "| SDXL, 1024 px | bf16, 4.8 GiB | 18.0 GiB: 24 GB | 6.5 GiB: 8 GB | 1.7 GiB: 8 GB "
        "| 24 and 36 TFLOP |"
    )
