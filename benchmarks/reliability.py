"""Measure what reliability costs in a step: the watch, the stop request, the times of hosts, and the hashes of a save.

Run on a model of BERT's base size; the costs of a step are of the host alone, and do not depend on the model.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from bertjax.run.replicas import check_replicas
from bertjax.run.stop import stop_requests
from bertjax.run.watch import Watch
from bertjax.run.writers import Progress
from bertjax.sharding.mesh import MeshShape


def seconds(work: Callable[[], None], repeats: int) -> float:
    """Return the median time of some calls."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return median(times)


def main() -> None:
    """Print the costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=110e6, help="of the model (default: %(default)g)")
    options = parser.parse_args()
    watch = Watch(1800, Progress())
    with stop_requests(say=print) as stop:

        def step() -> None:
            with stop.raising():
                pass
            watch.step(3, ("program", (8, 128)), 1)
            watch.step(4, ("program", (8, 128)), 2)

        print(f"watch and stop request: {1e6 * seconds(step, 10_000):.1f} microseconds a step")
    watch.close()

    mesh = MeshShape().mesh(2)
    place = NamedSharding(mesh, PartitionSpec())
    size = int(options.parameters) // 100
    arrays = {f"{n}": jax.device_put(jnp.ones([size], jnp.float32), place) for n in range(100)}
    check_replicas(arrays)
    here = seconds(partial(check_replicas, arrays), 5)
    print(f"hashes of {options.parameters:.3g} parameters on each of two replicas: {here:.3f} s a save")


if __name__ == "__main__":
    main()
