"""Types of fields that recipes of all kinds have."""

from typing import Annotated

from pydantic import ConfigDict, Field, StrictFloat, StrictInt

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
Count = Annotated[StrictInt, Field(ge=1)]
NotNegative = Annotated[StrictFloat, Field(ge=0)]
Share = Annotated[StrictFloat, Field(ge=0, le=1)]
