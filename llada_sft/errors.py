"""What a user can mend: one base class, one line per problem, in the form `where: what: got; do`.

The entry points print these without a traceback and exit with code 2. Everything else that is
raised is a defect of ours and keeps its traceback.
"""

EXIT_CODE = 2


class LladaSftError(Exception):
    """A problem that the user can mend; `str()` is one line per problem."""


class ConfigError(LladaSftError):
    """A config file, an override, or two values that do not fit together."""


class DataError(LladaSftError):
    """A shard, a record, a hook or a tokenizer."""


class CheckpointError(LladaSftError):
    """A model directory or a training checkpoint."""


class SaveError(CheckpointError):
    """A checkpoint cannot be written; the one before is intact."""


class LaunchError(LladaSftError):
    """Submitting, or the machine that a job was asked to run on."""


class NonFiniteError(LladaSftError):
    """The loss or the gradient of a step is NaN or infinite; a restart would meet it again."""


class PeerFailedError(LladaSftError):
    """Another rank stopped for a user's mistake; its own line says which."""


class SupersededError(LladaSftError):
    """Another owner has taken the run over: this process must not write into it any more."""
