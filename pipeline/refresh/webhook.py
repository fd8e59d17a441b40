"""Telling a night's outcome to a web address; that it can't be told never fails a night."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.refresh.config import Webhook
    from pipeline.refresh.record import Night


def outcome(night: Night) -> dict[str, Any]:
    """Return what is posted: the outcome in short. `text` is what chat programs show."""
    published = night.published
    told = f"segmill refresh {night.id}: {night.status}"
    return {
        "text": told + (f" ({'; '.join(night.reasons[:3])})" if night.reasons else ""),
        "night": night.id,
        "status": night.status,
        "reasons": night.reasons,
        "images": night.images.model_dump(),
        "sums": night.sums,
        "model": None if night.challenger is None else night.challenger.digest,
        "miou": None if night.challenger is None else night.challenger.scores.get("miou"),
        "version": None if published is None else published.version,
        "tag": None if published is None else published.tag,
        "caught_up": night.caught_up,
    }


def tell(hook: Webhook, night: Night) -> str:
    """Post a night's outcome; return the status of the answer, or why there was none."""
    request = urllib.request.Request(
        hook.url,
        data=json.dumps(outcome(night)).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "segmill"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=hook.timeout) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, ValueError) as error:
        return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
