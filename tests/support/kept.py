"""What the process keeps of statements that it built."""

import sys
from types import FunctionType


def forget_kept() -> None:
    """Forgets every statement that was built, as a statement has the bounds of answers in it."""
    names = [name for name in sys.modules if name.startswith("session_lifecycle.statements.")]
    for name in names:
        for one in vars(sys.modules[name]).values():
            if not isinstance(one, FunctionType) and hasattr(one, "cache_clear"):
                one.cache_clear()
