"""What every section of a config is made of: strict models, and numbers with their units."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # stands in a path of results/
Precision = Literal["float32", "bfloat16"]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1, json_schema_extra={"unit": "share"})]
Layers, Steps, Tokens, Queries, Passages, Groups, Ranks, Jobs = (
    Annotated[int, Field(ge=1, json_schema_extra={"unit": unit})]
    for unit in ("layers", "steps", "tokens", "queries", "passages", "groups", "ranks", "jobs")
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def slice(self, **which: Any) -> dict[str, Any]:
        """What differs from the defaults, as plain JSON values: short enough to read in a command."""
        return self.model_dump(mode="json", exclude_defaults=True, **which)
