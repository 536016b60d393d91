# Types of altair as Any: its own depend on the values of arguments, and checking against them finds no errors.
from typing import Any

def __getattr__(name: str) -> Any: ...
