"""The base class of every section of a config, and the types of its numbers with their units."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # part of a path in results/
Precision = Literal["float32", "bfloat16"]
TrainingPrecision = Literal["float32", "bfloat16", "float16"]
ScoringPrecision = Literal["float32", "bfloat16", "float16", "int8"]
Share = Annotated[float, Field(ge=0, lt=1, json_schema_extra={"unit": "share"})]
Count = Annotated[int, Field(ge=1)]
Layers = Annotated[Count, Field(json_schema_extra={"unit": "layers"})]
Steps = Annotated[Count, Field(json_schema_extra={"unit": "steps"})]
Tokens = Annotated[Count, Field(json_schema_extra={"unit": "tokens"})]
Queries = Annotated[Count, Field(json_schema_extra={"unit": "queries"})]
Passages = Annotated[Count, Field(json_schema_extra={"unit": "passages"})]
Groups = Annotated[Count, Field(json_schema_extra={"unit": "groups"})]
Ranks = Annotated[Count, Field(json_schema_extra={"unit": "ranks"})]
LARGEST_RATIO = 2**16
"""Of a compression; more tokens than a passage has. Far larger numbers do not fit into the tensors of positions."""
Ratio = Annotated[int, Field(ge=2, le=LARGEST_RATIO)]
Jobs = Annotated[Count, Field(json_schema_extra={"unit": "jobs"})]


class Section(BaseModel):
    """A section of a config: immutable, with known keys and finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def slice(self, **selection: Any) -> dict[str, Any]:
        """Return what differs from the defaults as plain JSON values, short enough for a command line.

        Args:
            selection: `include` or `exclude` with names of keys, as for pydantic's `model_dump`.
        """
        return self.model_dump(mode="json", exclude_defaults=True, **selection)
