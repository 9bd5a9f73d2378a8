"""Losses of routers: one keeps the load of experts even, the other their logits small.

The released function takes both factors of the balance loss from one micro-batch
(`balance_loss`). So its gradient depends on how rows meet in micro-batches, and on the number of
ranks. In training (`Balance`) both are of the real tokens of the global batch: P_e, the mean
probability, of this step; f_e, the share of tokens that chose the expert, of the step before. The
loss is then linear in P_e, and is summed over micro-batches and ranks like any other. The
probabilities of a router with sigmoids are its scores, divided by their sum.

Shapes: T tokens, E experts, k of them for each token, N layers with experts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llada_sft.model.families.architecture import Experts
from llada_sft.model.layers.experts import Choice, count


@dataclass
class Routing:
    """What the routers of one forward pass decided.

    Attributes:
        choices: Of each layer with experts.
        logits: Of each of these layers, [T, E] floating, with their graph.
    """

    choices: list[Choice] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def choice(self, per_token: int) -> Choice:
        """Add a layer."""
        self.choices.append(Choice(per_token))
        return self.choices[-1]

    def counts(self, real: Tensor | None = None) -> Tensor:
        """Count how many tokens chose each expert, [N, E] int64.

        Args:
            real: [T] bool, the tokens that count; None: all.
        """
        layers = zip(self.choices, self.logits, strict=True)
        return torch.stack(
            [
                count(choice.experts, logits.shape[1], real)
                for choice, logits in layers
                if choice.experts is not None
            ]
        )


def balance_loss(logits: Sequence[Tensor], per_token: int) -> Tensor:
    """Return E · Σ_e f_e P_e over the tokens of all layers; k where the load is even.

    The released function: padding counts, and all layers are taken together.

    Source: Fedus et al., Switch Transformers (arXiv 2101.03961), eq. 4-6.

    Args:
        logits: Of each layer with experts, [T, E] floating.
        per_token: k.
    """
    probabilities = torch.cat(list(logits)).softmax(-1, dtype=torch.float32)
    number = probabilities.shape[1]
    counts = count(probabilities.detach().topk(per_token, dim=-1).indices, number)
    shares = counts.float() / len(probabilities)
    return number * (shares * probabilities.mean(0)).sum()


class Balance:
    """The losses of the routers in training, and how even the load is.

    In the first step f_e is k/E: the balance loss is k, without a gradient.

    Args:
        experts: Of the network.
        balance_weight: What the balance loss is multiplied by.
        z_weight: What the mean of (log Σ exp logits)² is multiplied by.

    Attributes:
        COLUMNS: Names of what `metrics` returns.
        counts: How many real tokens chose each expert in the last step, [N, E] int64, of all ranks.
    """

    COLUMNS = ("balance_loss", "router_z_loss", "expert_load", "experts_unused", "routed")

    def __init__(self, experts: Experts, balance_weight: float, z_weight: float) -> None:
        self._experts = experts
        self._weights = balance_weight, z_weight
        self.counts = torch.zeros(sum(experts.layers), experts.num_experts, dtype=torch.int64)
        self._shares = torch.full((experts.num_experts,), self._mean_share)
        self._own_counts = torch.zeros_like(self.counts)
        # Both losses, not weighted, of this rank in this step.
        self._sums = torch.zeros(2)
        self._scale = 0.0

    @property
    def _mean_share(self) -> float:
        return self._experts.per_token / self._experts.num_experts

    def begin_step(self, num_tokens: int, world_size: int, device: torch.device) -> None:
        """Begin an optimizer step.

        Args:
            num_tokens: Real tokens that the network runs on in the global batch; with masks in
                pairs those of both twins.
            world_size: Number of ranks, over which gradients are averaged.
            device: Where this rank computes.
        """
        self._scale = world_size / (num_tokens * len(self.counts))
        self._own_counts = torch.zeros_like(self.counts, device=device)
        self._sums = torch.zeros(2, device=device)
        self._shares = self._shares.to(device)

    def loss(self, routing: Routing, real: Tensor | None) -> Tensor:
        """Return a micro-batch's part of both losses, weighted; fp32.

        Source of the second: Zoph et al., ST-MoE (arXiv 2202.08906), eq. 5.

        Args:
            routing: Of its forward pass.
            real: [T] bool, the tokens that count; None: all.
        """
        self._own_counts += routing.counts(real)
        losses = torch.stack([self._sum(logits, real) for logits in routing.logits]).sum(0)
        losses = losses * self._scale
        self._sums += losses.detach()
        return self._weighted(losses)

    @property
    def added(self) -> Tensor:
        """What this rank's micro-batches of the step have added to their losses."""
        return self._weighted(self._sums)

    def _weighted(self, losses: Tensor) -> Tensor:
        balance_weight, z_weight = self._weights
        return balance_weight * losses[0] + z_weight * losses[1]

    def _sum(self, logits: Tensor, real: Tensor | None) -> Tensor:
        """Return E · Σ f_e p_e and the square of log Σ exp, summed over the tokens of a layer."""
        logits = logits.float()
        even = logits.shape[1] * (self._probabilities(logits) @ self._shares)  # [T]
        both = torch.stack([even, logits.logsumexp(-1) ** 2])
        return (both if real is None else both * real).sum(1)

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Return what is kept even.

        Source of the second: DeepSeek-V3 (arXiv 2412.19437), eq. 17-20.
        """
        if self._experts.router.scores == "softmax":
            return logits.softmax(-1)
        scores = logits.sigmoid()
        return scores / scores.sum(-1, keepdim=True)

    def end_step(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Take the load of this step for the next one.

        Args:
            add_up: Sums a tensor over ranks.
        """
        self.counts = add_up(self._own_counts)
        self._know_shares()

    def _know_shares(self) -> None:
        of_all = self.counts.sum(0)
        shares = self._experts.per_token * of_all / of_all.sum()
        self._shares = torch.where(of_all.sum() > 0, shares, self._mean_share)

    def metrics(self, mean: Callable[[Tensor], Tensor], num_tokens: int) -> dict[str, float]:
        """Return the numbers of the step for the log.

        Args:
            mean: Averages a tensor over ranks.
            num_tokens: Real tokens of the global batch.
        """
        balance, z = mean(self._sums).tolist()
        counts, per_token = self.counts, self._experts.per_token
        return {
            "balance_loss": balance,
            "router_z_loss": z,
            # The share of the most chosen expert of any layer; 1 where all are chosen equally.
            "expert_load": float(counts.max()) / num_tokens / self._mean_share,
            "experts_unused": float((counts == 0).sum()),
            # What experts computed, of what routers chose.
            "routed": float(counts.sum()) / (num_tokens * per_token * len(counts)),
        }

    def state(self) -> list[list[int]]:
        """Return what a checkpoint keeps: the counts."""
        return self.counts.tolist()

    def load_state(self, counts: list[list[int]]) -> None:
        """Take the counts of a checkpoint."""
        self.counts = torch.tensor(counts, dtype=torch.int64)
        self._know_shares()
