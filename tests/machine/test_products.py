"""Which GPUs multiply in 8 bits."""

from __future__ import annotations

import pytest

from engine.errors import ConfigError
from engine.machine.products import CAPABILITIES, check_products
from engine.planning.gpus import cards


@pytest.mark.parametrize(
    ("products", "dtype", "capability", "told", "hint"),
    [
        ("fp8", "bfloat16", (8, 6), "A has compute capability 8.6, and fp8 products need 8.9", "quant=int8-dynamic"),
        ("int8", "bfloat16", (7, 0), "A has compute capability 7.0, and int8 products need 7.5", "quant=int8"),
        ("fp8", "float32", (9, 0), "on a GPU fp8 products with a scale per row give bfloat16", "dtype=bfloat16"),
    ],
)
def test_a_card_that_cannot_is_refused_with_what_can(
    products: str, dtype: str, capability: tuple[int, int], told: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_products(products, dtype, capability, "A")

    assert told in str(caught.value)
    assert caught.value.hint.startswith(hint)


def test_a_card_that_can_is_not() -> None:
    check_products("fp8", "bfloat16", (8, 9), "A")
    check_products("int8", "float32", (7, 5), "A")


def test_data_sheets_agree() -> None:
    for card in cards():
        for products, least in CAPABILITIES.items():
            assert (card.speed_up(products) > 1) == (card.capability >= least), (card.name, products)
            # All generations so far have two rates; GeForce halves those with float32 sums.
            assert card.speed_up(products) in (1, pytest.approx(2, rel=0.02), pytest.approx(4, rel=0.02))
        assert card.speed_up("") == 1
