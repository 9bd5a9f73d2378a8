"""Fine-tune LLaDA (masked diffusion language models) with ZeRO-3 on a SLURM cluster."""

__version__ = "0.1.0"
