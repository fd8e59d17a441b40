"""Where a run's time went, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.spent import DRIVER, STAGES

if TYPE_CHECKING:
    from pipeline.runs.report import RunReport

_LEAST_SHARE: Final = 0.005
_LEAST_SECONDS: Final = 0.1


def budget(report: RunReport) -> list[str]:
    """Return the pace of a run, its workers' and its driver's time, and its failures by class."""
    if not report.workers:
        return []
    lines = [
        f"{report.images_per_second:,.1f} images/s, {report.pixels / 1e6:,.1f} megapixels, by "
        f"{report.workers} worker{'s' * (report.workers != 1)} in {report.wall:,.1f} s"
    ]
    shares = [
        f"{STAGES[stage].words if stage in STAGES else stage} {share:.0%}"
        for stage, share in report.shares().items()
        if share >= _LEAST_SHARE
    ]
    lines.append(f"workers: {', '.join(shares)}; the bottleneck is {report.bottleneck()}")
    own = [
        f"{STAGES[stage].words} {report.seconds[stage]:,.1f} s"
        for stage in DRIVER
        if report.seconds.get(stage, 0.0) >= _LEAST_SECONDS
    ]
    if own:
        lines.append(f"driver: {', '.join(own)}")
    if report.failures:
        ranked = sorted(report.failures.items(), key=lambda item: (-item[1], item[0]))
        lines.append("failed: " + ", ".join(f"{count:,} {error}" for error, count in ranked))
    return lines
