"""The loss curve of a run as a picture."""

from pathlib import Path

from matplotlib.figure import Figure

from llada_sft.training.log.metrics_csv import read_metrics


def plot_loss(metrics: Path, picture: Path) -> Path:
    """Draw training and validation loss over the steps.

    Args:
        metrics: The run's metrics.csv.
        picture: The PNG to write.

    Returns:
        `picture`.
    """
    rows = read_metrics(metrics)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for column, label, style in (
        ("loss", "training (global batch)", {"linewidth": 1.2}),
        ("validation_loss", "held out", {"marker": "o", "linestyle": "--"}),
    ):
        points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(xlabel="step", ylabel="loss (nats per response token)", ylim=(0, None))
    axes.set_title(metrics.parent.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    return picture
