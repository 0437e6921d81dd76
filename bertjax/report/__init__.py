"""Compare runs: their logs as arrays, and as one page of HTML.

from bertjax.report import read
small, large = read(["runs/small", "runs/large"])
plt.plot(small.train["tokens"], small.train["loss"])
"""

from bertjax.report.arrays import Run as Run
from bertjax.report.arrays import read as read

__all__ = ["Run", "read"]
