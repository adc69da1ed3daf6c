# The extension: csrc/, bound with pybind11.
from typing import Any

def __getattr__(name: str) -> Any: ...
