"""The ranges that constructors annotate their numbers with; the front door refuses a value outside them before anything is imported."""

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, MinLen

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Share = Annotated[float, Gt(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1)]
Index = Annotated[int, Ge(0)]
AtLeastTwo = Annotated[int, Ge(2)]
Times = Annotated[list[Index], MinLen(1)]
Window = tuple[Index, Index]  # [first, last): from the first step, up to the last and without it
Text = Annotated[str, MinLen(1)]
Texts = Annotated[list[Text], MinLen(1)]
