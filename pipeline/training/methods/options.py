"""The methods that a recipe can name, and their options; no torch here.

`method: mean-teacher`, or with options `method: {name: mean-teacher, threshold: 0.9}`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]

Stream: TypeAlias = Literal["unlabelled", "weak"]
"""Images beside the labelled ones: random crops of them, or whole ones with image-level labels."""


class _Method(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Stream]] = frozenset()


class Supervised(_Method):
    """Labelled images alone."""

    name: Literal["supervised"] = "supervised"


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


AnyMethod: TypeAlias = Annotated[Supervised, BeforeValidator(_by_name)]
"""A method's options; its name alone stands for the defaults."""
