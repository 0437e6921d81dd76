"""Draw the memory of a device as stacked bars, one per program, in SVG, which needs no library."""

from collections.abc import Mapping, Sequence
from html import escape

PARTS = {"params": "#4477aa", "optimizer": "#66ccee", "batch": "#ccbb44", "activations": "#ee6677"}
"""The parts of memory, as `plan` names them, and their colours, which the colour-blind can tell apart."""

LEFT, BAR, GAP, WIDTH = 260, 22, 10, 560


def memory_picture(programs: Sequence[tuple[str, Mapping[str, float | None]]], title: str) -> str:
    """Draw `bytes_per_device` of each named program, and the capacity of the device as a line.

    Where the compiler does not state how much a program needs, the last part is left out.
    """
    capacity = max(memory["capacity"] or 0.0 for _, memory in programs)
    longest = max(capacity, *(memory["peak"] or 0.0 for _, memory in programs)) * 1.05
    height = 60 + len(programs) * (BAR + GAP) + 40
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 90}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="22" font-size="15">{escape(title)}</text>',
    ]
    sizes = []  # drawn last, over the line of the capacity
    for number, (name, memory) in enumerate(programs):
        top = 44 + number * (BAR + GAP)
        lines.append(f'<text x="{LEFT - 8}" y="{top + 16}" text-anchor="end">{escape(name)}</text>')
        at = float(LEFT)
        for part, colour in PARTS.items():
            length = (memory[part] or 0.0) / longest * WIDTH
            lines.append(f'<rect x="{at:.1f}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
            at += length
        size = f"{memory['peak'] / 2**30:.2f} GiB" if memory["peak"] is not None else "unknown"
        sizes.append(
            f'<text x="{at + 6:.1f}" y="{top + 16}" stroke="white" stroke-width="4" paint-order="stroke">{size}</text>'
        )
    end, at = height - 40, LEFT + capacity / longest * WIDTH
    lines.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="38" y2="{end}" stroke="black" stroke-dasharray="4 3"/>')
    lines.append(f'<text x="{at:.1f}" y="36" text-anchor="middle">{capacity / 2**30:.2f} GiB</text>')
    for number, (part, colour) in enumerate(PARTS.items()):
        lines.append(f'<rect x="{LEFT + number * 130}" y="{end + 12}" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{LEFT + number * 130 + 17}" y="{end + 23}">{part}</text>')
    return "\n".join([*lines, *sizes, "</svg>", ""])
