"""TensorBoard's curves of a run."""

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoardLog(TensorBoardLogger):
    """Lightning's logger without its hparams.yaml, which would be empty: the config is a file.

    To write it, Lightning asks whether the folder is on S3, and imports s3fs for that.
    """

    def save(self) -> None:
        if self._experiment is not None:
            self._experiment.flush()
