"""TensorBoard's curves of a run."""

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoardLog(TensorBoardLogger):
    """Lightning's logger without its hparams.yaml, which would be empty: the config is a file.

    To write it, Lightning asks whether the folder is on S3, and imports s3fs for that.
    """

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Log a text in Markdown."""
        self.experiment.add_text(tag, text, step)

    def save(self) -> None:
        if self._experiment is not None:
            self._experiment.flush()
