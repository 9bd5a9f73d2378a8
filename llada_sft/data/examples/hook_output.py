"""What a hook may return: each list of an example is checked and becomes an array."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.records.conversation import LARGEST_WEIGHT
from llada_sft.errors import DataError

_REQUIRED = {"input_ids", "response_mask"}
_ALLOWED = _REQUIRED | {"noisy_ids", "loss_weights"}
_TRUTH = bool | int | np.bool_ | np.integer
_TRUTH_BYTES = b"\0\1"


def check_item(
    item: object, vocab_size: int, mask_token_id: int | None = None
) -> dict[str, NDArray[Any]]:
    """Check one example that a hook has returned.

    Args:
        item: What it returned.
        vocab_size: Ids must be below it.
        mask_token_id: Must not be in the response.

    Returns:
        An array for each of its lists: int64, bool, or float32 for the weights.

    Raises:
        DataError: What is wrong with it.
    """
    if not isinstance(item, Mapping):
        raise DataError(
            f"hook returned {type(item).__name__}; return a dict, a list of dicts, or None"
        )
    keys = set(item)
    if not _REQUIRED <= keys <= _ALLOWED:
        raise DataError(
            f"hook returned keys {sorted(map(str, keys))}; "
            "return 'input_ids' and 'response_mask', and 'noisy_ids' or 'loss_weights' if you like"
        )
    fields = {key: _check_list(key, item[key], vocab_size) for key in sorted(keys)}
    ids, mask = fields["input_ids"], fields["response_mask"]
    if any(len(values) != len(ids) for values in fields.values()):
        lengths = {key: len(values) for key, values in fields.items()}
        raise DataError(f"hook returned lists of different lengths: {lengths}")
    # Of so few values, numpy counts much faster than it makes `any` of them.
    if not np.count_nonzero(mask):
        raise DataError("hook returned no response token; 'response_mask' is false everywhere")
    if mask_token_id is not None:
        is_mask_token = ids == mask_token_id
        if np.count_nonzero(is_mask_token) and np.count_nonzero(is_mask_token & mask):
            raise DataError(
                f"the mask token (id {mask_token_id}) is in the response: it stands for hidden"
                " tokens and cannot be learned"
            )
    return fields


def _check_list(key: str, values: object, vocab_size: int) -> NDArray[Any]:
    if not isinstance(values, list):
        raise DataError(f"hook returned {key!r} as {type(values).__name__}; return a list")
    if key == "loss_weights":
        return _check_weights(values)
    # The usual case, at the speed of C; what is wrong with a list, the loops below say.
    with suppress(TypeError, ValueError, OverflowError):
        if key == "response_mask":
            truth = bytes(values)
            if not truth.translate(None, _TRUTH_BYTES):
                return np.frombuffer(truth, np.bool_)
        elif list(map(type, values)).count(int) == len(values):
            ids = np.fromiter(values, np.int64, len(values))
            # A negative id is a large number without its sign.
            if not np.count_nonzero(ids.view(np.uint64) >= vocab_size):
                return ids
    if key == "response_mask":
        if not all(isinstance(value, _TRUTH) and value in (0, 1) for value in values):
            raise DataError("hook returned 'response_mask' with values other than true and false")
        return np.array(values, np.bool_)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise DataError(f"hook returned {key!r} with {value!r}; token ids are integers")
        if not 0 <= value < vocab_size:
            raise DataError(f"hook returned {key!r} with {value}; ids are 0 to {vocab_size - 1}")
    return np.array(values, np.int64)


def _check_weights(values: list[object]) -> NDArray[np.float32]:
    for value in values:
        is_number = isinstance(value, int | float | np.integer | np.floating)
        # Not converted first: an integer of any size can be compared, but is not a float.
        if not is_number or isinstance(value, bool) or not 0 <= value <= LARGEST_WEIGHT:  # type: ignore[operator]
            raise DataError(
                f"hook returned 'loss_weights' with {str(value)[:20]}; weights are numbers from 0"
                f" to {LARGEST_WEIGHT:g}"
            )
    return np.array(values, np.float32)
