"""The token of each candidate, and how good it is.

Shapes: B rows of the canvas, R rows of a pass, L positions, M candidates, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llada_sft.diffusion.generate import probability_of, with_gumbel_noise, without
from llada_sft.generation.settings import SamplerSettings
from llada_sft.keys import hashed


class Candidates:
    """Chooses tokens, and scores them.

    Args:
        settings: Of the sampler.
        banned: Tokens that are never chosen. Where the network expects one of them, what is chosen
            instead is not probable: it is written late.
        num_rows: B. At a temperature, each row has draws of its own: they do not depend on what is
            decoded with it.
        device: The model's.
        last: Tokens of no confidence; that of others is their probability among all but these.
    """

    def __init__(
        self,
        settings: SamplerSettings,
        banned: Sequence[int],
        num_rows: int,
        device: torch.device,
        last: Sequence[int] = (),
    ) -> None:
        self._temperature, self._random = settings.temperature, settings.remasking == "random"
        self._by_entropy = settings.choice[0] == "entropy"
        self._banned, self._last = tuple(banned), tuple(last)
        self._generators: list[torch.Generator] = []
        if self._temperature or self._random:
            seed = settings.seed
            if seed is None:
                seed = int(torch.randint(2**62, ()))
            self._generators = [
                torch.Generator(device).manual_seed(hashed("answer", seed, row) >> 1)
                for row in range(num_rows)
            ]

    def choose(self, logits: Tensor, eligible: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Choose a token for each candidate.

        Args:
            logits: [M, V] floating, row after row.
            eligible: [R, L] bool, true at candidates.
            rows: [R] int64, rows of the canvas.

        Returns:
            The tokens, [R, L] int64, of no meaning but at candidates; and how good each is, [R, L]
            float64, -inf but at candidates.
        """
        chosen = self._tokens(without(logits, self._banned), eligible, rows)
        tokens = torch.zeros_like(eligible, dtype=torch.int64)
        tokens[eligible] = chosen
        scores = torch.full(eligible.shape, -torch.inf, dtype=torch.float64, device=logits.device)
        scores[eligible] = self._scores(logits, chosen, eligible, rows)
        return tokens, scores

    def _tokens(self, logits: Tensor, eligible: Tensor, rows: Tensor) -> Tensor:
        if self._temperature == 0:
            return logits.argmax(dim=-1)
        uniform = self._draws(eligible, rows, logits.shape[-1])
        return with_gumbel_noise(logits, uniform, self._temperature).argmax(dim=-1)

    def _scores(self, logits: Tensor, tokens: Tensor, eligible: Tensor, rows: Tensor) -> Tensor:
        if self._random:
            return self._draws(eligible, rows)
        if self._by_entropy:
            return -self._uncertainty(logits)
        return probability_of(without(logits, self._last), tokens)

    def _uncertainty(self, logits: Tensor) -> Tensor:
        """Return the entropy among the tokens that may be chosen, plus the surprise at having to
        choose one of them, in nats, [M] float64.
        """
        allowed = without(logits.double(), self._banned)
        entropies: Tensor = torch.special.entr(allowed.softmax(dim=-1)).sum(dim=-1)
        surprises: Tensor = logits.double().logsumexp(dim=-1) - allowed.logsumexp(dim=-1)
        return entropies.add_(surprises)

    def _draws(self, eligible: Tensor, rows: Tensor, *shape: int) -> Tensor:
        """Return uniform draws for each candidate, [M, *shape] float64."""
        draws = [
            torch.rand(
                (number, *shape),
                dtype=torch.float64,
                device=rows.device,
                generator=self._generators[row],
            )
            for number, row in zip(eligible.sum(1).tolist(), rows.tolist(), strict=True)
        ]
        return torch.cat(draws)
