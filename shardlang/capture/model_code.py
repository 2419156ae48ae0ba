"""Running the model's own code inside ours: what it prints, and where it wants to end."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator

from shardlang.capture.errors import is_ours


class ModelExit(Exception):
    """The model's code ends the process."""


class ModelRaised(Exception):
    """The model's code raises what few would catch: a `BaseException` of its own."""


@contextlib.contextmanager
def model_code() -> Iterator[None]:
    """Send what the model's code prints to stderr: stdout is for results.

    Raises:
        ModelExit: the code calls `sys.exit`, as a script or its `argparse` does. A signal that ends
            the process meanwhile still does.
        ModelRaised: it raises a `BaseException` of its own.
    """
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except SystemExit as end:
            last = traceback.extract_tb(end.__traceback__)[-1]
            if is_ours(last.filename):
                raise
            said = end.code if isinstance(end.code, str) else f"status {end.code or 0}"
            raise ModelExit(f"it exits with {said}").with_traceback(end.__traceback__) from None
        except (Exception, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            said = f"it raises {type(error).__name__}: {error}"
            raise ModelRaised(said).with_traceback(error.__traceback__) from None


def at_import(error: Exception) -> str:
    """What to do about a model file that cannot be run."""
    if isinstance(error, ModelExit):
        return (
            "the file is imported, not run as a script: let what a script does stand under"
            ' `if __name__ == "__main__":`'
        )
    return "fix the file: it must run by itself, with its own folder importable"
