"""Times of steps, and of each host in them, so that a slow host is seen.

All hosts wait for the slowest one in each step, so their steps take equally long. What differs is the time that a host
needs by itself: for its rows of the batch, and for all it does but waiting for the device. These times travel with the
batch, and come back with the metrics of the step.
"""

import numpy as np

NOTABLE = 1.5
"""A host is called slow where it needs this many times the median of all, and a tenth of the step or more."""


def step_times(seconds: list[float]) -> dict[str, float]:
    """Return percentiles of the times of steps, in ms; nothing without steps."""
    if not seconds:
        return {}
    median, high = 1000 * np.percentile(seconds, (50, 99))
    return {"step_ms_p50": round(float(median), 2), "step_ms_p99": round(float(high), 2)}


def slowest_host(rows: list[np.ndarray], names: list[str]) -> dict[str, float | str]:
    """Return the process with the longest time of its own a step, with that of the median process, in ms.

    rows: of each step f32 [B, 3]: process, seconds by itself, seconds of these spent waiting for data.
    """
    if not rows:
        return {}
    process, own, waited = np.concatenate(rows).T
    means = {int(each): 1000 * own[process == each].mean() for each in np.unique(process)}
    slowest = max(means, key=lambda each: means[each])
    return {
        "slowest_host": names[slowest] if slowest < len(names) else f"process {slowest}",
        "slowest_host_ms": round(float(means[slowest]), 2),
        "slowest_host_data_wait_ms": round(float(1000 * waited[process == slowest].mean()), 2),
        "median_host_ms": round(float(np.median(list(means.values()))), 2),
    }


def slow(times: dict[str, float | str], step_ms: float) -> str:
    """Name the slowest host where it keeps the others waiting; "" where it does not."""
    if not times:
        return ""
    own, median = float(times["slowest_host_ms"]), float(times["median_host_ms"])
    return f"  slow: {times['slowest_host']}" if own > NOTABLE * median and own > step_ms / 10 else ""
