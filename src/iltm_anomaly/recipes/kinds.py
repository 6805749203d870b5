"""What recipes of all kinds have: types of fields, and that they are plain data."""

from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, TypeAdapter, ValidationError

from iltm_anomaly.ranges import RANGES
from iltm_anomaly.recipes.mistakes import explain

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
LEAST_TILE = int(RANGES["tile"][0])
Count = Annotated[StrictInt, Field(ge=1)]
NotNegative = Annotated[StrictFloat, Field(ge=0)]
Share = Annotated[StrictFloat, Field(ge=0, le=1)]


class AnyRecipe:
    """A recipe of any kind, a dataclass, as plain data and from it."""

    @classmethod
    def field_names(cls) -> dict[str, tuple[str, ...]]:
        """Names of the fields, and of those of each table; "" has those of the recipe itself."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to `recipe.yaml` of a run."""
        return asdict(self)  # type: ignore[call-overload]

    def training_fields(self) -> dict[str, Any]:
        """What of `to_dict` training depends on."""
        return self.to_dict()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """A recipe from plain data.

        Raises:
            ValueError: if a field is unknown, missing or wrong; it is named.
        """
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            raise ValueError(explain(error, cls.field_names())) from None
