"""Types of fields that recipes of all kinds have."""

from typing import Annotated

from pydantic import ConfigDict, Field, StrictFloat, StrictInt

from iltm_anomaly.settings import RANGES

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
LEAST_TILE = int(RANGES["tile"][0])
Count = Annotated[StrictInt, Field(ge=1)]
NotNegative = Annotated[StrictFloat, Field(ge=0)]
Share = Annotated[StrictFloat, Field(ge=0, le=1)]
