import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.attacks.lsb import LeastSignificantBits


def levels(images: np.ndarray) -> list[int]:
    return (images * 255).round().astype(int).ravel().tolist()


def flat(values: list[int]) -> np.ndarray:
    return (np.array(values, np.float32) / np.float32(255)).reshape(1, 1, 1, -1)


# "A" is 01000001; two bits a value make 1 0 0 1. 255 -> 11111101, 0 -> 0, 3 -> 0, 6 -> 5.
def test_bits_of_the_message_replace_the_lowest_bits_highest_first() -> None:
    stamped = LeastSignificantBits(0, "A", bits=2, repeat=False).stamp(flat([255, 0, 3, 6, 77]))
    assert levels(stamped) == [253, 0, 0, 5, 77]


# Three bits: 010 000 01(0).
def test_the_last_group_is_filled_up_with_zeros() -> None:
    assert LeastSignificantBits(0, "A", bits=3).groups.tolist() == [2, 0, 2]


def test_a_message_begins_again_where_it_ends() -> None:
    stamped = LeastSignificantBits(0, "A").stamp(flat([8] * 20))
    assert levels(stamped) == [8, 9, 8, 8, 8, 8, 8, 9] * 2 + [8, 9, 8, 8]


def test_values_beyond_a_message_that_is_not_repeated_stay_off_the_grid() -> None:
    images = np.full((1, 1, 1, 9), 0.3001, np.float32)
    stamped = LeastSignificantBits(0, "A", repeat=False).stamp(images)
    assert stamped[0, 0, 0, 8] == np.float32(0.3001)


@given(st.text(min_size=1, max_size=9), st.integers(1, 7), st.integers(0, 255))
def test_the_message_can_be_read_back(message: str, bits: int, level: int) -> None:
    stamped = LeastSignificantBits(0, message, bits).stamp(flat([level] * 300))
    hidden = np.array(levels(stamped), np.uint8) & (2**bits - 1)
    stream = ((hidden[:, None] >> np.arange(bits - 1, -1, -1)) & 1).ravel()
    encoded = message.encode()
    assert np.packbits(stream)[: len(encoded)].tobytes() == encoded


def test_a_message_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 16 values with 1 bits each, and an image has 12"):
        LeastSignificantBits(0, "ab").stamp(np.zeros((1, 3, 2, 2), np.float32))


@pytest.mark.parametrize(("message", "bits"), [("", 1), ("a", 0), ("a", 8)])
def test_no_message_and_no_room_are_refused(message: str, bits: int) -> None:
    with pytest.raises(ValueError, match=r"message: expected some text|bits: expected 1 to 7"):
        LeastSignificantBits(0, message, bits)
