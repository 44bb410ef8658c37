"""The words that a load's options take: by themselves, so that a command's help needs no HTTP client."""

from typing import Literal

Arrivals = Literal["poisson", "constant"]
Route = Literal["continue", "score"]
Form = Literal["json", "pcm"]
