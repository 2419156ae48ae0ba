"""The model zoo: all cases."""

from __future__ import annotations

from tests.model_zoo.cases import Case
from tests.model_zoo.mixed import HYBRIDS, MIXTURES, PLAIN, STATE_SPACES
from tests.model_zoo.text import TEXT
from tests.model_zoo.vision import SPEECH, VISION

ZOO: tuple[Case, ...] = (*TEXT, *VISION, *SPEECH, *MIXTURES, *STATE_SPACES, *HYBRIDS, *PLAIN)
