from typing import Any

from numpy.typing import NDArray

def count(
    truth: NDArray[Any], predicted: NDArray[Any], height: int, width: int, stride: int
) -> tuple[bytes, bytes]: ...
