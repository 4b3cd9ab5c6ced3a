"""The demo's three weeks, and what of them a model was trained on."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

FIRST_DAY = date(2026, 3, 2)
DAYS = 21
TRAINING_SHARE, VALIDATION_SHARE = 0.6, 0.1


def spread(place: float) -> tuple[str, datetime]:
    """Split and moment of what comes at this share of the whole."""
    if place < TRAINING_SHARE:
        split = "training"
    elif place < TRAINING_SHARE + VALIDATION_SHARE:
        split = "validation"
    else:
        split = "production"
    begin = datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, tzinfo=UTC)
    return split, begin + timedelta(days=int(place * DAYS * 1e6) / 1e6)
