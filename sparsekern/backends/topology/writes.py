"""New contents of tensors, computed before the first is written."""

from collections.abc import Callable

from torch import Tensor


class Writes:
    """Contents to be copied into tensors that exist, all at once at the end.

    Copying allocates nothing: where memory runs out, it does so before anything has been written.
    """

    def __init__(self) -> None:
        self._contents: list[tuple[Tensor, Tensor]] = []
        self._then: list[Callable[[], None]] = []

    def put(self, tensor: Tensor, content: Tensor) -> None:
        """Has :meth:`write` copy ``content``, as it is then, into ``tensor``; in the order of the calls."""
        self._contents.append((tensor, content))

    def then(self, action: Callable[[], None]) -> None:
        """Has :meth:`write` call this once all is written; in the order of the calls."""
        self._then.append(action)

    def write(self) -> None:
        for tensor, content in self._contents:
            tensor.copy_(content)
        for action in self._then:
            action()
        self._contents, self._then = [], []
