"""TensorBoard's curves of a run."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoardLog(TensorBoardLogger):
    """Lightning's logger without its hparams.yaml, which would be empty: the config is a file.

    To write it, Lightning asks whether the folder is on S3, and imports s3fs for that.
    """

    @property
    def log_dir(self) -> str:
        """The folder of the curves, as it is named.

        Lightning takes `$HOME` and `~` in its path for what a shell would: then the curves of a run
        below a folder of such a name would be somewhere else.
        """
        return str(Path(self.root_dir) / str(self.version))

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Log a text in Markdown."""
        self.experiment.add_text(tag, text, step)

    def save(self) -> None:
        if self._experiment is not None:
            self._experiment.flush()
