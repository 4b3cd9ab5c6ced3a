"""How a use case is watched: what it is compared with, in which windows, and what is
worth an alarm."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, Literal

from pydantic import Field, model_validator

from embedding_tasks.use_case.part import Part, Tags

# In place of a tag: slices by the predicted class.
BY_PREDICTION = "prediction"


class Baseline(Part):
    """The records that a model is used to: those of some environments, or of the days
    in [since, until), or both."""

    environment: Tags = ()
    since: date | None = None
    until: date | None = None

    @model_validator(mode="after")
    def _says_which(self) -> Baseline:
        if not self.environment and self.since is None:
            raise ValueError(
                "valid: {environment: training}, {since: 2026-01-01, until: "
                "2026-02-01}, or both"
            )
        if (self.since is None) != (self.until is None):
            raise ValueError("give both of `since` and `until`, or none of them")
        if self.since and self.until and self.since >= self.until:
            raise ValueError("`since` must be before `until`")
        return self

    @property
    def last_day(self) -> date | None:
        return self.until - timedelta(days=1) if self.until else None


class LeastEffect(Part):
    """What is smaller is no alarm, however sure it is."""

    centroid: float = Field(0.1, ge=0, description="standard deviations")
    mix: float = Field(0.05, ge=0, le=1, description="share predicted otherwise")
    novelty: float = Field(0.01, ge=0, le=1, description="share of the rows")
    outliers: float = Field(0.02, ge=0, le=1, description="share of the rows")
    spread: float = Field(0.05, ge=0, description="share of the residual's mean")
    performance: float = Field(
        0.03, ge=0, le=1, description="of accuracy, F1, AUC; of calibration error"
    )


class Notifier(Part):
    """One of Airflow's, by its class, with its arguments; templates in them find the
    alarm as `{{ alarm }}`."""

    notifier: str = Field(pattern=r"^[A-Za-z_][\w.]*\.[A-Za-z_]\w*$")
    arguments: dict[str, Any] = Field(default_factory=dict)


class Monitoring(Part):
    """`environment` is what is watched; none: all records that are not the
    baseline's. `performance_baseline` are labelled records that the model was not
    trained on; none: the baseline."""

    baseline: Baseline
    performance_baseline: Baseline | None = None
    environment: Tags = ()
    window_days: int = Field(1, ge=1, le=366)
    slices: Tags = ()
    least_rows: int = Field(200, ge=50)
    sample_rows: int = Field(
        20_000,
        ge=1000,
        le=200_000,
        description="of the baseline, at random, that each row is held against; of a "
        "window a third as many",
    )
    mmd: bool = Field(False, description="measure it, too: of all of a distribution")
    least_effect: LeastEffect = LeastEffect()
    gate: Literal["none", "fail", "skip"] = "none"
    notify: tuple[Notifier, ...] = ()

    @model_validator(mode="after")
    def _watches_others(self) -> Monitoring:
        both = set(self.environment) & set(self.baseline.environment)
        if both and self.baseline.since is None:
            raise ValueError(
                f"environment: {sorted(both)[0]!r} is the baseline, and cannot be "
                "compared with itself; name another, or give the baseline days"
            )
        return self

    @property
    def not_watched(self) -> tuple[str, ...]:
        """Environments that are a baseline's, on whatever day."""
        both = [self.baseline, self.labelled_baseline]
        return tuple(
            dict.fromkeys(e for b in both if b.since is None for e in b.environment)
        )

    @property
    def labelled_baseline(self) -> Baseline:
        return self.performance_baseline or self.baseline

    def window_of(self, day: Any) -> Any:
        """The number of the window that a day's ordinal lies in, of an array each. The
        first one after the baseline's days begins with them over."""
        until = self.baseline.until
        return (day - (until.toordinal() if until else 1)) // self.window_days

    def first_day_of(self, window: int) -> date:
        until = self.baseline.until
        first = until.toordinal() if until else 1
        return date.fromordinal(first + window * self.window_days)

    @property
    def tags(self) -> list[str]:
        """Those that are slices, but for the predicted class."""
        return [tag for tag in self.slices if tag != BY_PREDICTION]
