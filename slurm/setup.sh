#!/bin/bash
# The environment of a job, sourced before the ranks start, by a bash of its own. What it exports
# reaches the ranks, also its `ulimit` and `umask`; its options, traps, functions and its folder do
# not. An `exit 3` here, or a command that fails after `set -e`, ends the job, and `llada-sft status`
# shows what was said. The file is copied into the run directory when a run is launched, so that a
# requeued job gets the same one.
#
# The ranks run the Python that ran launch.py: launch from the environment that shall train, and
# load here only what that Python needs. Put no passwords or tokens here: this file is copied.
# `wandb login` and `hf auth login` keep theirs in your home.

# Modules (the job has the environment that sbatch was called in):
# module purge
# module load cuda/12.8

# NCCL. Name the network that joins the nodes where NCCL picks a wrong one (`ip addr`, `ibdev2netdev`):
# export NCCL_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5
# What NCCL chose, once per job:
# export NCCL_DEBUG=INFO

# PyTorch: less memory lost to fragmentation when the batches vary in size:
# export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

# Nodes without a network: do not wait for one that the hook may ask for.
# export HF_HUB_OFFLINE=1
