"""What a check is: a named piece of the conversation, held once with each of the two servers beginning."""

from dataclasses import dataclass
from typing import Callable


@dataclass(frozen=True)
class Check:
    name: str
    run: Callable
    alone: bool  # whether nothing else may go on meanwhile, because it stops a server or cuts the link


ALL = []


def check(function=None, *, alone=False):
    """Marks a function of two servers as a check; the first is the one whose people begin."""

    def mark(function):
        ALL.append(Check(function.__name__, function, alone))
        return function

    return mark(function) if function else mark
