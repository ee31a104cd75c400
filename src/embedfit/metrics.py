"""Names of metrics, and their cutoff ranks."""

from __future__ import annotations

from collections.abc import Sequence

from embedfit.errors import ConfigError

KS = (1, 3, 5, 10)
METRICS = ("recall", "mrr", "ndcg", "hit", "precision", "map")


def check_metric(name: str, ks: Sequence[int]) -> None:
    """Check the name of a metric.

    Raises:
        ConfigError: The metric is unknown. The message lists the known ones.
    """
    if name not in [f"{metric}@{k}" for metric in METRICS for k in ks]:
        raise ConfigError(f"metric {name!r} is unknown; expected one of {', '.join(METRICS)} at one of {list(ks)}, like 'mrr@{max(ks)}'")


def metric_label(name: str) -> str:
    """Return the display name of a metric: ``MRR@10``, ``nDCG@10``, ``recall@1``."""
    metric, _, k = name.partition("@")
    return f"{ {'mrr': 'MRR', 'ndcg': 'nDCG', 'map': 'MAP'}.get(metric, metric) }@{k}".replace(" ", "")
