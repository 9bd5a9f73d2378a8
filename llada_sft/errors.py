"""Errors that a user can fix: one base class, one line per problem (`where: what: got; do`).

The entry points print these errors without a traceback and exit with code 2. Every other exception
is a defect of this package and keeps its traceback.
"""

EXIT_CODE = 2


class LladaSftError(Exception):
    """A problem that the user can fix; `str()` is one line per problem."""


class ConfigError(LladaSftError):
    """A problem with a config file or an override, or two values that do not fit together."""


class DataError(LladaSftError):
    """A problem with a shard, a record, a hook or a tokenizer."""


class CheckpointError(LladaSftError):
    """A problem with a model directory or a training checkpoint."""


class SaveError(CheckpointError):
    """A checkpoint cannot be written; the previous one is intact."""


class LaunchError(LladaSftError):
    """A problem with submitting, or with the machine on which a job is to run."""


class NonFiniteError(LladaSftError):
    """The loss or the gradient of a step is NaN or infinite; it would be again after a restart."""


class PeerFailedError(LladaSftError):
    """Another rank stopped because of a user's mistake, and has reported the mistake itself."""


class SupersededError(LladaSftError):
    """Another owner has taken the run over: this process must no longer write into it."""


class NodeError(LladaSftError):
    """A node of the job is not as the others, or does not answer: the job can run without it.

    Args:
        text: One line per problem.
        node: The node.
        rank: Its first rank.
    """

    def __init__(self, text: str, node: str, rank: int) -> None:
        super().__init__(text)
        self.node, self.rank = node, rank
