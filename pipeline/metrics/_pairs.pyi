from typing import Any

from numpy.typing import NDArray

def count(truth: NDArray[Any], predicted: NDArray[Any]) -> tuple[bytes, bytes]: ...
