#!/bin/bash
# The environment of a job, sourced by a separate bash before the ranks start. Its exports reach the
# ranks, and so do its `ulimit` and `umask`; its options, traps, functions and current folder do not.
# An `exit 3` here, or a command that fails after `set -e`, ends the job, and `llada-sft status`
# shows the output. The file is copied into the run directory when a run is launched, so that a
# requeued job uses the same file.
#
# The ranks run the Python that ran launch.py: launch from the environment of the training, and load
# here only what that Python needs. Do not put passwords or tokens here, because this file is copied:
# `wandb login` and `hf auth login` keep theirs in your home.

# Modules (the job has the environment that sbatch was called in):
# module purge
# module load cuda/12.8

# NCCL. Name the network that joins the nodes if NCCL picks a wrong one (`ip addr`, `ibdev2netdev`):
# export NCCL_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5
# Print what NCCL chose, once per job:
# export NCCL_DEBUG=INFO

# PyTorch: less memory lost to fragmentation when the batches vary in size:
# export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

# Nodes without a network: do not wait for a network that the hook may ask for.
# export HF_HUB_OFFLINE=1
