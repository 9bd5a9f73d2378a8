"""The config -> the callback that validates."""

from collections.abc import Callable
from pathlib import Path

from llada_sft.config.schema import Config
from llada_sft.data.examples.tokenizer import TokenIds, load_tokenizer
from llada_sft.errors import ConfigError
from llada_sft.generation.settings import SamplerSettings
from llada_sft.model.configuration import NetworkConfig
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.build_data import read_validation
from llada_sft.training.build_network import token_ids
from llada_sft.training.consensus import Consensus
from llada_sft.training.host import Host
from llada_sft.training.log.answers_log import AnswersLog
from llada_sft.training.validation.answers import Answers, choose_questions
from llada_sft.training.validation.batches import ValidationBatches
from llada_sft.training.validation.best import BestSoFar
from llada_sft.training.validation.callback import Validation
from llada_sft.training.validation.rows import ValidationSet

# Of the sampler, where it divides the length of the answers; otherwise an answer is one block.
BLOCK_LENGTH = 32


def build_validation(
    config: Config,
    network_config: NetworkConfig,
    placement: Placement,
    consensus: Consensus,
    *,
    run: RunDir,
    host: Host,
    first_step: int,
    best: BestSoFar,
    stop_agreed: Callable[[], bool],
) -> list[Validation]:
    """Read all validation sets; return the callback, or none if there are no sets.

    Args:
        config: The whole config.
        network_config: Of the network that is trained.
        placement: This rank.
        consensus: The agreement of the ranks.
        run: Its log of answers.
        host: Knows whether the run is still owned.
        first_step: The step from which the run resumes.
        best: Takes the numbers.
        stop_agreed: Whether the ranks agreed to stop.

    Raises:
        DataError: A row cannot be used, or a set has no example.
    """
    sets = read_validation(config, network_config, placement, consensus)
    if not sets:
        return []
    ids = token_ids(network_config)
    size, draws = config.train.micro_batch_size, config.validation.draws
    batches = ValidationBatches(sets, config.data, ids, placement, size, draws)
    answers = _build_answers(config, network_config, sets, placement, consensus)
    return [
        Validation(
            batches,
            config.train.validate_every_steps,
            consensus,
            ids.eos_token_id,
            stop_agreed=stop_agreed,
            best=best,
            answers=answers,
            answers_log=AnswersLog(run.answers, first_step, host.require_owner),
        )
    ]


def _build_answers(
    config: Config,
    network_config: NetworkConfig,
    sets: list[ValidationSet],
    placement: Placement,
    consensus: Consensus,
) -> Answers | None:
    length = config.validation.answer_length
    room = network_config.architecture.max_length - length
    questions = choose_questions(sets, config.validation.answers, room)
    if len(questions) < config.validation.answers and placement.rank == 0:
        print(
            f"validation.answers: {len(questions)} prompts of {config.validation.answers}: others"
            f" leave no room for validation.answer_length: {length}, or there are none",
            flush=True,
        )
    if not questions:
        return None
    ids = token_ids(network_config)
    tokenizer = load_tokenizer(Path(config.model.path), ids.mask_token_id, ids.chat_template)
    settings = sampler_settings(config, network_config, ids)
    return Answers(questions, settings, tokenizer, ids, placement, consensus)


def sampler_settings(
    config: Config, network_config: NetworkConfig, ids: TokenIds
) -> SamplerSettings:
    """Return the settings of `validation.sampler`, at their defaults.

    Raises:
        ConfigError: The sampler is not for this network.
    """
    in_blocks = network_config.architecture.decodes_in_blocks
    name = config.validation.sampler or ("llada2" if in_blocks else "official")
    length = config.validation.answer_length
    block_length = config.objective.block_tokens or BLOCK_LENGTH
    divides = length % block_length == 0 or in_blocks
    settings = SamplerSettings(
        sampler=name,
        gen_length=length,
        block_length=block_length if divides else length,
        mask_token_id=ids.mask_token_id,
        eos_token_id=ids.eos_token_id,
    )
    mismatch = settings.mismatch(in_blocks)
    if mismatch is not None:
        raise ConfigError(f"validation.{mismatch.replace(' ', ': ', 1)}")
    return settings
