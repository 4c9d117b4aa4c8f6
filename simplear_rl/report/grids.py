"""Pictures of samples: one row per prompt, one column per sample."""

import numpy as np
from matplotlib.figure import Figure


def grid_figure(rows: list[tuple[str, np.ndarray]], titles: list[list[str]] | None = None) -> Figure:
    """A picture of captioned rows.

    Args:
        rows: caption and images (uint8 [G, H, W, 3]) of each row.
        titles: a line above each image, for example its reward.
    """
    columns = max(len(images) for _, images in rows)
    figure = Figure(
        figsize=(columns * 1.1 + 2.2, len(rows) * (1.35 if titles else 1.15)), dpi=100, layout="constrained"
    )
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for r, (caption, images) in enumerate(rows):
        axes[r, 0].set_ylabel(caption, rotation=0, ha="right", va="center", fontsize=8)
        for c in range(columns):
            axes[r, c].set(xticks=[], yticks=[])
            if c < len(images):
                axes[r, c].imshow(images[c])
                axes[r, c].set_title(titles[r][c] if titles else "", fontsize=7, pad=2)
    return figure
